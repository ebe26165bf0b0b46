"""MST: DINO, whose student misses patches the teacher finds unimportant and restores the picture.

Li et al. 2021, arXiv:2106.05656. The teacher sees the two global crops; A_i is its attention from
CLS to patch i in the last block, averaged over heads. Of each global crop's n patches, those of
rank < floor(n / num) by ascending A are candidates, and each candidate is masked with chance p. The
student sees [MASK] in place of a masked patch's embedding, position kept, and all local crops:
    loss = DINO's cross-entropy + lambda mean over pixels of |x - g(student's patch tokens)|.
g upsamples all patch tokens to the whole view; x is that view as augmented and normalized.
`masking=high` hides the most attended patches instead (AttMask, Kakogeorgiou et al. 2022), `random`
chooses among all with chance p, `none` masks nothing. Attention comes from the teacher's one pass.
Ties of A are broken by place: while a young teacher looks evenly, masks are as good as random, but
few. Local crops are never masked: no teacher has looked at them.

There is no official code. Ours: g's layers, lambda, the mean over heads and [MASK] before the
positions. DINO's part is as in `dino`: see there. With few patches little is masked (64 patches,
num 8, p .15: one), so small recipes have lower `num` and higher `masked_share`. How the paper reads
attention in a Swin is not known. Ours: a cell of the last map is what is masked, with all patches
in it (32 pixels; 49 of them at 224); A_i is the attention that cell i gets in the last block, the
mean over heads and over the cells of its window; the mean of the map stands in for CLS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..core import Backbone, Clock, Method, PatchBackbone, StagedBackbone, Step, View, Views
from ..nn.dist import mean
from ..nn.functional import cosine_ramp, cross_views, encode, epoch_ramp
from ..nn.masking import hide
from ..nn.parts import Ema, PrototypeHead, recenter, without_drop_path
from ..nn.patches import enlarged
from ..nn.random import uniform
from ..recipe import CIFAR_MEAN, CIFAR_STD, BackboneConfig, Normalize, Optim, Recipe, Schedule

COLOR = (0.4, 0.4, 0.2, 0.1)
STUDENT_TEMPERATURE, FIRST_TEACHER_TEMPERATURE, CENTER_MOMENTUM = 0.1, 0.04, 0.9  # DINO's


class Decoder(nn.Module):
    """A map of patches in, the picture out: each block doubles the map and halves its channels."""

    def __init__(self, encoder: Backbone, dim: int) -> None:
        super().__init__()
        doublings = encoder.stride.bit_length() - 1
        if 2**doublings != encoder.stride:
            raise ValueError(
                f"setting backbone: cells of {encoder.stride} pixels, but the decoder of MST "
                "doubles its map; choose patches of 4, 8 or 16, such as vit_small_patch16_224"
            )
        widths = [dim, *(max(dim >> i, dim // 8) for i in range(doublings))]
        self.enter = nn.Conv2d(encoder.dim, dim, 1)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(widths[i], widths[i + 1], 3, padding=1, bias=False),
                    nn.BatchNorm2d(widths[i + 1]),
                    nn.ReLU(inplace=True),
                    nn.Upsample(scale_factor=2, mode="bilinear"),
                )
                for i in range(doublings)
            )
        )
        self.pixels = nn.Conv2d(widths[-1], encoder.channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c H W"]:
        return self.pixels(self.blocks(self.enter(x)))


class MST(Method[Backbone]):
    additive = True
    remedy = "lower method.teacher_temperature or optim.lr"

    center: Tensor  # [K]

    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 2048
        bottleneck: int = 256
        prototypes: int = 65536
        norm_last_layer: bool = True
        batch_norm_in_head: bool = False
        teacher_temperature: float = 0.04
        warmup_teacher_temperature_epochs: int = 0  # from .04
        momentum: float = 0.996  # at the start; 1 at the end
        freeze_last_layer: int = 1  # epochs
        masking: Literal["low", "high", "random", "none"] = "low"
        num: int = 8  # candidates are 1 / num of the patches
        masked_share: float = 0.15  # p, the chance of a candidate
        restore_weight: float = 1.0  # lambda
        decoder_dim: int = 256
        views: tuple[View, ...] = (  # the first two pictures are the global crops
            View(crop=(0.4, 1.0), interpolation="bicubic", strength=COLOR, blur=1.0),
            View(crop=(0.4, 1.0), interpolation="bicubic", strength=COLOR, blur=0.1, solarize=0.2),
            View(count=8, size=96, crop=(0.05, 0.4), interpolation="bicubic", strength=COLOR),
        )

    def __init__(self, cfg: Config, encoder: Backbone) -> None:
        super().__init__()
        width = embedding(encoder)
        if (n := sum(v.count for v in cfg.views)) < 2:
            raise ValueError(f"setting method.views: MST needs 2 global crops, not {n}")
        if cfg.num < 1:
            raise ValueError(f"setting method.num: {cfg.num} divides the patches; choose 1 or more")
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
        self.decoder = Decoder(encoder, cfg.decoder_dim)
        self.mask_token = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.register_buffer("center", torch.zeros(cfg.prototypes))
        self.fresh: list[Tensor] = []  # mean targets of this step: the center waits for the update

    def kept(self) -> Backbone:
        return self.teacher.module

    def forward(self, batch: Views, clock: Clock) -> Step:
        crops, cfg, b = batch.images, self.cfg, len(batch.index)
        whole = torch.cat(crops[:2])  # [2B, C, H, W]
        with torch.no_grad():
            seen, attention = look(self.teacher.module, whole)  # [2B, D], [2B, N]
            mask = self.choose(attention, batch.key)  # [2B, N]
            target = self.teacher_head(seen).float().unflatten(0, (2, b))  # [2, B, K]
            first, n = FIRST_TEACHER_TEMPERATURE, cfg.warmup_teacher_temperature_epochs
            t = epoch_ramp(first, cfg.teacher_temperature, clock.epoch, n)
            p = ((target - self.center) / t).softmax(-1)

        own, restored = self.restore(whole, mask)  # [2B, D], [2B, C, H, W]
        h = [own] + ([encode(self.encoder, crops[2:])] if len(crops) > 2 else [])
        guess = self.head(torch.cat(h)).float() / STUDENT_TEMPERATURE  # [VB, K]
        match = cross_views(p, guess.log_softmax(-1).unflatten(0, (len(crops), b)))
        restore = (restored.float() - whole.float()).abs().mean()

        self.fresh.append(mean(target.mean((0, 1))))
        entropy = torch.special.entr(p).sum(-1).mean()
        logs = {
            "teacher_entropy": entropy,
            "teacher_gap": match.detach() - entropy,
            "restore_loss": restore.detach(),
            "masked": mask.float().mean(),
        }
        return Step(match + cfg.restore_weight * restore, logs, seen[:b], p[0])

    def restore(
        self, whole: Float[Tensor, "m c H W"], mask: Bool[Tensor, "m n"]
    ) -> tuple[Float[Tensor, "m d"], Float[Tensor, "m c H W"]]:
        """What the student makes of the picture without the masked cells, and g of its map."""
        net, (height, width) = self.encoder, (whole.shape[2], whole.shape[3])
        grid = (height // net.stride, width // net.stride)
        if isinstance(net, PatchBackbone):
            hidden = hide(net.tokens(whole), net.positions(height, width), mask, self.mask_token)
            y = net.encode(hidden)
            return y[:, 0], self.decoder(y[:, net.prefix :].mT.unflatten(2, grid))
        assert isinstance(net, StagedBackbone)
        at = enlarged(mask.unflatten(1, grid), net.stride // net.patch)[:, None]
        y = net.stem(whole)
        y = net.encode(torch.where(at, self.mask_token.to(y.dtype)[:, None, None], y))
        return y.mean((2, 3)), self.decoder(y)

    def draw(self, batch: Views) -> dict[str, Float[Tensor, "b c h w"]]:
        """The first crop without its masked patches, and what is restored of it."""
        whole, net, b = torch.cat(batch.images[:2]), self.teacher.module, len(batch.index)
        mask = self.choose(look(net, whole)[1], batch.key)[:b]
        first, side = whole[:b], net.stride
        cells = mask.unflatten(1, (first.shape[2] // side, first.shape[3] // side))
        hidden = enlarged(cells, side)[:, None]
        return {
            "seen": first.float().masked_fill(hidden, torch.nan),
            "restored": self.restore(first, mask)[1].float(),
        }

    def choose(self, attention: Float[Tensor, "m n"], key: Int[Tensor, "b"]) -> Bool[Tensor, "m n"]:
        """The masked patches of both global crops, those of the first one first."""
        n, how = attention.shape[1], self.cfg.masking
        draws = [uniform(key, n, f"mask {view}") for view in range(2)]
        drawn = torch.cat(draws) < self.cfg.masked_share
        if how == "random":
            return drawn
        rising = -attention if how == "high" else attention
        place = rising.argsort(dim=1, stable=True).argsort(dim=1)
        count = 0 if how == "none" else n // self.cfg.num
        return drawn & (place < count)

    def before_update(self, clock: Clock) -> None:
        if clock.epoch < self.cfg.freeze_last_layer:
            self.head.prototypes.grad = self.head.gain.grad = None  # also stops its weight decay

    def recenter(self) -> None:
        """Move the center by this step's targets: after its forward passes, which subtract it."""
        recenter(self.center, self.fresh, CENTER_MOMENTUM)

    def after_update(self, clock: Clock) -> None:
        self.recenter()
        momentum = cosine_ramp(self.cfg.momentum, 1.0, clock.progress)
        self.teacher.update(self.encoder, momentum)
        self.teacher_head.update(self.head, momentum)


