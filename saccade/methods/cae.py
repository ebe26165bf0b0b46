"""CAE: predict what the encoder would say of hidden patches, and from that alone their codes.

Chen et al. 2022, arXiv:2202.03026. F encodes the visible patches, never a mask token: Z_v. From
queries Q = one learned token for each masked patch, with p the positions of patches, each block of
the regressor does (LN_q, LN_k, LN_v, LN_2 norms; s_1, s_2 layer scales)
    A = attention(LN_q(Q + p_m), LN_k([Z_v + p_v, Q + p_m]), LN_v([Z_v, Q])),
    Y = LN_2(Q + s_1 A),   Q <- Y + s_2 mlp(Y),
and a last norm gives Z_m. A decoder of plain blocks sees Z_m + p_m and no visible patch; W follows.
With Z*_m = F(the masked patches alone), no gradient, and c the tokenizer's codes,
    loss = mean over masked of -log softmax(W decoder(Z_m))_c + alignment mean (Z_m - Z*_m)^2.
Z*_m is F itself with its own CLS and its own stochastic depth: neither a moving average nor a pass
over the whole picture. It is this step's F (the official HEAD; its first release lags a step).
`alignment=0` leaves the second term and its pass out. With a decoder of another width one linear
layer and norm lead to it, for Z_v and, without gradient, for Z*_m.

Exactly `masked` patches are hidden in each picture. Positions are sines and cosines, row first, the
transpose of MAE's. Biases of keys, which softmax cancels, are there in plain blocks and absent in
the regressor's key norm, unlike officially: nothing that is computed differs. Every linear layer
starts at Xavier's, as the official code does without its `fix_init_weight`. Pictures for the
tokenizer are the view resized; see `beit`. mmpretrain hides 75 patches and drops no paths, .4 below
the official figure. There is no recipe for ViT-L: the official script loses its decoder's sizes,
and HEAD does not pass them on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from .. import tokenizers
from ..core import Clock, Method, PatchBackbone, Step, View, Views
from ..nn.functional import take
from ..nn.masking import exact_block_masks
from ..nn.positions import check_width, sincos_2d
from ..nn.random import uniform
from ..recipe import (
    CIFAR_MEAN,
    CIFAR_STD,
    BackboneConfig,
    Normalize,
    Optim,
    Recipe,
    Schedule,
)
from ..tokenizers.pictures import codes_of, pictures


class RegressorBlock(nn.Module):
    def __init__(self, dim: int, heads: int, scale: float, drop_path: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_q, self.norm_v, self.norm_2 = (nn.LayerNorm(dim, eps=1e-6) for _ in range(3))
        self.norm_k = nn.LayerNorm(dim, eps=1e-6, bias=False)
        self.q, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.scale_1 = nn.Parameter(scale * torch.ones(dim))
        self.scale_2 = nn.Parameter(scale * torch.ones(dim))
        self.drop = DropPath(drop_path)

    def forward(
        self,
        query: Float[Tensor, "b m d"],
        seen: Float[Tensor, "b n d"],
        at: tuple[Float[Tensor, "b m d"], Float[Tensor, "b n d"]],
    ) -> Float[Tensor, "b m d"]:
        """`at` holds the positions of queries and of visible patches."""
        both, places = torch.cat([seen, query], 1), torch.cat([at[1], at[0]], 1)
        q = self.q(self.norm_q(query + at[0]))
        k, v = self.k(self.norm_k(both + places)), self.v(self.norm_v(both))
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # [B, m, D]
        y = self.norm_2(query + self.drop(self.scale_1 * self.proj(a)))
        return y + self.drop(self.scale_2 * self.mlp(y))


class Regressor(nn.Module):
    """From visible patches to a prediction for each masked one."""

    def __init__(self, dim: int, heads: int, scale: float, drops: list[float]) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        self.blocks = nn.ModuleList(RegressorBlock(dim, heads, scale, d) for d in drops)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(
        self,
        seen: Float[Tensor, "b n d"],
        at: tuple[Float[Tensor, "b m d"], Float[Tensor, "b n d"]],
    ) -> Float[Tensor, "b m d"]:
        query = self.mask_token.to(seen.dtype).expand(len(seen), at[0].shape[1], -1)
        for block in self.blocks:
            query = block(query, seen, at)
        return self.norm(query)


class CAE(Method[PatchBackbone]):
    additive = True
    positions: Tensor  # [N, D] of regressor and decoder

    @dataclass(frozen=True, kw_only=True)
    class Config:
        tokenizer: str = ""  # color, a tokenizer's run, or a file; see `tokenizers`
        masked: int = 98  # patches
        mask_shape: Literal["block", "random"] = "block"
        min_block: int = 16  # patches of a rectangle
        alignment: float = 2.0  # lambda; 0 leaves it out
        regressor_depth: int = 4
        decoder_dim: int = 768
        decoder_depth: int = 4
        decoder_heads: int = 12  # of the regressor too
        layer_scale: float = 0.1  # at the start, of regressor and decoder
        drop_path: float = 0.1  # at their last blocks
        views: tuple[View, ...] = (
            View(interpolation="bicubic", jitter=0.0, grayscale=0.0, blur=0.0),
        )

    def __init__(self, cfg: Config, encoder: PatchBackbone) -> None:
        super().__init__()
        patches, size = math.prod(encoder.grid), cfg.views[0].size
        if (count := sum(v.count for v in cfg.views)) != 1:
            raise ValueError(f"setting method.views: CAE sees 1 view of a picture, not {count}")
        if size != encoder.image_size:
            raise ValueError(
                f"setting method.views.0.size: {size} pixels, but the positions of the backbone are"
                f" fixed for backbone.image_size={encoder.image_size}; set both alike"
            )
        if not 0 < cfg.masked < patches:
            raise ValueError(
                f"setting method.masked: {cfg.masked} of {patches} patches; hide and keep one each"
            )
        if not 1 <= cfg.min_block <= cfg.masked:
            raise ValueError(
                f"setting method.min_block: {cfg.min_block} patches, but method.masked="
                f"{cfg.masked}; choose 1 to {cfg.masked}"
            )
        check_width("decoder", cfg.decoder_dim, cfg.decoder_heads)
        self.cfg = cfg
        self.encoder = encoder
        self.tokenizer = tokenizers.load(cfg.tokenizer, encoder.channels)
        dim, heads, scale = cfg.decoder_dim, cfg.decoder_heads, cfg.layer_scale
        same = dim == encoder.dim
        self.embed = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Linear(encoder.dim, dim), nn.LayerNorm(dim, eps=1e-6))
        )
        self.regressor = Regressor(dim, heads, scale, ramp(cfg.drop_path, cfg.regressor_depth))
        norm: Any = nn.LayerNorm
        self.decoder = nn.Sequential(
            *(
                Block(dim, heads, qkv_bias=True, init_values=scale, drop_path=d)
                for d in ramp(cfg.drop_path, cfg.decoder_depth)
            ),
            norm(dim, eps=1e-6),
            nn.Linear(dim, self.tokenizer.codes),
        )
        self.register_buffer("positions", rows_first(encoder.grid, dim))
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """The official start of the script as it runs; the tokenizer keeps its weights."""
        for part in (self.encoder, self.embed, self.regressor, self.decoder):
            for m in part.modules():
                if isinstance(m, nn.Linear):
                    nn.init.xavier_uniform_(m.weight)
                    if m.bias is not None:
                        nn.init.zeros_(m.bias)
        tokens = [p for n, p in self.encoder.named_parameters() if n.endswith("cls_token")]
        convs = [m.weight for m in self.encoder.modules() if isinstance(m, nn.Conv2d)]
        for p in (*tokens, *convs, self.regressor.mask_token):
            nn.init.trunc_normal_(p, std=0.02, a=-0.02, b=0.02)
        self.encoder.fix_positions(rows_first(self.encoder.grid, self.encoder.dim))

    def forward(self, batch: Views, clock: Clock) -> Step:
        codes, order = codes_of(self.tokenizer, batch, self.encoder.grid), self.order_of(batch.key)
        tokens = self.encoder.tokens(batch.images[0])
        masked = order[:, -self.cfg.masked :]  # [B, m]
        latent, seen = self.predict(tokens, order)
        scores, target = self.decode(latent, masked), codes.gather(1, masked)
        loss = F.cross_entropy(scores.flatten(0, 1), target.flatten())
        right = (scores.argmax(-1) == target).float().mean()
        logs = {"code_loss": loss.detach(), "accuracy": right}
        if self.cfg.alignment:
            with torch.no_grad():
                own = self.encoder.encode(take(tokens, masked))[:, self.encoder.prefix :]
                own = self.embed(own).float()  # [B, m, D]
            apart = (latent.float() - own).square().mean()
            loss = loss + self.cfg.alignment * apart
            spread = own.flatten(0, 1).std(0).mean()  # 0: the features have collapsed
            logs |= {"alignment": apart.detach(), "target_std": spread}
        return Step(loss, logs, seen.mean(1).detach())

    def order_of(self, key: Int[Tensor, "b"]) -> Int[Tensor, "b n"]:
        """Patches in raster order, the visible ones first."""
        return self.choose(key).long().argsort(dim=1, stable=True)

    def choose(self, key: Int[Tensor, "b"]) -> Bool[Tensor, "b n"]:
        """The masked patches of each picture, as many in all."""
        grid, cfg = self.encoder.grid, self.cfg
        if cfg.mask_shape == "random":
            place = uniform(key, math.prod(grid), "mask").argsort(dim=1, stable=True).argsort(1)
            return place < cfg.masked
        return exact_block_masks(key, cfg.masked, grid, "mask", least=cfg.min_block)

    def predict(
        self, tokens: Float[Tensor, "b n d"], order: Int[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b m e"], Float[Tensor, "b v d"]]:
        """Z_m, and the visible patches after the encoder."""
        visible, masked = order.split([order.shape[1] - self.cfg.masked, self.cfg.masked], 1)
        seen = self.encoder.encode(take(tokens, visible))[:, self.encoder.prefix :]
        at = (self.positions[masked], self.positions[visible])
        return self.regressor(self.embed(seen), at), seen

    def decode(
        self, latent: Float[Tensor, "b m e"], masked: Int[Tensor, "b m"]
    ) -> Float[Tensor, "b m k"]:
        return self.decoder(latent + self.positions[masked]).float()

    def draw(self, batch: Views) -> dict[str, Float[Tensor, "b c h w"]]:
        codes, order = codes_of(self.tokenizer, batch, self.encoder.grid), self.order_of(batch.key)
        masked = order[:, -self.cfg.masked :]
        latent, _ = self.predict(self.encoder.tokens(batch.images[0]), order)
        guess = codes.scatter(1, masked, self.decode(latent, masked).argmax(-1))
        mask = self.choose(batch.key)
        return pictures(self.tokenizer, batch, self.encoder.grid, codes, guess, mask)


def ramp(most: float, depth: int) -> list[float]:
    """From 0 to `most` in equal steps."""
    return [most * i / max(depth - 1, 1) for i in range(depth)]


def rows_first(grid: tuple[int, int], dim: int) -> Float[Tensor, "n dim"]:
    """MAE's table with the row in the first half of the channels."""
    column, row = sincos_2d(grid, dim).chunk(2, 1)
    return torch.cat([row, column], 1)


