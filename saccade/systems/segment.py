"""Semantic segmentation: name the class of every pixel.

    loss = mean over pixels with a class of -log softmax(up(head(encoder(x))))[class]
where up is bilinear, to the size of the labels. Heads:
    linear  batch norm and a 1x1 convolution (DINOv2's probe; Oquab et al. 2023, arXiv:2304.07193)
    fcn     dilated 3x3 convolutions (Long et al. 2015, arXiv:1411.4038; with the dilated ResNet and
            the shape that MoCo transfers to, arXiv:1911.05722, appendix)
    uper    pooled context and a pyramid over all stages (Xiao et al. 2018, arXiv:1807.10221)
    fpt     a pyramid over all stages whose levels attend to each other (Zhang et al. 2020,
            arXiv:2007.09451), coarser ones in a square of 5 cells; all cells of a level to all
    setr    convolutions that double a plain ViT's map step by step (SETR-PUP; Zheng et al. 2021,
            arXiv:2012.15840)
With `context`, fcn is the head of non-local networks (arXiv:1711.07971, 2006.06668, 1904.11492, as
mmsegmentation has it): a block of attention behind the first convolution, and what came in joins
what comes out in one more.
Pictures are filled up with zeros, to the right and below, to a multiple of the encoder's stride.
Not the same as the papers: there are no auxiliary heads at earlier layers, no hard pixels are
mined, fpt's levels are the stages, without its "unscathed" pyramid. Classes are not weighted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ..attention import (
    DisentangledNonLocal,
    FeaturePyramidTransformer,
    GlobalContext,
    NonLocal,
)
from ..core import (
    IGNORED,
    Backbone,
    Clock,
    Cropping,
    Group,
    PatchBackbone,
    Segments,
    StagedBackbone,
    Step,
    System,
)
from ..nn import dist, norm
from ..recipe import BackboneConfig, Optim, Schedule, SystemRecipe

POOLED = (1, 2, 3, 6)  # cells on a side of the context that `uper` pools
SQUARE = 5  # cells on a side of what a cell of `fpt` sees of coarser levels
Context = Literal["none", "non_local", "disentangled", "global_context"]
BLOCKS: dict[Context, Callable[[int], nn.Module]] = {
    "non_local": NonLocal,
    "disentangled": DisentangledNonLocal,
    "global_context": GlobalContext,
}


class Segment(System):
    domain = "segmentation"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        classes: tuple[str, ...] = ()  # names, taken from the data
        head: Literal["linear", "fcn", "uper", "fpt", "setr"] = "fcn"
        context: Context = "none"  # fcn: attention between its convolutions
        frozen: bool = False  # only the head trains
        dilated: int = 0  # last stages of a ResNet that dilate instead of shrinking the map
        last: int = 1  # linear, fcn: stages, or blocks of a ViT, whose maps the head gets
        width: int = 256  # channels inside fcn, uper, fpt and setr
        convs: int = 2  # fcn: 3x3 convolutions
        dilation: int = 6  # fcn: of those
        dropout: float = 0.0  # fcn, uper, fpt: of channels, before the last convolution
        head_lr: float = 1.0  # times the encoder's
        cropping: Cropping = field(default_factory=Cropping)

    def __init__(self, cfg: Config, encoder: Backbone) -> None:
        super().__init__()
        if not cfg.classes:
            raise ValueError("setting system.classes is empty; they come from the data")
        self.cfg = cfg
        self.encoder = encoder
        if cfg.dilated:
            _staged(encoder, f"dilated={cfg.dilated}", "set it to 0").dilate(cfg.dilated)
        if cfg.frozen:
            norm.freeze(encoder).requires_grad_(False)
        self.taps = _taps(cfg, encoder)
        self.head = _head(cfg, encoder, self.taps)

    def forward(self, batch: Segments, clock: Clock) -> Step:
        labels = torch.stack(batch.labels).long()  # [B, H, W]
        logits = self._logits(batch.images)
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        pixels = dist.mean((labels != IGNORED).sum().float())  # a mean over those of all ranks
        return Step(loss / pixels.clamp(min=1))

    @torch.no_grad()
    def predict(self, inputs: Segments) -> list[UInt8[Tensor, "h w"]]:
        """The class of every stored pixel; the caller has put the system into evaluation mode."""
        seen = []
        for logits, stored in zip(self._logits(inputs.images), inputs.stored, strict=True):
            seen.append(_resized(logits[None], stored)[0].argmax(0).to(torch.uint8))
        return seen

    def groups(self) -> Iterable[Group]:
        trained = [(n, p) for n, p in self.named_parameters() if p.requires_grad]
        yield Group([(n, p) for n, p in trained if n.startswith("encoder.")])
        rest = [(n, p) for n, p in trained if not n.startswith("encoder.")]
        yield Group(rest, lr_scale=self.cfg.head_lr)

    def _logits(self, images: Float[Tensor, "b c H W"]) -> Float[Tensor, "b k H W"]:
        if self.cfg.frozen:
            self.encoder.eval()  # no stochastic depth either
        height, width = images.shape[-2:]
        multiple = self.taps.multiple
        x = F.pad(images, (0, -width % multiple, 0, -height % multiple))
        logits = self.head(self.taps(self.encoder, x))
        return _resized(logits, (x.shape[2], x.shape[3]))[..., :height, :width]


class End(nn.Module):
    """The last map."""

    def __init__(self, encoder: Backbone) -> None:
        super().__init__()
        self.widths, self.multiple = (encoder.dim,), encoder.stride

    def forward(self, encoder: Backbone, x: Float[Tensor, "b c H W"]) -> list[Tensor]:
        return [encoder.features(x)]


class Stages(nn.Module):
    """The maps after each of the last stages, finest first."""

    def __init__(self, encoder: StagedBackbone, last: int) -> None:
        super().__init__()
        self.first = len(encoder.widths) - last
        self.widths, self.multiple = encoder.widths[self.first :], encoder.strides[-1]
        self.strides = encoder.strides[self.first :]

    def forward(self, encoder: StagedBackbone, x: Float[Tensor, "b c H W"]) -> list[Tensor]:
        y, maps = encoder.stem(x), []
        for i in range(len(encoder.widths)):
            y = encoder.stage(y, i)
            maps.append(y)
        return maps[self.first :]


class Blocks(nn.Module):
    """The patches of a plain ViT after some of its blocks, through its final norm or not."""

    def __init__(self, encoder: PatchBackbone, blocks: tuple[int, ...], normed: bool) -> None:
        super().__init__()
        self.blocks, self.normed = blocks, normed  # blocks from 0, rising
        self.widths, self.multiple = (encoder.dim,) * len(blocks), encoder.patch

    def forward(self, encoder: PatchBackbone, x: Float[Tensor, "b c H W"]) -> list[Tensor]:
        size = tuple(side // encoder.patch for side in x.shape[-2:])
        first = self.blocks[0]
        found = encoder.layers(x, encoder.depth - first, normed=self.normed)
        return [found[i - first][:, encoder.prefix :].mT.unflatten(2, size) for i in self.blocks]


class Scales(nn.Module):
    """Four depths of a plain ViT, at 4, 2, 1 and 1/2 times the size of its map."""

    def __init__(self, encoder: PatchBackbone) -> None:
        super().__init__()
        d, depth = encoder.dim, encoder.depth
        self.blocks = Blocks(encoder, tuple(depth * k // 6 - 1 for k in (2, 3, 4, 6)), False)
        self.widths, self.multiple = self.blocks.widths, 2 * encoder.patch
        self.strides = (1, 2, 4, 8)  # in those of the finest
        four = [
            *(nn.ConvTranspose2d(d, d, 2, 2), nn.BatchNorm2d(d), nn.GELU()),
            nn.ConvTranspose2d(d, d, 2, 2),
        ]
        two = nn.ConvTranspose2d(d, d, 2, 2)
        self.scales = nn.ModuleList([nn.Sequential(*four), two, nn.Identity(), nn.MaxPool2d(2)])

    def forward(self, encoder: PatchBackbone, x: Float[Tensor, "b c H W"]) -> list[Tensor]:
        maps = self.blocks(encoder, x)
        return [scale(y) for scale, y in zip(self.scales, maps, strict=True)]


Taps = End | Stages | Blocks | Scales


class Joined(nn.Module):
    """Layers over all maps at the size of the finest."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, maps: list[Tensor]) -> Float[Tensor, "b k h w"]:
        size = (maps[0].shape[2], maps[0].shape[3])
        return self.layers(torch.cat([_resized(y, size) for y in maps], 1))


