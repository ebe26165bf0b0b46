"""Encoders by name: our presets and families, and any ResNet, ViT, Swin or ConvNeXt of timm."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ..recipe import Normalize
from .presets import OWN, PRESETS, WELL_KNOWN

if TYPE_CHECKING:
    from ..core import Backbone
    from ..recipe import BackboneConfig

PLAIN = Normalize()


def names() -> list[str]:
    """A short list to choose from; `create` takes every timm name of these families."""
    return sorted([*PRESETS, *OWN, *WELL_KNOWN])


def summary(name: str) -> str:
    """One line on a name of the short list."""
    if name in OWN:
        sizes = ", ".join(f"{k}={v}" for k, v in OWN[name].sizes.items())
        return f"for {OWN[name].image_size}-pixel pictures: {OWN[name].family} with {sizes}"
    if name not in PRESETS:
        return "timm's own, for 224-pixel pictures"
    preset = PRESETS[name]
    changes = ", ".join(f"{k}={v}" for k, v in (preset.layers or preset.changes).items())
    by = f"{preset.family}: " if preset.family else ""
    return f"for {preset.image_size}-pixel pictures: timm's {preset.timm} with {by}{changes}"


def family(name: str) -> str:
    """The file here whose layers timm does not have, or "" where the network is timm's own."""
    if name in OWN:
        return OWN[name].family
    return PRESETS[name].family if name in PRESETS else ""


def create(cfg: BackboneConfig, normalize: Normalize = PLAIN) -> Backbone:
    """A randomly initialized encoder; draws from torch's global generator.

    `normalize` is what its pictures went through: networks over colors undo it.
    """
    if cfg.name in OWN:  # torch and timm take seconds to import: only when needed
        return import_module(f".{OWN[cfg.name].family}", __package__).build(cfg, normalize)
    from .timm_adapter import build

    return build(cfg)
