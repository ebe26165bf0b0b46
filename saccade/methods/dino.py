"""DINO: a student matches a centered, sharpened teacher across crops of an image.

Caron et al. 2021, arXiv:2104.14294. The teacher sees the two global crops, the student all V crops:
    P_q = softmax((g_t(q) - c) / t_t),   S_v = softmax(g_s(v) / t_s),
    loss = 1/(2V - 2) sum_{q in globals} sum_{v != q} mean over images of H(P_q, S_v).
The teacher is a moving average of the student's parameters, without stochastic depth and with batch
statistics of its own passes; it is what you keep. The center c is the running mean of raw teacher
logits of all ranks, moved after the loss. Heads have no batch norm
for transformers; `batch_norm_in_head` brings the official option for convolutional encoders.
The paper clips each tensor's gradient apart (`optim.clip_by`), and decays whatever has two or more
axes, prototype gains included. Local crops are smaller: a transformer resamples its positions
as timm does, antialiased, which the official code does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Backbone, Clock, Method, Step, View, Views
from ..nn.dist import mean
from ..nn.functional import cosine_ramp, cross_views, encode, epoch_ramp
from ..nn.parts import Ema, PrototypeHead, recenter, without_drop_path
from ..recipe import CIFAR_MEAN, CIFAR_STD, BackboneConfig, Normalize, Optim, Recipe, Schedule

COLOR = (0.4, 0.4, 0.2, 0.1)


class DINO(Method[Backbone]):
    additive = True
    remedy = "keep method.center_momentum near .9, lower method.teacher_temperature or optim.lr"

    center: Tensor  # [K]

    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 2048
        bottleneck: int = 256
        prototypes: int = 65536
        norm_last_layer: bool = True  # gains stay 1, so that logits are cosines: more stable
        batch_norm_in_head: bool = False  # for convolutional encoders
        student_temperature: float = 0.1
        teacher_temperature: float = 0.04
        warmup_teacher_temperature: float = 0.04
        warmup_teacher_temperature_epochs: int = 0
        momentum: float = 0.996  # at the start; 1 at the end
        center_momentum: float = 0.9
        freeze_last_layer: int = 1  # epochs
        views: tuple[View, ...] = (  # the first two pictures are the global crops
            View(crop=(0.4, 1.0), interpolation="bicubic", strength=COLOR, blur=1.0),
            View(crop=(0.4, 1.0), interpolation="bicubic", strength=COLOR, blur=0.1, solarize=0.2),
            View(count=8, size=96, crop=(0.05, 0.4), interpolation="bicubic", strength=COLOR),
        )

    def __init__(self, cfg: Config, encoder: Backbone) -> None:
        super().__init__()
        if (n := sum(v.count for v in cfg.views)) < 2:
            raise ValueError(f"setting method.views: DINO needs 2 global crops, not {n}")
        self.cfg = cfg
        self.encoder = encoder
        self.head = PrototypeHead(
            encoder.dim,
            cfg.hidden,
            cfg.bottleneck,
            cfg.prototypes,
            train_gain=not cfg.norm_last_layer,
            batch_norm=cfg.batch_norm_in_head,
        )
        self.teacher = Ema(encoder)
        without_drop_path(self.teacher)
        self.teacher_head = Ema(self.head)
        self.register_buffer("center", torch.zeros(cfg.prototypes))
        self.fresh: list[Tensor] = []  # mean targets of this step: the center waits for the update

    def kept(self) -> Backbone:
        return self.teacher.module

    def forward(self, batch: Views, clock: Clock) -> Step:
        crops = batch.images
        seen = encode(self.teacher, crops[:2])  # [2B, D]
        target = self.teacher_head(seen).float().unflatten(0, (2, -1))  # [2, B, K]
        guess = self.head(encode(self.encoder, crops)).float()  # [VB, K]
        with torch.no_grad():
            p = ((target - self.center) / teacher_temperature(self.cfg, clock.epoch)).softmax(-1)
        s = (guess / self.cfg.student_temperature).log_softmax(-1).unflatten(0, (len(crops), -1))
        loss = cross_views(p, s)

        self.fresh.append(mean(target.mean((0, 1))))
        entropy = torch.special.entr(p).sum(-1).mean()
        logs = {"teacher_entropy": entropy, "teacher_gap": loss.detach() - entropy}  # gap: mean KL
        return Step(loss, logs, seen[: len(batch.index)], p[0])

    def before_update(self, clock: Clock) -> None:
        if clock.epoch < self.cfg.freeze_last_layer:
            self.head.prototypes.grad = self.head.gain.grad = None  # also stops its weight decay

    def recenter(self) -> None:
        """Move the center by this step's targets: after its forward passes, which subtract it."""
        recenter(self.center, self.fresh, self.cfg.center_momentum)

    def after_update(self, clock: Clock) -> None:
        self.recenter()
        momentum = cosine_ramp(self.cfg.momentum, 1.0, clock.progress)
        self.teacher.update(self.encoder, momentum)
        self.teacher_head.update(self.head, momentum)


def teacher_temperature(cfg: DINO.Config, epoch: int) -> float:
    """Moves in equal steps from its warm-up value, and arrives at the last epoch of the warm-up."""
    start, end = cfg.warmup_teacher_temperature, cfg.teacher_temperature
    return epoch_ramp(start, end, epoch, cfg.warmup_teacher_temperature_epochs)


RECIPES = {
    "demo": Recipe(
        method=DINO.Config(
            hidden=512,
            bottleneck=128,
            prototypes=1024,
            momentum=0.99,
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
            lr=2e-3,
            weight_decay=(0.04, 0.4),
            decay_1d=False,
            clip=3.0,
            clip_by="tensor",
            schedule=Schedule(warmup_epochs=5.0, final_lr=1e-6),
        ),
        epochs=40,
        batch_size=128,
        source="ours: fruit differs by color, so hue is left alone and nothing is grayscaled",
    ),
    "small": Recipe(
        method=DINO.Config(
            prototypes=4096,
            teacher_temperature=0.07,
            momentum=0.9995,
            views=(
                View(size=32, interpolation="bicubic", strength=COLOR, blur=0.0),
                View(size=32, interpolation="bicubic", strength=COLOR, blur=0.0, solarize=0.2),
            ),
        ),
        backbone=BackboneConfig(name="resnet18", image_size=32, stem="small"),
        optim=Optim(
            name="lars",
            lr=0.3,
            weight_decay=1e-6,
            decay_1d=False,
            trust=0.02,
            schedule=Schedule(warmup_epochs=10.0),
        ),
        epochs=1000,
        batch_size=256,
        normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD),
        source="solo-learn, CIFAR-10: 89.5 % linear; it also clips the LARS rate, we do not",
    ),
    "paper": Recipe(
        method=DINO.Config(),
        backbone=BackboneConfig(name="vit_small_patch16_224", drop_path=0.1),
        optim=Optim(
            name="adamw",
            lr=5e-4,
            weight_decay=(0.04, 0.4),
            decay_1d=False,
            clip=3.0,
            clip_by="tensor",
            schedule=Schedule(warmup_epochs=10.0, final_lr=1e-6),
        ),
        epochs=100,
        batch_size=512,
        source="official README, vanilla run: 69.3 % kNN, 74.0 % linear on ImageNet",
    ),
}
