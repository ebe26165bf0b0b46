import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import CLOCK, ConvNet, Pixels, batch_for, build, views

from saccade.core import StrongSet, View
from saccade.methods.clsa import CLSA, RECIPES, diverge
from saccade.nn.parts import Ema

HARD = StrongSet(name="clsa", count=5)


def clsa(weak=1, strong=1, size=8, **settings):
    """Embeddings are the pictures themselves."""
    torch.manual_seed(0)
    rows = (View(count=1 + weak), *(View(strong=HARD) for _ in range(strong)))
    cfg = CLSA.Config(hidden=4, dim=12, queue_size=size, views=rows, **settings)
    task = CLSA(cfg, Pixels(12))
    task.projector = nn.Identity()
    task.key_projector = Ema(nn.Identity())
    return task


def pictures(n, b=4, seed=1):
    torch.manual_seed(seed)
    return list(torch.randn(n, b, 3, 2, 2))


def unit(x):
    return F.normalize(x.flatten(1), dim=1)


@pytest.mark.parametrize(("weak", "strong"), [(1, 1), (2, 3)])
def test_equals_the_equation_written_as_loops(weak, strong):
    key, *queries = pictures(1 + weak + strong)
    task = clsa(weak, strong, temperature=0.2, target_temperature=0.3, alpha=0.7)
    rows = torch.cat([unit(key), task.queue.rows])
    scores = [[[float(q @ r) for r in rows] for q in unit(x)] for x in queries]

    def softmax(z, t):
        total = sum(math.exp(v / t) for v in z)
        return [math.exp(v / t) / total for v in z]

    want = 0.0
    for w in scores[:weak]:
        want += sum(-math.log(softmax(z, 0.2)[i]) for i, z in enumerate(w)) / 4
        for s in scores[weak:]:
            for zw, zs in zip(w, s, strict=True):
                p, q = softmax(zw, 0.3), softmax(zs, 0.3)
                want += 0.7 * sum(-a * math.log(b) for a, b in zip(p, q, strict=True)) / 4
    assert task(views(key, *queries), CLOCK).loss.item() == pytest.approx(want, rel=1e-5)


def test_divergence_is_torchs_cross_entropy_with_soft_targets():
    torch.manual_seed(0)
    weak, strong = torch.randn(2, 6, 9).unbind()
    want = F.cross_entropy(strong / 0.2, (weak / 0.2).softmax(1))
    torch.testing.assert_close(diverge([weak], [strong], 0.2), want)


def test_without_strong_views_and_other_keys_it_is_mocos_loss():
    key, query = pictures(2)
    task = clsa(1, 0)
    k, q, total = unit(key), unit(query), 0.0
    for i in range(4):
        positive = math.exp(float(q[i] @ k[i]) / 0.2)
        others = sum(math.exp(float(q[i] @ k[j]) / 0.2) for j in range(4) if j != i)
        queue = sum(math.exp(float(q[i] @ row) / 0.2) for row in task.queue.rows)
        total -= math.log(positive / (positive + others + queue))
    assert task(views(key, query), CLOCK).loss.item() == pytest.approx(total / 4, rel=1e-5)
    alone = [clsa(1, 0)(views(key[i : i + 1], query[i : i + 1]), CLOCK).loss for i in range(4)]
    moco = 0.0
    for i in range(4):
        positive = float(q[i] @ k[i]) / 0.2
        logits = torch.cat([torch.tensor([positive]), task.queue.rows @ q[i] / 0.2])
        moco += float(logits.logsumexp(0)) - positive
    assert torch.stack(alone).mean().item() == pytest.approx(moco / 4, rel=1e-5)


def test_a_strong_view_like_the_weak_one_costs_the_entropy_and_has_no_gradient():
    torch.manual_seed(0)
    z = torch.randn(5, 9, requires_grad=True)
    loss = diverge([z], [z], 0.2)
    p = (z / 0.2).softmax(1).detach()
    torch.testing.assert_close(loss.detach(), torch.special.entr(p).sum(1).mean())
    (grad,) = torch.autograd.grad(loss, z)
    assert grad.abs().max() < 1e-6


def test_divergence_is_at_least_the_entropy_and_blind_to_the_order_of_columns():
    torch.manual_seed(0)
    weak, strong = torch.randn(2, 6, 9).unbind()
    loss, order = diverge([weak], [strong], 0.2), torch.randperm(9)
    assert loss > torch.special.entr((weak / 0.2).softmax(1)).sum(1).mean()
    torch.testing.assert_close(diverge([weak[:, order]], [strong[:, order]], 0.2), loss)


def test_equal_embeddings_give_logs_of_batch_and_queue_for_every_term():
    task = clsa(2, 2, size=64)
    task.queue.rows[:] = F.normalize(torch.ones(12), dim=0)
    x = torch.ones(4, 3, 2, 2)
    step = task(views(*[x] * 5), CLOCK)
    assert step.loss.item() == pytest.approx((2 + 4) * math.log(68), rel=1e-5)
    assert step.logs["divergence"].item() == pytest.approx(4 * math.log(68), rel=1e-5)


def test_strong_views_teach_nothing_to_weak_ones():
    torch.manual_seed(0)
    weak, strong = (torch.randn(3, 5, requires_grad=True) for _ in range(2))
    diverge([weak], [strong], 0.2).backward()
    assert weak.grad is None
    assert strong.grad.abs().sum() > 0


def test_no_gradient_reaches_the_key_or_its_network():
    task = build("clsa").train()
    batch = batch_for("clsa")
    for x in batch.images:
        x.requires_grad_()
    task(batch, CLOCK).loss.backward()
    assert batch.images[0].grad is None
    assert all(x.grad.abs().sum() > 0 for x in batch.images[1:])
    assert all(p.grad is None for p in task.key_encoder.parameters())


def test_low_temperatures_stay_finite():
    key, *queries = pictures(3)
    task = clsa(temperature=1e-3, target_temperature=1e-3)
    assert task(views(key, *queries), CLOCK).loss.isfinite()


def test_published_views():
    single, multi = RECIPES["paper"].method, RECIPES["paper-multi"].method
    assert [(v.size, v.count, v.strong.name) for v in single.views] == [
        (224, 2, "none"),
        (96, 1, "clsa"),
    ]
    strong = [v for v in multi.views if v.strong.name == "clsa"]
    assert [v.size for v in strong] == [224, 192, 160, 128, 96]
    assert sum(v.count for v in multi.views) == 11
    assert all(v.strong.count == 5 and v.strong.chance == 0.5 for v in strong)
    assert all(v.order[-1] == "strong" for v in multi.views)
    assert [v.crop for v in strong] == [v.crop for v in multi.views[1:6]]


@pytest.mark.parametrize(
    "rows", [(View(),), (View(strong=HARD), View()), (View(), View(strong=HARD))]
)
def test_views_without_a_key_or_a_weak_query_are_refused(rows):
    with pytest.raises(ValueError, match=r"method\.views: CLSA needs a key and a weak query"):
        CLSA(CLSA.Config(queue_size=8, views=rows), ConvNet())