def embedding(encoder: Backbone) -> int:
    """Channels of what is masked. Raises ValueError without attention to choose it by."""
    if isinstance(encoder, PatchBackbone) and encoder.prefix:
        return encoder.dim
    if isinstance(encoder, StagedBackbone) and encoder.looks:
        return encoder.widths[0]
    raise ValueError(
        "setting backbone: MST needs a CLS token or a Swin; choose vit_small_patch16_224 or "
        "swin_tiny_patch4_window7_224"
    )


def look(
    net: Backbone, x: Float[Tensor, "m c H W"]
) -> tuple[Float[Tensor, "m d"], Float[Tensor, "m n"]]:
    """Features of a picture, and the attention to its cells, of one pass."""
    if isinstance(net, PatchBackbone):
        y, rows = net.encode_and_look(net.tokens(x))  # [M, P, D], [M, heads, P]
        return y[:, 0], rows[..., net.prefix :].mean(1)
    assert isinstance(net, StagedBackbone)
    y, attention = net.encode_and_look(net.stem(x))  # [M, D, h, w], [M, N]
    return y.mean((2, 3)), attention


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
        method=MST.Config(
            hidden=512,
            bottleneck=128,
            prototypes=1024,
            momentum=0.99,
            num=4,
            masked_share=0.3,
            decoder_dim=64,
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
        method=MST.Config(
            prototypes=4096,
            momentum=0.9995,
            num=4,
            masked_share=0.3,
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
        source="ours, for CIFAR-10: DINO's small-data rules, 4.8 of 64 patches masked; not tuned",
    ),
    "paper": Recipe(
        method=MST.Config(),
        backbone=BackboneConfig(name="deit_small_patch16_224", drop_path=0.1),
        optim=PAPER,
        epochs=100,
        batch_size=1024,
        source="arXiv:2106.05656, DeiT-S: 75.0 % linear on ImageNet; rates are DINO's",
    ),
    "paper-swin": Recipe(
        method=MST.Config(),
        backbone=BackboneConfig(name="swin_tiny_patch4_window7_224", drop_path=0.1),
        optim=PAPER,
        epochs=100,
        batch_size=1024,
        source="arXiv:2106.05656, Swin-T, rates as with DeiT-S: 1.8 points above MoBY, linear",
    ),
}
