import math
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from timm.data import auto_augment
from torchvision.transforms.v2 import functional as tv

from saccade.core import StrongSet, View
from saccade.data import augment, strong
from saccade.nn.random import keys, uniform
from saccade.recipe import Normalize


def draws(*rows):
    """Numbers that `drawn` reads: (which, happens, a, b, sign) of each operation."""
    return torch.tensor([number for row in rows for number in row])


def at(table, name):
    """The first draw that chooses an operation."""
    names = [apply.__name__ for apply, *_ in table]
    return (names.index(name) + 0.5) / len(table)


def test_a_set_holds_the_operations_of_its_paper():
    assert len(strong.RANDAUGMENT) == 15
    assert len(strong.CLSA) == 14


@pytest.mark.parametrize(
    ("name", "value"),
    [("posterize", 4.0), ("solarize", 256.0), ("solarize_add", 110.0), ("color", 1.9)],
)
def test_randaugment_at_full_magnitude_has_its_strongest_values(name, value):
    kind = StrongSet(name="randaugment", count=1, magnitude=10.0, deviation=0.0)
    ((apply, strength),) = strong.drawn(
        kind, draws((at(strong.RANDAUGMENT, name), 0.0, 0.3, 0.3, 0.9))
    )
    assert apply.__name__ == name
    assert strength == pytest.approx(value)


def test_magnitudes_are_normal_and_cut_off():
    kind = StrongSet(name="randaugment", count=1, chance=1.0, magnitude=9.0, deviation=0.5)
    u = uniform(keys(0, 0, torch.arange(4000)), 5, "strong")
    u[:, 0] = at(strong.RANDAUGMENT, "color")
    levels = torch.tensor([(strong.drawn(kind, row)[0][1] - 0.1) / 0.18 for row in u])
    assert levels.max() == pytest.approx(10.0)
    normal = torch.distributions.Normal(9.0, 0.5)
    for level in (8.0, 8.5, 9.0, 9.5):
        share = float((levels < level).float().mean())
        assert share == pytest.approx(float(normal.cdf(torch.tensor(level))), abs=0.03)


def test_clsa_draws_whole_levels_from_1_to_9():
    kind = StrongSet(name="clsa", count=1, chance=1.0)
    which = at(strong.CLSA, "brightness")
    got = {strong.drawn(kind, draws((which, 0.0, k / 90, 0.0, 0.0)))[0][1] for k in range(90)}
    assert sorted(got) == pytest.approx([0.05 + 0.09 * v for v in range(1, 10)])


def test_an_operation_that_does_not_happen_leaves_the_picture():
    x = torch.rand(2, 3, 8, 8)
    still = x.clone()
    strong.change(x, StrongSet(name="clsa", count=5, chance=0.0), torch.rand(2, 40))
    assert torch.equal(x, still)


def test_operations_are_pillows():
    """Those of Pillow that RandAugment's and CLSA's code call, on 8-bit pictures."""
    torch.manual_seed(0)
    x = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    picture = Image.fromarray(x.permute(1, 2, 0).numpy())
    for got, want in (
        (strong.autocontrast(x, 0.0), ImageOps.autocontrast(picture)),
        (strong.invert(x, 0.0), ImageOps.invert(picture)),
        (strong.posterize(x, 3.9), ImageOps.posterize(picture, 3)),
        (strong.solarize(x, 100.2), ImageOps.solarize(picture, 100)),
    ):
        assert (got.int() - tv.pil_to_tensor(want).int()).abs().max() <= 1


@pytest.mark.parametrize("factor", [0.1, 0.5, 0.95, 1.9])
def test_weaker_and_stronger_colors_are_pillows(factor):
    x = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    picture = Image.fromarray(x.permute(1, 2, 0).numpy())
    for apply, theirs in (
        (strong.brightness, ImageEnhance.Brightness),
        (strong.color, ImageEnhance.Color),
        (strong.contrast, ImageEnhance.Contrast),
        (strong.sharpness, ImageEnhance.Sharpness),
    ):
        want = tv.pil_to_tensor(theirs(picture).enhance(factor)).int()
        assert (apply(x, factor).int() - want).abs().max() <= 2, apply.__name__


@pytest.mark.parametrize(
    ("table", "fill"), [(strong.RANDAUGMENT, (124, 116, 104)), (strong.CLSA, (0, 0, 0))]
)
def test_what_comes_in_from_outside_has_the_color_of_the_set(table, fill):
    x = torch.full((3, 20, 20), 200, dtype=torch.uint8)
    for apply, _, most, _ in table[-5:]:
        moved = apply(x, float(most))
        assert list(fill) in moved[:, [0, 0, -1, -1], [0, -1, 0, -1]].T.tolist()  # a corner
        assert moved[:, 10, 10].tolist() == [200, 200, 200]


