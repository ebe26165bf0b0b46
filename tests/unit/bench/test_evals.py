"""Libraries say the same of the same features, and what is compared is what was asked for."""

import json

import pytest
import torch
from terminal import saccade

from saccade.bench import evals

SIZES = {"bank": 300, "queries": 120, "dim": 8, "classes": 5}


@pytest.fixture(scope="module")
def found():
    return evals.run_evals(("knn", "logistic"), rounds=2, **SIZES)


@pytest.mark.parametrize(
    ("protocol", "peer"),
    [("knn", "lightly"), ("knn", "scikit-learn"), ("logistic", "scikit-learn")],
)
def test_peers_say_what_we_say(found, protocol, peer):
    arm = found["protocols"][protocol][peer]
    assert arm["same"] > 0.99  # one of 120 may lie on the line between two classes
    assert len(arm["seconds"]) == 2


def test_ratios_are_of_the_same_round(found):
    arms = found["protocols"]["knn"]
    mine, other = (arms[name]["seconds"] for name in ("saccade", "lightly"))
    middle = torch.tensor([b / a for a, b in zip(mine, other, strict=True)]).quantile(0.5)
    assert arms["lightly"]["times saccade"]["median"] == pytest.approx(middle.item())
    assert arms["saccade"]["times saccade"]["median"] == 1.0


def test_features_are_worth_judging():
    drawn = evals.draw(**SIZES)
    for protocol in evals.ARMS.values():
        said = protocol(drawn)["saccade"]()
        assert len(said) == SIZES["queries"]
        assert len(said.unique()) == SIZES["classes"]
    assert sorted(drawn.y.unique().tolist()) == list(range(SIZES["classes"]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--protocol", "knm"], "did you mean knn?"),
        (["--bank", "30", "--classes", "40"], "settings bank=30"),
    ],
)
def test_wrong_words_are_one_line(words, said, capsys):
    code = saccade("bench", "eval", *words)
    told = capsys.readouterr().err
    assert code == 2
    assert said in told
    assert told.count("\n") == 1


def test_the_command(capsys):
    words = ["bench", "eval", "--protocol", "knn", "--rounds", "1", "--json", "-"]
    sizes = [word for name, n in SIZES.items() for word in (f"--{name}", str(n))]
    assert saccade(*words, *sizes) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["settings"]["bank"] == SIZES["bank"]
    assert "saccade" in told["protocols"]["knn"]
