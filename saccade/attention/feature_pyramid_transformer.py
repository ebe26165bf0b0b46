"""Feature pyramid transformer: every level of a pyramid attends to itself and to all others.

Zhang et al. 2020, arXiv:2007.09451. Level l becomes a 3x3 convolution of the maps
    [ x_l, self(x_l), grounding(x_l <- each coarser), rendering(x_l <- each finer) ],
always one more than there are levels. Attention is a mixture of softmaxes over N parts of the
channels, F_ij = sum_n pi_n softmax_j(s_n(q_in, k_jn)), pi = softmax_n(w_n . mean_j k_j):
    self       s = q . k, all three from one level
    grounding  s = -|q - k|^2, fine queries, coarse keys and values (`square` > 0: only a square
               of that side around each query's place)
    rendering  conv( conv(x_coarse * mean x_fine) + downsampled x_fine ), no attention of pixels.
This is the paper, but that a square ends where the map does: there the paper has values of 0, which
take their share of the softmax. The repository does otherwise, and does not run: grounding by dot
products over the number of keys, rendering with a ReLU at the end, one stride of 2 between any two
levels (here a convolution of stride 2 for each halving), keys and values pooled 2x2, weights of the
mixture from queries, and logits over the root of all channels, where the equation has no scale.
DropBlock is left out, and so is norm: put one behind where batches are large enough. The paper's
gain is over a bottom-up pyramid (`use=()`), not over FPN. A square holds S^2 keys and values for
every query: 0.4 GB for 128 x 128 queries of 256 channels at S = 5.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .non_local import single, tokens

Part = Literal["self", "grounding", "rendering"]
ALL: tuple[Part, ...] = ("self", "grounding", "rendering")


class FeaturePyramidTransformer(nn.Module):
    """Maps of the same width, finest first: same out."""

    def __init__(
        self,
        channels: int,
        strides: tuple[int, ...],  # pixels between the cells of each map: equal, or 2, 4, ... times
        *,
        mixture: int = 2,
        square: int = 0,  # 0: grounding sees whole maps
        use: tuple[Part, ...] = ALL,  # leave some out to see what they are worth
    ) -> None:
        super().__init__()
        self.strides, levels = strides, len(strides)
        steps = [b / a for a, b in itertools.pairwise(strides)]
        if any(step not in (1, 2, 4, 8, 16, 32) for step in steps):
            raise ValueError(
                f"strides={strides}: each must be 1, 2, 4, 8, 16 or 32 times the one before"
            )
        self.own, self.ground, self.render = nn.ModuleList(), nn.ModuleDict(), nn.ModuleDict()
        pairs = [(i, j) for i in range(levels) for j in range(i + 1, levels)]  # fine, coarse
        if "self" in use:
            self.own.extend(CrossAttention(channels, mixture) for _ in range(levels))
        if "grounding" in use:
            for i, j in pairs:
                self.ground[f"{i}_{j}"] = CrossAttention(
                    channels, mixture, distance=True, square=square
                )
        if "rendering" in use:
            for i, j in pairs:
                halvings = (strides[j] // strides[i]).bit_length() - 1
                self.render[f"{j}_{i}"] = Rendering(channels, halvings)
        counts = [
            1 + ("self" in use) + ("grounding" in use) * (levels - 1 - i) + ("rendering" in use) * i
            for i in range(levels)
        ]
        self.out = nn.ModuleList(nn.Conv2d(n * channels, channels, 3, padding=1) for n in counts)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        assert len(maps) == len(self.out), f"{len(maps)} maps for {len(self.out)} strides"
        self.check([(y.shape[2], y.shape[3]) for y in maps])
        return [out(torch.cat(self.seen(maps, i), 1)) for i, out in enumerate(self.out)]

    def check(self, sizes: list[tuple[int, int]]) -> None:
        """Each map must have the cells that its stride leaves of the finest one's."""
        for size, stride in zip(sizes, self.strides, strict=True):
            step = stride // self.strides[0]
            fits = (-(-sizes[0][0] // step), -(-sizes[0][1] // step))
            if size != fits:
                raise ValueError(
                    f"map of {size[0]} x {size[1]} at stride {stride}: below one of {sizes[0][0]} "
                    f"x {sizes[0][1]} at stride {self.strides[0]} it must be {fits[0]} x {fits[1]}"
                )

    def seen(self, maps: list[Tensor], i: int) -> list[Float[Tensor, "b c h w"]]:
        """The maps that make level i: itself, self, grounding, rendering."""
        x, found = maps[i], [maps[i]]
        if self.own:
            found.append(self.own[i](x, x))
        if self.ground:
            found += [self.ground[f"{i}_{j}"](x, maps[j]) for j in range(i + 1, len(maps))]
        if self.render:
            found += [self.render[f"{i}_{j}"](x, maps[j]) for j in range(i)]
        return found


class CrossAttention(nn.Module):
    """Queries of one map, keys and values of another, by a mixture of softmaxes."""

    def __init__(
        self, channels: int, mixture: int, *, distance: bool = False, square: int = 0
    ) -> None:
        super().__init__()
        if channels % mixture:
            raise ValueError(
                f"mixture={mixture} does not divide {channels} channels; choose a divisor"
            )
        if square and square % 2 == 0:
            raise ValueError(f"square={square} has no center; choose an odd one")
        self.mixture, self.distance, self.square = mixture, distance, square
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.weight = nn.Parameter(torch.empty(mixture, channels).uniform_(-1, 1) * mixture**-0.5)

    def forward(
        self, x: Float[Tensor, "b c h w"], other: Float[Tensor, "b c i j"]
    ) -> Float[Tensor, "b c h w"]:
        if self.square:
            at, inside = around(x.shape[2:], other.shape[2:], self.square, x.device)
            share = self.near(*self.pairs(x, other), at, inside)  # [B, N, S]
            v = self.value(tokens(other))[:, at]  # [B, N, S, C]
            y = torch.einsum("bns,bnsc->bnc", share.to(v.dtype), v)
        else:
            y = self.fused(x, other)
        return y.mT.unflatten(2, x.shape[2:])

    def attention(
        self, x: Float[Tensor, "b c h w"], other: Float[Tensor, "b c i j"]
    ) -> Float[Tensor, "b n m"]:
        """F of every query (row) and key, of sum 1."""
        every = torch.arange(x.shape[2] * x.shape[3], device=x.device)
        return self.look(x, other, every).flatten(2)

    def look(
        self, x: Float[Tensor, "b c h w"], other: Float[Tensor, "b c i j"], at: Int[Tensor, "q"]
    ) -> Float[Tensor, "b q i j"]:
        """F of the cells `at`, counted in raster order, over the other map."""
        q, k, shares = self.pairs(x, other)
        q = q[:, :, at]
        if self.square:
            places, inside = around(x.shape[2:], other.shape[2:], self.square, x.device)
            share = self.near(q, k, shares, places[at], inside[at])
            empty = share.new_zeros(*share.shape[:2], other.shape[2] * other.shape[3])
            y = empty.scatter_add(2, places[at].expand_as(share), share)
        else:
            with torch.autocast(x.device.type, enabled=False):
                each = (single(q) @ single(k).mT).softmax(-1)  # [B, P, Q, M]
                y = torch.einsum("bp,bpnm->bnm", shares, each)
        return y.unflatten(2, other.shape[2:])

    def pairs(
        self, x: Float[Tensor, "b c h w"], other: Float[Tensor, "b c i j"]
    ) -> tuple[Float[Tensor, "b p n e"], Float[Tensor, "b p m e"], Float[Tensor, "b p"]]:
        """Queries and keys of each part, whose dots are s, and pi.

        -|q - k|^2 is 2 q . k - |k|^2, up to what is the same for all keys: one more channel, or in
        half precision two, with what the first one rounds away.
        """
        keys = self.key(tokens(other))
        shares = single(keys.mean(1) @ self.weight.T).softmax(-1)
        q, k = (
            t.unflatten(-1, (self.mixture, -1)).transpose(1, 2)
            for t in (self.query(tokens(x)), keys)
        )
        if self.distance:
            half = k.dtype.itemsize < 4
            length = -(k.float() if half else k).square().sum(-1, keepdim=True)
            parts = [length.to(k.dtype)]
            if half:
                parts.append((length - parts[0].float()).to(k.dtype))
            k = torch.cat([k, *parts], -1)
            q = torch.cat([2 * q, torch.ones_like(q[..., : len(parts)])], -1)
        return q, k, shares

    def fused(
        self, x: Float[Tensor, "b c h w"], other: Float[Tensor, "b c i j"]
    ) -> Float[Tensor, "b n c"]:
        """The mixture without the table of all pairs in memory.

        Queries and keys have zeros up to the width of values: fused kernels want one width.
        """
        q, k, shares = self.pairs(x, other)
        v = self.value(tokens(other))[:, None].expand(-1, self.mixture, -1, -1)  # [B, P, M, C]
        width = max(v.shape[-1], k.shape[-1])
        q, k, wide = (F.pad(t, (0, width - t.shape[-1])) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, wide, scale=1.0)[..., : v.shape[-1]]
        return torch.einsum("bp,bpnc->bnc", shares.to(y.dtype), y)

    def near(
        self,
        q: Float[Tensor, "b p n e"],
        k: Float[Tensor, "b p m e"],
        shares: Float[Tensor, "b p"],
        at: Int[Tensor, "n s"],
        inside: Bool[Tensor, "n s"],
    ) -> Float[Tensor, "b n s"]:
        """F of the keys at `at` alone."""
        with torch.autocast(q.device.type, enabled=False):
            logits = torch.einsum("bpne,bpnse->bpns", single(q), single(k)[:, :, at])
            each = logits.masked_fill(~inside, -torch.inf).softmax(-1)
            return torch.einsum("bp,bpns->bns", shares, each)


class Rendering(nn.Module):
    """A coarse map, weighted by the mean of a fine one, and what the fine one looks like there."""

    def __init__(self, channels: int, halvings: int) -> None:
        super().__init__()
        self.refine = nn.Conv2d(channels, channels, 3, padding=1)
        steps = [2] * halvings or [1]
        self.down = nn.Sequential(*(nn.Conv2d(channels, channels, 3, s, 1) for s in steps))
        self.out = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(
        self, x: Float[Tensor, "b c h w"], fine: Float[Tensor, "b c i j"]
    ) -> Float[Tensor, "b c h w"]:
        gate = fine.mean((2, 3), keepdim=True)
        return self.out(self.refine(x * gate) + self.down(fine))


def around(
    size: torch.Size, other: torch.Size, square: int, device: torch.device
) -> tuple[Int[Tensor, "n s"], Bool[Tensor, "n s"]]:
    """Cells of the other map in a square around each cell's place, and which are on the map."""
    places, on = [], []
    for mine, theirs in zip(size, other, strict=True):
        center = ((torch.arange(mine, device=device) + 0.5) * theirs / mine).long()  # [mine]
        reach = torch.arange(square, device=device) - square // 2
        place = center[:, None] + reach  # [mine, S]
        on.append((place >= 0) & (place < theirs))
        places.append(place.clamp(0, theirs - 1))
    (y, x), (on_y, on_x) = places, on
    at = y[:, None, :, None] * other[1] + x[None, :, None, :]  # [h, w, S, S]
    inside = on_y[:, None, :, None] & on_x[None, :, None, :]
    return at.flatten(2).flatten(0, 1), inside.flatten(2).flatten(0, 1)
