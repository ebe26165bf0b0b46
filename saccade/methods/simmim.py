"""SimMIM: rebuild the pixels of hidden squares with one linear layer.

Xie et al. 2022, arXiv:2111.09886. A share of the cells of a coarse grid is hidden, whatever the
size of the encoder's patches: their embeddings become one learned token, before positions. The
encoder sees all cells; a linear layer turns each place of its last map into the s x s x c pixels
under it, s the stride of that map. With M the hidden pixels of the batch,
    loss = sum over M of |guess - x| / (c |M|),    x the normalized picture.

Any network whose first map is made of patches that do not overlap: ViT, Swin, ConvNeXt. The paper's
ViT knows distances only (`beit_base_shared_patch16_224`). Weight decay is the official code's: not
on the mask token, CLS and absolute positions, but on tables of relative positions. Its list of
exceptions has these tables under a name that never matches, so that they decay in pretraining and
not in fine-tuning. Warm-up starts at 0 instead of a small rate. Stochastic depth grows with depth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..core import Backbone, Clock, Group, Method, PatchBackbone, StagedBackbone, Step, View, Views
from ..nn.masking import hide, random_order
from ..nn.patches import drawn, enlarged
from ..recipe import CIFAR_MEAN, CIFAR_STD, BackboneConfig, Normalize, Optim, Recipe, Schedule

SPARED = ("mask_token", "cls_token", "pos_embed")  # endings of names that do not decay


class SimMIM(Method[Backbone]):
    additive = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        mask_ratio: float = 0.6  # of the cells, rounded up
        mask_size: int = 32  # pixels of a cell's side
        views: tuple[View, ...] = (
            View(size=192, crop=(0.67, 1.0), jitter=0.0, grayscale=0.0, blur=0.0),
        )

    def __init__(self, cfg: Config, encoder: Backbone) -> None:
        super().__init__()
        if (n := sum(v.count for v in cfg.views)) != 1:
            raise ValueError(f"setting method.views: SimMIM sees 1 view of a picture, not {n}")
        self.cfg = cfg
        self.encoder = encoder
        self.patch, width = patches(encoder)
        side, cell = cfg.views[0].size, cfg.mask_size
        if cell % self.patch or side % cell or side % encoder.stride:
            raise ValueError(
                f"setting method.mask_size: {cell} pixels must be a multiple of the patch, "
                f"{self.patch}, and divide method.views.0.size={side}, a multiple of "
                f"{encoder.stride}"
            )
        self.cells = (side // cell) ** 2
        self.hidden = math.ceil(cfg.mask_ratio * self.cells)
        if not 0 < self.hidden <= self.cells:
            raise ValueError(
                f"setting method.mask_ratio: {cfg.mask_ratio} hides {self.hidden} of {self.cells} "
                "cells; choose a share above 0, 1 at most"
            )
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        self.pixels = nn.Conv2d(encoder.dim, encoder.stride**2 * encoder.channels, 1)

    def forward(self, batch: Views, clock: Clock) -> Step:
        image = batch.images[0]
        cells = self.choose(batch.key)  # [B, h, w]
        y = self.encode(image, cells)  # [B, D, h, w]
        hidden = enlarged(cells, self.cfg.mask_size)[:, None]  # [B, 1, H, W]
        count = hidden.sum() * image.shape[1]
        error = (self.rebuild(y) - image.float()).abs()
        loss = (error * hidden).sum() / count
        gray = (image.float().abs() * hidden).sum() / count  # the loss of guessing 0
        return Step(loss, {"explained": 1 - loss.detach() / gray}, y.mean((2, 3)).detach())

    def choose(self, key: Int[Tensor, "b"]) -> Bool[Tensor, "b h w"]:
        """The hidden cells, as many in every picture."""
        side = math.isqrt(self.cells)
        place = random_order(key, self.cells).argsort(1)
        return (place < self.hidden).unflatten(1, (side, side))

    def encode(
        self, x: Float[Tensor, "b c H W"], cells: Bool[Tensor, "b i j"]
    ) -> Float[Tensor, "b d h w"]:
        """The last map of a picture whose hidden cells are the mask token."""
        net, mask = self.encoder, enlarged(cells, self.cfg.mask_size // self.patch)
        if isinstance(net, PatchBackbone):
            positions = net.positions(x.shape[2], x.shape[3])
            tokens = hide(net.tokens(x), positions, mask.flatten(1), self.mask_token)
            return net.encode(tokens)[:, net.prefix :].mT.unflatten(2, mask.shape[1:])
        assert isinstance(net, StagedBackbone)
        y = net.stem(x)
        return net.encode(torch.where(mask[:, None], self.mask_token.to(y.dtype)[:, None, None], y))

    def rebuild(self, y: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c H W"]:
        return F.pixel_shuffle(self.pixels(y), self.encoder.stride).float()

    def groups(self) -> Iterable[Group]:
        """Tables of relative positions decay, mask token, CLS and absolute positions do not."""
        named = [(n, p) for n, p in self.named_parameters() if p.requires_grad]
        yield Group([(n, p) for n, p in named if not n.endswith(SPARED)])
        yield Group([(n, p) for n, p in named if n.endswith(SPARED)], decay_scale=0.0)

    def draw(self, batch: Views) -> dict[str, Float[Tensor, "b c h w"]]:
        image = batch.images[0]
        cells = self.choose(batch.key)
        guess = self.rebuild(self.encode(image, cells))
        return drawn(image, guess, enlarged(cells, self.cfg.mask_size))


def patches(encoder: Backbone) -> tuple[int, int]:
    """Pixels of a patch, and the width of its embedding."""
    if isinstance(encoder, PatchBackbone):
        return encoder.patch, encoder.dim
    if isinstance(encoder, StagedBackbone) and encoder.patch:
        return encoder.patch, encoder.widths[0]
    raise ValueError(
        "setting backbone: SimMIM hides patches, and this network's first map looks over their "
        "edges; choose a ViT or a Swin, such as swin_tiny_patch4_window7_224"
    )


def crops(size: int) -> tuple[View, ...]:
    return (View(size=size, crop=(0.67, 1.0), jitter=0.0, grayscale=0.0, blur=0.0),)


PAPER = Optim(
    name="adamw",
    lr=1e-4,
    lr_rule="linear-512",
    weight_decay=0.05,
    decay_1d=False,
    clip=5.0,
    schedule=Schedule(warmup_epochs=10.0, shape="steps", drops=(0.875,)),
)
OURS = Optim(
    name="adamw",
    lr=1e-3,
    lr_rule="none",
    weight_decay=0.05,
    decay_1d=False,
    clip=5.0,
    schedule=Schedule(warmup_epochs=10.0),
)
RECIPES = {
    "demo": Recipe(
        method=SimMIM.Config(mask_size=16, views=crops(64)),
        backbone=BackboneConfig(name="vit_nano_patch8_64", image_size=64),
        optim=OURS,
        epochs=60,
        batch_size=128,
        source="ours: cells of 2 x 2 patches; not tuned",
    ),
    "small": Recipe(
        method=SimMIM.Config(mask_size=8, views=crops(32)),
        backbone=BackboneConfig(name="vit_tiny_patch4_32", image_size=32),
        optim=OURS,
        epochs=400,
        batch_size=256,
        normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD),
        source="ours, for CIFAR-10: cells of 2 x 2 patches; judge by fine-tuning; not tuned",
    ),
    "paper": Recipe(
        method=SimMIM.Config(),
        backbone=BackboneConfig(name="swin_base_patch4_window6_192", image_size=192),
        optim=PAPER,
        epochs=800,
        batch_size=2048,
        source="arXiv:2111.09886 and official code, Swin-B: 84.0 % fine-tuned on ImageNet",
    ),
    "vit": Recipe(
        method=SimMIM.Config(views=crops(224)),
        backbone=BackboneConfig(name="beit_base_shared_patch16_224", drop_path=0.1),
        optim=PAPER,
        epochs=800,
        batch_size=2048,
        source="official code, ViT-B: 83.8 % fine-tuned on ImageNet",
    ),
}
