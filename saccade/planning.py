"""What a pretraining will take: a few of its steps are measured here, the rest is arithmetic.

Steps run as in `pretrain`, in a folder that is thrown away. Where a whole batch would take too
long, or more memory than there is, halves of it are measured: seconds then grow with the batch,
memory along the line through two sizes. Nothing is said about the traffic between several devices.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from . import pretraining
from . import run as runs
from .bench import spread, wall
from .bench.memory import peak
from .data.check import scan
from .data.source import Source
from .data.stream import Stream
from .engine import schedules
from .engine.distributed import device as this_device
from .engine.fit import Loader, fit, updates
from .engine.health import Health
from .recipe import scaled_lr
from .run import Run

WARM, STEPS = 2, 8  # steps before the clock counts, and that it counts
SECONDS = 30.0  # that measuring may take, about
ROOM = 0.5  # share of the device's memory that a measured step may take
SMALLEST = 4  # pictures of a batch that is measured
LOOKED_AT = 64  # pictures, for their size
SLOW = 0.2  # share of a step spent waiting for pictures that is worth a remark
SHORTER = (1.0, 8.0)  # hours that users have


@dataclass(frozen=True, slots=True)
class Plan:
    """Bytes, seconds and counts of a whole run; `low` and `high` are quartiles over steps."""

    method: str
    recipe: str
    backbone: str
    data: str
    device: str
    pictures: int
    batch_size: int
    steps_per_epoch: int
    steps: int
    warmup_steps: int
    peak_lr: float
    encoder_parameters: int
    parameters: int  # that are trained
    measured_batch: int  # on one device
    step: dict[str, float]  # seconds: median, low, high
    data_wait: float  # share of a step
    memory: int  # of a step on one device, with weights, gradients and the optimizer's state
    device_memory: int  # 0: unknown
    checkpoint: int
    disk: int  # of the run folder
    free_disk: int
    remarks: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.steps * self.step["median"]

    def within(self, seconds: float) -> int:
        """Steps that fit."""
        return int(seconds / self.step["median"])

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": self.seconds}


def plan(run: Run, out: Path) -> Plan:
    """Measure a few steps of the run on this machine. Raises ValueError for a wrong setting."""
    pretraining.prepare(run, out, resume=False, overwrite=(out / runs.FILE).is_file())
    train, _, _ = pretraining.sources(run)
    run = pretraining.normalized(pretraining.counted(run, len(train)), train)
    trial, whole = Trial(run, train, this_device()), run.batch_size // run.engine.devices
    method = pretraining.build(run)
    loader = pretraining.make_loader(run, method, train, trial.device)
    each = updates(loader, run.engine, run.batch_size)
    measured = _measure(trial, whole)
    found = Plan(
        method=run.name,
        recipe=run.recipe,
        backbone=run.backbone.name,
        data=run.data,
        device=_name(trial.device),
        pictures=len(train),
        batch_size=run.batch_size,
        steps_per_epoch=each,
        steps=pretraining.total_steps(run, loader),
        warmup_steps=schedules.warmup_steps(run.optim.schedule, each),
        peak_lr=scaled_lr(run.optim.lr, run.optim.lr_rule, run.batch_size),
        encoder_parameters=sum(p.numel() for p in method.encoder.parameters()),
        parameters=sum(p.numel() for p in method.parameters() if p.requires_grad),
        measured_batch=measured.size,
        step={k: s * whole / measured.size for k, s in spread(measured.seconds).items()},
        data_wait=measured.wait / sum(measured.seconds),
        memory=measured.memory(whole),
        device_memory=trial.room,
        checkpoint=measured.checkpoint,
        disk=(run.engine.keep + 1) * measured.checkpoint + 2 * _bytes(method.encoder),
        free_disk=shutil.disk_usage(_existing(out)).free,
    )
    return replace(found, remarks=remarks(run, found, train))


class Trial:
    """Steps of a run with fewer pictures in a batch, in a folder that is thrown away."""

    def __init__(self, run: Run, train: Source | Stream, device: torch.device) -> None:
        quiet = replace(
            run.engine, devices=1, shard=False, log_every=10**9, save_seconds=math.inf,
            knn_every=0, track=(),
        )  # fmt: skip
        self.run, self.train = replace(run, engine=quiet, weights=""), train
        self.device, self.room = device, _memory_of(device)

    def sizes(self, whole: int) -> list[int]:
        """Batches of one device that the run can be halved to, smallest first."""
        found, parts = [whole], self.run.engine.accumulate
        while found[0] % (2 * parts) == 0 and found[0] >= 2 * SMALLEST:
            found.insert(0, found[0] // 2)
        return found

    def steps(self, size: int, count: int, *, compiled: bool = True) -> tuple[Watched, int]:
        """When each step began and what it waited for, and the bytes of a checkpoint."""
        engine = replace(self.run.engine, compile=compiled and self.run.engine.compile)
        run = replace(self.run, batch_size=size, engine=engine)
        method = pretraining.build(run)
        loader = pretraining.make_loader(run, method, self.train, self.device)
        watched = Watched(loader, engine.accumulate)
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.redirect_stderr(io.StringIO()),  # it is no run that anybody follows
        ):
            ended = fit(
                pretraining.place(run, method, self.device),
                watched,
                run.optim,
                engine,
                out=Path(folder),
                steps=count,
                batch_size=size,
                seed=run.seed,
                device=self.device,
                health=Health(remedy=method.remedy),
            )
            if ended.interrupted:  # the loop saves and stops; here there is nothing to go on with
                raise KeyboardInterrupt
            written = sum(f.stat().st_size for f in Path(folder).rglob("*.safetensors"))
        return watched, written

    def memory(self, size: int) -> int:
        """Bytes alive at most in two steps: from the second on, the optimizer has a state."""

        def work() -> None:
            self.steps(size, 2, compiled=False)

        return peak(work, warm=False)


class Watched:
    """A loader that notes when the loop asks for the pictures of each step."""

    def __init__(self, loader: Loader, parts: int, now: Callable[[], float] = wall) -> None:
        self.loader, self.parts, self.steps, self.now = loader, parts, loader.steps, now
        self.asked: list[float] = []  # of every part
        self.waited: list[float] = []  # until then
        self.wait = 0.0

    def batches(self, epoch: int, start: int = 0) -> Generator[Any, None, None]:
        with closing(self.loader.batches(epoch, start)) as stream:
            while True:
                self.asked.append(self.now())
                self.waited.append(self.wait)
                batch = next(stream, None)
                self.wait = self.loader.wait
                if batch is None:
                    return
                yield batch

    def seconds(self) -> list[float]:
        """Of the steps after the first ones."""
        began = self.asked[:: self.parts][WARM:]
        return [b - a for a, b in itertools.pairwise(began)]

    def waits(self) -> float:
        """Seconds that these steps waited for pictures."""
        there = self.waited[:: self.parts][WARM:]
        return there[-1] - there[0]


@dataclass(frozen=True, slots=True)
class Measured:
    """What a step of `size` pictures took, and bytes of one of any size."""

    size: int
    seconds: list[float]
    wait: float
    checkpoint: int
    memory: Callable[[int], int]


def _measure(trial: Trial, whole: int) -> Measured:
    sizes, each = _taken(trial, whole)
    least, count = trial.memory(sizes[0]), WARM + STEPS + 1

    def fits(size: int) -> bool:
        roomy = not trial.room or least * size / sizes[0] < ROOM * trial.room
        return roomy and count * each * size < SECONDS

    size = max(filter(fits, sizes), default=sizes[0])
    _say(f"measuring {count} steps of {size} pictures, about {words(count * each * size)}")
    watched, checkpoint = trial.steps(size, count)
    at = least if size == sizes[0] else trial.memory(size)
    below = size // 2 if size // 2 in sizes else 0
    slope = 0.0 if size == whole else (at - (trial.memory(below) if below else 0)) / (size - below)
    return Measured(
        size,
        watched.seconds(),
        watched.waits(),
        checkpoint,
        lambda pictures: round(at + slope * (pictures - size)),
    )


def _taken(trial: Trial, whole: int) -> tuple[list[int], float]:
    """Batches that the method takes, smallest first, and seconds of a picture in the smallest."""
    refused: ValueError | None = None
    sizes = trial.sizes(whole)
    _say(f"trying steps of {sizes[0]} pictures")
    for i, size in enumerate(sizes):
        try:
            watched, _ = trial.steps(size, WARM + 2)
        except ValueError as error:  # a queue, or parts of a batch norm, that want more
            refused = error
            continue
        return sizes[i:], statistics.median(watched.seconds()) / size
    assert refused is not None
    raise refused


def _say(text: str) -> None:
    print(f"saccade: {text}", file=sys.stderr, flush=True)


def remarks(run: Run, found: Plan, train: Source | Stream) -> list[str]:
    """What its user might not expect, each with a remedy."""
    said = []
    if found.warmup_steps >= found.steps:
        said.append(
            f"the warm-up takes {found.warmup_steps:,} steps of {found.steps:,}, so the rate never "
            f"reaches {found.peak_lr:g}; lower optim.schedule.warmup_epochs"
        )
    if found.device_memory and found.memory > found.device_memory:
        said.append(
            "a step needs more memory than the device has; lower batch_size, or set "
            "engine.accumulate=2, engine.activation_checkpointing=true or engine.precision=bf16"
        )
    if run.engine.shard:
        said.append(
            f"memory is that of one device with all weights; shared out over {run.engine.devices} "
            "each holds that share of weights, gradients and moments, which was not measured"
        )
    if found.disk > found.free_disk:
        said.append("the run folder needs more room than the disk has; choose another --out")
    if found.data_wait > SLOW:
        said.append(
            f"{100 * found.data_wait:.0f} % of a step waits for pictures; more --workers, or a "
            "packed copy with --cache FOLDER, may help"
        )
    unseen = found.pictures - found.steps_per_epoch * found.batch_size
    if unseen > found.pictures / 4:
        said.append(
            f"an epoch leaves out {unseen:,} of {found.pictures:,} pictures, which fill no batch "
            f"of {found.batch_size:,}; lower batch_size"
        )
    if not isinstance(train, Stream):
        looks = scan(train, sample=LOOKED_AT, threads=run.engine.workers).looks
        side = statistics.median(min(look.size) for look in looks) if looks else math.inf
        largest = max(view.size for view in run.method.views)
        if side < largest / 2:
            said.append(
                f"pictures of {side:g} pixels are enlarged to views of {largest}; take a recipe "
                "for small ones, or set method.views.0.size and backbone.image_size"
            )
    return said


def _memory_of(device: torch.device) -> int:
    """Bytes of the device, 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
    known = getattr(os, "sysconf_names", {})
    return math.prod(os.sysconf(n) for n in names) if all(n in known for n in names) else 0


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"


