import pytest
import torch

from saccade.nn import random
from saccade.nn.masking import kept_patches, random_order

KEYS = random.keys(0, 3, torch.arange(2000))


@pytest.mark.parametrize(
    ("patches", "ratio", "kept"), [(196, 0.75, 49), (196, 0.9, 19), (100, 0.9, 9)]
)
def test_kept_patches_are_rounded_down_as_in_the_official_code(patches, ratio, kept):
    assert kept_patches(patches, ratio) == kept


@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.95])
def test_a_ratio_that_hides_nothing_or_everything_is_refused(ratio):
    with pytest.raises(ValueError, match=f"mask_ratio: {ratio} keeps"):
        kept_patches(16, ratio)


def test_order_is_a_permutation_that_argsort_undoes():
    order = random_order(KEYS[:5], 16)
    raster = torch.arange(16).expand(5, -1)
    assert torch.equal(order.sort(1).values, raster)
    assert torch.equal(order.gather(1, order.argsort(1)), raster)


def test_order_of_a_picture_does_not_depend_on_its_neighbors_in_the_batch():
    assert torch.equal(random_order(KEYS[:8], 16)[3:], random_order(KEYS[3:8], 16))


def test_every_patch_is_kept_equally_often():
    kept = random_order(KEYS, 16)[:, :4]
    share = kept.flatten().bincount(minlength=16) / len(KEYS)
    assert (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / len(KEYS)) ** 0.5
