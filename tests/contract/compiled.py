"""Losses of two steps of toy methods, eager and compiled, as JSON: python compiled.py NAME ..."""

import json
import sys

import torch
from toys import batch_for, build, train


def losses(name, compiled):
    task = build(name)
    batches = [batch_for(name, i) for i in range(2)]
    if compiled:
        task.compile(backend="eager")
    return train(task, batches)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({name: [losses(name, c) for c in (False, True)] for name in sys.argv[1:]}))
