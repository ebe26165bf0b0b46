"""Views against torchvision: operation by operation, and the distributions of what is drawn."""

import math
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import transforms
from torchvision.transforms.v2 import functional as tv

from saccade.core import View
from saccade.data import augment, drawn, kernels, opcodes, open_source
from saccade.data.cpu import Maker
from saccade.data.plain import pictures
from saccade.nn.random import fold, keys
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


def test_blur_reaches_three_sigma_of_each_picture():
    torch.manual_seed(0)
    x = eight_bit(8)
    got = colored(x, view(blur=1.0, sigma=(0.1, 2.0)))
    u = augment.uniform(keys(0, 0, torch.arange(8)), 2, "blur")
    for i in range(8):
        sigma = 0.1 + 1.9 * float(u[i, 1])
        want = tv.gaussian_blur(x[i] / 255, [2 * math.ceil(3 * sigma) + 1] * 2, [sigma] * 2)
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
    for at in ((0, 0, 50, 61), (7, 9, 33, 21), (3, 1, 20, 20), (49, 60, 1, 1)):
        for x in (hwc.permute(2, 0, 1), hwc.permute(2, 0, 1).contiguous()):
            want = tv.resized_crop(x, *at, [size] * 2, tv.InterpolationMode(mode), antialias=True)
            got = augment.resized_crop(x, at, view(size=size, interpolation=mode))
            assert torch.equal(got, want)


def maker(*views):
    return Maker(views, RAW)


def box(row, k, height, width):
    """Top, left, height and width of picture k's crop."""
    own = maker(row)
    draws = own.draw(keys(0, 0, torch.tensor([k])))
    own.boxes(draws, 0, height, width)
    return tuple(draws.boxes[0, 0].tolist())


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
    n = 3000
    torch.manual_seed(0)
    picture = torch.empty(3, height, width)
    get = transforms.RandomResizedCrop.get_params
    want = torch.tensor([get(picture, list(scale), [3 / 4, 4 / 3]) for _ in range(n)])
    got = torch.tensor([box(View(crop=scale), k, height, width) for k in range(n)])
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
    assert {box(View(crop=(0.99, 1.0)), k, height, width) for k in range(3)} == {want}


def test_flips_happen_half_the_time_and_mirror():
    chosen = maker(View(flip=0.5)).draw(keys(0, 0, torch.arange(4000))).flips
    assert 0.47 < chosen.mean() < 0.53


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
    for i in range(16):
        x = source.read(i)
        at = box(row, i, *x.shape[1:])
        want = tv.resized_crop(x, *at, [48, 48], tv.InterpolationMode.BICUBIC, antialias=True)
        got = augment.resized_crop(x, at, row)
        assert torch.equal(got, want)
        y = got[None] / 255
        augment.hue(y, torch.full((1, 1, 1, 1), 0.17))
        torch.testing.assert_close(y[0], tv.adjust_hue(want / 255, 0.17), **CLOSE)


def near(got, want):
    """Within 1/255 in the mean and 3/255 at the 99.9th percentile; both count 8-bit steps."""
    gap = np.abs(np.asarray(got, np.float64) - np.asarray(want, np.float64)).ravel()
    assert gap.mean() < 1
    assert np.quantile(gap, 0.999) <= 3


def cut(x, at, size, mode, *, mirrored=False):
    """The compiled crop of a box."""
    pixels, out = x.permute(1, 2, 0).contiguous().numpy(), np.empty((3, size, size), np.uint8)
    flags = int(mode == "bicubic"), int(mirrored)
    kernels.crop(pixels, *pixels.shape[:2], 1, np.array(at), *flags, out, size)
    return out


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [24, 96, 224])
def test_fused_crops_of_photographs_are_torchvisions(photographs, mode, size):
    source = open_source(str(photographs))
    row = View(size=size, crop=(0.05, 1.0), interpolation=mode)
    for i in range(0, 16, 5):
        x = source.read(i)
        at = box(row, i, *x.shape[1:])
        want = tv.resized_crop(x, *at, [size] * 2, tv.InterpolationMode(mode), antialias=True)
        got = cut(x, at, size, mode)
        near(got, want)
        mirrored = cut(x, at, size, mode, mirrored=True)
        assert np.abs(mirrored.astype(int) - got[:, :, ::-1]).max() <= 1


# top, left, height, width: one pixel, fewer bytes than a vector, thin strips, all, and much smaller
ODD = [(3, 5, 1, 1), (0, 0, 5, 5), (7, 20, 40, 3), (11, 0, 2, 61), (0, 0, 53, 61), (1, 2, 50, 17)]


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [1, 7, 32])
@pytest.mark.parametrize("at", ODD)
def test_fused_crops_of_noise_are_exact_to_a_rounding(mode, size, at):
    """Noise of black and white is the worst for 16-bit weights; here against 64-bit numbers."""
    torch.manual_seed(0)
    x = torch.randint(0, 2, (3, 53, 61), dtype=torch.uint8) * 255
    part = x[:, at[0] : at[0] + at[2], at[1] : at[1] + at[3]].double()
    want = torch.nn.functional.interpolate(part[None], (size, size), mode=mode, antialias=True)[0]
    want = want.clamp(0, 255)
    got = cut(x, at, size, mode)
    assert np.abs(got - want.numpy()).max() < 0.6


@pytest.mark.parametrize("gray", [0, 1, 127, 254, 255])
def test_fused_crops_keep_a_plain_picture_as_it_is(gray):
    x = torch.full((3, 90, 70), gray, dtype=torch.uint8)
    for size in (5, 48, 224):
        assert (cut(x, (3, 4, 80, 61), size, "bicubic") == gray).all()


