"""The command line. Heavy imports stand inside the commands that need them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from .errors import RunError

app = typer.Typer(
    name="saccade",
    help="Learn to see without labels: a folder of pictures in, a vision backbone out.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
bench = typer.Typer(help="Measure: cost of a training step beside its peers.", no_args_is_help=True)
app.add_typer(bench, name="bench")

UsageError: Any = typer.BadParameter.__base__  # click's own, or the copy inside newer typer
DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130

Sets = Annotated[list[str], typer.Option("--set", help="Any setting: a.b=value. Repeatable.")]
Workers = Annotated[int, typer.Option(help="Threads that decode and augment.")]
JsonOut = Annotated[str, typer.Option("--json", help="Write JSON here; - prints JSON alone.")]
Architecture = Annotated[str, typer.Option("--backbone", help="Of a checkpoint file without one.")]
ImageSize = Annotated[int, typer.Option(help="Pixels; 0 takes what the weights were built for.")]


@app.command()
def pretrain(
    data: Annotated[str, typer.Argument(help="Pictures; without it, the demo photographs.")] = "",
    method: Annotated[str, typer.Option(help="See `saccade list methods`.")] = "",
    backbone: Annotated[str, typer.Option(help="Any timm name; see `list backbones`.")] = "",
    recipe: Annotated[
        str, typer.Option(help="demo (default without DATA), small (32 pixels), paper (default).")
    ] = "",
    epochs: Annotated[int, typer.Option(min=0, help="0 takes the recipe's.")] = 0,
    steps: Annotated[int, typer.Option(min=0, help="Instead of epochs.")] = 0,
    batch_size: Annotated[int, typer.Option(min=0, help="Global, over all devices.")] = 0,
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/pretrain"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in OUT.")] = False,
    eval_data: Annotated[str, typer.Option(help="Labelled pictures to measure on.")] = "",
    config: Annotated[Path | None, typer.Option(help="A run.json to run again.")] = None,
    weights: Annotated[str, typer.Option(help="Initialize the encoder from these.")] = "",
    workers: Annotated[int, typer.Option(min=0, help="Threads that decode, per rank.")] = 0,
    devices: Annotated[int, typer.Option(min=0, help="GPUs, or processes on a CPU.")] = 0,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "",
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    sets: Sets = [],  # noqa: B006
) -> None:
    """Turn a folder of unlabelled pictures into a backbone, and measure it where labels exist."""
    flags: dict[str, Any] = {
        "data": data,
        "eval_data": eval_data,
        "weights": weights,
        "epochs": epochs,
        "steps": steps,
        "batch_size": batch_size,
        "engine.workers": workers,
        "engine.devices": devices,
        "engine.precision": precision,
        "backbone.name": backbone,
    }
    chosen = {k: v for k, v in flags.items() if v}
    if seed is not None:
        chosen["seed"] = seed
    from . import run as runs
    from .commands import run_pretrain

    run = runs.assemble(
        method=method,
        recipe=recipe,
        config=config,
        out=out if resume else None,
        flags=chosen,
        sets=sets,
    )
    code = run_pretrain(run, out, resume=resume, overwrite=overwrite, arguments=sys.argv[1:])
    raise typer.Exit(code)


@app.command()
def evaluate(
    weights: Annotated[str, typer.Argument(help="Run folder, checkpoint, timm:NAME, random:NAME.")],
    data: Annotated[str, typer.Option(help="Labelled pictures: bank, or training set.")],
    eval_data: Annotated[str, typer.Option(help="Test pictures; else the test split.")] = "",
    protocol: Annotated[str, typer.Option(help="Comma-separated.")] = "knn-dino",
    limit: Annotated[int, typer.Option(min=0, help="First training pictures only.")] = 0,
    backbone: Architecture = "",
    image_size: ImageSize = 0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    workers: Workers = 2,
    json_out: JsonOut = "",
) -> None:
    """Measure a backbone under named protocols, with 95 % intervals."""
    from .commands import run_evaluate

    run_evaluate(
        weights,
        data,
        eval_data,
        protocol.split(","),
        limit=limit,
        backbone=backbone,
        image_size=image_size,
        seed=seed,
        workers=workers,
        json_out=json_out,
    )


@app.command()
def embed(
    weights: Annotated[str, typer.Argument(help="Run folder, checkpoint, timm:NAME, random:NAME.")],
    data: Annotated[str, typer.Option(help="Pictures.")],
    out: Annotated[Path, typer.Option(help="A .parquet file.")],
    split: Annotated[str, typer.Option(help="train or test.")] = "train",
    backbone: Architecture = "",
    image_size: ImageSize = 0,
    workers: Workers = 2,
) -> None:
    """Write path, label and vector of every picture to a parquet file."""
    from .commands import run_embed

    run_embed(
        weights, data, out, split=split, backbone=backbone, image_size=image_size, workers=workers
    )


@app.command()
def search(
    table: Annotated[Path, typer.Argument(help="What `saccade embed` wrote.")],
    query: Annotated[str, typer.Argument(help="A path that stands in the table.")],
    top: Annotated[int, typer.Option(min=1)] = 10,
) -> None:
    """Nearest pictures to one of an embedded set, by cosine."""
    from .commands import run_search

    run_search(table, query, top)


@app.command()
def export(
    weights: Annotated[str, typer.Argument(help="Run folder, checkpoint, timm:NAME, random:NAME.")],
    format: Annotated[str, typer.Option(help="timm, hf, torchvision, onnx or state-dict.")],
    out: Annotated[Path, typer.Option(help="A folder, or a file for onnx and state-dict.")],
    data: Annotated[str, typer.Option(help="Pictures to prove it on.")] = "demo",
    backbone: Architecture = "",
    image_size: ImageSize = 0,
) -> None:
    """Take a backbone home; the target library loads it and the difference is measured."""
    from .commands import run_export

    run_export(weights, format, out, data, backbone=backbone, image_size=image_size)


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="methods, backbones, protocols or recipes.")],
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Name what there is."""
    from .listing import listing, show

    show(listing(what), json_)


