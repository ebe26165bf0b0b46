"""Networks as a timm name and what to change in it. Nothing here imports torch.

A network with layers of another paper has that family's file here, which changes timm's network.
One that timm has no part in is in `OWN`, with the file that builds it.
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


@dataclass(frozen=True, kw_only=True)
class Own:
    family: str  # a file here with `build`
    image_size: int  # pixels it is meant for
    sizes: dict[str, Any]  # arguments of its constructor


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


def _resnet14(width: int) -> Preset:
    """One bottleneck a stage."""
    channels = (width, 2 * width, 4 * width, 8 * width)
    changes = {"layers": (1, 1, 1, 1), "channels": channels}
    return Preset(timm="resnet26", image_size=32, changes=changes)


def _vit(dim: int, depth: int, heads: int, *, patch: int, image_size: int) -> Preset:
    changes = {"embed_dim": dim, "depth": depth, "num_heads": heads, "patch_size": patch}
    return Preset(timm="vit_tiny_patch16_224", image_size=image_size, changes=changes)


def _gap(dim: int, depth: int, heads: int, *, patch: int, image_size: int) -> Preset:
    """Without CLS: the pooled vector is the mean of the patches after the norm."""
    plain = _vit(dim, depth, heads, patch=patch, image_size=image_size)
    pooled = {"class_token": False, "global_pool": "avg", "fc_norm": False}
    return replace(plain, changes=plain.changes | pooled)


def _beit(dim: int, depth: int, heads: int, *, patch: int, image_size: int) -> Preset:
    """Pretrained: one table of distances for all blocks, where timm's networks have one in each."""
    changes = {"embed_dim": dim, "depth": depth, "num_heads": heads, "patch_size": patch}
    changes |= {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}
    return Preset(timm="beit_base_patch16_224", image_size=image_size, changes=changes)


def _non_local(mechanism: str, timm: Preset, units: dict[int, tuple[int, ...]]) -> Preset:
    layers = {"mechanism": mechanism, "units": units}
    return replace(timm, family="nl_resnet", layers=layers)


def _lr_net(*depths: int) -> Preset:
    """100 channels in the first stage, where groups of 8 do not fit."""
    changes = {"layers": depths, "base_width": 100}
    layers = {"kernels": (7, 7, 7, 7), "groups": (10, 8, 8, 8)}
    return Preset(timm="resnet50", image_size=224, changes=changes, family="lr_net", layers=layers)


def _lr_net14(width: int) -> Preset:
    layers = {"kernels": (7, 7, 7, 3), "groups": (8, 8, 8, 8)}
    return replace(_resnet14(width), family="lr_net", layers=layers)


def _lambda(timm: Preset, scope: int, *units: int | tuple[int, ...]) -> Preset:
    """`units` of each stage: those that are lambda layers, or how many, if that is all of them."""
    each = tuple(tuple(range(u)) if isinstance(u, int) else u for u in units)
    return replace(timm, family="lambda_resnet", layers={"scope": scope, "units": each})


def _simclr(depth: int, width: int, *, selective: bool = False) -> Preset:
    """SimCLR v2's. With selective kernels there are three convolutions in front."""
    changes: dict[str, Any] = {"channels": tuple(64 * width * 2**i for i in range(4))}
    if selective:
        changes |= {"stem_type": "deep", "stem_width": 32 * width, "avg_down": True}
    return Preset(
        timm=f"resnet{depth}",
        image_size=224,
        changes=changes,
        family="simclr_resnet",
        layers={"width": width, "selective": selective},
    )


RESNET50 = Preset(timm="resnet50", image_size=224)
NL_UNITS = {50: {2: (1, 3), 3: (1, 3, 5)}, 101: {2: (1, 3), 3: (6, 13, 20)}}
GC_UNITS = {2: (0, 1, 2, 3), 3: (0, 1, 2, 3, 4, 5), 4: (0, 1, 2)}  # all but the first stage
LAMBDA_UNITS = {  # of the stage before the last; all of the last
    50: (3,),
    101: (6, 12, 18),
    152: range(5, 31, 5),
    200: range(5, 31, 5),
    270: range(8, 49, 8),
    350: range(10, 61, 10),
    420: range(10, 81, 10),
}

