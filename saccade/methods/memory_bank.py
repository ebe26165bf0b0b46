"""MemoryBank: every image is a class whose weight is the image's own last feature.

Instance discrimination, Wu et al. 2018, arXiv:1805.01978. With the unit feature v of image i and
the bank V of N rows, the softmax over all images is
    loss = mean_i -log( exp(v.V_i/t) / sum_j exp(v.V_j/t) )                        (negatives = 0)
or its noise-contrastive estimate, where m rows j are drawn for every image, its own among them,
    P(j) = exp(v.V_j/t) / Z,   h(j) = P(j) / (P(j) + m/N),
    loss = mean_i -( log h(i) + sum over the m draws of log(1 - h(j)) ): summed, not averaged.
Z is N times the mean of exp(v.V_j/t) over the first batch, then frozen: it stands in the
checkpoint. The paper adds `proximal` |v - V_i|^2 (30 there, absent from the released code).
Once the step is over, with the feature from before it, V_i <- unit(m V_i + (1 - m) v), m = .5, by
the features of all ranks. One view; rows follow the index in the dataset and start at random with
length about 1. Everything about the bank is float32.

Deviations: the released code adds 1e-7 to both denominators of h, which we write with logarithms.
Much that is called instance discrimination elsewhere is a softmax with a bank: see `moco_bank`.
The paper's CIFAR-10 figures are without flips. Memory: 4 N D bytes of bank, 512 MB at N = 2^20 and
D = 128, and 4 B m D bytes for the rows drawn by B images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..core import Backbone, Clock, Method, Step, View, Views
from ..nn.dist import mean
from ..nn.functional import similarity
from ..nn.parts import Bank, mlp
from ..nn.random import integers
from ..recipe import CIFAR_MEAN, CIFAR_STD, BackboneConfig, Normalize, Optim, Recipe, Schedule


class MemoryBank(Method[Backbone]):
    additive = True
    log_z: Tensor  # [] logarithm of Z; not finite until the first batch

    @dataclass(frozen=True, kw_only=True)
    class Config:
        images: int = 0  # pictures of the data: filled in by the run
        dim: int = 128
        negatives: int = 4096  # drawn for every image; 0: softmax over all images
        momentum: float = 0.5  # of a row
        temperature: float = 0.07
        proximal: float = 0.0  # weight of the distance to the row; the paper has 30
        views: tuple[View, ...] = (
            View(
                crop=(0.2, 1.0),
                jitter=1.0,
                strength=(0.4, 0.4, 0.4, 0.4),
                blur=0.0,
                order=("grayscale", "jitter", "flip", "blur", "solarize"),
            ),
        )

    def __init__(self, cfg: Config, encoder: Backbone) -> None:
        super().__init__()
        if (n := sum(v.count for v in cfg.views)) != 1:
            raise ValueError(f"setting method.views: MemoryBank sees 1 view of a picture, not {n}")
        self.cfg = cfg
        self.encoder = encoder
        self.projector = mlp(encoder.dim, cfg.dim)
        self.bank = Bank(cfg.images, cfg.dim)
        self.register_buffer("log_z", torch.tensor(-torch.inf))
        self.fresh: list[tuple[Tensor, Tensor]] = []  # index and v: they wait for the update

    def forward(self, batch: Views, clock: Clock) -> Step:
        h = self.encoder(batch.images[0])
        v = F.normalize(self.projector(h).float(), dim=-1)  # [B, D]
        own = self.bank.rows[batch.index]  # [B, D]
        if self.cfg.negatives:
            loss = self.estimate(v, own, batch.key)
        else:
            loss = F.cross_entropy(
                similarity(v, self.bank.rows) / self.cfg.temperature, batch.index
            )
        if self.cfg.proximal:
            loss = loss + self.cfg.proximal * (v - own).square().sum(1).mean()
        self.fresh.append((batch.index, v.detach()))
        return Step(loss, {"positive": (v.detach() * own).sum(1).mean()}, h.detach())

    def estimate(
        self, v: Float[Tensor, "b d"], own: Float[Tensor, "b d"], key: Int[Tensor, "b"]
    ) -> Float[Tensor, ""]:
        """Noise-contrastive estimate of the softmax over all images."""
        m, n = self.cfg.negatives, len(self.bank.rows)
        drawn = integers(key, m, n, "negatives")  # [B, m] with replacement
        rows = torch.cat([own[:, None], self.bank.rows[drawn]], 1)  # [B, 1 + m, D]
        with torch.autocast(v.device.type, enabled=False):
            logits = (rows @ v[..., None])[..., 0] / self.cfg.temperature  # [B, 1 + m]
        with torch.no_grad():
            guess = math.log(n) + mean(logits.exp().mean()).log()
            self.log_z.copy_(torch.where(self.log_z.isfinite(), self.log_z, guess))
        odds = logits - self.log_z - math.log(m / n)  # log of P(j) / (m/N)
        # softplus(-odds) = -log h, softplus(odds) = -log(1 - h)
        return (F.softplus(-odds[:, 0]) + F.softplus(odds[:, 1:]).sum(1)).mean()

    def after_update(self, clock: Clock) -> None:
        if self.fresh:
            index, v = (torch.cat(x) for x in zip(*self.fresh, strict=True))
            self.bank.update(index, v, self.cfg.momentum)
            self.fresh.clear()


RECIPES = {
    "demo": Recipe(
        method=MemoryBank.Config(
            negatives=0,
            temperature=0.1,
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
        method=MemoryBank.Config(
            negatives=0,
            temperature=0.1,
            views=(
                View(
                    size=32,
                    crop=(0.2, 1.0),
                    flip=0.0,
                    jitter=1.0,
                    strength=(0.4, 0.4, 0.4, 0.4),
                    blur=0.0,
                    order=("grayscale", "jitter", "flip", "blur", "solarize"),
                ),
            ),
        ),
        backbone=BackboneConfig(name="resnet18", image_size=32, stem="small"),
        optim=Optim(
            lr=0.03,
            lr_rule="none",
            weight_decay=5e-4,
            schedule=Schedule(shape="steps", drops=(0.4, 0.6, 0.8), per="epoch"),
        ),
        epochs=200,
        batch_size=128,
        normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD),
        source="arXiv:1805.01978 and official code, CIFAR-10: 80.8 % kNN",
    ),
    "paper": Recipe(
        method=MemoryBank.Config(),
        backbone=BackboneConfig(name="resnet50"),
        optim=Optim(
            lr=0.03,
            weight_decay=1e-4,
            schedule=Schedule(shape="steps", drops=(0.6, 0.8), per="epoch"),
        ),
        epochs=200,
        batch_size=256,
        sync_batch_norm=False,
        source="arXiv:1805.01978, official code: 46.5 % kNN on ImageNet",
    ),
}
