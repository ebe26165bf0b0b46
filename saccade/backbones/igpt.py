"""iGPT: a transformer over the pixels of a picture, each one of 512 colors, in raster order.

Chen et al. 2020 (ICML, no arXiv number). With tokens x_i, embeddings e and positions p,
    h^0_i = s + p_0 at i = 0, e(x_{i-1}) + p_i after it    (a causal network; s is learned)
    h^0_i = m_i e(x_i) + p_i                       (a network that sees all; m_i is 0 or 1)
    a = h^l + attention(norm(h^l)),   h^{l+1} = a + mlp(norm(a)),   norm(h) = g h / sqrt(mean(h^2))
and scores of the colors of pixel i  W norm(h^L_i), where W starts at zero and is not e. No mean is
subtracted in a norm, no layer has a bias, nothing is dropped, and gelu(x) = x sigmoid(1.702 x): a
plain GPT-2 does not hold these weights. The features of layer l are the norm that block l begins
with, of h^l, and those of the last layer are what W sees; their mean counts all places.

Pictures come normalized and are brought back to [-1, 1] before the nearest color is taken. Until a
palette is found it is a grid of 8 steps of red, green and blue. Pictures of another size than the
network's get resampled positions. The paper gives no number of heads for XL: 24 here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..core import PixelBackbone
from ..nn.palette import grid_palette, nearest
from ..recipe import BackboneConfig, Normalize
from .presets import OWN

EPSILON = 1e-5  # of the norms


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, depth: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)
        nn.init.normal_(self.qkv.weight, std=dim**-0.5)
        nn.init.normal_(self.proj.weight, std=(dim * depth) ** -0.5)

    def forward(self, x: Float[Tensor, "b n d"], causal: bool) -> Float[Tensor, "b n d"]:
        q, k, v = self.split(x)
        return self.join(F.scaled_dot_product_attention(q, k, v, is_causal=causal))

    def advance(
        self, x: Float[Tensor, "b m d"], at: int, memory: Float[Tensor, "2 b heads n e"]
    ) -> Float[Tensor, "b m d"]:
        """The places from `at` on, whose keys and values join those in memory."""
        q, k, v = self.split(x)
        end = at + x.shape[1]
        memory[0, :, :, at:end], memory[1, :, :, at:end] = k, v
        k, v = memory[:, :, :, :end]
        return self.join(F.scaled_dot_product_attention(q, k, v, is_causal=at == 0))

    def split(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "3 b heads n e"]:
        """Queries, keys and values."""
        return self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def join(self, y: Float[Tensor, "b heads n e"]) -> Float[Tensor, "b n d"]:
        return self.proj(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim, bias=False)
        self.fc2 = nn.Linear(4 * dim, dim, bias=False)
        nn.init.normal_(self.fc1.weight, std=0.02)
        nn.init.normal_(self.fc2.weight, std=0.02)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        y = self.fc1(x)
        return self.fc2(y * torch.sigmoid(1.702 * y))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, depth: int) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(dim, eps=EPSILON)
        self.attn = Attention(dim, heads, depth)
        self.norm2 = nn.RMSNorm(dim, eps=EPSILON)
        self.mlp = MLP(dim)

    def forward(self, h: Float[Tensor, "b n d"], causal: bool) -> Float[Tensor, "b n d"]:
        h = h + self.attn(self.norm1(h), causal)
        return h + self.mlp(self.norm2(h))

    def advance(
        self, h: Float[Tensor, "b m d"], at: int, memory: Float[Tensor, "2 b heads n e"]
    ) -> Float[Tensor, "b m d"]:
        h = h + self.attn.advance(self.norm1(h), at, memory)
        return h + self.mlp(self.norm2(h))


class IGPT(PixelBackbone):
    palette: Tensor  # [K, 3]
    fitted: Tensor  # []
    mean: Tensor  # [3] of the pictures that come in
    std: Tensor  # [3]

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        heads: int,
        causal: bool,
        image_size: int,
        colors: int = 512,
        layer: int | None = None,
        normalize: Normalize = Normalize(),  # noqa: B008
    ) -> None:
        super().__init__()
        self.dim, self.depth, self.heads = dim, depth, heads
        self.channels, self.image_size, self.stride = 3, image_size, 1
        self.causal = causal
        self.layer = depth if layer is None else layer
        self.embed = nn.Embedding(colors, dim)
        self.positions = nn.Parameter(torch.empty(image_size**2, dim).normal_(std=0.01))
        self.start = nn.Parameter(torch.empty(dim).normal_(std=0.02)) if causal else None
        self.blocks = nn.ModuleList(Block(dim, heads, depth) for _ in range(depth))
        self.norm = nn.RMSNorm(dim, eps=EPSILON)
        self.output = nn.Linear(dim, colors, bias=False)
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.zeros_(self.output.weight)
        self.register_buffer("palette", grid_palette(colors))
        self.register_buffer("fitted", torch.tensor(False))
        self.register_buffer("mean", torch.tensor(normalize.mean), persistent=False)
        self.register_buffer("std", torch.tensor(normalize.std), persistent=False)

    def pixels(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b n c"]:
        unit = x.float() * self.std[:, None, None] + self.mean[:, None, None]
        return (2 * unit - 1).flatten(2).mT

    def tokens(self, x: Float[Tensor, "b c H W"]) -> Int[Tensor, "b H W"]:
        pixels = self.pixels(x)  # [B, N, 3]
        found = nearest(pixels.flatten(0, 1), self.palette)
        return found.view(len(x), *x.shape[-2:])

    def paint(self, tokens: Int[Tensor, "b H W"]) -> Float[Tensor, "b c H W"]:
        unit = (127.5 * (self.palette + 1)).round() / 255  # [K, 3] as 8-bit pictures hold them
        return (((unit - self.mean) / self.std)[tokens]).permute(0, 3, 1, 2)

    @torch.no_grad()
    def set_palette(self, colors: Float[Tensor, "k 3"]) -> None:
        self.palette.copy_(colors)
        self.fitted.fill_(True)

    def encode(
        self, tokens: Int[Tensor, "b H W"], hidden: Bool[Tensor, "b H W"] | None = None
    ) -> Float[Tensor, "b n d"]:
        h = self._embedded(tokens, hidden)
        for block in self.blocks:
            h = block(h, self.causal)
        return self.norm(h)

    def scores(self, h: Float[Tensor, "*b d"]) -> Float[Tensor, "*b k"]:
        return self.output(h)

    def layers(self, x: Float[Tensor, "b c H W"]) -> list[Float[Tensor, "b d"]]:
        h = self._embedded(self.tokens(x), None)
        found = []
        for block in self.blocks:
            found.append(block.norm1(h).mean(1))  # type: ignore[operator]
            h = block(h, self.causal)
        return [*found, self.norm(h).mean(1)]

    def features(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b d h w"]:
        return self._states(x).mT.unflatten(2, x.shape[-2:])

    def forward(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b d"]:
        return self._states(x).mean(1)

    def memory(self, rows: int) -> Float[Tensor, "l 2 b heads n e"]:
        size = (self.depth, 2, rows, self.heads, len(self.positions), self.dim // self.heads)
        return self.positions.new_empty(size)

    def advance(
        self, tokens: Int[Tensor, "b m"], at: int, memory: Float[Tensor, "l 2 b heads n e"]
    ) -> Float[Tensor, "b d"]:
        assert self.start is not None  # a network that sees all has no order
        h = self.embed(tokens)
        if at == 0:
            h = torch.cat([self.start.expand(len(tokens), 1, -1), h], 1)
        place = at + 1 if at else 0
        h = h + self.positions[place : place + h.shape[1]]
        for block, held in zip(self.blocks, memory, strict=True):
            h = block.advance(h, place, held)  # type: ignore[operator]
        return self.norm(h[:, -1])

    def extra_repr(self) -> str:
        """What changes features and is no weight: part of the key of kept features."""
        return f"causal={self.causal}, layer={self.layer}"

    def _states(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b n d"]:
        """Places of the chosen layer."""
        h = self._embedded(self.tokens(x), None)
        for block in self.blocks[: self.layer]:
            h = block(h, self.causal)
        last = self.layer == self.depth
        return self.norm(h) if last else self.blocks[self.layer].norm1(h)  # type: ignore[operator]

    def _embedded(
        self, tokens: Int[Tensor, "b H W"], hidden: Bool[Tensor, "b H W"] | None
    ) -> Float[Tensor, "b n d"]:
        height, width = tokens.shape[1:]
        h = self.embed(tokens.flatten(1))  # [B, N, D]
        if hidden is not None:
            h = h * ~hidden.flatten(1)[..., None]
        if self.start is not None:
            h = torch.cat([self.start.expand(len(h), 1, -1), h[:, :-1]], 1)
        return h + self._positions(height, width)

    def _positions(self, height: int, width: int) -> Float[Tensor, "n d"]:
        if height == width == self.image_size:
            return self.positions
        side = self.image_size
        table = self.positions.mT.unflatten(1, (side, side))[None]
        table = F.interpolate(table, (height, width), mode="bicubic", antialias=True)
        return table[0].flatten(1).mT


def build(cfg: BackboneConfig, normalize: Normalize) -> IGPT:
    """The network of that name."""
    if cfg.channels != 3 or len(normalize.mean) != 3 or len(normalize.std) != 3:
        raise ValueError(
            f"backbone.channels={cfg.channels}: {cfg.name} has a palette of red, green and blue; "
            "give pictures of 3 channels"
        )
    if cfg.drop_path or cfg.stem != "auto":
        name, value = ("drop_path", cfg.drop_path) if cfg.drop_path else ("stem", cfg.stem)
        raise ValueError(f"backbone.{name}={value}: {cfg.name} has none; leave it out")
    sizes = OWN[cfg.name].sizes
    depth = sizes["depth"]
    layer = {"last": depth, "middle": depth // 2}.get(str(cfg.layer), cfg.layer)
    if not (isinstance(layer, int) and 0 <= layer <= depth):
        raise ValueError(
            f"backbone.layer={layer}: {cfg.name} has layers 0 to {depth}; "
            "choose one of these, last or middle"
        )
    return IGPT(**sizes, image_size=cfg.image_size, layer=layer, normalize=normalize)
