"""Average precision beside pycocotools, and VOC's beside the definition as loops."""

import contextlib
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from saccade.core import Found
from saccade.data.detection import Objects, bitmaps, open_annotated
from saccade.evals import detection

SIZE = (60, 80)
CLASSES = ("a", "b", "c", "absent")
THRESHOLDS = [0.5 + 0.05 * i for i in range(10)]


def square(box):
    x0, y0, x1, y1 = np.round(box).astype(int).tolist()
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def objects(boxes, labels, crowd=None, difficult=None):
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    n = len(boxes)
    return Objects(
        boxes=boxes,
        labels=np.array(labels, dtype=np.int64),
        crowd=np.zeros(n, bool) if crowd is None else np.array(crowd),
        difficult=np.zeros(n, bool) if difficult is None else np.array(difficult),
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(1),
        outlines=tuple(square(b) for b in boxes),
    )


def bits(boxes):
    masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.round().int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def planted(seed, n=12, noise=2.5, crowd=0.15, difficult=0.0):
    """Random objects, and detections that shake, miss, double and invent them."""
    g = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(n):
        k = int(g.integers(0, 5))
        low = g.uniform(0, 30, (k, 2))
        boxes = np.concatenate([low, low + g.uniform(8, 28, (k, 2))], 1).round()
        labels = g.integers(0, 3, k)
        hard = g.uniform(size=k) < difficult
        truth.append(objects(boxes, labels, g.uniform(size=k) < crowd, hard))
        seen = np.concatenate([boxes, boxes, [[1, 1, 9, 12]]])
        kept = g.uniform(size=len(seen)) < 0.8
        moved = np.clip(seen + g.normal(0, noise, seen.shape), 0, 58)
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 2)
        kinds = np.concatenate([labels, labels, [0]])
        moved = torch.tensor(moved[kept], dtype=torch.float32)
        scores = torch.tensor(g.uniform(0.06, 1, kept.sum()), dtype=torch.float32)
        order = scores.argsort(descending=True)
        kinds = torch.tensor(kinds[kept])[order]
        moved = moved[order]
        found.append(Found(boxes=moved, labels=kinds, scores=scores[order], masks=bits(moved)))
    return found, truth


def by_pycocotools(found, truth, kind, sizes=None, classes=4):
    masked, sizes = kind == "segm", sizes or [SIZE] * len(truth)
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = detection.coco_truth(truth, sizes, classes, masked)
        gt.createIndex()
        judge = COCOeval(gt, gt.loadRes(detection.coco_found(found, masked)), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats[:3]


def ours(found, truth, kind):
    draws = np.arange(len(truth))[None]  # one draw: every picture once
    figures = detection.coco(found, truth, [SIZE] * len(truth), len(CLASSES), kind, draws)
    for value, drawn in figures.values():
        assert drawn[0] == pytest.approx(value, nan_ok=True)
    return [figures[m][0] for m in ("AP", "AP50", "AP75")]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools'
@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(4))
def test_coco_figures_equal_pycocotools(kind, seed):
    found, truth = planted(seed)
    np.testing.assert_allclose(ours(found, truth, kind), by_pycocotools(found, truth, kind))


def test_a_draw_of_pictures_equals_pycocotools_on_those_pictures():
    found, truth = planted(5)
    order = np.array([0, 3, 3, 7, 1, 1, 1, 9, 11, 2, 6, 5])
    figures = detection.coco(
        found, truth, [SIZE] * 12, len(CLASSES), "bbox", np.stack([order, order])
    )
    again = by_pycocotools([found[i] for i in order], [truth[i] for i in order], "bbox")
    # pictures drawn twice stand beside each other there too, ties apart
    for value, (_, drawn) in zip(again, figures.values(), strict=True):
        np.testing.assert_allclose(drawn, value, atol=1e-6)


def eleven_points(found, truth, label, threshold):
    """The definition, detection by detection."""
    rows = []
    for i, one in enumerate(found):
        for box, kind, score in zip(one.boxes, one.labels, one.scores, strict=True):
            if kind == label:
                x0, y0, x1, y1 = box.tolist()
                rows.append((-round(score.item(), 3), i, [x0 + 1, y0 + 1, x1, y1]))
    rows.sort(key=lambda row: row[0])
    positives = sum(
        1
        for o in truth
        for k, hard, many in zip(o.labels, o.difficult, o.crowd, strict=True)
        if k == label and not hard and not many
    )
    if not positives:
        return None
    used, outcome = set(), []
    for _, i, box in rows:
        box = [round(c, 1) for c in box]
        best, which = -1.0, None
        for k, (x0, y0, x1, y1) in enumerate(truth[i].boxes.tolist()):
            if truth[i].labels[k] != label:
                continue
            other = [x0 + 1, y0 + 1, x1, y1]
            w = min(box[2], other[2]) - max(box[0], other[0]) + 1
            h = min(box[3], other[3]) - max(box[1], other[1]) + 1
            shared = max(w, 0) * max(h, 0)
            area = lambda b: (b[2] - b[0] + 1) * (b[3] - b[1] + 1)  # noqa: E731
            iou = shared / (area(box) + area(other) - shared)
            if iou > best:
                best, which = iou, k
        if best > threshold:
            if truth[i].difficult[which] or truth[i].crowd[which]:
                continue
            outcome.append((i, which) not in used)
            used.add((i, which))
        else:
            outcome.append(False)
    total = 0.0
    for point in np.linspace(0, 1, 11):
        best, hits = 0.0, 0
        for n, right in enumerate(outcome, 1):
            hits += right
            if hits / positives >= point:
                best = max(best, hits / n)
        total += best / 11
    return total


