import pytest
import torch
from torch import nn

from saccade.core import Step, Task
from saccade.engine import checkpoint
from saccade.engine.optim import build
from saccade.recipe import Optim


class Toy(Task):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("head", torch.zeros((), dtype=torch.long))

    def forward(self, batch, clock):
        return Step(self.conv(batch).square().mean())


def trained(steps, name="adamw"):
    torch.manual_seed(0)
    task = Toy().to(memory_format=torch.channels_last)
    optimizer = build(task, Optim(name=name))
    advance(task, optimizer, steps)
    return task, optimizer


def advance(task, optimizer, steps):
    for seed in range(steps):
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        task(x, None).loss.backward()
        optimizer.step()
        task.head += 1


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_a_loaded_state_goes_on_bit_identically(tmp_path, name):
    task, optimizer = trained(3, name)
    checkpoint.save(tmp_path, task, optimizer, 3, keep=2)
    fresh, empty = trained(0, name)
    saved, notes = checkpoint.latest(tmp_path)
    checkpoint.load(saved, fresh)
    checkpoint.load_optimizer(saved, empty)
    advance(task, optimizer, 2)
    advance(fresh, empty, 2)
    assert notes == []
    assert saved.step == 3
    assert all(
        torch.equal(a, b)
        for a, b in zip(task.state_dict().values(), fresh.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("name", checkpoint.FILES)
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_damage_is_named_and_the_one_before_is_used(tmp_path, name, damage):
    task, optimizer = trained(1)
    checkpoint.save(tmp_path, task, optimizer, 1, keep=3)
    advance(task, optimizer, 1)
    path = checkpoint.save(tmp_path, task, optimizer, 2, keep=3) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    saved, notes = checkpoint.latest(tmp_path)
    assert saved.step == 1
    assert "step-00000002" in notes[0]
    assert name in notes[0]


def test_only_the_newest_are_kept(tmp_path):
    task, optimizer = trained(1)
    for step in range(1, 5):
        checkpoint.save(tmp_path, task, optimizer, step, keep=2)
    assert [s.step for s in checkpoint.all_in(tmp_path)] == [3, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def test_a_half_written_checkpoint_is_never_seen(tmp_path):
    task, optimizer = trained(1)
    checkpoint.save(tmp_path, task, optimizer, 1, keep=2)
    (tmp_path / ".writing-00000002").mkdir()
    (tmp_path / ".writing-00000002" / "model.safetensors").write_bytes(b"half")
    assert checkpoint.latest(tmp_path)[0].step == 1
