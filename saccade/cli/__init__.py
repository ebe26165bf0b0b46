"""The command line. Heavy imports stand inside the commands that need them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from ..errors import RunError
from .bench import bench
from .labels import propagate
from .options import (
    Architecture,
    ImageSize,
    JsonOut,
    Plot,
    Precision,
    Sets,
    TestData,
    Weights,
    Workers,
)
from .report import report, serve
from .train import plan, pretrain, train

app = typer.Typer(
    name="saccade",
    help="Learn to see without labels: a folder of pictures in, a vision backbone out.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(bench, name="bench")

UsageError: Any = typer.BadParameter.__base__  # click's own, or the copy inside newer typer
DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130


app.command()(pretrain)
app.command()(plan)
app.command()(train)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="What `saccade train` left, or an igpt run.")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    pictures: Annotated[str, typer.Argument(help="A picture, or any source of them.")] = "",
    sets: Sets = [],  # noqa: B006
) -> None:
    """Let a trained system look at pictures: boxes and masks; igpt completes or draws them."""
    from ..commands import run_predict

    run_predict(run, pictures, out, sets)


@app.command()
def evaluate(
    weights: Weights,
    data: Annotated[str, typer.Option(help="Labelled pictures: bank, or training set.")],
    eval_data: TestData = "",
    protocol: Annotated[
        str, typer.Option(help="Comma-separated; see `list protocols`.")
    ] = "knn-dino",
    compare: Annotated[
        list[str], typer.Option(help="Other weights on the same pictures. Repeatable.")
    ] = [],  # noqa: B006
    baselines: Annotated[
        bool, typer.Option(help="Random weights and trivial ones beside, remembered.")
    ] = True,
    part: Annotated[
        str, typer.Option(help="Of a checkpoint with several: teacher, student, ema, ...")
    ] = "",
    limit: Annotated[int, typer.Option(min=0, help="Training pictures, evenly spread.")] = 0,
    epochs: Annotated[int, typer.Option(min=0, help="Of fine-tuning and linear-dinov2.")] = 0,
    backbone: Architecture = "",
    image_size: ImageSize = 0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    workers: Workers = 2,
    cache: Annotated[str, typer.Option(help="Folder that keeps features between calls.")] = "",
    plot: Plot = "",
    json_out: JsonOut = "",
) -> None:
    """Measure backbones under named protocols, with 95 % intervals and paired tests."""
    from ..commands import run_evaluate
    from ..evaluation import Request

    beside = Path(weights) if Path(weights).is_dir() else None
    if json_out and json_out != "-":
        beside = Path(json_out).parent
    request = Request(
        weights=(weights, *compare),
        data=data,
        eval_data=eval_data,
        protocols=tuple(protocol.split(",")),
        limit=limit,
        backbone=backbone,
        part=part,
        image_size=image_size,
        seed=seed,
        workers=workers,
        epochs=epochs,
        baselines=baselines,
        cache=Path(cache) if cache else None,
        lists=beside / "labels" if beside else None,
    )
    run_evaluate(request, json_out=json_out, plot=plot)


@app.command()
def verdict(
    weights: Annotated[str, typer.Argument(help="Run folder, checkpoint, timm:NAME.")],
    data: Annotated[str, typer.Option(help="Labelled pictures.")],
    labels: Annotated[str, typer.Option(help="Numbers of labels in all, comma-separated.")],
    eval_data: TestData = "",
    beside: Annotated[list[str], typer.Option(help="Other weights. Repeatable.")] = [],  # noqa: B006
    seeds: Annotated[int, typer.Option(min=2, help="Draws of labels and weights.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Of training all layers.")] = 300,
    workers: Workers = 2,
    plot: Plot = "",
    json_out: JsonOut = "",
) -> None:
    """Did pretraining help? With it, without it, and from how many labels on it stops to."""
    from ..commands import run_verdict

    run_verdict(
        (weights, *beside),
        data,
        labels,
        eval_data=eval_data,
        seeds=seeds,
        steps=steps,
        workers=workers,
        plot=plot,
        json_out=json_out,
    )


@app.command()
def embed(
    weights: Weights,
    data: Annotated[str, typer.Option(help="Pictures.")],
    out: Annotated[Path, typer.Option(help="A .parquet file.")],
    split: Annotated[str, typer.Option(help="train or test.")] = "train",
    index: Annotated[bool, typer.Option("--index", help="Also a graph to search fast.")] = False,
    backbone: Architecture = "",
    image_size: ImageSize = 0,
    workers: Workers = 2,
) -> None:
    """Write path, label and vector of every picture to a parquet file."""
    from ..commands import run_embed

    settings = {"backbone": backbone, "image_size": image_size, "workers": workers}
    run_embed(weights, data, out, split=split, index=index, **settings)  # type: ignore[arg-type]


@app.command()
def search(
    table: Annotated[Path, typer.Argument(help="What `saccade embed` wrote.")],
    query: Annotated[str, typer.Argument(help="A picture file, or a path in the table.")],
    weights: Annotated[str, typer.Option(help="What embedded the table, if it moved.")] = "",
    top: Annotated[int, typer.Option(min=1)] = 10,
    exact: Annotated[bool, typer.Option("--exact", help="Past an index that is there.")] = False,
    plot: Annotated[str, typer.Option(help="Show the pictures in a .png file.")] = "",
    data: Annotated[str, typer.Option(help="Where they lie, if they moved.")] = "",
    json_out: JsonOut = "",
) -> None:
    """Nearest pictures of an embedded set to a picture, by cosine."""
    from ..commands import run_search

    run_search(table, query, weights, top, exact=exact, plot=plot, data=data, json_out=json_out)


@app.command()
def look(
    weights: Weights,
    images: Annotated[list[Path], typer.Argument(help="Picture files.")],
    out: Annotated[Path, typer.Option(help="A .png file.")],
    query: Annotated[str, typer.Option(help="x,y in the first picture: shares, or pixels.")] = "",
    kind: Annotated[str, typer.Option(help="Comma-separated; without it, all that fit.")] = "",
    backbone: Architecture = "",
    image_size: ImageSize = 0,
    width: Annotated[int, typer.Option(min=200, help="Of the picture, pixels.")] = 1200,
    json_out: JsonOut = "",
) -> None:
    """Draw what a network sees: attention, PCA of features, neighbors, reconstructions."""
    from ..looking import run_look

    run_look(weights, images, out, kind, query, backbone, image_size, width, json_out)


@app.command()
def export(
    weights: Weights,
    format: Annotated[str, typer.Option(help="timm, hf, torchvision, onnx or state-dict.")],
    out: Annotated[Path, typer.Option(help="A folder, or a file for onnx and state-dict.")],
    data: Annotated[str, typer.Option(help="Pictures to prove it on.")] = "demo",
    backbone: Architecture = "",
    image_size: ImageSize = 0,
) -> None:
    """Take a backbone home; the target library loads it and the difference is measured."""
    from ..commands import run_export

    run_export(weights, format, out, data, backbone=backbone, image_size=image_size)


@app.command()
def reproduce(
    study: Annotated[str, typer.Argument(help="See `saccade list studies`.")],
    data: Annotated[str, typer.Option(help="Labelled pictures of 32 pixels.")] = "cifar10",
    out: Annotated[Path | None, typer.Option(help="Folder; goes on if it exists.")] = None,
    seeds: Annotated[int, typer.Option(min=2)] = 3,
    seen: Annotated[int, typer.Option(min=0, help="Pictures a run sees; 0: the study's.")] = 0,
    pictures: Annotated[int, typer.Option(min=0, help="To train on; 0: the study's.")] = 0,
    precision: Precision = "",
    plot: Plot = "",
    json_out: JsonOut = "",
) -> None:
    """Run a claim of the literature in the small, and say whether it holds here."""
    from ..commands import run_reproduce

    run_reproduce(
        study,
        data,
        out or Path("runs") / study,
        seeds=seeds,
        seen=seen,
        pictures=pictures,
        precision=precision,
        plot=plot,
        json_out=json_out,
    )


@app.command()
def pack(
    data: Annotated[str, typer.Argument(help="Pictures: all splits of them.")],
    out: Annotated[Path, typer.Option(help="A new folder, or one that was not finished.")],
    size: Annotated[int, typer.Option(min=0, help="Of the short side; 0: as they are.")] = 0,
    format: Annotated[str, typer.Option(help="auto (raw where small), raw or jpeg.")] = "auto",
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of JPEG.")] = 90,
    channels: Annotated[int, typer.Option(min=1)] = 3,
    workers: Workers = 2,
    json_out: JsonOut = "",
) -> None:
    """Copy pictures into a few large files that are quick to read; kill it and go on."""
    from ..commands import run_pack

    run_pack(
        data,
        out,
        size=size,
        format=format,
        quality=quality,
        channels=channels,
        workers=workers,
        json_out=json_out,
    )


@app.command("list")
def list_(
    what: Annotated[
        str, typer.Argument(help="methods, systems, backbones, protocols, recipes or studies.")
    ],
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Name what there is."""
    from ..listing import listing, show

    show(listing(what), json_)


@app.command()
def doctor(
    data: Annotated[str, typer.Argument(help="Pictures to check; optional.")] = "",
    eval_data: TestData = "",
    sample: Annotated[int, typer.Option(min=0, help="Pictures looked at; 0: up to 20,000.")] = 0,
    method: Annotated[str, typer.Option(help="Whose views are timed.")] = "simclr",
    recipe: Annotated[str, typer.Option(help="Of the method.")] = "paper",
    workers: Workers = 2,
    json_out: JsonOut = "",
) -> None:
    """Check this installation, and a data set: broken files, doubles, statistics, speed."""
    from ..doctor import run_doctor

    code = run_doctor(
        data,
        eval_data=eval_data,
        sample=sample,
        method=method,
        recipe=recipe,
        workers=workers,
        json_out=json_out,
    )
    raise typer.Exit(code)


app.command()(propagate)
app.command()(report)
app.command()(serve)


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
