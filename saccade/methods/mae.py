"""MAE: encode a quarter of the patches, rebuild the pixels of the rest.

He et al. 2022, arXiv:2111.06377. With x_i the p*p*c pixels of patch i and M the hidden patches,
    loss = mean over i in M of mean_d (decoder(encoder(x_visible))_i - x_i)_d^2.
`norm_pix_loss` rebuilds (x_i - mean) / sqrt(var + 1e-6) instead, over all values of the patch, with
the unbiased variance; VideoMAE norms each channel of it. Pixels stand as row, column, channel.
Positions of encoder and decoder are fixed sines and cosines, column first as in the official code.
For pictures of another size tables are resized antialiased, by timm; officially by plain cubics.
Until a file is read, transformers' ViTMAE has zeros for positions and tokens; its eps is 1e-12.
Only hidden patches are decoded to pixels: the loss reads no others. The encoder is fine-tuned or
probed afterwards; nearest neighbors stay poor by design.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ..core import Clock, Method, PatchBackbone, Step, View, Views
from ..nn.functional import take
from ..nn.masking import kept_patches, random_order
from ..nn.patches import (
    drawn,
    enlarged,
    like_patches,
    normalize_patches,
    patchify,
    unpatchify,
)
from ..nn.positions import check_width, sincos_2d
from ..recipe import CIFAR_MEAN, CIFAR_STD, BackboneConfig, Normalize, Optim, Recipe, Schedule


class Decoder(nn.Module):
    """Encoded visible patches and their order in; predicted pixels of the hidden patches out."""

    positions: Tensor  # [N, D]

    def __init__(self, encoder: PatchBackbone, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.prefix = encoder.prefix
        self.embed = nn.Linear(encoder.dim, dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim).normal_(std=0.02))
        self.register_buffer("positions", sincos_2d(encoder.grid, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pixels = nn.Linear(dim, encoder.patch**2 * encoder.channels)

    def forward(self, seen: Tensor, order: Tensor) -> Tensor:
        seen = self.embed(seen)  # [B, prefix + kept, D]
        prefix, patches = seen.split([self.prefix, seen.shape[1] - self.prefix], 1)
        kept, n = patches.shape[1], order.shape[1]
        holes = self.mask_token.to(seen.dtype).expand(len(seen), n - kept, -1)
        full = take(torch.cat([patches, holes], 1), order.argsort(1))  # [B, N, D] raster order
        x = torch.cat([prefix, full + self.positions.to(seen.dtype)], 1)
        x = self.blocks(x)[:, self.prefix :]
        return self.pixels(self.norm(take(x, order[:, kept:])))  # [B, N - kept, p p c]


class MAE(Method[PatchBackbone]):
    additive = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        mask_ratio: float = 0.75
        norm_pix_loss: bool = False
        decoder_dim: int = 512
        decoder_depth: int = 8
        decoder_heads: int = 16
        views: tuple[View, ...] = (
            View(crop=(0.2, 1.0), interpolation="bicubic", jitter=0.0, grayscale=0.0, blur=0.0),
        )

    def __init__(self, cfg: Config, encoder: PatchBackbone) -> None:
        super().__init__()
        size, count = cfg.views[0].size, sum(v.count for v in cfg.views)
        if count != 1:
            raise ValueError(f"setting method.views: MAE sees 1 view of a picture, not {count}")
        if size != encoder.image_size:
            raise ValueError(
                f"setting method.views.0.size: {size} pixels, but the positions of the backbone are"
                f" fixed for backbone.image_size={encoder.image_size}; set both alike"
            )
        check_width("decoder", cfg.decoder_dim, cfg.decoder_heads)
        self.cfg = cfg
        self.kept_patches = kept_patches(math.prod(encoder.grid), cfg.mask_ratio)
        self.encoder = encoder
        self.decoder = Decoder(encoder, cfg.decoder_dim, cfg.decoder_depth, cfg.decoder_heads)
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """The official start: a plain transformer's only convolution is its patch embedding."""
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.xavier_uniform_(m.weight)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)
            elif isinstance(m, nn.Conv2d):
                nn.init.xavier_uniform_(m.weight.view(len(m.weight), -1))
        for name, p in self.encoder.named_parameters():
            if name.endswith("cls_token"):
                nn.init.normal_(p, std=0.02)
        self.encoder.fix_positions(sincos_2d(self.encoder.grid, self.encoder.dim))

    def forward(self, batch: Views, clock: Clock) -> Step:
        (image,) = batch.images
        order = random_order(batch.key, math.prod(self.encoder.grid))  # [B, N]
        seen, guess = self.rebuild(image, order)
        target = take(patchify(image.float(), self.encoder.patch), order[:, self.kept_patches :])
        if self.cfg.norm_pix_loss:
            target = normalize_patches(target)
        loss = (guess - target).square().mean()
        explained = 1 - loss.detach() / target.var(correction=0)
        summary = seen[:, 0] if self.encoder.prefix else seen.mean(1)
        return Step(loss, {"explained": explained}, summary.detach())

    def rebuild(
        self, image: Float[Tensor, "b c H W"], order: Int[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b p d"], Float[Tensor, "b m q"]]:
        """Encoded visible patches, the first of the order, and predictions for the others."""
        tokens = self.encoder.tokens(image)  # [B, N, D]
        seen = self.encoder.encode(take(tokens, order[:, : self.kept_patches]))
        return seen, self.decoder(seen, order).float()

    def draw(self, batch: Views) -> dict[str, Float[Tensor, "b c h w"]]:
        """With `norm_pix_loss` nothing predicts a patch's mean and contrast: they are the true."""
        (image,) = batch.images
        patch, grid = self.encoder.patch, self.encoder.grid
        pixels = patchify(image.float(), patch)  # [B, N, p p c]
        order = random_order(batch.key, pixels.shape[1])
        places = order[:, self.kept_patches :]
        _, guess = self.rebuild(image, order)
        if self.cfg.norm_pix_loss:
            guess = like_patches(guess, take(pixels, places))
        full = pixels.scatter(1, places[..., None].expand_as(guess), guess)
        hidden = torch.zeros_like(order, dtype=torch.bool).scatter(1, places, True)
        at = enlarged(hidden.unflatten(1, grid), patch)
        return drawn(image, unpatchify(full, patch, grid), at)


RECIPES = {
    "demo": Recipe(
        method=MAE.Config(
            norm_pix_loss=True,
            decoder_dim=128,
            decoder_depth=2,
            decoder_heads=4,
            views=(
                View(
                    size=64,
                    crop=(0.2, 1.0),
                    interpolation="bicubic",
                    jitter=0.0,
                    grayscale=0.0,
                    blur=0.0,
                ),
            ),
        ),
        backbone=BackboneConfig(name="vit_nano_patch8_64", image_size=64),
        optim=Optim(
            name="adamw",
            lr=1e-3,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            decay_1d=False,
            schedule=Schedule(warmup_epochs=10.0),
        ),
        epochs=60,
        batch_size=128,
        source="ours: crops and flips only, as in the paper",
    ),
    "small": Recipe(
        method=MAE.Config(
            norm_pix_loss=True,
            decoder_dim=192,
            decoder_depth=4,
            decoder_heads=3,
            views=(View(size=32, interpolation="bicubic", jitter=0.0, grayscale=0.0, blur=0.0),),
        ),
        backbone=BackboneConfig(name="vit_tiny_patch4_32", image_size=32),
        optim=Optim(
            name="adamw",
            lr=2e-4,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            decay_1d=False,
            schedule=Schedule(warmup_epochs=40.0),
        ),
        epochs=1000,
        batch_size=256,
        normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD),
        source="solo-learn's CIFAR settings with the encoder width and decoder of IcarusWizard/MAE",
    ),
    "paper": Recipe(
        method=MAE.Config(norm_pix_loss=True),
        backbone=BackboneConfig(name="vit_base_patch16_224"),
        optim=Optim(
            name="adamw",
            lr=1.5e-4,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            decay_1d=False,
            schedule=Schedule(warmup_epochs=40.0),
        ),
        epochs=1600,
        batch_size=4096,
        source="arXiv:2111.06377, table 3 and the released weights: 83.6 % fine-tuned on ImageNet",
    ),
}
