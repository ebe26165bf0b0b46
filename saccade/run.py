"""A run as one value: everything that `run.json` holds and `--set` reaches."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import config as config_
from . import methods, systems
from .recipe import (
    BackboneConfig,
    BatchNorm,
    Engine,
    Normalize,
    Optim,
    Recipe,
    SystemRecipe,
)

FILE = "run.json"
HEADS = "heads.safetensors"  # layers beyond the encoder that a method pretrained, if any


@dataclass(frozen=True, kw_only=True)
class Run:
    name: str  # of the method
    recipe: str = "small"
    data: str = "demo"
    eval_data: str = ""  # empty: the test split of `data`, where it has one
    limit: int = 0  # train on the first pictures only; 0 takes all
    shuffle: int = 4096  # pictures of a stream that are held to be shuffled
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


@dataclass(frozen=True, kw_only=True)
class TrainRun:
    """The same for a downstream system."""

    name: str  # of the system
    recipe: str = "small"
    data: str = ""
    eval_data: str = ""  # empty: the test split of `data`, where it has one
    weights: str = ""  # initialize the encoder from these
    system: Any
    backbone: BackboneConfig
    normalize: Normalize
    optim: Optim
    epochs: int
    steps: int = 0  # instead of epochs, where above 0
    batch_size: int  # global
    batch_norm: BatchNorm
    precise_steps: int
    seed: int = 0
    engine: Engine = field(default_factory=Engine)


def from_recipe(method: str, recipe: str) -> Run:
    """The run that a method's recipe describes, on the demo pictures."""
    chosen: Recipe = _recipe(methods.recipes(method), method, recipe)
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


def train_from_recipe(system: str, recipe: str) -> TrainRun:
    """The run that a system's recipe describes, without data."""
    chosen: SystemRecipe = _recipe(systems.recipes(system), system, recipe)
    return TrainRun(
        name=system,
        recipe=recipe,
        system=chosen.system,
        backbone=chosen.backbone,
        normalize=chosen.normalize,
        optim=chosen.optim,
        epochs=chosen.epochs,
        steps=chosen.steps,
        batch_size=chosen.batch_size,
        batch_norm=chosen.batch_norm,
        precise_steps=chosen.precise_steps,
    )


def read(path: Path) -> Run:
    """A pretraining run from its `run.json`; unknown names and wrong types raise ValueError."""
    data, method = _content(path, "method", methods.get)
    return replace(config_.from_dict(Run, data), method=method)


def read_train(path: Path) -> TrainRun:
    """The same for a downstream system."""
    data, system = _content(path, "system", systems.get)
    return replace(config_.from_dict(TrainRun, data), system=system)


def _recipe(known: dict[str, Any], name: str, recipe: str) -> Any:
    if recipe not in known:
        raise ValueError(
            f"setting recipe: {name} has no {recipe!r}{config_.suggest(recipe, known)}"
        )
    return known[recipe]


def _content(path: Path, kind: str, get: Callable[[str], Any]) -> tuple[dict[str, Any], Any]:
    """The settings of a file without those of its method or system, and these."""
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"setting config: {path} does not exist; give a run.json") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"setting config: {path} is not JSON ({error})") from None
    if not isinstance(data, dict) or "name" not in data:
        raise ValueError(f"setting config: {path} is not a run (it names no {kind})")
    if kind not in data:
        raise ValueError(f"setting config: {path} is a run of another kind: it has no {kind}")
    inner = config_.from_dict(get(data["name"]).Config, data[kind], f"{kind}.")
    return {**data, kind: None}, inner


def write(run: Run | TrainRun, path: Path) -> None:
    """Write `run.json` whole or not at all."""
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(config_.to_dict(run), indent=2) + "\n")
    os.replace(beside, path)


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


def assemble_train(
    *,
    system: str,
    recipe: str,
    config: Path | None,
    out: Path | None,
    flags: dict[str, Any],
    sets: list[str],
) -> TrainRun:
    """The same for a downstream system.

    With weights named, the backbone and the normalization of pictures are those of the weights.
    """
    if config is None and not recipe and out is not None and (out / FILE).is_file():
        config = out / FILE
    if config is not None and recipe:
        raise ValueError("setting config: it names the recipe itself; drop that")
    base = read_train(config) if config else train_from_recipe(system, recipe or "small")
    if base.name != system:
        raise ValueError(f"setting config: {config} is a run of {base.name}, not {system}")
    if flags.get("weights"):
        from . import weights

        found = weights.load(flags["weights"], backbone=flags.get("backbone.name", ""))
        backbone = replace(found.config, drop_path=base.backbone.drop_path)
        base = replace(base, backbone=backbone, normalize=found.normalize)
    return config_.override(base, *(f"{k}={v}" for k, v in flags.items()), *sets)
