"""What every training run does, with labels or without: its folder, its start, its end."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from . import config, weights
from . import run as runs
from .backbones.timm_state import load_timm_state, timm_state
from .core import Backbone, PatchBackbone, Task
from .data.bad import Bad
from .engine import distributed, trackers
from .nn import dist
from .recipe import Engine
from .run import Run, TrainRun

BAD = "bad_files.jsonl"
HEADS = runs.HEADS
DONE = "done.json"  # written last: the run is whole


def prepare(run: Run | TrainRun, out: Path, *, resume: bool, overwrite: bool) -> None:
    """Check what can be checked without work; nothing is written. Raises ValueError."""
    distributed.check_devices(run.engine.devices)
    _check_shard(run.engine)
    if absent := trackers.missing(run.engine.track):
        raise ValueError(
            f"setting engine.track: {absent} is not here; pip install {absent}, or drop it"
        )
    parts = run.engine.accumulate
    if parts < 1:
        raise ValueError(f"setting engine.accumulate={parts} is no number of parts; give 1 or more")
    if run.batch_size % (run.engine.devices * parts):
        split = f" and {parts} parts (engine.accumulate)" if parts > 1 else ""
        raise ValueError(
            f"setting batch_size: {run.batch_size} does not divide over "
            f"{run.engine.devices} devices{split}; make it a multiple"
        )
    if resume and overwrite:
        raise ValueError("settings resume and overwrite exclude each other; give one")
    if not resume and out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not overwrite:
            raise ValueError(f"setting out: {out} is not empty; add --resume or --overwrite")
        if not (out / runs.FILE).is_file():
            raise ValueError(
                f"setting out: {out} is not a run, so it is not overwritten; remove it"
            )


def _check_shard(engine: Engine) -> None:
    if engine.shard and distributed.ranks(engine.devices) < 2:
        raise ValueError(
            "setting engine.shard=true has nothing to share with 1 device; set it to false, or "
            "give --devices 2 or more"
        )
    if engine.shard and engine.precision == "fp16":
        raise ValueError(
            "setting engine.shard=true: the loss scale of fp16 does not look into pieces; choose "
            "engine.precision=bf16 or fp32"
        )


def start_folder(run: Run | TrainRun, out: Path, *, resume: bool) -> None:
    """Empty the run folder (unless resuming) and write `run.json`. Nothing else is deleted."""
    if not resume and out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    runs.write(run, out / runs.FILE)


def check_same(run: Run | TrainRun, before: Run | TrainRun, out: Path, command: str) -> None:
    """Raise ValueError where a run to resume has other settings than it began with."""
    if run != before:
        old, new = config.to_dict(before), config.to_dict(run)
        names = [k for k, v in new.items() if v != old.get(k)]
        raise ValueError(
            f"resume: {', '.join(names)} differ from {out / runs.FILE}; "
            f"use `saccade {command} --config {out / runs.FILE} --resume`, or another --out"
        )


def announce(run: Run | TrainRun, out: Path, what: str, bad: Iterable[Bad]) -> None:
    """Say what trains on what."""
    each, count = run.batch_size // dist.world(), len(list(bad))
    parts = run.engine.accumulate
    split = f" in {parts} parts of {each // parts}" if parts > 1 else ""
    left_out = f", {count} unreadable ({BAD})" if count else ""
    print(
        f"saccade: {run.name} ({run.recipe}) on {what} of {run.data}{left_out}; "
        f"batch size {run.batch_size}, {each} per device{split}; writing to {out}",
        file=sys.stderr,
        flush=True,
    )


def initialize(encoder: Backbone, run: Run | TrainRun) -> None:
    """Give the encoder the weights that the run names, if any."""
    if run.weights:
        found = weights.load(
            run.weights, backbone=run.backbone.name, image_size=run.backbone.image_size
        )
        load_timm_state(encoder, timm_state(found.backbone))


def place(task: Task, encoder: Backbone, device: torch.device, *, channels_last: bool) -> None:
    """Move a task to its device, convolutional ones in channels-last memory if wanted."""
    task.to(device)
    if channels_last and not isinstance(encoder, PatchBackbone):
        task.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def finish(out: Path, steps: int, verdict: str, seconds: float) -> None:
    done: dict[str, Any] = {"steps": steps, "verdict": verdict, "seconds": seconds}
    (out / DONE).write_text(json.dumps(done, indent=2) + "\n")
