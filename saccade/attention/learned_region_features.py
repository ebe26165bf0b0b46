"""Learned region features: what a region takes from where is learned, not a grid of bins.

After Gu et al. 2018, arXiv:1803.07066. For bin k of box b, over positions p of the map x,
    y_k = sum_p softmax_p( G_k(b, p) + A_k(p) ) x(p),
    G_k = (W_k E_box(b)) . (W E_pos(p)),    A_k = W_k' x(p),
with E the sines and cosines of coordinates z / 1000^(2i/C), in pixels: of the two of a cell's
middle, of the four of the box's corners. W is shared by the bins, W_k is not; the appearance A does
not know the box. Boxes get no gradient.

The paper's text and code were not at hand: this is LRF-style, our sampling. Positions are cells of
the map: `inside` x `inside` spread evenly over the box and `outside` x `outside` over the picture,
each once, however often it was drawn; a box that holds no cell's middle has the nearest cell.
Widths, and the start from N(0, .01), at which a bin is nearly the mean of the positions, are
choices. So is `prior`: it adds -s_k |p - c_k|^2 / 2, c_k the middle of the bin and s_k learned
from 1 on, in bins or, where they are larger, cells, so that a few hundred pictures can teach where
an object ends. The layer knows places in the picture: unlike RoIAlign's, its output changes when
box and picture move together. 300 regions of 49 bins hold 17 MB of weights, and their 296 cells of
256 channels 91 MB.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn


class Line(NamedTuple):
    """Rows, or columns, of the positions of each region: of the box, then of the picture."""

    cells: Int[Tensor, "r n"]
    new: Bool[Tensor, "r n"]  # not drawn before in the same grid
    met: Bool[Tensor, "r n"]  # of the picture's grid: drawn in the box's as well


class LearnedRegionFeatures(nn.Module):
    """Takes the place of `torchvision.ops.roi_align`: regions are [picture, x0, y0, x1, y1]."""

    def __init__(
        self,
        channels: int,
        size: int = 7,
        *,
        embedding: int = 256,  # numbers of each coordinate
        width: int = 256,  # of the product
        inside: int = 14,
        outside: int = 10,
        prior: bool = False,
    ) -> None:
        super().__init__()
        if inside + outside == 0:
            raise ValueError("inside=0 and outside=0 leave no position; choose one above 0")
        if embedding % 2:
            raise ValueError(
                f"embedding={embedding} is of sines and cosines; choose an even number"
            )
        self.size, self.embedding, self.grids = size, embedding, (inside, outside)
        self.box = nn.Parameter(torch.empty(size * size, width, 4 * embedding))
        self.position = nn.Parameter(torch.empty(2, width, embedding))  # of rows, of columns
        self.appearance = nn.Parameter(torch.empty(size * size, channels))
        for weight in (self.box, self.position, self.appearance):
            nn.init.normal_(weight, std=0.01)
        self.pull = nn.Parameter(torch.ones(size * size)) if prior else None

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        regions: Float[Tensor, "r 5"],
        stride: int,  # pixels between cells
        sizes: Int[Tensor, "b 2"],  # pixels of each picture, height and width, without padding
    ) -> Float[Tensor, "r c s s"]:
        weights, cells = self.attention(x, regions, stride, sizes)
        y = gathered(x, regions[:, 0].long(), cells, weights.to(x.dtype))  # [R, K, C]
        return y.mT.unflatten(2, (self.size, self.size))

    def attention(
        self,
        x: Float[Tensor, "b c h w"],
        regions: Float[Tensor, "r 5"],
        stride: int,
        sizes: Int[Tensor, "b 2"],
    ) -> tuple[Float[Tensor, "r k n"], Int[Tensor, "r n"]]:
        """Weights of each bin, of sum 1, and the cells they are of, in raster order of the map."""
        with torch.autocast(x.device.type, enabled=False):
            wide = torch.promote_types(x.dtype, torch.float32)
            picture, boxes = regions[:, 0].long(), regions[:, 1:].detach().to(wide)
            most = -(-sizes // stride)[picture]  # [R, 2]
            rows, columns = (
                self.sample(boxes[:, axis::2], most[:, 1 - axis].clamp(max=side), stride)
                for axis, side in ((1, x.shape[2]), (0, x.shape[3]))
            )
            cells = self.crossed(rows.cells * x.shape[3], columns.cells)
            once = self.crossed(rows.new.long(), columns.new.long()) == 2
            once &= self.crossed(rows.met.long(), columns.met.long()) < 2
            looks = x.flatten(2).mT.to(wide) @ self.appearance.T  # [B, HW, K]
            logits = self.geometry(boxes, rows.cells, columns.cells, stride)
            logits = logits + looks[picture[:, None], cells].mT
            return logits.masked_fill(~once[:, None], -torch.inf).softmax(-1), cells

    def geometry(
        self,
        boxes: Float[Tensor, "r 4"],
        rows: Int[Tensor, "r m"],
        columns: Int[Tensor, "r m"],
        stride: int,
    ) -> Float[Tensor, "r k n"]:
        """G, and the prior, which are sums of what rows and columns give."""
        asked = torch.einsum("re,kge->rkg", sines(boxes, self.embedding), self.box)
        bins = torch.arange(self.size * self.size, device=boxes.device)
        each = []
        for axis, cells, bin in ((1, rows, bins // self.size), (0, columns, bins % self.size)):
            z = (cells + 0.5).to(boxes.dtype) * stride  # [R, M]
            known = sines(z[..., None], self.embedding) @ self.position[1 - axis].T  # [R, M, G]
            g = torch.einsum("rkg,rmg->rkm", asked, known)
            if self.pull is not None:
                step = (boxes[:, axis + 2] - boxes[:, axis]) / self.size  # [R]
                middle = boxes[:, axis, None] + (bin + 0.5) * step[:, None]  # [R, K]
                away = (z[:, None] - middle[..., None]) / step.clamp(min=stride)[:, None, None]
                g = g - self.pull[:, None] * away.square() / 2
            each.append(g)
        return self.crossed(*each)

    def sample(self, ends: Float[Tensor, "r 2"], most: Int[Tensor, "r"], stride: int) -> Line:
        """Cells along one axis, of boxes between these pixels and of pictures of so many cells."""
        first, last = (ends[:, 0] / stride - 0.5).ceil(), (ends[:, 1] / stride - 0.5).floor()
        nearest = (ends.mean(1) / stride).floor()
        first, last = (torch.where(first > last, nearest, end).long() for end in (first, last))
        first, last = (end.clamp(min=torch.zeros_like(most), max=most - 1) for end in (first, last))
        box = spread(first, last - first + 1, self.grids[0])
        whole = spread(torch.zeros_like(most), most, self.grids[1])
        met = (whole[:, :, None] == box[:, None]).any(2)
        return Line(
            torch.cat([box, whole], 1),
            torch.cat([changes(box), changes(whole)], 1),
            torch.cat([torch.zeros_like(box, dtype=torch.bool), met], 1),
        )

    def crossed(
        self, rows: Shaped[Tensor, "*b m"], columns: Shaped[Tensor, "*b m"]
    ) -> Shaped[Tensor, "*b n"]:
        """The sum of every row and column, grid by grid."""
        grids = zip(rows.split(self.grids, -1), columns.split(self.grids, -1), strict=True)
        return torch.cat([(a[..., None] + b[..., None, :]).flatten(-2) for a, b in grids], -1)


def gathered(
    x: Float[Tensor, "b c h w"],
    picture: Int[Tensor, "r"],
    cells: Int[Tensor, "r n"],
    weights: Float[Tensor, "r k n"],
) -> Float[Tensor, "r k c"]:
    """Sums of cells with the weights of each bin: the general form of all pooling of regions."""
    return weights @ x.flatten(2).mT[picture[:, None], cells]


def sines(z: Float[Tensor, "*b n"], channels: int) -> Float[Tensor, "*b e"]:
    """Sines, then cosines, of each coordinate, `channels` of both together."""
    i = torch.arange(channels // 2, device=z.device, dtype=z.dtype)
    angle = z[..., None] / 1000 ** (2 * i / channels)
    return torch.cat([angle.sin(), angle.cos()], -1).flatten(-2)


def spread(first: Int[Tensor, "r"], count: Int[Tensor, "r"], points: int) -> Int[Tensor, "r p"]:
    """That many of `count` cells from `first` on, evenly; cells come twice where there are less."""
    i = torch.arange(points, device=first.device)
    return first[:, None] + (2 * i + 1) * count[:, None] // max(2 * points, 1)


def changes(cells: Int[Tensor, "r p"]) -> Bool[Tensor, "r p"]:
    """Whether a cell is not the one before it."""
    return torch.cat([torch.ones_like(cells[:, :1], dtype=torch.bool), cells.diff() != 0], 1)