def fuse(pixels, *steps):
    """The picture in [0, 1] after (operation, value) pairs."""
    height, width = pixels.shape[1:]
    out = np.empty((3, height, width), np.float32)
    lines = np.empty(height * -(-width // opcodes.SPAN) * opcodes.SPAN, np.float32)
    codes = np.array([code for code, _ in steps], np.int64)
    values = np.array([value for _, value in steps], np.float32)
    normal = np.array([[0, 0, 0], [1, 1, 1]], np.float32)
    program = codes, values, len(codes)
    kernels.color(pixels.contiguous().numpy(), height, width, *program, normal, lines, out)
    return out


FUSED = {
    "brightness": (opcodes.BRIGHTNESS, 1.3, lambda x: tv.adjust_brightness(x, 1.3)),
    "contrast": (opcodes.CONTRAST, 0.4, lambda x: tv.adjust_contrast(x, 0.4)),
    "saturation": (opcodes.SATURATION, 1.8, lambda x: tv.adjust_saturation(x, 1.8)),
    "hue": (opcodes.HUE, -0.17, lambda x: tv.adjust_hue(x, -0.17)),
    "grayscale": (opcodes.GRAYSCALE, 0, lambda x: tv.rgb_to_grayscale(x, 3)),
    "solarize": (opcodes.SOLARIZE, 0, lambda x: tv.solarize(x, 0.5)),
    "blur": (opcodes.BLUR, 1.7, lambda x: tv.gaussian_blur(x, [23, 23], [1.7, 1.7])),
}


@pytest.mark.parametrize("name", FUSED)
def test_fused_operations_on_photographs_are_torchvisions(photographs, name):
    source = open_source(str(photographs))
    code, value, reference = FUSED[name]
    for i in (0, 9):
        x = source.read(i)[:, :131, :97]
        near(255 * fuse(x, (code, value)), 255 * reference(x / 255))


def test_fused_chains_are_torchvisions_in_their_order():
    """Contrast takes the mean of what stands before it, and blur may come anywhere."""
    torch.manual_seed(0)
    x = eight_bit(1, 40)[0]
    chain = ["hue", "contrast", "blur", "saturation", "contrast", "solarize"]
    want = x / 255
    for name in chain:
        kernel = [2 * math.ceil(3 * 1.7) + 1] * 2
        blur = name == "blur"
        want = tv.gaussian_blur(want, kernel, [1.7] * 2) if blur else FUSED[name][2](want)
    got = fuse(x, *(FUSED[name][:2] for name in chain))
    torch.testing.assert_close(torch.from_numpy(got), want, atol=3e-5, rtol=0)


@pytest.mark.parametrize("size", [5, 32, 57])
def test_fused_views_are_those_of_the_batched_path(size):
    """The same draws through compiled functions and through torch's batched operations."""
    torch.manual_seed(0)
    x = eight_bit(24, size)
    row = View(size=size, solarize=0.3, blur=0.6, grayscale=0.3, strength=(0.8, 0.8, 0.8, 0.2))
    key = keys(3, 1, torch.arange(24))
    own = maker(row)
    draws = own.draw(key)
    want = augment.color(x, row, fold(key, 0), RAW)
    for i in range(24):
        steps = zip(draws.operations[i, 0], draws.values[i, 0], strict=True)
        gap = np.abs(fuse(x[i], *steps) - want[i].numpy())
        assert gap.max() < 2 / 255


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("brightness", lambda t: t.get_params(t.brightness, None, None, None)[1]),
        ("saturation", lambda t: t.get_params(None, None, t.saturation, None)[3]),
        ("hue", lambda t: t.get_params(None, None, None, t.hue)[4]),
    ],
)
def test_factors_are_distributed_as_torchvisions(name, read):
    n, op = 10_000, ["brightness", "contrast", "saturation", "hue"].index(name)
    torch.manual_seed(0)
    jitter = transforms.ColorJitter(0.4, 0.4, 1.2, 0.1)
    want = torch.tensor([read(jitter) for _ in range(n)])
    row = View(jitter=1.0, strength=(0.4, 0.4, 1.2, 0.1), order=("jitter",), flip=0.0)
    draws = maker(row).draw(keys(0, 0, torch.arange(n)))
    place = draws.operations[:, 0] == opcodes.BRIGHTNESS + op
    got = torch.from_numpy(draws.values[:, 0][place])
    assert len(got) == n
    assert distance(want, got) < 1.95 * math.sqrt(2 / n)  # p = .001


def test_sigmas_are_distributed_as_torchvisions():
    n = 10_000
    torch.manual_seed(0)
    want = torch.tensor([transforms.GaussianBlur.get_params(0.1, 2.0) for _ in range(n)])
    row = view(blur=1.0)
    got = torch.from_numpy(maker(row).draw(keys(0, 0, torch.arange(n))).values[:, 0, 0])
    assert distance(want, got) < 1.95 * math.sqrt(2 / n)  # p = .001


def test_compiled_draws_are_those_of_random():
    key = keys(5, 2, torch.arange(6))
    bits = key.numpy().view(np.uint64)
    for name, number in (("crop", drawn.CROPS), ("blur", drawn.BLURS)):
        want = augment.uniform(fold(key, 3), 7, name)
        own = [np.uint64(drawn.fold(k, 3)) for k in bits]
        got = [[drawn.uniform(k, number, at) for at in range(7)] for k in own]
        assert np.array_equal(want.numpy(), np.array(got, np.float32))
