"""Transformers whose attention knows where patches are by a bias for their distance: timm's BEiT.

Bao et al. 2022, arXiv:2106.08254. Keys have no bias; three more entries of the table are for
CLS to patch, patch to CLS and CLS to itself. Tables are resized for pictures of another size by
bicubic interpolation on an even grid (BEiT's fine-tuning code has one whose steps grow), those in
every block only when weights are loaded. Fine-tuning keeps the one table for all blocks of a
`*_shared_*` network, where the official code gives each block a copy.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_simple
from timm.models.beit import Beit, gen_relative_position_index
from torch import Tensor, nn

from ..core import PatchBackbone
from ..recipe import BackboneConfig

Grid = tuple[int, int]


def resize(table: Float[Tensor, "n heads"], grid: Grid) -> Float[Tensor, "m heads"]:
    """A table of distances made for another square picture."""
    shape = ((2 * grid[0] - 1) * (2 * grid[1] - 1) + 3, table.shape[1])
    return resize_rel_pos_bias_table_simple(table, grid, shape)


class RelativeViT(PatchBackbone):
    """A plain transformer with relative positions: `encode` takes all patches of a picture only."""

    net: Beit

    def __init__(self, net: Beit, cfg: BackboneConfig) -> None:
        super().__init__()
        assert net.pos_embed is None  # of no network of timm's module
        net.patch_embed.strict_img_size = False
        self.net = net
        self.dim = net.num_features
        self.channels = cfg.channels
        self.image_size = cfg.image_size
        self.patch = self.stride = int(net.patch_embed.patch_size[0])
        self.grid = net.patch_embed.grid_size
        self.depth = len(net.blocks)
        self.prefix = net.num_prefix_tokens

    def tokens(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b n d"]:
        height, width = x.shape[-2:]
        if height % self.patch or width % self.patch:
            raise ValueError(
                f"image_size: {height} x {width} pixels do not divide into patches of "
                f"{self.patch}; choose multiples of {self.patch}"
            )
        return self.net.patch_embed(x)

    def positions(self, height: int, width: int) -> Float[Tensor, "1 n d"]:
        """Zeros: attention adds them."""
        n = (height // self.patch) * (width // self.patch)
        return self.net.cls_token.new_zeros(1, n, self.dim)

    def encode(self, tokens: Float[Tensor, "b m d"]) -> Float[Tensor, "b p d"]:
        return self._norm(self._blocks(tokens, self._whole(tokens))[-1])

    def encode_and_look(
        self, tokens: Float[Tensor, "b m d"]
    ) -> tuple[Float[Tensor, "b p d"], Float[Tensor, "b heads p"]]:
        grid = self._whole(tokens)
        *_, before, y = self._blocks(tokens, grid)
        return self._norm(y), self._weights(before, grid)[:, :, 0]

    def features(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b d h w"]:
        grid = self._grid(x)
        y = self._norm(self._blocks(self.tokens(x), grid)[-1])[:, self.prefix :]
        return y.mT.unflatten(2, grid)

    def forward(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b d"]:
        y = self._blocks(self.tokens(x), self._grid(x))[-1]
        return self.net.forward_head(self.net.norm(y))

    def layers(
        self, x: Float[Tensor, "b c H W"], last: int, *, normed: bool = True
    ) -> list[Float[Tensor, "b p d"]]:
        depth = len(self.net.blocks)
        if not 1 <= last <= depth:
            raise ValueError(f"last={last}: the backbone has {depth} blocks; choose 1 to {depth}")
        found = self._blocks(self.tokens(x), self._grid(x))[-last:]
        return [self._norm(y) if normed else y for y in found]

    def attention(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b heads p p"]:
        grid = self._grid(x)
        return self._weights(self._blocks(self.tokens(x), grid)[-2], grid)

    def fix_positions(self, table: Float[Tensor, "n d"]) -> None:
        raise ValueError(
            "setting backbone: this method has a fixed table of positions, and BEiT's network knows"
            " distances only; choose a ViT such as vit_base_patch16_224"
        )

    def projection(self) -> nn.Module:
        return self.net.patch_embed.proj

    def _grid(self, x: Float[Tensor, "b c H W"]) -> Grid:
        return x.shape[-2] // self.patch, x.shape[-1] // self.patch

    def _whole(self, tokens: Float[Tensor, "b m d"]) -> Grid:
        """The grid of all patches, which alone says where each of them is."""
        if tokens.shape[1] != self.grid[0] * self.grid[1]:
            raise ValueError(
                f"setting backbone: {tokens.shape[1]} patches of {self.grid[0] * self.grid[1]} are"
                " given, and relative positions need all of backbone.image_size="
                f"{self.image_size}; set views to it, or choose a ViT such as vit_base_patch16_224"
            )
        return self.grid

    def _blocks(self, tokens: Float[Tensor, "b n d"], grid: Grid) -> list[Float[Tensor, "b p d"]]:
        """What goes into the first block, and what comes out of each."""
        found = [torch.cat([self.net.cls_token.expand(len(tokens), -1, -1), tokens], 1)]
        bias = self._shared(grid)
        for block in self.net.blocks:
            found.append(block(found[-1], shared_rel_pos_bias=bias))
        return found

    def _shared(self, grid: Grid) -> Float[Tensor, "heads p p"] | None:
        """The bias that all blocks add."""
        places: Any = self.net.rel_pos_bias
        if places is None:
            if grid != tuple(self.grid):
                raise ValueError(
                    f"image_size: the relative positions of each block are for {self.grid} patches,"
                    f" not {grid}; set backbone.image_size"
                )
            return None
        if grid == tuple(self.grid):
            return places()
        table = resize(places.relative_position_bias_table, grid)
        return table[gen_relative_position_index(grid, table.device)].permute(2, 0, 1)

    def _weights(self, y: Float[Tensor, "b p d"], grid: Grid) -> Float[Tensor, "b heads p p"]:
        """Softmaxed attention of the last block, given what goes into it."""
        block: Any = self.net.blocks[-1]
        a = block.attn
        qkv = a.qkv(block.norm1(y)).unflatten(-1, (3, a.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q = qkv[0] if a.q_bias is None else qkv[0] + a.q_bias.view(a.num_heads, 1, -1)
        scores = (q * a.scale) @ qkv[1].mT
        shared = self._shared(grid)
        scores = scores if shared is None else scores + shared
        own = a.relative_position_bias_table is not None
        return (scores + a._get_rel_pos_bias() if own else scores).softmax(-1)

    def _norm(self, y: Float[Tensor, "b p d"]) -> Float[Tensor, "b p d"]:
        return self.net.fc_norm(self.net.norm(y))  # one of them is the identity
