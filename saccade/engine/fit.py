"""The training loop, top to bottom."""

from __future__ import annotations

import inspect
import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..core import Clock, Step, Task
from ..errors import RunError
from ..nn import dist
from ..nn.random import fold
from ..recipe import Engine, Optim, scaled_lr
from . import checkpoint, optim, schedules
from .health import FirstBad, Health
from .log import Recorder
from .recompute import recompute
from .sharding import shard


@runtime_checkable
class Loader(Protocol):
    """What the loop asks of data: batches that are a function of epoch and step."""

    steps: int  # of an epoch
    wait: float  # seconds the loop has waited for batches

    def batches(self, epoch: int, start: int = 0) -> Generator[Any, None, None]: ...


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended: the step that would come next, and the share of time spent on data."""

    step: int
    interrupted: bool
    wait: float


# What turns off DDP's copying of buffers: the argument has a new name since torch 2.15.
_arguments = inspect.signature(DistributedDataParallel).parameters
BUFFERS_STAY: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _arguments else "broadcast_buffers": False
}

FULL = (
    "the memory of the device is full; lower batch_size, or set engine.accumulate=2, "
    "engine.activation_checkpointing=true or engine.precision=bf16"
)


def fit(
    task: Task,
    loader: Loader,
    cfg: Optim,
    engine: Engine,
    *,
    out: Path,
    steps: int,
    batch_size: int,
    seed: int,
    device: torch.device,
    health: Health,
    probe: Callable[[], dict[str, float]] | None = None,
    resume: bool = False,
) -> Ended:
    """Train to `steps` (or to a signal) and leave a checkpoint of the end in `out`.

    With `engine.accumulate` the loader gives parts of a batch, and a step takes that many.
    `probe` gives figures for the log every `engine.knn_every` epochs.
    """
    check_engine(task, engine)
    epoch_steps = updates(loader, engine, batch_size)
    folder, first_rank = out / "checkpoints", dist.rank() == 0
    saved = _newest(folder) if resume else None
    if saved:
        checkpoint.load(saved, task)
    forward = _wrap(task, engine, device)
    optimizer = optim.build(task, cfg)
    scaler = torch.amp.GradScaler(device.type, enabled=engine.precision == "fp16")
    if saved and (scale := checkpoint.load_optimizer(saved, optimizer)):
        scaler.load_state_dict(scale)
    start = saved.step if saved else 0
    recorder = Recorder(out, start, track=engine.track, active=first_rank)
    if engine.precision == "fp16" and device.type == "cpu":
        recorder.say("saccade: processors do fp16 in software, many times slower; choose bf16")
    params = [p for p in task.parameters() if p.requires_grad]
    peak = scaled_lr(cfg.lr, cfg.lr_rule, batch_size)
    bad, began, saved_at = FirstBad(device), time.perf_counter(), time.perf_counter()
    task.train()
    stream = _stream(loader, start, engine.accumulate)
    with _signals() as stop, closing(recorder), closing(stream) as batches:
        step = start
        while step < steps:
            clock = Clock(step, steps, epoch_steps)
            if step == start or step % epoch_steps == 0:
                task.before_epoch(clock)
            lr = schedules.lr_at(cfg, batch_size, step, steps, epoch_steps)
            decay = schedules.weight_decay_at(cfg, clock.progress)
            optim.set_rates(optimizer, lr, peak, decay)

            optimizer.zero_grad(set_to_none=True)
            done = gradients(forward, batches, clock, engine, device, seed, scaler)
            scaler.unscale_(optimizer)
            task.before_update(clock)
            reported = step % engine.log_every == 0 or step == steps - 1
            norm = optim.clip(params, cfg.clip, cfg.clip_by) if cfg.clip or reported else None
            bad.look(done.loss, step)
            scaler.step(optimizer)  # none where a gradient in half precision is not finite
            scaler.update()
            task.after_update(clock)

            if reported:
                _check(bad, folder)
                values = {"loss": dist.mean(done.loss).item(), "lr": lr}
                values |= {k: dist.mean(v.float()).item() for k, v in done.logs.items()}
                values |= {"gradient_norm": _finite(norm)}
                if scaler.is_enabled():
                    values |= {"loss_scale": scaler.get_scale()}
                values |= health.look(done.features, done.outputs)
                recorder.step(clock, values, (step + 1 - start) * batch_size, loader.wait)
                for text in health.warnings():
                    recorder.event(clock, {"warning": text})
            step += 1
            if probe and engine.knn_every and step % (engine.knn_every * epoch_steps) == 0:
                recorder.event(clock, probe())
            stopping = _agreed(bool(stop), step, engine.log_every)
            due = time.perf_counter() - saved_at > engine.save_seconds
            if engine.shard:
                due = _agreed(due, step, engine.log_every)
            if (first_rank or engine.shard) and (stopping or step == steps or due):
                look = _check if engine.shard else _check_here
                look(bad, folder)
                scale = scaler.state_dict()  # empty but in fp16
                checkpoint.save(folder, task, optimizer, step, engine.keep, scale)
                saved_at = time.perf_counter()
            if stopping:
                break
    spent = max(time.perf_counter() - began, 1e-9)
    return Ended(step, step < steps, loader.wait / spent)


def check_engine(task: Task, engine: Engine) -> None:
    """ValueError where these settings would train something else than the task."""
    if engine.precision == "fp16" and task.own_gradients:
        raise ValueError(
            f"setting engine.precision=fp16: {type(task).__name__} moves weights by gradients that "
            "no loss scale reaches; choose bf16 or fp32"
        )
    if engine.accumulate > 1 and not task.additive:
        raise ValueError(
            f"setting engine.accumulate={engine.accumulate}: the loss of {type(task).__name__} is "
            "no mean over pictures, so parts of a batch would train something else; set it to 1 "
            "and lower batch_size"
        )


def updates(loader: Loader, engine: Engine, batch_size: int) -> int:
    """Steps of an epoch. Raises ValueError where the data fills none."""
    parts = engine.accumulate
    if not loader.steps // parts:
        raise ValueError(
            f"setting batch_size={batch_size} is larger than the data; lower it to "
            f"{batch_size // parts * loader.steps} at most"
        )
    return loader.steps // parts


def gradients(
    forward: nn.Module,
    batches: Iterator[Any],
    clock: Clock,
    engine: Engine,
    device: torch.device,
    seed: int,
    scaler: torch.amp.GradScaler,
) -> Step:
    """Forward and backward of a batch, part by part; ranks agree after the last one.

    In fp16 gradients are those of the loss times the scale.
    """
    parts: list[Step] = []
    for i in range(engine.accumulate):
        torch.manual_seed(_step_seed(seed, clock.step, i))  # so that any step can be replayed
        with _apart(forward) if i < engine.accumulate - 1 else nullcontext():
            try:
                with _precise(engine, device):
                    done: Step = forward(next(batches), clock)
                scaler.scale(done.loss / engine.accumulate).backward()
            except torch.OutOfMemoryError:
                raise RunError(FULL) from None
        parts.append(replace(done, loss=done.loss.detach()))
    return parts[0] if len(parts) == 1 else _mean(parts)


def _precise(engine: Engine, device: torch.device) -> torch.autocast:
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    kind = kinds.get(engine.precision)
    return torch.autocast(device.type, kind, enabled=kind is not None)


def _finite(norm: Tensor | None) -> float:
    """0 where nothing was measured, or where it overflowed."""
    value = norm.item() if norm is not None else 0.0
    return value if math.isfinite(value) else 0.0


def _apart(module: nn.Module) -> AbstractContextManager[None]:
    """Gradients stay on their rank."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def _mean(parts: list[Step]) -> Step:
    """What a step of all parts says: means of scalars, all rows."""

    def rows(each: list[Tensor | None]) -> Tensor | None:
        given = [x for x in each if x is not None]
        return torch.cat(given) if given else None

    return Step(
        torch.stack([p.loss for p in parts]).mean(),
        {k: torch.stack([p.logs[k] for p in parts]).mean() for k in parts[0].logs},
        rows([p.features for p in parts]),
        rows([p.outputs for p in parts]),
    )


