"""Small encoders as a timm name and what to change in it. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Preset:
    timm: str
    image_size: int  # pixels it is meant for
    changes: dict[str, Any] = field(default_factory=dict)  # arguments of timm's constructor


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


PRESETS = {
    "resnet10_w16": _resnet10(16),
    "resnet10_w32": _resnet10(32),
    "vit_nano_patch4_32": _vit(192, 6, 3, patch=4, image_size=32),
    "vit_nano_patch8_64": _vit(192, 6, 3, patch=8, image_size=64),
    "vit_tiny_patch4_32": _vit(192, 12, 3, patch=4, image_size=32),
    "vit_small_patch4_32": _vit(384, 12, 6, patch=4, image_size=32),
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
