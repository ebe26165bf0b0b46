import math

import pytest
import torch

from saccade.nn import random
from saccade.nn.masking import (
    IN_VAIN,
    TRIES,
    block_masks,
    exact_block_masks,
    hide,
    kept_patches,
    random_order,
)

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


def test_hidden_patches_hold_the_token_at_their_place_and_others_stay():
    tokens, positions, token = torch.randn(2, 5, 3), torch.randn(1, 5, 3), torch.randn(3)
    mask = torch.tensor([[1, 0, 0, 0, 1], [0, 0, 0, 0, 0]]).bool()
    got = hide(tokens, positions, mask, token)
    torch.testing.assert_close(got[0, 4], token + positions[0, 4])
    assert torch.equal(got[0, 1:4], tokens[0, 1:4])
    assert torch.equal(got[1], tokens[1])


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5])
def test_blocks_fill_the_count_but_for_a_few_patches_and_never_pass_it(ratio):
    count = float(int(ratio * 196))
    mask = block_masks(KEYS, torch.full((2000,), count), (14, 14), "blocks")
    assert mask.shape == (2000, 196)
    assert mask.sum(1).max() <= count
    assert mask.sum(1).float().mean() > 0.9 * count


def test_blocks_are_rectangles_of_at_least_a_third_of_the_side_squared():
    """A count of 16 leaves room for one rectangle of a 14 x 14 grid: of exactly 16 patches."""
    mask = block_masks(KEYS, torch.full((2000,), 16.0), (14, 14), "blocks").unflatten(1, (14, 14))
    first = mask[mask.sum((1, 2)) == 16]
    assert len(first) > 100
    boxes = [(m.any(1).sum() * m.any(0).sum()).item() for m in first]
    assert sum(area == 16 for area in boxes) > 0.5 * len(boxes)
    heights = torch.stack([m.any(1).sum() for m in first]).unique()
    assert len(heights) > 2


def test_nothing_is_masked_where_the_count_is_zero_and_places_are_even():
    count = torch.where(torch.arange(2000) % 2 == 0, 0.0, 60.0)
    mask = block_masks(KEYS, count, (14, 14), "blocks").unflatten(1, (14, 14)).float()
    assert mask[::2].sum() == 0
    rows, columns = mask[1::2].mean((0, 2)), mask[1::2].mean((0, 1))
    torch.testing.assert_close(rows, rows.flip(0), atol=0.04, rtol=0)  # no side is preferred
    torch.testing.assert_close(rows, columns, atol=0.04, rtol=0)


def test_blocks_of_a_picture_do_not_depend_on_its_neighbors_and_differ_by_name():
    count = torch.full((8,), 60.0)
    mask = block_masks(KEYS[:8], count, (14, 14), "a")
    assert torch.equal(mask[3:5], block_masks(KEYS[3:5], count[3:5], (14, 14), "a"))
    assert not torch.equal(mask, block_masks(KEYS[:8], count, (14, 14), "b"))


def official(draws, count, least, tries, in_vain, side=14):
    """BEiT's sampler as loops over one picture's draws; `in_vain` ends the mask early."""
    mask, vain = torch.zeros(side, side, dtype=torch.bool), 0
    for area, ratio, top, left in draws[:tries].tolist():
        most = count - int(mask.sum())
        if most == 0 or vain == in_vain:
            break
        size = least + area * (most - least)
        aspect = math.exp(math.log(0.3) + ratio * (math.log(1 / 0.3) - math.log(0.3)))
        h, w = round(math.sqrt(size * aspect)), round(math.sqrt(size / aspect))
        vain += 1
        if h < side and w < side:
            top, left = int(top * (side - h + 1)), int(left * (side - w + 1))
            block = mask.clone()
            block[top : top + h, left : left + w] = True
            if 0 < int(block.sum() - mask.sum()) <= most:
                mask, vain = block, 0
    return mask.flatten()


@pytest.mark.parametrize(("count", "least"), [(75, 16), (120, 16), (75, 30)])
def test_blocks_equal_beits_rules_written_as_loops(count, least):
    goal = torch.full((200,), float(count))
    mask = block_masks(KEYS[:200], goal, (14, 14), "a", least=least)
    draws = random.uniform(KEYS[:200], 4 * TRIES, "a").unflatten(1, (TRIES, 4))
    same = [
        torch.equal(m, official(d, count, least, TRIES, IN_VAIN))
        for m, d in zip(mask, draws, strict=True)
    ]
    assert sum(same) >= 198  # rounding of a half may fall either way


def test_exact_blocks_hide_the_number_in_every_picture_by_the_same_rules():
    mask = exact_block_masks(KEYS[:400], 98, (14, 14), "a", least=16)
    assert mask.sum(1).eq(98).all()
    draws = random.uniform(KEYS[:100], 8 * TRIES, "a").unflatten(1, (2 * TRIES, 4))
    same = [
        torch.equal(m, official(d, 98, 16, 2 * TRIES, 2 * TRIES))
        for m, d in zip(mask, draws, strict=False)
    ]
    assert sum(same) >= 97
    assert exact_block_masks(KEYS[:400], 15, (4, 4), "a", least=2).sum(1).eq(15).all()
