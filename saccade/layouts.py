"""Checkpoints of the field: which backbones a file holds, and their keys in timm's names.

Nothing is assumed about a file: wherever a dict holds the first keys of a ResNet, ViT, Swin or
ConvNeXt, in timm's or another library's spelling, there is a backbone. A file with several (query
and key encoder, student and teacher, weights and their average) has several parts.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .backbones.presets import PRESETS

# Dicts of tensors that belong to the training, not to a network.
TRAINING = re.compile(r"optim|sched|scaler|callback|loops|^amp")
DEPTH = 6  # dicts inside dicts

# Names on the way to a backbone that do not say which of several it is.
COMMON = {"module", "model", "backbone", "net", "network", "state_dict", "_feature_blocks"}
COMMON |= {"_orig_mod", "vit", "resnet", "dinov2", "deit", "model_state_dict"}
PLAIN = {"module", "net", "network", "_orig_mod", "_feature_blocks", "vit", "resnet"}
CALLED = {"state_dict_ema": "ema", "model_ema": "ema", "state_dict": "model"}

# Which part is taken unless the user says otherwise: what each paper evaluates.
PREFERRED = ("teacher", "ema", "encoder_q", "base_encoder", "online_encoder", "target_encoder")
PREFERRED += ("encoder", "backbone", "trunk", "model")


# Keys beside CAE's encoder: what it calls a teacher there is the encoder of the step before.
CAE = ("regresser.", "pretext_neck.")

# Regular expressions and what stands in their place, one after the other.
Renames = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]


@dataclass(frozen=True, slots=True)
class Dialect:
    """A library's spelling: the two keys it is known by, and what turns its keys into timm's."""

    first: str
    second: str
    renames: Renames = ()


@dataclass(frozen=True, slots=True)
class Part:
    """One backbone of a file."""

    name: str  # teacher, encoder_q, ema, ...
    front: str  # dicts, each with /, then the start of its keys
    state: dict[str, Tensor]  # under timm's names
    beside: tuple[str, ...]  # keys of the same dict that are in no part


@dataclass(frozen=True, slots=True)
class Found:
    """What a checkpoint holds."""

    layout: str  # whose
    parts: tuple[Part, ...]  # the preferred one first
    beyond: tuple[str, ...]  # keys of dicts without a part; those of the training are left out
    first: str  # key of the file, for errors
    arch: str  # what the training script called its network, or ""


_HF_BLOCKS: Renames = (
    (r"^(encoder\.)?layers?\.(\d+)\.", r"blocks.\2."),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"attention\.attention\.(q|k|v)(uery|ey|alue)\.", r"attn.\1."),
    (r"attention\.(q|k|v)_proj\.", r"attn.\1."),
    (r"attention\.(output\.dense|o_proj)", "attn.proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
    (r"^layernorm\.", "norm."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^embeddings\.", ""),
    (r"mlp\.weights_in\.", "mlp.fc1."),
    (r"mlp\.weights_out\.", "mlp.fc2."),
)
_DINOV2: Renames = (
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # chunks of blocks, as FSDP trains them
    (r"^register_tokens$", "reg_token"),
    (r"mlp\.w12\.", "mlp.fc1."),
    (r"mlp\.w3\.", "mlp.fc2."),
)
_SWIN: Renames = (  # timm's stages start with what others end in
    (r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample"),
)
_HF_RESNET: Renames = (
    (r"^embedder\.embedder\.convolution", "conv1"),
    (r"^embedder\.embedder\.normalization", "bn1"),
    (r"^encoder\.stages\.(\d)\.layers\.", lambda m: f"layer{int(m[1]) + 1}."),
    (r"shortcut\.convolution", "downsample.0"),
    (r"shortcut\.normalization", "downsample.1"),
    (r"layer\.(\d)\.convolution", lambda m: f"conv{int(m[1]) + 1}"),
    (r"layer\.(\d)\.normalization", lambda m: f"bn{int(m[1]) + 1}"),
)
_MM: Renames = (
    (r"^patch_embed\.projection", "patch_embed.proj"),
    (r"^layers\.", "blocks."),
    (r"^(blocks\.\d+\.)?ln(\d)\.", lambda m: f"{m[1]}norm{m[2]}." if m[1] else "norm."),
    (r"ffn\.layers\.0\.0\.", "mlp.fc1."),
    (r"ffn\.layers\.1\.", "mlp.fc2."),
    (r"\.gamma(\d)\.weight", r".ls\1.gamma"),
)
_TORCHVISION: Renames = (
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_", "blocks."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"self_attention\.in_proj_", "attn.qkv."),
    (r"self_attention\.out_proj\.", "attn.proj."),
    (r"mlp\.(0|linear_1)\.", "mlp.fc1."),
    (r"mlp\.(3|linear_2)\.", "mlp.fc2."),
)
_PATCHES = "embeddings.patch_embeddings.projection.weight"
DIALECTS = (
    Dialect("conv1.weight", "layer1.0.conv1.weight"),
    Dialect("conv1.0.weight", "layer1.0.conv1.weight"),
    Dialect("patch_embed.proj.weight", "blocks.0.norm1.weight", _DINOV2[1:]),
    Dialect("patch_embed.proj.weight", "blocks.0.0.norm1.weight", _DINOV2),
    Dialect("patch_embed.proj.weight", "layers.0.downsample.norm.weight", _SWIN),
    Dialect("patch_embed.proj.weight", "layers.0.blocks.0.norm1.weight"),
    Dialect("stem.0.weight", "stages.0.blocks.0.norm.weight"),
    Dialect("patch_embed.projection.weight", "layers.0.ln1.weight", _MM),
    Dialect(_PATCHES, "encoder.layer.0.layernorm_before.weight", _HF_BLOCKS),
    Dialect(_PATCHES, "layers.0.layernorm_before.weight", _HF_BLOCKS),
    Dialect(_PATCHES, "encoder.layer.0.norm1.weight", _HF_BLOCKS),
    Dialect(_PATCHES, "layers.0.norm1.weight", _HF_BLOCKS),
    Dialect(
        "embedder.embedder.convolution.weight",
        "encoder.stages.0.layers.0.layer.0.convolution.weight",
        _HF_RESNET,
    ),
    Dialect("conv_proj.weight", "encoder.layers.encoder_layer_0.ln_1.weight", _TORCHVISION),
)

# Whose checkpoint it is: keys of the file, and the front of the part; the first that fits.
LAYOUTS: tuple[tuple[str, set[str], str], ...] = (
    ("VISSL", {"classy_state_dict"}, ""),
    ("DINO", {"student", "teacher"}, "^(student|teacher)/"),
    ("DINOv2", {"teacher"}, r"^teacher/(module\.)?backbone\."),
    ("MoCo v3", {"state_dict"}, r"(base|momentum)_encoder\.$"),
    ("MoCo", {"state_dict"}, r"encoder_[qk]\.$"),
    ("I-JEPA", {"encoder", "target_encoder"}, "^(target_)?encoder/"),
    ("SwAV", {"module.prototypes.weight"}, r"^module\.$"),
    ("PyContrast", {"model", "contrast"}, r"^model(_ema)?/(module\.)?encoder\.$"),
    ("PixPro or PIC", {"model", "opt"}, r"encoder(_k)?\.$"),
    ("mmpretrain", {"state_dict", "meta"}, r"^state_dict/backbone\.$"),
    ("solo-learn", {"state_dict", "hyper_parameters"}, r"/(momentum_)?(backbone|encoder)\.$"),
    ("Lightning", {"state_dict", "pytorch-lightning_version"}, ""),
    ("timm", {"state_dict", "arch"}, r"^state_dict(_ema)?/$"),
    ("MAE", {"model"}, "^model/$"),
    ("plain", set(), "^$"),
)

VITS = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large"}
VITS |= {(1280, 32): "huge", (1536, 40): "giant"}
RESNETS: dict[tuple[int, ...], str] = {  # blocks of each stage, convolutions of a block
    (2, 2, 2, 2, 2): "resnet18",
    (3, 4, 6, 3, 2): "resnet34",
    (3, 4, 6, 3, 3): "resnet50",
    (3, 4, 23, 3, 3): "resnet101",
    (3, 8, 36, 3, 3): "resnet152",
}


def find(held: Any) -> Found:
    """Every backbone in what a file holds; no parts where there is none."""
    states = list(_states(held, ()))
    parts: list[Part] = []
    beyond: list[str] = []
    for path, state in states:
        inside = _fronts(state)
        fronts = tuple(inside)
        beside = [k for k in state if not (fronts and k.startswith(fronts))]
        parts += [_part(path, f, d, state, beside) for f, d in inside.items()]
        beyond += [] if inside else ["/".join((*path, k)) for k in beside]
    parts = _told_apart(sorted(parts, key=_rank))
    first = next((k for _, state in states for k in state), "")
    layout = _layout(held, parts[0].front) if parts else ""
    return Found(layout, tuple(parts), tuple(beyond), first, _arch(held))


def choose(found: Found, part: str) -> Part:
    """The part of that name; without a name, the preferred one."""
    if not part:
        return found.parts[0]
    for each in found.parts:
        if part == each.name:
            return each
    names = ", ".join(p.name for p in found.parts)
    raise ValueError(f"part={part}: the file has no such part; choose from {names}")


def guess(state: Mapping[str, Tensor], layout: str = "") -> str:
    """The backbone whose shapes these are, or "" for one that has no name here.

    The number of heads leaves no trace in shapes: it is the usual one, 64 channels a head, but for
    MoCo v3's ViT-S, which has 12 heads.
    """
    if "layer1.0.conv1.weight" in state:
        return _guess_resnet(state)
    if "patch_embed.proj.weight" not in state or "blocks.0.norm1.weight" not in state:
        return ""
    dim, _, patch, _ = state["patch_embed.proj.weight"].shape
    depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))
    shared = "rel_pos_bias.relative_position_bias_table" in state  # one table for all blocks
    for name, preset in PRESETS.items():
        shape = tuple(preset.changes.get(k) for k in ("embed_dim", "depth", "patch_size"))
        same = shape == (dim, depth, patch) and preset.timm.startswith("beit") == shared
        if same and preset.changes["num_heads"] * 64 == dim:
            return name
    size = VITS.get((dim, depth), "")
    if "blocks.0.attn.relative_position_bias_table" in state:
        return f"beit_{size}_patch{patch}_224" if size else ""
    if layout == "MoCo v3" and size == "small":
        return "vit_small_heads12_patch16_224"
    if size and "blocks.0.ls1.gamma" in state:
        if (name := f"vit_{size}_layerscale_patch{patch}_224") in PRESETS:  # CAE's
            return name
        registers = "_reg4" if "reg_token" in state else ""
        return f"vit_{size}_patch{patch}{registers}_dinov2"
    return f"vit_{size}_patch{patch}_224" if size else ""


def _guess_resnet(state: Mapping[str, Tensor]) -> str:
    stages = [{k.split(".")[1] for k in state if k.startswith(f"layer{i}.")} for i in range(1, 5)]
    blocks = [len(s) for s in stages]
    convolutions = 3 if "layer1.0.conv3.weight" in state else 2
    widths = [state[f"layer{i}.0.conv1.weight"].shape[0] for i in range(1, 5) if stages[i - 1]]
    plain = widths == [64, 128, 256, 512] and "conv1.weight" in state
    middle = state.get("layer1.0.conv2.weight")  # none where another layer stands there
    grouped = middle is None or middle.shape[1] != 64
    return RESNETS.get((*blocks, convolutions), "") if plain and not grouped else ""


def _states(
    held: Any, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every dict with tensors in it, and the way there."""
    if not isinstance(held, Mapping) or len(path) > DEPTH:
        return
    own = {str(k): v for k, v in held.items() if isinstance(v, Tensor)}
    if own:
        yield path, own
    for name, inner in held.items():
        if not TRAINING.search(str(name)):
            yield from _states(inner, (*path, str(name)))


