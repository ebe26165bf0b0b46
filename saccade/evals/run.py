"""From scores to results: every protocol's figure with settings, n and interval."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import numpy as np

from ..config import suggest, to_dict
from ..core import Backbone
from ..data.source import Source, Subset
from ..recipe import Normalize
from . import BASELINES, PROTOCOLS, needs_labels
from .baselines import run as run_baselines
from .features import Data, Progress, quiet
from .interval import bootstrap
from .results import Figure, Result, Score, pack


def evaluate(
    model: Backbone,
    train: Source,
    test: Source,
    protocols: Sequence[str],
    *,
    normalize: Normalize,
    name: str = "model",
    batch_size: int = 256,
    threads: int = 2,
    seed: int = 0,
    epochs: int = 0,
    lists: Path | None = None,
    cache: Path | None = None,
    progress: Progress = quiet,
) -> list[Result]:
    """Every protocol on one model, in order, the headline of a protocol first.

    `name` is what the results call the model. `epochs` overrides those of fine-tuning and of
    linear-dinov2, `lists` is a folder for the pictures that few-label protocols used, `cache` one
    that keeps features.
    """
    check(protocols, epochs)
    if needs_labels(protocols):
        train, test = labeled(train, "data"), labeled(test, "eval-data")
    data = Data(
        model,
        train,
        test,
        normalize=normalize,
        batch_size=batch_size,
        threads=threads,
        seed=seed,
        epochs=epochs,
        lists=lists,
        cache=cache,
        progress=progress,
    )
    common = {
        "seed": seed,
        "classes": data.classes,
        "test": fingerprint(test),
        "preprocess": to_dict(data.preprocess),
    }
    results = []
    for protocol in protocols:
        family = import_module(f".{PROTOCOLS[protocol].module}", __package__)
        versioned = f"{protocol}/{PROTOCOLS[protocol].version}"
        results += [_result(name, versioned, s, common) for s in family.run(protocol, data)]
    return results


def trivial(train: Source, test: Source, *, threads: int = 2, seed: int = 0) -> list[Result]:
    """The baselines that any learned feature has to beat, on the same pictures."""
    train, test = labeled(train, "data"), labeled(test, "eval-data")
    common = {"seed": seed, "classes": len(train.classes), "test": fingerprint(test)}
    return [
        _result(name, f"{name}/{BASELINES[name].version}", score, common)
        for name, score in run_baselines(train, test, threads)
    ]


def labeled(source: Source, setting: str) -> Source:
    """The pictures that have a label; `setting` is how the user named the source."""
    rows = np.flatnonzero(source.labels >= 0) if source.labels is not None else np.empty(0)
    if not len(rows):
        raise ValueError(
            f"setting {setting}: these pictures have no labels and protocols count right answers; "
            "give one folder a class, or a list or parquet with labels"
        )
    return source if len(rows) == len(source) else Subset(source, rows)


def fingerprint(source: Source) -> str:
    """Short hash of names and labels: two results with the same one are about the same pictures."""
    total = hashlib.blake2b(
        b"" if source.labels is None else source.labels.tobytes(), digest_size=8
    )
    for i in range(len(source)):
        total.update(f"{source.name(i)}\n".encode())
    return total.hexdigest()


def check(protocols: Sequence[str], epochs: int = 0) -> None:
    """Raise ValueError for an unknown protocol, or for epochs that none of them reads."""
    for name in protocols:
        if name not in PROTOCOLS:
            raise ValueError(f"setting protocol: {name!r} is unknown{suggest(name, PROTOCOLS)}")
    if epochs and not any(PROTOCOLS[name].epochs for name in protocols):
        raise ValueError(
            f"setting epochs={epochs}: {', '.join(protocols)} does not read it; "
            "leave it out, or choose linear-dinov2, a semi or a finetune protocol"
        )


def _result(model: str, protocol: str, score: Score | Figure, common: dict) -> Result:
    held = isinstance(score, Figure)
    interval = score.interval if held else bootstrap(score.values, common["seed"])
    return Result(
        model=model,
        protocol=protocol,
        metric=score.metric,
        value=interval.value,
        low=interval.low,
        high=interval.high,
        n=score.n if held else len(score.values),
        settings=common | score.settings,
        hits="" if held else pack(score.values),
        unit=score.unit if held else "%",
    )
