import math

import pytest
import torch

from saccade.engine.health import FirstBad, Health, used


def test_spread_features_are_healthy_and_raise_no_warning():
    health = Health()
    for seed in range(3):
        health.look(torch.randn(256, 16, generator=torch.Generator().manual_seed(seed)))
    assert health.last["feature_std"] == pytest.approx(1.0, abs=0.05)
    assert health.last["rankme"] > 15
    # |a - b|^2 of spread unit vectors is about 2, with a variance of 4 / 16
    assert health.last["uniformity"] == pytest.approx(-4 + 2 * 4 / 16, abs=0.1)
    assert health.warnings() == []
    assert "no collapse" in health.verdict(0.0)


def test_constant_features_are_called_collapsed_once():
    health = Health()
    health.look(torch.ones(64, 16) + 1e-5 * torch.randn(64, 16))
    first, second = health.warnings(), health.warnings()
    assert len(first) == 2
    assert second == []
    assert "collapsed" in health.verdict(0.0)


def test_constant_outputs_are_collapse_though_features_are_spread():
    """Twice in a row: a fresh network's outputs are often alike."""
    torch.manual_seed(0)
    health = Health(remedy="do this")
    alike = torch.ones(64, 8) + 0.01 * torch.randn(64, 8)
    values = health.look(torch.randn(64, 16), alike)
    unit = alike / alike.norm(dim=1, keepdim=True)
    want = (unit - unit.mean(0)).square().sum(1).mean().sqrt()
    assert values["output_std"] == pytest.approx(want.item(), abs=1e-4)
    assert health.warnings() == []
    health.look(torch.randn(64, 16), alike)
    (said,) = health.warnings()
    assert "what the loss compares is nearly constant" in said
    assert said.endswith("do this")
    assert "do this" in health.verdict(0.0)
    health.look(torch.randn(64, 16), torch.eye(8).repeat(8, 1))  # eight far apart
    assert health.last["output_std"] == pytest.approx((7 / 8) ** 0.5)
    assert "no collapse" in health.verdict(0.0)


def test_probabilities_on_few_prototypes_collapse_at_a_higher_limit():
    """That all share 4 of 512 prototypes is nearly one answer; that they share all is caution."""
    torch.manual_seed(0)
    features = torch.randn(64, 16)
    few = torch.zeros(64, 512)
    few[:, :4] = (1 + 0.1 * torch.randn(64, 4)).clamp_min(0)
    few = few / few.sum(1, keepdim=True)
    even = (1 + 0.1 * torch.randn(64, 512)).clamp_min(0)
    even = even / even.sum(1, keepdim=True)
    assert used(few) == pytest.approx(4 / 512, rel=0.01)
    assert used(even) == pytest.approx(1, rel=0.01)
    assert used(few - 0.5) == used(2 * few) == 1  # no probabilities
    for rows, warned in ((few, True), (even, False)):
        health = Health()
        for _ in range(2):
            health.look(features, rows)
        assert 0.05 < health.last["output_std"] < 0.15
        assert bool(health.warnings()) == warned
        assert ("collapsed" in health.verdict(0.0)) == warned


def test_a_starved_model_is_said():
    health = Health()
    health.look(torch.randn(64, 16))
    assert "raise workers" in health.verdict(0.5)


def test_the_first_step_with_a_bad_loss_is_remembered():
    bad = FirstBad(torch.device("cpu"))
    for step, loss in enumerate([1.0, math.nan, 2.0, math.inf]):
        bad.look(torch.tensor(loss), step)
    assert bad.found() == 1


def test_finite_losses_leave_nothing():
    bad = FirstBad(torch.device("cpu"))
    bad.look(torch.tensor(1.0), 0)
    assert bad.found() is None
