"""One arm of a study with one seed: the runs it takes, and the figure that comes of them.

A run whose loss is not finite is an outcome: the figure is chance, and `stopped` says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from . import config, evaluation, microscope, pretraining, training, weights
from . import run as runs
from .bench import attention as attention_bench
from .core import Backbone
from .data.detection import open_annotated
from .data.segmentation import Pairs, open_masked
from .data.source import Subset, open_source
from .errors import RunError
from .evals.features import batches, preprocess_for
from .evals.results import Result
from .studies import Arm, Study

SIZES = (16, 32, 64)  # of the maps whose growth is measured
CHANNELS, ROUNDS = 32, 3
LOOKED = 64  # test pictures whose attention is read
LISTED = "pictures.txt"


def run(study: Study, arm: Arm, seed: int, settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """The arm's row of `study.json`; its run folders lie below `out`."""
    row: dict[str, Any] = {"arm": arm.name, "seed": seed, "control": None, "stopped": ""}
    if study.measure == "growth":
        return row | {"value": _growth(study, arm)}
    settings = settings | {"pictures": arm.pictures or settings["pictures"]}
    name = f"{(arm.shared or arm.name).replace(' ', '-').replace(',', '')}-{seed}"
    try:
        folder, row["runs"] = _trained(study, arm, seed, settings, out, name)
    except RunError as error:
        return row | {"value": _chance(arm, settings), "stopped": str(error)}
    if study.measure == "accuracy":
        before = folder / "initial"
        row["control"] = _accuracy(study, arm, before, settings, seed) if before.is_dir() else None
        return row | {"value": _accuracy(study, arm, folder / "backbone", settings, seed)}
    if study.measure == "degeneracy":
        value, row["control"] = _degeneracy(study, arm, folder, settings)
        return row | {"value": value}
    return row | {"value": _reached(study, arm, folder)}


def _trained(
    study: Study, arm: Arm, seed: int, settings: dict[str, Any], out: Path, name: str
) -> tuple[Path, dict[str, Any]]:
    """The folder of the last run of an arm, and the settings of all of them."""
    found, folder = {}, Path()
    if arm.method:
        folder = out / name
        found["pretrain"] = _pretrain(study, arm, seed, settings, out, folder)
    if arm.system:
        start = {"weights": str(folder / "backbone")} if arm.method else _fresh(arm)
        folder = out / f"{name}-{arm.system}"
        found["train"] = _train(study, arm, seed, settings, start, folder)
    return folder, found


