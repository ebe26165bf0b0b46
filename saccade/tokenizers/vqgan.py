"""VQGAN: a convolutional network maps a picture to cells, each the nearest of a set of codes.

Esser et al. 2021, arXiv:2012.09841, with the released names of weights. For an encoder E, a decoder
D, 1 x 1 convolutions P and R, vectors e_k of codes and pixels x in [0, 1],
    code = argmin_k |P(E(2x - 1)) - e_k|,   picture = (D(R(e_code)) + 1) / 2,
and in the Gumbel variant code = argmax W P(E(2x - 1)), a layer of scores, the noise left out. E
halves the map after each level of residual blocks but the last, so five levels make 16 pixels of a
code's side, four make 8.

All sizes are read off the weights. A checkpoint's perceptual loss and critic are left out; the
published code's remapping of codes, its maps of labels as input and the first stages inside its
transformers' checkpoints are not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import PixelTokenizer
from .sizes import resized

GROUPS = 32  # of a norm's channels


@dataclass(frozen=True, kw_only=True)
class Sizes:
    channels: int  # of the picture
    stem: int  # channels after the first convolution
    widths: tuple[int, ...]  # channels of each level, the finest map first
    attends: tuple[bool, ...]  # whether the level's blocks are followed by attention
    blocks: int  # of a level; the decoder's have one more
    latent: int  # channels between the encoder and P, and between R and the decoder
    codes: int
    code_dim: int
    scores: bool  # the Gumbel variant


def norm(dim: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, dim, eps=1e-6)


class Block(nn.Module):
    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(dim), nn.Conv2d(dim, out, 3, padding=1)
        self.norm2, self.conv2 = norm(out), nn.Conv2d(out, out, 3, padding=1)
        self.nin_shortcut = nn.Identity() if dim == out else nn.Conv2d(dim, out, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        y = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(y)))


class Attention(nn.Module):
    """One head over all cells."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = norm(dim)
        self.q, self.k, self.v = (nn.Conv2d(dim, dim, 1) for _ in range(3))
        self.proj_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        y = self.norm(x)
        q, k, v = (f(y).flatten(2).mT[:, None] for f in (self.q, self.k, self.v))  # [B, 1, N, C]
        y = F.scaled_dot_product_attention(q, k, v)[:, 0].mT
        return x + self.proj_out(y.unflatten(2, x.shape[2:]))


