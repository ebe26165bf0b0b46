"""What a run is made of, as plain frozen values. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2470, 0.2435, 0.2616)

LrRule = Literal["none", "linear-16", "linear-256", "linear-512", "sqrt-1024"]
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]  # each the name of its package
BatchNorm = Literal["frozen", "synchronized", "per-device"]


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    name: str = "resnet50"  # any timm name, or one of `saccade list backbones`
    image_size: int = 224  # pixels: sizes position tables and picks the stem
    channels: int = 3
    drop_path: float = 0.0  # stochastic depth of the trained network, teachers have none
    stem: Literal["auto", "small", "paper"] = "auto"  # small: 3x3, no pooling; auto: at <= 64 px
    layer: int | Literal["last", "middle"] = "last"  # whose features an iGPT gives


@dataclass(frozen=True, kw_only=True)
class Normalize:
    """Per channel, of pictures in [0, 1]."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate over the run: linear warm-up from 0, then a shape."""

    warmup_epochs: float = 0.0
    warmup_steps: int = 0  # on top of those epochs
    shape: Literal["cosine", "constant", "steps", "poly"] = "cosine"
    final_lr: float = 0.0  # what cosine and poly end at; not scaled by the batch
    drops: tuple[float, ...] = (0.6, 0.8)  # shares of the run at which `steps` multiplies by .1
    power: float = 0.9  # of the share of the run that is left, where `poly`
    per: Literal["step", "epoch"] = "step"  # how often the shape moves


@dataclass(frozen=True, kw_only=True)
class Optim:
    name: Literal["sgd", "adamw", "lars"] = "sgd"
    lr: float = 0.03
    lr_rule: LrRule = "linear-256"
    momentum: float = 0.9  # sgd, lars
    betas: tuple[float, float] = (0.9, 0.999)  # adamw
    weight_decay: float | tuple[float, float] = 1e-4  # a pair ramps along half a cosine
    decay_1d: bool = True  # decay biases and norm weights too (lars: adapt them too)
    trust: float = 0.001  # lars
    lr_in_buffer: bool = False  # lars: the TensorFlow form, learning rate inside the momentum
    clip: float = 0.0  # largest gradient norm; 0 never clips
    clip_by: Literal["all", "tensor"] = "all"
    schedule: Schedule = field(default_factory=Schedule)


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A packed copy of the pictures, made when first used."""

    folder: str = ""  # empty: none
    size: int = 0  # of the short side in pixels, never enlarged; 0 keeps pictures as they are
    format: Literal["auto", "raw", "jpeg"] = "auto"  # auto: raw up to 64x64 pixels, else files
    quality: int = 90  # of JPEG


@dataclass(frozen=True, kw_only=True)
class Engine:
    """How to run, apart from what to train. Only precision, and a cache's size, change results."""

    devices: int = 1  # ranks: GPUs, or processes on a CPU
    workers: int = 2  # threads that decode and augment, per rank
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # fp16: for GPUs without bf16
    accumulate: int = 1  # parts that a batch goes through the network in, to save memory
    activation_checkpointing: bool = False  # blocks compute their insides twice, for the same
    shard: bool = False  # ranks share weights, gradients and moments out among them
    compile: bool = False
    channels_last: bool = True  # for convolutional encoders
    cache: Cache = field(default_factory=Cache)
    memory_gb: float = 2.0  # decoded pictures kept in memory, per rank; 0 keeps none
    log_every: int = 10  # steps
    save_seconds: float = 60.0  # between checkpoints
    keep: int = 2  # checkpoints
    knn_every: int = 5  # epochs between online kNN figures where labels exist; 0 never
    track: tuple[Tracker, ...] = ()  # who else is told what metrics.jsonl is told


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A method's settings for one purpose. `method` is the method's own Config."""

    method: Any
    backbone: BackboneConfig
    optim: Optim
    epochs: int
    batch_size: int  # global: over all devices
    normalize: Normalize = Normalize()
    sync_batch_norm: bool = True  # over ranks; off where the paper keeps statistics per device
    source: str = ""  # where the numbers come from


@dataclass(frozen=True, kw_only=True)
class SystemRecipe:
    """A system's settings for one purpose. `system` is the system's own Config."""

    system: Any
    backbone: BackboneConfig
    optim: Optim
    epochs: int = 0
    steps: int = 0  # instead of epochs, where above 0
    batch_size: int  # global: over all devices
    normalize: Normalize = Normalize()
    batch_norm: BatchNorm = "synchronized"  # frozen: the encoder keeps its statistics and weights
    precise_steps: int = 0  # training batches that set the batch statistics anew at the end
    source: str = ""  # where the numbers come from


def scaled_lr(lr: float, rule: LrRule, batch_size: int) -> float:
    """Learning rate for a global batch size under a named rule."""
    match rule:
        case "linear-16":
            return lr * batch_size / 16
        case "linear-256":
            return lr * batch_size / 256
        case "linear-512":
            return lr * batch_size / 512
        case "sqrt-1024":
            return lr * (batch_size / 1024) ** 0.5
        case "none":
            return lr
