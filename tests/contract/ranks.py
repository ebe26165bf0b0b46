"""Train every toy method as one of two ranks: python ranks.py RANK FOLDER.

The first rank also trains each alone. FOLDER/KIND.RANK keeps what `run` gives of every method, for
the kinds "one" (alone), "two" (data-parallel) and "shard" (weights shared out).
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from toys import SIZES, build, noise, share

from saccade import methods
from saccade.core import Clock
from saccade.engine.fit import BUFFERS_STAY
from saccade.engine.sharding import shard, whole
from saccade.nn.dist import mean
from saccade.nn.norm import synchronize

STEPS, EARLY, B = 10, 3, 8  # sharded runs end early
VARIANTS = {name: (name, {}) for name in methods.names()}
VARIANTS["simclr"] = ("simclr", {"temperature": 0.5})  # lower ones magnify rounding step by step
VARIANTS["simclr_v2"] = ("simclr_v2", {"temperature": 1.0, "layers": 2, "dim": 32})
VARIANTS["simsiam"] = ("simsiam", {"dim": 64, "bottleneck": 32})  # wide ones magnify less
VARIANTS["moco_v3"] = ("moco_v3", {"temperature": 1.0, "layers": 2, "hidden": 64})  # likewise
VARIANTS["vicreg"] = ("vicreg", {"invariance": 1.0, "variance": 1.0, "covariance": 0.04})
VARIANTS["nnclr"] = ("nnclr", {"temperature": 1.0, "hidden": 64})
VARIANTS["swav"] = ("swav", {"temperature": 0.5, "epsilon": 0.1})
VARIANTS["moby"] = ("moby", {"temperature": 1.0, "hidden": 64})
VARIANTS["pixpro instance"] = ("pixpro", {"instance": "simclr", "instance_weight": 0.1})
VARIANTS["moco symmetric"] = ("moco", {"symmetric": True})


def run(kind, name, settings, rank, world):
    """Losses of all steps, the gradients of the first, the states early and at the end."""
    task = build(name, **settings).train()
    synchronize(task)
    if kind == "shard":
        shard(task)
    call = DistributedDataParallel(task, **BUFFERS_STAY) if kind == "two" else task
    params = {k: p for k, p in task.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(params.values(), 0.01, 0.9)
    losses, first, states = [], {}, {}
    for i in range(EARLY if kind == "shard" else STEPS):
        clock = Clock(i, STEPS, 5)
        loss = call(share(noise(i, B, SIZES.get(name, (32, 32))), rank, world), clock).loss
        optimizer.zero_grad()
        loss.backward()
        first = first or {k: whole(p.grad).clone() for k, p in params.items()}
        task.before_update(clock)
        optimizer.step()
        task.after_update(clock)
        losses.append(mean(loss).item())
        if i + 1 in (EARLY, STEPS):
            states[i + 1] = {k: whole(v.detach()).clone() for k, v in task.state_dict().items()}
    held = [p.to_local().numel() if kind == "shard" else p.numel() for p in task.parameters()]
    return {"losses": losses, "gradients": first, "states": states, "held": sum(held)}


def main():
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    if rank == 0:
        keep("one", rank, 1, folder)
    store = f"file://{folder.resolve()}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    for kind in ("two", "shard"):
        keep(kind, rank, 2, folder)
    dist.destroy_process_group()


def keep(kind, rank, world, folder):
    found = {k: run(kind, *v, rank, world) for k, v in VARIANTS.items()}
    torch.save(found, folder / f"{kind}.{rank}")


if __name__ == "__main__":
    main()
