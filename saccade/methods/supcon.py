"""SupCon: pull together every view of every image of a class, against all other views.

Khosla et al. 2020, arXiv:2004.11362. For unit projections z of 2N views, P(i) the other views of
images of the same class as view i, and |P(i)| their number,
    loss = mean_i -1/|P(i)| sum_{p in P(i)} log( exp(z_i.z_p/t) / sum_{a != i} exp(z_i.z_a/t) ).
N counts the images of all ranks. It needs labels; an image labeled -1 is a class of its own, so
that with such labels alone this is SimCLR. The loss never falls below mean_i ln |P(i)|. Official
codes scale it by t or by t/.07, which is left to the learning rate. The head has no batch norm. For
ImageNet the paper draws AutoAugment, which `View` does not offer: SimCLR's jitter stands in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from ..core import Backbone, Clock, Method, Step, View, Views
from ..nn.dist import gather, gather_frozen, rank
from ..nn.functional import similarity
from ..nn.parts import mlp
from ..recipe import CIFAR_MEAN, CIFAR_STD, BackboneConfig, Normalize, Optim, Recipe, Schedule

COLOR = (0.8, 0.8, 0.8, 0.2)


class SupCon(Method[Backbone]):
    labelled = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 2048
        dim: int = 128
        temperature: float = 0.1
        views: tuple[View, ...] = (View(count=2, strength=COLOR),)

    def __init__(self, cfg: Config, encoder: Backbone) -> None:
        super().__init__()
        if (n := sum(v.count for v in cfg.views)) != 2:
            raise ValueError(f"setting method.views: SupCon compares 2 views, not {n}")
        self.cfg = cfg
        self.encoder = encoder
        self.projector = mlp(encoder.dim, cfg.hidden, cfg.dim, norm="none")

    def forward(self, batch: Views, clock: Clock) -> Step:
        b = len(batch.index)
        mine = classes(batch).repeat(2)  # [2B]
        h = self.encoder(torch.cat(batch.images))  # [2B, H]
        z = F.normalize(self.projector(h).float(), dim=-1)  # [2B, D]
        own = (rank() * 2 * b + torch.arange(2 * b, device=z.device))[:, None]  # [2B, 1] columns
        logits = similarity(z, gather(z)) / self.cfg.temperature  # [2B, 2N]
        logits = logits.scatter(1, own, -torch.inf)
        positive = (mine[:, None] == gather_frozen(mine)).scatter(1, own, False)  # [2B, 2N]
        total = logits.log_softmax(1).where(positive, 0.0).sum(1)  # [2B]
        loss = -(total / positive.sum(1)).mean()

        hits = positive.gather(1, logits.detach().argmax(1, keepdim=True))
        logs = {"accuracy": hits.float().mean(), "positives": positive.sum(1).float().mean()}
        return Step(loss, logs, h[:b].detach())


def classes(batch: Views) -> Int[Tensor, "b"]:
    """Class of each image, and below 0 a number of its own for each without."""
    if batch.labels is None:
        raise ValueError("SupCon needs labels, and this batch has none")
    return torch.where(batch.labels < 0, -1 - batch.index, batch.labels)


RECIPES = {
    "demo": Recipe(
        method=SupCon.Config(
            hidden=512,
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
        method=SupCon.Config(
            dim=256,
            temperature=0.2,
            views=(View(count=2, size=32, interpolation="bicubic", strength=COLOR),),
        ),
        backbone=BackboneConfig(name="resnet18", image_size=32, stem="small"),
        optim=Optim(lr=0.4, weight_decay=1e-5, schedule=Schedule(warmup_epochs=10.0)),
        epochs=1000,
        batch_size=256,
        normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD),
        source="solo-learn, CIFAR-10: 93.8 % linear; it takes the logarithm of the sum over "
        "positives, we the paper's sum of logarithms",
    ),
    "paper": Recipe(
        method=SupCon.Config(),
        backbone=BackboneConfig(name="resnet50"),
        optim=Optim(
            name="lars",
            lr=0.4,
            weight_decay=1e-3,
            decay_1d=False,
            lr_in_buffer=True,
            schedule=Schedule(warmup_epochs=12.0),
        ),
        epochs=350,
        batch_size=6144,
        source="official code for ImageNet, but with SimCLR's views instead of AutoAugment "
        "(78.7 % linear with it, from memory)",
    ),
}
