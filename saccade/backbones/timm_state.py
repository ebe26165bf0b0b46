"""Weights of backbones under timm's own keys, out and in.

Position tables are resized as by timm, bicubic and antialiased, where Google's, DeiT's and DINO's
codes each do it in another way: the last digits of transferred figures depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from ..core import Backbone, PixelBackbone
from .relative import RelativeViT, resize
from .timm_adapter import FeatureNet, StagedNet, ViT


@dataclass(frozen=True, kw_only=True)
class Report:
    """Which keys of a state did not go into the network one to one."""

    unexpected: tuple[str, ...] = ()  # in the state, not used
    resized: tuple[str, ...] = ()  # position tables fitted to this picture size
    missing: tuple[str, ...] = ()  # batch counters, and blocks added to timm's network
    matched: int = 0  # keys taken


def timm_net(backbone: Backbone) -> nn.Module:
    """timm's model inside."""
    if not isinstance(backbone, FeatureNet | RelativeViT | StagedNet | ViT):
        raise ValueError(f"backbone: {type(backbone).__name__} is not one of timm's networks")
    return backbone.net


def network(backbone: Backbone) -> nn.Module:
    """What holds the weights: timm's model inside, or the backbone itself where it is ours."""
    return backbone if isinstance(backbone, PixelBackbone) else timm_net(backbone)


def timm_state(backbone: Backbone) -> dict[str, Tensor]:
    """Weights under timm's keys, or their own where timm has no such network."""
    return network(backbone).state_dict()


def load_timm_state(backbone: Backbone, state: Mapping[str, Tensor]) -> Report:
    """Copy weights under timm's keys in; a missing key or a wrong shape raises ValueError."""
    net, resized = network(backbone), ()
    own = net.state_dict()
    used = {k: v for k, v in state.items() if k in own}
    if isinstance(backbone, ViT) and "pos_embed" in used:
        fitted = _fit_positions(backbone, used["pos_embed"])
        resized = ("pos_embed",) if fitted is not used["pos_embed"] else ()
        used["pos_embed"] = fitted
    if isinstance(backbone, RelativeViT):
        fitted = {k: v for k, v in used.items() if _wants_resizing(v, k, own)}
        used |= {k: resize(v, backbone.grid) for k, v in fitted.items()}
        resized = tuple(fitted)
    missing = tuple(k for k in own if k not in used)
    new = backbone.added if isinstance(backbone, StagedNet) else frozenset()
    new = new if new.isdisjoint(used) else frozenset()  # all of them, or none
    absent = [k for k in missing if k not in new and not k.endswith("num_batches_tracked")]
    if absent:
        raise ValueError(f"weights: no {_some(absent)} for this backbone; is it the right one?")
    wrong = [
        f"{k} is {list(v.shape)}, not {list(own[k].shape)}"
        for k, v in used.items()
        if v.shape != own[k].shape
    ]
    if wrong:
        raise ValueError(f"weights: {_some(wrong)}; is it the right backbone and image size?")
    net.load_state_dict(used, strict=not missing)
    unexpected = tuple(k for k in state if k not in own)
    return Report(unexpected=unexpected, resized=resized, missing=missing, matched=len(used))


def _fit_positions(backbone: ViT, table: Float[Tensor, "1 m d"]) -> Float[Tensor, "1 n d"]:
    """A table made for another square picture, resized the way timm does; else as it is."""
    patches = table.shape[1] - backbone.placed
    side = math.isqrt(max(patches, 0))
    if side * side != patches or (side, side) == tuple(backbone.grid):
        return table
    return resample_abs_pos_embed(
        table, list(backbone.grid), [side, side], num_prefix_tokens=backbone.placed
    )


def _wants_resizing(table: Tensor, name: str, own: Mapping[str, Tensor]) -> bool:
    """Whether a table of distances, square but for three entries, is for other grids than ours."""
    if not name.endswith("relative_position_bias_table") or table.shape == own[name].shape:
        return False
    side = math.isqrt(max(len(table) - 3, 0))
    return side * side == len(table) - 3 and table.shape[1] == own[name].shape[1]


def _some(things: list[str]) -> str:
    shown = ", ".join(things[:3])
    return shown if len(things) <= 3 else f"{shown} and {len(things) - 3} more"
