"""Backbones to files and back: safetensors and JSON in timm's hub layout, no unsafe pickle.

WEIGHTS is a run folder, a checkpoint file, `timm:NAME` (timm's pretrained weights) or `random:NAME`
(the control arm).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .backbones.presets import PRESETS
from .backbones.timm_adapter import (
    Report,
    arguments,
    build,
    has_small_stem,
    load_timm_state,
    native_size,
    timm_state,
)
from .config import from_dict, to_dict
from .core import Backbone
from .recipe import BackboneConfig, Normalize

CONFIG, WEIGHTS = "config.json", "model.safetensors"

# Where the state dict lies in a checkpoint, and what stands before the backbone's keys.
CONTAINERS = ("state_dict", "model")
PREFIXES = ("module.", "backbone.", "encoder.", "encoder_q.")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    backbone: Backbone  # in eval mode
    config: BackboneConfig  # what rebuilds it
    normalize: Normalize  # what its pictures went through
    source: str  # WEIGHTS as given
    report: Report  # keys that were not taken one to one


def load(
    weights: str | Path,
    *,
    backbone: str = "",
    image_size: int | None = None,
    channels: int | None = None,
    seed: int = 0,
) -> Loaded:
    """The backbone of WEIGHTS.

    `backbone` names the architecture of a checkpoint file, `image_size` and `channels` default to
    what the weights were made for, and `seed` draws the weights of `random:NAME`.
    """
    kind, _, name = str(weights).partition(":")
    path = Path(weights)
    if kind == "random" and name:
        found = _random(name, image_size, channels, seed)
    elif kind == "timm" and name:
        found = _pretrained(name, image_size, channels)
    elif path.is_dir():
        found = _folder(path, image_size, channels)
    elif path.is_file():
        found = _file(path, backbone, image_size, channels)
    else:
        tip = f", such as timm:{path} or random:{path}" if timm.is_model(str(path)) else ""
        raise ValueError(
            f"weights: {str(weights)!r} is not there; give a run folder, a checkpoint file, "
            f"timm:NAME or random:NAME{tip}"
        )
    found.backbone.eval()
    return replace(found, source=str(weights))


def save_backbone(
    folder: str | Path,
    backbone: Backbone,
    cfg: BackboneConfig,
    normalize: Normalize,
    extra: dict[str, Any],
) -> None:
    """Write `config.json` and `model.safetensors`, which timm reads as `local-dir:FOLDER` too.

    `extra` is kept in the JSON for people; each file is whole or absent at any moment.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_state(folder / WEIGHTS, timm_state(backbone))
    write_json(folder / CONFIG, hub_config(backbone, cfg, normalize) | {"extra": extra})


def hub_config(backbone: Backbone, cfg: BackboneConfig, normalize: Normalize) -> dict[str, Any]:
    """timm's description of a network, and ours under `saccade`."""
    name, args = arguments(cfg)
    return {
        "architecture": name.partition(".")[0],
        "num_classes": 0,
        "num_features": backbone.dim,
        "model_args": args,
        "pretrained_cfg": {
            "input_size": (cfg.channels, cfg.image_size, cfg.image_size),
            "fixed_input_size": False,
            "num_classes": 0,
            "mean": normalize.mean,
            "std": normalize.std,
            "interpolation": "bicubic",
            "crop_pct": 0.875,  # what the evaluation protocols cut: 224 of 256
        },
        "saccade": describe(cfg, normalize),
    }


def describe(cfg: BackboneConfig, normalize: Normalize) -> dict[str, Any]:
    """What rebuilds a backbone and feeds it."""
    return {"backbone": to_dict(cfg), "normalize": to_dict(normalize)}


def write_state(path: Path, state: dict[str, Tensor], **notes: str) -> None:
    """Write tensors as safetensors with notes in its header; the file appears whole."""
    plain = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    write_beside(path, lambda beside: save_file(plain, beside, {"format": "pt", **notes}))


def write_json(path: Path, value: Any) -> None:
    """Write JSON; the file appears whole."""
    text = json.dumps(value, indent=2) + "\n"
    write_beside(path, lambda beside: beside.write_text(text))


