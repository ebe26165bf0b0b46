"""Train every toy method on one of several ranks: python ranks.py RANK WORLD STORE OUT [shard]."""

import sys

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

STEPS, B = 20, 8
VARIANTS = {name: (name, {}) for name in methods.names()}
VARIANTS["simclr"] = ("simclr", {"temperature": 0.5})  # lower ones magnify rounding step by step
VARIANTS["simclr_v2"] = ("simclr_v2", {"temperature": 1.0, "layers": 2})  # likewise
VARIANTS["moco_v3"] = ("moco_v3", {"temperature": 1.0, "layers": 2, "hidden": 64})  # likewise
VARIANTS["vicreg"] = ("vicreg", {"invariance": 1.0, "variance": 1.0, "covariance": 0.04})
VARIANTS["nnclr"] = ("nnclr", {"temperature": 1.0, "hidden": 64})
VARIANTS["swav"] = ("swav", {"temperature": 0.5, "epsilon": 0.1})
VARIANTS["moby"] = ("moby", {"temperature": 1.0})
VARIANTS["pixpro instance"] = ("pixpro", {"instance": "simclr", "instance_weight": 0.1})
VARIANTS["moco symmetric"] = ("moco", {"symmetric": True})


def run(name, settings, rank, world, sharded):
    """Losses of all steps, the gradients of the first, and the final state."""
    task = build(name, **settings).train()
    synchronize(task)
    if sharded:
        shard(task)
    plain = sharded or world == 1
    call = task if plain else DistributedDataParallel(task, **BUFFERS_STAY)
    params = {k: p for k, p in task.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(params.values(), 0.01, 0.9)
    losses, first = [], {}
    for i in range(STEPS):
        clock = Clock(i, STEPS, 5)
        loss = call(share(noise(i, B, SIZES.get(name, (32, 32))), rank, world), clock).loss
        optimizer.zero_grad()
        loss.backward()
        first = first or {k: whole(p.grad).clone() for k, p in params.items()}
        task.before_update(clock)
        optimizer.step()
        task.after_update(clock)
        losses.append(mean(loss).item())
    state = {k: whole(v.detach()) for k, v in task.state_dict().items()}
    held = [p.to_local().numel() if sharded else p.numel() for p in task.parameters()]
    return {"losses": losses, "gradients": first, "state": state, "held": sum(held)}


def main():
    rank, world, store, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    sharded = sys.argv[5:] == ["shard"]
    found = {k: run(*v, rank, world, sharded) for k, v in VARIANTS.items()}
    torch.save(found, f"{out}.{rank}")
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
