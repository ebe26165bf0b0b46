import json
from dataclasses import dataclass, field
from typing import Literal

import pytest

from saccade import config


@dataclass(frozen=True, kw_only=True)
class Inner:
    lr: float = 0.1
    name: Literal["sgd", "adamw"] = "sgd"
    decay: float | tuple[float, float] = 1e-4


@dataclass(frozen=True, kw_only=True)
class Row:
    size: int = 224
    crop: tuple[float, float] = (0.1, 1.0)


@dataclass(frozen=True, kw_only=True)
class Outer:
    optim: Inner = field(default_factory=Inner)
    rows: tuple[Row, ...] = (Row(), Row(size=96))
    path: str = ""
    epochs: int = 1
    fast: bool = False


def test_override_reaches_nested_values_and_rows_of_a_tuple():
    cfg = config.override(Outer(), "optim.lr=3", "rows.1.size=64", "rows.0.crop=[0.2, 0.5]")
    assert cfg.optim.lr == 3.0
    assert [r.size for r in cfg.rows] == [224, 64]
    assert cfg.rows[0].crop == (0.2, 0.5)


def test_override_leaves_the_original_alone():
    cfg = Outer()
    config.override(cfg, "epochs=7")
    assert cfg.epochs == 1


def test_a_union_takes_a_number_or_a_pair():
    assert config.override(Inner(), "decay=[0.04, 0.4]").decay == (0.04, 0.4)
    assert config.override(Inner(), "decay=0.5").decay == 0.5


def test_text_that_looks_like_a_number_stays_text():
    assert config.override(Outer(), "path=123").path == "123"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("optim.lrr=1", "did you mean optim.lr"),
        ("max_epochs=1", "did you mean epochs"),
        ("decay=0.1", r"unknown setting decay; did you mean optim\.decay\?"),
        ("epochs=1.5", "setting epochs: 1.5"),
        ("fast=1", "setting fast: 1"),
        ("optim.name=sdg", "setting optim.name: 'sdg'"),
        ("optim=3", "set one of those"),
        ("epochs.x=3", "plain value"),
        ("rows.5.size=3", "index below 2"),
        ("epochs", "write epochs=VALUE"),
    ],
)
def test_a_wrong_assignment_names_the_setting(assignment, message):
    with pytest.raises(ValueError, match=message):
        config.override(Outer(), assignment)


def test_json_round_trip_is_exact():
    cfg = config.override(Outer(), "optim.decay=[0.1, 0.2]", "rows.0.size=32")
    assert config.from_dict(Outer, json.loads(json.dumps(config.to_dict(cfg)))) == cfg


def test_unknown_names_in_json_raise():
    with pytest.raises(ValueError, match=r"unknown setting optim\.rl"):
        config.from_dict(Outer, {"optim": {"rl": 1.0}})
