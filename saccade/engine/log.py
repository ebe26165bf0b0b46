"""What a run tells: JSON lines always, one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..core import Clock
from ..recipe import Tracker
from .trackers import Board, boards

LOG = "metrics.jsonl"
REDRAWN, REPEATED = 0.2, 60.0  # seconds between two of a counter's lines: on a terminal, elsewhere


class Recorder:
    """Writes `metrics.jsonl`, and tells the trackers that are asked for; rank 0 only."""

    def __init__(
        self, out: Path, start: int, *, track: tuple[Tracker, ...] = (), active: bool
    ) -> None:
        self.active = active
        self.rate = Rate()
        if not active:
            return
        _cut(out / LOG, start)
        self.boards = boards(track, out, start)
        self.file = (out / LOG).open("a")
        self.live = _live() if sys.stderr.isatty() else None
        self.task = self.live.add_task("", total=None) if self.live else None

    def step(self, clock: Clock, values: dict[str, float], images: int, wait: float) -> None:
        """One reported step; `images` seen and seconds of `wait` count from the start."""
        if not self.active:
            return
        speed, waiting = self.rate.update(clock.step, images, wait)
        row = {"step": clock.step, "epoch": clock.epoch, **values, **speed, "data_wait": waiting}
        self._write(row)
        left = (clock.total - clock.step) / max(speed["steps_per_second"], 1e-9)
        text = (
            f"step {clock.step}/{clock.total} epoch {clock.epoch} loss {values['loss']:.4f} "
            f"{speed['steps_per_second']:.2f} it/s {speed['images_per_second']:.0f} img/s "
            f"wait {100 * waiting:.0f}% {_healthy(values)}eta {_clock(left)}"
        )
        if self.live and self.task is not None:
            self.live.update(self.task, description=text, completed=clock.step, total=clock.total)
        else:
            print(text, file=sys.stderr, flush=True)

    def event(self, clock: Clock, values: dict[str, Any]) -> None:
        """Something that is not a training step: an online kNN figure, a warning."""
        if self.active:
            self._write({"step": clock.step, "epoch": clock.epoch, **values})
            self.say("  ".join(f"{k} {_short(v)}" for k, v in values.items()))

    def say(self, text: str) -> None:
        if self.active:
            (self.live.console.print if self.live else _plain)(text)

    def close(self) -> None:
        if self.active:
            self.file.close()
            if self.live:
                self.live.stop()
            for name in list(self.boards):
                self._tell(name, lambda board: board.close())

    def _write(self, row: dict[str, Any]) -> None:
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        numbers = {k: float(v) for k, v in row.items() if isinstance(v, (int, float))}
        figures = {k: v for k, v in numbers.items() if k != "step"}
        if not figures.keys() - {"epoch"}:
            return
        for name in list(self.boards):
            self._tell(name, lambda board: board.log(figures, row["step"]))

    def _tell(self, name: str, what: Callable[[Board], None]) -> None:
        """A tracker that fails is left out from then on: training goes on."""
        try:
            what(self.boards[name])
        except Exception as error:
            del self.boards[name]
            said = str(error).strip().partition("\n")[0]
            self.say(f"saccade: {name} fails ({said}) and is left out; {LOG} goes on")


class Rate:
    """Speed since the last report."""

    def __init__(self) -> None:
        self.last: tuple[float, int, int, float] | None = None

    def update(self, step: int, images: int, wait: float) -> tuple[dict[str, float], float]:
        now = time.perf_counter()
        before = self.last or (now, step, images, wait)
        self.last = (now, step, images, wait)
        seconds = now - before[0]
        per = 1 / seconds if seconds > 0 else 0.0
        speed = {
            "steps_per_second": (step - before[1]) * per,
            "images_per_second": (images - before[2]) * per,
        }
        return speed, min((wait - before[3]) * per, 1.0)


def counter(what: str) -> Callable[[int, int], None]:
    """Progress of long work, told how many of how many are done: one line on a terminal.

    Elsewhere it is a line a minute, and none of shorter work.
    """
    last = time.perf_counter()

    def told(done: int, total: int) -> None:
        nonlocal last
        now, live = time.perf_counter(), sys.stderr.isatty()
        if now - last < (REDRAWN if live else REPEATED) and not (live and done == total):
            return
        last = now
        start, end = ("\r", "\n" if done == total else "") if live else ("", "\n")
        print(f"{start}saccade: {what} {done}/{total}", end=end, file=sys.stderr, flush=True)

    return told


def rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; a line cut short by a kill is left out."""
    found = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def _cut(path: Path, start: int) -> None:
    """Drop what a killed run logged after its last checkpoint: those steps come again."""
    kept = [row for row in rows(path) if row["step"] < start]
    beside = path.with_suffix(".tmp")
    beside.write_text("".join(json.dumps(row) + "\n" for row in kept))
    os.replace(beside, path)


def _live() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    live = Progress(
        BarColumn(bar_width=20),
        TextColumn("{task.description}", markup=False),
        console=Console(stderr=True),
    )
    live.start()
    return live


def _plain(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _short(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _healthy(values: dict[str, float]) -> str:
    shown = {"rankme": "rank", "feature_std": "std"}
    return "".join(f"{shown[k]} {values[k]:.2f} " for k in shown if k in values)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(min(seconds, 359999)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
