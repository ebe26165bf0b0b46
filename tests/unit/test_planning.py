"""What a plan says is what the run then takes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from terminal import saccade

from saccade import planning, pretraining
from saccade import run as runs

COUNT, BATCH, EPOCHS = 40, 16, 4
SETS = ("engine.knn_every=0", "method.hidden=32", "method.dim=16", "optim.lr=0.1")


@pytest.fixture(scope="module", autouse=True)
def _few_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "STEPS", 2)
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    g = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("photos")
    for i in range(COUNT):
        Image.fromarray(g.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return str(folder)


def assembled(photos, *sets, method="simclr", backbone="resnet10_w16"):
    return runs.assemble(
        method=method,
        recipe="small",
        config=None,
        out=None,
        flags={
            "data": photos,
            "epochs": EPOCHS,
            "batch_size": BATCH,
            "backbone.name": backbone,
            "optim.lr_rule": "linear-256",
            "optim.schedule.warmup_epochs": 1.5,
        },
        sets=[*SETS, *sets],
    )


@pytest.fixture(scope="module")
def found(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("none")
    made = planning.plan(assembled(photos), folder / "runs" / "one")
    assert not list(folder.iterdir())  # nothing is left behind
    assert 0 <= made.data_wait <= 1  # how much depends on the machine, and what else it does
    return replace(made, data_wait=0.0)


def test_counts_are_those_of_the_epochs(found):
    each = COUNT // BATCH  # the rest fills no batch
    assert (found.pictures, found.steps_per_epoch, found.steps) == (COUNT, each, EPOCHS * each)
    assert found.warmup_steps == 1.5 * each
    assert found.peak_lr == pytest.approx(0.1 * BATCH / 256)


def test_parameters_and_checkpoints_are_those_of_a_run(found, photos, tmp_path):
    run = replace(assembled(photos), steps=1)
    pretraining.pretrain(run, tmp_path / "run")
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert found.checkpoint == sum(f.stat().st_size for f in saved.glob("*.safetensors"))
    method = pretraining.build(run)
    assert found.parameters == sum(p.numel() for p in method.parameters())  # SimCLR trains all
    assert found.encoder_parameters < found.parameters
    # Weights, gradients, momenta and twice the pictures of a batch are alive at once.
    assert found.memory > 3 * 4 * found.parameters + 2 * 4 * BATCH * 3 * 32 * 32


def test_a_run_that_is_there_is_let_be(photos, tmp_path):
    pretraining.pretrain(replace(assembled(photos), steps=1), tmp_path / "run")
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    planning.plan(assembled(photos), tmp_path / "run")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files


def test_memory_of_a_batch_follows_from_smaller_ones(found, photos, tmp_path, monkeypatch):
    assert found.measured_batch == BATCH
    monkeypatch.setattr(planning, "ROOM", 0.0)  # the smallest alone
    guessed = planning.plan(assembled(photos), tmp_path / "run")
    assert guessed.measured_batch == planning.SMALLEST
    assert guessed.checkpoint == found.checkpoint
    assert 0.7 < guessed.memory / found.memory < 1.5


def test_time_is_that_of_steps_and_of_waiting():
    clock = iter([0.0, 1.0, 10.0, 12.0, 14.0, 17.0, 20.0, 24.0])  # of four steps in two parts each

    class Parts:
        steps, wait = 8, 0.0

        def batches(self, epoch, start=0):
            for i in range(self.steps):
                self.wait += 0.25
                yield i

    watched = planning.Watched(Parts(), 2, now=lambda: next(clock))
    stream = watched.batches(0)
    assert [next(stream) for _ in range(8)] == list(range(8))
    assert watched.seconds() == [20 - 14]  # the first two steps do not count
    assert watched.waits() == pytest.approx(2 * 0.25)


@pytest.mark.parametrize(
    ("batch", "parts", "sizes"),
    [(64, 1, [4, 8, 16, 32, 64]), (24, 1, [6, 12, 24]), (24, 8, [24]), (3, 1, [3])],
)
def test_batches_are_halved_as_far_as_parts_allow(photos, batch, parts, sizes):
    run = assembled(photos, f"engine.accumulate={parts}")
    train, _, _ = pretraining.sources(run)
    assert planning.Trial(run, train, planning.this_device()).sizes(batch) == sizes


@pytest.mark.parametrize(
    ("sets", "seen", "said"),
    [
        ([], {"warmup_steps": 8}, "the warm-up takes 8 steps of 8"),
        ([], {"batch_size": 24, "steps_per_epoch": 1}, "an epoch leaves out 16 of 40 pictures"),
        ([], {"memory": 3 * 10**9, "device_memory": 2 * 10**9}, "a step needs more memory"),
        ([], {"disk": 11, "free_disk": 10}, "the run folder needs more room"),
        ([], {"data_wait": 0.5}, "50 % of a step waits for pictures"),
        (["engine.devices=2", "engine.shard=true"], {}, "memory is that of one device"),
        (["method.views.0.size=80"], {}, "pictures of 32 pixels are enlarged to views of 80"),
    ],
)
def test_surprises_are_told_with_a_remedy(found, photos, sets, seen, said):
    run = assembled(photos, *sets)
    train, _, _ = pretraining.sources(run)
    (told,) = planning.remarks(run, replace(found, **seen), train)
    assert told.startswith(said)
    assert "; " in told


def test_a_plain_plan_has_nothing_to_remark(found, photos):
    run = assembled(photos)
    assert planning.remarks(run, found, pretraining.sources(run)[0]) == []


def test_lengths_of_time_are_words():
    assert planning.words(0.2) == "1 s"
    assert planning.words(3600.0) == "1 h 0 min"
    assert planning.words(93_784.0) == "1 d 2 h"


def test_what_fits_in_some_hours(found):
    each = found.step["median"]
    assert found.within(10.5 * each) == 10
    assert found.seconds == found.steps * each


def test_the_command_prints_json(photos, tmp_path, capsys):
    words = ("plan", photos, "--method", "simclr", "--recipe", "small", "--batch-size", BATCH)
    small = ("--backbone", "resnet10_w16", "--steps", 7, "--out", tmp_path / "run")
    sets = [word for s in SETS for word in ("--set", s)]
    assert saccade(*words, *small, *sets, "--json", "-") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["steps"], told["batch_size"], told["backbone"]) == (7, BATCH, "resnet10_w16")
    assert saccade(*words, *small, *sets, "--hours", 2) == 0
    assert "in 2 h" in capsys.readouterr().out
    assert not Path("runs").exists()


def test_wrong_words_are_one_line(photos, capsys):
    assert saccade("plan", photos, "--method", "simcrl") == 2
    assert "setting method" in capsys.readouterr().err
    assert saccade("plan", photos, "--method", "simclr", "--batch-size", 4096) == 2
    assert capsys.readouterr().err.count("\n") == 1
