"""A state dict for torchvision's ResNets, which have timm's keys, without the classifier."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model

from ..backbones.presets import OWN
from ..backbones.timm_adapter import has_small_stem
from ..backbones.timm_state import timm_state
from ..core import Backbone
from ..recipe import BackboneConfig, Normalize
from ..weights import write_state
from .outputs import Reader

TOLERANCE = 1e-5
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def write(backbone: Backbone, cfg: BackboneConfig, normalize: Normalize, out: Path) -> None:
    name = cfg.name.partition(".")[0]
    reason = ""
    if name not in RESNETS:
        reason = f"has no {cfg.name} with timm's weights, only {', '.join(RESNETS)}"
    elif has_small_stem(cfg):
        reason = "has no ResNet with the small stem"
    elif cfg.channels != 3:
        reason = f"has no ResNet for {cfg.channels} channels"
    if reason:
        other = "hf" if cfg.name in OWN else "onnx"
        raise ValueError(f"setting format: torchvision {reason}; use format state-dict or {other}")
    write_state(out, timm_state(backbone), architecture=name)


def read_back(out: Path) -> Reader:
    with safe_open(out, "pt") as opened:
        name = opened.metadata()["architecture"]
    net = get_model(name, weights=None)
    net.fc = nn.Identity()
    net.load_state_dict(load_file(out))
    net.eval()

    def read(images: Tensor) -> dict[str, Tensor]:
        return {"vector": net(images)}

    return read
