"""Views drawn as torchvision draws them, computed a batch at a time.

Two stages. The crop stage works on one 8-bit picture: random resized crop, antialiased as
`torchvision.transforms.v2.functional.resized_crop` is. The color stage works on the batch in
float32, on any device, with the meaning of torchvision's operations on float pictures in [0, 1].
Every draw is a function of (key of picture, view, operation), so a batch's make-up changes nothing.

Deviations: flips are done with the crop, as mirroring commutes with every color operation; the
blur's kernel reaches 3 sigma instead of a fixed number of pixels: 0.3 % of it lies beyond.
"""

from __future__ import annotations

from typing import get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor

from ..core import Op, View
from ..nn.random import uniform
from ..recipe import Normalize
from . import strong

THRESHOLD = 0.5  # of solarize
REACH = 3  # sigmas on either side of a blurred pixel
GRAY = (0.2989, 0.587, 0.114)  # ITU-R 601
BLOCK = 1 << 19  # numbers of a picture block that stays in a core's cache


def check_view(view: View, place: int) -> None:
    """Raise ValueError for settings that cannot be."""
    at = f"setting views.{place}"
    chances = {op: chance(view, op) for op in get_args(Op)}
    for op, p in chances.items():
        if not 0 <= p <= 1:
            raise ValueError(f"{at}.{op}={p} is not a probability in 0..1")
        if view.order.count(op) != 1 and p > 0:
            raise ValueError(f"{at}.order={view.order} must name {op} once, as {op}={p}")
    if not 0 < view.crop[0] <= view.crop[1] <= 1:
        raise ValueError(f"{at}.crop={view.crop} is not a range of area within 0..1")
    if not 0 < view.ratio[0] <= view.ratio[1]:
        raise ValueError(f"{at}.ratio={view.ratio} is not a range of width / height")
    if view.size < 1 or view.count < 1:
        raise ValueError(f"{at}: size={view.size} and count={view.count} must be at least 1")
    if min(view.strength) < 0 or view.strength[3] > 0.5:
        raise ValueError(f"{at}.strength={view.strength} must be positive, with hue at most 0.5")
    if not 1 <= view.strong.count <= strong.MOST:
        raise ValueError(f"{at}.strong.count={view.strong.count} is not within 1..{strong.MOST}")
    if not 0 <= view.strong.magnitude <= 10:
        raise ValueError(f"{at}.strong.magnitude={view.strong.magnitude} is not within 0..10")
    if view.blur and not 0 < view.sigma[0] <= view.sigma[1]:
        raise ValueError(f"{at}.sigma={view.sigma} is not a range of pixels above 0")


def chance(view: View, op: str) -> float:
    """The probability of an operation."""
    match op:
        case "flip":
            return view.flip
        case "jitter":
            return view.jitter if max(view.strength) > 0 else 0.0
        case "grayscale":
            return view.grayscale
        case "blur":
            return view.blur
        case "strong":
            return view.strong.chance if view.strong.name != "none" else 0.0
        case _:
            return view.solarize


# The crop stage.


def resized_crop(
    picture: Shaped[Tensor, "c H W"], box: tuple[int, int, int, int], view: View
) -> Shaped[Tensor, "c s s"]:
    """The box of the picture at the view's size."""
    top, left, h, w = box
    x = picture[:, top : top + h, left : left + w]
    if h == w == view.size:
        return x
    size = (view.size, view.size)
    return F.interpolate(x[None], size, mode=view.interpolation, antialias=True)[0]


# The color stage.


