"""`saccade pretrain`, `saccade train`, and `saccade plan`, which tells what the first will take."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import (
    Backbone,
    BatchSize,
    Compile,
    Config,
    Devices,
    Epochs,
    JsonOut,
    Method,
    Overwrite,
    Precision,
    RankWorkers,
    Recipe,
    Resume,
    RunFolder,
    Seed,
    Sets,
    Shard,
    Start,
    Steps,
    Unlabelled,
)


def pretrain(
    data: Unlabelled = "",
    method: Method = "",
    backbone: Backbone = "",
    recipe: Recipe = "",
    epochs: Epochs = 0,
    steps: Steps = 0,
    batch_size: BatchSize = 0,
    out: RunFolder = Path("runs/pretrain"),
    resume: Resume = False,
    overwrite: Overwrite = False,
    eval_data: Annotated[str, typer.Option(help="Labelled pictures to measure on.")] = "",
    config: Config = None,
    weights: Start = "",
    cache: Annotated[str, typer.Option(help="Folder of a packed copy, made on first use.")] = "",
    workers: RankWorkers = 0,
    devices: Devices = 0,
    shard: Shard = False,
    compile: Compile = False,
    precision: Precision = "",
    seed: Seed = None,
    sets: Sets = [],  # noqa: B006
) -> None:
    """Turn a folder of unlabelled pictures into a backbone, and measure it where labels exist."""
    flags = _chosen(backbone, batch_size, workers, devices, shard, compile, precision, seed)
    flags |= _given({"data": data, "eval_data": eval_data, "weights": weights})
    flags |= _given({"epochs": epochs, "steps": steps, "engine.cache.folder": cache})
    from .. import run as runs
    from ..commands import run_pretrain

    run = runs.assemble(
        method=method,
        recipe=recipe,
        config=config,
        out=out if resume else None,
        flags=flags,
        sets=sets,
    )
    code = run_pretrain(run, out, resume=resume, overwrite=overwrite, arguments=sys.argv[1:])
    raise typer.Exit(code)


def plan(
    data: Unlabelled = "",
    method: Method = "",
    backbone: Backbone = "",
    recipe: Recipe = "",
    epochs: Epochs = 0,
    steps: Steps = 0,
    batch_size: BatchSize = 0,
    out: Annotated[Path, typer.Option(help="Where the run would go.")] = Path("runs/pretrain"),
    config: Config = None,
    workers: RankWorkers = 0,
    devices: Devices = 0,
    shard: Shard = False,
    compile: Compile = False,
    precision: Precision = "",
    hours: Annotated[float, typer.Option(min=0, help="Also say how many steps fit.")] = 0.0,
    sets: Sets = [],  # noqa: B006
    json_out: JsonOut = "",
) -> None:
    """Measure a few steps and say how long a pretraining takes, how much memory and disk."""
    flags = _chosen(backbone, batch_size, workers, devices, shard, compile, precision)
    flags |= _given({"data": data, "epochs": epochs, "steps": steps})
    from .. import planning
    from .. import run as runs
    from ..evals.results import write_json

    run = runs.assemble(
        method=method, recipe=recipe, config=config, out=None, flags=flags, sets=sets
    )
    found = planning.plan(run, out)
    if json_out == "-":
        print(json.dumps(found.to_dict(), indent=2))
        return
    if json_out:
        write_json(Path(json_out), found.to_dict())
    planning.show(found, hours)


def train(
    system: Annotated[str, typer.Argument(help="See `saccade list systems`.")],
    data: Annotated[str, typer.Argument(help="Labelled data of the system's kind.")],
    weights: Start = "",
    backbone: Backbone = "",
    recipe: Annotated[str, typer.Option(help="See `list recipes`; small is for a CPU.")] = "",
    epochs: Epochs = 0,
    steps: Steps = 0,
    batch_size: BatchSize = 0,
    out: RunFolder = Path("runs/train"),
    resume: Resume = False,
    overwrite: Overwrite = False,
    eval_data: Annotated[str, typer.Option(help="Test data; else the test split.")] = "",
    config: Config = None,
    workers: RankWorkers = 0,
    devices: Devices = 0,
    shard: Shard = False,
    compile: Compile = False,
    precision: Precision = "",
    seed: Seed = None,
    sets: Sets = [],  # noqa: B006
) -> None:
    """Fine-tune a backbone on labelled data as part of a system, and measure it."""
    flags = _chosen(backbone, batch_size, workers, devices, shard, compile, precision, seed)
    flags |= _given({"data": data, "eval_data": eval_data, "weights": weights, "steps": steps})
    if epochs:
        flags |= {"epochs": epochs, "steps": steps}  # steps of the recipe no longer count
    from .. import run as runs
    from ..commands import run_train

    run = runs.assemble_train(
        system=system,
        recipe=recipe,
        config=config,
        out=out if resume else None,
        flags=flags,
        sets=sets,
    )
    code = run_train(run, out, resume=resume, overwrite=overwrite, arguments=sys.argv[1:])
    raise typer.Exit(code)


def _chosen(
    backbone: str,
    batch_size: int,
    workers: int,
    devices: int,
    shard: bool,
    compile: bool,
    precision: str,
    seed: int | None = None,
) -> dict[str, Any]:
    """The settings behind the options that every training has, where they were given."""
    flags = _given(
        {
            "batch_size": batch_size,
            "engine.workers": workers,
            "engine.devices": devices,
            "engine.shard": "true" if shard else "",
            "engine.compile": "true" if compile else "",
            "engine.precision": precision,
            "backbone.name": backbone,
        }
    )
    return flags if seed is None else flags | {"seed": seed}


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value}
