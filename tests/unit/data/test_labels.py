import numpy as np
import pytest

from saccade.core import Labels
from saccade.data.balanced import balanced
from saccade.data.labels import Label, chosen, picked, read_labels, write_labels
from saccade.data.source import Source


class Names(Source):
    """Pictures with names and labels, and no pixels."""

    channels, split, skipped = 3, "", 0

    def __init__(self, n=30):
        self.classes = ("a", "b", "c")
        self.labels = np.arange(n) % 3

    def __len__(self):
        return len(self.labels)

    def stored(self, i):
        raise NotImplementedError

    def name(self, i):
        return f"{i}.png"


def test_all_labels_train_by_default():
    found = chosen(Names(), Labels(), seed=0)
    assert len(found.source) == 30
    assert found.weights.tolist() == [1.0] * 30
    assert found.guesses == 0


def test_a_number_is_spread_over_the_classes_as_the_shared_subsets_are():
    labels = np.array([0, 1, 2] * 10 + [-1] * 5)
    assert picked(labels, Labels(count=12), 3).tolist() == balanced(labels, 4, seed=3).tolist()
    assert picked(labels, Labels(share=0.1), 3).tolist() == balanced(labels, 1, seed=3).tolist()
    assert picked(labels, Labels(), 3).tolist() == list(range(30))


def test_a_list_survives_the_file(tmp_path):
    labels = [Label("x y.png", "a", 1.0), Label("z.png", "b", 0.25)]
    write_labels(tmp_path / "sub" / "labels.txt", labels)
    assert (tmp_path / "sub" / "labels.txt").read_text() == "x y.png\ta\nz.png\tb\t0.250000\n"
    assert read_labels(tmp_path / "sub" / "labels.txt") == labels


def guesses(tmp_path):
    path = tmp_path / "labels.txt"
    given = [Label("0.png", "a", 1.0), Label("1.png", "b", 1.0)]
    guessed = [Label(f"{i}.png", "c", i / 20) for i in range(2, 12)]
    write_labels(path, [*given, *guessed])
    return str(path)


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (0.2, 2), (1.0, 10)])
def test_given_labels_and_the_surest_guesses_train(tmp_path, ratio, count):
    found = chosen(Names(), Labels(file=guesses(tmp_path), ratio=ratio), seed=0)
    part, weights = found.source, found.weights
    names = [part.name(i) for i in range(len(part))]
    assert names == ["0.png", "1.png", *(f"{i}.png" for i in range(11, 11 - count, -1))]
    assert found.guesses == count
    assert part.labels.tolist() == [0, 1] + [2] * count
    assert weights.tolist() == [1.0] * (2 + count)


def test_guesses_may_count_by_their_confidence(tmp_path):
    labels = Labels(file=guesses(tmp_path), ratio=0.2, weighted=True)
    weights = chosen(Names(), labels, seed=0).weights
    assert weights.tolist() == pytest.approx([1.0, 1.0, 0.55, 0.5])


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (Labels(count=2), "there are 3 classes"),
        (Labels(count=6, share=0.5), "exclude each other"),
        (Labels(ratio=0.5), r"give labels\.file"),
        (Labels(weighted=True), r"give labels\.file"),
        (Labels(file="nowhere.txt"), "nowhere.txt: No such file"),
    ],
)
def test_settings_that_cannot_be_are_named(labels, told):
    with pytest.raises(ValueError, match=told):
        chosen(Names(), labels, seed=0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("0.png\n", "line 1 of"),
        ("0.png\ta\n1.png\ta\tsure\n", "line 2 of"),
        ("99.png\ta\n", "99.png of .* is not in the data"),
        ("0.png\td\n", "class 'd' of .* is not in the data"),
        ("", "has no label that trains"),
    ],
)
def test_lists_that_do_not_fit_are_named(tmp_path, text, told):
    path = tmp_path / "labels.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=told):
        chosen(Names(), Labels(file=str(path)), seed=0)
