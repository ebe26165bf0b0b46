import itertools
import math
from collections import deque
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import CLOCK, ConvNet, Pixels, build, noise, views

from saccade.core import Clock, View, Views
from saccade.data.arrays import Arrays
from saccade.data.loader import ViewLoader
from saccade.methods.pic import PIC, drift
from saccade.nn.random import permutation
from saccade.recipe import Normalize

TOTAL = 200


def pic(images=12, negatives=99, dim=12, **settings):
    """Embeddings are the pictures themselves."""
    torch.manual_seed(0)
    cfg = PIC.Config(images=images, negatives=negatives, dim=dim, **settings)
    task = PIC(cfg, Pixels(dim))
    task.projector = nn.Linear(dim, dim)
    return task


def step(task, x, index, i):
    """One step of the engine, without an optimizer for the rest."""
    batch = Views(images=[x], index=torch.tensor(index), key=torch.arange(len(index)))
    loss = task(batch, Clock(i, TOTAL, 5)).loss
    loss.backward()
    task.after_update(Clock(i, TOTAL, 5))
    return loss.item()


def dense(task, xs, orders, negatives):
    """The same steps by torch's SGD over all weights, the recent ones picked by a loop."""
    cfg, w = task.cfg, nn.Parameter(task.weights.clone())
    sgd = torch.optim.SGD([w], cfg.class_lr, cfg.class_momentum, weight_decay=cfg.class_decay)
    seen, losses = deque(maxlen=negatives), []
    for i, (x, index) in enumerate(zip(xs, orders, strict=True)):
        seen.extend(index)
        some = sorted(set(seen)) if negatives < len(w) else list(range(len(w)))
        z = F.normalize(task.projector(x.flatten(1)), dim=1)
        logits = z @ F.normalize(w[some], dim=1).T / cfg.temperature
        loss = F.cross_entropy(logits, torch.tensor([some.index(j) for j in index]))
        warm = min(max(40 * i / TOTAL, 0.01), 1)
        sgd.param_groups[0]["lr"] = cfg.class_lr * warm * (1 + math.cos(math.pi * i / TOTAL)) / 2
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        losses.append(loss.item())
    return losses, w.detach(), sgd.state[w]["momentum_buffer"], some


def lazy(task, xs, orders):
    return [step(task, x, o, i) for i, (x, o) in enumerate(zip(xs, orders, strict=True))]


SETTINGS = {"class_lr": 0.3, "class_decay": 0.2}


def test_the_full_softmax_trains_as_torchs_cross_entropy_and_sgd_do():
    task = pic(**SETTINGS)
    xs = torch.randn(10, 4, 3, 2, 2)
    orders = [torch.randperm(12)[:4].tolist() for _ in xs]
    losses, w, u, _ = dense(task, xs, orders, 99)
    assert lazy(task, xs, orders) == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(task.weights, w)
    torch.testing.assert_close(task.velocity, u)


