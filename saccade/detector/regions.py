"""What is done with regions: cut out of the maps, seen together, named, freed of duplicates.

`losses` and `detections` are the two halves of torchvision's RoIHeads, of which they use all parts,
for heads whose regions see each other (Hu et al. 2018, arXiv:1711.11575) and for a network in the
place of non-maximum suppression. Not the same as the paper: both learn from torchvision's sample of
regions, where the paper has all proposals and their hardest; each class has boxes of its own; the
removal learns with the detector, never alone. A class whose best score is below the threshold has
no detections, as in the paper (.05; the paper has .01 without a pyramid), and the best
`detections_per_img` are given.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import (
    RoIHeads,
    fastrcnn_loss,
    maskrcnn_inference,
    maskrcnn_loss,
)
from torchvision.ops import box_iou, clip_boxes_to_image, remove_small_boxes, roi_align
from torchvision.ops.poolers import LevelMapper

from ..attention.duplicate_removal import DuplicateRemoval
from ..attention.learned_region_features import LearnedRegionFeatures
from ..attention.object_relation import RelationHead
from .necks import Maps

Sizes = list[tuple[int, int]]  # height and width of the pictures, without padding
SMALLEST = 1e-2  # pixels of a detection's sides: torchvision's


class RoIPool(nn.Module):
    """Regions of the level that fits their size, aligned to half pixels ("RoIAlign V2").

    With `learned` layers it is these that take the features, the same ones on all levels.
    """

    def __init__(
        self, size: int, strides: tuple[int, ...], learned: LearnedRegionFeatures | None = None
    ) -> None:
        super().__init__()
        self.size, self.strides, self.learned = size, strides, learned
        first = strides[0].bit_length() - 1
        self.level_of = LevelMapper(first, first + len(strides) - 1)

    def forward(
        self, maps: Maps, boxes: list[Float[Tensor, "_ 4"]], sizes: Sizes
    ) -> Float[Tensor, "r d s s"]:
        levels = list(maps.values())[: len(self.strides)]
        picture = torch.cat([b.new_full((len(b), 1), i) for i, b in enumerate(boxes)])
        regions = torch.cat([picture, torch.cat(boxes)], 1)  # [R, 5]
        fits = self.level_of(boxes)
        out = levels[0].new_zeros(len(regions), levels[0].shape[1], self.size, self.size)
        for level, (y, stride) in enumerate(zip(levels, self.strides, strict=True)):
            rows = torch.where(fits == level)[0]
            pooled = self.taken(y, regions[rows], stride, sizes)
            out = out.index_copy(0, rows, pooled.to(out.dtype))
        return out

    def taken(
        self, y: Float[Tensor, "b d h w"], regions: Float[Tensor, "r 5"], stride: int, sizes: Sizes
    ) -> Float[Tensor, "r d s s"]:
        if self.learned is not None:
            return self.learned(y, regions, stride, torch.tensor(sizes, device=y.device))
        return roi_align(y, regions, self.size, 1 / stride, aligned=True)


def losses(
    heads: RoIHeads,
    removal: DuplicateRemoval | None,
    maps: Maps,
    proposals: list[Float[Tensor, "_ 4"]],
    sizes: Sizes,
    targets: list[dict[str, Tensor]],
) -> dict[str, Float[Tensor, ""]]:
    boxes, matched, labels, shifts = heads.select_training_samples(proposals, targets)
    keys = [proposed(b, t["boxes"]) for b, t in zip(boxes, targets, strict=True)]
    x, logits, moves = _named(heads, maps, boxes, sizes, keys)
    name, shift = fastrcnn_loss(logits, moves, labels, shifts)
    found = {"loss_classifier": name, "loss_box_reg": shift}
    if removal is not None:
        each = zip(_split(heads, x, logits, moves, boxes, sizes), keys, targets, strict=True)
        parts = [
            removal_loss(removal, scores[rows], y[rows], moved[rows], target)
            for (scores, y, moved), rows, target in each
        ]
        found["loss_duplicates"] = torch.stack(parts).mean()
    if heads.has_mask():
        objects = [torch.where(kind > 0)[0] for kind in labels]
        boxes, matched = (
            [t[rows] for t, rows in zip(ts, objects, strict=True)] for ts in (boxes, matched)
        )
        outlines = _outlined(heads, maps, boxes, sizes)
        masks, kinds = ([t[key] for t in targets] for key in ("masks", "labels"))
        found["loss_mask"] = maskrcnn_loss(outlines, boxes, masks, kinds, matched)
    return found


def detections(
    heads: RoIHeads,
    removal: DuplicateRemoval | None,
    maps: Maps,
    proposals: list[Float[Tensor, "_ 4"]],
    sizes: Sizes,
) -> list[dict[str, Tensor]]:
    keys = [torch.ones(len(b), dtype=torch.bool, device=b.device) for b in proposals]
    x, logits, moves = _named(heads, maps, proposals, sizes, keys)
    if removal is None:
        boxes, scores, labels = heads.postprocess_detections(logits, moves, proposals, sizes)
    else:
        seen = _split(heads, x, logits, moves, proposals, sizes)
        boxes, scores, labels = zip(*(kept(heads, removal, *one) for one in seen), strict=True)
    found = [
        {"boxes": b, "scores": s, "labels": k}
        for b, s, k in zip(boxes, scores, labels, strict=True)
    ]
    if heads.has_mask():
        masks = maskrcnn_inference(_outlined(heads, maps, list(boxes), sizes), list(labels))
        for one, mask in zip(found, masks, strict=True):
            one["masks"] = mask
    return found


def proposed(boxes: Float[Tensor, "n 4"], given: Float[Tensor, "g 4"]) -> Bool[Tensor, "n"]:
    """Which boxes are not the true ones that torchvision adds to the proposals in training."""
    return ~(boxes[:, None] == given.to(boxes.dtype)).all(2).any(1)


def removal_loss(
    removal: DuplicateRemoval,
    scores: Float[Tensor, "n c"],
    x: Float[Tensor, "n d"],
    boxes: Float[Tensor, "n c 4"],
    target: dict[str, Tensor],
) -> Float[Tensor, ""]:
    """Of the detections of one picture; its labels count from 1."""
    ranked = removal(scores, x, boxes)
    overlap = box_iou(ranked.boxes.flatten(0, 1), target["boxes"])
    overlap = overlap.unflatten(0, ranked.rows.shape)  # [C, N, G]
    classes = torch.arange(1, 1 + len(ranked.rows), device=x.device)
    return removal.loss(ranked, removal.targets(overlap, classes[:, None] == target["labels"]))


def kept(
    heads: RoIHeads,
    removal: DuplicateRemoval,
    scores: Float[Tensor, "n c"],
    x: Float[Tensor, "n d"],
    boxes: Float[Tensor, "n c 4"],
) -> tuple[Float[Tensor, "k 4"], Float[Tensor, "k"], Int[Tensor, "k"]]:
    """Boxes, scores and labels from 1 of the best detections of one picture, best first."""
    ranked = removal(scores, x, boxes)
    classes = (ranked.first >= heads.score_thresh).any(1).nonzero()[:, 0]
    flat = ranked.boxes[classes].flatten(0, 1)
    final = ranked.scores.mean(2)[classes].flatten()
    labels = (1 + classes)[:, None].expand(-1, ranked.rows.shape[1]).flatten()
    whole = remove_small_boxes(flat, SMALLEST)
    best = whole[final[whole].argsort(descending=True, stable=True)[: heads.detections_per_img]]
    return flat[best], final[best], labels[best]


def _named(
    heads: RoIHeads,
    maps: Maps,
    boxes: list[Float[Tensor, "_ 4"]],
    sizes: Sizes,
    keys: list[Bool[Tensor, "_"]],
) -> tuple[Float[Tensor, "r d"], Float[Tensor, "r c"], Float[Tensor, "r _"]]:
    """Features, logits and box shifts of the regions of all pictures."""
    head: Any = heads.box_head
    pooled = heads.box_roi_pool(maps, boxes, sizes)
    x = head(pooled, boxes, keys) if isinstance(head, RelationHead) else head(pooled)
    return x, *heads.box_predictor(x)


def _split(
    heads: RoIHeads,
    x: Float[Tensor, "r d"],
    logits: Float[Tensor, "r c"],
    moves: Float[Tensor, "r _"],
    boxes: list[Float[Tensor, "_ 4"]],
    sizes: Sizes,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Scores without the background, features, and moved boxes of each picture."""
    counts = [len(b) for b in boxes]
    moved = heads.box_coder.decode(moves.detach(), boxes).reshape(*logits.shape, 4)
    each = zip(moved[:, 1:].split(counts), sizes, strict=True)
    clipped = [clip_boxes_to_image(b, size) for b, size in each]
    scores = F.softmax(logits, -1)[:, 1:].split(counts)
    return list(zip(scores, x.split(counts), clipped, strict=True))


def _outlined(
    heads: RoIHeads, maps: Maps, boxes: list[Float[Tensor, "_ 4"]], sizes: Sizes
) -> Float[Tensor, "r c h w"]:
    pool: Any = heads.mask_roi_pool
    head: Any = heads.mask_head
    predictor: Any = heads.mask_predictor
    return predictor(head(pool(maps, boxes, sizes)))
