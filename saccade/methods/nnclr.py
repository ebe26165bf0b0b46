"""NNCLR: the positive of a view is the nearest neighbor of the other view among past images.

Dwibedi et al. 2021, arXiv:2104.14548. With unit projections z, z' of two views, unit predictions
p, p' made from them, a queue Q of past projections and n(z) the row of Q nearest to z,
    L(n, p) = mean_i -log( exp(n_i.p_i/t) / sum_k exp(n_i.p_k/t) ),
    loss = (L(n(z), p') + L(n(z'), p)) / 2.
Neighbors carry no gradient; k runs over the images of all ranks. Only the first view's projections
join the queue. Every view passes alone. The queue starts random, so first neighbors mean nothing.
The projector's last batch norm has no shift: the predictor's norm would undo it, so it gets no
gradient. `own` is the share of neighbors nearest to their own image's prediction.
From memory, without the paper at hand: it names a further term with the sum over neighbors instead
of predictions and found that it changes nothing; like its pseudo-code, we leave it out. Its views
are taken to be BYOL's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ..core import Backbone, Clock, Method, Step, View, Views
from ..nn.dist import gather, gather_frozen, rank
from ..nn.functional import similarity
from ..nn.parts import Queue, mlp
from ..recipe import CIFAR_MEAN, CIFAR_STD, BackboneConfig, Normalize, Optim, Recipe, Schedule

COLOR = (0.4, 0.4, 0.2, 0.1)


class NNCLR(Method[Backbone]):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 2048  # of the projector
        dim: int = 256
        predictor_hidden: int = 4096
        queue_size: int = 98304  # a multiple of the images of one step
        temperature: float = 0.1
        views: tuple[View, ...] = (
            View(interpolation="bicubic", strength=COLOR, blur=1.0),
            View(interpolation="bicubic", strength=COLOR, blur=0.1, solarize=0.2),
        )

    def __init__(self, cfg: Config, encoder: Backbone) -> None:
        super().__init__()
        if (n := sum(v.count for v in cfg.views)) != 2:
            raise ValueError(f"setting method.views: NNCLR compares 2 views, not {n}")
        self.cfg = cfg
        self.encoder = encoder
        self.projector = mlp(encoder.dim, cfg.hidden, cfg.hidden, cfg.dim, norm="all")
        self.predictor = mlp(cfg.dim, cfg.predictor_hidden, cfg.dim)
        self.queue = Queue(cfg.queue_size, cfg.dim)

    def forward(self, batch: Views, clock: Clock) -> Step:
        a, b = batch.images
        h = self.encoder(a)
        z_a, z_b = self.projector(h), self.projector(self.encoder(b))  # [B, D]
        p_a, p_b = unit(self.predictor(z_a)), unit(self.predictor(z_b))
        z_a, z_b = unit(z_a).detach(), unit(z_b).detach()
        n_a, n_b = self.nearest(z_a), self.nearest(z_b)
        one, hits = self.contrast(n_a, p_b)
        other, _ = self.contrast(n_b, p_a)
        self.queue.push(gather_frozen(z_a))

        logs = {"own": hits.float().mean(), "neighbor": (z_a * n_a).sum(-1).mean()}
        return Step((one + other) / 2, logs, h.detach())

    @torch.no_grad()
    def nearest(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """The row of the queue at the largest cosine."""
        return self.queue.rows[similarity(z, self.queue.rows).argmax(1)]

    def contrast(
        self, n: Float[Tensor, "b d"], p: Float[Tensor, "b d"]
    ) -> tuple[Float[Tensor, ""], Bool[Tensor, "b"]]:
        """The loss of one direction, and which neighbors find their own prediction."""
        logits = similarity(n, gather(p)) / self.cfg.temperature  # [B, N]
        own = rank() * len(n) + torch.arange(len(n), device=n.device)  # [B]
        return F.cross_entropy(logits, own), logits.detach().argmax(1) == own


def unit(x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    return F.normalize(x.float(), dim=-1)


RECIPES = {
    "demo": Recipe(
        method=NNCLR.Config(
            hidden=512,
            dim=128,
            predictor_hidden=512,
            queue_size=512,
            temperature=0.2,
            views=(
                View(
                    count=2,
                    size=64,
                    crop=(0.2, 1.0),
                    strength=(0.4, 0.4, 0.2, 0.02),
                    grayscale=0.0,
                    blur=0.0,
                ),
            ),
        ),
        backbone=BackboneConfig(name="resnet10_w32", image_size=64, stem="paper"),
        optim=Optim(
            lr=0.24, weight_decay=5e-4, decay_1d=False, schedule=Schedule(warmup_epochs=3.0)
        ),
        epochs=40,
        batch_size=128,
        source="ours: fruit differs by color, so hue is left alone and nothing is grayscaled",
    ),
    "small": Recipe(
        method=NNCLR.Config(
            queue_size=65536,
            temperature=0.2,
            views=(
                View(size=32, interpolation="bicubic", strength=COLOR, blur=0.0),
                View(size=32, interpolation="bicubic", strength=COLOR, blur=0.0, solarize=0.2),
            ),
        ),
        backbone=BackboneConfig(name="resnet18", image_size=32, stem="small"),
        optim=Optim(
            name="lars",
            lr=0.4,
            weight_decay=1e-5,
            decay_1d=False,
            trust=0.02,
            schedule=Schedule(warmup_epochs=10.0),
        ),
        epochs=1000,
        batch_size=256,
        normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD),
        source="solo-learn, CIFAR-10: 91.9 % linear; it also clips the LARS rate, we do not",
    ),
    "paper": Recipe(
        method=NNCLR.Config(),
        backbone=BackboneConfig(name="resnet50"),
        optim=Optim(
            name="lars",
            lr=0.3,
            weight_decay=1e-6,
            decay_1d=False,
            schedule=Schedule(warmup_epochs=10.0),
        ),
        epochs=1000,
        batch_size=4096,
        source="arXiv:2104.14548, optimizer and queue from memory: 75.4 % linear on ImageNet",
    ),
}
