"""PIC: every image is a class with a trained weight; one view, one branch, a cosine classifier.

Cao et al. 2020, arXiv:2006.14618. With z the projection of the view of image i, w_j the weight of
image j and S the K images met most recently, this batch among them,
    loss = mean_i -log( exp(cos(z_i, w_i)/t) / sum_{j in S} exp(cos(z_i, w_j)/t) ).

Sliding window: the images stand in one random order; a pass goes once, shuffled, through `window`
of them, and the next starts `stride` further on. So an image comes again soon, window / stride
times, then not until the window has gone round. An epoch is as many pictures as the data has; data
that fit in one window have plain epochs. (The released sampler never leaves its first window and
cannot resume its order; ours is a function of seed and epoch.)

Lazy weights: SGD with momentum m and decay d moves a weight also when its gradient is 0,
    (w, u) <- A (w, u),  A = [[1 - lr d, -lr m], [d, m]],
so an image that comes back to S gets the product of the A it missed, and a step touches K rows, not
N. (Sampling and correction are in the paper, not in the released code.) Therefore the weights are
buffers with an SGD of their own: `class_lr` climbs over a fortieth of the run, then falls along
half a cosine, without a rule for the batch size, whatever optimizer moves the rest. Weights start
short, so a rate far above the paper's throws them about. Memory: 8 N D bytes, 1 GB at N = 2^20 and
D = 128. Cosines are float32. The authors' 68.6 % and 70.3 % are with small crops added.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float64, Int
from torch import Tensor

from ..core import Backbone, Clock, Method, Step, View, Views
from ..nn.dist import gather_frozen, mean
from ..nn.functional import similarity
from ..nn.parts import last_place, mlp
from ..nn.random import permutation
from ..recipe import CIFAR_MEAN, CIFAR_STD, BackboneConfig, Normalize, Optim, Recipe, Schedule


class PIC(Method[Backbone]):
    weights: Tensor  # [N, D]
    velocity: Tensor  # [N, D] u
    moved: Tensor  # [N] last step that moved a row
    recent: Tensor  # [K] images, newest visit of each where `place` agrees
    place: Tensor  # [N] where an image stands in `recent`
    head: Tensor  # [] where the next visit goes

    @dataclass(frozen=True, kw_only=True)
    class Config:
        images: int = 0  # pictures of the data: filled in by the run
        hidden: int = 2048
        dim: int = 128
        temperature: float = 0.2
        negatives: int = 65536  # K; the whole data where it has no more
        window: int = 131072  # pictures of a pass; plain epochs where the data has no more
        stride: int = 16384
        class_lr: float = 0.03  # at the peak; 0 at the end
        class_momentum: float = 0.9
        class_decay: float = 1e-4
        views: tuple[View, ...] = (View(strength=(0.8, 0.8, 0.8, 0.2)),)

    own_gradients = True  # of the sampled rows of a classifier of all images

    def __init__(self, cfg: Config, encoder: Backbone) -> None:
        super().__init__()
        check(cfg)
        self.cfg = cfg
        self.encoder = encoder
        self.projector = mlp(encoder.dim, cfg.hidden, cfg.dim, norm="none")
        n, k = cfg.images, min(cfg.images, cfg.negatives)
        self.register_buffer("weights", torch.randn(n, cfg.dim) * 0.01)
        self.register_buffer("velocity", torch.zeros(n, cfg.dim))
        self.register_buffer("moved", torch.full((n,), -1))
        self.register_buffer("recent", torch.arange(k))
        self.register_buffer("place", torch.arange(n) if k == n else torch.full((n,), -1))
        self.register_buffer("head", torch.zeros((), dtype=torch.long))
        self.sampled: Tensor | None = None  # [K, D] weights of this step, until the update

    def forward(self, batch: Views, clock: Clock) -> Step:
        h = self.encoder(batch.images[0])
        z = F.normalize(self.projector(h).float(), dim=-1)  # [B, D]
        if len(self.recent) < len(self.weights):
            own = gather_frozen(batch.index)
            self.visit(own)
            self.catch_up(own, clock)
        self.sampled = self.weights[self.recent].requires_grad_()
        logits = similarity(z, F.normalize(self.sampled, dim=-1)) / self.cfg.temperature  # [B, K]
        logits = logits.masked_fill(~self.standing(), -torch.inf)
        target = self.place[batch.index]
        hits = logits.detach().argmax(1) == target
        return Step(F.cross_entropy(logits, target), {"accuracy": hits.float().mean()}, h.detach())

    def standing(self) -> Tensor:
        """[K] which entries of `recent` are the newest of their image."""
        return self.place[self.recent] == torch.arange(len(self.recent), device=self.recent.device)

    @torch.no_grad()
    def visit(self, own: Int[Tensor, "n"]) -> None:
        """These images are the most recent now."""
        k = len(self.recent)
        if len(own) > k:
            raise ValueError(
                f"setting method.negatives: {k} is less than the batch of {len(own)}; raise it"
            )
        at = (self.head + torch.arange(len(own), device=own.device)) % k
        self.recent.index_copy_(0, at, own)
        self.place.index_copy_(0, own, at[last_place(own)])
        self.head.copy_((self.head + len(own)) % k)

    @torch.compiler.disable()  # a loop as long as the data say
    @torch.no_grad()
    def catch_up(self, own: Int[Tensor, "n"], clock: Clock) -> None:
        """Apply the steps without gradient that these weights have missed."""
        missed = (clock.step - 1 - self.moved[own]).clamp_min(0)  # [n]
        steps = torch.arange(clock.step - int(missed.max()), clock.step, device=own.device)
        a, b, c, d = (
            drift(self.rate(steps, clock), self.cfg)[missed].float().flatten(1).T[..., None]
        )
        w, u = self.weights[own], self.velocity[own]
        self.weights.index_copy_(0, own, a * w + b * u)
        self.velocity.index_copy_(0, own, c * w + d * u)

    def rate(self, steps: Int[Tensor, "t"], clock: Clock) -> Float64[Tensor, "t"]:
        done = steps.double() / clock.total  # [t] share of the run
        return self.cfg.class_lr * (40 * done).clamp(0.01, 1) * (1 + torch.cos(torch.pi * done)) / 2

    @torch.no_grad()
    def after_update(self, clock: Clock) -> None:
        """SGD on the sampled weights, with the gradient of all ranks."""
        if self.sampled is None or self.sampled.grad is None:
            return
        standing = self.standing()
        rows, w = self.recent[standing], self.sampled[standing]
        gradient = mean(self.sampled.grad)[standing] + self.cfg.class_decay * w
        u = self.velocity[rows].mul_(self.cfg.class_momentum).add_(gradient)
        rate = self.rate(torch.tensor([clock.step], device=w.device), clock).to(w.dtype)
        self.weights.index_copy_(0, rows, w - rate * u)
        self.velocity.index_copy_(0, rows, u)
        self.moved.index_fill_(0, rows, clock.step)
        self.sampled = None

    def order(self, images: int, seed: int, epoch: int) -> Int[Tensor, "n"]:
        if self.cfg.window >= images:
            return permutation(images, seed, epoch)
        return slide(images, self.cfg.window, self.cfg.stride, seed, epoch)


def check(cfg: PIC.Config) -> None:
    if (n := sum(v.count for v in cfg.views)) != 1:
        raise ValueError(f"setting method.views: PIC sees 1 view of a picture, not {n}")
    if cfg.images < 1:
        raise ValueError(f"setting method.images: {cfg.images}; give the number of pictures")
    if not 1 <= cfg.stride <= cfg.window:
        raise ValueError(
            f"setting method.stride: {cfg.stride} with a window of {cfg.window}; "
            f"choose 1 to {cfg.window}"
        )


def drift(rates: Float64[Tensor, "t"], cfg: PIC.Config) -> Float64[Tensor, "t+1 2 2"]:
    """What the last 0, 1, ..., t steps do to (w, u) when there is no gradient."""
    m, decay, one = cfg.class_momentum, cfg.class_decay, torch.ones_like(rates)
    steps = torch.stack([1 - rates * decay, -rates * m, decay * one, m * one], 1)
    newest_first = steps.unflatten(1, (2, 2)).flip(0)
    products = torch.cat([torch.eye(2).to(newest_first)[None], newest_first])
    width = 1
    while width < len(products):  # products of 2 * width neighbors out of those of width
        products = torch.cat([products[:width], products[:-width] @ products[width:]])
        width *= 2
    return products


def slide(images: int, window: int, stride: int, seed: int, epoch: int) -> Int[Tensor, "n"]:
    """An epoch's share of the endless passes; pass p starts p * stride into the fixed order."""
    fixed = permutation(images, seed, -1)
    first, done = divmod(epoch * images, window)
    passes = range(first, first + -(-(done + images) // window))
    return torch.cat(
        [
            fixed[(p * stride + permutation(window, seed, p)) % images] + (p - first) * images
            for p in passes
        ]
    )[done : done + images]


RECIPES = {
    "demo": Recipe(
        method=PIC.Config(
            hidden=512,
            class_decay=5e-4,
            views=(
                View(
                    size=64,
                    crop=(0.2, 1.0),
                    strength=(0.4, 0.4, 0.2, 0.02),
                    grayscale=0.0,
                    blur=0.0,
                ),
            ),
        ),
        backbone=BackboneConfig(name="resnet10_w32", image_size=64, stem="paper"),
        optim=Optim(lr=0.12, weight_decay=5e-4, schedule=Schedule(warmup_epochs=3.0)),
        epochs=60,
        batch_size=128,
        source="ours: fruit differs by color, so hue is left alone and nothing is grayscaled",
    ),
    "small": Recipe(
        method=PIC.Config(
            class_decay=5e-4,
            views=(View(size=32, strength=(0.4, 0.4, 0.4, 0.1), blur=0.0),),
        ),
        backbone=BackboneConfig(name="resnet18", image_size=32, stem="small"),
        optim=Optim(
            lr=0.06, lr_rule="none", weight_decay=5e-4, schedule=Schedule(warmup_epochs=5.0)
        ),
        epochs=400,
        batch_size=256,
        normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD),
        source="ours: nothing is published on small pictures; SimCLR's views for CIFAR-10",
    ),
    "paper": Recipe(
        method=PIC.Config(),
        backbone=BackboneConfig(name="resnet50"),
        optim=Optim(
            lr=0.03, weight_decay=1e-4, schedule=Schedule(warmup_epochs=5.0, final_lr=1e-6)
        ),
        epochs=200,
        batch_size=256,
        sync_batch_norm=False,
        source="arXiv:2006.14618 and official code; 1600 epochs: 70.8 % linear on ImageNet",
    ),
}
