"""Backbones to files and back: safetensors and JSON in timm's hub layout, no unsafe pickle.

WEIGHTS is a run folder, a folder of timm or transformers, a checkpoint file of any layout that
`layouts` knows, `timm:NAME` (timm's pretrained weights), `hf:OWNER/NAME`, or with `@REVISION` (a
model of the Hugging Face hub, of timm or transformers), or `random:NAME` (the control arm).
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import layouts
from .backbones import create, family
from .backbones.presets import OWN, PRESETS
from .backbones.timm_adapter import ViT, arguments, build, has_small_stem, native_size
from .backbones.timm_state import Report, load_timm_state, timm_state
from .config import from_dict, to_dict
from .core import Backbone
from .recipe import BackboneConfig, Normalize

CONFIG, WEIGHTS = "config.json", "model.safetensors"

HF_BIN, HF_PICTURES = "pytorch_model.bin", "preprocessor_config.json"

# Arguments of timm's constructors that change no feature, or that `BackboneConfig` says.
HARMLESS = {"img_size", "num_classes", "in_chans", "dynamic_img_size", "strict_img_size"}


@dataclass(frozen=True, kw_only=True)
class Loaded:
    backbone: Backbone  # in eval mode
    config: BackboneConfig  # what rebuilds it
    normalize: Normalize  # what its pictures went through
    source: str  # WEIGHTS as given
    report: Report  # keys that were not taken one to one
    layout: str = ""  # whose checkpoint it is
    part: str = ""  # which of its backbones this is
    others: tuple[str, ...] = ()  # the parts not taken


def load(
    weights: str | Path,
    *,
    backbone: str = "",
    part: str = "",
    image_size: int | None = None,
    channels: int | None = None,
    seed: int = 0,
) -> Loaded:
    """The backbone of WEIGHTS.

    `backbone` names the architecture where neither the file nor its shapes tell it, `part` chooses
    among several (teacher or student, ...), `image_size` and `channels` default to what the weights
    were made for, and `seed` draws the weights of `random:NAME`.
    """
    kind, _, name = str(weights).partition(":")
    path = Path(weights)
    if kind == "random" and name:
        found = _random(name, image_size, channels, seed)
    elif kind == "timm" and name:
        found = _pretrained(name, image_size, channels)
    elif kind == "hf" and name:
        found = _folder(_downloaded(name), backbone, part, image_size, channels)
    elif path.is_dir():
        found = _folder(path, backbone, part, image_size, channels)
    elif path.is_file():
        found = _file(path, backbone, part, image_size, channels)
    else:
        tip = f", such as timm:{path} or random:{path}" if timm.is_model(str(path)) else ""
        raise ValueError(
            f"weights: {str(weights)!r} is not there; give a run folder, a checkpoint file, "
            f"timm:NAME, hf:OWNER/NAME or random:NAME{tip}"
        )
    if part and part != found.part:
        raise ValueError(f"part={part}: {weights} holds one backbone; leave part out")
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
        "architecture": cfg.name if family(cfg.name) else name.partition(".")[0],
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


def control(loaded: Loaded, seed: int = 0) -> Loaded:
    """The same network for the same pictures with random weights: what any other must beat."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        backbone = create(loaded.config, loaded.normalize)
    backbone.eval()
    return replace(loaded, backbone=backbone, source=f"random:{loaded.config.name}")


