"""The stronger sets of operations, drawn anew for each view: RandAugment's and CLSA's.

Cubuk et al. 2020, arXiv:1909.13719, at the magnitudes InfoMin's code uses (Tian et al. 2020,
arXiv:2005.10243), and Wang and Qi 2022, arXiv:2104.07713. `increasing` is RandAugment as papers
fine-tune with it (timm's `inc1`): each operation does more at a higher level, and colors, contrast,
brightness and sharpness go either way from 1. The operations are torchvision's, on 8-bit pictures,
one at a time.

Deviation: InfoMin's and timm's code also draw the interpolation of rotations and shears; here it is
bilinear, the one other than nearest that torchvision has for tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from ..core import StrongSet

DRAWS = 5  # numbers a drawn operation takes: which, whether, two of its magnitude, sign
MOST = 8  # operations drawn for a view at most
FILL = (124.0, 116.0, 104.0)  # InfoMin's, ImageNet's mean
BLACK = (0.0, 0.0, 0.0)
Picture = UInt8[Tensor, "3 h w"]
Apply = Callable[[Tensor, float], Tensor]  # picture, strength


def autocontrast(x: Picture, _: float) -> Picture:
    return tv.autocontrast(x)


def brightness(x: Picture, factor: float) -> Picture:
    return tv.adjust_brightness(x, factor)


def color(x: Picture, factor: float) -> Picture:
    return tv.adjust_saturation(x, factor)


def contrast(x: Picture, factor: float) -> Picture:
    return tv.adjust_contrast(x, factor)


def equalize(x: Picture, _: float) -> Picture:
    return tv.equalize(x)


def identity(x: Picture, _: float) -> Picture:
    return x


def invert(x: Picture, _: float) -> Picture:
    return tv.invert(x)


def posterize(x: Picture, bits: float) -> Picture:
    return tv.posterize(x, int(bits))


def sharpness(x: Picture, factor: float) -> Picture:
    return tv.adjust_sharpness(x, factor)


def solarize(x: Picture, threshold: float) -> Picture:
    return tv.solarize(x, int(threshold)) if threshold < 256 else x


def posterize_more(x: Picture, bits: float) -> Picture:
    """Black where no bit is left."""
    return tv.posterize(x, 4 - int(bits)) if bits < 4 else torch.zeros_like(x)


def solarize_more(x: Picture, less: float) -> Picture:
    return solarize(x, float(256 - int(less)))


def solarize_add(x: Picture, value: float) -> Picture:
    """Dark pixels made brighter."""
    return torch.where(x < 128, (x.int() + int(value)).clamp_max(255).to(torch.uint8), x)


def moved(
    x: Picture,
    fill: tuple[float, ...],
    *,
    angle: float = 0.0,
    shear: tuple[float, float] = (0.0, 0.0),
    shift: tuple[float, float] = (0.0, 0.0),
) -> Picture:
    """Rotated about the center by degrees, sheared from the corner, or moved by a share."""
    mode = InterpolationMode.NEAREST if fill == BLACK else InterpolationMode.BILINEAR
    if angle:
        return tv.rotate(x, angle, interpolation=mode, fill=list(fill))
    return tv.affine(
        x,
        angle=0.0,
        translate=[int(share * x.shape[-1]) for share in shift],
        scale=1.0,
        shear=[math.degrees(math.atan(s)) for s in shear],
        interpolation=mode,
        fill=list(fill),
        center=[0.0, 0.0],
    )


def color_by(x: Picture, more: float) -> Picture:
    return color(x, max(1 + more, 0.1))


def contrast_by(x: Picture, more: float) -> Picture:
    return contrast(x, max(1 + more, 0.1))


def brightness_by(x: Picture, more: float) -> Picture:
    return brightness(x, max(1 + more, 0.1))


def sharpness_by(x: Picture, more: float) -> Picture:
    return sharpness(x, max(1 + more, 0.1))


def geometry(fill: tuple[float, ...]) -> dict[str, Apply]:
    """The operations that move pixels; what comes in from outside has the fill's color."""
    return {
        "rotate": lambda x, angle: moved(x, fill, angle=angle),
        "shear_x": lambda x, s: moved(x, fill, shear=(s, 0.0)),
        "shear_y": lambda x, s: moved(x, fill, shear=(0.0, s)),
        "translate_x": lambda x, s: moved(x, fill, shift=(s, 0.0)),
        "translate_y": lambda x, s: moved(x, fill, shift=(0.0, s)),
    }


