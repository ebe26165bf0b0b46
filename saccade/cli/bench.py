"""`saccade bench`: figures beside peers."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import JsonOut

bench = typer.Typer(
    help="Measure beside peers: training steps, views, attention, judging features.",
    no_args_is_help=True,
)


@bench.command("step")
def bench_step(
    method: Annotated[str, typer.Option(help="One, or several with commas.")] = "simclr",
    backbone: Annotated[str, typer.Option(help="Of the recipe, or resnet18.")] = "",
    image_size: Annotated[int, typer.Option(min=0, help="Of the recipe, or 64.")] = 0,
    batch_size: Annotated[int, typer.Option(min=2)] = 64,
    rounds: Annotated[int, typer.Option(min=1)] = 10,
    recipe: Annotated[str, typer.Option(help="Whose settings; without, the paper's.")] = "",
    images: Annotated[
        int, typer.Option(min=0, help="That a bank or a classifier has room for; 0: a batch.")
    ] = 0,
    json_out: JsonOut = "",
) -> None:
    """One training step beside the bare encoder's, and beside lightly's modules."""
    from ..commands import run_bench_step

    run_bench_step(
        method, backbone, image_size, batch_size, rounds, recipe, json_out, images=images
    )


@bench.command("data")
def bench_data(
    data: Annotated[str, typer.Argument(help="Pictures.")],
    views: Annotated[str, typer.Option(help="dino, simclr, moco or mae.")] = "dino",
    threads: Annotated[int, typer.Option(min=1)] = 1,
    pictures: Annotated[int, typer.Option(min=2, help="Of the data, evenly spread.")] = 64,
    rounds: Annotated[int, typer.Option(min=1)] = 10,
    image_size: Annotated[int, typer.Option(min=16, help="Of the largest view.")] = 224,
    json_out: JsonOut = "",
) -> None:
    """Views a second beside lightly, torchvision, the plain DataLoader, and decoding alone."""
    from ..commands import run_bench_data

    run_bench_data(data, views, threads, pictures, rounds, image_size, json_out)


@bench.command("attention")
def bench_attention(
    sizes: Annotated[str, typer.Option(help="Sides of the map, comma-separated.")] = "8,16,32,64",
    channels: Annotated[int, typer.Option(min=8)] = 64,
    batch_size: Annotated[int, typer.Option(min=1)] = 2,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    peers: Annotated[
        bool, typer.Option("--peers", help="Beside the layers of timm and lambda-networks.")
    ] = False,
    plot: Annotated[str, typer.Option(help="Draw the figures into a .png file.")] = "",
    json_out: JsonOut = "",
) -> None:
    """Time and memory of attention, convolution and lambda layers as the map grows."""
    from ..commands import run_bench_attention

    run_bench_attention(sizes, channels, batch_size, rounds, plot, json_out, peers=peers)


@bench.command("eval")
def bench_eval(
    protocol: Annotated[str, typer.Option(help="knn, logistic, or both.")] = "knn,logistic",
    bank: Annotated[int, typer.Option(min=20, help="Training features.")] = 20_000,
    queries: Annotated[int, typer.Option(min=20, help="Test features.")] = 5_000,
    dim: Annotated[int, typer.Option(min=2, help="Channels of a feature.")] = 384,
    classes: Annotated[int, typer.Option(min=2)] = 10,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    json_out: JsonOut = "",
) -> None:
    """Nearest neighbors and linear classifiers beside lightly, faiss and scikit-learn."""
    from ..commands import run_bench_eval

    run_bench_eval(protocol, bank, queries, dim, classes, rounds, json_out)
