"""MoBY: MoCo's queues with BYOL's predictor and views, for transformers.

Xie et al. 2021, arXiv:2105.04553. Unit queries q_v = predictor(projector(encoder(x_v))) and keys
k_v of the averaged projector and encoder, for two views of an image; K_v is a queue of past k_v:
    loss = mean_i H([q_1.k_2, q_1.K_2] / t) + mean_i H([q_2.k_1, q_2.K_1] / t),
H the cross-entropy of picking the first. The two views follow two laws, so each has a queue of its
own; keys of all ranks join after the update. Stochastic depth is asymmetric: the trained encoder
has `backbone.drop_path`, the averaged one none. The average moves with momentum from m to 1 along
half a cosine, before the keys of the next step as in the official code, over parameters only; a
resumed run goes on where it stood, where the official one starts at m again.

Any backbone fits: the pooled vector is the CLS token of a DeiT and the mean of a Swin's map. As in
the official code, tables of positions are decayed like weights (`decay_1d=False` spares what has
one axis). Batch norm in the heads must span the devices, or keys give their batch away; recipes
synchronize it. A queue must be a multiple of the batch. Batch norm in front of a transformer's own
layers (72.0 % instead of 70.9 % after 100 epochs) is left out. So are biases in front of a head's
batch norm, which have no effect, and with them the projector's last one: the predictor's norm hides
it from the loss, so that in the official code it shifts the keys alone and stays as drawn. Warm-up
starts at 0, the official one at 5e-7; the cosine starts behind it, there at the first step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..core import Backbone, Clock, Method, Step, View, Views
from ..nn.dist import gather_frozen
from ..nn.functional import cosine_ramp, similarity
from ..nn.parts import Ema, Queue, biasless_mlp, mlp, without_drop_path
from ..recipe import CIFAR_MEAN, CIFAR_STD, BackboneConfig, Normalize, Optim, Recipe, Schedule

COLOR = (0.4, 0.4, 0.2, 0.1)


class MoBY(Method[Backbone]):
    additive = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 4096
        dim: int = 256
        queue_size: int = 4096  # of each view; a multiple of the batch size
        temperature: float = 0.2
        momentum: float = 0.99  # at the start; 1 at the end
        views: tuple[View, ...] = (
            View(strength=COLOR, blur=1.0),
            View(strength=COLOR, blur=0.1, solarize=0.2),
        )

    def __init__(self, cfg: Config, encoder: Backbone) -> None:
        super().__init__()
        if (n := sum(v.count for v in cfg.views)) != 2:
            raise ValueError(f"setting method.views: MoBY compares 2 views, not {n}")
        self.cfg = cfg
        self.encoder = encoder
        self.projector = biasless_mlp(encoder.dim, cfg.hidden, cfg.dim, last_norm=False)
        self.predictor = mlp(cfg.dim, cfg.hidden, cfg.dim)
        self.teacher = Ema(encoder)
        without_drop_path(self.teacher)
        self.teacher_projector = Ema(self.projector)
        self.queue_a = Queue(cfg.queue_size, cfg.dim)
        self.queue_b = Queue(cfg.queue_size, cfg.dim)
        self.fresh: list[tuple[Tensor, Tensor]] = []  # keys that join after the update

    def forward(self, batch: Views, clock: Clock) -> Step:
        a, b = batch.images
        h_a, h_b = self.encoder(a), self.encoder(b)  # [B, H]
        q_a, q_b = (F.normalize(self.predict(h), dim=-1) for h in (h_a, h_b))  # [B, D]
        k_a, k_b = self.key(a), self.key(b)
        one, hits = self.contrast(q_a, k_b, self.queue_b)
        two, _ = self.contrast(q_b, k_a, self.queue_a)
        self.fresh.append((gather_frozen(k_a), gather_frozen(k_b)))
        return Step(one + two, {"accuracy": hits}, h_a.detach(), k_a)

    def predict(self, h: Float[Tensor, "b h"]) -> Float[Tensor, "b d"]:
        return self.predictor(self.projector(h)).float()

    @torch.no_grad()
    def key(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b d"]:
        return F.normalize(self.teacher_projector(self.teacher(x)).float(), dim=-1)

    def contrast(
        self, q: Float[Tensor, "b d"], k: Float[Tensor, "b d"], queue: Queue
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The loss of one direction, and the share of queries nearest to their own key."""
        positive = (q * k).sum(-1) / self.cfg.temperature  # [B]
        negative = similarity(q, queue.rows) / self.cfg.temperature  # [B, K]
        loss = (torch.logaddexp(positive, negative.logsumexp(1)) - positive).mean()
        return loss, (positive.detach() > negative.detach().amax(1)).float().mean()

    def enqueue(self) -> None:
        """Move this step's keys into the queues: after its backward pass, which reads them."""
        if self.fresh:
            k_a, k_b = zip(*self.fresh, strict=True)
            self.queue_a.push(torch.cat(k_a))
            self.queue_b.push(torch.cat(k_b))
            self.fresh.clear()

    def after_update(self, clock: Clock) -> None:
        self.enqueue()
        momentum = cosine_ramp(self.cfg.momentum, 1.0, (clock.step + 1) / clock.total)
        self.teacher.update(self.encoder, momentum)
        self.teacher_projector.update(self.projector, momentum)


PAPER = Optim(
    name="adamw",
    lr=1e-3,
    lr_rule="linear-512",
    weight_decay=0.05,
    decay_1d=False,
    clip=5.0,
    schedule=Schedule(warmup_epochs=5.0, final_lr=5e-6),
)
RECIPES = {
    "demo": Recipe(
        method=MoBY.Config(
            hidden=512,
            dim=128,
            queue_size=2048,
            momentum=0.98,
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
            lr=0.12, weight_decay=5e-4, decay_1d=False, schedule=Schedule(warmup_epochs=3.0)
        ),
        epochs=40,
        batch_size=128,
        source="ours: fruit differs by color, so hue is left alone; not tuned",
    ),
    "small": Recipe(
        method=MoBY.Config(
            views=(
                View(size=32, strength=COLOR, blur=0.0),
                View(size=32, strength=COLOR, blur=0.0, solarize=0.2),
            ),
        ),
        backbone=BackboneConfig(name="vit_tiny_patch4_32", image_size=32, drop_path=0.1),
        optim=PAPER,
        epochs=400,
        batch_size=512,
        normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD),
        source="ours, for CIFAR-10: the paper's rates with less stochastic depth; not tuned",
    ),
    "paper": Recipe(
        method=MoBY.Config(),
        backbone=BackboneConfig(name="swin_tiny_patch4_window7_224", drop_path=0.2),
        optim=PAPER,
        epochs=300,
        batch_size=512,
        source="official code, Swin-T: 75.3 % linear on ImageNet (arXiv:2105.04553: 75.0 %)",
    ),
    "deit": Recipe(
        method=MoBY.Config(),
        backbone=BackboneConfig(name="deit_small_patch16_224", drop_path=0.2),
        optim=PAPER,
        epochs=300,
        batch_size=512,
        source="official code, DeiT-S: 72.8 % linear on ImageNet",
    ),
}
