"""BarlowTwins: make the cross-correlation between two views the identity matrix.

Zbontar et al. 2021, arXiv:2103.03230. With embeddings z, z' of N images and two views, each channel
at mean 0 and variance 1 over the batch,
    C_ij = 1/N sum_n z_ni z'_nj,   loss = sum_i (1 - C_ii)^2 + l sum_{i != j} C_ij^2.
N counts the images of all ranks, so batch statistics must span them: all recipes synchronize. Every
view passes alone. Linear layers have no bias, and the projector's last batch norm, without weights,
is the one of the loss. Biases and norm weights learn at a rate of their own, not adapted by LARS.
`correlation` is the mean of C_ii and nears 1, `redundancy` the root mean square of the others.
One deviation: the sum over ranks carries the exact gradient; the official code's, averaged by DDP,
is smaller by the number of ranks, which LARS undoes for weights and not for biases.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..core import Backbone, Clock, Group, Method, Step, View, Views
from ..nn.dist import summed, world
from ..nn.functional import similarity
from ..nn.parts import biasless_mlp
from ..recipe import CIFAR_MEAN, CIFAR_STD, BackboneConfig, Normalize, Optim, Recipe, Schedule

COLOR = (0.4, 0.4, 0.2, 0.1)


class BarlowTwins(Method[Backbone]):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 8192
        dim: int = 8192
        redundancy: float = 0.0051  # weight of the terms off the diagonal, l
        bias_lr: float = 0.024  # rate of biases and norm weights, as a share: .0048 of .2
        views: tuple[View, ...] = (
            View(interpolation="bicubic", strength=COLOR, blur=1.0),
            View(interpolation="bicubic", strength=COLOR, blur=0.1, solarize=0.2),
        )

    def __init__(self, cfg: Config, encoder: Backbone) -> None:
        super().__init__()
        if (n := sum(v.count for v in cfg.views)) != 2:
            raise ValueError(f"setting method.views: BarlowTwins compares 2 views, not {n}")
        self.cfg = cfg
        self.encoder = encoder
        self.projector = biasless_mlp(encoder.dim, cfg.hidden, cfg.hidden, cfg.dim, last_norm=True)

    def forward(self, batch: Views, clock: Clock) -> Step:
        a, b = batch.images
        h = self.encoder(a)
        z_a, z_b = self.projector(h), self.projector(self.encoder(b))  # [B, D]
        c = summed(similarity(z_a.mT, z_b.mT)) / (world() * len(z_a))  # [D, D]
        diagonal = c.diagonal()
        off = c.square().sum() - diagonal.square().sum()
        loss = (1 - diagonal).square().sum() + self.cfg.redundancy * off

        others = max(c.numel() - len(c), 1)
        logs = {
            "correlation": diagonal.detach().mean(),
            "redundancy": (off.detach().clamp_min(0) / others).sqrt(),
        }
        return Step(loss, logs, h.detach())

    def groups(self) -> Iterable[Group]:
        ours = [(n, p) for n, p in self.named_parameters() if p.requires_grad]
        yield Group([(n, p) for n, p in ours if p.ndim > 1])
        yield Group([(n, p) for n, p in ours if p.ndim <= 1], lr_scale=self.cfg.bias_lr)


RECIPES = {
    "demo": Recipe(
        method=BarlowTwins.Config(
            hidden=512,
            dim=512,
            bias_lr=1.0,
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
        method=BarlowTwins.Config(
            hidden=2048,
            dim=2048,
            bias_lr=0.1,
            views=(
                View(size=32, interpolation="bicubic", strength=COLOR, blur=0.0),
                View(size=32, interpolation="bicubic", strength=COLOR, blur=0.0, solarize=0.2),
            ),
        ),
        backbone=BackboneConfig(name="resnet18", image_size=32, stem="small"),
        optim=Optim(
            name="lars",
            lr=0.3,
            weight_decay=1e-3,
            decay_1d=False,
            trust=0.02,
            schedule=Schedule(warmup_epochs=10.0),
        ),
        epochs=1000,
        batch_size=256,
        normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD),
        source="solo-learn, CIFAR-10: 92.1 % linear; its loss times .1 and decay 1e-4 are, under "
        "LARS, this decay and this rate of biases; it also clips the LARS rate, we do not",
    ),
    "paper": Recipe(
        method=BarlowTwins.Config(),
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
        source="arXiv:2103.03230 and official code: 73.2 % linear on ImageNet, 73.5 % by the code",
    ),
}
