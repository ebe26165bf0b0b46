"""From labelled data to a system that predicts: what `saccade train` does, in order.

A run leaves run.json (with the class names), metrics.jsonl, checkpoints/, system.safetensors,
backbone/ (the encoder, fine-tuned: WEIGHTS like any other), bad_files.jsonl and done.json.

A pretraining run may also hold heads.safetensors: layers beyond the encoder, under the names they
have in the system. For `detect`: `neck.fpn.inner_blocks.I.0.weight` and `layer_blocks` likewise
(finest level first; .1 is the batch norm, without which .0 has a bias), `rpn.head.*`,
`roi_heads.box_head.*`, `roi_heads.mask_head.*`. For `classify` and `distill`: `projector.*`.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from . import backbones, domains, stage, systems, weights
from . import run as runs
from .core import Clock, System
from .data.bad import Bad, write_bad
from .domains import Domain
from .engine import distributed
from .engine.fit import Loader, fit
from .engine.health import Health
from .engine.sharding import whole_again
from .evals.results import Result
from .nn import dist, norm
from .run import TrainRun
from .trained import STATE, load


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished or interrupted run."""

    out: Path
    finished: bool
    seconds: float


def prepare(run: TrainRun, out: Path, *, resume: bool, overwrite: bool) -> None:
    """Check what can be checked without work; nothing is written. Raises ValueError."""
    systems.get(run.name)  # an unknown name raises
    stage.prepare(run, out, resume=resume, overwrite=overwrite)


def train(run: TrainRun, out: Path, *, resume: bool = False, overwrite: bool = False) -> Trained:
    """Train the system on the data that the run names."""
    began = time.perf_counter()
    with distributed.group() as device:
        first = dist.rank() == 0
        if first:  # the other ranks must not look while this one writes
            prepare(run, out, resume=resume, overwrite=overwrite)
        domain = domain_of(run)
        data = domain.open_data(run, "train")
        run = domain.fitted(run, data)
        domain.open_data(run, "test")  # what is wrong with it is said before training
        system = build(run)
        loader = domain.loader(run, data, device)
        if first:
            if resume:
                _check_same(run, out)
            stage.start_folder(run, out, resume=resume)
            write_bad(out / stage.BAD, domain.bad(data))
            domain.record(run, data, out)
            stage.announce(run, out, domain.summary(data), domain.bad(data))
        _place(run, system, device)
        steps = run.steps or run.epochs * loader.steps
        ended = fit(
            system,
            loader,
            run.optim,
            run.engine,
            out=out,
            steps=steps,
            batch_size=run.batch_size,
            seed=run.seed,
            device=device,
            health=Health(),
            resume=resume,
        )
        if run.precise_steps and not ended.interrupted:
            norm.remeasure(system, _passes(system, loader, run, steps))
        if run.engine.shard:
            system = whole_again(build(run), system)
        if first:
            write_bad(out / stage.BAD, [*domain.bad(data), *domain.later_bad(loader)])
            _keep(run, system, out)
            if not ended.interrupted:
                stage.finish(out, ended.step, "trained", time.perf_counter() - began)
    return Trained(out, not ended.interrupted, time.perf_counter() - began)


def build(run: TrainRun) -> System:
    """The system around an encoder with the run's weights: the same for the same run."""
    torch.manual_seed(run.seed)
    system: System = systems.get(run.name)(
        run.system, backbones.create(run.backbone, run.normalize)
    )
    stage.initialize(system.encoder, run)
    heads = Path(run.weights) / stage.HEADS if run.weights else None
    if heads is not None and heads.is_file():
        _take_heads(system, heads)
    if run.batch_norm == "frozen":
        norm.freeze(system.encoder)
    return system


def measure(out: Path) -> list[Result]:
    """Figures of a finished run on its test data; none where there is no such data."""
    run, system = load(out)
    domain = domain_of(run)
    test = domain.open_data(run, "test")
    if test is None:
        return []
    device = distributed.device()
    return domain.evaluate(run, system.to(device), test, device)


def predict(out: Path, pictures: str, target: Path) -> list[Bad]:
    """Write what a trained system sees into the folder `target`; pictures it could not read."""
    run, system = load(out)
    device = distributed.device()
    target.mkdir(parents=True, exist_ok=True)
    return domain_of(run).predict(run, system.to(device), pictures, target, device)


def domain_of(run: TrainRun) -> Domain:
    return domains.get(systems.get(run.name).domain)


def _place(run: TrainRun, system: System, device: torch.device) -> None:
    """On its device, with statistics over all ranks where the recipe wants that."""
    if run.batch_norm == "synchronized" and dist.world() > 1:
        norm.synchronize(system)
    stage.place(system, system.encoder, device, channels_last=run.engine.channels_last)


def _check_same(run: TrainRun, out: Path) -> None:
    if not (out / runs.FILE).is_file():  # killed before it began, or never started
        return
    before = runs.read_train(out / runs.FILE)
    same = replace(run, engine=before.engine)
    stage.check_same(same, before, out, f"train {run.name} {run.data}")


def _take_heads(system: System, path: Path) -> None:
    """Copy pretrained layers in; what does not fit is named."""
    own = system.state_dict()
    state = load_file(path)
    fits = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    parts, given = ({k.partition(".")[0] for k in keys} for keys in (own, state))
    if not fits and parts & given:  # layers for another system are left alone
        raise ValueError(f"weights: no layer of {path} fits the system; is the neck the same?")
    system.load_state_dict({**own, **fits})
    left = sorted(set(state) - set(fits))
    more = f"; unused: {', '.join(left[:5])}" if left else ""
    print(f"saccade: {len(fits)} pretrained tensors beyond the encoder{more}", file=sys.stderr)


def _passes(system: System, loader: Loader, run: TrainRun, steps: int) -> Iterator[None]:
    """Forward passes in training mode over batches of further epochs."""
    system.train()
    clock = Clock(steps, steps, loader.steps)
    torch.manual_seed(run.seed)
    left = run.precise_steps
    for epoch in itertools.count(-(-steps // loader.steps)):
        with closing(loader.batches(epoch)) as batches:
            for batch in itertools.islice(batches, left):
                system(batch, clock)
                left -= 1
                yield
        if not left:
            return


def _keep(run: TrainRun, system: System, out: Path) -> None:
    weights.write_state(out / STATE, system.state_dict())
    extra = {"system": run.name, "recipe": run.recipe, "seed": run.seed, "data": run.data}
    weights.save_backbone(out / "backbone", system.encoder, run.backbone, run.normalize, extra)
