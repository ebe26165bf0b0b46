"""Numbers to colors: tables that rise evenly in lightness, also for the color-blind."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

# Ten even steps of matplotlib's tables (in the public domain), with straight lines between them.
VIRIDIS = (
    *(0x440154, 0x482878, 0x3E4A89, 0x31688E, 0x26828E),
    *(0x1F9E89, 0x35B779, 0x6DCD59, 0xB4DE2C, 0xFDE725),
)
MAGMA = (
    *(0x000004, 0x180F3E, 0x451077, 0x721F81, 0x9F2F7F),
    *(0xCD4071, 0xF1605D, 0xFD9567, 0xFEC98D, 0xFCFDBF),
)
SIGNED = (0x2166AC, 0x92C5DE, 0xF7F7F7, 0xF4A582, 0xB2182B)  # blue below 0, red above
NOTHING = 0.6  # gray of what is not a number


def paint(
    x: Float[Tensor, "h w"], low: float, high: float, table: tuple[int, ...] = VIRIDIS
) -> UInt8[Tensor, "3 h w"]:
    """A map in colors, the table's ends at `low` and `high`."""
    bytes_ = [[c >> 16, c >> 8 & 255, c & 255] for c in table]
    colors = torch.tensor(bytes_, dtype=torch.float32)  # [K, 3]
    share = ((x.float().cpu() - low) / max(high - low, 1e-12)).clamp(0, 1)
    place = share.nan_to_num(0.0) * (len(table) - 1)
    below = place.floor().long().clamp_max(len(table) - 2)
    y = torch.lerp(colors[below], colors[below + 1], (place - below)[..., None])  # [h, w, 3]
    y = torch.where(share.isnan()[..., None], torch.tensor(255 * NOTHING), y)
    return y.round().to(torch.uint8).permute(2, 0, 1)


def heat(x: Float[Tensor, "h w"]) -> UInt8[Tensor, "3 h w"]:
    """A map of its own range; one with values below 0 is blue there and red above."""
    known = x[~x.isnan()]
    if not len(known):
        return paint(x, 0.0, 1.0)
    low, high = float(known.min()), float(known.max())
    if low < 0:
        far = max(-low, high)
        return paint(x, -far, far, SIGNED)
    return paint(x, low, high, MAGMA)


def photo(
    x: Float[Tensor, "c h w"], mean: tuple[float, ...], std: tuple[float, ...]
) -> UInt8[Tensor, "3 h w"]:
    """Normalized pixels as they were; gray where they are not numbers.

    Other channels than RGB become one gray of the picture's own range.
    """
    unit = x.float().cpu() * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    if len(x) not in (1, 3):
        unit = unit.mean(0, keepdim=True)
        known = unit[~unit.isnan()]
        low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
        unit = (unit - low) / max(float(high - low), 1e-12)
    unit = unit.nan_to_num(NOTHING).clamp(0, 1)
    return (unit * 255).round().to(torch.uint8).expand(3, -1, -1)


def dimmed(x: UInt8[Tensor, "3 h w"], keep: Float[Tensor, "h w"]) -> UInt8[Tensor, "3 h w"]:
    """A picture at a quarter of its light where `keep` is 0."""
    return (x * (0.25 + 0.75 * keep.float().cpu())).round().to(torch.uint8)
