import numpy as np
import pytest

from saccade.data.balanced import balanced

LABELS = np.array([0, 1, 2] * 40 + [0] * 30 + [-1] * 10)


def test_every_class_gives_as_many():
    rows = balanced(LABELS, 7, seed=1)
    assert np.bincount(LABELS[rows]).tolist() == [7, 7, 7]
    assert rows.tolist() == sorted(set(rows.tolist()))


def test_a_share_is_of_all_labels_and_spread_over_classes():
    assert np.bincount(LABELS[balanced(LABELS, share=0.1)]).tolist() == [5, 5, 5]
    assert np.bincount(LABELS[balanced(LABELS, share=0.001)]).tolist() == [1, 1, 1]
    assert len(balanced(LABELS, share=1.0)) == 130  # 50 of each, and what two classes have


def test_smaller_subsets_stand_in_larger_ones_and_seeds_differ():
    sets = [set(balanced(LABELS, n, seed=4).tolist()) for n in (1, 5, 20)]
    assert sets[0] < sets[1] < sets[2]
    assert set(balanced(LABELS, 5, seed=5).tolist()) != sets[1]


def test_the_subset_of_a_seed_is_this_one_for_ever():
    assert balanced(np.arange(30) % 3, 2, seed=0).tolist() == [5, 12, 13, 15, 28, 29]


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="choose above 0, up to 1"):
        balanced(LABELS, share=share)
