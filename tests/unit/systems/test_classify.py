"""The classifier: loss, head, rates."""

import math

import pytest
import torch
from toys import CLOCK, ConvNet, Pixels, noise, train

from saccade import backbones, systems
from saccade.core import Lessons, Mix
from saccade.methods.simclr_v2 import SimCLRv2
from saccade.nn.parts import hidden_layers
from saccade.recipe import BackboneConfig
from saccade.systems.classify import RECIPES, Classify

CLASSES = ("a", "b", "c")


def classify(encoder=None, **settings):
    torch.manual_seed(0)
    return Classify(Classify.Config(classes=CLASSES, **settings), encoder or ConvNet())


def lessons(seed=0, weights=None, **more):
    batch = noise(seed, sizes=(32,))
    ones = torch.ones(8) if weights is None else weights
    return Lessons(images=batch.images[0], labels=batch.labels, weights=ones, **more)


def test_equals_the_equation_written_as_loops():
    torch.manual_seed(0)
    system = classify(Pixels(), smoothing=0.3)
    x = torch.randn(4, 3, 2, 2)
    labels, weights = torch.tensor([0, 2, -1, 1]), torch.tensor([1.0, 0.5, 1.0, 0.2])
    z = system.head(x.flatten(1)).tolist()
    total = 0.0
    for row, label, weight in zip(z, labels.tolist(), weights.tolist(), strict=True):
        if label >= 0:
            log_sum = math.log(sum(map(math.exp, row)))
            y = [0.3 / 3 + (0.7 if k == label else 0.0) for k in range(3)]
            total -= weight * sum(a * (b - log_sum) for a, b in zip(y, row, strict=True))
    step = system(Lessons(images=x, labels=labels, weights=weights), CLOCK)
    assert step.loss.item() == pytest.approx(total / 4, rel=1e-5)


def test_zero_weights_of_the_classifier_give_equal_chances():
    system = classify(head_layers=1).eval()
    torch.nn.init.zeros_(system.head.weight)
    p = system.predict(lessons().images)
    torch.testing.assert_close(p, torch.full((8, 3), 1 / 3))


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_it_starts_at_the_chosen_layer_of_simclrs_head_bit_for_bit(layers):
    torch.manual_seed(0)
    method = SimCLRv2(SimCLRv2.Config(dim=8), ConvNet())
    train(method, [noise(i) for i in range(2)])
    system = classify(head_layers=layers)
    system.encoder.load_state_dict(method.encoder.state_dict())
    kept = {k: v for k, v in method.heads().items() if k in system.state_dict()}
    assert len(kept) == 6 * layers
    system.load_state_dict({**system.state_dict(), **kept})
    x = noise().images[0]
    h = method.eval().encoder(x)
    want = method.projector[: 3 * layers](h)  # layer 1 ends behind batch norm and ReLU
    assert torch.equal(system.eval().projector(system.encoder(x)), want)
    assert system.head.in_features == 16  # as wide as the encoder


def test_confidences_of_1_are_no_weights_and_of_0_no_pictures():
    plain, half = classify(Pixels()), classify(Pixels())
    x, y = torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 0])
    kept = torch.tensor([1.0, 1.0, 0.0, 0.0])
    a = plain(Lessons(images=x[:2], labels=y[:2], weights=torch.ones(2)), CLOCK).loss
    b = half(Lessons(images=x, labels=y, weights=kept), CLOCK).loss
    torch.testing.assert_close(a, 2 * b)


def test_mixing_changes_the_loss_and_is_the_same_for_the_same_seed():
    losses = []
    for mix in (Mix(), Mix(mixup=0.8), Mix(mixup=0.8), Mix(cutmix=1.0), Mix(erase=1.0)):
        system = classify(mix=mix).train()
        torch.manual_seed(1)
        losses.append(system(lessons(), CLOCK).loss.item())
    assert losses[1] == losses[2]
    assert len(set(losses)) == 4


def test_it_learns_its_batch():
    system = classify()
    losses = train(system, [lessons()] * 40, lr=0.2, total=40)
    assert losses[-1] < 0.2 < losses[0]
    assert (system.eval().predict(lessons().images).argmax(1) == lessons().labels).all()


def test_layer_decay_and_the_rate_of_the_head():
    net = backbones.create(BackboneConfig(name="vit_nano_patch8_64", image_size=16))
    system = classify(net, layer_decay=0.5, head_lr=10.0)
    scale = {n: g.lr_scale for g in system.groups() for n, _ in g.params}
    decay = {n: g.decay_scale for g in system.groups() for n, _ in g.params}
    assert scale["head.weight"] == 10.0
    assert scale["encoder.net.norm.weight"] == 1.0
    assert scale["encoder.net.blocks.5.mlp.fc1.weight"] == 0.5
    assert scale["encoder.net.patch_embed.proj.weight"] == 0.5**7
    assert {n for n, d in decay.items() if d == 0} == {
        "encoder.net.pos_embed",
        "encoder.net.cls_token",
    }
    assert sorted(scale) == sorted(n for n, _ in system.named_parameters())


def test_layer_decay_needs_blocks_and_a_system_two_classes():
    with pytest.raises(ValueError, match=r"system\.layer_decay=0.5: the backbone has no blocks"):
        classify(layer_decay=0.5).groups()
    with pytest.raises(ValueError, match=r"system\.classes"):
        Classify(Classify.Config(classes=("a",)), ConvNet())


def test_published_settings():
    assert {"small", "paper", "paper-10", "paper-1", "metric-transfer", "vit"} == set(RECIPES)
    assert systems.get("classify") is Classify
    for name, epochs, share, layers in (
        ("paper", 30, 1.0, 0),
        ("paper-10", 30, 0.1, 1),
        ("paper-1", 60, 0.01, 1),
    ):
        recipe = RECIPES[name]
        assert (recipe.epochs, recipe.batch_size, recipe.optim.weight_decay) == (epochs, 1024, 0.0)
        assert recipe.optim.lr == pytest.approx(0.005 * 1024**0.5)
        assert (recipe.system.labels.share, recipe.system.head_layers) == (share, layers)
    assert RECIPES["metric-transfer"].steps == 500_000


def test_hidden_layers_are_none_or_linear_norm_and_relu():
    assert len(hidden_layers(4, 0)) == 0
    kinds = [type(m).__name__ for m in hidden_layers(4, 2)]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * 2