class Uper(nn.Module):
    """Context of the last map at four sizes, carried down a pyramid whose levels are joined."""

    def __init__(self, cfg: Segment.Config, widths: tuple[int, ...]) -> None:
        super().__init__()
        w = cfg.width
        self.context = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(cells), conv(widths[-1], w, 1)) for cells in POOLED
        )
        self.top = conv(widths[-1] + len(POOLED) * w, w, 3)
        self.lateral = nn.ModuleList(conv(width, w, 1) for width in widths[:-1])
        self.smooth = nn.ModuleList(conv(w, w, 3) for _ in widths[:-1])
        self.joined = Joined(conv(len(widths) * w, w, 3), *_named(cfg, w))

    def forward(self, maps: list[Tensor]) -> Float[Tensor, "b k h w"]:
        size = (maps[-1].shape[2], maps[-1].shape[3])
        pooled = [_resized(branch(maps[-1]), size) for branch in self.context]
        y = self.top(torch.cat([maps[-1], *pooled], 1))
        levels = [y]  # coarsest first
        for lateral, smooth, x in zip(
            reversed(self.lateral), reversed(self.smooth), reversed(maps[:-1]), strict=True
        ):
            y = lateral(x) + _resized(y, (x.shape[2], x.shape[3]))
            levels.append(smooth(y))
        return self.joined(levels[::-1])


