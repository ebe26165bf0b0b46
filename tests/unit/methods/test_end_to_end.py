import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import CLOCK, ConvNet, Pixels, batch_for, build, noise, views

from saccade.core import View
from saccade.methods.end_to_end import RECIPES, EndToEnd
from saccade.methods.moco import RECIPES as MOCO
from saccade.methods.moco_bank import RECIPES as BANK
from saccade.nn.norm import SplitBatchNorm


def end_to_end(temperature=0.07, dim=12):
    task = EndToEnd(EndToEnd.Config(dim=dim, temperature=temperature), Pixels(dim))
    task.projector = nn.Identity()
    return task


def test_equals_the_equation_written_as_loops():
    torch.manual_seed(0)
    a, b = torch.randn(2, 5, 3, 2, 2).unbind()
    q, k = F.normalize(a.flatten(1), dim=1), F.normalize(b.flatten(1), dim=1)
    total = 0.0
    for i in range(5):
        e = [math.exp(float(q[i] @ k[j]) / 0.07) for j in range(5)]
        total -= math.log(e[i] / sum(e)) / 5
    assert end_to_end()(views(a, b), CLOCK).loss.item() == pytest.approx(total, rel=1e-5)


def test_equal_embeddings_give_the_log_of_the_batch():
    x = torch.ones(6, 3, 2, 2)
    assert end_to_end()(views(x, x), CLOCK).loss.item() == pytest.approx(math.log(6), rel=1e-6)


def test_gradient_flows_through_queries_and_keys():
    torch.manual_seed(0)
    a, b = (x.requires_grad_() for x in torch.randn(2, 5, 3, 2, 2).unbind())
    found = torch.autograd.grad(end_to_end(0.5)(views(a, b), CLOCK).loss, (a, b))
    logits = F.cosine_similarity(a.flatten(1)[:, None], b.flatten(1)[None], dim=2) / 0.5
    wanted = torch.autograd.grad(F.cross_entropy(logits, torch.arange(5)), (a, b))
    torch.testing.assert_close(found, wanted)
    assert wanted[1].abs().sum() > 0


def test_keys_of_a_split_batch_are_shuffled_and_come_back_in_order():
    task = build("end_to_end", splits=2).train()
    assert isinstance(task.encoder.body[1], SplitBatchNorm)
    same = noise().images[0]
    seen = []
    task.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    task(views(same, same), CLOCK)
    queries, keys = seen
    assert not torch.equal(queries, keys)
    assert torch.equal(queries.sum((1, 2, 3)).sort()[0], keys.sum((1, 2, 3)).sort()[0])
    plain = task.eval()(views(same, same), CLOCK)  # without batch statistics each finds itself
    assert plain.logs["accuracy"] == 1


def test_the_three_mechanisms_share_their_settings():
    one, two, three = (r["small"] for r in (RECIPES, BANK, MOCO))
    for name in ("hidden", "dim", "temperature", "splits"):
        values = {getattr(r.method, name) for r in (one, two, three)}
        assert len(values) == 1, name
    assert one.optim == two.optim == three.optim
    assert one.backbone == two.backbone == three.backbone


def test_no_state_but_the_weights():
    task = build("end_to_end")
    own = {n.partition(".")[0] for n in task.state_dict()}
    assert own == {"encoder", "projector"}
    assert task(batch_for("end_to_end"), CLOCK).loss.requires_grad


def test_another_number_of_views_is_refused():
    with pytest.raises(ValueError, match=r"method\.views: EndToEnd compares 2 views, not 1"):
        EndToEnd(EndToEnd.Config(views=(View(),)), ConvNet())
