import itertools

import torch
import torch.nn.functional as F

from saccade import backbones
from saccade.evals import grid
from saccade.evals.grid import PROTOCOLS, Grid, fit, run
from saccade.recipe import BackboneConfig


def blobs(n=60, dim=5, classes=3):
    y = torch.arange(n) % classes
    draws = torch.Generator().manual_seed(0)
    return torch.randn(n, dim, generator=draws) + 3 * F.one_hot(y, dim), y


def test_each_classifier_of_the_grid_is_trained_as_if_alone():
    x, y = blobs()
    cfg = Grid(rates=(0.01, 0.3), epochs=1, epoch_steps=20, batch_size=16)
    parts = {"a": torch.arange(5), "b": torch.tensor([1, 2])}
    heads = fit(cfg, x, y, parts, 3, seed=4)
    for name, head in zip(parts, heads, strict=True):
        for r, rate in enumerate(cfg.rates):
            draws = torch.Generator().manual_seed(4)
            starts = [torch.empty(1, n, 3).normal_(0, 0.01, generator=draws)[0] for n in (5, 2)]
            w = torch.nn.Parameter(starts[0] if name == "a" else starts[1])
            b = torch.nn.Parameter(torch.zeros(3))
            optimizer = torch.optim.SGD([w, b], rate * 16 / 256, momentum=0.9)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
            order = torch.empty(0, dtype=torch.long)
            for _ in range(20):
                if len(order) < 16:
                    order = torch.randperm(60, generator=draws)
                at, order = order[:16], order[16:]
                optimizer.zero_grad()
                F.cross_entropy(x[at][:, parts[name]] @ w + b, y[at]).backward()
                optimizer.step()
                schedule.step()
            assert torch.allclose(head[0][r], w, atol=1e-5)
            assert torch.allclose(head[1][r, 0], b, atol=1e-5)


def test_the_held_out_pictures_choose_among_13_rates(given, monkeypatch):
    x, y = blobs(100)
    monkeypatch.setitem(PROTOCOLS, "linear-dinov2", Grid(epochs=1, epoch_steps=60))
    (score,) = run("linear-dinov2", given(x, y, x, y, kind="cls-4-mean"))
    assert score.values.mean() > 0.9
    assert score.settings["bank"] == 90
    assert score.settings["chosen"]["lr"] >= 1e-3  # smaller ones learn nothing in 60 steps


def test_published_grid():
    rates = PROTOCOLS["linear-dinov2"].rates
    assert len(rates) == 13
    assert (min(rates), max(rates)) == (1e-5, 0.1)
    assert all(1.9 < b / a < 2.6 for a, b in itertools.pairwise(rates))
    assert (PROTOCOLS["linear-dinov2"].epochs, PROTOCOLS["linear-dinov2"].epoch_steps) == (10, 1250)


def test_a_shallow_network_has_the_columns_of_its_blocks():
    net = backbones.create(BackboneConfig(name="vit_atto_patch4_32", image_size=32))
    x = torch.randn(40, 4 * net.dim)  # CLS of 3 blocks and the mean
    found = grid.inputs(x.shape[1], net)
    assert list(found) == ["last CLS", "last CLS + mean", "3 CLS", "3 CLS + mean"]
    assert x[:, found["last CLS"]].equal(x[:, 2 * net.dim : 3 * net.dim])
    assert x[:, found["last CLS + mean"]].equal(x[:, 2 * net.dim :])
    assert x[:, found["3 CLS"]].equal(x[:, : 3 * net.dim])
