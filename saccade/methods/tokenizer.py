"""Tokenizer: a small set of codes for patches, such that a decoder can paint them back.

With y_i the encoder's feature of patch i, e_k the vector of code k and D the decoder,
    loss = mean |D(e_c) - x|^2 + beta mean_i |z_i - sg(e_c(i))|^2,   c(i) = argmax_k z_i . e_k
for `kmeans` (van den Oord et al. 2017, arXiv:1711.00937, appendix A.1), where z_i is a unit vector
from y_i, gradient skips the choice (e_c = z + sg(e_c - z)), and e_k is the running mean of the z_i
that chose it, back on the sphere as in ViT-VQGAN (Yu et al. 2022, arXiv:2110.04627). A code chosen
less than a tenth as often as the mean starts anew at a patch of the batch; the first step starts
all there. For `gumbel`, a discrete VAE (Ramesh et al. 2021, arXiv:2102.12092), y_i gives logits l,
    q_i = softmax((l_i + g_i) / t),   e_i = sum_k q_ik e_k,
    loss = mean |D(e) - x|^2 + beta mean_i KL(softmax(l_i) | uniform),
with Gumbel noise g and t falling along half a cosine from 1 to 1/16. Pixels are normalized ones and
their error is squared, where DALL-E has a Laplace likelihood and convolutions as its encoder.
There is no perceptual term (PeCo's) and no critic (VQGAN's).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..core import Clock, Method, PatchBackbone, Step, View, Views
from ..nn.dist import gather_frozen, summed
from ..nn.functional import cosine_ramp
from ..nn.random import uniform
from ..recipe import CIFAR_MEAN, CIFAR_STD, BackboneConfig, Normalize, Optim, Recipe, Schedule
from ..tokenizers.learned import Codebook, Decoder

RARE = 0.1  # of the mean use: a code below it starts anew
COOLEST = 1 / 16  # temperature at the end


class Tokenizer(Method[PatchBackbone]):
    usage: Tensor  # [K] patches of a step that choose each code, a running mean

    @dataclass(frozen=True, kw_only=True)
    class Config:
        codes: int = 8192
        quantizer: Literal["kmeans", "gumbel"] = "kmeans"
        code_dim: int = 32  # width of a code's vector
        beta: float = 0.25
        decay: float = 0.99  # of k-means' running means
        hidden: int = 256  # width of the decoder
        decoder_depth: int = 4
        views: tuple[View, ...] = (
            View(interpolation="bicubic", jitter=0.0, grayscale=0.0, blur=0.0),
        )

    def __init__(self, cfg: Config, encoder: PatchBackbone) -> None:
        super().__init__()
        if (count := sum(v.count for v in cfg.views)) != 1:
            raise ValueError(f"setting method.views: a tokenizer sees 1 view, not {count}")
        if cfg.codes <= cfg.code_dim:
            raise ValueError(
                f"setting method.codes: {cfg.codes} codes need vectors of fewer dimensions than"
                f" method.code_dim={cfg.code_dim}"
            )
        self.cfg = cfg
        self.encoder = encoder
        width = cfg.code_dim
        decoder = Decoder(width, cfg.hidden, cfg.decoder_depth, encoder.patch, encoder.channels)
        cosine = cfg.quantizer == "kmeans"
        self.coder = Codebook(encoder.dim, cfg.codes, width, decoder, cosine=cosine)
        self.register_buffer("usage", torch.zeros(cfg.codes))

    def heads(self) -> dict[str, Tensor]:
        return {f"tokenizer.{k}": v for k, v in self.coder.state_dict().items()}

    def forward(self, batch: Views, clock: Clock) -> Step:
        (image,) = batch.images
        y = self.encoder.features(image)  # [B, D, h, w]
        z = self.coder.vectors(y)  # [B, h, w, E or K]
        if self.cfg.quantizer == "kmeans":
            if self.training:
                self.follow(z.detach(), batch.key)
            chosen = self.coder.nearest(z)
            e = self.coder.codebook[chosen]
            extra = (z - e).square().sum(-1).mean()
            vectors = z + (e - z).detach()
        else:
            chosen = self.coder.nearest(z)
            t = cosine_ramp(1.0, COOLEST, clock.progress)
            q = ((z + gumbel(batch.key, z)) / t).softmax(-1)
            extra = (z.softmax(-1) * z.log_softmax(-1)).sum(-1).mean() + math.log(self.cfg.codes)
            vectors = q @ self.coder.codebook
        error = (self.coder.paint(vectors).float() - image).square().mean()
        count = self.total(chosen, torch.ones_like(z[..., :1]))[:, 0]
        logs = {
            "explained": 1 - error.detach() / image.var(correction=0),
            "codes_used": torch.special.entr(count / count.sum()).sum().exp(),
            "extra": extra.detach(),
        }
        return Step(error + self.cfg.beta * extra, logs, y.detach().mean((2, 3)))

    def draw(self, batch: Views) -> dict[str, Float[Tensor, "b c h w"]]:
        z = self.coder.vectors(self.encoder.features(batch.images[0]))
        return {"rebuilt": self.coder.paint(self.coder.codebook[self.coder.nearest(z)])}

    @torch.no_grad()
    def follow(self, z: Float[Tensor, "b h w e"], key: Int[Tensor, "b"]) -> None:
        """One step of k-means with the patches of all ranks; rare codes start anew at patches."""
        book, cfg = self.coder.codebook, self.cfg
        rows, first = gather_frozen(z.flatten(0, 2)), gather_frozen(key)[:1]
        order = uniform(first, len(rows), "anew")[0].argsort(stable=True)
        fresh = rows[order[torch.arange(cfg.codes, device=z.device) % len(rows)]]  # [K, E]
        rare = (self.usage <= RARE * self.usage.mean())[:, None]
        book.copy_(torch.where(rare, fresh, book))
        chosen = self.coder.nearest(z)
        count = self.total(chosen, torch.ones_like(z[..., :1]))[:, 0]
        near = F.normalize(self.total(chosen, z), dim=-1)
        moved = F.normalize(cfg.decay * book + (1 - cfg.decay) * near, dim=-1)
        book.copy_(torch.where(count[:, None] > 0, moved, book))
        before = torch.where(rare[:, 0], count.mean(), self.usage)
        self.usage.copy_(cfg.decay * before + (1 - cfg.decay) * count)

    @torch.no_grad()
    def total(
        self, chosen: Int[Tensor, "b h w"], x: Float[Tensor, "b h w e"]
    ) -> Float[Tensor, "k e"]:
        """Sum of x over the patches of all ranks that chose each code."""
        rows = x.detach().flatten(0, 2)
        return summed(
            rows.new_zeros(self.cfg.codes, x.shape[-1]).index_add(0, chosen.flatten(), rows)
        )


def gumbel(key: Int[Tensor, "b"], like: Float[Tensor, "b h w k"]) -> Float[Tensor, "b h w k"]:
    """Gumbel noise of each picture, by its key."""
    draws = uniform(key, like[0].numel(), "gumbel").view_as(like)
    return -(-draws.clamp(2.0**-24, 1 - 2.0**-24).log()).log()


PLAIN = View(size=32, interpolation="bicubic", jitter=0.0, grayscale=0.0, blur=0.0)
ADAMW = Optim(
    name="adamw",
    lr=1e-3,
    lr_rule="linear-256",
    betas=(0.9, 0.99),
    weight_decay=0.01,
    decay_1d=False,
    clip=1.0,
    schedule=Schedule(warmup_steps=100),
)
RECIPES = {
    "demo": Recipe(
        method=Tokenizer.Config(
            codes=512,
            hidden=128,
            decoder_depth=2,
            views=(View(size=64, interpolation="bicubic", jitter=0.0, grayscale=0.0, blur=0.0),),
        ),
        backbone=BackboneConfig(name="vit_nano_patch8_64", image_size=64),
        optim=ADAMW,
        epochs=30,
        batch_size=64,
        source="ours: few pictures, so few codes; not tuned",
    ),
    "small": Recipe(
        method=Tokenizer.Config(codes=512, hidden=128, decoder_depth=2, views=(PLAIN,)),
        backbone=BackboneConfig(name="vit_pico_patch4_32", image_size=32),
        optim=ADAMW,
        epochs=20,
        batch_size=256,
        normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD),
        source="ours, for CIFAR-10; not tuned",
    ),
    "paper": Recipe(
        method=Tokenizer.Config(),
        backbone=BackboneConfig(name="vit_small_patch16_224"),
        optim=ADAMW,
        epochs=100,
        batch_size=512,
        source="ours: the sizes of the ViT-S tokenizer of ViT-VQGAN, on patches of 16; not run",
    ),
}
