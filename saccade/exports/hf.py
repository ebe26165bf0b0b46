"""A folder for `transformers.ViTModel.from_pretrained`, with its picture processor's settings.

Transformers over colors go to `imagegpt`.

The keys are those that versions 4 and 5 of transformers read and write.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones import family
from ..backbones.igpt import IGPT
from ..backbones.timm_adapter import ViT
from ..backbones.timm_state import timm_state
from ..core import Backbone
from ..recipe import BackboneConfig, Normalize
from ..weights import write_json, write_state
from . import imagegpt
from .outputs import Reader, without_progress

TOLERANCE = 1e-5
BICUBIC = 3  # Pillow's number

OUTSIDE = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
INSIDE = {  # of a block
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def write(backbone: Backbone, cfg: BackboneConfig, normalize: Normalize, out: Path) -> None:
    if isinstance(backbone, IGPT):
        imagegpt.write(backbone, cfg, normalize, out)
        return
    if not isinstance(backbone, ViT):
        other = "state-dict" if family(cfg.name) else "timm"
        raise ValueError(
            f"setting format: hf takes plain ViTs and {cfg.name} is none; "
            f"use format {other} or onnx"
        )
    state = renamed(backbone, cfg.name)  # first: it refuses what `config` cannot describe
    out.mkdir(parents=True, exist_ok=True)
    write_state(out / "model.safetensors", state)
    write_json(out / "preprocessor_config.json", processor(cfg, normalize))
    write_json(out / "config.json", config(backbone))


def read_back(out: Path) -> Reader:
    if imagegpt.is_one(out):
        return imagegpt.read_back(out)
    try:
        from transformers import ViTModel
    except ImportError:
        raise ValueError("setting format: hf needs pip install 'saccade[hf]'") from None
    with without_progress():
        net: Any = ViTModel.from_pretrained(str(out), add_pooling_layer=False)
    net.eval()

    def read(images: Tensor) -> dict[str, Tensor]:
        tokens = net(pixel_values=images).last_hidden_state  # [B, 1 + N, D]
        return {"vector": tokens[:, 0], "tokens": tokens}

    return read


def config(backbone: ViT) -> dict[str, Any]:
    """transformers' ViTConfig."""
    block: Any = backbone.net.blocks[0]
    return {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "hidden_size": backbone.dim,
        "num_hidden_layers": len(backbone.net.blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "hidden_act": "gelu",
        "layer_norm_eps": block.norm1.eps,
        "image_size": backbone.image_size,
        "patch_size": backbone.patch,
        "num_channels": backbone.channels,
        "qkv_bias": block.attn.qkv.bias is not None,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def processor(cfg: BackboneConfig, normalize: Normalize) -> dict[str, Any]:
    """transformers' ViTImageProcessor."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": cfg.image_size, "width": cfg.image_size},
        "resample": BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": normalize.mean,
        "image_std": normalize.std,
    }


def renamed(backbone: ViT, name: str) -> dict[str, Tensor]:
    """The weights under transformers' keys; a part its ViT lacks raises ValueError."""
    found: dict[str, Tensor] = {}
    for key, value in timm_state(backbone).items():
        for new, part in _places(key, value, name):
            found[new] = part
    _check(backbone, name)
    if backbone.placed == 0:  # no position for CLS is a position of zero
        table = found["embeddings.position_embeddings"]
        found["embeddings.position_embeddings"] = torch.cat([table[:, :1] * 0, table], 1)
    return found


def _places(key: str, value: Tensor, name: str) -> list[tuple[str, Tensor]]:
    module, _, leaf = key.rpartition(".")
    if key in OUTSIDE:
        return [(OUTSIDE[key], value)]
    if module in OUTSIDE:
        return [(f"{OUTSIDE[module]}.{leaf}", value)]
    if module.startswith("blocks."):
        _, number, inside = module.split(".", 2)
        at = f"encoder.layer.{number}"
        if inside == "attn.qkv":
            parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
            return [(f"{at}.attention.attention.{part}.{leaf}", v) for part, v in parts]
        if inside in INSIDE:
            return [(f"{at}.{INSIDE[inside]}.{leaf}", value)]
    raise _unlike(name, key)


def _check(backbone: ViT, name: str) -> None:
    block: Any = backbone.net.blocks[0]
    if backbone.net.cls_token is None:
        raise _unlike(name, "no CLS token")
    if not (isinstance(block.mlp.act, nn.GELU) and block.mlp.act.approximate == "none"):
        raise _unlike(name, type(block.mlp.act).__name__)
    if not isinstance(backbone.net.fc_norm, nn.Identity):
        raise _unlike(name, "a norm after pooling")


def _unlike(name: str, what: str) -> ValueError:
    return ValueError(
        f"setting format: {name} has {what} and transformers' ViT does not; use format timm or onnx"
    )