def _pretrain(
    study: Study, arm: Arm, seed: int, settings: dict[str, Any], out: Path, folder: Path
) -> dict[str, Any]:
    flags = {
        "data": _unlabelled(arm, settings, out),
        "limit": 0 if arm.system else settings["pictures"],
        "backbone.name": arm.backbone,
        "batch_size": arm.batch_size,
        "steps": max(1, settings["seen"] // arm.batch_size),
        "engine.knn_every": 0,
        "seed": seed,
        **_precision(settings),
    }
    run = runs.assemble(
        method=arm.method,
        recipe=study.recipe,
        config=None,
        out=None,
        flags=flags,
        sets=[*study.common, *arm.sets],
    )
    if not pretraining.pretrain(run, folder, resume=True).finished:
        raise KeyboardInterrupt
    return config.to_dict(run)


def _train(
    study: Study,
    arm: Arm,
    seed: int,
    settings: dict[str, Any],
    start: dict[str, Any],
    folder: Path,
) -> dict[str, Any]:
    flags: dict[str, Any] = {
        "data": settings["data"],
        "seed": seed,
        **start,
        **_precision(settings),
    }
    if arm.system == "classify":
        flags["system.labels.count"] = settings["pictures"]
    run = runs.assemble_train(
        system=arm.system,
        recipe=study.recipe,
        config=None,
        out=None,
        flags=flags,
        sets=[*study.system_common, *arm.system_sets],
    )
    seen = settings["seen"]
    if arm.method and study.system_seen:
        seen = study.system_seen * seen // study.seen
    run = config.override(run, f"steps={max(1, seen // run.batch_size)}")
    if not training.train(run, folder, resume=True).finished:
        raise KeyboardInterrupt
    return config.to_dict(run)


def _precision(settings: dict[str, Any]) -> dict[str, Any]:
    """The flag, where the recipes' own is not meant."""
    return {"engine.precision": settings["precision"]} if "precision" in settings else {}


def _fresh(arm: Arm) -> dict[str, Any]:
    """Flags of a system that starts from random weights."""
    return {"backbone.name": arm.backbone, "batch_size": arm.batch_size}


def _unlabelled(arm: Arm, settings: dict[str, Any], out: Path) -> str:
    """What a method sees: for detectors and segmenters, the pictures of their training data."""
    match arm.system:
        case "detect":
            source = open_annotated(settings["data"]).pictures
        case "segment":
            pairs = open_masked(settings["data"]).pictures
            assert isinstance(pairs, Pairs)
            source = pairs.pictures
        case _:
            return settings["data"]
    path = out / LISTED
    path.parent.mkdir(parents=True, exist_ok=True)
    files = (Path(str(source.stored(i))).absolute() for i in range(len(source)))
    path.write_text("".join(f"{file}\n" for file in files))
    return str(path)


def _accuracy(study: Study, arm: Arm, found: Path, settings: dict[str, Any], seed: int) -> float:
    """The protocol's figure, a fraction of 1."""
    request = evaluation.Request(
        weights=(str(found),),
        data=settings["data"],
        protocols=(study.protocol,),
        limit=settings["pictures"],
        seed=seed,
        baselines=False,
    )
    return _chosen(evaluation.evaluate(request, lambda loaded: None), arm.metric or study.metric)


def _reached(study: Study, arm: Arm, folder: Path) -> float:
    """What a trained system reaches on the test data."""
    found = [r for r in training.measure(folder) if r.protocol.partition("/")[0] == study.protocol]
    if not found:
        raise ValueError(
            f"data: no test pictures for {study.protocol}; name data with a test split"
        )
    return _chosen(found, arm.metric or study.metric)


def _chosen(results: Sequence[Result], metric: str) -> float:
    """The first of them, or that of a name."""
    return next(r.value for r in results if metric in ("", r.metric))


def _degeneracy(
    study: Study, arm: Arm, folder: Path, settings: dict[str, Any]
) -> tuple[float, float]:
    """A figure of `microscope.Degeneracy` of one part, after training and before it.

    The metric is the part, and the figure behind a space: without it, what different queries see.
    Means are over layers and test pictures, those with such a figure.
    """
    part, _, figure = (arm.metric or study.metric).partition(" ")
    loaded = weights.load(folder / "backbone")
    source = open_source(settings["data"], split="test", channels=loaded.config.channels)
    rows = np.linspace(0, len(source) - 1, min(LOOKED, len(source))).astype(np.int64)

    def mean(backbone: Backbone) -> float:
        seen = preprocess_for(backbone, loaded.normalize)
        values = [
            asdict(one)[figure or "value"]
            for x, _ in batches(backbone, Subset(source, rows), seen, 1, 1, [])
            for one in microscope.degeneracy(backbone, x)
            if one.part == part
        ]
        return float(np.nanmean(values))

    before = training.build(runs.read_train(folder / runs.FILE)).encoder.eval()
    return mean(loaded.backbone), mean(before)


def _growth(study: Study, arm: Arm) -> float:
    """The exponent of time or memory in the number of positions."""
    found = attention_bench.run_attention(
        sizes=SIZES, channels=CHANNELS, batch_size=1, rounds=ROUNDS, names=(arm.mechanism,)
    )
    return float(found["arms"][arm.mechanism]["growth"][study.metric])


def _chance(arm: Arm, settings: dict[str, Any]) -> float:
    """What an arm that stopped counts as: one over the number of classes, or nothing found."""
    if arm.system in ("detect", "segment"):
        return 0.0
    return 1 / len(open_source(settings["data"], split="test").classes)
