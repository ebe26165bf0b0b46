import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from saccade.evals.features import Data, Features
from saccade.evals.linear import PROTOCOLS, fit, fit_crops, run
from saccade.recipe import IMAGENET_MEAN, IMAGENET_STD, Normalize

EPOCHS = 10


def bank(n=40, dim=6, classes=3, seed=0):
    torch.manual_seed(seed)
    y = torch.arange(n) % classes
    return Features(torch.randn(n, dim) + 3 * F.one_hot(y, dim), y, torch.arange(n))


def ours(name, size=16):
    return fit(replace(PROTOCOLS[name], epochs=EPOCHS, batch_size=size), bank(), 3, seed=5)


def start(dim=6, classes=3):
    """The first weights and the generator that shuffles, as the protocol draws them."""
    draws = torch.Generator().manual_seed(5)
    head = torch.nn.Linear(dim, classes)
    with torch.no_grad():
        head.weight.copy_(torch.empty(classes, dim).normal_(0, 0.01, generator=draws))
        head.bias.zero_()
    return head, draws


@pytest.mark.parametrize("name", ["linear-moco", "linear-dino", "linear-simclr"])
def test_equals_torchs_sgd_with_torchs_schedule(name):
    head, draws = start()
    rates = {"linear-moco": 30.0, "linear-dino": 0.001 * 16 / 256, "linear-simclr": 0.1 * 16 / 256}
    simclr = name == "linear-simclr"
    if simclr:
        torch.nn.init.zeros_(head.weight)
    optimizer = torch.optim.SGD(head.parameters(), rates[name], momentum=0.9, nesterov=simclr)
    schedule = (
        torch.optim.lr_scheduler.MultiStepLR(optimizer, [6, 8])
        if name == "linear-moco"
        else torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * (3 if simclr else 1))
    )
    data = bank()
    for _ in range(EPOCHS):
        order = torch.randperm(40, generator=draws)
        for at in (order[:16], order[16:32], order[32:]):
            optimizer.zero_grad()
            F.cross_entropy(head(data.x[at]), data.y[at]).backward()
            optimizer.step()
            if simclr:
                schedule.step()
        if not simclr:
            schedule.step()
    found = ours(name)[1]
    assert torch.allclose(found.weight, head.weight, rtol=1e-4, atol=1e-6)
    assert torch.allclose(found.bias, head.bias, rtol=1e-4, atol=1e-6)


def test_mae_equals_lars_and_batch_norm_written_out():
    cfg = replace(PROTOCOLS["linear-mae"], epochs=12, batch_size=16)
    data = bank()
    head, draws = start()
    w, b = head.weight.detach(), head.bias.detach()
    vw, vb = torch.zeros_like(w), torch.zeros_like(b)
    mean, var = torch.zeros(6), torch.ones(6)
    for step in range(24):
        if step % 2 == 0:
            order = torch.randperm(40, generator=draws)
        at = order[:16] if step % 2 == 0 else order[16:32]  # the short third batch is dropped
        lr = 0.1 * 16 / 256
        lr *= step / 20 if step < 20 else (1 + math.cos(math.pi * (step - 20) / 4)) / 2
        x, y = data.x[at], data.y[at]
        mean, var = 0.9 * mean + 0.1 * x.mean(0), 0.9 * var + 0.1 * x.var(0)
        x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-6).sqrt()
        error = ((x @ w.T + b).softmax(1) - F.one_hot(y, 3)) / 16
        gw, gb = error.T @ x, error.sum(0)
        vw = 0.9 * vw + 0.001 * w.norm() / gw.norm() * gw
        vb = 0.9 * vb + gb
        w, b = w - lr * vw, b - lr * vb
    found = fit(cfg, data, 3, seed=5)
    assert torch.allclose(found[1].weight, w, rtol=1e-4, atol=1e-7)
    assert torch.allclose(found[1].bias, b, rtol=1e-4, atol=1e-7)
    assert torch.allclose(
        found(data.x), ((data.x - mean) / (var + 1e-6).sqrt()) @ w.T + b, atol=1e-4
    )


def test_a_seed_gives_one_classifier():
    cfg = replace(PROTOCOLS["linear-moco"], epochs=2)
    weights = [fit(cfg, bank(), 3, seed)[1].weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_separable_classes_are_separated(given):
    data = bank()
    (score,) = run("linear-moco", given(10 * data.x, data.y, 10 * data.x, data.y))
    assert score.metric == "top1"
    assert score.values.mean() > 0.9
    assert score.settings["bank"] == 40
    assert score.settings["augmentation"] == "none"


def test_dino_reads_the_last_four_blocks(given):
    data = bank()
    (score,) = run("linear-dino", given(data.x, data.y, data.x, data.y, kind="cls-4"))
    assert score.settings["features"] == "cls-4"
    assert score.values.mean() > 0.6


def test_divergence_is_an_error_not_a_figure(given):
    data = bank()
    with pytest.raises(ValueError, match="linear-moco diverged: its learning rate 30"):
        list(run("linear-moco", given(1e20 * data.x, data.y, data.x, data.y)))


def test_published_settings():
    moco, dino, mae = (PROTOCOLS[f"linear-{n}"] for n in ("moco", "dino", "mae"))
    assert (moco.epochs, dino.epochs, mae.epochs) == (100, 100, 90)
    assert [p.optim.weight_decay for p in (moco, dino, mae)] == [0, 0, 0]
    assert [p.optim.lr_rule for p in (moco, dino, mae)] == ["none", "linear-256", "linear-256"]
    assert mae.optim.schedule.warmup_epochs == 10


def test_crops_of_plain_pictures_train_as_their_features_do(toy, net):
    """Every crop of a picture of one color is the same: LARS and batch norm written out."""
    train, test = toy(12), toy(6, seed=1)
    train.x = train.x[:, :, :1, :1].expand(-1, -1, 16, 16).contiguous()
    data = Data(net, train, test, normalize=Normalize())
    cfg = replace(PROTOCOLS["linear-mae-crops"], epochs=12, batch_size=12)
    found = fit_crops(cfg, data)
    with torch.no_grad():
        x = net.eval()(
            (train.x / 255 - torch.tensor(IMAGENET_MEAN)[:, None, None])
            / torch.tensor(IMAGENET_STD)[:, None, None]
        )
    y = torch.from_numpy(train.labels)
    w = torch.empty(3, 8).normal_(0, 0.01, generator=torch.Generator().manual_seed(0))
    b, vw, vb = torch.zeros(3), torch.zeros(3, 8), torch.zeros(3)
    x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-6).sqrt()
    for step in range(12):
        lr = 0.1 * 12 / 256
        lr *= step / 10 if step < 10 else (1 + math.cos(math.pi * (step - 10) / 2)) / 2
        error = ((x @ w.T + b).softmax(1) - F.one_hot(y, 3)) / 12
        gw, gb = error.T @ x, error.sum(0)
        vw = 0.9 * vw + 0.001 * w.norm() / gw.norm() * gw
        vb = 0.9 * vb + gb
        w, b = w - lr * vw, b - lr * vb
    torch.testing.assert_close(found[1].weight.detach(), w, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found[1].bias.detach(), b, rtol=1e-3, atol=1e-6)


def test_crops_change_what_the_probe_sees(toy, net):
    seen = []
    for name in ("linear-mae", "linear-mae-crops"):
        data = Data(net, toy(12), toy(6, seed=1), normalize=Normalize(), epochs=2)
        (score,) = run(name, data)
        seen.append((score.settings["augmentation"], score.settings["epochs"]))
    assert seen == [("none", 90), ("crop and flip", 2)]
