"""ExemplarCNN: every image gives one patch, and every patch with its distortions is a class.

Dosovitskiy et al. 2014 and 2016, arXiv:1406.6909. With T a random transformation of the seed patch
x_i of image i, g the network and N classes of trained weights,
    loss = mean_i -log softmax_i( g(T x_i) ): no normalized features, no temperature.
The seed of an image is a square window, random in size, and in place with a probability that
follows its mean squared gradient, so that flat areas are avoided; it stays the same all run long.
T moves, scales and turns the window in the picture (so the view is the whole picture), scales the
patch's colors along their principal axes about their mean, raises saturation and value to a power,
scales and shifts them, and turns the hue. `samples` transformations of each seed are drawn once for
the run; 0 draws new ones every time. The window may leave a small picture: there it is mirrored.

Pictures must come as pixels in [0, 1]: the recipes do not normalize, where the paper subtracts a
mean. Any encoder stands for the paper's networks of three convolutions. The paper divides the rate
by 3 whenever validation stalls; here it falls along a cosine. Of one object in two images it makes
two classes: quality peaks near 8,000 images, and the weights are `hidden` x N. Beyond, use `pic` or
`memory_bank`. Merging like seeds by clustering, the blur of the matching variant and features
pooled from all layers (the last alone gives several points less) are left out. The figure quoted
below is version 2's, of its largest network; version 1 has others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import Backbone, Clock, Method, Step, View, Views
from ..nn.random import fold, integers, uniform
from ..recipe import BackboneConfig, Normalize, Optim, Recipe, Schedule

PIXELS = Normalize(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # as they are


def whole(size: int) -> View:
    """A picture as it is."""
    return View(
        size=size,
        crop=(1.0, 1.0),
        ratio=(1.0, 1.0),
        flip=0.0,
        jitter=0.0,
        grayscale=0.0,
        blur=0.0,
    )


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """The transformations; every parameter is uniform in its range."""

    translation: float = 0.2  # either way along both axes, share of the window's side
    scale: tuple[float, float] = (0.7, 1.4)
    rotation: float = 20.0  # degrees either way
    contrast: tuple[float, float] = (0.5, 2.0)  # of each principal axis of the colors
    power: tuple[float, float] = (0.25, 4.0)  # of saturation, and of value
    factor: tuple[float, float] = (0.7, 1.4)  # likewise
    offset: float = 0.1  # likewise, either way
    hue: float = 0.1  # share of the color circle, either way


class ExemplarCNN(Method[Backbone]):
    additive = True
    start: Tensor  # [] what seeds and transformations of this run are keyed by

    @dataclass(frozen=True, kw_only=True)
    class Config:
        images: int = 0  # pictures of the data: filled in by the run
        patch: int = 32  # pixels
        seeds: tuple[float, float] = (1 / 3, 2 / 3)  # side of a window, share of the picture's
        samples: int = 100  # transformations of a seed; 0: ever new ones
        hidden: int = 1024
        dropout: float = 0.5
        ranges: Ranges = Ranges()
        views: tuple[View, ...] = (whole(96),)

    def __init__(self, cfg: Config, encoder: Backbone) -> None:
        super().__init__()
        if (n := sum(v.count for v in cfg.views)) != 1:
            raise ValueError(f"setting method.views: ExemplarCNN sees 1 view, not {n}")
        if cfg.images < 1:
            raise ValueError(f"setting method.images: {cfg.images}; give the number of pictures")
        self.cfg = cfg
        self.encoder = encoder
        self.hidden = nn.Linear(encoder.dim, cfg.hidden)
        self.classes = nn.Linear(cfg.hidden, cfg.images)
        self.register_buffer("start", torch.randint(2**62, ()))

    def forward(self, batch: Views, clock: Clock) -> Step:
        h = self.encoder(self.patches(batch))
        y = F.relu(self.hidden(h))  # [B, F]
        if self.training:
            kept = uniform(batch.key, y.shape[1], "dropout") >= self.cfg.dropout
            y = y * kept / (1 - self.cfg.dropout)
        logits = self.classes(y)  # [B, N]
        hits = logits.detach().argmax(1) == batch.index
        loss = F.cross_entropy(logits.float(), batch.index)
        return Step(loss, {"accuracy": hits.float().mean()}, h.detach())

    @torch.no_grad()
    def patches(self, batch: Views) -> Float[Tensor, "b 3 P P"]:
        """A transformation of each image's seed patch."""
        x, cfg, ranges = batch.images[0].float(), self.cfg, self.cfg.ranges
        seed_key = fold(self.start.expand_as(batch.index), batch.index)
        key = batch.key
        if cfg.samples:
            key = fold(seed_key, integers(batch.key, 1, cfg.samples, "sample")[:, 0])
        u = uniform(key, 14, "transform")
        center, side = seed_windows(x, cfg.seeds, seed_key)
        center = center + side[:, None] * spread(u[:, :2], ranges.translation)
        angle = torch.deg2rad(spread(u[:, 2], ranges.rotation))
        patch = window(x, center, side * between(u[:, 3], ranges.scale), angle, cfg.patch)
        patch = color_contrast(patch, between(u[:, 4:7], ranges.contrast))
        h, s, v = hsv(patch.clamp(0, 1)).unbind(1)  # [B, P, P]
        power, factor = between(u[:, 7:9], ranges.power), between(u[:, 9:11], ranges.factor)
        offset = spread(u[:, 11:13], ranges.offset)
        s, v = (
            (t ** power[:, i, None, None] * factor[:, i, None, None] + offset[:, i, None, None])
            for i, t in enumerate((s, v))
        )
        h = (h + spread(u[:, 13], ranges.hue)[:, None, None]) % 1
        return rgb(torch.stack([h, s.clamp(0, 1), v.clamp(0, 1)], 1))


