import math

import pytest

from saccade.engine.schedules import lr_at, weight_decay_at
from saccade.recipe import Optim, Schedule, scaled_lr


def optim(**schedule):
    return Optim(lr=1.0, lr_rule="none", schedule=Schedule(**schedule))


def test_warm_up_is_linear_from_zero_and_meets_the_peak():
    rates = [lr_at(optim(warmup_epochs=2.0), 1, s, 100, 5) for s in range(12)]
    assert rates[:11] == pytest.approx([s / 10 for s in range(11)])
    assert rates[11] < 1.0


def test_cosine_equals_its_closed_form_and_approaches_the_final_rate():
    cfg = optim(final_lr=0.1)
    for step in (0, 30, 99):
        want = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / 100))
        assert lr_at(cfg, 1, step, 100, 10) == pytest.approx(want)


def test_per_epoch_holds_the_rate_within_an_epoch():
    rates = [lr_at(optim(per="epoch"), 1, s, 40, 10) for s in range(40)]
    assert len(set(rates)) == 4
    assert rates[10] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_steps_drop_by_ten_at_the_shares():
    rates = [lr_at(optim(shape="steps"), 1, s, 10, 1) for s in range(10)]
    assert rates == pytest.approx([1] * 6 + [0.1] * 2 + [0.01] * 2)


@pytest.mark.parametrize(
    ("rule", "want"),
    [("none", 0.3), ("linear-256", 0.6), ("linear-512", 0.3), ("sqrt-1024", 0.3 * 0.5**0.5)],
)
def test_learning_rate_rules(rule, want):
    assert scaled_lr(0.3, rule, 512) == pytest.approx(want)


def test_simclr_root_rule_is_the_sheet_s():
    # 0.075 sqrt(B) and 0.3 B/256 meet at 4096: 4.8
    assert scaled_lr(2.4, "sqrt-1024", 4096) == pytest.approx(4.8)
    assert scaled_lr(0.3, "linear-256", 4096) == pytest.approx(4.8)


def test_weight_decay_ramps_along_half_a_cosine():
    cfg = Optim(weight_decay=(0.04, 0.4))
    assert weight_decay_at(cfg, 0.0) == pytest.approx(0.04)
    assert weight_decay_at(cfg, 0.5) == pytest.approx(0.22)
    assert weight_decay_at(Optim(weight_decay=0.1), 0.7) == 0.1


def test_poly_is_a_power_of_what_is_left_after_the_warm_up():
    cfg = optim(shape="poly", power=0.5, final_lr=0.1, warmup_steps=2)
    for step in (2, 5, 9):
        want = 0.1 + 0.9 * ((10 - step) / 8) ** 0.5
        assert lr_at(cfg, 1, step, 10, 10) == pytest.approx(want)
    assert lr_at(cfg, 1, 1, 10, 10) == pytest.approx(0.5)
