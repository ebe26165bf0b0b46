import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import CLOCK, ConvNet, Pixels, build, noise, views

from saccade.core import View
from saccade.methods.supcon import SupCon


def supcon(temperature=0.5, dim=12):
    """Projections are the pictures themselves."""
    task = SupCon(SupCon.Config(hidden=4, dim=dim, temperature=temperature), Pixels(dim))
    task.projector = nn.Identity()
    return task


def labeled(labels, *images):
    return dataclasses.replace(views(*images), labels=torch.tensor(labels))


def pair(b=5):
    torch.manual_seed(0)
    return torch.randn(2, b, 3, 2, 2).unbind()


def by_loops(labels, a, b, temperature):
    z = F.normalize(torch.cat([a, b]).flatten(1), dim=1)
    y, total = labels * 2, 0.0
    for i in range(len(z)):
        others = [k for k in range(len(z)) if k != i]
        down = sum(math.exp(float(z[i] @ z[k]) / temperature) for k in others)
        same = [k for k in others if y[k] == y[i]]
        total -= sum(
            math.log(math.exp(float(z[i] @ z[p]) / temperature) / down) for p in same
        ) / len(same)
    return total / len(z)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("labels", [[0, 1, 0, 2, 0], [3, 3, 3, 3, 3], [0, 1, 2, 3, 4]])
def test_equals_the_equation_written_as_loops(labels, temperature):
    want = by_loops(labels, *pair(), temperature)
    step = supcon(temperature)(labeled(labels, *pair()), CLOCK)
    assert step.loss.item() == pytest.approx(want, rel=1e-5)


def test_an_image_without_label_is_a_class_of_its_own():
    mixed = supcon()(labeled([0, -1, 0, -1, -1], *pair()), CLOCK)
    assert mixed.loss.item() == pytest.approx(by_loops([0, 5, 0, 6, 7], *pair(), 0.5), rel=1e-5)
    assert mixed.logs["positives"].item() == pytest.approx((2 * 3 + 3 * 1) / 5)


def test_names_of_classes_do_not_matter_and_classes_do():
    losses = [
        supcon()(labeled(y, *pair()), CLOCK).loss
        for y in ([0, 1, 0, 2, 1], [7, 3, 7, 0, 3], [0, 0, 1, 2, 1])
    ]
    assert torch.equal(losses[0], losses[1])
    assert not torch.allclose(losses[0], losses[2])


def test_perfect_classes_reach_the_floor_and_equal_embeddings_the_log_of_the_candidates():
    x = torch.eye(4)[[0, 0, 1, 1]][:, :, None, None]
    step = supcon(0.02, dim=4)(labeled([0, 0, 1, 1], x, x), CLOCK)
    assert step.loss.item() == pytest.approx(math.log(3), rel=1e-5)
    assert step.logs["accuracy"] == 1
    x = torch.ones(4, 3, 2, 2)
    loss = supcon()(labeled([0, 0, 1, 1], x, x), CLOCK).loss
    assert loss.item() == pytest.approx(math.log(7), rel=1e-6)


def test_swapping_views_and_permuting_images_with_their_labels_change_nothing():
    (a, b), labels, order = pair(), torch.tensor([0, 1, 0, 2, 1]), torch.randperm(5)
    want = supcon()(labeled(labels.tolist(), a, b), CLOCK).loss
    for x, y, label in ((b, a, labels), (a[order], b[order], labels[order])):
        torch.testing.assert_close(supcon()(labeled(label.tolist(), x, y), CLOCK).loss, want)


def test_gradient_is_the_steepest_slope():
    a, b = pair()

    def loss(x):
        return supcon()(labeled([0, 1, 0, 2, 0], x, b), CLOCK).loss

    x = a.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(x), x)
    ahead = 0.02 * grad / grad.norm()
    slope = (loss(a + ahead) - loss(a - ahead)) / 0.04
    assert slope.item() == pytest.approx(grad.norm().item(), rel=1e-2)


def test_both_views_share_one_pass_and_features_are_those_of_the_first():
    task, seen = build("supcon"), []
    task.encoder.register_forward_hook(lambda _, inputs, out: seen.append(out))
    step = task(noise(b=4), CLOCK)
    assert [len(x) for x in seen] == [8]
    assert torch.equal(step.features, seen[0][:4])
    assert [type(m) for m in task.projector] == [nn.Linear, nn.ReLU, nn.Linear]


def test_a_batch_without_labels_is_refused():
    batch = dataclasses.replace(noise(), labels=None)
    with pytest.raises(ValueError, match="needs labels"):
        build("supcon")(batch, CLOCK)


def test_another_number_of_views_is_refused():
    with pytest.raises(ValueError, match=r"method\.views: SupCon compares 2 views, not 3"):
        SupCon(SupCon.Config(views=(View(count=3),)), ConvNet())
