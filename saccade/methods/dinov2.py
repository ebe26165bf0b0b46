"""DINOv2: DINO on whole views, iBOT on hidden patches, and features pushed apart.

Oquab et al. 2024, arXiv:2304.07193. Q and Q_i are the teacher's assignments of CLS tokens and of
the masked patches to prototypes, balanced by Sinkhorn-Knopp at temperature t_t instead of centered;
S and S_i the student's softmax at t_s, x the student's CLS tokens before the head:
    loss = DINO(Q, S) + iBOT(Q_i, S_i) + w sum over both global crops of KoLeo(x),
    KoLeo(x) = -mean_i log min_{j != i} |x_i/|x_i| - x_j/|x_j||.
Half of the global crops of a batch are masked, with shares of their patches that fill (.1, .5)
evenly over the batch. iBOT's mean is over masked patches of a crop, then over crops; one without
any counts as 0. CLS tokens and patches have heads of their own. The teacher's temperature rises
with every step. Registers come with the backbone: `vit_small_patch14_reg4_dinov2`.

Assignments, masks and nearest neighbors span the images of all ranks; in the official code the
neighbors are those of a device. Not the same as there: no lower rates for lower layers (the patch
embedding's is .2), gradients are clipped together instead of network by network, stochastic depth
grows with depth. Left out: distillation to smaller networks. The last steps at high resolution are
a run of their own: `--weights` of the first, larger views and `backbone.image_size`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..core import Clock, Group, Method, PatchBackbone, Step, View, Views
from ..nn.dist import gather, gather_frozen, rank
from ..nn.functional import cosine_ramp, cross_views, encode, masked_cross_entropy, sinkhorn
from ..nn.masking import block_masks, hide
from ..nn.parts import Ema, PrototypeHead, without_drop_path
from ..nn.random import uniform
from ..recipe import CIFAR_MEAN, CIFAR_STD, BackboneConfig, Normalize, Optim, Recipe, Schedule

COLOR = (0.4, 0.4, 0.2, 0.1)
STUDENT_TEMPERATURE, FIRST_TEACHER_TEMPERATURE = 0.1, 0.04
MASKED_CROPS = 0.5  # share of the global crops of a batch


class DINOv2(Method[PatchBackbone]):
    remedy = "lower method.teacher_temperature or optim.lr"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 2048
        bottleneck: int = 256
        patch_bottleneck: int = 256
        prototypes: int = 65536
        batch_norm_in_head: bool = False
        teacher_temperature: float = 0.07
        warmup_teacher_temperature_epochs: int = 30  # from .04
        momentum: float = 0.992  # at the start; 1 at the end
        freeze_last_layer: int = 1  # epochs
        mask_ratio: tuple[float, float] = (0.1, 0.5)  # of the patches of a masked crop
        koleo_weight: float = 0.1
        views: tuple[View, ...] = (  # the first two pictures are the global crops
            View(crop=(0.32, 1.0), interpolation="bicubic", strength=COLOR, blur=1.0),
            View(crop=(0.32, 1.0), interpolation="bicubic", strength=COLOR, blur=0.1, solarize=0.2),
            View(count=8, size=96, crop=(0.05, 0.32), interpolation="bicubic", strength=COLOR),
        )

    def __init__(self, cfg: Config, encoder: PatchBackbone) -> None:
        super().__init__()
        if (n := sum(v.count for v in cfg.views)) < 2:
            raise ValueError(f"setting method.views: DINOv2 needs 2 global crops, not {n}")
        if not encoder.prefix:
            raise ValueError(
                "setting backbone: DINOv2 needs a CLS token; choose vit_small_patch14_reg4_dinov2"
            )
        self.cfg = cfg
        self.encoder = encoder
        dim, hidden, k = encoder.dim, cfg.hidden, cfg.prototypes
        fixed = {"train_gain": False, "batch_norm": cfg.batch_norm_in_head}
        self.head = PrototypeHead(dim, hidden, cfg.bottleneck, k, **fixed)
        self.patch_head = PrototypeHead(dim, hidden, cfg.patch_bottleneck, k, **fixed)
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.teacher = Ema(encoder)
        without_drop_path(self.teacher)
        self.teacher_head = Ema(self.head)
        self.teacher_patch_head = Ema(self.patch_head)

    def kept(self) -> PatchBackbone:
        return self.teacher.module

    def forward(self, batch: Views, clock: Clock) -> Step:
        crops, cfg, b = batch.images, self.cfg, len(batch.index)
        whole, front = torch.cat(crops[:2]), self.encoder.prefix  # [2B, C, H, W]
        patch = self.encoder.patch
        mask = self.choose(batch.key, (whole.shape[2] // patch, whole.shape[3] // patch))
        at = mask.flatten().nonzero()[:, 0]  # [M] masked patches: a host sync saves most of a head
        t = teacher_temperature(cfg, clock)
        with torch.no_grad():
            net = self.teacher.module
            y = net.encode(net.tokens(whole))  # [2B, P, D]
            seen = y[:, 0]
            each = self.teacher_head(seen).unflatten(0, (2, b))  # [2, B, K]
            q = sinkhorn(each.flatten(0, 1), t).unflatten(0, (2, b))
            q_i = sinkhorn(self.teacher_patch_head(y[:, front:].flatten(0, 1)[at]), t)  # [M, K]

        positions = self.encoder.positions(whole.shape[2], whole.shape[3])
        y = self.encoder.encode(
            hide(self.encoder.tokens(whole), positions, mask, self.mask_token)
        )  # [2B, P, D]
        h = [y[:, 0]] + ([encode(self.encoder, crops[2:])] if len(crops) > 2 else [])
        guess = self.head(torch.cat(h)).float() / STUDENT_TEMPERATURE  # [VB, K]
        match = cross_views(q, guess.log_softmax(-1).unflatten(0, (len(crops), b)))
        guess = self.patch_head(y[:, front:].flatten(0, 1)[at]).float() / STUDENT_TEMPERATURE
        inside = masked_cross_entropy(q_i, guess.log_softmax(-1), mask)
        apart = koleo(y[:b, 0]) + koleo(y[b:, 0])

        entropy = torch.special.entr(q).sum(-1).mean()
        logs = {
            "teacher_entropy": entropy,
            "teacher_gap": match.detach() - entropy,
            "patch_loss": inside.detach(),
            "koleo": apart.detach(),
        }
        return Step(match + inside + cfg.koleo_weight * apart, logs, seen[:b], q[0])

    def choose(self, key: Int[Tensor, "b"], grid: tuple[int, int]) -> Bool[Tensor, "m n"]:
        """The masked patches of both global crops, those of the first one first."""
        low, high = self.cfg.mask_ratio
        order = uniform(gather_frozen(key), 2, "masked").T.flatten()  # [2N] both crops of all ranks
        place = order.argsort(stable=True).argsort().unflatten(0, (2, -1))
        mine = place[:, rank() * len(key) : (rank() + 1) * len(key)]  # [2, B]
        masked = int(len(order) * MASKED_CROPS)
        masks = []
        for view in range(2):
            within = uniform(key, 1, f"mask {view}")[:, 0]
            share = low + (high - low) * (mine[view] + within) / max(masked, 1)
            count = (share * math.prod(grid)).floor() * (mine[view] < masked)
            masks.append(block_masks(key, count, grid, f"blocks {view}"))
        return torch.cat(masks)

    def groups(self) -> Iterable[Group]:
        """The embedding of patches learns at a fifth of the rate."""
        slow = {id(p) for p in self.encoder.projection().parameters()}
        named = [(n, p) for n, p in self.named_parameters() if p.requires_grad]
        yield Group([(n, p) for n, p in named if id(p) not in slow])
        yield Group([(n, p) for n, p in named if id(p) in slow], lr_scale=0.2)

    def before_update(self, clock: Clock) -> None:
        if clock.epoch < self.cfg.freeze_last_layer:
            self.head.prototypes.grad = self.patch_head.prototypes.grad = None

    def after_update(self, clock: Clock) -> None:
        momentum = cosine_ramp(self.cfg.momentum, 1.0, clock.progress)
        self.teacher.update(self.encoder, momentum)
        self.teacher_head.update(self.head, momentum)
        self.teacher_patch_head.update(self.patch_head, momentum)


def teacher_temperature(cfg: DINOv2.Config, clock: Clock) -> float:
    """Rises with every step of its warm-up."""
    steps = cfg.warmup_teacher_temperature_epochs * clock.epoch_steps
    rise = cfg.teacher_temperature - FIRST_TEACHER_TEMPERATURE
    return FIRST_TEACHER_TEMPERATURE + rise * (min(clock.step / steps, 1.0) if steps else 1.0)


def koleo(x: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Minus the mean log distance of a direction to its nearest one, over images of all ranks."""
    with torch.autocast(x.device.type, enabled=False):
        z = F.normalize(gather(x.float()), dim=-1, eps=1e-8)  # [N, D]
        own = torch.eye(len(z), dtype=torch.bool, device=z.device)
        nearest = (z @ z.T).detach().masked_fill(own, -2.0).argmax(1)
        distance = F.pairwise_distance(z, z[nearest], eps=1e-8)
        return -(distance + 1e-8).log().mean()


