import colorsys
import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv
from toys import CLOCK, ConvNet, build, views

from saccade.core import View
from saccade.methods.exemplar_cnn import (
    ExemplarCNN,
    Ranges,
    color_contrast,
    hsv,
    rgb,
    seed_windows,
    window,
)
from saccade.nn.random import fold, keys

NONE = Ranges(
    translation=0.0,
    scale=(1.0, 1.0),
    rotation=0.0,
    contrast=(1.0, 1.0),
    power=(1.0, 1.0),
    factor=(1.0, 1.0),
    offset=0.0,
    hue=0.0,
)


def exemplar(images=16, **settings):
    torch.manual_seed(0)
    cfg = ExemplarCNN.Config(images=images, hidden=8, patch=16, **settings)
    return ExemplarCNN(cfg, ConvNet())


def pictures(b=6, size=32):
    return torch.rand(b, 3, size, size, generator=torch.Generator().manual_seed(1))


def batch(x, epoch=0):
    return replace(views(x), key=keys(0, epoch, torch.arange(len(x))))


def test_uniform_logits_give_the_log_of_the_images():
    task = exemplar(images=8000)
    with torch.no_grad():
        task.classes.weight.zero_()
        task.classes.bias.fill_(0.3)
    assert task(batch(pictures()), CLOCK).loss.item() == pytest.approx(8.987, abs=1e-3)


def test_the_loss_is_torchs_cross_entropy_of_plain_logits():
    task = exemplar(dropout=0.0)
    made = batch(pictures())
    y = F.relu(task.hidden(task.encoder.eval()(task.patches(made))))
    wanted = F.cross_entropy(y @ task.classes.weight.T + task.classes.bias, torch.arange(6))
    torch.testing.assert_close(task(made, CLOCK).loss, wanted)


def test_one_sample_without_transformations_is_the_same_patch_in_every_epoch():
    x = pictures()
    fixed, drawn = exemplar(samples=1, ranges=NONE), exemplar(samples=0)
    assert torch.equal(fixed.patches(batch(x, 0)), fixed.patches(batch(x, 1)))
    assert not torch.equal(drawn.patches(batch(x, 0)), drawn.patches(batch(x, 1)))


def test_one_sample_without_transformations_is_learned_by_heart():
    task = exemplar(images=6, samples=1, ranges=NONE, dropout=0.0)
    optimizer = torch.optim.Adam(task.parameters(), 0.02)
    for _ in range(60):
        loss = task(batch(pictures()), CLOCK).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05


def test_samples_of_a_seed_are_a_fixed_set_of_that_size():
    task, x = exemplar(images=1, samples=3), pictures(1)
    made = torch.cat([task.patches(batch(x, e)) for e in range(30)])
    assert len(made.flatten(1).unique(dim=0)) == 3
    again = copy.deepcopy(task)
    assert torch.equal(again.patches(batch(x, 7)), made[7:8])


def test_seeds_follow_the_energy_of_their_windows():
    x = torch.zeros(1, 3, 8, 8)
    x[:, :, :, 4:] = torch.rand(3, 8, 4, generator=torch.Generator().manual_seed(2))
    gray = x[0].mean(0).double()
    energy = torch.zeros(8, 8, dtype=torch.float64)
    energy[:, :-1] += gray.diff(dim=1).square()
    energy[:-1] += gray.diff(dim=0).square()
    weight = torch.tensor(
        [[energy[i : i + 2, j : j + 2].sum() for j in range(7)] for i in range(7)]
    )
    n = 4000
    center, side = seed_windows(x.expand(n, -1, -1, -1), (0.25, 0.25), keys(0, 0, torch.arange(n)))
    assert (side == 2).all()
    column, row = (center - 1).long().T
    assert (column >= 2).all()  # no window lies in the flat half
    wanted = n * weight / weight.sum()
    counts = torch.zeros(7, 7, dtype=torch.float64).index_put_(
        (row, column), torch.ones(n, dtype=torch.float64), accumulate=True
    )
    used = wanted > 5
    chi_square = ((counts - wanted).square() / wanted)[used].sum()
    assert chi_square < used.sum() + 4 * math.sqrt(2 * used.sum())


def test_seeds_lie_inside_and_have_the_sizes_asked_for():
    x = pictures(200)
    center, side = seed_windows(x, (0.25, 0.75), keys(0, 0, torch.arange(200)))
    assert (side.min(), side.max()) == (8, 24)
    assert (center - side[:, None] / 2 >= 0).all()
    assert (center + side[:, None] / 2 <= 32).all()


def test_a_window_without_motion_is_the_crop_to_the_bit():
    x, side = pictures(2, 64), torch.full((2,), 32.0)
    center = torch.tensor([[32.0, 32.0], [40.0, 24.0]])
    found = window(x, center, side, torch.zeros(2), 32)
    assert torch.equal(found[0], x[0, :, 16:48, 16:48])
    assert torch.equal(found[1], x[1, :, 8:40, 24:56])


