"""One safetensors file under timm's keys; its header says what `saccade.load` needs."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from ..backbones.timm_state import timm_state
from ..core import Backbone
from ..recipe import BackboneConfig, Normalize
from ..weights import describe, load, write_state
from .outputs import Reader, outputs

TOLERANCE = 1e-5


def write(backbone: Backbone, cfg: BackboneConfig, normalize: Normalize, out: Path) -> None:
    if out.suffix != ".safetensors":
        raise ValueError(f"setting out: {out} is for safetensors; name it {out.name}.safetensors")
    write_state(out, timm_state(backbone), saccade=json.dumps(describe(cfg, normalize)))


def read_back(out: Path) -> Reader:
    backbone = load(out).backbone

    def read(images: Tensor) -> dict[str, Tensor]:
        return outputs(backbone, images)

    return read
