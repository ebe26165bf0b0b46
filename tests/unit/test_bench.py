import json

import pytest
import torch

from saccade.bench import fitted, interleave, ratios, run_step
from saccade.recipe import BackboneConfig


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


def test_a_transformer_has_one_layout_and_mae_no_peer():
    done = step("mae", "vit_nano_patch8_64")
    assert set(done["arms"]) == {"bare/contiguous", "saccade/contiguous"}
    assert set(done["ratios"]) == {"saccade / bare"}


@pytest.mark.slow
def test_dino_is_timed_over_all_its_crops():
    done = step("dino")
    assert [v["size"] for v in done["settings"]["method_config"]["views"]] == [32, 32, 14]
    assert set(done["ratios"]) == {"saccade / bare"}


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
    [("mae", "setting backbone: resnet10_w16 has no patches"), ("byl", "no bench for 'byl'")],
)
def test_what_cannot_be_timed_is_refused(method, message):
    with pytest.raises(ValueError, match=message):
        step(method)
