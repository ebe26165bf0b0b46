"""MLM: BERT's task on patches and nothing else, the control of other papers.

"Pure masked language model" of Li et al. 2021 (MST, arXiv:2106.05656, table 6: about 40 % linear
with DeiT-S after 100 epochs, 61 % tuned) and of Dosovitskiy et al. 2021 (ViT, arXiv:2010.11929,
appendix). Each patch is chosen with chance `mask_ratio`. The embedding of a chosen patch becomes
[MASK]; that of another patch of the picture in a share `swapped` of cases, and stays in a share
`unchanged` (BERT: .1, .1). Positions stay. The encoder sees all places; one linear layer predicts
the target of each chosen patch i. With M the chosen patches of the batch,
    loss = mean over M of loss_i,    x_i the pixels of the patch:
`pixels` mean square of guess - x_i; `l1` mean |guess - x_i|; `normalized` the square, with x_i at
mean 0 and unit unbiased variance; `codes` cross-entropy of the patch's code by `tokenizer`, of
which `color` is the mean color in 3 bits for each channel, as in ViT.

MST's article does not name its target, so none is its own; `pixels` is our default. ViT's settings
are ratio .5, swapped and unchanged .1, codes of color; where its other patch comes from is not
known to us, ours comes from the same picture. `masking=blocks` is BEiT's sampler, of `mask_ratio`
at most: with `codes` of its tokenizer it is BEiT's task, as `l1` is SimMIM's with cells of one
patch and a count instead of a chance. Codes of a palette found by k-means, as iGPT's, are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .. import tokenizers
from ..core import Clock, Method, PatchBackbone, Step, View, Views
from ..nn.dist import mean
from ..nn.functional import take
from ..nn.masking import block_masks
from ..nn.patches import (
    drawn,
    enlarged,
    like_patches,
    normalize_patches,
    patchify,
    unpatchify,
)
from ..nn.random import integers, uniform
from ..recipe import CIFAR_MEAN, CIFAR_STD, BackboneConfig, Normalize, Optim, Recipe, Schedule
from ..tokenizers.pictures import codes_of, pictures


class MLM(Method[PatchBackbone]):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        mask_ratio: float = 0.15  # chance of a patch; of blocks, the largest share
        masking: Literal["random", "blocks"] = "random"
        swapped: float = 0.0  # share of the chosen patches that show another patch
        unchanged: float = 0.0  # and that show themselves
        target: Literal["pixels", "l1", "normalized", "codes"] = "pixels"
        tokenizer: str = "color"  # of codes: color, a tokenizer's run, or a file
        views: tuple[View, ...] = (View(jitter=0.0, grayscale=0.0, blur=0.0),)

    def __init__(self, cfg: Config, encoder: PatchBackbone) -> None:
        super().__init__()
        if (n := sum(v.count for v in cfg.views)) != 1:
            raise ValueError(f"setting method.views: MLM sees 1 view of a picture, not {n}")
        if not 0 < cfg.mask_ratio <= 1:
            raise ValueError(
                f"setting method.mask_ratio: {cfg.mask_ratio} is no chance; choose .15 or .5"
            )
        if min(cfg.swapped, cfg.unchanged) < 0 or cfg.swapped + cfg.unchanged >= 1:
            raise ValueError(
                f"setting method.swapped: {cfg.swapped} and method.unchanged={cfg.unchanged} leave "
                "no patch to mask; choose shares such as .1 and .1"
            )
        coded = cfg.target == "codes"
        if not coded and cfg.tokenizer != MLM.Config.tokenizer:
            raise ValueError(
                f"setting method.tokenizer: {cfg.tokenizer} is not read for method.target="
                f"{cfg.target}; set method.target=codes, or leave it out"
            )
        self.cfg = cfg
        self.encoder = encoder
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(encoder.dim), std=0.02))
        self.tokenizer = tokenizers.load(cfg.tokenizer, encoder.channels) if coded else None
        pixels = encoder.patch**2 * encoder.channels
        self.head = nn.Linear(encoder.dim, self.tokenizer.codes if self.tokenizer else pixels)

    def forward(self, batch: Views, clock: Clock) -> Step:
        image = batch.images[0]
        mask = self.choose(batch.key, self.grid(image))  # [B, N]
        y = self.encode(image, mask, batch.key)  # [B, N, D]
        each = self.losses(self.head(y).float(), batch)  # [B, N]
        total = mean(mask.sum().float()).clamp_min(1)  # a batch may have none
        loss = each.masked_fill(~mask, 0.0).sum() / total
        return Step(loss, {"masked": mask.float().mean()}, y.mean(1).detach())

    def choose(self, key: Int[Tensor, "b"], grid: tuple[int, int]) -> Bool[Tensor, "b n"]:
        """The patches to predict."""
        n, ratio = math.prod(grid), self.cfg.mask_ratio
        if self.cfg.masking == "random":
            return uniform(key, n, "mask") < ratio
        count = torch.full(key.shape, float(int(ratio * n)), device=key.device)
        return block_masks(key, count, grid, "blocks")

    def encode(
        self, x: Float[Tensor, "b c H W"], mask: Bool[Tensor, "b n"], key: Int[Tensor, "b"]
    ) -> Float[Tensor, "b n d"]:
        """Patches after the encoder, which sees chosen ones as [MASK], another, or themselves."""
        net, n = self.encoder, mask.shape[1]
        positions = net.positions(x.shape[2], x.shape[3])
        tokens = net.tokens(x)
        fate = uniform(key, n, "fate")
        swapped = mask & (fate < self.cfg.swapped)
        other = take(tokens - positions, integers(key, n, n, "other")) + positions
        hidden = mask & (fate >= self.cfg.swapped + self.cfg.unchanged)
        token = (self.mask_token + positions).to(tokens.dtype)
        tokens = torch.where(swapped[..., None], other, tokens)
        return net.encode(torch.where(hidden[..., None], token, tokens))[:, net.prefix :]

    def losses(self, guess: Float[Tensor, "b n o"], batch: Views) -> Float[Tensor, "b n"]:
        """Of every patch, chosen or not."""
        image = batch.images[0].float()
        if self.tokenizer is not None:
            codes = codes_of(self.tokenizer, batch, self.grid(image))
            return F.cross_entropy(guess.mT, codes, reduction="none")
        patches = patchify(image, self.encoder.patch)
        if self.cfg.target == "normalized":
            patches = normalize_patches(patches)
        error = guess - patches
        return (error.abs() if self.cfg.target == "l1" else error.square()).mean(-1)

    def grid(self, x: Float[Tensor, "b c H W"]) -> tuple[int, int]:
        return x.shape[2] // self.encoder.patch, x.shape[3] // self.encoder.patch

    def draw(self, batch: Views) -> dict[str, Float[Tensor, "b c h w"]]:
        """Mean and contrast of patches are the true ones where the target is normalized."""
        image, patch = batch.images[0], self.encoder.patch
        grid = self.grid(image)
        mask = self.choose(batch.key, grid)
        guess = self.head(self.encode(image, mask, batch.key)).float()
        if self.tokenizer is not None:
            codes = codes_of(self.tokenizer, batch, grid)
            return pictures(self.tokenizer, batch, grid, codes, guess.argmax(-1), mask)
        if self.cfg.target == "normalized":
            guess = like_patches(guess, patchify(image.float(), patch))
        return drawn(
            image, unpatchify(guess, patch, grid), enlarged(mask.unflatten(1, grid), patch)
        )


def crops(size: int) -> tuple[View, ...]:
    return (View(size=size, jitter=0.0, grayscale=0.0, blur=0.0),)


def optim(lr: float, warmup_epochs: float) -> Optim:
    return Optim(
        name="adamw",
        lr=lr,
        lr_rule="linear-512",
        weight_decay=0.05,
        decay_1d=False,
        schedule=Schedule(warmup_epochs=warmup_epochs),
    )


RECIPES = {
    "demo": Recipe(
        method=MLM.Config(views=crops(64)),
        backbone=BackboneConfig(name="vit_nano_patch8_64", image_size=64),
        optim=optim(1e-3, 10.0),
        epochs=60,
        batch_size=128,
        source="ours, not tuned",
    ),
    "small": Recipe(
        method=MLM.Config(views=crops(32)),
        backbone=BackboneConfig(name="vit_tiny_patch4_32", image_size=32),
        optim=optim(1e-3, 20.0),
        epochs=400,
        batch_size=256,
        normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD),
        source="ours, for CIFAR-10: a control, not tuned",
    ),
    "paper": Recipe(
        method=MLM.Config(),
        backbone=BackboneConfig(name="deit_small_patch16_224"),
        optim=optim(5e-4, 5.0),
        epochs=100,
        batch_size=1024,
        source="arXiv:2106.05656, table 6, DeiT-S: about 40 % linear, 61 % tuned; rates are DeiT's",
    ),
    "vit": Recipe(
        method=MLM.Config(mask_ratio=0.5, swapped=0.1, unchanged=0.1, target="codes"),
        backbone=BackboneConfig(name="vit_base_patch16_224"),
        optim=Optim(
            name="adamw",
            lr=2e-4,
            lr_rule="none",
            weight_decay=0.1,
            schedule=Schedule(warmup_steps=10_000),
        ),
        epochs=100,
        batch_size=4096,
        source="arXiv:2010.11929, appendix, on other data: 79.9 % fine-tuned; epochs are ours",
    ),
}