class Halve(nn.Module):
    """Half the map; zeros at the bottom and the right only."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c h w"]:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Double(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c H W"]:
        return self.conv(F.interpolate(x, scale_factor=2.0))


class Level(nn.Module):
    """Residual blocks at one size of the map, then half or twice that size."""

    def __init__(
        self, dim: int, out: int, blocks: int, *, attends: bool, halve: bool, double: bool
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(Block(out if i else dim, out) for i in range(blocks))
        self.attn = nn.ModuleList(Attention(out) for _ in range(blocks if attends else 0))
        self.downsample = Halve(out) if halve else nn.Identity()
        self.upsample = Double(out) if double else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d H W"]:
        for i, block in enumerate(self.block):
            x = block(x)
            x = self.attn[i](x) if len(self.attn) else x
        return self.upsample(self.downsample(x))


class Middle(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = Block(dim, dim), Attention(dim), Block(dim, dim)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        dims, last = (s.stem, *s.widths), len(s.widths) - 1
        self.conv_in = nn.Conv2d(s.channels, s.stem, 3, padding=1)
        self.down = nn.ModuleList(
            Level(dims[i], dims[i + 1], s.blocks, attends=attends, halve=i < last, double=False)
            for i, attends in enumerate(s.attends)
        )
        self.mid, self.norm_out = Middle(dims[-1]), norm(dims[-1])
        self.conv_out = nn.Conv2d(dims[-1], s.latent, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b z h w"]:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        dims = (*s.widths, s.widths[-1])
        self.conv_in = nn.Conv2d(s.latent, dims[-1], 3, padding=1)
        self.mid = Middle(dims[-1])
        self.up = nn.ModuleList(
            Level(dims[i + 1], dims[i], s.blocks + 1, attends=attends, halve=False, double=i > 0)
            for i, attends in enumerate(s.attends)
        )
        self.norm_out = norm(dims[0])
        self.conv_out = nn.Conv2d(dims[0], s.channels, 3, padding=1)

    def forward(self, z: Float[Tensor, "b z h w"]) -> Float[Tensor, "b c H W"]:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Nearest(nn.Module):
    """The code whose vector is nearest."""

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, dim)

    def forward(self, z: Float[Tensor, "b e h w"]) -> Int[Tensor, "b h w"]:
        vectors = self.embedding.weight  # |z - e|^2 is least where z.e - |e|^2 / 2 is largest
        return F.linear(z.movedim(1, -1), vectors, -vectors.square().sum(1) / 2).argmax(-1)

    def vectors(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b h w e"]:
        return self.embedding(codes)


class Scored(nn.Module):
    """The code of the largest score."""

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self.proj, self.embed = nn.Conv2d(dim, codes, 1), nn.Embedding(codes, dim)

    def forward(self, z: Float[Tensor, "b e h w"]) -> Int[Tensor, "b h w"]:
        return self.proj(z).argmax(1)

    def vectors(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b h w e"]:
        return self.embed(codes)


class VQGAN(PixelTokenizer):
    """The tokenizer of a released checkpoint, of whose weights `state` holds all.

    Codes are in [0, codes) and pictures in [0, 1]; pictures that come in are clipped to that and
    made as large as the grid wants. Without a decoder in the file `decodes` is false. ValueError,
    naming the first weight that is missing, in excess or of another shape.
    """

    def __init__(self, path: Path, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.decodes = any(name.startswith("decoder.") for name in state)
        s = _sizes(path, state)
        with torch.device("meta"):  # sizes alone; the weights come from the file
            self.encoder = Encoder(s)
            self.quant_conv = nn.Conv2d(s.latent, s.code_dim, 1)
            self.quantize = (Scored if s.scores else Nearest)(s.codes, s.code_dim)
            self.post_quant_conv = nn.Conv2d(s.code_dim, s.latent, 1) if self.decodes else None
            self.decoder = Decoder(s) if self.decodes else None
        idle = ("loss.",) if self.decodes else ("loss.", "post_quant_conv.")
        used = {k: v.float() for k, v in state.items() if not k.startswith(idle)}
        self.load_state_dict(_checked(path, used, self.state_dict()), assign=True)
        self.codes, self.channels = s.codes, s.channels
        self.stride = 2 ** (len(s.widths) - 1)

    def encode(self, x: Float[Tensor, "b c H W"], grid: tuple[int, int]) -> Int[Tensor, "b h w"]:
        x = resized(x, (self.stride * grid[0], self.stride * grid[1])).clamp(0, 1)
        return self.quantize(self.quant_conv(self.encoder(2 * x - 1)))

    def decode(
        self, codes: Int[Tensor, "b h w"], size: tuple[int, int]
    ) -> Float[Tensor, "b c H W"]:
        assert self.decoder is not None  # `decodes` says so
        assert self.post_quant_conv is not None
        vectors = self.quantize.vectors(codes).movedim(-1, 1)  # [B, E, h, w]
        y = self.decoder(self.post_quant_conv(vectors))
        return resized(((y + 1) / 2).clamp(0, 1), size)


def _sizes(path: Path, state: Mapping[str, Tensor]) -> Sizes:
    """What the names and shapes of the weights say."""

    def size(name: str, axis: int = 0, of: int = 1) -> int:
        """The length of an axis, a multiple of `of`."""
        if name not in state:
            raise _lacking(path, name)
        shape = state[name].shape
        if axis >= len(shape) or not shape[axis] or shape[axis] % of:
            raise _unfit(path, name, shape)
        return shape[axis]

    levels = range(_count(state, "encoder.down"))
    scores = "quantize.proj.weight" in state
    vectors = "quantize.embed.weight" if scores else "quantize.embedding.weight"
    return Sizes(
        channels=size("encoder.conv_in.weight", 1),
        stem=size("encoder.conv_in.weight", of=GROUPS),
        widths=tuple(size(f"encoder.down.{i}.block.0.conv1.weight", of=GROUPS) for i in levels),
        attends=tuple(f"encoder.down.{i}.attn.0.q.weight" in state for i in levels),
        blocks=_count(state, "encoder.down.0.block"),
        latent=size("encoder.conv_out.weight"),
        codes=size(vectors),
        code_dim=size(vectors, 1),
        scores=scores,
    )


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered parts there are below a name; 1 where the state has none."""
    numbers = (re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in state)
    return 1 + max((int(found[1]) for found in numbers if found), default=0)


def _checked(
    path: Path, state: dict[str, Tensor], wanted: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The state, if it has the wanted names and shapes and no more."""
    for name, like in wanted.items():
        if name not in state:
            raise _lacking(path, name)
        if state[name].shape != like.shape:
            raise _unfit(path, name, state[name].shape)
    if extra := state.keys() - wanted.keys():
        raise ValueError(
            f"setting method.tokenizer: {path} has {min(extra)}, which a VQGAN of its other "
            "weights has not; is it the right file?"
        )
    return state


def _lacking(path: Path, name: str) -> ValueError:
    return ValueError(
        f"setting method.tokenizer: {path} has no {name}; give a whole checkpoint of a VQGAN"
    )


def _unfit(path: Path, name: str, shape: torch.Size) -> ValueError:
    return ValueError(
        f"setting method.tokenizer: {path} has {name} of shape {tuple(shape)}, which fits no VQGAN "
        "of its other weights; is it the right file?"
    )
