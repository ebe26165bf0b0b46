"""Encoders by name: our presets and families, and any ResNet, ViT, Swin or ConvNeXt of timm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .presets import PRESETS, WELL_KNOWN

if TYPE_CHECKING:
    from ..core import Backbone
    from ..recipe import BackboneConfig


def names() -> list[str]:
    """A short list to choose from; `create` takes every timm name of these families."""
    return sorted([*PRESETS, *WELL_KNOWN])


def summary(name: str) -> str:
    """One line on a name of the short list."""
    if name not in PRESETS:
        return "timm's own, for 224-pixel pictures"
    preset = PRESETS[name]
    changes = ", ".join(f"{k}={v}" for k, v in (preset.layers or preset.changes).items())
    by = f"{preset.family}: " if preset.family else ""
    return f"for {preset.image_size}-pixel pictures: timm's {preset.timm} with {by}{changes}"


def family(name: str) -> str:
    """The file here whose layers timm does not have, or "" where the network is timm's own."""
    return PRESETS[name].family if name in PRESETS else ""


def create(cfg: BackboneConfig) -> Backbone:
    """A randomly initialized encoder; draws from torch's global generator."""
    from .timm_adapter import build  # torch and timm take seconds to import: only when needed

    return build(cfg)
