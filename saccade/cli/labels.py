"""`saccade propagate`: a few labels become many guesses."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import Weights


def propagate(
    weights: Weights,
    data: Annotated[str, typer.Option(help="Pictures, some of them labelled.")],
    out: Annotated[Path, typer.Option(help="A list: picture, class, confidence.")],
    labels: Annotated[int, typer.Option(min=0, help="Labels used, as many of every class.")] = 0,
    share: Annotated[float, typer.Option(min=0, max=1, help="Of all labels, instead.")] = 1.0,
    given: Annotated[str, typer.Option(help="A list of the labels used, instead.")] = "",
    algorithm: Annotated[str, typer.Option(help="cut, or vote of the nearest.")] = "cut",
    limit: Annotated[int, typer.Option(min=0, help="Pictures, evenly spread; 0: all.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Draws the labels.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Threads that decode.")] = 2,
    json_out: Annotated[str, typer.Option("--json", help="Write the figures as JSON.")] = "",
) -> None:
    """Guess the labels of all pictures from a few, by a backbone's features."""
    from .. import evals, propagating
    from ..config import from_dict

    wanted = {"count": labels, "share": share, "file": given}
    values = {"weights": weights, "data": data, "labels": wanted, "algorithm": algorithm}
    values |= {"limit": limit, "seed": seed, "workers": workers}
    results = propagating.propagate(from_dict(propagating.Request, values), out)
    if json_out:
        evals.write_results(json_out, results, {"weights": weights, "data": data})
    print(f"saccade: the labels are in {out}", file=sys.stderr)
    if results:
        from rich.console import Console

        Console().print(evals.table(results, "guessed labels"))