def color(
    pixels: UInt8[Tensor, "b c h w"], view: View, key: Int64[Tensor, "b"], normalize: Normalize
) -> Float[Tensor, "b c h w"]:
    """The view's color operations in its order, then normalization."""
    draws = {op: uniform(key, n, op) for op, n in DRAWS.items() if chance(view, op) > 0}
    mean, inverse = normalizer(normalize, pixels.device)
    out = torch.empty(pixels.shape, device=pixels.device)
    on_cpu = pixels.device.type == "cpu"
    size = max(1, BLOCK // pixels[0].numel()) if on_cpu else len(pixels)
    for start in range(0, len(pixels), size):
        rows = slice(start, start + size)
        x = out[rows].copy_(pixels[rows]).mul_(1 / 255)
        for op in view.order:
            if op in draws:
                OPERATIONS[op](x, view, draws[op][rows])
        x.sub_(mean).mul_(inverse)
    return out


def normalizer(
    normalize: Normalize, device: torch.device
) -> tuple[Float[Tensor, "c 1 1"], Float[Tensor, "c 1 1"]]:
    """Mean and 1 / std, ready to broadcast over pictures."""
    mean = torch.tensor(normalize.mean, device=device)[:, None, None]
    return mean, 1 / torch.tensor(normalize.std, device=device)[:, None, None]


def _jitter(x: Float[Tensor, "b c h w"], view: View, draws: Float[Tensor, "b 9"]) -> None:
    """In place: the four adjustments, each picture in its own order.

    Pictures are sorted by the adjustment whose turn it is, so that each works on one slice.
    """
    factor, order = adjustments(view, draws)
    at = torch.arange(len(x), device=x.device)  # which picture stands where
    y = x
    for place in range(len(ADJUST)):
        turn = order[at, place].argsort(stable=True)
        y, at = y.index_select(0, turn), at[turn]
        counts = order[:, place].bincount(minlength=len(ADJUST) + 1).tolist()
        parts = zip(ADJUST, y.split(counts), at.split(counts), strict=False)
        for op, (adjust, part, rows) in enumerate(parts):
            if len(rows):
                adjust(part, factor[rows, op, None, None, None])
    torch.index_select(y, 0, at.argsort(), out=x)


def factors(view: View) -> list[tuple[float, float]]:
    """The range of the factor of each adjustment."""
    *scales, h = view.strength
    return [*((max(0.0, 1 - s), 1 + s) for s in scales), (-h, h)]


def adjustments(
    view: View, draws: Float[Tensor, "b 9"]
) -> tuple[Float[Tensor, "b 4"], Int64[Tensor, "b 4"]]:
    """The factor of each adjustment, and their order; 4 where nothing is adjusted."""
    low, high = draws.new_tensor(factors(view)).T
    order = draws[:, 5:].argsort(1)
    order[draws[:, 0] >= view.jitter] = len(ADJUST)
    order[draws.new_tensor(view.strength)[order % len(ADJUST)] == 0] = len(ADJUST)
    return low + (high - low) * draws[:, 1:5], order


# These change x in place; factors stand for one picture each.


def brightness(x: Float[Tensor, "b c h w"], factor: Float[Tensor, "b 1 1 1"]) -> None:
    """Scaled pixels, clipped."""
    x.mul_(factor).clamp_(0, 1)


def contrast(x: Float[Tensor, "b c h w"], factor: Float[Tensor, "b 1 1 1"]) -> None:
    """Away from the mean gray of each picture (the mean of all channels where not RGB), clipped."""
    mean = gray(x).mean((1, 2, 3), keepdim=True)
    x.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 1)


def saturation(x: Float[Tensor, "b c h w"], factor: Float[Tensor, "b 1 1 1"]) -> None:
    """Away from each pixel's own gray, clipped."""
    own = gray(x).mul_(1 - factor)
    x.mul_(factor).add_(own).clamp_(0, 1)


