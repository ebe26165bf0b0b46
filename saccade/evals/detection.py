"""Average precision of boxes and masks, by COCO's rules and by VOC 2007's, with intervals.

COCO's figures are faster-coco-eval's; a class that no picture has is skipped. VOC's (Everingham et
al. 2010) is the mean of the best precision at recall 0, .1, ... 1 and over, on the files' own grid:
pixels counted from 1 with the last one inside, boxes rounded to a tenth and scores to a thousandth;
what is difficult counts neither way. As in the transfer tests, AP is the mean over IoU .50 to .95.
Intervals: bootstrap over pictures, whose matches do not depend on each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from ..core import Found
from ..data.detection import Objects, mask_tools, rle
from .results import Result

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # IoU
GRID = np.array([1.0, 1.0, 0.0, 0.0])  # from pixels from 0, ends outside, to VOC's
DRAWS = 200  # of the bootstrap
LEVEL = 0.95
METRICS = ("AP", "AP50", "AP75")
VERSION = 1  # of both protocols

Sizes = Sequence[tuple[int, int]]  # height and width of each picture
Figures = dict[str, tuple[float, np.ndarray]]  # metric: value, bootstrap draws


def evaluate(
    found: Sequence[Found],
    truth: Sequence[Objects],
    sizes: Sizes,
    classes: Sequence[str],
    *,
    model: str,
    settings: dict[str, Any],
    seed: int = 0,
) -> list[Result]:
    """All figures of a test set; masks where both sides have them."""
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(truth), (DRAWS, len(truth)))
    parts = [("coco-box", coco(found, truth, sizes, len(classes), "bbox", draws))]
    if all(f.masks is not None for f in found) and any(o.outlines for o in truth):
        parts.append(("coco-mask", coco(found, truth, sizes, len(classes), "segm", draws)))
    parts.append(("voc07-box", voc07(found, truth, len(classes), draws)))
    low, high = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    return [
        Result(
            model=model,
            protocol=f"{protocol}/{VERSION}",
            metric=metric,
            value=float(value),
            low=float(np.nanquantile(drawn, low)),
            high=float(np.nanquantile(drawn, high)),
            n=len(truth),
            settings={**settings, "seed": seed, "draws": DRAWS},
        )
        for protocol, figures in parts
        for metric, (value, drawn) in figures.items()
    ]


def coco(
    found: Sequence[Found],
    truth: Sequence[Objects],
    sizes: Sizes,
    classes: int,
    kind: Literal["bbox", "segm"],
    draws: Int64[np.ndarray, "d n"],
) -> Figures:
    """AP, AP50 and AP75 of `bbox` or `segm`, with a value for each draw of pictures."""
    from faster_coco_eval import COCO, COCOeval_faster
    from faster_coco_eval.faster_eval_api_cpp import COCOevalAccumulate

    masked, n = kind == "segm", len(truth)
    truths = COCO(coco_truth(truth, sizes, classes, masked))
    judge = COCOeval_faster(truths, truths.loadRes(coco_found(found, masked)), kind)
    judge.separate_eval = True  # keeps the matches of each picture
    judge.params.areaRng, judge.params.areaRngLbl = judge.params.areaRng[:1], ["all"]
    judge.params.maxDets = judge.params.maxDets[-1:]
    judge.evaluate()
    matches = judge._evalImgs_cpp  # by class, then picture

    def figures(order: list[int]) -> list[float]:
        chosen = [matches[c * n + i] for c in range(classes) for i in order]
        precision = COCOevalAccumulate(judge._paramsEval, chosen)["precision"][..., 0, 0]
        known = np.where(precision > -1, precision, np.nan)  # [T, R, K]
        return [_mean(known), _mean(known[0]), _mean(known[5])]

    drawn = np.array([figures(order) for order in draws.tolist()])
    values = figures(list(range(n)))
    return dict(zip(METRICS, zip(values, drawn.T, strict=True), strict=True))


def coco_truth(
    truth: Sequence[Objects], sizes: Sizes, classes: int, masked: bool
) -> dict[str, Any]:
    """The test set in COCO's form; what is difficult counts like a crowd."""
    annotations = []
    for i, (objects, (height, width)) in enumerate(zip(truth, sizes, strict=True)):
        for k, (x0, y0, x1, y1) in enumerate(objects.boxes.tolist()):
            row: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": i + 1,
                "category_id": int(objects.labels[k]) + 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": float(objects.areas[k]),
                "iscrowd": int(objects.crowd[k] or objects.difficult[k]),
            }
            if masked and objects.outlines:
                row["segmentation"] = rle(objects.outlines[k], height, width)
            if not masked or objects.outlines:
                annotations.append(row)
    return {
        "images": [
            {"id": i + 1, "height": height, "width": width}
            for i, (height, width) in enumerate(sizes)
        ],
        "categories": [{"id": k + 1, "name": str(k)} for k in range(classes)],
        "annotations": annotations,
    }


