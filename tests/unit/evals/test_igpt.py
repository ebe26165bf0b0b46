"""The protocols of transformers over colors: a probe of each layer, and joint fine-tuning."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toys import ConvNet, batch_for, colored

from saccade.evals.features import Data, extract, preprocess_for
from saccade.evals.joint import Classifier, Joint, shifted
from saccade.evals.joint import run as joint
from saccade.evals.layers import run as layers
from saccade.evals.run import evaluate
from saccade.nn.random import integers, keys
from saccade.recipe import Normalize

HALF = Normalize(mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture
def sources(tmp_path):
    """Dark and bright pictures of 8 pixels."""
    from saccade.data.source import open_source

    g = np.random.default_rng(0)
    y, yt = g.integers(0, 2, 60), g.integers(0, 2, 20)
    made = [g.integers(0, 64, (len(k), 8, 8, 3)) + 150 * k[:, None, None, None] for k in (y, yt)]
    x, xt = (m.astype(np.uint8) for m in made)
    np.savez(tmp_path / "x.npz", x=x, y=y.astype(np.uint8), xt=xt, yt=yt.astype(np.uint8))
    return [open_source(str(tmp_path / "x.npz"), split=s) for s in ("train", "test")]


def net(causal=True):
    torch.manual_seed(0)
    return colored(causal, normalize=HALF)


def test_every_layer_is_probed_and_the_headline_is_the_one_that_held_out_pictures_choose(sources):
    results = evaluate(net(), *sources, ["linear-igpt"], normalize=HALF)
    assert [r.metric for r in results] == ["top1", "top1@0", "top1@1", "top1@2"]
    chosen = results[0].settings["layer"]
    known = results[0].settings["known"]
    assert chosen == known.index(max(known))
    assert results[0].hits == results[1 + chosen].hits
    assert results[1].value > 0.9  # colors alone tell dark from bright
    assert results[0].settings["bank"] == 54


def test_a_layers_figure_is_that_of_scikit_learn_on_its_features(sources):
    from sklearn.linear_model import LogisticRegression

    model, (train, test) = net(), sources
    data = Data(model, train, test, normalize=HALF)
    scores = list(layers("linear-igpt", data))
    held = torch.randperm(60, generator=torch.Generator().manual_seed(0))[6:]
    for place in range(3):
        found = [
            extract(model, s, preprocess_for(model, HALF), kind="layers").x[
                :, 16 * place : 16 * place + 16
            ]
            for s in sources
        ]
        mean, std = found[0][held].mean(0), found[0][held].std(0, correction=0)
        x, q = (((f - mean) / std).double().numpy() for f in found)
        theirs = LogisticRegression(max_iter=2000).fit(x[held], train.labels[held.numpy()])
        right = theirs.predict(q) == test.labels
        assert np.array_equal(scores[1 + place].values, right)


@pytest.mark.parametrize("causal", [True, False])
def test_the_joint_loss_is_the_sum_of_both_and_classes_start_even(causal):
    batch, encoder = batch_for("igpt", b=4), net(causal)
    model = Classifier(encoder, 3)
    y = torch.tensor([0, 1, 2, 0])
    both = model.loss(Joint(), batch.images[0], y, batch.key)
    classes = model.loss(Joint(colors=0.0), batch.images[0], y, batch.key)
    assert classes.item() == pytest.approx(math.log(3), abs=1e-6)
    tokens = encoder.tokens(batch.images[0])
    scores = encoder.scores(encoder.encode(tokens)).log_softmax(2)
    if causal:
        cost = -scores.gather(2, tokens.flatten(1)[..., None]).mean()
        assert both.item() == pytest.approx(math.log(3) + cost.item(), rel=1e-5)
    classes.backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"head.weight"}
    assert model.head.bias is None
    assert torch.equal(model(batch.images[0]), torch.zeros(4, 3))


def test_fine_tuning_learns_dark_from_bright_and_leaves_the_network_as_it_was(sources):
    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    data = Data(model, *sources, normalize=HALF, epochs=3, batch_size=32)
    (score,) = joint("finetune-igpt", data)
    assert score.metric == "top1"
    assert score.settings["labels"] == 54
    assert score.settings["epoch"] < 3
    assert score.values.shape == (20,)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_shifting_cuts_one_window_out_of_the_mirrored_margin():
    x, key = torch.randn(5, 3, 16, 16), keys(0, 0, torch.arange(5))
    places = integers(key, 2, 5, "shift").tolist()
    wide = F.pad(x, (2, 2, 2, 2), mode="reflect")
    for b, (i, j) in enumerate(places):
        assert torch.equal(shifted(x, key)[b], wide[b, :, i : i + 16, j : j + 16])
    assert len(set(map(tuple, places))) > 1


@pytest.mark.parametrize("protocol", [layers, joint])
def test_other_networks_are_refused(protocol, sources):
    with pytest.raises(ValueError, match="transformers over colors"):
        list(protocol("x", Data(ConvNet(), *sources, normalize=HALF)))
