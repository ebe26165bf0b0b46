"""SwAV: predict the cluster of one view from another view; clusters are found online.

Caron et al. 2020, arXiv:2006.09882. Unit projections z_v of V crops and K prototypes with unit rows
give scores s_v = z_v C^T; codes q_i = sinkhorn(s_i) of the first two crops are constants, and
    loss = 1/(2V - 2) sum_{i in 0, 1} sum_{v != i} mean over images of -q_i . log softmax(s_v / t).
Codes are balanced over the images of all ranks and over a queue, whose features are stale and whose
scores are fresh. Balance needs as many rows as prototypes: K <= batch + queue. A loss that stays at
ln K is the sign of collapse: smaller epsilon, a longer freeze, a lower rate, a longer queue.

The official queue begins to fill when it is first wanted; ours always fills, and serves from that
epoch on once it is full. It holds all ranks' features, each rank scores its share. Prototypes are
normalized after an update instead of before the next pass. The bias in front of the head's batch
norm is left out: it has no effect. Official batch statistics span 8 devices, ours all. LARC divides
by |g| + decay |w|, our LARS by |g + decay w|; its warm-up starts at a rate of .3, ours at 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..core import Backbone, Clock, Method, Step, View, Views
from ..nn.dist import gather_frozen, rank, world
from ..nn.functional import cross_views, encode, similarity, sinkhorn
from ..nn.parts import Queue, mlp
from ..recipe import CIFAR_MEAN, CIFAR_STD, BackboneConfig, Normalize, Optim, Recipe, Schedule

COLOR = (0.8, 0.8, 0.8, 0.2)
PIXELS = Normalize(std=(0.228, 0.224, 0.225))  # .228 is the official code's own


class SwAV(Method[Backbone]):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 2048
        dim: int = 128
        prototypes: int = 3000
        temperature: float = 0.1
        epsilon: float = 0.05
        sinkhorn_steps: int = 3
        queue_size: int = 0  # pictures; a multiple of the batch size
        queue_from_epoch: int = 15
        freeze_prototypes: int = 1  # epochs
        views: tuple[View, ...] = (  # the first two pictures make codes
            View(count=2, crop=(0.14, 1.0), strength=COLOR),
            View(count=6, size=96, crop=(0.05, 0.14), strength=COLOR),
        )

    def __init__(self, cfg: Config, encoder: Backbone) -> None:
        super().__init__()
        if (n := sum(v.count for v in cfg.views)) < 2:
            raise ValueError(f"setting method.views: SwAV needs 2 views that make codes, not {n}")
        self.cfg = cfg
        self.encoder = encoder
        self.projector = mlp(encoder.dim, cfg.hidden, cfg.dim)
        self.prototypes = nn.Parameter(nn.Linear(cfg.dim, cfg.prototypes).weight.detach())  # [K, D]
        self.queue = Queue(cfg.queue_size, 2 * cfg.dim) if cfg.queue_size else None
        self._normalize_prototypes()

    def forward(self, batch: Views, clock: Clock) -> Step:
        crops, b = batch.images, len(batch.index)
        h = encode(self.encoder, crops)  # [VB, H]
        z = F.normalize(self.projector(h).float(), dim=-1)  # [VB, D]
        scores = similarity(z, self.prototypes).unflatten(0, (len(crops), b))  # [V, B, K]
        q = self.codes(scores.detach()[:2], z.detach()[: 2 * b].unflatten(0, (2, b)), clock)
        loss = cross_views(q, (scores / self.cfg.temperature).log_softmax(-1))

        hits = q[0].argmax(-1) == scores.detach()[1].argmax(-1)
        entropy = torch.special.entr(q).sum(-1).mean()  # ln K: codes say nothing
        return Step(
            loss, {"accuracy": hits.float().mean(), "code_entropy": entropy}, h[:b].detach()
        )

    @torch.no_grad()
    def codes(
        self, scores: Float[Tensor, "2 b k"], z: Float[Tensor, "2 b d"], clock: Clock
    ) -> Float[Tensor, "2 b k"]:
        """Assignments of the first two crops, each balanced together with its half of the queue."""
        cfg, b = self.cfg, scores.shape[1]
        rows = list(scores)
        if self.queue is not None:
            full = clock.step * b * world() >= cfg.queue_size
            if full and clock.epoch >= cfg.queue_from_epoch:
                share = cfg.queue_size // world()
                past = self.queue.rows[rank() * share : (rank() + 1) * share].chunk(2, dim=1)
                old = [similarity(x, self.prototypes) for x in past]
                rows = [torch.cat(pair) for pair in zip(rows, old, strict=True)]
            self.queue.push(gather_frozen(torch.cat([*z], dim=1)))
        return torch.stack([sinkhorn(r, cfg.epsilon, cfg.sinkhorn_steps)[:b] for r in rows])

    def before_update(self, clock: Clock) -> None:
        if clock.epoch < self.cfg.freeze_prototypes:
            self.prototypes.grad = None  # a gradient of 0 would still decay them

    def after_update(self, clock: Clock) -> None:
        self._normalize_prototypes()

    @torch.no_grad()
    def _normalize_prototypes(self) -> None:
        self.prototypes.copy_(F.normalize(self.prototypes, dim=-1))


RECIPES = {
    "demo": Recipe(
        method=SwAV.Config(
            hidden=512,
            prototypes=64,
            epsilon=0.03,
            freeze_prototypes=0,
            views=(
                View(
                    count=2,
                    size=64,
                    crop=(0.3, 1.0),
                    strength=(0.4, 0.4, 0.2, 0.02),
                    grayscale=0.0,
                    blur=0.0,
                ),
                View(
                    count=4,
                    size=32,
                    crop=(0.05, 0.3),
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
        method=SwAV.Config(
            queue_size=3840,
            queue_from_epoch=50,
            freeze_prototypes=2,
            views=(View(count=2, size=32, interpolation="bicubic", strength=(0.8, 0.8, 0.8, 0.2)),),
        ),
        backbone=BackboneConfig(name="resnet18", image_size=32, stem="small"),
        optim=Optim(
            name="lars",
            lr=0.6,
            weight_decay=1e-6,
            decay_1d=False,
            trust=0.02,
            schedule=Schedule(warmup_epochs=10.0),
        ),
        epochs=1000,
        batch_size=256,
        normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD),
        source="solo-learn, CIFAR-10: 89.2 % linear; it also clips the LARS rate, we do not",
    ),
    "paper": Recipe(
        method=SwAV.Config(),
        backbone=BackboneConfig(name="resnet50"),
        optim=Optim(
            name="lars",
            lr=0.3,
            weight_decay=1e-6,
            schedule=Schedule(warmup_epochs=10.0, final_lr=0.0048),
        ),
        epochs=800,
        batch_size=4096,
        normalize=PIXELS,
        source="arXiv:2006.09882 and official code: 75.3 % linear on ImageNet",
    ),
    "paper-256": Recipe(
        method=SwAV.Config(queue_size=3840),
        backbone=BackboneConfig(name="resnet50"),
        optim=Optim(
            name="lars",
            lr=0.6,
            weight_decay=1e-6,
            schedule=Schedule(final_lr=0.0006),
        ),
        epochs=400,
        batch_size=256,
        normalize=PIXELS,
        source="official code, batches of 256 on 4 devices: 74.3 % linear on ImageNet",
    ),
    "paper-2crops": Recipe(
        method=SwAV.Config(views=(View(count=2, strength=COLOR),)),
        backbone=BackboneConfig(name="resnet50"),
        optim=Optim(
            name="lars",
            lr=0.3,
            weight_decay=1e-6,
            schedule=Schedule(warmup_epochs=10.0, final_lr=0.0048),
        ),
        epochs=400,
        batch_size=4096,
        normalize=PIXELS,
        source="official code without small crops, area from .08: 70.1 % linear on ImageNet",
    ),
}
