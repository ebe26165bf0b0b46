"""Networks that a method cannot train are told apart before anything is written."""

from dataclasses import replace

import pytest
import torch

from saccade import methods, pretraining
from saccade import run as runs
from saccade.recipe import BackboneConfig

PLAIN = [n for n in methods.names() if "plain ViT" in methods.FACTS[n][1]]


def build(method, backbone):
    run = runs.from_recipe(method, "small")
    size = run.method.views[0].size
    with torch.device("meta"):
        return pretraining.build(
            replace(run, backbone=BackboneConfig(name=backbone, image_size=size))
        )


@pytest.mark.parametrize("backbone", ["resnet10_w16", "igpt_pico_32"])
@pytest.mark.parametrize("method", PLAIN)
def test_methods_for_plain_transformers_say_so(method, backbone):
    said = f"setting backbone.name: {backbone} is no plain vision transformer, which {method} needs"
    with pytest.raises(ValueError, match=said):
        build(method, backbone)


def test_methods_for_colors_say_so():
    with pytest.raises(ValueError, match="no transformer over colors, which igpt needs"):
        build("igpt", "vit_pico_patch4_32")
