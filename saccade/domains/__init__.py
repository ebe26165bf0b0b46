"""Kinds of data that systems work on: how it is opened, batched, judged and drawn.

A system names its domain; the file of that name holds the functions of `Domain`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

    from ..core import System
    from ..data.bad import Bad
    from ..data.source import Split
    from ..engine.fit import Loader
    from ..evals.results import Result
    from ..run import TrainRun


@runtime_checkable
class Domain(Protocol):
    def open_data(self, run: TrainRun, split: Split) -> Any:
        """The data of a split; no test data gives None."""

    def fitted(self, run: TrainRun, data: Any) -> TrainRun:
        """The run with what its system takes from the training data, such as class names."""
        ...

    def summary(self, data: Any) -> str:
        """How much there is to learn from."""
        ...

    def bad(self, data: Any) -> list[Bad]:
        """What was left out while opening."""
        ...

    def record(self, run: TrainRun, data: Any, out: Path) -> None:
        """Write into the run folder which pictures train, where those are a choice."""

    def loader(self, run: TrainRun, data: Any, device: torch.device) -> Loader: ...

    def later_bad(self, loader: Any) -> list[Bad]:
        """What turned out unreadable while training."""
        ...

    def evaluate(
        self, run: TrainRun, system: System, data: Any, device: torch.device
    ) -> list[Result]: ...

    def predict(
        self, run: TrainRun, system: System, pictures: str, out: Path, device: torch.device
    ) -> list[Bad]:
        """Write what the system sees in the pictures into the folder `out`."""
        ...


def get(name: str) -> Domain:
    return importlib.import_module(f".{name}", __name__)  # type: ignore[return-value]
