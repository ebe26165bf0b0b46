"""From a folder of pictures to a backbone: what `saccade pretrain` does, in order."""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from . import backbones, config, methods, weights
from . import run as runs
from .backbones.timm_adapter import load_timm_state, timm_state
from .core import Method, PatchBackbone
from .data.bad import Bad, write_bad
from .data.loader import ViewLoader
from .data.memory import in_memory
from .data.source import Source, open_source
from .engine import distributed
from .engine.fit import Ended, fit
from .engine.health import Health
from .engine.log import counter
from .engine.probe import OnlineKnn
from .nn import dist, norm
from .run import Run

BAD = "bad_files.jsonl"
DONE = "done.json"  # written last: the run is whole


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A finished or interrupted run, and how it went in one sentence."""

    out: Path
    finished: bool
    verdict: str
    seconds: float


def prepare(run: Run, out: Path, *, resume: bool, overwrite: bool) -> None:
    """Check what can be checked without work; nothing is written. Raises ValueError."""
    distributed.check_devices(run.engine.devices)
    if run.batch_size % run.engine.devices:
        raise ValueError(
            f"setting batch_size: {run.batch_size} does not divide over "
            f"{run.engine.devices} devices; make it a multiple"
        )
    if resume and overwrite:
        raise ValueError("settings resume and overwrite exclude each other; give one")
    if resume:
        _check_same(run, out)
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not overwrite:
            raise ValueError(f"setting out: {out} is not empty; add --resume or --overwrite")
        if not (out / runs.FILE).is_file():
            raise ValueError(
                f"setting out: {out} is not a run, so it is not overwritten; remove it"
            )


def start_folder(run: Run, out: Path, *, resume: bool) -> None:
    """Empty the run folder (unless resuming) and write `run.json`. Nothing else is deleted."""
    if not resume and out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    runs.write(run, out / runs.FILE)


def build(run: Run) -> Method:
    """The method around a fresh encoder: the same weights for the same run."""
    torch.manual_seed(run.seed)
    encoder = backbones.create(run.backbone)
    method = methods.get(run.name)(run.method, encoder)
    if run.weights:
        found = weights.load(
            run.weights, backbone=run.backbone.name, image_size=run.backbone.image_size
        )
        load_timm_state(method.encoder, timm_state(found.backbone))
    return method


def pretrain(run: Run, out: Path, *, resume: bool = False, overwrite: bool = False) -> Pretrained:
    """Train, leaving in `out`: run.json, metrics.jsonl, checkpoints/, initial/, backbone/.

    `initial` is the same encoder before training, the control arm of every figure.
    """
    began = time.perf_counter()
    with distributed.group() as device:
        first = dist.rank() == 0
        if first:  # the other ranks must not look while this one writes
            prepare(run, out, resume=resume, overwrite=overwrite)
        train, test, bad = sources(run)
        loader = make_loader(run, train, device)
        method = build(run)
        if first:
            start_folder(run, out, resume=resume)
            _keep(run, method, out / "initial")
            write_bad(out / BAD, bad)
            _announce(run, out, len(train), len(bad))
        method = place(run, method, device)
        health = Health()
        ended = fit(
            method,
            loader,
            run.optim,
            run.engine,
            out=out,
            steps=total_steps(run, loader),
            batch_size=run.batch_size,
            seed=run.seed,
            device=device,
            health=health,
            probe=_probe(run, train, test) if first else None,
            resume=resume,
        )
        verdict = health.verdict(ended.wait)
        if first:
            later = [Bad(train.name(i), reason) for i, reason in loader.bad.items()]
            write_bad(out / BAD, [*bad, *later])
            _keep(run, method, out / "backbone")
            if not ended.interrupted:
                _finish(out, ended, verdict, time.perf_counter() - began)
    return Pretrained(out, not ended.interrupted, verdict, time.perf_counter() - began)


def sources(run: Run) -> tuple[Source, Source | None, list[Bad]]:
    """Training pictures, test pictures where there are labelled ones, and what was unreadable."""
    channels = run.backbone.channels
    source = open_source(run.data, split="train", channels=channels, limit=run.limit)
    budget = int(run.engine.memory_gb * 2**30)
    train, bad = in_memory(
        source, budget=budget, threads=run.engine.workers, progress=counter("reading pictures")
    )
    return train, _test(run, channels), bad


def total_steps(run: Run, loader: ViewLoader) -> int:
    return run.steps or run.epochs * loader.steps


def make_loader(run: Run, train: Source, device: torch.device) -> ViewLoader:
    return ViewLoader(
        train,
        run.method.views,
        run.normalize,
        batch_size=run.batch_size,
        seed=run.seed,
        rank=dist.rank(),
        world=dist.world(),
        threads=run.engine.workers,
        device=device,
    )


def place(run: Run, method: Method, device: torch.device) -> Method:
    """On its device, with statistics over all ranks where the recipe wants that."""
    if run.sync_batch_norm and dist.world() > 1:
        norm.synchronize(method)
    method.to(device)
    if run.engine.channels_last and not isinstance(method.encoder, PatchBackbone):
        method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return method


def _check_same(run: Run, out: Path) -> None:
    if not (out / runs.FILE).is_file():  # killed before it began, or never started
        return
    before = runs.read(out / runs.FILE)
    same = replace(run, engine=before.engine)
    if same != before:
        names = [k for k, v in config.to_dict(same).items() if v != config.to_dict(before)[k]]
        raise ValueError(
            f"resume: {', '.join(names)} differ from {out / runs.FILE}; "
            f"use `saccade pretrain --config {out / runs.FILE} --resume`, or another --out"
        )


def _test(run: Run, channels: int) -> Source | None:
    if run.eval_data:
        return open_source(run.eval_data, split="test", channels=channels)
    try:
        found = open_source(run.data, split="test", channels=channels)
    except ValueError:  # most folders have no test split: then there is nothing to measure on
        return None
    return found if found.split == "test" else None


def _announce(run: Run, out: Path, pictures: int, bad: int) -> None:
    each = run.batch_size // dist.world()
    unreadable = f", {bad} unreadable ({BAD})" if bad else ""
    print(
        f"saccade: {run.name} ({run.recipe}) on {pictures} pictures of {run.data}{unreadable}; "
        f"batch size {run.batch_size}, {each} per device; writing to {out}",
        file=sys.stderr,
        flush=True,
    )


def _probe(run: Run, train: Source, test: Source | None) -> OnlineKnn | None:
    if test is None or train.labels is None or test.labels is None:
        return None
    return OnlineKnn(
        train,
        test,
        run.backbone.image_size,
        run.normalize,
        batch_size=256,
        threads=run.engine.workers,
    )


def _keep(run: Run, method: Method, folder: Path) -> None:
    extra = {"method": run.name, "recipe": run.recipe, "seed": run.seed, "data": run.data}
    weights.save_backbone(folder, method.kept(), run.backbone, run.normalize, extra)


def _finish(out: Path, ended: Ended, verdict: str, seconds: float) -> None:
    done: dict[str, Any] = {"steps": ended.step, "verdict": verdict, "seconds": seconds}
    (out / DONE).write_text(json.dumps(done, indent=2) + "\n")
