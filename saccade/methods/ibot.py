"""IBOT: DINO, whose student also predicts the teacher's tokens at patches hidden from it.

Zhou et al. 2022, arXiv:2111.07832. Half of the global crops have a share r ~ U(.1, .5) of their
patches masked, m_i = 1, and the student sees [MASK] there, position kept. With teacher logits g_t
of patch i of the crop unmasked, student logits g_s of the crop masked, over both global crops u,
    P_i = softmax((g_t(i) - c_2) / t_t),   S_i = softmax(g_s(i) / t_s),
    patch = mean over u and images of sum_i m_i H(P_i, S_i) / max(sum_i m_i, 1),
    loss = lambda_1 cls + lambda_2 patch,
cls being DINO's cross-entropy of CLS tokens, where the student's global crops are the masked ones.
The center c_2 is the running mean over all patches of the teacher, not the masked ones alone as in
lightly. CLS and patches share a head; `shared_head=False` gives patches their own, in student and
teacher alike. Masks are rectangles as in BEiT's code, or single patches (`mask_shape=random`);
they are drawn from at most 64 rectangles. DINO's part is as in `dino`: see there. Only plain ViTs
with a CLS token: the official Swin, with masks in units of 8 patches, is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from ..core import Clock, Method, PatchBackbone, Step, View, Views
from ..nn.dist import mean
from ..nn.functional import cosine_ramp, cross_views, encode, epoch_ramp, masked_cross_entropy
from ..nn.masking import block_masks, hide
from ..nn.parts import Ema, PrototypeHead, recenter, without_drop_path
from ..nn.random import uniform
from ..recipe import CIFAR_MEAN, CIFAR_STD, BackboneConfig, Normalize, Optim, Recipe, Schedule

COLOR = (0.4, 0.4, 0.2, 0.1)
STUDENT_TEMPERATURE, FIRST_TEACHER_TEMPERATURE, CENTER_MOMENTUM = 0.1, 0.04, 0.9  # DINO's


class IBOT(Method[PatchBackbone]):
    additive = True
    remedy = "lower method.teacher_temperature or optim.lr"

    center: Tensor  # [K] of CLS tokens
    patch_center: Tensor  # [K]

    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 2048
        bottleneck: int = 256
        prototypes: int = 8192
        norm_last_layer: bool = False
        batch_norm_in_head: bool = False
        shared_head: bool = True
        teacher_temperature: float = 0.07
        warmup_teacher_temperature_epochs: int = 30  # from .04
        momentum: float = 0.996  # at the start; 1 at the end
        freeze_last_layer: int = 1  # epochs
        mask_shape: Literal["block", "random"] = "block"
        mask_ratio: tuple[float, float] = (0.1, 0.5)  # of the patches of a masked crop
        masked_crops: float = 0.5  # chance of a global crop
        weights: tuple[float, float] = (1.0, 1.0)  # lambda_1, lambda_2
        views: tuple[View, ...] = (  # the first two pictures are the global crops
            View(crop=(0.25, 1.0), interpolation="bicubic", strength=COLOR, blur=1.0),
            View(crop=(0.25, 1.0), interpolation="bicubic", strength=COLOR, blur=0.1, solarize=0.2),
            View(count=10, size=96, crop=(0.05, 0.25), interpolation="bicubic", strength=COLOR),
        )

    def __init__(self, cfg: Config, encoder: PatchBackbone) -> None:
        super().__init__()
        if (n := sum(v.count for v in cfg.views)) < 2:
            raise ValueError(f"setting method.views: IBOT needs 2 global crops, not {n}")
        if not encoder.prefix:
            raise ValueError(
                "setting backbone: IBOT needs a CLS token; choose vit_small_patch16_224"
            )
        self.cfg = cfg
        self.encoder = encoder
        self.head = head(cfg, encoder.dim)
        self.patch_head = None if cfg.shared_head else head(cfg, encoder.dim)
        self.mask_token = nn.Parameter(torch.zeros(encoder.dim))
        self.teacher = Ema(encoder)
        without_drop_path(self.teacher)
        self.teacher_head = Ema(self.head)
        self.teacher_patch_head = None if self.patch_head is None else Ema(self.patch_head)
        self.register_buffer("center", torch.zeros(cfg.prototypes))
        self.fresh: list[Tensor] = []  # mean targets of this step: the center waits for the update
        self.register_buffer("patch_center", torch.zeros(cfg.prototypes))
        self.fresh_patches: list[Tensor] = []

    def kept(self) -> PatchBackbone:
        return self.teacher.module

    def forward(self, batch: Views, clock: Clock) -> Step:
        crops, cfg, b = batch.images, self.cfg, len(batch.index)
        whole, front = torch.cat(crops[:2]), self.encoder.prefix  # [2B, C, H, W]
        with torch.no_grad():
            net = self.teacher.module
            y = net.encode(net.tokens(whole))  # [2B, P, D]
            seen = y[:, 0]
            target = self.teacher_head(seen).float().unflatten(0, (2, b))  # [2, B, K]
            tokens = y[:, front:].flatten(0, 1)  # [2B N, D]
            tokens = (self.teacher_patch_head or self.teacher_head)(tokens).float()  # [2B N, K]
            first, n = FIRST_TEACHER_TEMPERATURE, cfg.warmup_teacher_temperature_epochs
            t = epoch_ramp(first, cfg.teacher_temperature, clock.epoch, n)
            p = ((target - self.center) / t).softmax(-1)
            patch = self.encoder.patch
            mask = self.choose(batch.key, (whole.shape[2] // patch, whole.shape[3] // patch))
            at = mask.flatten().nonzero()[:, 0]  # [M] a host sync saves most of a head
            p_i = ((tokens[at] - self.patch_center) / t).softmax(-1)  # [M, K]

        positions = self.encoder.positions(whole.shape[2], whole.shape[3])
        hidden = hide(self.encoder.tokens(whole), positions, mask, self.mask_token)
        y = self.encoder.encode(hidden)  # [2B, P, D]
        h = [y[:, 0]] + ([encode(self.encoder, crops[2:])] if len(crops) > 2 else [])
        guess = self.head(torch.cat(h)).float() / STUDENT_TEMPERATURE  # [VB, K]
        match = cross_views(p, guess.log_softmax(-1).unflatten(0, (len(crops), b)))
        patches, last = y[:, front:].flatten(0, 1), self.patch_head or self.head  # [2B N, D]
        guess = last(patches)[at] if cfg.batch_norm_in_head else last(patches[at])  # [M, K]
        inside = masked_cross_entropy(
            p_i, (guess.float() / STUDENT_TEMPERATURE).log_softmax(-1), mask
        )

        self.fresh.append(mean(target.mean((0, 1))))
        self.fresh_patches.append(mean(tokens.mean(0)))
        entropy = torch.special.entr(p).sum(-1).mean()
        logs = {
            "teacher_entropy": entropy,
            "teacher_gap": match.detach() - entropy,
            "patch_loss": inside.detach(),
            "masked": mask.float().mean(),
        }
        return Step(cfg.weights[0] * match + cfg.weights[1] * inside, logs, seen[:b], p[0])

    def choose(self, key: Int[Tensor, "b"], grid: tuple[int, int]) -> Bool[Tensor, "m n"]:
        """The masked patches of both global crops, those of the first one first."""
        low, high = self.cfg.mask_ratio
        masks = []
        for view in range(2):
            chance, share = uniform(key, 2, f"mask {view}").unbind(1)
            ratio = (low + (high - low) * share) * (chance < self.cfg.masked_crops)
            count = ratio * math.prod(grid)
            if self.cfg.mask_shape == "block":
                masks.append(block_masks(key, count, grid, f"blocks {view}"))
            else:
                place = uniform(key, math.prod(grid), f"patches {view}").argsort(1).argsort(1)
                masks.append(place < count.floor()[:, None])
        return torch.cat(masks)

    def before_update(self, clock: Clock) -> None:
        if clock.epoch < self.cfg.freeze_last_layer:
            for last in (self.head, self.patch_head):
                if last is not None:
                    last.prototypes.grad = last.gain.grad = None  # also stops its weight decay

    def recenter(self) -> None:
        """Move the centers by this step's targets: after its forward passes, which use them."""
        recenter(self.center, self.fresh, CENTER_MOMENTUM)
        recenter(self.patch_center, self.fresh_patches, CENTER_MOMENTUM)

    def after_update(self, clock: Clock) -> None:
        self.recenter()
        momentum = cosine_ramp(self.cfg.momentum, 1.0, clock.progress)
        self.teacher.update(self.encoder, momentum)
        self.teacher_head.update(self.head, momentum)
        if self.patch_head is not None and self.teacher_patch_head is not None:
            self.teacher_patch_head.update(self.patch_head, momentum)


