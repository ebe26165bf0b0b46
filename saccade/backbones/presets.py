"""Networks as a timm name and what to change in it. Nothing here imports torch.

A network with layers of another paper has that family's file here, which changes timm's network.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Preset:
    timm: str
    image_size: int  # pixels it is meant for
    changes: dict[str, Any] = field(default_factory=dict)  # arguments of timm's constructor
    family: str = ""  # a file here with `alter`; empty: timm's own layers only
    layers: dict[str, Any] = field(default_factory=dict)  # arguments of `alter`


def _resnet10(width: int) -> Preset:
    """One basic block a stage. The deep stem is timm's only one that narrows: its last conv has
    2 x stem_width channels."""
    channels = (width, 2 * width, 4 * width, 8 * width)
    changes = {
        "layers": (1, 1, 1, 1),
        "channels": channels,
        "stem_type": "deep",
        "stem_width": width // 2,
    }
    return Preset(timm="resnet18", image_size=32, changes=changes)


def _vit(dim: int, depth: int, heads: int, *, patch: int, image_size: int) -> Preset:
    changes = {"embed_dim": dim, "depth": depth, "num_heads": heads, "patch_size": patch}
    return Preset(timm="vit_tiny_patch16_224", image_size=image_size, changes=changes)


def _non_local(mechanism: str, timm: Preset, units: dict[int, tuple[int, ...]]) -> Preset:
    layers = {"mechanism": mechanism, "units": units}
    return replace(timm, family="nl_resnet", layers=layers)


def _lr_net(*depths: int) -> Preset:
    """100 channels in the first stage, where groups of 8 do not fit."""
    changes = {"layers": depths, "base_width": 100}
    layers = {"kernels": (7, 7, 7, 7), "groups": (10, 8, 8, 8)}
    return Preset(timm="resnet50", image_size=224, changes=changes, family="lr_net", layers=layers)


def _lambda(timm: Preset, scope: int, *units: int | tuple[int, ...]) -> Preset:
    """`units` of each stage: those that are lambda layers, or how many, if that is all of them."""
    each = tuple(tuple(range(u)) if isinstance(u, int) else u for u in units)
    return replace(timm, family="lambda_resnet", layers={"scope": scope, "units": each})


RESNET50 = Preset(timm="resnet50", image_size=224)
GC_UNITS = {2: (0, 1, 2, 3), 3: (0, 1, 2, 3, 4, 5), 4: (0, 1, 2)}  # all but the first stage

PRESETS = {
    "dnl_resnet10_w32": _non_local("disentangled", _resnet10(32), {3: (0,)}),
    "dnl_resnet50": _non_local("disentangled", RESNET50, {3: (4,)}),
    "gc_resnet10_w32": _non_local("global_context", _resnet10(32), {2: (0,), 3: (0,), 4: (0,)}),
    "gc_resnet50": _non_local("global_context", RESNET50, GC_UNITS),
    "lambda_resnet10_w32": _lambda(_resnet10(32), 7, 0, 0, 1, 1),
    "lambda_resnet50": _lambda(RESNET50, 23, 3, 4, 6, 3),
    "lambda_resnetrs50": _lambda(replace(RESNET50, timm="resnetrs50"), 23, 0, 0, (3,), 3),
    "lr_net14_w32": Preset(
        timm="resnet26",
        image_size=32,
        changes={"layers": (1, 1, 1, 1), "channels": (32, 64, 128, 256)},
        family="lr_net",
        layers={"kernels": (7, 7, 7, 3), "groups": (8, 8, 8, 8)},
    ),
    "lr_net26": _lr_net(2, 2, 2, 2),
    "lr_net50": _lr_net(3, 4, 6, 3),
    "nl_resnet10_w32": _non_local("non_local", _resnet10(32), {2: (0,), 3: (0,)}),
    "nl_resnet50": _non_local("non_local", RESNET50, {2: (1, 3), 3: (1, 3, 5)}),
    "resnet10_w16": _resnet10(16),
    "resnet10_w32": _resnet10(32),
    "vit_pico_patch4_32": _vit(96, 6, 3, patch=4, image_size=32),
    "vit_nano_patch4_32": _vit(192, 6, 3, patch=4, image_size=32),
    "vit_nano_patch8_64": _vit(192, 6, 3, patch=8, image_size=64),
    "vit_tiny_patch4_32": _vit(192, 12, 3, patch=4, image_size=32),
    "vit_small_patch4_32": _vit(384, 12, 6, patch=4, image_size=32),
    "vit_small_heads12_patch16_224": _vit(384, 12, 12, patch=16, image_size=224),  # MoCo v3's
}

WELL_KNOWN = (
    "convnext_tiny",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "swin_tiny_patch4_window7_224",
    "vit_base_patch16_224",
    "vit_small_patch16_224",
    "vit_tiny_patch16_224",
)
