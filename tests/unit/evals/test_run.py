import numpy as np
import pytest
import torch

from saccade import backbones
from saccade.evals import PROTOCOLS, evaluate, gain, grid
from saccade.recipe import BackboneConfig, Normalize


def test_every_protocol_gives_a_figure_with_interval_and_settings(toy, monkeypatch):
    monkeypatch.setitem(grid.PROTOCOLS, "linear-dinov2", grid.Grid(epochs=1, epoch_steps=30))
    torch.manual_seed(0)
    vit = backbones.create(BackboneConfig(name="vit_nano_patch8_64", image_size=16))
    train, test = toy(210), toy(30, seed=1)
    names = [p for p in PROTOCOLS if not p.endswith("-igpt")]  # for one family: test_igpt.py
    results = evaluate(vit, train, test, names, normalize=Normalize(), name="toy", epochs=1)
    assert {r.protocol.partition("/")[0] for r in results} == set(names)
    for r in results:
        assert (r.model, r.n) == ("toy", 30)
        assert r.low <= r.value <= r.high
        assert r.unit == "" or 0 <= r.low <= r.high <= 1
        assert r.settings["preprocess"]["size"] == 16
    assert results[0].metric == "top1@20"
    assert results[0].value > 0.9  # brightness is easy


def test_epochs_that_no_protocol_reads_are_refused(net, toy):
    with pytest.raises(ValueError, match="epochs=3: knn-dino does not read it"):
        evaluate(net, toy(), toy(), ["knn-dino"], normalize=Normalize(), epochs=3)


def test_label_free_needs_no_labels(net, toy):
    sources = [toy(40, labeled=False), toy(40, labeled=False)]
    results = evaluate(net, *sources, ["label-free"], normalize=Normalize())
    assert [r.metric for r in results] == [
        *("RankMe", "alpha-ReQ", "uniformity", "LiDAR", "alignment"),
    ]
    assert {r.unit for r in results} == {""}


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
