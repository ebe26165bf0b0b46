"""Views against torchvision: operation by operation, and the distributions of what is drawn."""

import math
import os
import tarfile
from pathlib import Path

import pytest
import torch
from torchvision import transforms
from torchvision.transforms.v2 import functional as tv

from saccade.core import View
from saccade.data import augment, open_source
from saccade.data.plain import pictures
from saccade.nn.random import keys
from saccade.recipe import Normalize

RAW = Normalize(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
CLOSE = {"atol": 1e-5, "rtol": 0.0}


def colors(b=6, size=24):
    """Noise, with gray, black, white and primary pixels among it."""
    x = torch.rand(b, 3, size, size)
    x[:, :, 0] = x[:, :1, 0]
    corners = torch.tensor([[i >> k & 1 for i in range(8)] for k in range(3)])
    x[:, :, 1, :8] = corners[:, :size]
    return x


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_adjustments_are_torchvisions(name):
    torch.manual_seed(0)
    x = colors()
    factor = torch.tensor([-0.5, -0.13, 0.0, 0.02, 0.31, 0.5])
    if name != "hue":
        factor = factor + 1
    reference = getattr(tv, f"adjust_{name}")
    want = torch.stack([reference(p, float(f)) for p, f in zip(x, factor, strict=True)])
    getattr(augment, name)(x, factor[:, None, None, None])
    torch.testing.assert_close(x, want, **CLOSE)


def test_contrast_of_one_channel_is_torchvisions():
    torch.manual_seed(0)
    x = torch.rand(1, 1, 9, 9)
    want = tv.adjust_contrast(x, 0.4)
    augment.contrast(x, torch.full((1, 1, 1, 1), 0.4))
    torch.testing.assert_close(x, want, **CLOSE)


@pytest.mark.parametrize("size", [24, 5])
def test_blur_is_torchvisions_where_its_kernel_is_as_wide(size):
    torch.manual_seed(0)
    x, sigma = colors(4, size), torch.tensor([0.1, 0.7, 1.3, 2.0])
    for reach in (1, 4):
        kernel = [2 * reach + 1] * 2
        want = torch.cat(
            [
                tv.gaussian_blur(p, kernel, [float(s)] * 2)
                for p, s in zip(x[:, None], sigma, strict=True)
            ]
        )
        torch.testing.assert_close(augment.blur(x, sigma, reach), want, **CLOSE)


def view(**on):
    """A view that does nothing but what is asked for."""
    still = {"flip": 0.0, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0, "solarize": 0.0}
    return View(**still | {"size": 24} | on)


def colored(pixels, row, seed=0):
    return augment.color(pixels, row, keys(seed, 0, torch.arange(len(pixels))), RAW)


def eight_bit(b, size=24):
    return (colors(b, size) * 255).round().to(torch.uint8)


def test_grayscale_and_solarize_are_torchvisions():
    torch.manual_seed(0)
    x = eight_bit(5)
    floats = x.float() / 255
    gray = tv.rgb_to_grayscale(floats, num_output_channels=3)
    torch.testing.assert_close(colored(x, view(grayscale=1.0)), gray, **CLOSE)
    turned = tv.solarize(x, 128).float() / 255
    torch.testing.assert_close(colored(x, view(solarize=1.0)), turned, **CLOSE)


def test_a_chain_of_jitter_is_one_of_torchvisions_orders():
    """Each picture equals the four adjustments with its factors in exactly the order it drew."""
    torch.manual_seed(0)
    x = eight_bit(16)
    row = view(jitter=1.0, strength=(0.4, 0.3, 0.2, 0.1))
    got = colored(x, row)
    u = augment.uniform(keys(0, 0, torch.arange(16)), 9, "jitter")
    ops = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for i in range(16):
        p = x[i].float() / 255
        for op in u[i, 5:].argsort().tolist():
            width = row.strength[op]
            middle = 0.0 if op == 3 else 1.0
            p = ops[op](p, middle - width + 2 * width * float(u[i, 1 + op]))
        torch.testing.assert_close(got[i], p, **CLOSE)


def test_the_orders_of_jitter_are_equally_likely():
    u = augment.uniform(keys(0, 0, torch.arange(24_000)), 9, "jitter")
    order = u[:, 5:].argsort(1)
    counts = (order * torch.tensor([64, 16, 4, 1])).sum(1).unique(return_counts=True)[1]
    assert len(counts) == 24
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 49.7  # chi square, 23 degrees, p = .001


def test_blur_reaches_four_sigma_of_each_picture():
    torch.manual_seed(0)
    x = eight_bit(8)
    got = colored(x, view(blur=1.0, sigma=(0.1, 2.0)))
    u = augment.uniform(keys(0, 0, torch.arange(8)), 2, "blur")
    for i in range(8):
        sigma = 0.1 + 1.9 * float(u[i, 1])
        want = tv.gaussian_blur(x[i] / 255, [2 * math.ceil(4 * sigma) + 1] * 2, [sigma] * 2)
        torch.testing.assert_close(got[i], want, **CLOSE)


@pytest.mark.parametrize("op", ["jitter", "grayscale", "blur", "solarize"])
def test_an_operation_happens_as_often_as_its_probability_says(op):
    torch.manual_seed(0)
    x = eight_bit(1, 6).expand(2000, -1, -1, -1).contiguous()
    changed = (colored(x, view(**{op: 0.3})) != colored(x, view())).flatten(1).any(1)
    assert 0.26 < float(changed.float().mean()) < 0.34  # 4 standard errors


def test_operations_follow_the_order_of_the_view():
    torch.manual_seed(0)
    x = eight_bit(3)
    floats = x.float() / 255
    first = colored(x, view(grayscale=1.0, solarize=1.0))
    want = tv.solarize(tv.rgb_to_grayscale(floats, 3), 0.5)
    torch.testing.assert_close(first, want, **CLOSE)
    order = ("solarize", "grayscale", "flip", "jitter", "blur")
    last = colored(x, view(grayscale=1.0, solarize=1.0, order=order))
    torch.testing.assert_close(last, tv.rgb_to_grayscale(tv.solarize(floats, 0.5), 3), **CLOSE)


@pytest.mark.parametrize("size", [24, 33])
def test_a_picture_comes_out_alike_alone_and_in_a_batch(size):
    torch.manual_seed(0)
    x = eight_bit(13, size)
    row = View(size=size, jitter=0.8, grayscale=0.2, blur=0.5, solarize=0.3)
    key = keys(0, 0, torch.arange(13))
    whole = augment.color(x, row, key, Normalize())
    for i in range(13):
        assert torch.equal(
            augment.color(x[i : i + 1], row, key[i : i + 1], Normalize())[0], whole[i]
        )


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [20, 64])
def test_resized_crop_equals_torchvisions_bytes(mode, size):
    torch.manual_seed(0)
    hwc = torch.randint(0, 256, (50, 61, 3), dtype=torch.uint8)
    for box in ((0, 0, 50, 61), (7, 9, 33, 21), (3, 1, 20, 20), (49, 60, 1, 1)):
        for x in (hwc.permute(2, 0, 1), hwc.permute(2, 0, 1).contiguous()):
            want = tv.resized_crop(x, *box, [size] * 2, tv.InterpolationMode(mode), antialias=True)
            got = augment.resized_crop(x, box, view(size=size, interpolation=mode))
            assert torch.equal(got, want)


