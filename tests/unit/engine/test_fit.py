"""The training loop on batches in parts."""

import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from saccade.core import Clock, Step, Task
from saccade.engine.fit import fit, gradients
from saccade.engine.health import Health
from saccade.errors import RunError
from saccade.recipe import Engine, Optim

OFF = torch.amp.GradScaler("cpu", enabled=False)
PICTURES = torch.randn(18, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Regression(Task):
    """The mean of the entries from the sum of all of them."""

    additive = True

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(5, 1, dtype=torch.float64)
        self.seen = []

    def forward(self, batch, clock):
        self.seen.append((clock.epoch, batch[:, 0].tolist()))
        y = self.layer(batch)
        error = (y[:, 0] - batch.sum(1)).square()
        return Step(error.mean(), {"error": error.detach().mean()}, y.detach(), batch)


class Loader:
    """Eighteen rows, in another order every epoch."""

    wait = 0.0

    def __init__(self, batch_size):
        self.size, self.steps = batch_size, len(PICTURES) // batch_size

    def batches(self, epoch, start=0):
        for step in range(start, self.steps):
            yield PICTURES.roll(epoch, 0)[step * self.size : (step + 1) * self.size]


def run(out, task, *, parts, steps=7, resume=False, batch_size=8):
    return fit(
        task,
        Loader(batch_size // parts),
        Optim(lr=0.05, lr_rule="none"),
        Engine(accumulate=parts, log_every=1),
        out=out,
        steps=steps,
        batch_size=batch_size,
        seed=0,
        device=torch.device("cpu"),
        health=Health(),
        resume=resume,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    task = Regression()
    run(tmp_path_factory.mktemp("whole"), task, parts=1)
    return task


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_train_what_the_whole_batch_does(tmp_path, whole, parts):
    task = Regression()
    assert run(tmp_path, task, parts=parts).step == 7
    torch.testing.assert_close(task.state_dict(), whole.state_dict())
    assert len(task.seen) == parts * len(whole.seen)
    assert joined(task.seen, parts) == whole.seen  # the same rows in every step and epoch


def joined(seen, parts):
    groups = (seen[i : i + parts] for i in range(0, len(seen), parts))
    return [(group[0][0], [x for _, rows in group for x in rows]) for group in groups]


def test_a_run_in_parts_goes_on_where_it_stopped(tmp_path, whole):
    run(tmp_path, Regression(), parts=4, steps=3)
    task = Regression()
    run(tmp_path, task, parts=4, resume=True)
    assert joined(task.seen, 4) == whole.seen[3:]


def test_a_step_in_parts_reports_the_mean_and_all_rows():
    task, batches = Regression(), list(Loader(2).batches(0))[:4]
    engine = Engine(accumulate=4)
    done = gradients(task, iter(batches), Clock(0, 1, 1), engine, torch.device("cpu"), 0, OFF)
    alone = Regression()(torch.cat(batches), Clock(0, 1, 1))
    torch.testing.assert_close(done.loss, alone.loss.detach())
    torch.testing.assert_close(done.logs["error"], alone.logs["error"])
    torch.testing.assert_close(done.features, alone.features)
    torch.testing.assert_close(done.outputs, alone.outputs)


def test_ranks_meet_once_a_step(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/s", rank=0, world_size=1)
    try:
        net, met = DistributedDataParallel(Regression()), []

        def meet(state, bucket):
            met.append(bucket.buffer().numel())
            done = torch.futures.Future()
            done.set_result(bucket.buffer())
            return done

        net.register_comm_hook(None, meet)
        batches = iter(Loader(2).batches(0))
        gradients(net, batches, Clock(0, 1, 1), Engine(accumulate=4), torch.device("cpu"), 0, OFF)
    finally:
        dist.destroy_process_group()
    assert met == [6]


def test_losses_over_whole_batches_are_refused_parts(tmp_path):
    task = Regression()
    task.additive = False
    with pytest.raises(ValueError, match=r"engine.accumulate=2: the loss of Regression is no mean"):
        run(tmp_path, task, parts=2)


def test_a_batch_must_fit_into_an_epoch(tmp_path):
    with pytest.raises(ValueError, match=r"batch_size=32 is larger than the data; lower it to 16"):
        run(tmp_path, Regression(), parts=4, batch_size=32)


def test_a_full_memory_is_one_line_with_a_remedy(tmp_path):
    task = Regression()
    task.layer.register_forward_hook(full)
    with pytest.raises(RunError, match=r"memory of the device is full; .* engine.accumulate"):
        run(tmp_path, task, parts=1)
    assert math.isfinite(task.layer.weight.sum().item())


def full(module, inputs, out):
    raise torch.OutOfMemoryError("CUDA out of memory")
