import numpy as np
import pytest

from saccade.evals import PROTOCOLS, evaluate, gain
from saccade.recipe import Normalize


def test_every_protocol_gives_a_figure_with_interval_and_settings(net, toy):
    train, test = toy(210), toy(30, seed=1)
    results = evaluate(net, train, test, list(PROTOCOLS), normalize=Normalize(), name="toy")
    assert {r.protocol.partition("/")[0] for r in results} == set(PROTOCOLS)
    for r in results:
        assert (r.model, r.n) == ("toy", 30)
        assert 0 <= r.low <= r.value <= r.high <= 1
        assert r.settings["preprocess"]["size"] == 16
        assert r.settings["bank"] == 210
    assert results[0].metric == "top1@20"
    assert results[0].value > 0.9  # brightness is easy


def test_figures_repeat(net, toy):
    def once(seed):
        return evaluate(net, toy(30), toy(9), ["linear-moco"], normalize=Normalize(), seed=seed)

    assert once(3) == once(3)


def test_two_results_can_be_paired(net, toy):
    def figure(seed):
        return evaluate(net, toy(30, seed=seed), toy(9), ["knn-dino"], normalize=Normalize())[0]

    assert gain(figure(0), figure(0)).value == 0


def test_an_unknown_protocol_is_named_with_what_was_meant(net, toy):
    with pytest.raises(ValueError, match=r"'knn-dyno' is unknown; did you mean knn-dino\?"):
        evaluate(net, toy(), toy(), ["knn-dyno"], normalize=Normalize())


@pytest.mark.parametrize(("setting", "at"), [("data", 0), ("eval-data", 1)])
def test_pictures_without_labels_are_refused_by_the_name_of_the_setting(net, toy, setting, at):
    sources = [toy(), toy()]
    sources[at] = toy(labeled=False)
    with pytest.raises(ValueError, match=f"setting {setting}: these pictures have no labels"):
        evaluate(net, *sources, ["knn-dino"], normalize=Normalize())


def test_entries_without_a_label_take_no_part(net, toy):
    train, test = toy(30), toy(12)
    train.labels = np.where(np.arange(30) < 4, -1, train.labels)
    test.labels = np.where(np.arange(12) < 2, -1, test.labels)
    (result, _) = evaluate(net, train, test, ["knn-dino"], normalize=Normalize())
    assert (result.settings["bank"], result.n) == (26, 10)