def write_beside(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file next to `path`, then rename it over `path`."""
    beside = path.with_name(f".{path.name}.part")
    write(beside)
    os.replace(beside, path)


def _random(name: str, image_size: int | None, channels: int | None, seed: int) -> Loaded:
    cfg = BackboneConfig(
        name=name, image_size=image_size or native_size(name), channels=channels or 3
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return _loaded(build(cfg), cfg)


def _pretrained(name: str, image_size: int | None, channels: int | None) -> Loaded:
    if name in PRESETS:
        raise ValueError(
            f"weights: {name} is ours and timm has no weights for it; try random:{name}"
        )
    cfg = BackboneConfig(
        name=name,
        image_size=image_size or native_size(name),
        channels=channels or 3,
        stem="paper",  # the pretrained one, at any size
    )
    try:
        backbone = build(cfg, pretrained=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"weights: timm:{name} cannot be had ({reason}); "
            "check the connection, or give a checkpoint file"
        ) from error
    made = timm.get_pretrained_cfg(name)
    normalize = Normalize(mean=tuple(made.mean), std=tuple(made.std)) if made else Normalize()
    return _loaded(backbone, cfg, normalize=normalize)


def _folder(path: Path, image_size: int | None, channels: int | None) -> Loaded:
    folder = path / "backbone" if (path / "backbone").is_dir() else path
    try:
        ours = json.loads((folder / CONFIG).read_text())["saccade"]
    except FileNotFoundError:
        raise ValueError(
            f"weights: {path} has no backbone/{CONFIG}; give the folder of a finished run"
        ) from None
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"weights: {folder / CONFIG} is not one saccade wrote") from None
    return _described(ours, folder / WEIGHTS, image_size, channels)


def _described(
    ours: dict[str, Any], file: Path, image_size: int | None, channels: int | None
) -> Loaded:
    """A file with its `describe` at hand."""
    cfg = from_dict(BackboneConfig, ours["backbone"], "backbone.")
    if channels is not None and channels != cfg.channels:
        raise ValueError(
            f"channels={channels}: {file} was trained on {cfg.channels}; give such pictures"
        )
    if image_size is not None and image_size != cfg.image_size:
        stem = "small" if has_small_stem(cfg) else "paper"
        cfg = replace(cfg, image_size=image_size, stem=stem)
    backbone = build(cfg)
    report = load_timm_state(backbone, _tensors(file))
    return _loaded(backbone, cfg, report, from_dict(Normalize, ours["normalize"], "normalize."))


def _file(path: Path, name: str, image_size: int | None, channels: int | None) -> Loaded:
    held = _tensors(path)
    ours = _notes(path).get("saccade")
    if ours:
        return _described(json.loads(ours), path, image_size, channels)
    if not name:
        raise ValueError(
            f"weights: {path} does not say its architecture; give backbone=NAME, such as resnet50"
        )
    size = image_size or native_size(name)
    cfg = BackboneConfig(name=name, image_size=size, channels=channels or 3, stem="paper")
    backbone = build(cfg)
    state, beyond = _strip(_unwrap(held, path), set(timm_state(backbone)), path)
    if "conv1.weight" in state and state["conv1.weight"].shape[-1] == 3:
        cfg = replace(cfg, stem="small")
        backbone = build(cfg)
    report = load_timm_state(backbone, state)
    return _loaded(backbone, cfg, replace(report, unexpected=(*report.unexpected, *beyond)))


def _notes(path: Path) -> dict[str, str]:
    """The header of a safetensors file."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, "pt") as opened:
        return opened.metadata() or {}


def _loaded(
    backbone: Backbone,
    cfg: BackboneConfig,
    report: Report | None = None,
    normalize: Normalize | None = None,
) -> Loaded:
    return Loaded(
        backbone=backbone,
        config=cfg,
        normalize=normalize or Normalize(),
        source="",
        report=report or Report(),
    )


def _tensors(path: Path) -> Any:
    """What a file holds: safetensors, or torch's format read with `weights_only`."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # in many old checkpoints
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"weights: {path} is not there") from None
    except pickle.UnpicklingError:
        raise ValueError(
            f"weights: {path} holds pickled code, which is never run; "
            "convert it to safetensors where you trust it"
        ) from None
    except (SafetensorError, RuntimeError, OSError, EOFError, KeyError) as error:
        raise ValueError(
            f"weights: {path} is cut short or no checkpoint ({type(error).__name__}); "
            "copy it again, or give safetensors or .pth"
        ) from None


def _unwrap(held: Any, path: Path) -> dict[str, Tensor]:
    for name in CONTAINERS:
        if isinstance(held, dict) and isinstance(held.get(name), dict):
            held = held[name]
    if isinstance(held, dict):
        state = {str(k): v for k, v in held.items() if isinstance(v, Tensor)}
        if state:
            return state
    raise ValueError(
        f"weights: {path} has no state dict this version can read; "
        "give a plain one, or one under state_dict or model"
    )


def _strip(
    state: dict[str, Tensor], known: set[str], path: Path
) -> tuple[dict[str, Tensor], list[str]]:
    """The entries under the prefix that fits most of the known keys, and the other keys."""
    fronts = ["".join(p) for n in range(4) for p in itertools.permutations(PREFIXES, n)]
    front = max(fronts, key=lambda f: sum(f + k in state for k in known))
    if not any(front + k in state for k in known):
        raise ValueError(
            f"weights: {path} has no key of this backbone (its first is {next(iter(state))}); "
            "give the name of the network it was made with"
        )
    inside = {k.removeprefix(front): v for k, v in state.items() if k.startswith(front)}
    return inside, [k for k in state if not k.startswith(front)]
