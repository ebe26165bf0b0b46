"""The verdict's judgment, on figures made by hand, and its arms on pictures made by hand."""

import numpy as np
import pytest
import torch
from terminal import saccade

from saccade import verdict
from saccade.evals import few_labels
from saccade.verdict import Point

MINE, OTHER = ("w, frozen", "w, all layers"), verdict.WITHOUT


def points(labels, *, frozen, trained, random, scratch, histogram=(0.0, 0.0, 0.0)):
    """Three seeds of every arm."""
    values = dict(zip((*MINE, *OTHER), (frozen, trained, random, scratch), strict=True))
    values |= dict.fromkeys(verdict.TRIVIAL, histogram)
    return [Point(arm, labels, tuple(v)) for arm, v in values.items()]


def judged(*held):
    found = [p for h in held for p in h]
    gains = [verdict.gain(found, "w", n) for n in dict.fromkeys(p.labels for p in found)]
    return gains, verdict.sentence(gains, found)


def test_the_gain_is_between_the_best_arms_and_paired_by_seed():
    (one,), _ = judged(
        points(
            10,
            frozen=(0.5, 0.6, 0.7),
            trained=(0.1,) * 3,
            random=(0.2,) * 3,
            scratch=(0.3, 0.4, 0.5),
        )
    )
    assert (one.best, one.other) == ("w, frozen", "from scratch")
    assert one.interval.value == pytest.approx(0.2)
    assert one.interval.high - one.interval.low < 1e-9  # every seed gained the same
    assert one.sign == 1


def test_the_sentence_says_from_where_on_nothing_is_gained():
    few = points(
        10, frozen=(0.5, 0.51, 0.52), trained=(0.1,) * 3, random=(0.2,) * 3, scratch=(0.3,) * 3
    )
    many = points(
        90, frozen=(0.5, 0.9, 0.7), trained=(0.1,) * 3, random=(0.2,) * 3, scratch=(0.8, 0.7, 0.6)
    )
    _, text = judged(few, many)
    assert text.startswith("Worth it: +21.0")
    assert "From 90 labels on no gain is seen." in text
    _, text = judged(few)
    assert "still adds" not in text  # it was said already
    last = points(
        90, frozen=(0.4, 0.41, 0.42), trained=(0.1,) * 3, random=(0.2,) * 3, scratch=(0.3,) * 3
    )
    assert "It still adds +11.0 (+8.5 to +13.5) with 90." in judged(few, last)[1]
    assert judged(many)[1].startswith("Not shown to be worth it: no gain at 90 labels.")


def test_harm_and_simple_baselines_are_named():
    _, text = judged(
        points(
            20,
            frozen=(0.2,) * 3,
            trained=(0.21,) * 3,
            random=(0.3,) * 3,
            scratch=(0.1,) * 3,
            histogram=(0.25,) * 3,
        )
    )
    assert "It harms at 20 labels." in text
    assert "With 20 labels color or gradient histograms do as well or better" in text
    assert text.endswith("25.0 against 21.0 % with 20.")


@pytest.fixture
def bright(tmp_path):
    """Two classes, dark and bright: 60 training and 30 test pictures."""
    g = np.random.default_rng(0)
    arrays = {}
    for x, y, n in (("x", "y", 60), ("xt", "yt", 30)):
        arrays[y] = (np.arange(n) % 2).astype(np.uint8)
        noise = g.integers(0, 100, (n, 16, 16, 3)) + 120 * arrays[y][:, None, None, None]
        arrays[x] = noise.astype(np.uint8)
    np.savez(tmp_path / "bright.npz", **arrays)
    return tmp_path / "bright.npz"


def test_every_arm_sees_the_same_balanced_pictures(bright):
    from saccade.data.source import open_source

    train = open_source(str(bright), split="train")
    chosen = few_labels.choose(train, 7, seed=1)
    assert np.bincount(train.labels[chosen.rows]).tolist() == [3, 3]
    again = few_labels.choose(train, 7, seed=1)
    assert (chosen.rows == again.rows).all()
    with pytest.raises(ValueError, match="labels: 1 are fewer than the 2 classes"):
        few_labels.choose(train, 1, seed=0)
    with pytest.raises(ValueError, match="labels: 90 are more than a class has"):
        few_labels.choose(train, 90, seed=0)


def test_a_verdict_on_bright_and_dark(bright, tmp_path, capsys):
    torch.set_num_threads(1)
    words = ["verdict", "random:resnet10_w16", "--data", bright, "--labels", "4,20", "--seeds", "2"]
    words += ["--steps", "2", "--json", tmp_path / "v.json", "--plot", tmp_path / "v.png"]
    code = saccade(*words)
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "orth" in said.err.splitlines()[-1]
    from json import loads

    found = loads((tmp_path / "v.json").read_text())
    assert len(found["points"]) == 2 * 7
    assert [g["labels"] for g in found["gains"]] == [4, 20]
    by = {(p["arm"], p["labels"]): p["interval"]["value"] for p in found["points"]}
    assert by["chance", 20] == 0.5
    assert by["color-histogram", 20] == 1.0  # brightness is all there is
    assert (tmp_path / "v.png").stat().st_size > 2000


def test_wrong_labels_are_one_line(bright, capsys):
    words = ["verdict", "random:resnet10_w16", "--data", str(bright), "--labels", "ten"]
    assert saccade(*words) == 2
    assert "setting labels: 'ten'" in capsys.readouterr().err
