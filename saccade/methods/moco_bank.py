"""MoCoBank: contrast a query with its image's last feature and those of random other images.

The memory-bank mechanism that He et al. 2020, arXiv:1911.05722 (figure 2b, section 4.1) compare
MoCo with: the bank of Wu et al. 2018 under MoCo's loss. With unit q_i, row v_i of the bank for
image i, and K rows drawn from the bank,
    loss = mean_i -log( exp(q_i.v_i/t) / (exp(q_i.v_i/t) + sum_{j drawn, j != i} exp(q_i.v_j/t)) ),
    v_i <- unit(m v_i + (1 - m) q_i) once the step is over.
One view: the positive key is the feature of another epoch, so that batch statistics cannot give it
away and nothing is shuffled. Any K is cheap, but keys come from many past encoders. Settings are
those of `moco` and `end_to_end`, so that the three can be compared at equal everything else.
The K rows are drawn with replacement, once for the batch of all ranks. Unlike Wu et al. 2018
(`memory_bank`) this is a softmax over K + 1 rows, not noise-contrastive estimation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import Backbone, Clock, Method, Step, View, Views
from ..nn.dist import gather_frozen
from ..nn.functional import similarity
from ..nn.norm import split
from ..nn.parts import Bank, mlp
from ..nn.random import integers
from ..recipe import CIFAR_MEAN, CIFAR_STD, BackboneConfig, Normalize, Optim, Recipe, Schedule


class MoCoBank(Method[Backbone]):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        images: int = 0  # pictures of the data: filled in by the run
        hidden: int = 0  # 0: one linear layer, as in MoCo v1
        dim: int = 128
        negatives: int = 65536  # rows drawn for a step
        momentum: float = 0.5  # of a row
        temperature: float = 0.07
        splits: int = 1  # shares of a device's batch with batch statistics of their own
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
            raise ValueError(f"setting method.views: MoCoBank sees 1 view of a picture, not {n}")
        self.cfg = cfg
        self.encoder = encoder
        if cfg.splits > 1:
            split(self.encoder, cfg.splits)
        widths = (encoder.dim, cfg.hidden, cfg.dim) if cfg.hidden else (encoder.dim, cfg.dim)
        self.projector = mlp(*widths, norm="none")
        self.bank = Bank(cfg.images, cfg.dim)
        self.fresh: tuple[Tensor, Tensor] | None = None  # index and q: they wait for the update

    def forward(self, batch: Views, clock: Clock) -> Step:
        t, rows = self.cfg.temperature, self.bank.rows
        h = self.encoder(batch.images[0])
        q = F.normalize(self.projector(h).float(), dim=-1)  # [B, D]
        key = gather_frozen(batch.key)[:1]  # the same on every rank
        drawn = integers(key, self.cfg.negatives, len(rows), "negatives")[0]  # [K]
        positive = (q * rows[batch.index]).sum(-1) / t  # [B]
        negative = similarity(q / t, rows[drawn])  # [B, K]
        negative = negative.masked_fill(drawn == batch.index[:, None], -torch.inf)
        # minus log of the softmax of [positive | negative], without building that table
        loss = (torch.logaddexp(positive, negative.logsumexp(1)) - positive).mean()
        self.fresh = batch.index, q.detach()

        hits = positive.detach() > negative.detach().amax(1)
        logs = {"accuracy": hits.float().mean(), "positive": t * positive.detach().mean()}
        return Step(loss, logs, h.detach())

    def after_update(self, clock: Clock) -> None:
        if self.fresh is not None:
            self.bank.update(*self.fresh, self.cfg.momentum)
            self.fresh = None


RECIPES = {
    "demo": Recipe(
        method=MoCoBank.Config(
            hidden=512,
            negatives=512,
            temperature=0.2,
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
        method=MoCoBank.Config(
            negatives=4096,
            temperature=0.1,
            splits=8,
            views=(View(size=32, crop=(0.2, 1.0), blur=0.0),),
        ),
        backbone=BackboneConfig(name="resnet18", image_size=32, stem="small"),
        optim=Optim(lr=0.03, weight_decay=5e-4, schedule=Schedule(per="epoch")),
        epochs=200,
        batch_size=512,
        normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD),
        sync_batch_norm=False,
        source="ours: MoCo's CIFAR-10 notebook with a bank in place of the queue",
    ),
    "paper": Recipe(
        method=MoCoBank.Config(),
        backbone=BackboneConfig(name="resnet50"),
        optim=Optim(
            lr=0.03,
            weight_decay=1e-4,
            schedule=Schedule(shape="steps", drops=(0.6, 0.8), per="epoch"),
        ),
        epochs=200,
        batch_size=256,
        sync_batch_norm=False,
        source="arXiv:1911.05722, figure 3: 58.0 % linear on ImageNet with 65,536 keys",
    ),
}