class Exchanged(nn.Module):
    """Levels at one width, each with what it finds in itself and all others, then joined."""

    def __init__(
        self, cfg: Segment.Config, widths: tuple[int, ...], strides: tuple[int, ...]
    ) -> None:
        super().__init__()
        w = cfg.width
        self.lateral = nn.ModuleList(conv(width, w, 1) for width in widths)
        self.fpt = FeaturePyramidTransformer(w, strides, square=SQUARE)
        self.joined = Joined(conv(len(widths) * w, w, 3), *_named(cfg, w))

    def forward(self, maps: list[Tensor]) -> Float[Tensor, "b k h w"]:
        return self.joined(self.fpt([f(x) for f, x in zip(self.lateral, maps, strict=True)]))


class Attended(nn.Module):
    """Attention between convolutions, and the input again behind them."""

    def __init__(self, cfg: Segment.Config, channels: int) -> None:
        super().__init__()
        w = cfg.width
        self.first = conv(channels, w, 3, cfg.dilation)
        self.block = BLOCKS[cfg.context](w)
        self.rest = nn.Sequential(*(conv(w, w, 3, cfg.dilation) for _ in range(cfg.convs - 1)))
        self.last = conv(channels + w, w, 3)

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b e h w"]:
        return self.last(torch.cat([x, self.rest(self.block(self.first(x)))], 1))


