"""Each tracker is read back by its own package."""

import json
import time

import pytest
from terminal import saccade

from saccade.core import Clock
from saccade.engine import trackers
from saccade.engine.log import LOG, Recorder, rows

SETTINGS = {"seed": 3, "optim": {"lr": 0.5, "schedule": {"shape": "cosine"}}, "engine": {}}


@pytest.fixture
def out(tmp_path, monkeypatch):
    """A run folder, and trackers that stay on this machine."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "server").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(SETTINGS))
    return folder


def train_and_resume(out, name):
    """Losses 4, 2 at steps 0, 1, then a resumed run: 1 at step 2."""
    for start, losses in ((0, (4.0, 2.0)), (2, (1.0,))):
        recorder = Recorder(out, start, track=(name,), active=True)
        for i, loss in enumerate(losses):
            recorder.step(Clock(start + i, 3, 5), {"loss": loss}, 8, 0.0)
        recorder.event(Clock(start + 1, 3, 5), {"warning": "words are no figure"})
        recorder.close()
        time.sleep(1.1)  # wandb names a run's folder by the second


def test_mlflow_has_the_figures_and_the_settings_of_one_run(out):
    from mlflow import MlflowClient

    train_and_resume(out, "mlflow")
    client = MlflowClient()
    experiment = client.get_experiment_by_name("saccade")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(0, 4.0), (1, 2.0), (2, 1.0)]
    assert run.data.params == {
        "seed": "3",
        "optim.lr": "0.5",
        "optim.schedule.shape": "cosine",
    }
    assert (run.info.run_name, run.info.status) == ("first", "FINISHED")


def leveldb_records(log):
    """Those of one block: a checksum of 4 bytes, a length of 2, a kind of 1, the data."""
    while log:
        length, kind = int.from_bytes(log[4:6], "little"), log[6]
        assert kind == 1  # a whole record
        yield log[7 : 7 + length]
        log = log[7 + length :]


def test_wandb_has_the_figures_and_the_settings_under_one_name(out):
    from wandb.proto.wandb_internal_pb2 import Record

    train_and_resume(out, "wandb")
    found, names, settings = [], set(), {}
    for path in sorted(out.glob("wandb/offline-run-*/*.wandb")):
        for data in leveldb_records(path.read_bytes()[7:]):
            record = Record.FromString(data)
            if record.HasField("run"):
                names.add((record.run.project, record.run.display_name, record.run.run_id))
                config = {c.key: json.loads(c.value_json) for c in record.run.config.update}
                settings |= config
            if record.HasField("history"):
                keys = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
                found.append((record.history.step.num, json.loads(keys["loss"])))
    assert found == [(0, 4.0), (1, 2.0), (2, 1.0)]
    ((project, name, _),) = names
    assert (project, name) == ("saccade", "first")
    assert settings["optim"] == SETTINGS["optim"]


class Failing:
    def __init__(self, out, start):
        self.calls = 0

    def log(self, values, step):
        self.calls += 1
        raise ConnectionError("the server is gone\nsecond line")

    def close(self):
        raise AssertionError("it was left out")


def test_a_tracker_that_fails_is_left_out_and_the_log_goes_on(out, monkeypatch, capsys):
    monkeypatch.setitem(trackers.OPEN, "wandb", Failing)
    train_and_resume(out, "wandb")
    assert [r["loss"] for r in rows(out / LOG) if "loss" in r] == [4.0, 2.0, 1.0]
    told = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert (
        told == [f"saccade: wandb fails (the server is gone) and is left out; {LOG} goes on"] * 2
    )  # once a run


def test_a_tracker_that_does_not_start_ends_the_command(out, monkeypatch):
    def start(out, start):
        raise RuntimeError("api_key not configured")

    monkeypatch.setitem(trackers.OPEN, "wandb", start)
    with pytest.raises(ValueError, match=r"setting engine.track: wandb does not start \(api_key"):
        Recorder(out, 0, track=("wandb",), active=True)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("wandb", "setting engine.track: wandb is not here; pip install wandb"),
        ("mlflow,wandbb", "setting engine.track: ['mlflow', 'wandbb'] is wrong; it should be"),
    ],
)
def test_a_tracker_that_is_not_here_is_one_line(tmp_path, monkeypatch, capsys, value, said):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    args = ["pretrain", "demo", "--method", "simclr", "--set", f"engine.track={value}"]
    args += ["--out", str(tmp_path / "run")]
    assert saccade(*args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
