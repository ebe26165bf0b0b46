"""fp16: the loss is scaled, the step is not; what overflows is no step."""

import json

import pytest
import torch
from torch import nn

from saccade.core import Step, Task
from saccade.engine.fit import fit
from saccade.engine.health import Health
from saccade.recipe import Engine, Optim

ROWS = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
LR, START = 0.1, 2.0**16  # torch's first scale


class Line(Task):
    """One linear layer, whose gradient is known; `steep` times the mean of its values."""

    def __init__(self, steep=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.steep = nn.Linear(8, 1, bias=False), steep
        self.kinds = set()

    def forward(self, batch, clock):
        y = self.layer(batch)
        self.kinds.add(y.dtype)
        return Step(self.steep * y.mean(dtype=torch.float32), {}, y.detach().float(), batch)


class Loader:
    steps, wait = 4, 0.0

    def batches(self, epoch, start=0):
        for step in range(start, self.steps):
            yield ROWS[4 * step : 4 * step + 4]


def run(out, task, *, steps=4, resume=False, precision="fp16"):
    out.mkdir(exist_ok=True)
    return fit(
        task,
        Loader(),
        Optim(lr=LR, lr_rule="none", momentum=0.0, weight_decay=0.0, clip=0.0),
        Engine(precision=precision, log_every=1),
        out=out,
        steps=steps,
        batch_size=4,
        seed=0,
        device=torch.device("cpu"),
        health=Health(),
        resume=resume,
    )


def logged(out):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def test_a_step_is_that_of_the_loss_and_not_of_the_scale(tmp_path, capsys):
    task = Line(steep=0.1)
    before, gradient = task.layer.weight.detach().clone(), 0.1 * ROWS[:4].mean(0)
    run(tmp_path, task, steps=1)
    assert task.kinds == {torch.float16}
    moved = before - LR * gradient
    torch.testing.assert_close(task.layer.weight.detach(), moved, rtol=0, atol=1e-5)
    assert "choose bf16" in capsys.readouterr().err
    (row,) = logged(tmp_path)
    assert row["loss_scale"] == START
    assert row["gradient_norm"] == pytest.approx(gradient.norm().item(), rel=1e-2)


def test_what_overflows_is_no_step_and_halves_the_scale(tmp_path):
    task = Line(steep=100.0)  # 100 x 65,536 / 4 of each value is beyond half precision
    before = task.layer.weight.detach().clone()
    run(tmp_path, task, steps=2)
    assert torch.equal(task.layer.weight.detach(), before)
    rows = logged(tmp_path)
    assert [r["loss_scale"] for r in rows] == [START / 2, START / 4]
    assert [r["gradient_norm"] for r in rows] == [0.0, 0.0]


def test_it_goes_on_where_the_scale_was(tmp_path):
    whole, first, again = (Line(steep=100.0) for _ in range(3))
    run(tmp_path / "whole", whole, steps=12)
    run(tmp_path / "parts", first, steps=6)
    run(tmp_path / "parts", again, steps=12, resume=True)
    assert torch.equal(whole.layer.weight, again.layer.weight)
    assert [r["loss_scale"] for r in logged(tmp_path / "parts")] == [
        r["loss_scale"] for r in logged(tmp_path / "whole")
    ]
    start = Line().layer.weight
    assert not torch.equal(whole.layer.weight, start)  # some steps were taken


def test_other_precisions_have_no_scale(tmp_path):
    for precision in ("fp32", "bf16"):
        run(tmp_path / precision, Line(), steps=1, precision=precision)
        (row,) = logged(tmp_path / precision)
        assert "loss_scale" not in row
        (saved,) = (tmp_path / precision / "checkpoints").iterdir()
        assert "scale" not in json.loads((saved / "state.json").read_text())


def test_gradients_beside_the_optimizer_are_refused(tmp_path):
    task = Line()
    task.own_gradients = True
    with pytest.raises(ValueError, match=r"engine\.precision=fp16: Line moves weights"):
        run(tmp_path, task)
    assert not (tmp_path / "checkpoints").exists()
