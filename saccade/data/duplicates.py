"""Pictures that are nearly the same: re-encoded, resized, slightly cropped.

A picture's thumbnail (32 x 32 grays) gives 128 bits: is each of 8 x 8 areas brighter than its
neighbor to the left, and than the one above (difference hashes). Pairs of like mean gray whose bits
differ in at most HASH places are candidates. One is a match if its thumbnails, one of them cropped
by up to 10 % in the best of 37 ways, correlate by at least MATCH. Only pairs within a window of
mean gray are compared, in blocks of two popcounts, so 100,000 pictures take seconds.

Figures that chose the limits stand in docs/doctor.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped, UInt8, UInt64
from torch import Tensor

SIDE = 32  # of a thumbnail
HASH = 28  # bits of 128 that may differ
LUMA = 16  # of 255, by which mean grays may differ
COARSE = 0.65  # least correlation of 16 x 16 grays, before alignment is tried
MATCH = 0.94  # least correlation of aligned thumbnails
BLANK = 2.0  # of 255: thumbnails that vary less look like anything
SCALES = (0.975, 0.95, 0.925, 0.9)  # of the crops tried
ROWS, COLUMNS = 64, 8192  # of a block of hash comparisons
PAIRS = 512  # aligned at a time


def thumbnail(x: Shaped[Tensor, "c h w"]) -> UInt8[np.ndarray, "32 32"]:
    """Mean of the channels, shrunk; where pixels are not 8 bits, between its own extremes."""
    small = F.interpolate(x[None].float(), (SIDE, SIDE), mode="bilinear", antialias=True)
    gray = small[0].mean(0)
    if x.dtype != torch.uint8:
        low, high = gray.aminmax()
        gray = (gray - low) / (high - low).clamp_min(1e-12) * 255
    return gray.round_().clamp_(0, 255).byte().numpy()


def blank(thumbs: UInt8[np.ndarray, "n 32 32"]) -> Bool[np.ndarray, "n"]:
    """Pictures of nearly one gray."""
    return thumbs.std((1, 2)) < BLANK


def near(thumbs: UInt8[np.ndarray, "n 32 32"]) -> list[tuple[int, int, float]]:
    """Pairs of nearly equal pictures, first before second, and their correlation."""
    rows = np.flatnonzero(~blank(thumbs))  # of the pictures compared
    if len(rows) < 2:
        return []
    x = torch.from_numpy(thumbs[rows])
    found = []
    for a, b in _chunks(_candidates(x), PAIRS):
        a, b = _alike(x, a, b)
        score = aligned(x[a].float(), x[b].float())
        for k in (score >= MATCH).nonzero()[:, 0].tolist():
            i, j = sorted((int(rows[a[k]]), int(rows[b[k]])))
            found.append((i, j, float(score[k])))
    return sorted(found)


def groups(pairs: list[tuple[int, int, float]]) -> list[list[int]]:
    """Pictures joined by pairs, directly or through others."""
    root: dict[int, int] = {}

    def find(i: int) -> int:
        while root.setdefault(i, i) != i:
            i = root[i] = root[root[i]]
        return i

    for i, j, _ in pairs:
        a, b = sorted((find(i), find(j)))
        root[b] = a
    joined: dict[int, list[int]] = {}
    for i in sorted(root):
        joined.setdefault(find(i), []).append(i)
    return list(joined.values())


def hashes(x: UInt8[Tensor, "n 32 32"]) -> UInt64[np.ndarray, "2 n"]:
    """64 bits of brighter than the left, and 64 of brighter than above."""
    wide = x[:, None].float()
    across = F.adaptive_avg_pool2d(wide, (8, 9))[:, 0].diff(dim=2) > 0
    down = F.adaptive_avg_pool2d(wide, (9, 8))[:, 0].diff(dim=1) > 0
    bits = torch.stack([across.flatten(1), down.flatten(1)])
    return np.packbits(bits.numpy(), axis=2).view(np.uint64)[..., 0]


def aligned(a: Float[Tensor, "b 32 32"], b: Float[Tensor, "b 32 32"]) -> Float[Tensor, "b"]:
    """Largest correlation of one with the other cropped."""
    one, two = _crops(a), _crops(b)  # [B, W, 1024]; the first is the whole picture
    there = torch.einsum("bwd,bd->bw", one, two[:, 0])
    back = torch.einsum("bwd,bd->bw", two, one[:, 0])
    return torch.maximum(there, back).amax(1)


def _candidates(x: UInt8[Tensor, "n 32 32"]) -> Iterator[Int64[np.ndarray, "2 p"]]:
    """Positions of pairs of like mean and like hash."""
    mean = x.flatten(1).float().mean(1).numpy()
    order = mean.argsort(kind="stable")
    mean = mean[order]
    h, v = hashes(x)[:, order]
    for top in range(0, len(x), ROWS):
        rows = slice(top, top + ROWS)
        end = int(mean.searchsorted(mean[rows][-1] + LUMA, side="right"))
        for left in range(top, end, COLUMNS):
            columns = slice(left, min(left + COLUMNS, end))
            far = np.bitwise_count(h[rows, None] ^ h[columns])
            far += np.bitwise_count(v[rows, None] ^ v[columns])
            i, j = np.divmod(np.flatnonzero(far <= HASH), far.shape[1])
            i, j = i + top, j + left
            kept = (i < j) & (mean[j] - mean[i] <= LUMA)
            yield np.stack([order[i[kept]], order[j[kept]]])


def _chunks(
    parts: Iterator[Int64[np.ndarray, "2 _"]], size: int
) -> Iterator[tuple[Int64[np.ndarray, "_"], Int64[np.ndarray, "_"]]]:
    """The same columns in pieces of `size`."""
    rest = np.empty((2, 0), dtype=np.int64)
    for part in parts:
        rest = np.concatenate([rest, part], 1)
        while rest.shape[1] >= size:
            yield rest[0, :size], rest[1, :size]
            rest = rest[:, size:]
    if rest.size:
        yield rest[0], rest[1]


def _alike(
    x: UInt8[Tensor, "n 32 32"], a: Int64[np.ndarray, "p"], b: Int64[np.ndarray, "p"]
) -> tuple[Int64[np.ndarray, "q"], Int64[np.ndarray, "q"]]:
    """The pairs whose coarse grays correlate as they stand."""
    one, two = (_unit(F.avg_pool2d(x[k].float(), 2).flatten(1)) for k in (a, b))
    kept = ((one * two).sum(1) >= COARSE).numpy()
    return a[kept], b[kept]


def _crops(x: Float[Tensor, "b 32 32"]) -> Float[Tensor, "b w d"]:
    down, across = _windows()
    return _unit(torch.einsum("wij,bjk,wlk->bwil", down, x, across).flatten(2))


@cache
def _windows() -> tuple[Float[Tensor, "w 32 32"], Float[Tensor, "w 32 32"]]:
    """What takes a picture to each of its crops: the whole, and 9 places at each scale."""
    whole = _resample(1.0, 0.0)
    down, across = [whole], [whole]
    for scale in SCALES:
        places = [_resample(scale, at) for at in (0.0, 0.5, 1.0)]
        down += [y for y in places for _ in places]
        across += places * 3
    return torch.stack(down), torch.stack(across)


def _resample(scale: float, at: float) -> Float[Tensor, "32 32"]:
    """Rows weigh the pixels that a crop's pixel lies between; at: 0 the low edge, 1 the high."""
    centers = (torch.arange(SIDE) + 0.5) * scale + at * (1 - scale) * SIDE - 0.5
    centers = centers.clamp(0, SIDE - 1)
    return (1 - (centers[:, None] - torch.arange(SIDE)).abs()).clamp_min(0)


def _unit(x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    return F.normalize(x - x.mean(-1, keepdim=True), dim=-1)