def distance(a, b):
    """Kolmogorov-Smirnov: the largest gap between two samples' distributions."""
    both = torch.cat([a, b]).sort().values
    f = [torch.searchsorted(s.sort().values, both, right=True) / len(s) for s in (a, b)]
    return float((f[0] - f[1]).abs().max())


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(100, 160, (0.08, 1.0)), (64, 64, (0.2, 0.5)), (20, 200, (0.6, 1.0))],
)
def test_crops_are_distributed_as_torchvisions(height, width, scale):
    n = 1500
    torch.manual_seed(0)
    picture = torch.empty(3, height, width)
    get = transforms.RandomResizedCrop.get_params
    want = torch.tensor([get(picture, list(scale), [3 / 4, 4 / 3]) for _ in range(n)])
    row = View(crop=scale)
    draws = augment.crop_draws(keys(0, 0, torch.arange(n)))
    got = torch.tensor([augment.crop_box(row, d, height, width) for d in draws])
    assert (got[:, 0] + got[:, 2] <= height).all()
    assert (got[:, 1] + got[:, 3] <= width).all()
    for side in (0, 1, 2, 3):
        a, b = want[:, side].double(), got[:, side].double()
        assert distance(a, b) < 1.95 * math.sqrt(2 / n)  # p = .001
    ratio = [(x[:, 3] / x[:, 2]).double() for x in (want, got)]
    assert distance(*ratio) < 1.95 * math.sqrt(2 / n)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (50, 1), (10, 95)])
