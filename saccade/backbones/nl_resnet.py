"""ResNets with non-local, disentangled non-local or global context blocks in named units.

Where the official codes put them: non-local blocks behind a unit's last ReLU (arXiv:1711.07971:
units 1, 3 of res3 and 1, 3, 5 of res4 of a ResNet-50, 6, 13, 20 of a ResNet-101's), keys of a map
pooled 2x2 before phi and g; disentangled ones between the sum and that ReLU of res4's last unit but
one (arXiv:2006.06668, the detection code, with d = C/4); global context blocks in front of the sum,
of all units from res3 on (arXiv:1904.11492). All other weights keep timm's keys, so that the blocks
can be put into a trained ResNet. The small networks have non-local and disentangled blocks in the
same units, of res3 and res4, and no pooling of keys.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Literal

from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from ..attention import DisentangledNonLocal, GlobalContext, NonLocal

Mechanism = Literal["non_local", "disentangled", "global_context"]


def alter(net: ResNet, *, mechanism: Mechanism, units: dict[int, tuple[int, ...]]) -> None:
    """Put blocks into units, counted from 0, of stages, counted from 1 as in `layer1`."""
    for stage, chosen in units.items():
        for i in chosen:
            _insert(net.get_submodule(f"layer{stage}.{i}"), mechanism)


def _insert(unit: Any, mechanism: Mechanism) -> None:
    deep = isinstance(unit, Bottleneck)
    last = "act3" if deep else "act2"
    norm: Any = unit.get_submodule("bn3" if deep else "bn2")
    channels = norm.num_features
    act = unit.get_submodule(last)
    match mechanism:
        case "non_local":
            block = NonLocal(channels, pool="input" if deep else "none")
            setattr(unit, last, nn.Sequential(OrderedDict(act=act, nl=block)))
        case "disentangled":
            block = DisentangledNonLocal(channels, ratio=4)
            setattr(unit, last, nn.Sequential(OrderedDict(dnl=block, act=act)))
        case "global_context":
            unit.se = GlobalContext(channels)