# Operation: its strength at level 0 and at level 10, and whether a coin gives it its sign.
Table = list[tuple[Apply, float, float, bool]]
RANDAUGMENT: Table = [
    (autocontrast, 0, 0, False),
    (equalize, 0, 0, False),
    (invert, 0, 0, False),
    (posterize, 0, 4, False),
    (solarize, 0, 256, False),
    (solarize_add, 0, 110, False),
    (color, 0.1, 1.9, False),
    (contrast, 0.1, 1.9, False),
    (brightness, 0.1, 1.9, False),
    (sharpness, 0.1, 1.9, False),
    (geometry(FILL)["rotate"], 0, 30, True),
    (geometry(FILL)["shear_x"], 0, 0.3, True),
    (geometry(FILL)["shear_y"], 0, 0.3, True),
    (geometry(FILL)["translate_x"], 0, 0.45, True),
    (geometry(FILL)["translate_y"], 0, 0.45, True),
]
INCREASING: Table = [
    *RANDAUGMENT[:3],
    (posterize_more, 0, 4, False),
    (solarize_more, 0, 256, False),
    RANDAUGMENT[5],
    *((apply, 0, 0.9, True) for apply in (color_by, contrast_by, brightness_by, sharpness_by)),
    *RANDAUGMENT[10:],
]
CLSA: Table = [
    (autocontrast, 0, 0, False),
    (equalize, 0, 0, False),
    (identity, 0, 0, False),
    (brightness, 0.05, 0.95, False),
    (color, 0.05, 0.95, False),
    (contrast, 0.05, 0.95, False),
    (sharpness, 0.05, 0.95, False),
    (posterize, 4, 8, False),
    (solarize, 0, 256, False),
    (geometry(BLACK)["rotate"], -30, 30, False),
    (geometry(BLACK)["shear_x"], -0.3, 0.3, False),
    (geometry(BLACK)["shear_y"], -0.3, 0.3, False),
    (geometry(BLACK)["translate_x"], -0.3, 0.3, False),
    (geometry(BLACK)["translate_y"], -0.3, 0.3, False),
]
TABLES = {"randaugment": RANDAUGMENT, "increasing": INCREASING, "clsa": CLSA}


def drawn(strong: StrongSet, draws: Float[Tensor, "n"]) -> list[tuple[Apply, float]]:
    """The operations that happen, in order, and how strong each is."""
    table, steps = TABLES[strong.name], []
    for which, happens, a, b, sign in draws[: DRAWS * strong.count].view(-1, DRAWS).tolist():
        apply, low, high, signed = table[int(which * len(table))]
        if happens >= strong.chance:
            continue
        if strong.name != "clsa":  # a normal number, by Box and Muller
            normal = math.sqrt(-2 * math.log(1 - a)) * math.cos(2 * math.pi * b)
            level = min(max(strong.magnitude + strong.deviation * normal, 0.0), 10.0)
        else:
            level = 1 + int(9 * a)
        strength = low + (high - low) * level / 10
        steps.append((apply, -strength if signed and sign < 0.5 else strength))
    return steps


def change(x: Float[Tensor, "b 3 h w"], strong: StrongSet, draws: Float[Tensor, "b n"]) -> None:
    """In place: each picture in [0, 1], through 8 bits."""
    for picture, own in zip(x, draws.cpu(), strict=True):
        steps = drawn(strong, own)
        if steps:
            pixels = (picture * 255).round().to(torch.uint8)
            for apply, strength in steps:
                pixels = apply(pixels, strength)
            picture.copy_(pixels).mul_(1 / 255)
