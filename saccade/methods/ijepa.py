"""IJEPA: from one large block of a picture, predict a teacher's features of other blocks.

Assran et al. 2023, arXiv:2301.08243. In each picture there are T target blocks and a context block
from which all patches of targets are taken out. The teacher, an average of the encoder, sees the
whole picture: h_i is its output for patch i, with mean 0 and variance 1 over channels. The encoder
sees the context alone. For each target, on its own, a narrow transformer sees the encoded context
and one mask token at the position of each patch of the target, and predicts z_i there:
    loss = mean over targets, their patches and channels of smooth_l1(z_i - h_i).
The paper writes the squared distance; the official code has smooth L1 with beta 1, and so have we.
The average moves after each step with momentum from m to 1 in a line, and is what the user keeps;
there is no CLS token, and all positions are fixed sines and cosines (column first, as in `mae`).

Sizes of blocks are drawn once for a batch of all ranks: a share of the area and a ratio of sides.
`sampler=paper`: both are drawn apart, a block can lie anywhere, and where contexts differ in
size the larger ones lose patches at random. `official` is the released code: one number drives
both, so that larger blocks are always the taller ones; the last row and the last column are never
context nor target, as blocks stay below the whole side and never start at the last place; larger
contexts lose their last patches in raster order, which are those at the bottom. A context of
`min_keep` patches or fewer is drawn again, after 20 times with one target less taken out.

Warm-up starts at 0, the official one at a fifth of the rate. Resizing of position tables is timm's.
Of the two networks in the official files the average is read; transformers' copies are said to
hold the other one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ..core import Clock, Method, PatchBackbone, Step, View, Views
from ..nn.dist import gather_frozen, lowest
from ..nn.functional import take
from ..nn.parts import Ema, without_drop_path
from ..nn.positions import check_width, sincos_2d
from ..nn.random import uniform
from ..recipe import CIFAR_MEAN, CIFAR_STD, BackboneConfig, Normalize, Optim, Recipe, Schedule

TRIES = 20  # places drawn for a context before a target less is taken out
Range = tuple[float, float]


class Predictor(nn.Module):
    """Encoded context, where it lies and where targets lie in; features of the targets out."""

    positions: Tensor  # [N, P]

    def __init__(self, encoder: PatchBackbone, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder.dim, dim)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, 1, dim), std=0.02))
        self.register_buffer("positions", sincos_2d(encoder.grid, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.features = nn.Linear(dim, encoder.dim)

    def forward(
        self,
        seen: Float[Tensor, "b k d"],
        context: Int[Tensor, "b k"],
        targets: Int[Tensor, "b t m"],
    ) -> Float[Tensor, "b t m d"]:
        seen = self.embed(seen)
        seen = seen + self.positions[context].to(seen.dtype)  # [B, K, P]
        holes = (self.mask_token + self.positions[targets]).to(seen.dtype)  # [B, T, M, P]
        count, size = targets.shape[1:]
        both = torch.cat([seen[:, None].expand(-1, count, -1, -1), holes], 2)  # [B, T, K + M, P]
        x = self.blocks(both.flatten(0, 1))[:, -size:]
        return self.features(self.norm(x)).unflatten(0, (-1, count))


class IJEPA(Method[PatchBackbone]):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        targets: int = 4
        target_scale: Range = (0.15, 0.2)  # share of the patches
        target_ratio: Range = (0.75, 1.5)  # height / width
        context_scale: Range = (0.85, 1.0)  # of a square, before targets are taken out
        min_keep: int = 10  # a context has more patches
        sampler: Literal["paper", "official"] = "paper"
        predictor_dim: int = 384
        predictor_depth: int = 6
        predictor_heads: int = 12
        momentum: float = 0.996  # at the start; 1 at the end
        views: tuple[View, ...] = (
            View(crop=(0.3, 1.0), flip=0.0, jitter=0.0, grayscale=0.0, blur=0.0),
        )

    def __init__(self, cfg: Config, encoder: PatchBackbone) -> None:
        super().__init__()
        size, count = cfg.views[0].size, sum(v.count for v in cfg.views)
        if count != 1:
            raise ValueError(f"setting method.views: IJEPA sees 1 view of a picture, not {count}")
        if size != encoder.image_size:
            raise ValueError(
                f"setting method.views.0.size: {size} pixels, but the positions of the backbone are"
                f" fixed for backbone.image_size={encoder.image_size}; set both alike"
            )
        if encoder.prefix:
            raise ValueError(
                "setting backbone: IJEPA trains patches alone and would leave a CLS token behind; "
                "choose a ViT without, such as vit_huge_patch14_gap_224"
            )
        check_width("predictor", cfg.predictor_dim, cfg.predictor_heads)
        self.cfg = cfg
        self.grid = encoder.grid
        if cfg.targets < 1 or not math.prod(self.target_size(0.0, 0.0)):
            raise ValueError(
                f"setting method.targets: {cfg.targets} blocks of method.target_scale="
                f"{cfg.target_scale} of {math.prod(self.grid)} patches hold none; give more"
            )
        least = math.prod(self.context_size(0.0))
        if cfg.min_keep >= least:
            raise ValueError(
                f"setting method.min_keep: {cfg.min_keep} patches, but a context may have {least} "
                f"in all; choose fewer than {least}"
            )
        self.encoder = encoder
        self.predictor = Predictor(
            encoder, cfg.predictor_dim, cfg.predictor_depth, cfg.predictor_heads
        )
        initialize(self.encoder)
        initialize(self.predictor)
        encoder.fix_positions(sincos_2d(encoder.grid, encoder.dim))
        self.teacher = Ema(encoder)
        without_drop_path(self.teacher)

    def kept(self) -> PatchBackbone:
        return self.teacher.module

    def forward(self, batch: Views, clock: Clock) -> Step:
        image = batch.images[0]
        context, targets = self.choose(batch.key)  # [B, K], [B, T, M]
        with torch.no_grad():
            net = self.teacher.module
            whole = net.encode(net.tokens(image))  # [B, N, D]
            h = F.layer_norm(whole.float(), whole.shape[-1:])
            h = take(h, targets.flatten(1)).unflatten(1, targets.shape[1:])  # [B, T, M, D]
        seen = self.encoder.encode(take(self.encoder.tokens(image), context))  # [B, K, D]
        z = self.predictor(seen, context, targets).float()
        explained = 1 - (z.detach() - h).square().mean() / h.var(correction=0)
        share = z.new_tensor(context.shape[1] / math.prod(self.grid))
        return Step(F.smooth_l1_loss(z, h), {"explained": explained, "seen": share}, whole.mean(1))

    @torch.compiler.disable()  # two numbers of it come to the host
    @torch.no_grad()
    def choose(self, key: Int[Tensor, "b"]) -> tuple[Int[Tensor, "b k"], Int[Tensor, "b t m"]]:
        """Patches of the context, and of each target in raster order."""
        cfg, (rows, columns) = self.cfg, self.grid
        shared = uniform(gather_frozen(key)[:1], 3, "sizes")[0].tolist()  # a host sync
        height, width = self.target_size(shared[0], shared[1])
        top, left = self.corners(key, cfg.targets, (height, width), "targets")
        row = top[..., None] + torch.arange(height, device=key.device)  # [B, T, h]
        column = left[..., None] + torch.arange(width, device=key.device)
        targets = (row[..., None] * columns + column[..., None, :]).flatten(2)  # [B, T, M]

        n, levels = rows * columns, cfg.targets + 1
        inside = torch.zeros(len(key), cfg.targets, n, dtype=torch.bool, device=key.device)
        inside.scatter_(2, targets, True)
        none = torch.zeros_like(inside[:, :1])
        taken = torch.cat([none, inside.int().cumsum(1) > 0], 1).flip(1)  # [B, T + 1, N]
        size = self.context_size(shared[2])
        top, left = self.corners(key, levels * TRIES, size, "context")
        blocks = squares(top, left, size, self.grid).unflatten(1, (levels, TRIES))
        free = (blocks & ~taken[:, :, None]).flatten(1, 2)  # [B, tries in all, N]
        enough = free.sum(-1) > cfg.min_keep
        first = enough.int().cumsum(1).eq(0).sum(1)  # [B] tries before the first one that has
        kept = free[torch.arange(len(key), device=key.device), first]  # [B, N]

        fewest = int(lowest(kept.sum(1).min()))  # a host sync
        order = uniform(key, n, "order") * (cfg.sampler == "paper")  # else the raster's
        context = order.masked_fill(~kept, 1.0).argsort(dim=1, stable=True)[:, :fewest]
        return context, targets

    def target_size(self, area: float, ratio: float) -> tuple[int, int]:
        """Rows and columns of a target block, for two draws in [0, 1)."""
        cfg = self.cfg
        ratio = area if cfg.sampler == "official" else ratio
        return self.block(between(cfg.target_scale, area), between(cfg.target_ratio, ratio))

    def context_size(self, area: float) -> tuple[int, int]:
        return self.block(between(self.cfg.context_scale, area), 1.0)

    def block(self, share: float, ratio: float) -> tuple[int, int]:
        rows, columns = self.grid
        area = int(rows * columns * share)
        spare = 1 if self.cfg.sampler == "official" else 0
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        return min(height, rows - spare), min(width, columns - spare)

    def corners(
        self, key: Int[Tensor, "b"], count: int, size: tuple[int, int], name: str
    ) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
        """First row and first column of so many blocks in each picture."""
        last = 0 if self.cfg.sampler == "official" else 1  # randint leaves out its end
        drawn = uniform(key, 2 * count, name).unflatten(1, (2, count)).unbind(1)
        top, left = (
            (d * (side - own + last)).long()
            for d, side, own in zip(drawn, self.grid, size, strict=True)
        )
        return top, left

    def after_update(self, clock: Clock) -> None:
        start = self.cfg.momentum
        self.teacher.update(self.encoder, start + (1 - start) * clock.progress)


def between(ends: Range, at: float) -> float:
    return ends[0] + at * (ends[1] - ends[0])


def squares(
    top: Int[Tensor, "b t"], left: Int[Tensor, "b t"], size: Sequence[int], grid: tuple[int, int]
) -> Bool[Tensor, "b t n"]:
    """Blocks of one size as masks of the patches."""
    row = torch.arange(grid[0], device=top.device) - top[..., None]  # [B, T, rows]
    column = torch.arange(grid[1], device=top.device) - left[..., None]
    inside = [(at >= 0) & (at < n) for at, n in zip((row, column), size, strict=True)]
    return (inside[0][..., None] & inside[1][..., None, :]).flatten(2)


@torch.no_grad()
def initialize(net: nn.Module) -> None:
    """The official start: what a block adds is divided by the root of twice its number."""
    for m in net.modules():
        if isinstance(m, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(m.weight, std=0.02)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
    for name, p in net.named_parameters():
        at, _, rest = name.partition("blocks.")[2].partition(".")
        if rest in ("attn.proj.weight", "mlp.fc2.weight"):
            p.div_(math.sqrt(2 * (int(at) + 1)))


def crops(size: int) -> tuple[View, ...]:
    return (View(size=size, crop=(0.3, 1.0), flip=0.0, jitter=0.0, grayscale=0.0, blur=0.0),)


PAPER = Optim(
    name="adamw",
    lr=1e-3,
    lr_rule="none",
    weight_decay=(0.04, 0.4),
    decay_1d=False,
    schedule=Schedule(warmup_epochs=40.0, final_lr=1e-6),
)
RECIPES = {
    "demo": Recipe(
        method=IJEPA.Config(
            min_keep=4, predictor_dim=96, predictor_depth=2, predictor_heads=3, views=crops(64)
        ),
        backbone=BackboneConfig(name="vit_nano_patch8_gap_64", image_size=64),
        optim=Optim(
            name="adamw",
            lr=1e-3,
            lr_rule="none",
            weight_decay=0.05,
            decay_1d=False,
            schedule=Schedule(warmup_epochs=10.0),
        ),
        epochs=60,
        batch_size=128,
        source="ours, not tuned",
    ),
    "small": Recipe(
        method=IJEPA.Config(
            min_keep=4, predictor_dim=192, predictor_depth=4, predictor_heads=3, views=crops(32)
        ),
        backbone=BackboneConfig(name="vit_tiny_patch4_gap_32", image_size=32),
        optim=Optim(
            name="adamw",
            lr=5e-4,
            lr_rule="none",
            weight_decay=(0.04, 0.4),
            decay_1d=False,
            schedule=Schedule(warmup_epochs=15.0, final_lr=1e-6),
        ),
        epochs=400,
        batch_size=256,
        normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD),
        source="ours, for CIFAR-10: a smaller predictor and contexts; not tuned",
    ),
    "paper": Recipe(
        method=IJEPA.Config(sampler="official", predictor_depth=12, predictor_heads=16),
        backbone=BackboneConfig(name="vit_huge_patch14_gap_224"),
        optim=PAPER,
        epochs=300,
        batch_size=2048,
        source="arXiv:2301.08243 and official code, ViT-H/14: 79.3 % linear on ImageNet",
    ),
}