def _wrap(task: Task, engine: Engine, device: torch.device) -> nn.Module:
    """The task as the loop calls it; hooks go to the task itself.

    Buffers are not broadcast: queues and centers agree because they are fed gathered values, and
    batch statistics either are synchronized or belong to their device.
    """
    module: nn.Module = task
    if engine.activation_checkpointing:
        recompute(task)
    if engine.shard:
        shard(task)
    if engine.compile:
        module = torch.compile(module)  # type: ignore[assignment]
    if dist.world() > 1 and not engine.shard:
        ids = [device] if device.type == "cuda" else None
        module = DistributedDataParallel(
            module, device_ids=ids, find_unused_parameters=True, **BUFFERS_STAY
        )
    return module


def _stream(loader: Loader, start: int, parts: int) -> Generator[Any, None, None]:
    """Batches from a step on; parts that fill no step end an epoch unused."""
    each = loader.steps // parts
    epoch, skip = divmod(start, each)
    while True:
        with closing(loader.batches(epoch, skip * parts)) as batches:
            yield from islice(batches, (each - skip) * parts)
        epoch, skip = epoch + 1, 0


def _step_seed(seed: int, step: int, part: int) -> int:
    key = fold(fold(torch.tensor(seed), step), dist.rank())
    key = fold(key, part) if part else key
    return int(key.item()) & 0x7FFFFFFFFFFFFFFF


def _newest(folder: Path) -> checkpoint.Saved | None:
    """The newest whole checkpoint; the first rank says which ones are damaged."""
    saved, notes = checkpoint.latest(folder)
    if dist.rank() == 0:
        for note in notes:
            print(f"saccade: {note}", flush=True)
    if notes and saved is None:
        raise ValueError(f"resume: no whole checkpoint in {folder}; start again with --overwrite")
    return saved


def _check(bad: FirstBad, folder: Path) -> None:
    _raise(bad.found(), folder)


def _check_here(bad: FirstBad, folder: Path) -> None:
    """As `_check`, for one rank alone: never write a checkpoint of weights gone bad."""
    first = bad.step.item()
    _raise(int(first) if first != float("inf") else None, folder)


def _raise(step: int | None, folder: Path) -> None:
    if step is None:
        return
    saved = checkpoint.all_in(folder)
    kept = f"; the last good checkpoint is {saved[-1].path}" if saved else ""
    raise RunError(f"the loss is not finite at step {step}{kept}; lower optim.lr or set optim.clip")


@contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGTERM, SIGUSR1 and the first Ctrl-C ask the loop to save and stop."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return

    def note(number: int, frame: object) -> None:
        if number == signal.SIGINT and seen:
            raise KeyboardInterrupt
        seen.append(number)

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {n: signal.signal(n, note) for n in numbers}
    try:
        yield seen
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


def _agreed(wanted: bool, step: int, every: int) -> bool:
    """Does any rank want it now? One looks each step; many ask each other, now and then."""
    if dist.world() == 1:
        return wanted
    if step % every:
        return False
    flag: Tensor = torch.tensor(0.0 if wanted else 1.0)
    return dist.lowest(flag.cuda() if torch.cuda.is_available() else flag).item() == 0.0
