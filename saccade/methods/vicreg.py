"""VICReg: pull two views together, keep every channel spread, and channels uncorrelated.

Bardes et al. 2022, arXiv:2105.04906. With embeddings z, z' of N images and two views, D channels,
    loss = 25 s(z, z') + 25 (v(z) + v(z')) / 2 + (c(z) + c(z')),
    s = mean over images and channels of (z - z')^2,
    v = mean over channels of max(0, 1 - sqrt(var + 1e-4)),
    c = 1/D sum_{i != j} Cov_ij^2,   var and Cov over N - 1.
N counts the images of all ranks. This is the official code; the paper's text neither divides s by D
nor the sum of v by 2, with the same weights. Every view passes alone. Official biases before a
batch norm have no effect and are left out. Logs are the three terms before their weights: a
`variance` near 1 is collapse.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..core import Backbone, Clock, Method, Step, View, Views
from ..nn.dist import gather
from ..nn.functional import similarity
from ..nn.parts import biasless_mlp
from ..recipe import CIFAR_MEAN, CIFAR_STD, BackboneConfig, Normalize, Optim, Recipe, Schedule

COLOR = (0.4, 0.4, 0.2, 0.1)
EPSILON = 1e-4  # added to the variance: its root has a gradient at 0


class VICReg(Method[Backbone]):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 8192
        dim: int = 8192
        invariance: float = 25.0
        variance: float = 25.0
        covariance: float = 1.0
        views: tuple[View, ...] = (
            View(interpolation="bicubic", strength=COLOR, blur=1.0),
            View(interpolation="bicubic", strength=COLOR, blur=0.1, solarize=0.2),
        )

    def __init__(self, cfg: Config, encoder: Backbone) -> None:
        super().__init__()
        if (n := sum(v.count for v in cfg.views)) != 2:
            raise ValueError(f"setting method.views: VICReg compares 2 views, not {n}")
        self.cfg = cfg
        self.encoder = encoder
        self.projector = biasless_mlp(encoder.dim, cfg.hidden, cfg.hidden, cfg.dim, last_norm=False)

    def forward(self, batch: Views, clock: Clock) -> Step:
        cfg = self.cfg
        a, b = batch.images
        h = self.encoder(a)
        z_a = self.projector(h).float()  # [B, D]
        z_b = self.projector(self.encoder(b)).float()
        s = F.mse_loss(z_a, z_b)
        z_a, z_b = gather(z_a), gather(z_b)  # [N, D]
        v = (variance(z_a) + variance(z_b)) / 2
        c = covariance(z_a) + covariance(z_b)
        loss = cfg.invariance * s + cfg.variance * v + cfg.covariance * c
        terms = {"invariance": s, "variance": v, "covariance": c}
        return Step(loss, {k: t.detach() for k, t in terms.items()}, h.detach())


def variance(z: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """How far channels fall short of a standard deviation of 1, on average."""
    return F.relu(1 - (z.var(0) + EPSILON).sqrt()).mean()


def covariance(z: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Sum of squared covariances between different channels, over the number of channels."""
    z = z - z.mean(0)
    cov = similarity(z.mT, z.mT) / (len(z) - 1)  # [D, D]
    return (cov.square().sum() - cov.diagonal().square().sum()) / len(cov)


RECIPES = {
    "demo": Recipe(
        method=VICReg.Config(
            hidden=512,
            dim=512,
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
            name="adamw",
            lr=4e-3,
            weight_decay=0.01,
            decay_1d=False,
            schedule=Schedule(warmup_epochs=3.0),
        ),
        epochs=40,
        batch_size=128,
        source="ours: fruit differs by color, so hue is left alone and nothing is grayscaled",
    ),
    "small": Recipe(
        method=VICReg.Config(
            hidden=2048,
            dim=2048,
            variance=50.0,
            views=(
                View(
                    count=2,
                    size=32,
                    crop=(0.2, 1.0),
                    interpolation="bicubic",
                    strength=COLOR,
                    blur=0.0,
                    solarize=0.1,
                ),
            ),
        ),
        backbone=BackboneConfig(name="resnet18", image_size=32, stem="small"),
        optim=Optim(
            name="lars",
            lr=0.3,
            weight_decay=1e-4,
            decay_1d=False,
            trust=0.02,
            schedule=Schedule(warmup_epochs=10.0),
        ),
        epochs=1000,
        batch_size=256,
        normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD),
        source="solo-learn, CIFAR-10: 92.1 % linear; its v is a sum, hence 50; it also clips the "
        "LARS rate, we do not",
    ),
    "paper": Recipe(
        method=VICReg.Config(),
        backbone=BackboneConfig(name="resnet50"),
        optim=Optim(
            name="lars",
            lr=0.2,
            weight_decay=1e-6,
            decay_1d=False,
            schedule=Schedule(warmup_epochs=10.0, final_lr=0.0016),
        ),
        epochs=1000,
        batch_size=2048,
        source="arXiv:2105.04906 and official code: 73.2 % linear on ImageNet",
    ),
}