def test_pictures_no_crop_fits_in_fall_back_to_torchvisions_center(height, width):
    get = transforms.RandomResizedCrop.get_params
    want = get(torch.empty(3, height, width), [0.99, 1.0], [3 / 4, 4 / 3])
    draws = augment.crop_draws(keys(0, 0, torch.arange(3)))
    row = View(crop=(0.99, 1.0))
    assert {augment.crop_box(row, d, height, width) for d in draws} == {want}


def test_flips_happen_half_the_time_and_mirror():
    chosen = augment.flips(View(flip=0.5), keys(0, 0, torch.arange(4000)))
    assert 0.47 < float(chosen.float().mean()) < 0.53


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """Sixteen pictures of $SACCADE_DATA/caltech43/caltech43.tar."""
    root = os.environ.get("SACCADE_DATA")
    if not root:
        pytest.skip("real photographs: set SACCADE_DATA to the folder of the data archives")
    folder = tmp_path_factory.mktemp("photographs")
    with tarfile.open(Path(root) / "caltech43" / "caltech43.tar") as tar:
        names = [m for m in tar.getmembers() if "/test/" in m.name and m.name.endswith(".jpg")]
        tar.extractall(folder, names[::43], filter="data")
    return folder


@pytest.mark.parametrize(("resize", "mode"), [(64, "bilinear"), (72, "bicubic"), (0, "bilinear")])
def test_evaluation_pictures_are_torchvisions(photographs, resize, mode):
    source = open_source(str(photographs))
    assert len(source) == 16
    norm = Normalize()
    steps = [transforms.v2.Resize(resize, transforms.InterpolationMode(mode))] if resize else []
    steps += [transforms.v2.CenterCrop(64), transforms.v2.ToDtype(torch.float32, scale=True)]
    steps += [transforms.v2.Normalize(norm.mean, norm.std)]
    reference = transforms.v2.Compose(steps)
    got = pictures(
        source, size=64, resize=resize, interpolation=mode, normalize=norm, batch_size=5, threads=2
    )
    for x, index in got:
        want = torch.stack([reference(source.read(int(i)).contiguous()) for i in index])
        torch.testing.assert_close(x, want, **CLOSE)


def test_views_of_photographs_are_torchvisions(photographs):
    """Crop, jitter with equal factors, and blur of real pictures, against the same calls."""
    source = open_source(str(photographs))
    row = View(size=48, crop=(0.2, 1.0), interpolation="bicubic")
    key = keys(0, 0, torch.arange(16))
    draws = augment.crop_draws(key)
    for i in range(16):
        x = source.read(i)
        box = augment.crop_box(row, draws[i], *x.shape[1:])
        want = tv.resized_crop(x, *box, [48, 48], tv.InterpolationMode.BICUBIC, antialias=True)
        got = augment.resized_crop(x, box, row)
        assert torch.equal(got, want)
        y = got[None] / 255
        augment.hue(y, torch.full((1, 1, 1, 1), 0.17))
        torch.testing.assert_close(y[0], tv.adjust_hue(want / 255, 0.17), **CLOSE)