def head(cfg: IBOT.Config, dim: int) -> PrototypeHead:
    gain = not cfg.norm_last_layer
    return PrototypeHead(
        *(dim, cfg.hidden, cfg.bottleneck, cfg.prototypes),
        train_gain=gain,
        batch_norm=cfg.batch_norm_in_head,
    )


PAPER = Optim(
    name="adamw",
    lr=5e-4,
    weight_decay=(0.04, 0.4),
    decay_1d=False,
    clip=3.0,
    clip_by="tensor",
    schedule=Schedule(warmup_epochs=10.0, final_lr=1e-6),
)
RECIPES = {
    "demo": Recipe(
        method=IBOT.Config(
            hidden=512,
            bottleneck=128,
            prototypes=1024,
            norm_last_layer=True,
            teacher_temperature=0.04,
            warmup_teacher_temperature_epochs=0,
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
                    count=2,
                    size=32,
                    crop=(0.05, 0.3),
                    strength=(0.4, 0.4, 0.2, 0.02),
                    grayscale=0.0,
                    blur=0.0,
                ),
            ),
        ),
        backbone=BackboneConfig(name="vit_nano_patch8_64", image_size=64),
        optim=Optim(
            name="adamw",
            lr=1e-3,
            weight_decay=(0.04, 0.4),
            decay_1d=False,
            clip=3.0,
            clip_by="tensor",
            schedule=Schedule(warmup_epochs=5.0, final_lr=1e-6),
        ),
        epochs=25,
        batch_size=128,
        source="ours: fruit differs by color, so hue is left alone; not tuned",
    ),
    "small": Recipe(
        method=IBOT.Config(
            prototypes=4096,
            norm_last_layer=True,
            teacher_temperature=0.04,
            warmup_teacher_temperature_epochs=0,
            momentum=0.9995,
            views=(
                View(size=32, interpolation="bicubic", strength=COLOR, blur=0.0),
                View(size=32, interpolation="bicubic", strength=COLOR, blur=0.0, solarize=0.2),
            ),
        ),
        backbone=BackboneConfig(name="vit_tiny_patch4_32", image_size=32, drop_path=0.1),
        optim=PAPER,
        epochs=400,
        batch_size=256,
        normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD),
        source="ours, for CIFAR-10: DINO's small-data rules; not tuned",
    ),
    "paper": Recipe(
        method=IBOT.Config(),
        backbone=BackboneConfig(name="vit_small_patch16_224", drop_path=0.1),
        optim=PAPER,
        epochs=800,
        batch_size=1024,
        source="official README, ViT-S/16: 75.2 % kNN, 77.9 % linear on ImageNet",
    ),
}
