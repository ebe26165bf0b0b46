"""What `saccade evaluate` does: backbones, baselines beside them, and how they differ."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import evals, weights
from .config import to_dict
from .data.source import Source, open_source
from .engine import distributed
from .engine.log import counter
from .evals.remember import remembered
from .evals.results import Result
from .evals.run import check
from .weights import Loaded


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure, and on what."""

    weights: tuple[str, ...]  # the first is compared with the others
    data: str
    eval_data: str = ""
    protocols: tuple[str, ...] = ("knn-dino",)
    limit: int = 0  # training pictures
    backbone: str = ""  # of checkpoint files that do not tell it
    part: str = ""  # of the first weights
    image_size: int = 0
    seed: int = 0
    workers: int = 2
    epochs: int = 0  # of fine-tuning; 0: the protocol's
    baselines: bool = True
    cache: Path | None = None  # of features
    lists: Path | None = None  # where few-label protocols name their pictures


def evaluate(request: Request, told: Callable[[Loaded], None]) -> list[Result]:
    """Figures of all weights in order, then of random weights and the trivial baselines.

    `told` hears of all weights that were loaded.
    """
    check(request.protocols, request.epochs)
    loaded = [_load(request, i) for i in range(len(request.weights))]
    for one in loaded:
        told(one)
    channels = loaded[0].config.channels
    if any(one.config.channels != channels for one in loaded):
        raise ValueError("setting compare: these weights take pictures of other channels")
    train = open_source(request.data, split="train", channels=channels, limit=request.limit)
    test = open_source(request.eval_data or request.data, split="test", channels=channels)
    results: list[Result] = []
    for one in loaded:
        results += _measure(request, one, one.source, train, test)
    return results + (_baselines(request, loaded, train, test) if request.baselines else [])


def _load(request: Request, i: int) -> Loaded:
    return weights.load(
        request.weights[i],
        backbone=request.backbone,
        part="" if i else request.part,
        image_size=request.image_size or None,
        seed=request.seed,
    )


def _measure(request: Request, one: Loaded, name: str, train: Source, test: Source) -> list[Result]:
    return evals.evaluate(
        one.backbone.to(distributed.device()),
        train,
        test,
        request.protocols,
        normalize=one.normalize,
        name=name,
        threads=request.workers,
        seed=request.seed,
        epochs=request.epochs,
        lists=request.lists,
        cache=request.cache,
        progress=counter(name),
    )


def _baselines(
    request: Request, loaded: Sequence[Loaded], train: Source, test: Source
) -> list[Result]:
    """Random weights of every architecture that is not random itself, and what needs no network."""
    settings = {
        "protocols": [f"{p}/{evals.PROTOCOLS[p].version}" for p in request.protocols],
        "seed": request.seed,
        "epochs": request.epochs,
    }
    trained = [one for one in loaded if not one.source.startswith("random:")]
    arms = {str(to_dict(one.config)): one for one in trained}
    results: list[Result] = []
    for one in arms.values():
        name = "random weights" if len(arms) == 1 else f"random weights, {one.config.name}"
        key = settings | weights.describe(one.config, one.normalize) | {"name": name}
        control = weights.control(one, request.seed)
        make = lambda control=control, name=name: _measure(request, control, name, train, test)  # noqa: E731
        results += remembered(key, (train, test), make)
    if evals.needs_labels(request.protocols):
        version = [p.version for p in evals.BASELINES.values()]
        results += remembered(
            {"trivial": version, "seed": request.seed},
            (train, test),
            lambda: evals.trivial(train, test, threads=request.workers, seed=request.seed),
        )
    return results


def say(loaded: Loaded) -> None:
    """One line on stderr: whose layout, which part, and every kind of key that did not fit."""
    report = loaded.report
    words = [loaded.source]
    if loaded.layout:
        others = f" (also there: {', '.join(loaded.others)})" if loaded.others else ""
        words.append(f"{loaded.layout} layout, part {loaded.part}{others}, {loaded.config.name}")
    if report.matched:
        words.append(f"{report.matched} keys matched")
        for what, keys in (
            ("missing", report.missing),
            ("unexpected", report.unexpected),
            ("resized", report.resized),
        ):
            more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
            words.append(f"{len(keys)} {what}{': ' if keys else ''}{', '.join(keys[:5])}{more}")
    if len(words) > 1:
        print(f"saccade: {'; '.join(words)}", file=sys.stderr, flush=True)
