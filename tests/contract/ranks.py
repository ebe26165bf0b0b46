"""Train every toy method on one of several gloo ranks: python ranks.py RANK WORLD STORE OUT."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from toys import SIZES, build, noise

from saccade import methods
from saccade.core import Clock, Views
from saccade.nn.dist import mean
from saccade.nn.norm import synchronize

STEPS, B = 20, 8
VARIANTS = {name: (name, {}) for name in methods.names()}
VARIANTS["moco symmetric"] = ("moco", {"symmetric": True})


def share(batch, rank, world):
    mine = slice(rank * B // world, (rank + 1) * B // world)
    images = [x[mine] for x in batch.images]
    return Views(images=images, index=batch.index[mine], key=batch.key[mine])


def run(name, settings, rank, world):
    task = build(name, **settings).train()
    synchronize(task)
    call = task
    if world > 1:
        call = torch.nn.parallel.DistributedDataParallel(task, broadcast_buffers=False)
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], 0.02, 0.9)
    losses = []
    for i in range(STEPS):
        clock = Clock(i, STEPS, 5)
        batch = share(noise(i, B, SIZES.get(name, (32, 32))), rank, world)
        loss = call(batch, clock).loss
        optimizer.zero_grad()
        loss.backward()
        task.before_update(clock)
        optimizer.step()
        task.after_update(clock)
        losses.append(mean(loss).item())
    return {"losses": losses, "state": task.state_dict()}


def main():
    rank, world, store, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    found = {k: run(name, settings, rank, world) for k, (name, settings) in VARIANTS.items()}
    if rank == world - 1:  # the last rank: its queue and center agree with the first's
        torch.save(found, out)
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
