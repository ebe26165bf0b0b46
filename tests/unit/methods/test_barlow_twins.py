import pytest
import torch
from torch import nn
from toys import CLOCK, ConvNet, Pixels, batch_for, build, noise, views

from saccade.core import View
from saccade.methods.barlow_twins import RECIPES, BarlowTwins


def barlow(dim=12, redundancy=0.0051):
    """Embeddings are the pictures themselves, standardized."""
    task = BarlowTwins(BarlowTwins.Config(hidden=4, dim=dim, redundancy=redundancy), Pixels(dim))
    task.projector = nn.BatchNorm1d(dim, affine=False)
    return task


def pictures(rows):
    return rows[:, :, None, None]


def pair():
    torch.manual_seed(0)
    return torch.randn(2, 7, 3, 2, 2).unbind()


@pytest.mark.parametrize("redundancy", [0.0051, 1.0])
def test_equals_the_equation_written_as_loops(redundancy):
    a, b = pair()
    z = [(x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() for x in (a, b)]
    z_a, z_b = (x.flatten(1).tolist() for x in z)
    total = 0.0
    for i in range(12):
        for j in range(12):
            c = sum(z_a[n][i] * z_b[n][j] for n in range(7)) / 7
            total += (1 - c) ** 2 if i == j else redundancy * c**2
    assert barlow(redundancy=redundancy)(views(a, b), CLOCK).loss.item() == pytest.approx(
        total, rel=1e-5
    )


def test_equal_views_of_uncorrelated_channels_give_zero():
    x = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])  # orthogonal columns
    step = barlow(3, 1.0)(views(pictures(x), pictures(x)), CLOCK)
    assert step.loss.item() == pytest.approx(0, abs=1e-6)
    assert step.logs["correlation"].item() == pytest.approx(1, abs=1e-4)
    assert step.logs["redundancy"].item() == pytest.approx(0, abs=1e-4)


def test_opposite_views_give_four_for_every_channel_and_copied_channels_their_redundancy():
    x = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    loss = barlow(3)(views(pictures(x), pictures(-x)), CLOCK).loss
    assert loss.item() == pytest.approx(4 * 3, rel=1e-4)
    x = x[:, [0, 0, 0]]
    step = barlow(3, 0.5)(views(pictures(x), pictures(x)), CLOCK)
    assert step.loss.item() == pytest.approx(0.5 * 6, rel=1e-4)
    assert step.logs["redundancy"].item() == pytest.approx(1, rel=1e-4)


def test_a_constant_embedding_gives_one_for_every_channel():
    x = torch.ones(4, 3, 2, 2)
    assert barlow()(views(x, x), CLOCK).loss.item() == pytest.approx(12)


def test_swapping_views_permuting_images_and_rescaling_channels_change_nothing():
    a, b = pair()
    want = barlow()(views(a, b), CLOCK).loss
    order, scale = torch.randperm(7), 1 + torch.rand(3, 2, 2)
    for x, y in ((b, a), (a[order], b[order]), (scale * a + 3, b - scale)):
        loss = barlow()(views(x, y), CLOCK).loss
        torch.testing.assert_close(loss, want, atol=1e-4, rtol=1e-4)


def test_every_view_passes_alone_and_features_are_those_of_the_first():
    task, seen = build("barlow_twins"), []
    task.encoder.register_forward_hook(lambda _, inputs, out: seen.append(out))
    step = task(noise(b=4), CLOCK)
    assert [len(x) for x in seen] == [4, 4]
    assert torch.equal(step.features, seen[0])


def test_both_views_carry_gradient():
    a, b = (x.requires_grad_() for x in pair())
    barlow()(views(a, b), CLOCK).loss.backward()
    assert a.grad.abs().sum() > 0
    assert b.grad.abs().sum() > 0


def test_head_has_no_bias_and_ends_standardized():
    task = build("barlow_twins")
    kinds = [type(m) for m in task.projector]
    block = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert kinds == [*block, *block, nn.Linear, nn.BatchNorm1d]
    assert all(m.bias is None for m in task.projector if isinstance(m, nn.Linear))
    z = task.projector(task.encoder(batch_for("barlow_twins", b=64).images[0]))
    torch.testing.assert_close(z.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.var(0, correction=0), torch.ones(8), atol=1e-2, rtol=0)


def test_biases_and_norm_weights_have_the_official_rate():
    task = BarlowTwins(BarlowTwins.Config(hidden=8, dim=8), ConvNet())
    weights, flat = task.groups()
    assert {p.ndim for _, p in flat.params} == {1}
    assert all(p.ndim > 1 for _, p in weights.params)
    assert weights.lr_scale == 1
    assert flat.lr_scale * RECIPES["paper"].optim.lr == pytest.approx(0.0048)


def test_another_number_of_views_is_refused():
    with pytest.raises(ValueError, match=r"method\.views: BarlowTwins compares 2 views, not 3"):
        BarlowTwins(BarlowTwins.Config(views=(View(count=3),)), ConvNet())
