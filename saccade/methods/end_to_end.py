"""EndToEnd: contrast a query with the keys of its own batch, gradient through both.

The end-to-end mechanism that He et al. 2020, arXiv:1911.05722 (figure 2a, section 4.1) compare
MoCo with. With unit q, k of the two views of N images, both from the one encoder,
    loss = mean_i -log( exp(q_i.k_i/t) / sum_j exp(q_i.k_j/t) ), j over images of all ranks.
The dictionary is the batch: N keys, N - 1 of them negatives, all as new as the query. A larger
dictionary costs a larger batch, and wants the linear learning-rate rule (without it the paper
loses 2 % at 1024). Settings are those of `moco` and `moco_bank`, so that the three can be compared
at equal everything else. As in MoCo, keys are shuffled over the ranks, or over `splits` shares of
the batch, so that batch statistics do not give them away.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..core import Backbone, Clock, Method, Step, View, Views
from ..nn.dist import gather, gather_frozen, rank, world
from ..nn.functional import similarity
from ..nn.norm import split
from ..nn.parts import mlp
from ..nn.random import uniform
from ..recipe import CIFAR_MEAN, CIFAR_STD, BackboneConfig, Normalize, Optim, Recipe, Schedule


class EndToEnd(Method[Backbone]):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 0  # 0: one linear layer, as in MoCo v1
        dim: int = 128
        temperature: float = 0.07
        splits: int = 1  # shares of a device's batch with batch statistics of their own
        views: tuple[View, ...] = (
            View(
                count=2,
                crop=(0.2, 1.0),
                jitter=1.0,
                strength=(0.4, 0.4, 0.4, 0.4),
                blur=0.0,
                order=("grayscale", "jitter", "flip", "blur", "solarize"),
            ),
        )

    def __init__(self, cfg: Config, encoder: Backbone) -> None:
        super().__init__()
        if (n := sum(v.count for v in cfg.views)) != 2:
            raise ValueError(f"setting method.views: EndToEnd compares 2 views, not {n}")
        self.cfg = cfg
        self.encoder = encoder
        if cfg.splits > 1:
            split(self.encoder, cfg.splits)
        widths = (encoder.dim, cfg.hidden, cfg.dim) if cfg.hidden else (encoder.dim, cfg.dim)
        self.projector = mlp(*widths, norm="none")

    def forward(self, batch: Views, clock: Clock) -> Step:
        a, b = batch.images
        h = self.encoder(a)
        q = self.unit(h)  # [B, D]
        own = rank() * len(q) + torch.arange(len(q), device=q.device)  # [B] rows of this rank
        if world() > 1 or self.cfg.splits > 1:  # else one batch has one set of statistics
            order = uniform(gather_frozen(batch.key), 1, "shuffle")[:, 0].argsort(stable=True)
            shuffled = self.unit(self.encoder(gather_frozen(b)[order[own]]))
            k = gather(shuffled)[order.argsort()]  # [N, D]
        else:
            k = self.unit(self.encoder(b))
        logits = similarity(q, k) / self.cfg.temperature  # [B, N]
        loss = F.cross_entropy(logits, own)
        hits = logits.detach().argmax(1) == own
        return Step(loss, {"accuracy": hits.float().mean()}, h.detach())

    def unit(self, h: Float[Tensor, "b h"]) -> Float[Tensor, "b d"]:
        return F.normalize(self.projector(h).float(), dim=-1)


RECIPES = {
    "demo": Recipe(
        method=EndToEnd.Config(
            hidden=512,
            temperature=0.2,
            splits=4,
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
        optim=Optim(lr=0.12, weight_decay=5e-4, schedule=Schedule(warmup_epochs=3.0)),
        epochs=40,
        batch_size=128,
        sync_batch_norm=False,
        source="ours: fruit differs by color, so hue is left alone and nothing is grayscaled",
    ),
    "small": Recipe(
        method=EndToEnd.Config(
            temperature=0.1, splits=8, views=(View(count=2, size=32, crop=(0.2, 1.0), blur=0.0),)
        ),
        backbone=BackboneConfig(name="resnet18", image_size=32, stem="small"),
        optim=Optim(lr=0.03, weight_decay=5e-4, schedule=Schedule(per="epoch")),
        epochs=200,
        batch_size=512,
        normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD),
        sync_batch_norm=False,
        source="ours: MoCo's CIFAR-10 notebook with the batch in place of the queue",
    ),
    "paper": Recipe(
        method=EndToEnd.Config(),
        backbone=BackboneConfig(name="resnet50"),
        optim=Optim(
            lr=0.03,
            weight_decay=1e-4,
            schedule=Schedule(shape="steps", drops=(0.6, 0.8), per="epoch"),
        ),
        epochs=200,
        batch_size=1024,
        sync_batch_norm=False,
        source="arXiv:1911.05722, figure 3: 57.3 % linear on ImageNet with 1024 keys",
    ),
}