def hue(x: Float[Tensor, "b 3 h w"], shift: Float[Tensor, "b 1 1 1"]) -> None:
    """HSV's hue moved by a share of the color circle; value and saturation stay.

    With channels scaled to r, g, b in 0..1 so that the largest is 1 and the smallest 0, the angle
    from red in sixths of the circle is 1 - r + g + b: towards green where g > b, else towards blue.
    """
    r, g, b = x.split(1, 1)
    low = torch.minimum(r, g).minimum(b)
    span = torch.maximum(r, g).maximum(b).sub_(low)
    away = (g + b).sub_(r).sub_(low).div_(span.clamp_min(1e-12)).add_(1)
    angle = away.copysign_(g - b).add_(6 * shift)
    angle.sub_((angle / 6).floor_().mul_(6))  # [b, 1, h, w] in 0..6
    torch.sub(angle, 3, out=r).abs_().sub_(1)
    torch.sub(angle, 2, out=g).abs_().neg_().add_(2)
    torch.sub(angle, 4, out=b).abs_().neg_().add_(2)
    x.clamp_(0, 1).mul_(span).add_(low)


def gray(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
    """Luma of RGB, the mean of any other number of channels."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    r, g, b = x.split(1, 1)
    return (r * GRAY[0]).add_(g * GRAY[1]).add_(b * GRAY[2])


def _grayscale(x: Float[Tensor, "b c h w"], view: View, draws: Float[Tensor, "b 1"]) -> None:
    rows = (draws[:, 0] < view.grayscale).nonzero()[:, 0]
    x[rows] = gray(x[rows]).expand(-1, x.shape[1], -1, -1)


def _solarize(x: Float[Tensor, "b c h w"], view: View, draws: Float[Tensor, "b 1"]) -> None:
    rows = (draws[:, 0] < view.solarize).nonzero()[:, 0]
    y = x[rows]
    x[rows] = torch.where(y >= THRESHOLD, 1 - y, y)


def _strong(x: Float[Tensor, "b c h w"], view: View, draws: Float[Tensor, "b 40"]) -> None:
    strong.change(x, view.strong, draws)


def _blur(x: Float[Tensor, "b c h w"], view: View, draws: Float[Tensor, "b 2"]) -> None:
    sigma = sigmas(view, draws)
    reach = (REACH * sigma).ceil().int()
    reach[draws[:, 0] >= view.blur] = 0
    for pixels in reach.unique().tolist():  # pictures whose kernels have one size
        rows = (reach == pixels).nonzero()[:, 0]
        if pixels:
            x[rows] = blur(x[rows], sigma[rows], pixels)


def sigmas(view: View, draws: Float[Tensor, "b 2"]) -> Float[Tensor, "b"]:
    """How wide each picture is blurred, in pixels."""
    return view.sigma[0] + (view.sigma[1] - view.sigma[0]) * draws[:, 1]


def blur(
    x: Float[Tensor, "b c h w"], sigma: Float[Tensor, "b"], reach: int
) -> Float[Tensor, "b c h w"]:
    """Gaussian blur of each picture by its own sigma in pixels, mirrored at the edges."""
    for axis in (2, 3):
        size = x.shape[axis]
        k = min(reach, size - 1)
        at = torch.arange(-k, k + 1, device=x.device)
        weight = torch.exp(-0.5 * (at / sigma[:, None].double()) ** 2)
        weight = (weight / weight.sum(1, keepdim=True)).float()[:, :, None, None, None]
        wide = F.pad(x, (0, 0, k, k) if axis == 2 else (k, k, 0, 0), mode="reflect")
        x = wide.narrow(axis, 0, size) * weight[:, 0]
        for tap in range(1, 2 * k + 1):
            x.addcmul_(wide.narrow(axis, tap, size), weight[:, tap])
    return x


ADJUST = (brightness, contrast, saturation, hue)
OPERATIONS = {
    "jitter": _jitter,
    "grayscale": _grayscale,
    "blur": _blur,
    "solarize": _solarize,
    "strong": _strong,
}
DRAWS = {  # numbers each operation draws
    "jitter": 9,
    "grayscale": 1,
    "blur": 2,
    "solarize": 1,
    "strong": strong.DRAWS * strong.MOST,
}
