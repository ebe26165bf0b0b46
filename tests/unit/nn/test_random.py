import pytest
import torch

from saccade.nn.random import integers, keys, permutation, uniform


def test_integers_are_uniform_and_depend_on_key_and_name_alone():
    key = keys(0, 0, torch.arange(400))
    draws = integers(key, 100, 8, "a")
    counts = draws.flatten().bincount(minlength=8).double()
    assert len(counts) == 8
    chi_square = ((counts - 5000).square() / 5000).sum()
    assert chi_square < 24.3  # 7 degrees of freedom, p = .001
    assert torch.equal(integers(key[7:9], 100, 8, "a"), draws[7:9])
    assert not torch.equal(integers(key, 100, 8, "b"), draws)


def test_integers_reach_the_ends_of_ranges_beyond_float_precision():
    draws = integers(keys(0, 0, torch.arange(1000)), 1000, 2**40 + 1, "a")
    assert 0 <= draws.min() < 2**24
    assert 2**40 - 2**24 < draws.max() <= 2**40
    assert (draws % 2).double().mean().item() == pytest.approx(0.5, abs=0.005)


def test_uniform_fills_the_unit_interval():
    draws = uniform(keys(0, 0, torch.arange(1000)), 50, "a").flatten()
    assert draws.min() >= 0
    assert draws.max() < 1
    assert draws.mean().item() == pytest.approx(0.5, abs=0.005)


def test_a_permutation_changes_with_epoch_and_seed():
    orders = [permutation(100, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(100))
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