@pytest.mark.parametrize("negatives", [4, 7, 8])
def test_lazy_weights_equal_dense_ones_under_a_moving_rate(negatives):
    task = pic(negatives=negatives, **SETTINGS)
    xs = torch.randn(25, 4, 3, 2, 2)
    orders = [torch.randperm(12)[:4].tolist() for _ in xs]
    losses, w, u, some = dense(task, xs, orders, negatives)
    assert lazy(task, xs, orders) == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(task.weights[some], w[some], atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(task.velocity[some], u[some], atol=1e-5, rtol=1e-3)
    assert sorted(set(task.recent[task.standing()].tolist())) == some


def test_37_steps_without_gradient_equal_their_matrix_in_double_precision():
    cfg = PIC.Config(class_decay=0.01)
    w, u = 1.5, -0.3
    start = torch.tensor([w, u], dtype=torch.float64)
    rates = torch.linspace(0.3, 0.1, 37, dtype=torch.float64)
    for rate in rates.tolist():
        u = 0.9 * u + 0.01 * w
        w = w - rate * u
    products = drift(rates, cfg)
    assert (products[37] @ start).tolist() == pytest.approx([w, u], rel=1e-12)
    torch.testing.assert_close(products[0], torch.eye(2, dtype=torch.float64))
    last = torch.tensor([[1 - 0.1 * 0.01, -0.1 * 0.9], [0.01, 0.9]], dtype=torch.float64)
    torch.testing.assert_close(products[1], last)


@pytest.mark.parametrize(("images", "expected"), [(8000, math.log(8000)), (2000, math.log(2000))])
def test_the_loss_starts_at_the_log_of_the_images(images, expected):
    task = pic(images=images, negatives=images, dim=128)
    assert step(task, torch.randn(8, 128, 1, 1), list(range(8)), 0) == pytest.approx(
        expected + 0.1, abs=0.5
    )


def test_lengths_of_weights_do_not_matter_and_gradients_are_orthogonal():
    x = torch.randn(4, 3, 2, 2)
    task, scaled = pic(), pic()
    scaled.weights.mul_(torch.rand(12, 1) + 0.5)
    losses = [t(views(x), CLOCK).loss for t in (task, scaled)]
    torch.testing.assert_close(*losses)
    losses[0].backward()
    w = task.sampled
    assert w.grad.abs().sum() > 0
    dots = (w.grad * w.detach()).sum(1) / (w.grad.norm(dim=1) * w.detach().norm(dim=1))
    torch.testing.assert_close(dots, torch.zeros(12), atol=1e-5, rtol=0)


def test_a_step_touches_the_recent_rows_only():
    task = pic(negatives=6)
    before = task.weights.clone()
    step(task, torch.randn(4, 3, 2, 2), [7, 1, 3, 11], 0)
    step(task, torch.randn(4, 3, 2, 2), [0, 1, 2, 4], 1)
    moved = (task.weights != before).any(1).nonzero()[:, 0].tolist()
    assert moved == [0, 1, 2, 3, 4, 7, 11]
    # six places: 1 again at its new one, 7 and 1 from before overwritten
    assert sorted(task.recent[task.standing()].tolist()) == [0, 1, 2, 3, 4, 11]


def test_a_picture_met_twice_counts_once():
    task = pic(negatives=8)
    step(task, torch.randn(4, 3, 2, 2), [0, 1, 2, 3], 0)
    step(task, torch.randn(4, 3, 2, 2), [0, 1, 4, 5], 1)
    assert sorted(task.recent[task.standing()].tolist()) == [0, 1, 2, 3, 4, 5]


def test_weights_follow_the_index_in_the_dataset():
    task, x = pic(), torch.randn(4, 3, 2, 2)
    order, other = torch.tensor([2, 0, 3, 1]), pic()
    other.weights[:4] = task.weights[order]
    torch.testing.assert_close(task(views(x), CLOCK).loss, other(views(x[order]), CLOCK).loss)


def passes(task, images, epochs, window):
    """The stream of pictures, cut into passes."""
    stream = torch.cat([task.order(images, 3, e) for e in range(epochs)]) % images
    return stream.unflatten(0, (-1, window))


def test_the_window_slides_over_one_fixed_order():
    task = pic(images=48, window=16, stride=4)
    found = passes(task, 48, 4, 16)  # 12 passes: one turn
    for one, two in itertools.pairwise(found):
        assert len(set(one.tolist())) == 16
        assert len(set(one.tolist()) & set(two.tolist())) == 12
    assert (found.flatten().bincount() == 4).all()  # window / stride visits each
    again = passes(task, 48, 8, 16)[12:]
    for one, two in zip(found, again, strict=True):
        assert set(one.tolist()) == set(two.tolist())  # the second turn goes the same way
        assert one.tolist() != two.tolist()  # in another order inside
    fixed = permutation(48, 3, -1)
    assert set(found[0].tolist()) == set(fixed[:16].tolist())


def test_ranks_share_out_the_window_and_a_resumed_epoch_goes_on():
    task = pic(images=48, window=16, stride=4)
    pixels, labels = torch.zeros(48, 4, 4, 3, dtype=torch.uint8), np.zeros(48, np.int64)
    source = Arrays("plain", pixels, labels, ("a",), "train", 3)

    def stream(start=0, **ranks):
        rows = {"batch_size": 8, "seed": 3, "order": task.order} | ranks
        loader = ViewLoader(source, (View(size=4, blur=0.0),), Normalize(), **rows)
        return torch.stack([batch.index for batch in loader.batches(2, start)])

    whole, *ranks = stream(), stream(rank=0, world=2), stream(rank=1, world=2)
    assert torch.equal(whole.flatten(), task.order(48, 3, 2) % 48)
    assert torch.equal(whole, torch.cat(ranks, 1))
    assert all(len(batch.unique()) == 8 for batch in whole)  # ranks see other pictures
    assert torch.equal(stream(start=4), whole[4:])


def test_visits_within_an_epoch_have_keys_of_their_own():
    order = pic(images=48, window=16, stride=4).order(48, 0, 5)
    assert len(order) == len(order.unique()) == 48
    assert len((order % 48).unique()) < 48


def test_windows_that_no_epoch_divides_go_on_in_the_next_epoch():
    task = pic(images=50, window=16, stride=3)
    whole = torch.cat([task.order(50, 1, e) % 50 for e in range(8)])  # 25 passes of 16
    for p, found in enumerate(whole.unflatten(0, (25, 16))):
        at = (p * 3 + torch.arange(16)) % 50
        assert set(found.tolist()) == set(permutation(50, 1, -1)[at].tolist())
    assert torch.equal(task.order(50, 1, 5), task.order(50, 1, 5))


def test_data_that_fit_in_the_window_have_plain_epochs():
    task = pic(images=16, window=16, stride=4)
    assert torch.equal(task.order(16, 2, 3), permutation(16, 2, 3))


def test_state_holds_the_weights_their_velocity_and_who_was_met():
    state = build("pic").state_dict()
    assert {"weights", "velocity", "moved", "recent", "place", "head"} <= set(state)
    assert not any(n in ("weights", "velocity") for n, _ in build("pic").named_parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 0}, r"method\.images: 0; give the number"),
        ({"stride": 0}, r"method\.stride: 0 with a window of 131072"),
        ({"views": (View(count=2),)}, r"method\.views: PIC sees 1 view of a picture, not 2"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        PIC(replace(PIC.Config(images=8), **change), ConvNet())


def test_fewer_negatives_than_pictures_of_a_batch_are_refused():
    with pytest.raises(ValueError, match=r"method\.negatives: 4 is less than the batch of 8"):
        build("pic", negatives=4)(noise(), CLOCK)