def _fronts(state: dict[str, Tensor]) -> dict[str, Dialect]:
    """The start of the keys of each backbone in one dict."""
    found: dict[str, Dialect] = {}
    for dialect in DIALECTS:
        for key in state:
            front = key.removesuffix(dialect.first)
            whole = front != key and (not front or front.endswith("."))
            if whole and front + dialect.second in state:
                found.setdefault(front, dialect)
    return found


def _part(
    path: tuple[str, ...], front: str, dialect: Dialect, state: dict[str, Tensor], beside: list[str]
) -> Part:
    way = [*path, *front.split(".")[:-1]]
    telling = [w for w in way if w not in COMMON]
    last = telling[-1] if telling else next((w for w in reversed(way) if w not in PLAIN), "model")
    inside = {k.removeprefix(front): v for k, v in state.items() if k.startswith(front)}
    start = "".join(f"{p}/" for p in path) + front
    return Part(CALLED.get(last, last), start, _translated(inside, dialect), tuple(beside))


def _translated(state: dict[str, Tensor], dialect: Dialect) -> dict[str, Tensor]:
    """The same weights under timm's names, queries, keys and values in one matrix."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        for pattern, new in dialect.renames:
            key = re.sub(pattern, new, key)
        found[key] = value
    for key in [k for k in found if ".attn.q." in k]:
        three = [found.pop(key.replace(".attn.q.", f".attn.{x}.")) for x in "qkv"]
        found[key.replace(".attn.q.", ".attn.qkv.")] = torch.cat(three)
    if not any("relative_position" in key for key in found):
        found = _without_key_bias(found)
    return _without_class_row(found)


def _without_key_bias(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of BEiT's blocks with plain positions, as CAE has them: timm's ViTs have biases of keys."""
    state = {re.sub(r"\.gamma_(\d)$", r".ls\1.gamma", k): v for k, v in state.items()}
    for key in [k for k in state if k.endswith(".attn.q_bias")]:
        front, q = key.removesuffix("q_bias"), state.pop(key)
        state[front + "qkv.bias"] = torch.cat([q, torch.zeros_like(q), state.pop(front + "v_bias")])
    return state


