"""A run as one value: everything that `run.json` holds and `--set` reaches."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import config as config_
from . import methods
from .recipe import BackboneConfig, Engine, Normalize, Optim, Recipe

FILE = "run.json"


@dataclass(frozen=True, kw_only=True)
class Run:
    name: str  # of the method
    recipe: str = "small"
    data: str = "demo"
    eval_data: str = ""  # empty: the test split of `data`, where it has one
    limit: int = 0  # train on the first pictures only; 0 takes all
    weights: str = ""  # initialize the encoder from these
    method: Any
    backbone: BackboneConfig
    normalize: Normalize
    optim: Optim
    epochs: int
    steps: int = 0  # instead of epochs, where above 0
    batch_size: int  # global
    sync_batch_norm: bool
    seed: int = 0
    engine: Engine = field(default_factory=Engine)


def from_recipe(method: str, recipe: str) -> Run:
    """The run that a method's recipe describes, on the demo pictures."""
    known = methods.recipes(method)
    if recipe not in known:
        raise ValueError(
            f"setting recipe: {method} has no {recipe!r}{config_.suggest(recipe, known)}"
        )
    chosen: Recipe = known[recipe]
    return Run(
        name=method,
        recipe=recipe,
        method=chosen.method,
        backbone=chosen.backbone,
        normalize=chosen.normalize,
        optim=chosen.optim,
        epochs=chosen.epochs,
        batch_size=chosen.batch_size,
        sync_batch_norm=chosen.sync_batch_norm,
    )


def read(path: Path) -> Run:
    """A run from its `run.json`; unknown names and wrong types raise ValueError."""
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"setting config: {path} does not exist; give a run.json") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"setting config: {path} is not JSON ({error})") from None
    if not isinstance(data, dict) or "name" not in data:
        raise ValueError(f"setting config: {path} is not a run (it names no method)")
    settings = data.pop("method", {})
    method = config_.from_dict(_method(data["name"]).Config, settings, "method.")
    return replace(config_.from_dict(Run, {**data, "method": None}), method=method)


def write(run: Run, path: Path) -> None:
    """Write `run.json` whole or not at all."""
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(config_.to_dict(run), indent=2) + "\n")
    os.replace(beside, path)


def _method(name: str) -> Any:
    return methods.get(name)


def assemble(
    *,
    method: str,
    recipe: str,
    config: Path | None,
    out: Path | None,
    flags: dict[str, Any],
    sets: list[str],
) -> Run:
    """The run that a command line describes: a recipe or a `run.json`, flags, then `--set`s.

    `out` is given when resuming: with no method named, its own `run.json` counts.
    """
    if config is None and not method and out is not None and (out / FILE).is_file():
        config = out / FILE
    if config is not None:
        if method or recipe:
            raise ValueError("setting config: it names method and recipe itself; drop those")
        base = read(config)
    elif not method:
        raise ValueError(f"setting method is missing; choose from {', '.join(methods.names())}")
    else:
        default = "paper" if flags.get("data") else "demo"
        base = from_recipe(method, recipe or default)
    return config_.override(base, *(f"{k}={v}" for k, v in flags.items()), *sets)