def between(u: Tensor, ends: tuple[float, float]) -> Tensor:
    return ends[0] + u * (ends[1] - ends[0])


def spread(u: Tensor, most: float) -> Tensor:
    return between(u, (-most, most))


def seed_windows(
    x: Float[Tensor, "b c S S"], share: tuple[float, float], key: Int[Tensor, "b"]
) -> tuple[Float[Tensor, "b 2"], Float[Tensor, "b"]]:
    """Center (x, y) and side, in pixels, of a window of whole pixels chosen by its energy."""
    size = x.shape[-1]
    u = uniform(key, 2, "seed")
    side = (size * between(u[:, 0], share)).round().long().clamp(2, size)  # [B]
    gray = x.mean(1)
    energy = F.pad(gray.diff(dim=2).square(), (0, 1)) + F.pad(
        gray.diff(dim=1).square(), (0, 0, 0, 1)
    )
    total = F.pad(energy.double(), (1, 0, 1, 0)).cumsum(1).cumsum(2)  # [B, S + 1, S + 1]
    at = torch.arange(size + 1, device=x.device)
    end = (at + side[:, None]).clamp_max(size)  # [B, S + 1]
    tall = total.gather(1, end[:, :, None].expand_as(total)) - total  # from a row to its end
    sums = tall.gather(2, end[:, None].expand_as(total)) - tall  # [B, S + 1, S + 1] of windows
    fits = at + side[:, None] <= size
    weight = (sums.clamp_min(0) + 1e-12) * (fits[:, :, None] & fits[:, None])
    ladder = weight.flatten(1).cumsum(1)
    chosen = torch.searchsorted(ladder, u[:, 1:].double() * ladder[:, -1:], right=True)[:, 0]
    corner = torch.stack([chosen % (size + 1), chosen // (size + 1)], 1)  # x, y
    return corner + side[:, None] / 2, side.float()


def window(
    x: Float[Tensor, "b c S S"],
    center: Float[Tensor, "b 2"],
    side: Float[Tensor, "b"],
    angle: Float[Tensor, "b"],
    pixels: int,
) -> Float[Tensor, "b c P P"]:
    """A turned square window, resampled; outside the picture stands its mirror image."""
    line = (torch.arange(pixels, device=x.device) + 0.5 - pixels / 2) / pixels
    across, down = line[None, None] * side[:, None, None], line[None, :, None] * side[:, None, None]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    places = torch.stack([cos * across - sin * down, sin * across + cos * down], -1)
    grid = 2 * (places + center[:, None, None]) / x.shape[-1] - 1  # [B, P, P, 2]
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def color_contrast(
    x: Float[Tensor, "b 3 h w"], factor: Float[Tensor, "b 3"]
) -> Float[Tensor, "b 3 h w"]:
    """Distances from the mean color scaled along the principal axes of a picture's colors."""
    mean = x.mean((2, 3), keepdim=True)
    centered = (x - mean).flatten(2)  # [B, 3, HW]
    _, axes = torch.linalg.eigh(centered @ centered.mT)  # [B, 3, 3] smallest first, in columns
    scaled = axes @ (factor[..., None] * (axes.mT @ centered))
    return mean + scaled.unflatten(2, x.shape[2:])


def hsv(x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Hue, saturation and value, each in [0, 1], of red, green and blue."""
    value, chroma = x.amax(1), x.amax(1) - x.amin(1)
    r, g, b = x.unbind(1)
    width = chroma.clamp_min(1e-12)
    turn = torch.where(value == r, (g - b) / width, (b - r) / width + 2)
    turn = torch.where((value == b) & (value != r) & (value != g), (r - g) / width + 4, turn)
    return torch.stack([(turn / 6) % 1, chroma / value.clamp_min(1e-12), value], 1)


def rgb(x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Red, green and blue of hue, saturation and value."""
    h, s, v = x.unbind(1)
    turns = [(n + 6 * h) % 6 for n in (5, 3, 1)]
    return torch.stack([v - v * s * torch.minimum(k, 4 - k).clamp(0, 1) for k in turns], 1)


RECIPES = {
    "demo": Recipe(
        method=ExemplarCNN.Config(seeds=(0.4, 0.8), hidden=512, views=(whole(64),)),
        backbone=BackboneConfig(name="resnet10_w32", image_size=64, stem="paper"),
        optim=Optim(
            lr=0.05, lr_rule="none", weight_decay=5e-4, schedule=Schedule(warmup_epochs=3.0)
        ),
        epochs=60,
        batch_size=128,
        normalize=PIXELS,
        source="ours: the paper's transformations on whole fruit",
    ),
    "small": Recipe(
        method=ExemplarCNN.Config(seeds=(0.6, 0.9), views=(whole(32),)),
        backbone=BackboneConfig(name="resnet18", image_size=32, stem="small"),
        optim=Optim(
            lr=0.03, lr_rule="none", weight_decay=5e-4, schedule=Schedule(warmup_epochs=5.0)
        ),
        epochs=200,
        batch_size=128,
        normalize=PIXELS,
        source="parametric softmax of arXiv:1805.01978, CIFAR-10: 63.0 % kNN; the views are ours",
    ),
    "paper": Recipe(
        method=ExemplarCNN.Config(),
        backbone=BackboneConfig(name="resnet18", image_size=96, stem="small"),
        optim=Optim(lr=0.01, lr_rule="none", weight_decay=0.004),
        epochs=100,
        batch_size=128,
        normalize=PIXELS,
        source="arXiv:1406.6909, STL-10: 74.2 % by an SVM; backbone, epochs and schedule are ours",
    ),
}
