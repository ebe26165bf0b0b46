"""`saccade report` and `saccade serve`: a page about runs, as a file or live."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..config import suggest

if TYPE_CHECKING:
    from ..report.looked import Asked

PROJECTIONS = ("tsne", "pca")

Runs = Annotated[list[Path], typer.Argument(help="Run folders; several are laid over each other.")]
Points = Annotated[int, typer.Option(min=0, help="Pictures on the map, evenly spread; 0: no map.")]
Map = Annotated[str, typer.Option("--map", help="tsne, or pca, which is quick.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads that decode.")]


def report(
    runs: Runs,
    out: Annotated[Path, typer.Option(help="An .html file.")] = Path("report.html"),
    points: Points = 2000,
    projection: Map = "tsne",
    workers: Threads = 2,
) -> None:
    """Write one HTML page: how runs went and what they learned, on pictures."""
    asked = _asked(points, projection, workers)
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"setting out: {out} is not an .html file; name one")
    from ..report.page import write

    for note in write(runs, out, asked).notes:
        _say(f"not shown. {note}")
    _say(f"the report is {out}, {out.stat().st_size / 1e6:.1f} MB")


def serve(
    runs: Runs,
    host: Annotated[str, typer.Option(help="An address of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any free one.")] = 8765,
    points: Points = 2000,
    projection: Map = "tsne",
    workers: Threads = 2,
) -> None:
    """Show the same page in a browser, live while the runs train."""
    asked = _asked(points, projection, workers)
    from ..report.serve import serve as answer

    answer(runs, host, port, asked)


def _asked(points: int, projection: str, threads: int) -> Asked:
    if projection not in PROJECTIONS:
        hint = suggest(projection, PROJECTIONS)
        raise ValueError(f"setting map: {projection!r} is unknown{hint}")
    from ..report.looked import Asked

    return Asked(points=points, projection=projection, threads=threads)  # type: ignore[arg-type]


def _say(text: str) -> None:
    print(f"saccade: {text}", file=sys.stderr, flush=True)
