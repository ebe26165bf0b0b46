"""`saccade plan`: what a pretraining will take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def plan(
    data: Annotated[str, typer.Argument(help="Pictures; without it, the demo photographs.")] = "",
    method: Annotated[str, typer.Option(help="See `saccade list methods`.")] = "",
    backbone: Annotated[str, typer.Option(help="Any timm name; see `list backbones`.")] = "",
    recipe: Annotated[
        str, typer.Option(help="demo (default without DATA), small (32 pixels), paper (default).")
    ] = "",
    epochs: Annotated[int, typer.Option(min=0, help="0 takes the recipe's.")] = 0,
    steps: Annotated[int, typer.Option(min=0, help="Instead of epochs.")] = 0,
    batch_size: Annotated[int, typer.Option(min=0, help="Global, over all devices.")] = 0,
    out: Annotated[Path, typer.Option(help="Where the run would go.")] = Path("runs/pretrain"),
    config: Annotated[Path | None, typer.Option(help="A run.json.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Threads that decode, per rank.")] = 0,
    devices: Annotated[int, typer.Option(min=0, help="GPUs, or processes on a CPU.")] = 0,
    shard: Annotated[bool, typer.Option("--shard", help="Devices share out the weights.")] = False,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "",
    hours: Annotated[float, typer.Option(min=0, help="Also say how many steps fit.")] = 0.0,
    sets: Annotated[
        list[str], typer.Option("--set", help="Any setting: a.b=value. Repeatable.")
    ] = [],  # noqa: B006
    json_out: Annotated[
        str, typer.Option("--json", help="Write JSON here; - prints JSON alone.")
    ] = "",
) -> None:
    """Measure a few steps and say how long a pretraining takes, how much memory and disk."""
    flags: dict[str, Any] = {
        "data": data,
        "epochs": epochs,
        "steps": steps,
        "batch_size": batch_size,
        "engine.workers": workers,
        "engine.devices": devices,
        "engine.shard": "true" if shard else "",
        "engine.precision": precision,
        "backbone.name": backbone,
    }
    from .. import planning
    from .. import run as runs
    from ..evals.results import write_json

    run = runs.assemble(
        method=method,
        recipe=recipe,
        config=config,
        out=None,
        flags={k: v for k, v in flags.items() if v},
        sets=sets,
    )
    found = planning.plan(run, out)
    if json_out == "-":
        print(json.dumps(found.to_dict(), indent=2))
        return
    if json_out:
        write_json(Path(json_out), found.to_dict())
    planning.show(found, hours)