def conv(channels: int, width: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    """Convolution that keeps the size, batch norm, ReLU."""
    pad = kernel // 2 * dilation
    layer = nn.Conv2d(channels, width, kernel, 1, pad, dilation, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def _named(cfg: Segment.Config, width: int) -> list[nn.Module]:
    """From channels to classes; in the beginning all are about as likely."""
    last = nn.Conv2d(width, len(cfg.classes), 1)
    nn.init.normal_(last.weight, std=0.01)
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    return [nn.Dropout2d(cfg.dropout), last] if cfg.dropout else [last]


def _head(cfg: Segment.Config, encoder: Backbone, taps: Taps) -> nn.Module:
    channels, w = sum(taps.widths), cfg.width
    _check(cfg)
    match cfg.head:
        case "linear":
            return Joined(nn.BatchNorm2d(channels), *_named(cfg, channels))
        case "fcn" if cfg.context != "none":
            return Joined(Attended(cfg, channels), *_named(cfg, w))
        case "fcn":
            sizes = (channels, *(w for _ in range(cfg.convs)))
            layers = (conv(a, w, 3, cfg.dilation) for a in sizes[:-1])
            return Joined(*layers, *_named(cfg, sizes[-1]))
        case "uper":
            return Uper(cfg, taps.widths)
        case "fpt":
            assert isinstance(taps, Stages | Scales)
            return Exchanged(cfg, taps.widths, taps.strides)
        case "setr":
            assert isinstance(encoder, PatchBackbone)
            doublings = encoder.patch.bit_length() - 1
            sizes = (channels, *(w for _ in range(doublings)))
            up = nn.Upsample(scale_factor=2, mode="bilinear")
            layers = (layer for a in sizes[:-1] for layer in (conv(a, w, 3), up))
            return Joined(*layers, *_named(cfg, w))


def _check(cfg: Segment.Config) -> None:
    if cfg.context != "none" and (cfg.head != "fcn" or cfg.convs < 1):
        raise ValueError(
            f"setting system.context={cfg.context} stands between the convolutions of fcn; "
            "set system.head=fcn and system.convs to 1 or more, or leave it at none"
        )
    if (cfg.context != "none" or cfg.head == "fpt") and cfg.width % 2:
        raise ValueError(f"setting system.width: attention splits {cfg.width} in two; make it even")


def _taps(cfg: Segment.Config, encoder: Backbone) -> Taps:
    if cfg.head in ("uper", "fpt", "setr") and cfg.last != 1:
        raise ValueError(f"setting system.last={cfg.last} is for linear and fcn; leave it at 1")
    if cfg.head == "setr" and not isinstance(encoder, PatchBackbone):
        raise ValueError(
            "setting system.head=setr needs a plain ViT, such as vit_base_patch16_224; "
            "choose fcn or uper for others"
        )
    if isinstance(encoder, PatchBackbone):
        if cfg.head in ("uper", "fpt"):
            return Scales(encoder)
        if not 1 <= cfg.last <= encoder.depth:
            raise ValueError(f"setting system.last={cfg.last}: choose 1 to {encoder.depth} blocks")
        blocks = tuple(range(encoder.depth - cfg.last, encoder.depth))
        return End(encoder) if cfg.last == 1 else Blocks(encoder, blocks, True)
    if cfg.last == 1 and cfg.head not in ("uper", "fpt"):
        return End(encoder)
    if cfg.head in ("uper", "fpt"):
        staged = _staged(encoder, f"head={cfg.head}", "choose fcn")
    else:
        staged = _staged(encoder, f"last={cfg.last}", "set it to 1")
    stages = len(staged.widths)
    if not 1 <= cfg.last <= stages:
        raise ValueError(f"setting system.last={cfg.last}: choose 1 to {stages} stages")
    return Stages(staged, stages if cfg.head in ("uper", "fpt") else cfg.last)


def _staged(encoder: Backbone, setting: str, remedy: str) -> StagedBackbone:
    if not isinstance(encoder, StagedBackbone):
        raise ValueError(
            f"setting system.{setting} needs a backbone in stages, such as resnet50; {remedy}"
        )
    return encoder


def _resized(y: Float[Tensor, "b d h w"], size: tuple[int, int]) -> Float[Tensor, "b d H W"]:
    return y if y.shape[2:] == size else F.interpolate(y, size, mode="bilinear")


R50 = BackboneConfig(name="resnet50")
DROPS = Schedule(shape="steps", drops=(0.7, 0.9))
MOCO = "arXiv:1911.05722, appendix"
RECIPES = {
    "small": SystemRecipe(
        system=Segment.Config(
            dilated=1,
            width=64,
            convs=1,
            dilation=2,
            cropping=Cropping(short=180, size=(160, 160), jitter=0.5),
        ),
        backbone=BackboneConfig(name="resnet10_w32", image_size=64, stem="paper"),
        optim=Optim(lr=0.1, lr_rule="linear-16", schedule=Schedule(shape="poly", warmup_steps=20)),
        epochs=20,
        batch_size=16,
        source="ours: minutes on two cores",
    ),
    "small-linear": SystemRecipe(
        system=Segment.Config(
            head="linear", frozen=True, last=4, cropping=Cropping(short=180, size=(160, 160))
        ),
        backbone=BackboneConfig(name="resnet10_w32", image_size=64, stem="paper"),
        optim=Optim(
            name="adamw",
            lr=0.01,
            lr_rule="none",
            schedule=Schedule(shape="poly", power=1.0, warmup_steps=20),
        ),
        epochs=10,
        batch_size=16,
        source="ours: a probe of all stages, minutes on two cores",
    ),
    "voc-fcn": SystemRecipe(
        system=Segment.Config(dilated=1, cropping=Cropping(size=(513, 513))),
        backbone=R50,
        optim=Optim(lr=0.003, lr_rule="linear-16", schedule=DROPS),
        steps=30_000,
        batch_size=16,
        source=f"{MOCO}: MoCo 72.5, supervised 74.4 mIoU on VOC 2012 val (from memory)",
    ),
    "cityscapes-fcn": SystemRecipe(
        system=Segment.Config(dilated=1, cropping=Cropping(size=(769, 769))),
        backbone=R50,
        optim=Optim(lr=0.01, lr_rule="linear-16", schedule=DROPS),
        steps=90_000,
        batch_size=16,
        source=f"{MOCO}: MoCo 75.3, supervised 74.6 mIoU on Cityscapes val (from memory)",
    ),
    "cityscapes-setr": SystemRecipe(
        system=Segment.Config(head="setr", head_lr=10.0, cropping=Cropping(size=(768, 768))),
        backbone=BackboneConfig(name="vit_small_patch16_224"),
        optim=Optim(
            lr=0.01,
            lr_rule="none",
            weight_decay=0.0,
            schedule=Schedule(shape="poly", final_lr=1e-4),
        ),
        steps=80_000,
        batch_size=8,
        source="arXiv:2012.15840, as mmsegmentation trains SETR-PUP; MST: 74.04 mIoU with DeiT-S",
    ),
    "ade-uper": SystemRecipe(
        system=Segment.Config(
            head="uper",
            width=512,
            dropout=0.1,
            cropping=Cropping(short=512, jitter=0.5, strength=(0.125, 0.5, 0.5, 0.05)),
        ),
        backbone=R50,
        optim=Optim(
            lr=0.01,
            lr_rule="linear-16",
            weight_decay=5e-4,
            schedule=Schedule(shape="poly", final_lr=1e-4),
        ),
        steps=160_000,
        batch_size=16,
        source="mmsegmentation, UPerNet R-50 512x512 160k: 42.05 mIoU with an auxiliary head",
    ),
    "ade-linear": SystemRecipe(
        system=Segment.Config(
            head="linear",
            frozen=True,
            cropping=Cropping(short=512, jitter=0.5, strength=(0.125, 0.5, 0.5, 0.05)),
        ),
        backbone=BackboneConfig(name="vit_small_patch14_dinov2", image_size=518),
        optim=Optim(
            name="adamw",
            lr=0.001,
            lr_rule="none",
            schedule=Schedule(shape="poly", power=1.0, warmup_steps=1500),
        ),
        steps=40_000,
        batch_size=16,
        source="arXiv:2304.07193, the linear probe of ADE20K",
    ),
}
