"""Backbones in other libraries' formats, each proved by that library reading it back.

A format is a file with `TOLERANCE`, `write(backbone, cfg, normalize, out)` and
`read_back(out) -> Reader`.
"""

from __future__ import annotations

import copy
import importlib
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ..config import suggest
from ..errors import RunError
from ..weights import Loaded, load, write_json
from .outputs import outputs

FORMATS = {  # name: file
    "timm": "timm",
    "torchvision": "torchvision",
    "hf": "hf",
    "state-dict": "state_dict",
    "onnx": "onnx",
}


@dataclass(frozen=True, kw_only=True)
class Proof:
    """How far the target library's outputs are from ours, at most, on the same pictures."""

    format: str
    max_difference: float
    tolerance: float
    largest: float  # absolute value among the numbers compared
    pictures: int
    compared: tuple[str, ...]  # vector, tokens


def export(
    weights: str | Loaded, format: str, out: Path, pictures: Float[Tensor, "n c H W"]
) -> Proof:
    """Write a backbone to `out`, have the target library read it, and store what it measured.

    `pictures` are normalized. The proof stands in `export.json` in the folder `out`, or in
    `OUT.export.json` beside a file. Above the tolerance it is not stored, and RunError is raised.
    """
    if format not in FORMATS:
        raise ValueError(f"setting format: unknown format {format!r}{suggest(format, FORMATS)}")
    loaded = load(weights) if isinstance(weights, str) else weights
    backbone = copy.deepcopy(loaded.backbone).cpu().eval()
    target = importlib.import_module(f".{FORMATS[format]}", __name__)
    out.parent.mkdir(parents=True, exist_ok=True)
    target.write(backbone, loaded.config, loaded.normalize, out)
    with torch.no_grad():
        theirs = target.read_back(out)(pictures.cpu())
        ours = outputs(backbone, pictures.cpu())
    proof = Proof(
        format=format,
        max_difference=max(float((theirs[k] - ours[k]).abs().max()) for k in theirs),
        tolerance=target.TOLERANCE,
        largest=max(float(ours[k].abs().max()) for k in theirs),
        pictures=len(pictures),
        compared=tuple(theirs),
    )
    if not proof.max_difference <= proof.tolerance:
        raise RunError(
            f"export: {format} gives outputs {proof.max_difference:.1e} away from ours, more than "
            f"{proof.tolerance:.0e}; do not use {out}"
        )
    write_json(proof_path(out), asdict(proof))
    return proof


def proof_path(out: Path) -> Path:
    """Where the proof of an export is stored."""
    return out / "export.json" if out.is_dir() else out.with_name(f"{out.name}.export.json")
