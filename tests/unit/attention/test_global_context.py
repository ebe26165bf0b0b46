import torch
import torch.nn.functional as F

from saccade.attention import GlobalContext


def block():
    torch.manual_seed(0)
    made = GlobalContext(8, ratio=2).double()
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return made


def test_equals_the_equation_written_as_loops():
    made, x = block(), torch.randn(1, 8, 2, 3, dtype=torch.double)
    y = x[0].flatten(1).T
    e = torch.stack([(made.mask.weight[0] @ row + made.mask.bias[0]).exp() for row in y])
    context = sum(e[j] / e.sum() * y[j] for j in range(6))
    h = made.fc1.weight @ context + made.fc1.bias
    h = (h - h.mean()) / (h.var(correction=0) + 1e-5).sqrt() * made.norm.weight + made.norm.bias
    added = made.fc2.weight @ F.relu(h) + made.fc2.bias
    torch.testing.assert_close(made(x)[0].flatten(1).T, y + added)


def test_starts_as_the_identity():
    x = torch.randn(2, 8, 3, 3)
    assert torch.equal(GlobalContext(8)(x), x)


def test_every_position_gets_the_same_and_order_does_not_matter():
    made, x = block(), torch.randn(2, 8, 3, 3, dtype=torch.double)
    added = (made(x) - x).flatten(2)
    torch.testing.assert_close(added, added[..., :1].expand_as(added))
    turned = x.flip(2)
    torch.testing.assert_close((made(turned) - turned).flatten(2), added)


def test_gradients_are_those_of_differences():
    x = torch.randn(1, 8, 2, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(block(), (x,))


def test_weights_start_as_in_the_official_code():
    torch.manual_seed(0)
    made = GlobalContext(4096)
    assert made.fc1.out_features == 256
    assert abs(made.mask.weight.std().item() - (2 / 4096) ** 0.5) < 1e-3
    assert not any(p.any() for p in (made.mask.bias, *made.fc2.parameters()))