def _random(name: str, image_size: int | None, channels: int | None, seed: int) -> Loaded:
    cfg = BackboneConfig(
        name=name, image_size=image_size or native_size(name), channels=channels or 3
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return _loaded(create(cfg), cfg)


def _pretrained(name: str, image_size: int | None, channels: int | None) -> Loaded:
    if name in PRESETS or name in OWN:
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


def _downloaded(name: str) -> Path:
    """The files of a model on the Hugging Face hub that are read here, in that library's cache."""
    from huggingface_hub import snapshot_download  # timm depends on it
    from huggingface_hub.errors import HFValidationError

    repo, _, revision = name.partition("@")
    wanted = [CONFIG, WEIGHTS, HF_BIN, HF_PICTURES]
    try:
        held = snapshot_download(repo, revision=revision or None, allow_patterns=wanted)
    except (OSError, HFValidationError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"weights: hf:{name} cannot be had ({reason}); "
            "check the name and the connection, or give a folder of its files"
        ) from error
    return Path(held)


def _folder(
    path: Path, name: str, part: str, image_size: int | None, channels: int | None
) -> Loaded:
    folder = path / "backbone" if (path / "backbone").is_dir() else path
    try:
        described = json.loads((folder / CONFIG).read_text())
    except FileNotFoundError:
        raise ValueError(
            f"weights: {path} has no backbone/{CONFIG}; give the folder of a finished run"
        ) from None
    except json.JSONDecodeError:
        described = None
    match described:
        case {"saccade": {"backbone": _, "normalize": _} as ours}:
            return _described(ours, folder / WEIGHTS, image_size, channels)
        case {"model_type": str()}:
            return _transformers(folder, described, name, part, image_size)
        case {"architecture": str(), "pretrained_cfg": dict()}:
            return _timm_hub(folder, described, image_size)
    raise ValueError(
        f"weights: {folder / CONFIG} is not one saccade wrote, nor timm's or transformers'"
    )


def _timm_hub(folder: Path, described: dict[str, Any], image_size: int | None) -> Loaded:
    made, name = described["pretrained_cfg"], described["architecture"]
    channels, size, _ = made.get("input_size") or (3, native_size(name), 0)
    cfg = BackboneConfig(name=name, image_size=image_size or size, channels=channels, stem="paper")
    normalize = Normalize(mean=tuple(made["mean"]), std=tuple(made["std"]))
    held = _tensors(folder / WEIGHTS)
    loaded = _checkpoint(layouts.find(held), folder / WEIGHTS, cfg, "", "timm hub", normalize)
    usual = loaded.backbone.net.global_pool if isinstance(loaded.backbone, ViT) else "avg"
    for setting, value in (described.get("model_args") or {}).items():
        if setting not in HARMLESS and not (setting == "global_pool" and value == usual):
            raise ValueError(
                f"weights: {folder / CONFIG} changes {setting} of {name}; only timm's own are read"
            )
    return loaded


def _transformers(
    folder: Path, described: dict[str, Any], name: str, part: str, image_size: int | None
) -> Loaded:
    file = folder / (WEIGHTS if (folder / WEIGHTS).exists() else HF_BIN)
    found = layouts.find(_tensors(file))
    name = name or _named(found, part, file)
    size = image_size or described.get("image_size") or native_size(name)
    channels = described.get("num_channels", 3)
    cfg = BackboneConfig(name=name, image_size=size, channels=channels, stem="paper")
    normalize = Normalize()
    if (folder / HF_PICTURES).exists():
        pictures = json.loads((folder / HF_PICTURES).read_text())
        mean, std = pictures.get("image_mean"), pictures.get("image_std")
        normalize = Normalize(mean=tuple(mean), std=tuple(std)) if mean and std else normalize
    loaded = _checkpoint(found, file, cfg, part, "transformers", normalize)
    heads = described.get("num_attention_heads")
    if isinstance(loaded.backbone, ViT) and heads not in (None, loaded.backbone.heads):
        raise ValueError(
            f"weights: {folder} has {heads} heads and {name} {loaded.backbone.heads}; "
            "give the name of the network it was made with"
        )
    if described.get("downsample_in_bottleneck"):
        raise ValueError(f"weights: {folder} has strides in its 1x1 convolutions; timm has not")
    return loaded


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
    normalize = from_dict(Normalize, ours["normalize"], "normalize.")
    backbone = create(cfg, normalize)
    report = load_timm_state(backbone, _tensors(file))
    return _loaded(backbone, cfg, report, normalize)


def _file(path: Path, name: str, part: str, image_size: int | None, channels: int | None) -> Loaded:
    held = _tensors(path)
    ours = _notes(path).get("saccade")
    if ours:
        return _described(json.loads(ours), path, image_size, channels)
    found = layouts.find(held)
    name = name or _named(found, part, path)
    size = image_size or native_size(name)
    cfg = BackboneConfig(name=name, image_size=size, channels=channels or 3, stem="paper")
    return _checkpoint(found, path, cfg, part, found.layout, _pictures(found))


def _named(found: layouts.Found, part: str, path: Path) -> str:
    """The architecture as the file calls it, or as its shapes show it."""
    if found.parts:
        shown = layouts.guess(layouts.choose(found, part).state, found.layout)
        for name in (found.arch, shown):
            if name in PRESETS or timm.is_model(name):
                return name
        raise ValueError(
            f"weights: {path} does not say its architecture; give backbone=NAME, such as resnet50"
        )
    if found.first:
        raise ValueError(
            f"weights: {path} holds no ResNet, ViT, Swin or ConvNeXt in a spelling known here "
            f"(its first key is {found.first})"
        )
    raise ValueError(
        f"weights: {path} has no state dict; give a checkpoint with the weights of a network"
    )


def _pictures(found: layouts.Found) -> Normalize:
    """timm's scripts feed what timm's table says; the others of the field ImageNet's statistics."""
    made = timm.get_pretrained_cfg(found.arch) if found.layout == "timm" else None
    return Normalize(mean=tuple(made.mean), std=tuple(made.std)) if made else Normalize()


def _checkpoint(
    found: layouts.Found,
    path: Path,
    cfg: BackboneConfig,
    part: str,
    layout: str,
    normalize: Normalize,
) -> Loaded:
    """One part of a file in a network of that name."""
    if not found.parts:
        _named(found, part, path)
    chosen = layouts.choose(found, part)
    if found.layout == "MoCo v3" and cfg.name == "vit_small_patch16_224":
        raise ValueError(
            f"backbone={cfg.name}: MoCo v3's has 12 heads; give vit_small_heads12_patch16_224"
        )
    if "conv1.weight" in chosen.state and chosen.state["conv1.weight"].shape[-1] == 3:
        cfg = replace(cfg, stem="small")
    backbone = build(cfg)
    report = load_timm_state(backbone, chosen.state)
    unexpected = (*report.unexpected, *chosen.beside, *found.beyond)
    loaded = _loaded(backbone, cfg, replace(report, unexpected=unexpected), normalize)
    others = tuple(p.name for p in found.parts if p is not chosen)
    return replace(loaded, layout=layout, part=chosen.name, others=others)


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
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        which = f" ({named[1]})" if named else ""
        raise ValueError(
            f"weights: {path} holds pickled code{which}, which is never run; "
            "convert it to safetensors where you trust it"
        ) from None
    except (SafetensorError, RuntimeError, OSError, EOFError, KeyError) as error:
        raise ValueError(
            f"weights: {path} is cut short or no checkpoint ({type(error).__name__}); "
            "copy it again, or give safetensors or .pth"
        ) from None
