"""Other people's run trackers, told what `metrics.jsonl` is told.

They are guests: one that cannot start ends the command before it trains, one that fails later is
left out with a line, and nothing stands there that the run folder does not hold as well.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ..recipe import Tracker

PROJECT = "saccade"
IDS = "trackers.json"  # what a run is called there, so that a resumed one goes on in its place
LONGEST = 500  # characters of a setting that MLflow takes


@runtime_checkable
class Board(Protocol):
    def log(self, values: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


def missing(names: tuple[Tracker, ...]) -> str:
    """The first of these packages that is not installed, or nothing."""
    return next((n for n in names if find_spec(n) is None), "")


def boards(names: tuple[Tracker, ...], out: Path, start: int) -> dict[str, Board]:
    """The trackers of a run that begins at step `start`. ValueError where one does not start."""
    return {name: _opened(name, out, start) for name in names}


def _opened(name: Tracker, out: Path, start: int) -> Board:
    try:
        return OPEN[name](out, start)
    except Exception as error:  # they raise errors of their own
        said = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"setting engine.track: {name} does not start ({said}); log in to it, choose its "
            "offline mode, or drop it"
        ) from error


class TensorBoard:
    """Events in the run folder; those of a killed run behind its last checkpoint are dropped."""

    def __init__(self, out: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=start)

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of the project `saccade`; WANDB_* in the environment says where and whether online."""

    def __init__(self, out: Path, start: int) -> None:
        import wandb

        name = _id(out, "wandb", lambda: secrets.token_hex(4))
        self.run = wandb.init(
            project=PROJECT, name=out.name, id=name, resume="allow", dir=out, config=_settings(out)
        )

    def log(self, values: dict[str, float], step: int) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """A run of the experiment `saccade`; MLFLOW_TRACKING_URI says where."""

    def __init__(self, out: Path, start: int) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self.client = MlflowClient()
        found = self.client.get_experiment_by_name(PROJECT)
        where = found.experiment_id if found else self.client.create_experiment(PROJECT)
        fresh = not _known(out, "mlflow")

        def create() -> str:
            return self.client.create_run(where, run_name=out.name).info.run_id

        self.run = _id(out, "mlflow", create)
        if fresh:
            settings = flat(_settings(out)).items()
            self.client.log_batch(
                self.run, params=[Param(k, str(v)[:LONGEST]) for k, v in settings]
            )
        else:
            self.client.update_run(self.run, status="RUNNING")

    def log(self, values: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(k, v, now, step) for k, v in values.items()]
        self.client.log_batch(self.run, metrics=metrics)

    def close(self) -> None:
        self.client.set_terminated(self.run)


class Trackio:
    """A run of the project `saccade`, on this machine unless TRACKIO_* says otherwise."""

    def __init__(self, out: Path, start: int) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self.run = trackio.init(
            project=PROJECT, name=out.name, resume="allow", config=_settings(out)
        )

    def log(self, values: dict[str, float], step: int) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


OPEN: dict[Tracker, Callable[[Path, int], Board]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def flat(settings: dict[str, Any], front: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}, the names that `--set` takes."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= (
            flat(value, f"{front}{name}.") if isinstance(value, dict) else {front + name: value}
        )
    return found


def _settings(out: Path) -> dict[str, Any]:
    path = out / "run.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _known(out: Path, tracker: str) -> str:
    path = out / IDS
    return json.loads(path.read_text()).get(tracker, "") if path.is_file() else ""


def _id(out: Path, tracker: str, create: Callable[[], str]) -> str:
    """What the run is called there: the name it has, or a new one, which is kept."""
    if name := _known(out, tracker):
        return name
    path, name = out / IDS, create()
    ids = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(ids | {tracker: name}, indent=2) + "\n")
    return name
