"""A folder for `transformers.ImageGPTForCausalImageModeling`, with its processor's settings.

There the start is the row of the embedding behind the colors: feed [512, x_0, ..., x_{n-2}] for the
scores of x_0, ..., x_{n-1}. With `labels`, transformers shifts again and leaves one pixel out of
its loss: take the cross-entropy of its logits instead. `hidden_states[l]` comes before the norm
that layer l ends in here; the last one behind it. Its processor resizes to 256 unless told, and
where two colors are equally near its search is decided by rounding: the proof feeds our tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backbones.igpt import EPSILON, IGPT
from ..nn.palette import nearest
from ..recipe import BackboneConfig, Normalize
from ..weights import describe, write_json, write_state
from .outputs import Reader, without_progress

MODEL = "imagegpt"
BILINEAR = 2  # Pillow's number


def write(backbone: IGPT, cfg: BackboneConfig, normalize: Normalize, out: Path) -> None:
    if not backbone.causal:
        raise ValueError(
            f"setting format: transformers masks every ImageGPT and {cfg.name} sees all pixels; "
            "use format state-dict"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_state(out / "model.safetensors", renamed(backbone))
    write_json(out / "preprocessor_config.json", processor(backbone))
    write_json(out / "config.json", config(backbone) | {"saccade": describe(cfg, normalize)})


def is_one(out: Path) -> bool:
    """Whether `write` left this folder."""
    return json.loads((out / "config.json").read_text())["model_type"] == MODEL


def read_back(out: Path) -> Reader:
    try:
        from transformers import ImageGPTForCausalImageModeling
    except ImportError:
        raise ValueError("setting format: hf needs pip install 'saccade[hf]'") from None
    with without_progress():
        net: Any = ImageGPTForCausalImageModeling.from_pretrained(str(out))
    net.eval()
    made = json.loads((out / "config.json").read_text())
    mean, std = (torch.tensor(made["saccade"]["normalize"][k]) for k in ("mean", "std"))
    clusters = json.loads((out / "preprocessor_config.json").read_text())["clusters"]
    layer = made["layer"]

    def read(images: Tensor) -> dict[str, Tensor]:
        pixels = 2 * (images.permute(0, 2, 3, 1) * std + mean) - 1  # [B, H, W, 3]
        tokens = nearest(pixels.flatten(0, 2), torch.tensor(clusters)).view(len(images), -1)
        start = torch.full_like(tokens[:, :1], len(clusters))
        states = net(
            torch.cat([start, tokens[:, :-1]], 1), output_hidden_states=True, use_cache=False
        ).hidden_states
        y = states[layer]
        if layer < made["n_layer"]:
            y = net.transformer.h[layer].ln_1(y)
        return {"vector": y.mean(1)}

    return read


def config(backbone: IGPT) -> dict[str, Any]:
    """transformers' ImageGPTConfig, and the layer whose features these are."""
    return {
        "architectures": ["ImageGPTForCausalImageModeling"],
        "model_type": MODEL,
        "vocab_size": len(backbone.palette) + 1,
        "n_positions": len(backbone.positions),
        "n_embd": backbone.dim,
        "n_layer": backbone.depth,
        "n_head": backbone.heads,
        "n_inner": 4 * backbone.dim,
        "activation_function": "quick_gelu",
        "layer_norm_epsilon": EPSILON,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": False,
        "layer": backbone.layer,
    }


def processor(backbone: IGPT) -> dict[str, Any]:
    """transformers' ImageGPTImageProcessor."""
    return {
        "image_processor_type": "ImageGPTImageProcessor",
        "do_resize": True,
        "size": {"height": backbone.image_size, "width": backbone.image_size},
        "resample": BILINEAR,
        "do_normalize": True,
        "do_color_quantize": True,
        "clusters": backbone.palette.tolist(),
    }


def renamed(backbone: IGPT) -> dict[str, Tensor]:
    """The weights under transformers' keys, with biases of zero."""
    assert backbone.start is not None
    found = {
        "transformer.wte.weight": torch.cat([backbone.embed.weight, backbone.start[None]]),
        "transformer.wpe.weight": backbone.positions,
        "transformer.ln_f.weight": backbone.norm.weight,
        "lm_head.weight": backbone.output.weight,
    }
    for i, block in enumerate(backbone.blocks):
        at = f"transformer.h.{i}"
        for ours, theirs in (("norm1", "ln_1"), ("norm2", "ln_2")):
            found[f"{at}.{theirs}.weight"] = block.get_parameter(f"{ours}.weight")
        for ours, theirs in (
            ("attn.qkv", "attn.c_attn"),
            ("attn.proj", "attn.c_proj"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
        ):
            weight = block.get_parameter(f"{ours}.weight").T  # theirs is x W + b
            found[f"{at}.{theirs}.weight"] = weight
            found[f"{at}.{theirs}.bias"] = torch.zeros(weight.shape[1])
    return found