def test_a_quarter_turn_equals_torchs():
    x = pictures(1)
    quarter = torch.full((1,), math.pi / 2)
    found = window(x, torch.full((1, 2), 16.0), torch.full((1,), 32.0), quarter, 32)
    torch.testing.assert_close(found, torch.rot90(x, 1, (2, 3)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("angle", "scale"), [(20.0, 1.0), (-13.0, 0.8), (0.0, 1.4)])
def test_a_turned_and_scaled_window_is_torchvisions(angle, scale):
    x = pictures(1)
    side, turn = torch.tensor([32 * scale]), torch.deg2rad(torch.tensor([angle]))
    found = window(x, torch.full((1, 2), 16.0), side, turn, 32)
    wanted = tv.affine(x, -angle, [0, 0], 1 / scale, [0.0], InterpolationMode.BILINEAR)
    middle = (..., slice(7, 25), slice(7, 25))  # which sees nothing outside the picture
    torch.testing.assert_close(found[middle], wanted[middle], atol=1e-4, rtol=0)


def test_half_the_scale_sees_half_the_side():
    x = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    found = window(x, torch.full((1, 2), 16.0), torch.full((1,), 16.0), torch.zeros(1), 32)
    step = found.diff(dim=3)
    torch.testing.assert_close(step, torch.full_like(step, 0.5 / 31), atol=1e-5, rtol=0)


def test_color_contrast_of_one_is_the_identity_and_scales_each_principal_axis():
    torch.manual_seed(0)
    x = torch.rand(2, 3, 16, 16) * torch.tensor([1.0, 0.5, 0.2])[:, None, None]
    torch.testing.assert_close(color_contrast(x, torch.ones(2, 3)), x)
    factor = torch.tensor([[0.5, 1.5, 2.0]] * 2)
    spreads = [
        torch.linalg.eigvalsh(torch.cov(y[0].flatten(1))) for y in (x, color_contrast(x, factor))
    ]
    wanted = (spreads[0] * factor[0].square()).sort().values
    torch.testing.assert_close(spreads[1], wanted, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(color_contrast(x, factor).mean((2, 3)), x.mean((2, 3)))


def test_hsv_equals_pythons_and_comes_back():
    x = pictures(1, 6)
    x[0, :, 0, :3] = torch.tensor([[0.0, 0.5, 1.0]])  # grays
    x[0, :, 1, :3] = torch.eye(3)
    found = hsv(x)
    for i in range(6):
        for j in range(6):
            wanted = colorsys.rgb_to_hsv(*x[0, :, i, j].tolist())
            assert found[0, :, i, j].tolist() == pytest.approx(wanted, abs=1e-5)
    torch.testing.assert_close(rgb(found), x, atol=1e-6, rtol=0)


def test_hue_turned_forth_and_back_is_the_identity():
    h = hsv(pictures())
    turn = torch.tensor([0.1, 0, 0])[:, None, None]
    forth = hsv(rgb(torch.cat([(h[:, :1] + 0.1) % 1, h[:, 1:]], 1)))
    back = rgb(torch.cat([(forth[:, :1] - 0.1) % 1, forth[:, 1:]], 1))
    torch.testing.assert_close(back, pictures(), atol=1e-4, rtol=0)
    assert not torch.allclose(rgb((h + turn) % 1), pictures(), atol=1e-2)


def test_no_transformation_leaves_the_seed():
    task, x = exemplar(samples=0, ranges=NONE), pictures()
    key = task.start.expand(6)
    center, side = seed_windows(x, task.cfg.seeds, fold(key, torch.arange(6)))
    wanted = window(x, center, side, torch.zeros(6), 16)
    torch.testing.assert_close(task.patches(batch(x)), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "change",
    [
        {"translation": 0.2},
        {"scale": (0.7, 0.8)},
        {"rotation": 20.0},
        {"contrast": (0.5, 0.6)},
        {"power": (2.0, 3.0)},
        {"factor": (0.7, 0.8)},
        {"offset": 0.1},
        {"hue": 0.1},
    ],
    ids=lambda c: next(iter(c)),
)
def test_each_transformation_changes_the_patch_and_keeps_pixels_in_range(change):
    x = pictures()
    plain, changed = exemplar(ranges=NONE), exemplar(ranges=replace(NONE, **change))
    made = changed.patches(batch(x))
    assert (made - plain.patches(batch(x))).abs().mean() > 0.005
    assert made.min() >= 0
    assert made.max() <= 1


def test_dropout_acts_in_training_only():
    task, made = exemplar(dropout=0.9), batch(pictures())
    assert task.train()(made, CLOCK).loss != task.eval()(made, CLOCK).loss
    whole = build("exemplar_cnn", dropout=0.0).eval()
    assert torch.equal(whole(made, CLOCK).loss, whole(batch(pictures()), CLOCK).loss)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match=r"method\.images: 0; give the number"):
        exemplar(images=0)
    with pytest.raises(ValueError, match=r"method\.views: ExemplarCNN sees 1 view, not 2"):
        exemplar(views=(View(count=2),))
