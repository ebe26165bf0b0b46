import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from saccade import backbones
from saccade.evals import attentive
from saccade.evals.attentive import PROTOCOLS, Probe, answers, run, tokens_of
from saccade.evals.features import Data
from saccade.recipe import BackboneConfig, Normalize, scaled_lr

PIXELS = Normalize(mean=(0.5,) * 3, std=(0.25,) * 3)


def data(net, toy, **settings):
    return Data(net, toy(30), toy(18, seed=1), normalize=PIXELS, **settings)


def awake(dim=128, classes=3):
    """A probe away from its start, in evaluation mode."""
    torch.manual_seed(0)
    probe = Probe(dim, classes).eval()
    with torch.no_grad():
        for p in probe.parameters():
            p.add_(0.3 * torch.randn_like(p))
        probe.norm.running_mean.normal_()
        probe.norm.running_var.uniform_(0.5, 2)
    return probe


@torch.no_grad()
def test_equals_the_equation_written_as_loops():
    probe, tokens = awake(), torch.randn(2, 5, 128)
    assert probe.heads == 2

    def normed(x, weight, bias=0.0):
        mean = sum(x) / len(x)
        var = sum((x - mean) ** 2) / len(x)
        return (x - mean) / (var + 1e-6) ** 0.5 * weight + bias

    q = probe.q.weight @ normed(probe.query[0, 0], probe.norm_q.weight, probe.norm_q.bias)
    q = q + probe.q.bias
    for i in range(2):
        taken = torch.zeros(128)
        keys = [probe.k.weight @ normed(t, probe.norm_k.weight) for t in tokens[i]]
        values = [normed(t, probe.norm_v.weight, probe.norm_v.bias) for t in tokens[i]]
        values = [probe.v.weight @ v + probe.v.bias for v in values]
        for head in (slice(0, 64), slice(64, 128)):
            weights = torch.tensor([float(q[head] @ k[head]) / 8 for k in keys]).softmax(0)
            taken[head] = sum(w * v[head] for w, v in zip(weights, values, strict=True))
        y = probe.proj.weight @ taken + probe.proj.bias
        y = (y - probe.norm.running_mean) / (probe.norm.running_var + 1e-6).sqrt()
        want = probe.head.weight @ y + probe.head.bias
        torch.testing.assert_close(probe(tokens)[i], want, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_first_query_takes_the_mean_of_values():
    probe, tokens = Probe(128, 3), torch.randn(2, 5, 128)
    taken = []
    probe.proj.register_forward_pre_hook(lambda m, inputs: taken.append(inputs[0]))
    probe(tokens)
    want = probe.v(probe.norm_v(tokens)).mean(1)
    torch.testing.assert_close(taken[0], want, atol=1e-5, rtol=1e-4)


def test_tokens_are_all_of_a_vit_after_its_norm_and_the_cells_of_a_map(net):
    vit = backbones.create(BackboneConfig(name="vit_pico_patch4_32", image_size=16)).eval()
    x = torch.randn(2, 3, 16, 16)
    tokens = tokens_of(vit, x)
    assert tokens.shape == (2, 17, 96)
    torch.testing.assert_close(tokens[:, 0], vit(x))
    cells = tokens_of(net.eval(), x)
    assert torch.equal(cells[:, 6], net.features(x)[:, :, 1, 2])


def test_the_network_stays_and_the_same_seed_gives_the_same_answers(net, toy):
    before, outside = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    (first,), (second,) = (run("attentive-cae", data(net, toy, epochs=2)) for _ in range(2))
    assert first.values.tolist() == second.values.tolist()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(outside, torch.get_rng_state())


def test_it_learns_what_brightness_tells(net, toy, monkeypatch):
    cfg = PROTOCOLS["attentive-cae"]
    finer = replace(cfg, batch_size=10, optim=replace(cfg.optim, lr=4.0))
    monkeypatch.setitem(attentive.PROTOCOLS, "attentive-cae", finer)
    (score,) = run("attentive-cae", data(net, toy, epochs=6))
    assert score.values.mean() > 0.6  # chance: a third
    assert score.settings["epochs"] == 6


def test_an_answer_does_not_depend_on_its_neighbors(net, toy):
    probe = awake(8)
    one, all_ = (answers(probe, data(net, toy, batch_size=b)) for b in (1, 18))
    assert one.tolist() == all_.tolist()


def test_published_settings():
    cfg = PROTOCOLS["attentive-cae"]
    assert scaled_lr(cfg.optim.lr, cfg.optim.lr_rule, 8192) == pytest.approx(0.4)
    assert (cfg.epochs, cfg.epochs * cfg.warmup) == (90, 10)
    assert (cfg.optim.momentum, cfg.optim.weight_decay) == (0.9, 0.0)
    probe = Probe(768, 10)
    assert probe.heads == 12
    assert isinstance(probe.norm, nn.BatchNorm1d)
    assert not probe.norm.affine
    assert probe.query.eq(0).all()