PRESETS = {
    "beit_base_shared_patch16_224": _beit(768, 12, 12, patch=16, image_size=224),
    "beit_atto_shared_patch4_32": _beit(64, 3, 2, patch=4, image_size=32),
    "beit_atto_shared_patch12_96": _beit(64, 3, 2, patch=12, image_size=96),
    "beit_nano_shared_patch8_64": _beit(192, 6, 3, patch=8, image_size=64),
    "beit_pico_shared_patch4_32": _beit(96, 6, 3, patch=4, image_size=32),
    "beit_tiny_shared_patch4_32": _beit(192, 12, 3, patch=4, image_size=32),
    "dnl_resnet10_w32": _non_local("disentangled", _resnet10(32), {2: (0,), 3: (0,)}),
    "dnl_resnet50": _non_local("disentangled", RESNET50, {3: (4,)}),
    "gc_resnet10_w32": _non_local("global_context", _resnet10(32), {2: (0,), 3: (0,), 4: (0,)}),
    "gc_resnet50": _non_local("global_context", RESNET50, GC_UNITS),
    "lambda_resnet10_w32": _lambda(_resnet10(32), 7, 0, 0, 1, 1),
    "lambda_resnet50": _lambda(RESNET50, 23, 3, 4, 6, 3),
    **{
        f"lambda_resnetrs{d}": _lambda(
            replace(RESNET50, timm=f"resnetrs{d}"), 23, 0, 0, tuple(units), 3 if d < 270 else 4
        )
        for d, units in LAMBDA_UNITS.items()
    },
    "lr_net14_w16": _lr_net14(16),
    "lr_net14_w32": _lr_net14(32),
    "lr_net26": _lr_net(2, 2, 2, 2),
    "lr_net50": _lr_net(3, 4, 6, 3),
    "nl_resnet10_w32": _non_local("non_local", _resnet10(32), {2: (0,), 3: (0,)}),
    **{
        f"nl_resnet{d}": _non_local("non_local", replace(RESNET50, timm=f"resnet{d}"), units)
        for d, units in NL_UNITS.items()
    },
    "resnet10_w16": _resnet10(16),
    "resnet10_w28": _resnet10(28),
    "resnet10_w32": _resnet10(32),
    "resnet10_w34": _resnet10(34),
    "resnet14_w13": _resnet14(13),
    **{f"resnet{d}_x2": _simclr(d, 2) for d in (50, 101, 152)},
    **{
        f"resnet{d}_x{width}_sk": _simclr(d, width, selective=True)
        for d, width in ((50, 1), (50, 2), (101, 1), (101, 2), (152, 1), (152, 2), (152, 3))
    },
    "sk_resnet14_w32": replace(
        _resnet14(32), family="simclr_resnet", layers={"width": 1, "selective": True}
    ),
    "swin_pico_patch4_window4_64": Preset(
        timm="swin_tiny_patch4_window7_224",
        image_size=64,
        changes={
            "window_size": 4,
            "embed_dim": 32,
            "depths": (1, 1, 2, 1),
            "num_heads": (1, 2, 4, 8),
        },
    ),
    "swin_base_patch4_window6_192": Preset(  # SimMIM's
        timm="swin_base_patch4_window7_224", image_size=192, changes={"window_size": 6}
    ),
    "vit_atto_patch4_gap_32": _gap(64, 3, 2, patch=4, image_size=32),
    "vit_atto_patch12_gap_96": _gap(64, 3, 2, patch=12, image_size=96),
    "vit_pico_patch4_gap_32": _gap(96, 6, 3, patch=4, image_size=32),
    "vit_nano_patch8_gap_64": _gap(192, 6, 3, patch=8, image_size=64),
    "vit_tiny_patch4_gap_32": _gap(192, 12, 3, patch=4, image_size=32),
    "vit_atto_patch4_32": _vit(64, 3, 2, patch=4, image_size=32),
    "vit_atto_patch12_96": _vit(64, 3, 2, patch=12, image_size=96),
    "vit_femto_patch8_32": _vit(96, 3, 3, patch=8, image_size=32),
    "vit_pico_patch8_32": _vit(96, 6, 3, patch=8, image_size=32),
    "vit_pico_patch4_32": _vit(96, 6, 3, patch=4, image_size=32),
    "vit_nano_patch4_32": _vit(192, 6, 3, patch=4, image_size=32),
    "vit_nano_patch8_64": _vit(192, 6, 3, patch=8, image_size=64),
    "vit_tiny_patch4_32": _vit(192, 12, 3, patch=4, image_size=32),
    "vit_base_layerscale_patch16_224": Preset(  # CAE's
        timm="vit_base_patch16_224", image_size=224, changes={"init_values": 0.1}
    ),
    "vit_small_patch4_32": _vit(384, 12, 6, patch=4, image_size=32),
    "vit_small_heads12_patch16_224": _vit(384, 12, 12, patch=16, image_size=224),  # MoCo v3's
}

_IGPT = {  # name: pixels, width, blocks, heads
    **{f"pico_{size}": (size, 64, 6, 4) for size in (16, 32)},
    **{f"nano_{size}": (size, 128, 6, 4) for size in (16, 32)},
    "s_32": (32, 512, 24, 8),
    "m_32": (32, 1024, 36, 8),
    **{f"l_{size}": (size, 1536, 48, 16) for size in (32, 48)},
    "xl_64": (64, 3072, 60, 24),
}

OWN = {
    f"igpt_{name}{end}": Own(
        family="igpt",
        image_size=size,
        sizes={"dim": dim, "depth": depth, "heads": heads, "causal": not end},
    )
    for name, (size, dim, depth, heads) in _IGPT.items()
    for end in ("", "_bert")
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