def test_solarize_add_brightens_dark_pixels_only():
    x = torch.tensor([0, 100, 127, 128, 255], dtype=torch.uint8).expand(3, 1, 5)
    assert strong.solarize_add(x, 40.7)[0, 0].tolist() == [40, 140, 167, 128, 255]


def test_shears_and_shifts_move_pixels_as_pillows_matrices_do():
    x = torch.zeros(3, 8, 8, dtype=torch.uint8)
    x[:, 4, 4] = 255
    moved = strong.moved(x, strong.BLACK, shift=(0.25, 0.0))
    assert moved[0].nonzero().tolist() == [[4, 6]]
    sheared = strong.moved(x, strong.BLACK, shear=(0.25, 0.0))
    want = Image.fromarray(x[0].numpy()).transform(
        (8, 8), Image.Transform.AFFINE, (1, math.tan(math.atan(0.25)), 0, 0, 1, 0)
    )
    assert sheared[0].nonzero().tolist() == tv.pil_to_tensor(want)[0].nonzero().tolist()


@pytest.mark.parametrize("name", ["randaugment", "clsa"])
def test_strong_views_differ_from_draw_to_draw_and_not_otherwise(name):
    torch.manual_seed(0)
    x = torch.randint(0, 256, (1, 3, 12, 12), dtype=torch.uint8).expand(12, -1, -1, -1)
    row = View(size=12, jitter=0.0, grayscale=0.0, blur=0.0, strong=StrongSet(name=name, count=5))
    key = keys(0, 0, torch.arange(12))
    one, two = (augment.color(x, row, key, Normalize()) for _ in range(2))
    assert torch.equal(one, two)
    assert len(one.flatten(1).unique(dim=0)) > 6


@pytest.mark.parametrize(("setting", "value"), [("count", 9), ("magnitude", 11.0), ("chance", 2.0)])
def test_settings_that_cannot_be_are_named(setting, value):
    row = View(strong=StrongSet(name="clsa", **{setting: value}))
    with pytest.raises(ValueError, match=r"views\.0\.strong"):
        augment.check_view(row, 0)


TIMM = {  # our name: timm's
    "posterize_more": "PosterizeIncreasing",
    "solarize_more": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
    "color_by": "ColorIncreasing",
    "contrast_by": "ContrastIncreasing",
    "brightness_by": "BrightnessIncreasing",
    "sharpness_by": "SharpnessIncreasing",
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
}


@pytest.mark.parametrize("name", TIMM)
@pytest.mark.parametrize("level", [1.0, 4.3, 9.0, 9.9])
def test_increasing_operations_equal_timms(name, level):
    kind = StrongSet(name="increasing", count=1, magnitude=level, deviation=0.0)
    for sign in (0.2, 0.7):
        row = draws((at(strong.INCREASING, name), 0.0, 0.3, 0.3, sign))
        ((apply, strength),) = strong.drawn(kind, row)
        assert apply.__name__ == name
        x = (uniform(keys(0, 0, torch.arange(3)), 400, name) * 256).to(torch.uint8)
        x = x.unflatten(1, (20, 20))
        random.seed(0)
        if apply is strong.solarize_more or name in ("posterize_more", "solarize_add"):
            arguments = auto_augment.LEVEL_TO_ARG[TIMM[name]](level, {})
        elif name.endswith("_by"):
            arguments = (max(0.1, 1 + (-1 if sign < 0.5 else 1) * level / 10 * 0.9),)
        else:
            arguments = ()
        theirs = auto_augment.NAME_TO_OP[TIMM[name]](
            Image.fromarray(x.permute(1, 2, 0).numpy()), *arguments
        )
        wanted = torch.from_numpy(np.array(theirs)).permute(2, 0, 1).int()
        assert (apply(x, strength).int() - wanted).abs().max() <= 1, name


def test_increasing_is_timms_set():
    names = {TIMM.get(apply.__name__) for apply, *_ in strong.INCREASING} - {None}
    assert len(strong.INCREASING) == len(auto_augment._RAND_INCREASING_TRANSFORMS) == 15
    assert names < set(auto_augment._RAND_INCREASING_TRANSFORMS)
    signed = {apply.__name__ for apply, _, _, sign in strong.INCREASING if sign}
    assert {"color_by", "contrast_by", "brightness_by", "sharpness_by"} < signed
