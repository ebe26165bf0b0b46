"""MoCo: contrast a query with its key and a queue of past keys (v1 and v2).

He et al. 2020, arXiv:1911.05722; Chen et al. 2020, arXiv:2003.04297. With unit q, k and queue K,
    loss = mean_i -log( exp(q_i.k_i/t) / (exp(q_i.k_i/t) + sum_{k' in K} exp(q_i.k'/t)) ).
The key network is an exponential moving average of the query network's parameters; its batch
statistics are its own. v1 is `hidden=0` with t = .07, v2 has a two-layer head; recipes for both.

Batch statistics: keys are shuffled over the ranks, or a query would know its key by the statistics
they share. So leave batch norm per device; on one device set `splits`, which normalizes shares of
the batch apart (the authors' CIFAR-10 notebook), or use an encoder without batch norm.
Two deviations: the average moves after the update instead of before the next forward pass (the same
but for the very first, where it does nothing), and the permutation is drawn from the batch's keys
instead of from rank 0 (so that a resumed run repeats it). `symmetric` adds both directions' losses
and pushes both views' keys, as the notebook does.
A random queue is easy: the loss rises until the queue is full of real keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..core import Backbone, Clock, Method, Step, View, Views
from ..nn.dist import gather_frozen, mine, shuffle, unshuffle, world
from ..nn.functional import similarity
from ..nn.norm import split
from ..nn.parts import Ema, Queue, mlp
from ..nn.random import uniform
from ..recipe import CIFAR_MEAN, CIFAR_STD, BackboneConfig, Normalize, Optim, Recipe, Schedule


class MoCo(Method[Backbone]):
    additive = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 2048  # 0: one linear layer (v1)
        dim: int = 128
        queue_size: int = 65536  # a multiple of the keys of one step
        momentum: float = 0.999
        temperature: float = 0.2
        symmetric: bool = False
        splits: int = 1  # shares of a device's batch with batch statistics of their own
        views: tuple[View, ...] = (
            View(
                count=2, crop=(0.2, 1.0), order=("jitter", "grayscale", "blur", "flip", "solarize")
            ),
        )

    def __init__(self, cfg: Config, encoder: Backbone) -> None:
        super().__init__()
        if (n := sum(v.count for v in cfg.views)) != 2:
            raise ValueError(f"setting method.views: MoCo compares 2 views, not {n}")
        self.cfg = cfg
        self.encoder = encoder
        if cfg.splits > 1:
            split(self.encoder, cfg.splits)
        widths = (encoder.dim, cfg.hidden, cfg.dim) if cfg.hidden else (encoder.dim, cfg.dim)
        self.projector = mlp(*widths, norm="none")
        self.key_encoder = Ema(self.encoder)
        self.key_projector = Ema(self.projector)
        self.queue = Queue(cfg.queue_size, cfg.dim)
        self.fresh: list[Tensor] = []  # keys of this step: they join the queue after its update

    def forward(self, batch: Views, clock: Clock) -> Step:
        a, b = batch.images
        order = None  # where one batch has one set of statistics, shuffling changes nothing
        if world() > 1 or self.cfg.splits > 1:
            order = uniform(gather_frozen(batch.key), 1, "shuffle")[:, 0].argsort(stable=True)
        step, keys = self.contrast(a, b, order)
        loss = step.loss
        if self.cfg.symmetric:
            other, more = self.contrast(b, a, order)
            loss, keys = loss + other.loss, torch.cat([more, keys])
        self.fresh.append(keys)
        return Step(loss, step.logs, step.features)

    def contrast(
        self,
        x_q: Float[Tensor, "b c H W"],
        x_k: Float[Tensor, "b c H W"],
        order: Int[Tensor, "n"] | None,
    ) -> tuple[Step, Float[Tensor, "n d"]]:
        """The loss of one direction, and the keys of all ranks."""
        t = self.cfg.temperature
        h = self.encoder(x_q)
        q = F.normalize(self.projector(h).float(), dim=-1)  # [B, D]
        shuffled = x_k if order is None else shuffle(x_k, order)
        keys = self.key(shuffled)  # [B, D]
        keys = keys if order is None else unshuffle(keys, order)  # [N, D]
        k = keys[mine(len(q))]  # [B, D]
        positive = (q * k).sum(-1) / t  # [B]
        negative = similarity(q / t, self.queue.rows)  # [B, K]
        # minus log of the softmax of [positive | negative], without building that table
        loss = (torch.logaddexp(positive, negative.logsumexp(1)) - positive).mean()
        hits = positive.detach() > negative.detach().amax(1)
        logs = {"accuracy": hits.float().mean(), "positive": t * positive.detach().mean()}
        return Step(loss, logs, h.detach()), keys

    @torch.no_grad()
    def key(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b d"]:
        return F.normalize(self.key_projector(self.key_encoder(x)).float(), dim=-1)

    def enqueue(self) -> None:
        """Move this step's keys into the queue: after its backward pass, which reads the queue."""
        if self.fresh:
            self.queue.push(torch.cat(self.fresh))
            self.fresh.clear()

    def after_update(self, clock: Clock) -> None:
        self.enqueue()
        self.key_encoder.update(self.encoder, self.cfg.momentum)
        self.key_projector.update(self.projector, self.cfg.momentum)


RECIPES = {
    "demo": Recipe(
        method=MoCo.Config(
            hidden=512,
            queue_size=2048,
            momentum=0.99,
            symmetric=True,
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
        optim=Optim(lr=0.06, weight_decay=5e-4, schedule=Schedule(warmup_epochs=5.0)),
        epochs=40,
        batch_size=128,
        sync_batch_norm=False,
        source="ours: fruit differs by color, so hue is left alone and nothing is grayscaled",
    ),
    "small": Recipe(
        method=MoCo.Config(
            hidden=0,
            queue_size=4096,
            momentum=0.99,
            temperature=0.1,
            splits=8,
            views=(View(count=2, size=32, blur=0.0),),
        ),
        backbone=BackboneConfig(name="resnet18", image_size=32, stem="small"),
        optim=Optim(lr=0.03, weight_decay=5e-4, schedule=Schedule(per="epoch")),
        epochs=200,
        batch_size=512,
        normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD),
        sync_batch_norm=False,
        source="the authors' CIFAR-10 notebook: kNN 82.6 %, symmetric 85.3 %",
    ),
    "paper": Recipe(
        method=MoCo.Config(),
        backbone=BackboneConfig(name="resnet50"),
        optim=Optim(lr=0.03, weight_decay=1e-4, schedule=Schedule(per="epoch")),
        epochs=200,
        batch_size=256,
        sync_batch_norm=False,
        source="v2, arXiv:2003.04297: 67.5 % linear on ImageNet, 8 devices",
    ),
    "v1": Recipe(
        method=MoCo.Config(
            hidden=0,
            temperature=0.07,
            views=(
                View(
                    count=2,
                    crop=(0.2, 1.0),
                    jitter=1.0,
                    strength=(0.4, 0.4, 0.4, 0.4),
                    blur=0.0,
                    order=("grayscale", "jitter", "flip", "blur", "solarize"),
                ),
            ),
        ),
        backbone=BackboneConfig(name="resnet50"),
        optim=Optim(
            lr=0.03,
            weight_decay=1e-4,
            schedule=Schedule(shape="steps", drops=(0.6, 0.8), per="epoch"),
        ),
        epochs=200,
        batch_size=256,
        sync_batch_norm=False,
        source="v1, arXiv:1911.05722: 60.6 % linear on ImageNet, 8 devices",
    ),
}
