"""Object relation: every object adds what it finds at the others, by looks and by place.

Hu et al. 2018, arXiv:1711.11575. For object n with features f and box (x, y, w, h), in each head,
    f_n + concat_heads sum_m w_mn W_V f_m,
    w_mn = softmax_m( log g_mn + (W_K f_m).(W_Q f_n) / sqrt d ),
    g_mn = max(0, W_G E(geometry of m and n)), no less than 1e-6,
with keys of d = `width` numbers. The geometry is four numbers: the logarithms of
    |x_m - x_n| / w, |y_m - y_n| / h, w_n / w_m, h_n / h_m.
E of each is 8 sines and then 8 cosines of 100 e / 1000^(i/8). `official` divides by w and h of the
asking box n and counts w and h in whole pixels, x1 - x0 + 1, as the code does that gave the paper's
figures; `paper` divides by those of m, as the equation does. In both, distances below a thousandth
of a box count as that. W_V acts before the sum, not after as in the official code, where raw
features are summed once a head: the same function in a sixteenth of the memory. Boxes get no
gradient.

Boxes that only training knows must ask and not be asked: `keys` says who may be seen.
`RelationHead` is the paper's box head, with a module behind each layer, in front of its ReLU.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

Geometry = Literal["official", "paper"]
FREQUENCIES = 8
EMBEDDED = 4 * 2 * FREQUENCIES
NEAREST = 1e-3  # of a box's side
LEAST = 1e-6  # of g


class ObjectRelation(nn.Module):
    """Features of the same width as given, for any number of sets of objects."""

    def __init__(
        self,
        channels: int,
        *,
        heads: int = 16,
        width: int = 64,  # of queries and keys, a head
        geometry: Geometry = "official",
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"heads={heads} does not divide {channels} channels; choose a divisor")
        self.heads, self.scale = heads, width**-0.5
        self.geometry: Geometry = geometry
        self.query = nn.Linear(channels, heads * width)
        self.key = nn.Linear(channels, heads * width)
        self.value = nn.Linear(channels, channels)
        self.place = nn.Linear(EMBEDDED, heads)
        for layer in (self.query, self.key, self.value, self.place):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(
        self, x: Float[Tensor, "*b n c"], boxes: Float[Tensor, "*b n 4"], keys: Bool[Tensor, "*b n"]
    ) -> Float[Tensor, "*b n c"]:
        v = self.value(x).unflatten(-1, (self.heads, -1)).transpose(-2, -3)  # [*B, heads, N, D]
        y = self.attention(x, boxes, keys).to(v.dtype) @ v
        return x + y.transpose(-2, -3).flatten(-2)

    def attention(
        self, x: Float[Tensor, "*b n c"], boxes: Float[Tensor, "*b n 4"], keys: Bool[Tensor, "*b n"]
    ) -> Float[Tensor, "*b heads n n"]:
        """Weights of every asking object (row), of sum 1; all 0 where no object may be seen."""
        q, k = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(-2, -3)
            for layer in (self.query, self.key)
        )
        with torch.autocast(x.device.type, enabled=False):  # 1e-6 is none of half precision's
            wide = torch.promote_types(x.dtype, torch.float32)
            logits = q.to(wide) @ k.to(wide).mT * self.scale + self.places(boxes.to(wide))
            hidden = ~keys[..., None, None, :]
            logits = logits.masked_fill(hidden, torch.finfo(wide).min)
            return logits.softmax(-1).masked_fill(hidden, 0.0)

    def places(self, boxes: Float[Tensor, "*b n 4"]) -> Float[Tensor, "*b heads n n"]:
        """log g of every asking box (row) and box."""
        g = self.place(embedded(relative(boxes.detach(), self.geometry)))
        return g.clamp(min=LEAST).log().movedim(-1, -3)


class RelationHead(nn.Module):
    """Fully connected layers, each followed by a relation of the objects of a picture and a ReLU.

    `body` is what comes before them and gives the first of `widths`.
    """

    def __init__(self, body: nn.Module, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.body = body
        pairs = list(itertools.pairwise(widths))
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        self.relations = nn.ModuleList(ObjectRelation(b) for _, b in pairs)

    def forward(
        self,
        regions: Float[Tensor, "r ..."],
        boxes: list[Float[Tensor, "_ 4"]],
        keys: list[Bool[Tensor, "_"]],
    ) -> Float[Tensor, "r d"]:
        """Of the regions of all pictures, one picture after the other."""
        y = self.body(regions)
        for layer, relation in zip(self.layers, self.relations, strict=True):
            each = layer(y).split([len(b) for b in boxes])
            y = torch.cat([relation(*one) for one in zip(each, boxes, keys, strict=True)]).relu()
        return y


def relative(
    boxes: Float[Tensor, "*b n 4"], geometry: Geometry = "official"
) -> Float[Tensor, "*b n n 4"]:
    """The four numbers of every asking box (row) and box."""
    official = geometry == "official"
    size = boxes[..., 2:] - boxes[..., :2] + official  # [*B, N, 2]
    size = size.clamp(min=NEAREST)  # of a box without area
    center = (boxes[..., :2] + boxes[..., 2:]) / 2
    asking, seen = size[..., :, None, :], size[..., None, :, :]
    distance = (center[..., :, None, :] - center[..., None, :, :]).abs()
    share = distance / (asking if official else seen)
    return torch.cat([share.clamp(min=NEAREST).log(), (asking / seen).log()], -1)


def embedded(geometry: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 64"]:
    """Sines, then cosines, of each number."""
    i = torch.arange(FREQUENCIES, device=geometry.device, dtype=geometry.dtype)
    angle = 100 * geometry[..., None] / 1000 ** (i / FREQUENCIES)
    return torch.cat([angle.sin(), angle.cos()], -1).flatten(-2)