def coco_found(found: Sequence[Found], masked: bool) -> list[dict[str, Any]]:
    """Detections in COCO's form."""
    rows = []
    for i, one in enumerate(found):
        masks = encoded(one) if masked else []
        numbers = (one.boxes.tolist(), one.labels.tolist(), one.scores.tolist())
        for k, ((x0, y0, x1, y1), label, score) in enumerate(zip(*numbers, strict=True)):
            shape = {"segmentation": masks[k]} if masked else {"bbox": [x0, y0, x1 - x0, y1 - y0]}
            rows.append({"image_id": i + 1, "category_id": label + 1, "score": score, **shape})
    return rows


def encoded(found: Found) -> list[dict[str, Any]]:
    """COCO's run lengths of each mask."""
    assert found.masks is not None
    mask = mask_tools()
    bits = found.masks.cpu().numpy().astype(np.uint8)  # [N, h, w]
    return [mask.encode(np.asfortranarray(one)) for one in bits]


def voc07(
    found: Sequence[Found],
    truth: Sequence[Objects],
    classes: int,
    draws: Int64[np.ndarray, "d n"],
) -> Figures:
    """AP, AP50 and AP75 by the 11 points, with a value for each draw of pictures."""
    times = np.stack([np.bincount(order, minlength=len(truth)) for order in draws])  # [d, n]
    weights = np.concatenate([np.ones((1, len(truth))), times])  # first as they are
    each = []
    for label in range(classes):
        counted = np.array([((o.labels == label) & ~_ignored(o)).sum() for o in truth])
        if counted.sum():
            picture, right, wrong = _judged(found, truth, label)
            aps = [
                eleven_points(right * w[picture], wrong * w[picture], float(counted @ w))
                for w in weights
            ]
            each.append(aps)
    aps = np.nanmean(np.array(each), 0)  # [1 + d, T]
    values = np.stack([aps.mean(1), aps[:, 0], aps[:, 5]])  # [3, 1 + d]
    return {metric: (v[0], v[1:]) for metric, v in zip(METRICS, values, strict=True)}


def eleven_points(
    right: Float64[np.ndarray, "t d"], wrong: Float64[np.ndarray, "t d"], objects: float
) -> Float64[np.ndarray, "t"]:
    """AP for each threshold: weights of true and false detections, best score first."""
    if not objects:
        return np.full(len(right), np.nan)
    hits, misses = right.cumsum(1), wrong.cumsum(1)
    recall = hits / objects
    precision = hits / np.maximum(hits + misses, np.finfo(float).eps)
    reached = recall[None] >= np.linspace(0, 1, 11)[:, None, None]  # [11, T, D]
    return np.where(reached, precision, 0.0).max(2, initial=0.0).mean(0)


def _judged(
    found: Sequence[Found], truth: Sequence[Objects], label: int
) -> tuple[Int64[np.ndarray, "d"], Float64[np.ndarray, "t d"], Float64[np.ndarray, "t d"]]:
    """The picture of each detection of a class, best first, and at which thresholds it is right
    and wrong: 1 or 0, and both 0 on what is difficult."""
    rows = [
        (i, box, round(score, 3))
        for i, one in enumerate(found)
        for box, score, kind in zip(
            one.boxes.tolist(), one.scores.tolist(), one.labels.tolist(), strict=True
        )
        if kind == label
    ]
    rows.sort(key=lambda row: -row[2])
    right, wrong = np.zeros((2, len(THRESHOLDS), len(rows)))
    taken = [np.zeros((len(THRESHOLDS), len(o.labels)), dtype=bool) for o in truth]
    for d, (i, box, _) in enumerate(rows):
        objects = truth[i]
        mine = np.flatnonzero(objects.labels == label)
        overlap = _overlaps(np.round(np.array(box) + GRID, 1), objects.boxes[mine] + GRID)
        best = mine[overlap.argmax()] if len(mine) else -1
        over = overlap.max(initial=-1.0) > THRESHOLDS  # [T]
        if best >= 0 and _ignored(objects)[best]:
            wrong[:, d] = ~over
            continue
        right[:, d] = over & ~taken[i][:, best] if best >= 0 else False
        wrong[:, d] = 1 - right[:, d]
        if best >= 0:
            taken[i][:, best] |= over
    return np.array([i for i, _, _ in rows], dtype=np.int64), right, wrong


def _overlaps(
    box: Float[np.ndarray, "4"], boxes: Float[np.ndarray, "n 4"]
) -> Float[np.ndarray, "n"]:
    """IoU where the last pixel is inside."""
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    shared = np.maximum(high - low + 1, 0).prod(1)
    areas = [(b[..., 2:] - b[..., :2] + 1).prod(-1) for b in (boxes, box)]
    return shared / (areas[0] + areas[1] - shared)


def _ignored(objects: Objects) -> Bool[np.ndarray, "n"]:
    return objects.difficult | objects.crowd


def _mean(precision: Float[np.ndarray, "..."]) -> float:
    """Over what is known; nothing known is nan."""
    known = precision[~np.isnan(precision)]
    return float(known.mean()) if len(known) else float("nan")
