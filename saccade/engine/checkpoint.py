"""Checkpoints that survive a kill at any moment: written beside, then renamed.

A checkpoint is a folder `step-00000123` with model.safetensors, optimizer.safetensors,
state.json and SHA256SUMS over the three. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..core import Task
from ..nn import dist
from .sharding import cut_like, in_pieces, whole

FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
SUMS = "SHA256SUMS"


@dataclass(frozen=True, slots=True)
class Saved:
    """Where a checkpoint lies, and the step that comes next."""

    path: Path
    step: int


def save(
    folder: Path,
    task: Task,
    optimizer: torch.optim.Optimizer,
    step: int,
    keep: int,
    scale: dict[str, float] | None = None,
) -> Path:
    """Write the state in front of `step`, then drop all but the newest `keep` checkpoints.

    `scale` is the state of the loss scale of fp16. Of a sharded task every rank must save; the
    first one writes.
    """
    model, moments = _whole(task.state_dict()), _whole(dict(_flat(optimizer)))
    final, beside = folder / f"step-{step:08d}", folder / f".writing-{step:08d}"
    if dist.rank():
        return final
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    save_file(model, beside / FILES[0])
    save_file(moments, beside / FILES[1])
    state = {"step": step, "torch": torch.__version__} | ({"scale": scale} if scale else {})
    (beside / FILES[2]).write_text(json.dumps(state))
    (beside / SUMS).write_text("".join(f"{_digest(beside / f)}  {f}\n" for f in FILES))
    for name in (*FILES, SUMS):
        _sync(beside / name)
    if final.exists():
        _drop(final)
    os.replace(beside, final)
    _sync(folder)
    for old in all_in(folder)[:-keep]:
        _drop(old.path)
    return final


def all_in(folder: Path) -> list[Saved]:
    """Every finished checkpoint, oldest first; whether it is whole is not looked at."""
    found = folder.glob("step-*") if folder.is_dir() else []
    return sorted((Saved(p, int(p.name[5:])) for p in found), key=lambda s: s.step)


def latest(folder: Path) -> tuple[Saved | None, list[str]]:
    """The newest whole checkpoint, and one line for each broken one that was passed over."""
    notes: list[str] = []
    for saved in reversed(all_in(folder)):
        problem = broken(saved.path)
        if problem is None:
            return saved, notes
        notes.append(f"checkpoint {saved.path.name} is damaged ({problem}); using the one before")
    return None, notes


def broken(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None when its checksums hold."""
    try:
        lines = (path / SUMS).read_text().splitlines()
        listed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError):
        return f"{SUMS} is missing or unreadable"
    for name in FILES:
        if not (path / name).is_file():
            return f"{name} is missing"
        if listed.get(name) != _digest(path / name):
            return f"{name} does not match its checksum"
    return None


def load(saved: Saved, task: Task) -> None:
    """Put the weights and buffers back, exactly: every tensor must be there with its shape."""
    task.load_state_dict(load_file(saved.path / FILES[0]), strict=True)


def load_optimizer(saved: Saved, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Put the optimizer's state back, in pieces where its parameters are.

    The state of the loss scale comes out; it is empty but in fp16.
    """
    flat = load_file(saved.path / FILES[1])
    for index, p in enumerate(_params(optimizer)):
        state = optimizer.state[p]
        for key in [k for k in flat if k.startswith(f"{index}.")]:
            value, name = flat[key], key.partition(".")[2]
            # moments take the memory layout of their parameter, step counters stay scalars
            own = value.shape == p.shape
            state[name] = torch.empty_like(p).copy_(cut_like(value, p)) if own else value
    return json.loads((saved.path / FILES[2]).read_text()).get("scale", {})


def _params(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _flat(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for index, p in enumerate(_params(optimizer)):
        for name, value in optimizer.state.get(p, {}).items():
            if isinstance(value, Tensor):
                yield f"{index}.{name}", value


def _whole(tensors: dict[str, Any]) -> dict[str, Tensor]:
    """What the first rank writes. Pieces are put together one tensor at a time, off the device."""
    found: dict[str, Tensor] = {}
    for name, t in tensors.items():
        x = whole(t.detach())
        if dist.rank() == 0:
            found[name] = x.cpu() if in_pieces(t) else x.contiguous()
    return found


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def _drop(path: Path) -> None:
    gone = path.with_name(f".removing-{path.name}")  # so that a kill never leaves half a checkpoint
    shutil.rmtree(gone, ignore_errors=True)
    os.replace(path, gone)
    shutil.rmtree(gone, ignore_errors=True)