PAPER = Optim(
    name="adamw",
    lr=4e-3,
    lr_rule="sqrt-1024",
    weight_decay=(0.04, 0.4),
    decay_1d=False,
    clip=3.0,
    schedule=Schedule(warmup_epochs=10.0, final_lr=1e-6),
)
RECIPES = {
    "demo": Recipe(
        method=DINOv2.Config(
            hidden=512,
            bottleneck=128,
            patch_bottleneck=128,
            prototypes=256,
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
            schedule=Schedule(warmup_epochs=5.0, final_lr=1e-6),
        ),
        epochs=25,
        batch_size=128,
        source="ours: fruit differs by color, so hue is left alone; not tuned",
    ),
    "small": Recipe(
        method=DINOv2.Config(
            prototypes=4096,
            teacher_temperature=0.04,
            warmup_teacher_temperature_epochs=0,
            momentum=0.9995,
            views=(
                View(size=32, interpolation="bicubic", strength=COLOR, blur=0.0),
                View(size=32, interpolation="bicubic", strength=COLOR, blur=0.0, solarize=0.2),
            ),
        ),
        backbone=BackboneConfig(name="vit_tiny_patch4_32", image_size=32, drop_path=0.1),
        optim=Optim(
            name="adamw",
            lr=1e-3,
            weight_decay=(0.04, 0.4),
            decay_1d=False,
            clip=3.0,
            schedule=Schedule(warmup_epochs=10.0, final_lr=1e-6),
        ),
        epochs=400,
        batch_size=256,
        normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD),
        source="ours, for CIFAR-10: DINO's small-data rules; not tuned",
    ),
    "paper": Recipe(
        method=DINOv2.Config(),
        backbone=BackboneConfig(name="vit_large_patch16_224", drop_path=0.3),
        optim=PAPER,
        epochs=100,
        batch_size=2048,
        source="official code, ViT-L/16 on ImageNet: 82.0 % kNN, 83.3 % linear there",
    ),
    "large": Recipe(
        method=DINOv2.Config(
            bottleneck=384,
            prototypes=131072,
            momentum=0.994,
            views=(
                View(crop=(0.32, 1.0), interpolation="bicubic", strength=COLOR, blur=1.0),
                View(
                    crop=(0.32, 1.0),
                    interpolation="bicubic",
                    strength=COLOR,
                    blur=0.1,
                    solarize=0.2,
                ),
                View(count=8, size=98, crop=(0.05, 0.32), interpolation="bicubic", strength=COLOR),
            ),
        ),
        backbone=BackboneConfig(name="vit_large_patch14_dinov2", drop_path=0.4),
        optim=PAPER,
        epochs=500,
        batch_size=3072,
        source="official code, untied heads, made for 142 million pictures: 83.5 % kNN there",
    ),
}
