"""A folder for `timm.create_model("local-dir:FOLDER", pretrained=True)`."""

from __future__ import annotations

from pathlib import Path

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..backbones import family
from ..backbones.presets import OWN
from ..backbones.timm_adapter import has_small_stem
from ..core import Backbone
from ..recipe import BackboneConfig, Normalize
from ..weights import save_backbone
from .outputs import Reader

TOLERANCE = 1e-5


def write(backbone: Backbone, cfg: BackboneConfig, normalize: Normalize, out: Path) -> None:
    if family(cfg.name):
        other = "hf" if cfg.name in OWN else "onnx"
        raise ValueError(
            f"setting format: timm has no {cfg.name}; use format state-dict or {other}"
        )
    if has_small_stem(cfg):
        raise ValueError(
            "setting format: timm has no ResNet with the small stem; use format state-dict or "
            "onnx, or pretrain with backbone.stem=paper"
        )
    save_backbone(out, backbone, cfg, normalize, {})


def read_back(out: Path) -> Reader:
    net = timm.create_model(f"local-dir:{out}", pretrained=True).eval()

    def read(images: Tensor) -> dict[str, Tensor]:
        found = {"vector": net(images)}
        if isinstance(net, VisionTransformer) and isinstance(net.fc_norm, nn.Identity):
            found["tokens"] = net.forward_features(images)
        return found

    return read
