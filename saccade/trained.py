"""A system as `saccade train` left it."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from . import backbones, systems
from . import run as runs
from .core import System
from .run import TrainRun

STATE = "system.safetensors"


def load(out: Path) -> tuple[TrainRun, System]:
    """A trained system in evaluation mode, and its run."""
    run = runs.read_train(out / runs.FILE)
    if not (out / STATE).is_file():
        raise ValueError(f"setting run: {out} has no {STATE}; let `saccade train` finish it first")
    system: System = systems.get(run.name)(
        run.system, backbones.create(run.backbone, run.normalize)
    )
    system.load_state_dict(load_file(out / STATE))
    return run, system.eval()
