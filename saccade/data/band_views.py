"""Views of pictures that are not 8-bit RGB: what each operation means, and which are skipped.

Saturation, hue and grayscale need RGB and are skipped for any other number of channels. Wide
pictures (float32, in the data's own unit) change their colors in a unit where each band's mean is
1/2 and its deviation 1/4, about what photographs have, and nothing is clipped. Brightness scales
all bands alike; contrast works around each band's own mean, and so commutes with brightness.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from jaxtyping import Float, Int64
from torch import Tensor

from ..core import View
from ..nn.random import uniform
from ..recipe import Normalize
from . import augment

DEVIATIONS = 4  # of a band, from 0 to 1 of the unit of color


def fitted(view: View, channels: int) -> View:
    """The view without what needs RGB."""
    if channels == 3:
        return view
    return replace(view, strength=(*view.strength[:2], 0.0, 0.0), grayscale=0.0)


def skipped(views: Iterable[View], channels: int) -> list[str]:
    """What `fitted` takes away, in words."""
    if channels == 3:
        return []
    rows = list(views)
    jittered = [view.strength for view in rows if view.jitter]
    chances = {
        "saturation": max((s[2] for s in jittered), default=0.0),
        "hue": max((s[3] for s in jittered), default=0.0),
        "grayscale": max((view.grayscale for view in rows), default=0.0),
    }
    return [name for name, chance in chances.items() if chance > 0]


def color(
    pixels: Float[Tensor, "b c h w"], view: View, key: Int64[Tensor, "b"], normalize: Normalize
) -> Float[Tensor, "b c h w"]:
    """The view's color operations on wide pixels, in its order, then normalization."""
    mean, inverse = augment.normalizer(normalize, pixels.device)
    x = (pixels - mean) * (inverse / DEVIATIONS) + 0.5
    for op in view.order:
        chance = augment.chance(view, op)
        if op in augment.DRAWS and chance > 0:
            draws = uniform(key, augment.DRAWS[op], op)
            if op == "jitter":
                x = _jitter(x, view, draws)
            elif op != "grayscale":
                augment.OPERATIONS[op](x, view, draws)
    return (x - 0.5) * DEVIATIONS


def _jitter(
    x: Float[Tensor, "b c h w"], view: View, draws: Float[Tensor, "b 9"]
) -> Float[Tensor, "b c h w"]:
    """Brightness and contrast, from the draws that 8-bit pictures take them from."""
    factors = []
    for k, strength in enumerate(view.strength[:2]):
        low, high = max(0.0, 1 - strength), 1 + strength
        factor = (low + (high - low) * draws[:, 1 + k]).where(draws[:, 0] < view.jitter, 1.0)
        factors.append(factor[:, None, None, None])
    brightness, contrast = factors
    mean = x.mean((2, 3), keepdim=True)
    return brightness * (contrast * x + (1 - contrast) * mean)