def _bytes(encoder: torch.nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in encoder.state_dict().values())


def _existing(path: Path) -> Path:
    """The folder that is there, of all above a path."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())


def show(found: Plan, hours: float) -> None:
    """The plan as a table, remarks below."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    title = f"{found.method} ({found.recipe}), {found.backbone}, on {found.data}; {found.device}"
    view = Table(title=title, show_header=False, box=None, title_justify="left")
    for name, text in (*_facts(found), *_shorter(found, hours)):
        view.add_row(name, text)
    console.print(view)
    for remark in found.remarks:
        console.print(f"note: {remark}", style="yellow", markup=False)


def _facts(found: Plan) -> Iterator[tuple[str, str]]:
    step, each = found.step, max(found.steps_per_epoch, 1)
    millions = [f"{n / 1e6:.2f} M" for n in (found.encoder_parameters, found.parameters)]
    yield "encoder", f"{millions[0]} parameters; with heads {millions[1]} are trained"
    yield "data", f"{found.pictures:,} pictures, {each:,} steps an epoch of {found.batch_size:,}"
    yield "run", f"{found.steps:,} steps, {found.steps / each:,.1f} epochs"
    yield "rate", f"{found.peak_lr:g} after {found.warmup_steps:,} steps"
    yield (
        "a step",
        f"{step['median']:.3g} s ({step['low']:.3g} to {step['high']:.3g}), measured with "
        f"{found.measured_batch:,} pictures; {100 * found.data_wait:.0f} % of it waits for them",
    )
    yield "time", words(found.seconds)
    room = f" of {amount(found.device_memory)}" if found.device_memory else ""
    yield "memory", f"{amount(found.memory)}{room}"
    disk = f"{amount(found.disk)} of {amount(found.free_disk)} free"
    yield "disk", f"{disk}; {amount(found.checkpoint)} a checkpoint"


def _shorter(found: Plan, hours: float) -> Iterator[tuple[str, str]]:
    """What fits in the hours given, or in some that users have."""
    for given in (hours,) if hours else SHORTER:
        fits = found.within(3600 * given)
        if hours or fits < found.steps:
            epochs = fits / max(found.steps_per_epoch, 1)
            yield f"in {given:g} h", f"--steps {fits}, {epochs:,.1f} epochs"


def words(seconds: float) -> str:
    """A length of time in its two largest units."""
    units = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    whole, parts = max(round(seconds), 1), []
    for name, length in units:
        count, whole = divmod(whole, length)
        if count or parts:
            parts.append(f"{count} {name}")
    return " ".join(parts[:2])


def amount(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