@app.command()
def doctor(
    data: Annotated[str, typer.Argument(help="Pictures to check; optional.")] = "",
    json_out: JsonOut = "",
) -> None:
    """Check this installation, and a data set: versions, devices, broken files, speed."""
    from .doctor import run_doctor

    raise typer.Exit(run_doctor(data, json_out))


@bench.command("step")
def bench_step(
    method: Annotated[str, typer.Option()] = "simclr",
    backbone: Annotated[str, typer.Option()] = "resnet18",
    image_size: Annotated[int, typer.Option(min=8)] = 64,
    batch_size: Annotated[int, typer.Option(min=2)] = 64,
    rounds: Annotated[int, typer.Option(min=1)] = 10,
    json_out: JsonOut = "",
) -> None:
    """One training step beside the bare encoder's, and beside lightly's modules."""
    from .commands import run_bench_step

    run_bench_step(method, backbone, image_size, batch_size, rounds, json_out)


def main() -> NoReturn:
    """Run the command line: 0 done, 1 the run failed, 2 the command was wrong, 130 interrupted."""
    sys.exit(guarded(lambda: app(standalone_mode=False)))


def guarded(command: Callable[[], Any]) -> int:
    """The exit code of a command; a user's mistake becomes one line."""
    try:
        code = command()
        return code if isinstance(code, int) else DONE
    except typer.Exit as done:
        return done.exit_code
    except UsageError as error:
        return _say(error.format_message(), WRONG)
    except (typer.Abort, KeyboardInterrupt):
        return _say("interrupted", INTERRUPTED)
    except ValueError as error:
        return _say(str(error), WRONG)
    except OSError as error:
        return _say(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), FAILED)
    except RunError as error:
        return _say(str(error), FAILED)


def _say(text: str, code: int) -> int:
    print("saccade: " + " ".join(text.split()), file=sys.stderr)
    return code
