import json
import sys
from importlib.metadata import PackageNotFoundError

import pytest
import torch
from terminal import saccade

from saccade import methods
from saccade.bench import interleave
from saccade.bench.step import PASSES, fitted, ratios, run_step, run_steps, show_steps
from saccade.recipe import BackboneConfig

# Those whose encoder sees other pictures than the views, or not as many in every step.
UNTIMED = {"igpt", "tokenizer"}


def step(method, backbone="resnet10_w16", **settings):
    return run_step(method, image_size=32, batch_size=4, rounds=1, backbone=backbone, **settings)


@pytest.mark.parametrize("method", ["simclr", "moco"])
def test_contrastive_methods_stand_beside_bare_and_lightly_in_both_layouts(method):
    done = json.loads(json.dumps(step(method)))
    assert set(done["arms"]) == {
        f"{side}/{layout}"
        for side in ("bare", "saccade", "lightly")
        for layout in ("contiguous", "channels-last")
    }
    assert set(done["ratios"]) == {"saccade / bare", "lightly / bare", "saccade / lightly"}
    assert done["settings"]["method"] == method
    assert done["versions"]["lightly"]
    assert done["machine"]["threads"] == torch.get_num_threads()


def test_without_lightly_the_bare_encoder_is_the_only_peer(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightly", None)
    monkeypatch.setattr("saccade.bench.step.find_spec", lambda name: None)
    monkeypatch.setattr("saccade.bench.version", missing)
    done = step("simclr")
    assert set(done["ratios"]) == {"saccade / bare"}
    assert set(done["versions"]) == {"python", "saccade", "torch", "torchvision", "timm"}


def missing(name):
    if name == "lightly":
        raise PackageNotFoundError(name)
    return "1.0"


def test_a_transformer_has_one_layout_and_mae_no_peer():
    done = step("mae", "vit_nano_patch8_64", recipe="demo")
    assert set(done["arms"]) == {"bare/contiguous", "saccade/contiguous", "unmasked/contiguous"}
    assert set(done["ratios"]) == {"saccade / bare", "saccade / unmasked"}
    assert done["settings"]["clock"] in ("process", "wall")
    assert all(row["bytes"] > 1e5 for row in done["arms"].values())


def test_unmasked_hides_one_patch_alone(monkeypatch):
    kept, cls = [], methods.get("mae")
    build = cls.__init__

    def watched(task, cfg, encoder):
        build(task, cfg, encoder)
        kept.append(task.kept_patches)

    monkeypatch.setattr(cls, "__init__", watched)
    step("mae", "vit_nano_patch8_64", recipe="demo")
    assert set(kept) == {4, 15}


@pytest.mark.parametrize(("method", "part"), [("memory_bank", "bank"), ("pic", "weights")])
def test_what_pictures_cost_is_a_formula(method, part, capsys):
    """4 N D bytes of a bank; a classifier has a velocity as large, and numbers."""
    one, two = (step(method, images=n)["held"] for n in (1000, 3000))
    own = {name: two[name] - one[name] for name in two}
    assert own[part] == 2000 * 128 * 4
    assert sum(own.values()) <= 2 * 2000 * 128 * 4 + 2000 * 64
    with pytest.raises(ValueError, match="images: 2 is below batch_size=4"):
        step(method, images=2)


def test_several_methods_make_one_table_with_their_recipes_backbones(capsys):
    settings = {"image_size": 32, "batch_size": 2, "rounds": 1, "recipe": "demo"}
    done = run_steps(["mlm", "ijepa"], **settings)
    rows = json.loads(json.dumps(done))["methods"]
    assert [r["settings"]["backbone"] for r in rows.values()] == [
        "vit_nano_patch8_64",
        "vit_nano_patch8_gap_64",
    ]
    assert rows["mlm"]["settings"]["method_config"]["views"][0]["size"] == 32
    show_steps(done)
    assert "ijepa" in capsys.readouterr().out


def test_methods_without_a_bench_are_known():
    assert set(methods.names()) - set(PASSES) == UNTIMED


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pixpro", "pixcontrast"])
def test_methods_of_pixels_are_told_where_their_crops_lie(method):
    assert step(method)["ratios"]["saccade / bare"]


@pytest.mark.slow
def test_crops_of_two_sizes_stand_beside_the_large_ones_and_the_share_of_their_pixels():
    done = step("dino")
    assert [v["size"] for v in done["settings"]["method_config"]["views"]] == [32, 32, 14]
    ratio = done["ratios"]["crops / large"]
    sizes = [32, 32, *[14] * 8]
    assert ratio["share"] == pytest.approx(sum(s * s for s in sizes) / (2 * 32 * 32))
    assert {arm.partition("/")[0] for arm in ratio["of"]} == {"crops", "large"}
    assert "crops / large" not in step("simclr")["ratios"]


def test_crops_keep_their_proportion_in_whole_patches():
    views = fitted("dino", BackboneConfig(name="vit_nano_patch8_64", image_size=64)).views
    assert [v.size for v in views] == [64, 64, 24]
    views = fitted("dino", BackboneConfig(name="resnet10_w16", image_size=64)).views
    assert [v.size for v in views] == [64, 64, 27]


def test_arms_take_turns_and_the_first_round_does_not_count():
    order = []
    arms = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = interleave(arms, rounds=2)
    assert "".join(order) == "abc" * 3
    assert {len(s) for s in seconds.values()} == {2}


def test_ratios_pair_the_rounds_of_each_sides_better_layout():
    seconds = {
        "bare/contiguous": [9.0, 9.0, 9.0],
        "bare/channels-last": [1.0, 2.0, 4.0],
        "saccade/contiguous": [2.0, 4.0, 8.0],
        "saccade/channels-last": [50.0, 50.0, 50.0],
    }
    found = ratios(seconds)
    assert list(found) == ["saccade / bare"]
    assert found["saccade / bare"] == {
        "median": 2.0,
        "low": 2.0,
        "high": 2.0,
        "of": ["saccade/contiguous", "bare/channels-last"],
    }


@pytest.mark.parametrize(
    ("method", "message"),
    [("mae", "setting backbone: mae hides patches and this"), ("byl", "no bench for 'byl'")],
)
def test_what_cannot_be_timed_is_refused(method, message):
    with pytest.raises(ValueError, match=message):
        step(method)


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # lambda-networks
def test_the_command_lines_of_banks_and_of_peers(capsys):
    def said(*args):
        assert saccade("bench", *args) == 0
        return json.loads(capsys.readouterr().out)

    small = ("--image-size", "32", "--batch-size", "4", "--rounds", "1", "--json", "-")
    done = said("step", "--method", "memory_bank", "--images", "500", *small)
    assert done["held"]["bank"] == 500 * 128 * 4
    small = ("--sizes", "4,6", "--channels", "16", "--batch-size", "1", "--rounds", "1")
    assert said("attention", *small, "--json", "-")["beside"] == {}
    assert len(said("attention", "--peers", *small, "--json", "-")["beside"]) >= 4