@pytest.mark.parametrize("seed", range(4))
def test_voc_figures_equal_the_definition_as_loops(seed):
    found, truth = planted(seed, crowd=0.0, difficult=0.3)
    figures = detection.voc07(found, truth, len(CLASSES), np.arange(len(truth))[None])
    table = np.array(
        [
            aps
            for label in range(len(CLASSES))
            if None not in (aps := [eleven_points(found, truth, label, t) for t in THRESHOLDS])
        ]
    )
    want = [table.mean(), table[:, 0].mean(), table[:, 5].mean()]
    for value, (figure, drawn) in zip(want, figures.values(), strict=True):
        assert figure == pytest.approx(value, abs=1e-9)
        assert drawn[0] == pytest.approx(value, abs=1e-9)


def perfect(truth):
    return [
        Found(
            boxes=torch.from_numpy(o.boxes),
            labels=torch.from_numpy(o.labels),
            scores=torch.ones(len(o.labels)),
            masks=bits(torch.from_numpy(o.boxes)),
        )
        for o in truth
    ]


def nothing(n):
    empty = Found(
        boxes=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.long),
        scores=torch.zeros(0),
        masks=torch.zeros(0, *SIZE, dtype=torch.bool),
    )
    return [empty] * n


def evaluate(found, truth):
    sizes = [SIZE] * len(truth)
    return detection.evaluate(found, truth, sizes, CLASSES, model="m", settings={})


def test_perfect_detections_score_one_and_none_score_zero():
    _, truth = planted(1, crowd=0.0)
    for found, value in ((perfect(truth), 1.0), (nothing(len(truth)), 0.0)):
        results = evaluate(found, truth)
        assert [(r.protocol, r.metric) for r in results] == [
            (protocol, metric)
            for protocol in ("coco-box/1", "coco-mask/1", "voc07-box/1")
            for metric in ("AP", "AP50", "AP75")
        ]
        for r in results:
            assert (r.value, r.low, r.high) == pytest.approx((value,) * 3)
            assert r.n == len(truth)


def test_the_interval_holds_the_figure_and_narrows_with_more_pictures():
    few, many = evaluate(*planted(2, n=12)), evaluate(*planted(2, n=60))
    for r in (*few, *many):
        assert r.low <= r.value <= r.high
    assert many[0].high - many[0].low < few[0].high - few[0].low


def test_coco_reads_only_the_order_of_scores():
    found, truth = planted(3)
    moved = [
        Found(boxes=f.boxes, labels=f.labels, scores=f.scores**3, masks=f.masks) for f in found
    ]
    assert ours(found, truth, "bbox") == ours(moved, truth, "bbox")


@pytest.fixture(scope="module")
def coco128(tmp_path_factory):
    """Its training half, its picture sizes, and shaken copies of its objects as detections."""
    shared = Path(os.environ.get("SACCADE_DATA", "")) / "coco128" / "coco128.tar"
    if not shared.is_file():
        pytest.skip("SACCADE_DATA has no coco128")
    root = tmp_path_factory.mktemp("coco128")
    with tarfile.open(shared) as tar:
        tar.extractall(root, filter="data")
    data = open_annotated(str(root / "coco128"))
    g = np.random.default_rng(0)
    sizes, found = [], []
    for i, some in enumerate(data.objects):
        height, width = data.pictures.read(i).shape[1:]
        sizes.append((height, width))
        n = len(some.labels)
        sides = some.boxes[:, 2:] - some.boxes[:, :2]
        shift = g.normal(0, 0.08, (n, 4)) * np.concatenate([sides, sides], 1)
        moved = np.clip(some.boxes + shift, 0, [width, height] * 2).astype(np.float32)
        scores = torch.tensor(g.uniform(0.05, 1, n), dtype=torch.float32)
        order = scores.argsort(descending=True)
        masks = bitmaps(some, height, width) if n else np.zeros((0, height, width), np.uint8)
        masks = np.stack([np.roll(m, g.integers(0, 9, 2), (0, 1)) for m in masks]) if n else masks
        found.append(
            Found(
                boxes=torch.from_numpy(moved)[order],
                labels=torch.from_numpy(some.labels)[order],
                scores=scores[order],
                masks=torch.from_numpy(masks).bool()[order],
            )
        )
    return data, sizes, found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools'
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_figures_on_coco128_equal_pycocotools(coco128, kind):
    data, sizes, found = coco128
    classes = len(data.classes)
    draws = np.arange(len(sizes))[None]
    figures = detection.coco(found, data.objects, sizes, classes, kind, draws)
    values = [figures[m][0] for m in ("AP", "AP50", "AP75")]
    assert 0.1 < values[0] < 0.9
    np.testing.assert_allclose(
        values, by_pycocotools(found, data.objects, kind, sizes, classes), atol=1e-9
    )


@pytest.mark.slow
def test_voc_ap50_on_coco128_equals_the_definition_as_loops(coco128):
    data, _, found = coco128
    draws = np.arange(len(found))[None]
    value, _ = detection.voc07(found, data.objects, len(data.classes), draws)["AP50"]
    each = [eleven_points(found, data.objects, k, 0.5) for k in range(len(data.classes))]
    assert value == pytest.approx(np.mean([a for a in each if a is not None]), abs=1e-9)
