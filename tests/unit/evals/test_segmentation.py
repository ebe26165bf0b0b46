"""Figures of segmentation against loops and scikit-learn's confusion matrix."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, jaccard_score

from saccade.core import IGNORED
from saccade.evals import segmentation as judge

CLASSES = tuple("abcd")


def pictures(n=5, classes=4, seed=0, size=(9, 11)):
    g = np.random.default_rng(seed)
    truth = g.integers(0, classes, (n, *size)).astype(np.uint8)
    seen = np.where(g.random(truth.shape) < 0.6, truth, g.integers(0, classes, truth.shape))
    truth[g.random(truth.shape) < 0.1] = IGNORED
    return truth, seen.astype(np.uint8)


def evaluate(truth, seen, classes=CLASSES):
    counts = [judge.counted(t, s, len(classes)) for t, s in zip(truth, seen, strict=True)]
    results = judge.evaluate(counts, classes, model="m", settings={})
    return {r.metric: r for r in results}


def by_loops(truth, seen, classes):
    """IoU of each class, pixel and class accuracy, one pixel after another."""
    right, there, found = [0] * classes, [0] * classes, [0] * classes
    for t, s in zip(truth.ravel().tolist(), seen.ravel().tolist(), strict=True):
        if t != IGNORED:
            right[t] += t == s
            there[t] += 1
            found[s] += 1
    unions = [a + b - c for a, b, c in zip(there, found, right, strict=True)]
    iou = [r / u if u else None for r, u in zip(right, unions, strict=True)]
    recalls = [r / t for r, t in zip(right, there, strict=True) if t]
    return iou, sum(right) / sum(there), sum(recalls) / len(recalls)


def test_figures_equal_loops_and_sklearn():
    truth, seen = pictures()
    found = evaluate(truth, seen)
    iou, pixels, recall = by_loops(truth, seen, 4)
    assert found["mIoU"].value == pytest.approx(sum(iou) / 4)
    assert found["pixel accuracy"].value == pytest.approx(pixels)
    assert found["class accuracy"].value == pytest.approx(recall)
    for name, value in zip(CLASSES, iou, strict=True):
        assert found[f"IoU {name}"].value == pytest.approx(value)
    known = truth != IGNORED
    table = sum(judge.confusion(t, s, 4) for t, s in zip(truth, seen, strict=True))
    np.testing.assert_array_equal(table, confusion_matrix(truth[known], seen[known]))
    theirs = jaccard_score(truth[known], seen[known], average="macro")
    assert found["mIoU"].value == pytest.approx(theirs)


def test_pictures_are_counted_together():
    truth, seen = pictures(4)
    one = evaluate(truth.reshape(1, -1, 11), seen.reshape(1, -1, 11))
    for metric, result in evaluate(truth, seen).items():
        assert result.value == pytest.approx(one[metric].value)
    each = [evaluate(t[None], s[None])["mIoU"].value for t, s in zip(truth, seen, strict=True)]
    assert evaluate(truth, seen)["mIoU"].value != pytest.approx(np.mean(each), abs=1e-4)


def test_all_right_is_1_and_all_wrong_is_0():
    truth, _ = pictures()
    seen = np.where(truth == IGNORED, 0, truth)
    found = evaluate(truth, seen)
    assert all(r.value == r.low == r.high == 1 for r in found.values())
    found = evaluate(truth, (seen + 1) % 4)
    assert all(r.value == r.low == r.high == 0 for r in found.values())


def test_a_class_absent_everywhere_is_left_out_and_one_only_seen_has_0():
    truth, seen = pictures(classes=3)
    found = evaluate(truth, seen)
    assert "IoU d" not in found
    assert found["mIoU"].settings["absent"] == ["d"]
    assert found["mIoU"].value == pytest.approx(np.mean([found[f"IoU {c}"].value for c in "abc"]))
    before = found["class accuracy"].value
    seen[0, 0, 0], truth[0, 0, 0] = 3, (seen[0, 0, 0] + 1) % 3
    after = evaluate(truth, seen)
    assert after["IoU d"].value == 0
    assert after["mIoU"].value == pytest.approx(sum(after[f"IoU {c}"].value for c in "abcd") / 4)
    assert after["class accuracy"].value == pytest.approx(before, abs=0.01)


def test_pixels_without_a_class_change_nothing():
    truth, seen = pictures()
    other = np.where(truth == IGNORED, (seen + 1) % 4, seen).astype(np.uint8)
    for metric, result in evaluate(truth, seen).items():
        assert evaluate(truth, other)[metric].value == result.value


def test_intervals_hold_the_value_and_narrow_with_pictures():
    few, many = (evaluate(*pictures(n))["mIoU"] for n in (6, 60))
    assert few.low < few.value < few.high
    assert many.high - many.low < 0.6 * (few.high - few.low)
    assert (few.n, many.n) == (6, 60)
    alike = evaluate(*(np.repeat(x, 5, 0) for x in pictures(1)))["mIoU"]
    assert alike.low == pytest.approx(alike.high)


def test_masks_without_classes_are_said():
    with pytest.raises(ValueError, match="no pixel of its masks has a class"):
        evaluate(np.full((2, 3, 3), IGNORED, np.uint8), np.zeros((2, 3, 3), np.uint8))
