"""Distillation: loss, limits, and a teacher that stays as it is."""

import math

import pytest
import torch
import torch.nn.functional as F
from toys import CLOCK, ConvNet, Pixels, noise

from saccade.core import Lessons
from saccade.domains.distillation import Teacher
from saccade.recipe import Normalize
from saccade.systems.classify import Classify
from saccade.systems.distill import RECIPES, Distill, distillation, labeled

CLASSES = ("a", "b", "c")


def distill(encoder=None, **settings):
    torch.manual_seed(0)
    return Distill(Distill.Config(classes=CLASSES, **settings), encoder or ConvNet())


@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0])
def test_equals_the_equation_written_as_loops(temperature):
    torch.manual_seed(0)
    teacher, student = torch.randn(2, 5, 3).unbind()

    def softmax(row):
        total = sum(math.exp(v / temperature) for v in row)
        return [math.exp(v / temperature) / total for v in row]

    total = 0.0
    for t, s in zip(teacher.tolist(), student.tolist(), strict=True):
        total -= sum(p * math.log(q) for p, q in zip(softmax(t), softmax(s), strict=True))
    found = distillation(student, teacher.softmax(1), temperature)
    assert found.item() == pytest.approx(temperature**2 * total / 5, rel=1e-4)


def test_it_is_torchs_cross_entropy_with_soft_targets():
    torch.manual_seed(0)
    teacher, student = torch.randn(2, 5, 3).unbind()
    want = 4 * F.cross_entropy(student / 2, (teacher / 2).softmax(1))
    torch.testing.assert_close(distillation(student, teacher.softmax(1), 2.0), want)


def test_a_student_like_its_teacher_costs_the_entropy_and_has_no_gradient():
    torch.manual_seed(0)
    z = torch.randn(5, 3, requires_grad=True)
    loss = distillation(z, z.detach().softmax(1), 1.0)
    torch.testing.assert_close(
        loss.detach(), torch.special.entr(z.detach().softmax(1)).sum(1).mean()
    )
    assert torch.autograd.grad(loss, z)[0].abs().max() < 1e-6


def test_at_high_temperatures_the_gradient_is_the_centered_difference_of_logits():
    torch.manual_seed(0)
    teacher, student = torch.randn(2, 4, 3, dtype=torch.double).unbind()
    student.requires_grad_()
    (grad,) = torch.autograd.grad(distillation(student, teacher.softmax(1), 1000.0), student)
    gap = student.detach() - teacher
    want = (gap - gap.mean(1, keepdim=True)) / 3 / 4  # over classes and pictures; t^2 cancels
    torch.testing.assert_close(grad, want, atol=1e-4, rtol=1e-2)


def test_a_teacher_without_doubt_is_a_label():
    z, y = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    torch.testing.assert_close(distillation(z, F.one_hot(y, 3).float(), 1.0), F.cross_entropy(z, y))


def test_labels_count_where_there_are_some_and_alpha_is_below_1():
    torch.manual_seed(0)
    system, x = distill(Pixels(), alpha=0.25), torch.randn(4, 3, 2, 2)
    taught, labels = torch.rand(4, 3).softmax(1), torch.tensor([-1, 2, -1, 0])
    z = system.head(x.flatten(1))
    want = 0.25 * distillation(z, taught, 1.0) + 0.75 * F.cross_entropy(z[[1, 3]], labels[[1, 3]])
    batch = Lessons(images=x, labels=labels, weights=torch.ones(4), taught=taught)
    torch.testing.assert_close(system(batch, CLOCK).loss, want)
    assert labeled(z, torch.full((4,), -1)) == 0


def test_by_default_labels_do_not_matter():
    torch.manual_seed(0)
    system, x, taught = distill(Pixels()), torch.randn(4, 3, 2, 2), torch.rand(4, 3).softmax(1)
    losses = [
        system(Lessons(images=x, labels=y, weights=torch.ones(4), taught=taught), CLOCK).loss
        for y in (torch.full((4,), -1), torch.tensor([0, 1, 2, 0]))
    ]
    assert torch.equal(*losses)


def test_the_teacher_is_frozen_in_evaluation_mode_and_sees_its_own_normalization():
    torch.manual_seed(0)
    teacher = Classify(Classify.Config(classes=CLASSES), ConvNet()).eval().requires_grad_(False)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    pixels = torch.rand(4, 3, 32, 32)
    own, other = Normalize(), Normalize(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 0.5))

    def seen(n):
        return (pixels - torch.tensor(n.mean)[:, None, None]) / torch.tensor(n.std)[:, None, None]

    want = teacher.predict(seen(own))
    found = Teacher(teacher, other, own)(seen(other).requires_grad_())
    torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-4)
    assert not found.requires_grad
    torch.testing.assert_close(Teacher(teacher, own, own)(seen(own)), want)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_the_state_holds_the_student_alone():
    system = distill(head_layers=1)
    system(
        Lessons(
            images=noise().images[0],
            labels=torch.full((8,), -1),
            weights=torch.ones(8),
            taught=torch.full((8, 3), 1 / 3),
        ),
        CLOCK,
    ).loss.backward()
    assert {k.partition(".")[0] for k in system.state_dict()} == {"encoder", "projector", "head"}
    assert all(p.grad is not None for p in system.parameters())


def test_published_temperatures():
    assert RECIPES["paper-self"].system.temperature == 0.1
    assert RECIPES["paper"].system.temperature == 1.0
    assert all(RECIPES[n].system.alpha == 1 for n in RECIPES)
    assert (RECIPES["paper"].epochs, RECIPES["paper"].batch_size) == (400, 4096)


@pytest.mark.parametrize("settings", [{"alpha": 1.5}, {"temperature": 0.0}])
def test_settings_that_cannot_be_are_named(settings):
    with pytest.raises(ValueError, match="setting system: alpha="):
        distill(**settings)
