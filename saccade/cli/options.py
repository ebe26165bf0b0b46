"""Options that several commands share, each with its one help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Weights = Annotated[str, typer.Argument(help="Run folder, checkpoint, timm:NAME, random:NAME.")]
Start = Annotated[str, typer.Option("--weights", help="Initialize the encoder from these.")]
Backbone = Annotated[str, typer.Option(help="Any timm name; see `list backbones`.")]
Architecture = Annotated[str, typer.Option("--backbone", help="Of a checkpoint file without one.")]
ImageSize = Annotated[int, typer.Option(help="Pixels; 0 takes what the weights were built for.")]

Unlabelled = Annotated[str, typer.Argument(help="Pictures; without it, the demo photographs.")]
TestData = Annotated[str, typer.Option(help="Test pictures; else the test split.")]
Method = Annotated[str, typer.Option(help="See `saccade list methods`.")]
Recipe = Annotated[
    str, typer.Option(help="demo (default without DATA), small (32 pixels), paper (default).")
]
Config = Annotated[Path | None, typer.Option(help="A run.json to run again.")]
Sets = Annotated[list[str], typer.Option("--set", help="Any setting: a.b=value. Repeatable.")]

Epochs = Annotated[int, typer.Option(min=0, help="0 takes the recipe's.")]
Steps = Annotated[int, typer.Option(min=0, help="Instead of epochs.")]
BatchSize = Annotated[int, typer.Option(min=0, help="Global, over all devices.")]
RankWorkers = Annotated[int, typer.Option(min=0, help="Threads that decode, per rank.")]
Workers = Annotated[int, typer.Option(help="Threads that decode and augment.")]
Devices = Annotated[int, typer.Option(min=0, help="GPUs, or processes on a CPU.")]
Shard = Annotated[bool, typer.Option("--shard", help="Devices share out the weights.")]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the step; for long runs.")]
Precision = Annotated[str, typer.Option(help="fp32, bf16 or fp16.")]
Seed = Annotated[int | None, typer.Option(min=0)]

RunFolder = Annotated[Path, typer.Option(help="Run folder.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in OUT.")]
Plot = Annotated[str, typer.Option(help="Draw the figures into a .png file.")]
JsonOut = Annotated[str, typer.Option("--json", help="Write JSON here; - prints JSON alone.")]
