"""Recipes of methods that hide patches or pixels: the numbers of the papers' own code."""

import pytest

from saccade import methods
from saccade.recipe import IMAGENET_MEAN, scaled_lr

# Learning rate at the batch, weight decay, warm-up and all epochs, last rate, largest gradient
# norm, stochastic depth; area of the crop, its interpolation, flips, color jitter; what to know
# of the method itself.
ADAM = (0.9, 0.999)
PUBLISHED = {
    "mae": (
        (2.4e-3, 4096, (0.9, 0.95), 0.05, 40, 1600, 0.0, 0.0, 0.0),
        ((0.2, 1.0), "bicubic", 0.5, 0.0),
        {"mask_ratio": 0.75, "decoder_dim": 512, "decoder_depth": 8, "decoder_heads": 16},
    ),
    "cae": (
        (1.5e-3, 2048, ADAM, 0.05, 20, 800, 1e-5, 3.0, 0.1),
        ((0.08, 1.0), "bicubic", 0.5, 0.0),
        {"masked": 98, "min_block": 16, "alignment": 2.0, "layer_scale": 0.1, "drop_path": 0.1}
        | {"regressor_depth": 4, "decoder_depth": 4, "decoder_dim": 768, "decoder_heads": 12},
    ),
    "beit": (
        (1.5e-3, 2048, ADAM, 0.05, 10, 800, 1e-5, 3.0, 0.1),
        ((0.08, 1.0), "bicubic", 0.5, 1.0),
        {"masked": 75, "min_block": 16},
    ),
    "simmim": (
        (4e-4, 2048, ADAM, 0.05, 10, 800, 0.0, 5.0, 0.0),
        ((0.67, 1.0), "bilinear", 0.5, 0.0),
        {"mask_ratio": 0.6, "mask_size": 32},
    ),
    "ijepa": (
        (1e-3, 2048, ADAM, (0.04, 0.4), 40, 300, 1e-6, 0.0, 0.0),
        ((0.3, 1.0), "bilinear", 0.0, 0.0),
        {"sampler": "official", "targets": 4, "min_keep": 10, "momentum": 0.996}
        | {"target_scale": (0.15, 0.2), "target_ratio": (0.75, 1.5), "context_scale": (0.85, 1.0)}
        | {"predictor_dim": 384, "predictor_depth": 12, "predictor_heads": 16},
    ),
    "data2vec": (
        (2e-3, 2048, ADAM, 0.05, 10, 800, 1e-5, 3.0, 0.25),
        ((0.08, 1.0), "bicubic", 0.5, 1.0),
        {"last_layers": 6, "beta": 2.0, "momentum": 0.9998},
    ),
    "igpt": (
        (1e-3, 128, (0.9, 0.95), 0.0, 1, 100, 0.0, 0.0, 0.0),
        ((0.34, 0.77), "bilinear", 0.0, 0.0),
        {"mask_ratio": 0.15},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_hold_the_papers_numbers(name):
    training, looks, own = PUBLISHED[name]
    recipe = methods.recipes(name)["paper"]
    o, (view,) = recipe.optim, recipe.method.views
    rate = scaled_lr(o.lr, o.lr_rule, recipe.batch_size)
    found = (recipe.batch_size, o.betas, o.weight_decay, o.schedule.warmup_epochs, recipe.epochs)
    found = (*found, o.schedule.final_lr, o.clip, recipe.backbone.drop_path)
    assert rate == pytest.approx(training[0])
    assert found == training[1:]
    assert o.name == "adamw"
    assert not o.decay_1d or not o.weight_decay
    assert (view.crop, view.interpolation, view.flip, view.jitter) == looks
    assert (view.grayscale, view.blur, view.solarize) == (0, 0, 0)
    assert {k: getattr(recipe.method, k) for k in own} == own


def test_details_that_one_paper_has():
    recipes = {name: methods.recipes(name)["paper"] for name in PUBLISHED}
    assert recipes["mae"].method.norm_pix_loss
    assert not methods.get("mae").Config().norm_pix_loss  # off by default, as officially
    assert recipes["beit"].normalize.mean == (0.5, 0.5, 0.5)
    assert recipes["data2vec"].normalize.mean == IMAGENET_MEAN
    for name in ("beit", "data2vec"):
        assert recipes[name].method.views[0].strength == (0.4, 0.4, 0.4, 0.0)
    assert recipes["simmim"].optim.schedule.drops == (700 / 800,)
    assert methods.recipes("simmim")["vit"].backbone.drop_path == 0.1
    steps = recipes["igpt"].epochs * (1_281_167 // recipes["igpt"].batch_size)
    assert steps == pytest.approx(1e6, rel=0.01)
