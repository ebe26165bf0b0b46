"""BYOL's and SimSiam's losses and heads against lightly's."""

import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import (
    BYOLPredictionHead,
    BYOLProjectionHead,
    SimSiamPredictionHead,
    SimSiamProjectionHead,
)
from toys import CLOCK, ConvNet, Pixels, batch_for, build, views

from saccade.methods.byol import BYOL, distance
from saccade.methods.simsiam import SimSiam


def test_byols_distance_and_its_gradient_equal_lightlys_but_for_the_constant():
    torch.manual_seed(0)
    q, z = torch.randn(2, 6, 12).unbind()
    q.requires_grad_()
    ours, theirs = distance(q, z), 2 + 2 * NegativeCosineSimilarity()(q, z)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, q), torch.autograd.grad(theirs, q))


def test_byols_step_equals_lightlys_modules_put_together():
    task = build("byol").train()
    seen = {}
    for name in ("predictor", "teacher_projector"):
        seen[name] = []
        getattr(task, name).register_forward_hook(lambda _, i, out, n=name: seen[n].append(out))
    loss = task(batch_for("byol"), CLOCK).loss
    (q_a, q_b), (z_a, z_b) = seen["predictor"], seen["teacher_projector"]
    criterion = NegativeCosineSimilarity()
    torch.testing.assert_close(loss, 4 + 2 * criterion(q_a, z_b) + 2 * criterion(q_b, z_a))


def test_byols_heads_equal_lightlys_whose_last_bias_is_zero():
    torch.manual_seed(0)
    task = BYOL(BYOL.Config(hidden=8, dim=4), ConvNet())
    pairs = (
        (task.projector, BYOLProjectionHead(16, 8, 4), torch.randn(10, 16)),
        (task.predictor, BYOLPredictionHead(4, 8, 4), torch.randn(10, 4)),
    )
    for ours, theirs, x in pairs:
        theirs.layers.load_state_dict(ours.state_dict() | {"3.bias": torch.zeros(4)})
        torch.testing.assert_close(ours(x), theirs(x))


def test_simsiams_loss_equals_lightlys():
    torch.manual_seed(0)
    a, b = torch.randn(2, 6, 3, 2, 2).unbind()
    task = SimSiam(SimSiam.Config(dim=12, bottleneck=4), Pixels()).eval()
    task.projector = torch.nn.Identity()
    p, r = task.predictor(a.flatten(1)), task.predictor(b.flatten(1))
    criterion = NegativeCosineSimilarity()
    theirs = (criterion(p, b.flatten(1)) + criterion(r, a.flatten(1))) / 2
    torch.testing.assert_close(task(views(a, b), CLOCK).loss, theirs)


def test_simsiams_heads_equal_lightlys():
    torch.manual_seed(0)
    task = SimSiam(SimSiam.Config(dim=8, bottleneck=4), ConvNet())
    pairs = (
        (task.projector, SimSiamProjectionHead(16, 8, 8), torch.randn(10, 16)),
        (task.predictor, SimSiamPredictionHead(8, 4, 8), torch.randn(10, 8)),
    )
    for ours, theirs, x in pairs:
        theirs.layers.load_state_dict(ours.state_dict())
        torch.testing.assert_close(ours(x), theirs(x))