def _without_class_row(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's ViTs with registers have no position for CLS: it moves into the token itself."""
    table, cls = state.get("pos_embed"), state.get("cls_token")
    if "reg_token" not in state or table is None or cls is None:
        return state
    side = round((table.shape[1] - 1) ** 0.5)
    if side * side != table.shape[1] - 1:
        return state
    return state | {"cls_token": cls + table[:, :1], "pos_embed": table[:, 1:]}


def _layout(held: Mapping[str, Any], front: str) -> str:
    for name, beside, pattern in LAYOUTS:
        if beside <= set(held) and re.search(pattern, front):
            return name
    return "other"


def _told_apart(parts: list[Part]) -> list[Part]:
    """A part whose name is taken is called by the dict it lies in."""
    found: list[Part] = []
    for part in parts:
        if part.name in {p.name for p in found}:
            outer = part.front.partition("/")[0]
            part = replace(part, name=CALLED.get(outer, outer))
        found.append(part)
    return found


def _rank(part: Part) -> int:
    last = len(PREFERRED)
    if part.name == "teacher" and any(k.startswith(CAE) for k in part.beside):
        return last
    return PREFERRED.index(part.name) if part.name in PREFERRED else last


def _arch(held: Any) -> str:
    """What the training script called its network."""
    if not isinstance(held, Mapping):
        return ""
    scripts = [held.get(k) for k in ("args", "opt")]
    places = [held, *(vars(s) for s in scripts if isinstance(s, argparse.Namespace))]
    names = [p.get(k) for p in places for k in ("arch", "model")]
    return next((n for n in names if isinstance(n, str)), "")
