"""The commands as functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from . import embedding, evals, exports, predicting, pretraining, training, weights
from . import run as runs
from .data.bad import Bad
from .data.source import open_source
from .embedding import Embedded
from .engine import distributed
from .evals.results import Result
from .exports import Proof
from .pretraining import Pretrained
from .training import Trained


def pretrain(
    data: str = "",
    *,
    method: str,
    recipe: str = "",
    out: str | Path = "runs/pretrain",
    resume: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> Pretrained:
    """Train on pictures, leaving the run in `out`.

    `settings` are those of `--set` with `__` for the dot:
    `pretrain("photos", method="dino", epochs=20, optim__lr=1e-3)`. Raises ValueError for a wrong
    setting and RunError where the run could not go on.
    """
    out = Path(out)
    flags = {"data": data} if data else {}
    run = runs.assemble(
        method=method, recipe=recipe, config=None, out=None, flags=flags, sets=_sets(settings)
    )
    pretraining.prepare(run, out, resume=resume, overwrite=overwrite)
    return pretraining.pretrain(run, out, resume=resume, overwrite=overwrite)


def train(
    system: str,
    data: str,
    *,
    weights: str = "",
    recipe: str = "",
    out: str | Path = "runs/train",
    resume: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> Trained:
    """Train a downstream system on labelled data, from `weights` where given.

    `settings` as in `pretrain`. Raises ValueError for a wrong setting and RunError where the run
    could not go on.
    """
    out = Path(out)
    flags = {k: v for k, v in {"data": data, "weights": weights}.items() if v}
    run = runs.assemble_train(
        system=system, recipe=recipe, config=None, out=None, flags=flags, sets=_sets(settings)
    )
    training.prepare(run, out, resume=resume, overwrite=overwrite)
    return training.train(run, out, resume=resume, overwrite=overwrite)


def predict(run: str | Path, pictures: str = "", *, out: str | Path, **settings: Any) -> list[Bad]:
    """Write what a trained system sees into the folder `out`; pictures it could not read.

    A run of igpt completes the pictures, or draws whole ones; `settings` are its `--set`s.
    """
    return predicting.predict(Path(run), pictures, Path(out), _sets(settings))


def load(name: str, *, backbone: str = "", image_size: int | None = None) -> nn.Module:
    """The backbone of a run folder, a checkpoint file, `timm:NAME` or `random:NAME`.

    `backbone` names the architecture of a checkpoint file that does not say it.
    """
    return weights.load(name, backbone=backbone, image_size=image_size).backbone


def evaluate(
    name: str, *, data: str, eval_data: str = "", protocols: tuple[str, ...] = ("knn-dino",)
) -> list[Result]:
    """Figures of a backbone under named protocols, fractions of 1 with 95 % intervals."""
    loaded = weights.load(name)
    channels = loaded.config.channels
    return evals.evaluate(
        loaded.backbone.to(distributed.device()),
        open_source(data, split="train", channels=channels),
        open_source(eval_data or data, split="test", channels=channels),
        protocols,
        normalize=loaded.normalize,
        name=name,
    )


def embed(name: str, *, data: str, out: str | Path) -> Embedded:
    """Write path, label and vector of every picture to a parquet file."""
    loaded = weights.load(name)
    source = open_source(data, split="train", channels=loaded.config.channels)
    preprocess = evals.preprocess_for(loaded.backbone, loaded.normalize)
    backbone = loaded.backbone.to(distributed.device())
    return embedding.embed(backbone, source, preprocess, Path(out), name=name)


def export(name: str, format: str, out: str | Path, *, data: str = "demo") -> Proof:
    """Write a backbone in another library's format, and the difference that library measures."""
    from .commands import pictures_for

    loaded = weights.load(name)
    return exports.export(loaded, format, Path(out), pictures_for(loaded, data))


def _sets(settings: dict[str, Any]) -> list[str]:
    return [f"{name.replace('__', '.')}={_text(value)}" for name, value in settings.items()]


def _text(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value)