def _view(size: int) -> View:
    return View(size=size, interpolation="bicubic", jitter=0.0, grayscale=0.0, blur=0.0)


# The paper's 2 pulls the features of small networks together before codes can hold them apart.
LITTLE = 0.1

RECIPES = {
    "demo": Recipe(
        method=CAE.Config(
            tokenizer="color",
            masked=32,
            min_block=4,
            alignment=LITTLE,
            regressor_depth=2,
            decoder_dim=192,
            decoder_depth=2,
            decoder_heads=3,
            layer_scale=1.0,
            drop_path=0.0,
            views=(_view(64),),
        ),
        backbone=BackboneConfig(name="vit_nano_patch8_64", image_size=64),
        optim=Optim(
            name="adamw",
            lr=1e-3,
            weight_decay=0.05,
            decay_1d=False,
            clip=3.0,
            schedule=Schedule(warmup_epochs=10.0, final_lr=1e-5),
        ),
        epochs=60,
        batch_size=128,
        source="ours: mean colors as codes, so that no file is needed; not tuned",
    ),
    "small": Recipe(
        method=CAE.Config(
            tokenizer="color",
            masked=32,
            min_block=4,
            alignment=LITTLE,
            regressor_depth=2,
            decoder_dim=192,
            decoder_depth=2,
            decoder_heads=3,
            layer_scale=1.0,
            drop_path=0.0,
            views=(_view(32),),
        ),
        backbone=BackboneConfig(name="vit_tiny_patch4_32", image_size=32),
        optim=Optim(
            name="adamw",
            lr=1e-3,
            lr_rule="none",
            weight_decay=0.05,
            decay_1d=False,
            clip=3.0,
            schedule=Schedule(warmup_epochs=20.0, final_lr=1e-5),
        ),
        epochs=400,
        batch_size=256,
        normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD),
        source="ours, for CIFAR-10: half of the patches; give your own tokenizer; not tuned",
    ),
    "paper": Recipe(
        method=CAE.Config(),
        backbone=BackboneConfig(name="vit_base_layerscale_patch16_224", drop_path=0.1),
        optim=Optim(
            name="adamw",
            lr=1.5e-3,
            lr_rule="none",
            weight_decay=0.05,
            decay_1d=False,
            clip=3.0,
            schedule=Schedule(warmup_epochs=20.0, final_lr=1e-5),
        ),
        epochs=800,
        batch_size=2048,
        source="official code with DALL-E's tokenizer (a file you give): 83.8 % fine-tuned,"
        " 75.9 % attentive probe",
    ),
}
