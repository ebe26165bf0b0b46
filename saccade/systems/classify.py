"""A classifier: the encoder, perhaps the first layers of a pretrained head, and a linear layer.

With weights this is fine-tuning, without them supervised training on the same labels. With y the
label, smoothed and mixed with another picture's where asked for, and c = 1 or a guess's confidence,
    loss = mean_i -c_i y_i . log softmax(W s(W1 f(x_i)))        (s(W1 .) `head_layers` times)
As stage 2 of SimCLR v2, Chen et al. 2020, arXiv:2006.10029: `head_layers=1` starts from the first
layer of that method's head, behind its batch norm and ReLU, and trains it too; 0 starts from the
encoder. Its LARS and rates stand in the recipes `paper`; crops and flips only. The paper's 1 % and
10 % are two published lists; ours are drawn, as many of every class.
As stage 3 of deep metric transfer, Liu et al. 2018, arXiv:1812.08781: `labels.file` holds what
`saccade propagate` guessed, of which the surest `labels.ratio` train, all alike as in the released
code, or by their confidence (`labels.weighted`) as in the paper. Pictures are cropped at random
where that code pads them by 4 and crops; accuracy is that of the last epoch, not of the best.
`vit` is MAE's fine-tuning, He et al. 2022, arXiv:2111.06377, on the CLS token.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core import Augment, Backbone, Clock, Group, Labels, Lessons, Mix, Step, StrongSet, System
from ..nn.layers import numbered
from ..nn.mixing import erased, mixed, soft, soft_cross_entropy
from ..nn.parts import hidden_layers
from ..recipe import (
    CIFAR_MEAN,
    CIFAR_STD,
    BackboneConfig,
    Normalize,
    Optim,
    Schedule,
    SystemRecipe,
)

TABLES = ("pos_embed", "cls_token", "reg_token")  # which decay no more than vectors do


class Classify(System):
    domain = "classification"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        classes: tuple[str, ...] = ()  # names, taken from the data
        labels: Labels = field(default_factory=Labels)
        augment: Augment = field(default_factory=Augment)
        mix: Mix = field(default_factory=Mix)
        smoothing: float = 0.0  # of labels, over all classes
        head_layers: int = 0  # of a pretrained head, kept
        head_lr: float = 1.0  # times the rate, of the linear layer
        layer_decay: float = 1.0  # times the rate, for every layer further from the classifier

    def __init__(self, cfg: Config, encoder: Backbone) -> None:
        super().__init__()
        if len(cfg.classes) < 2:
            raise ValueError(
                f"setting system.classes: {list(cfg.classes)}; there must be 2 or more"
            )
        self.cfg = cfg
        self.encoder = encoder
        self.projector = hidden_layers(encoder.dim, cfg.head_layers)
        self.head = nn.Linear(encoder.dim, len(cfg.classes))
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: Lessons, clock: Clock) -> Step:
        cfg = self.cfg
        y = soft(batch.labels, len(cfg.classes), cfg.smoothing) * batch.weights[:, None]  # [B, K]
        x, y = mixed(erased(batch.images, cfg.mix.erase), y, cfg.mix.mixup, cfg.mix.cutmix)
        h = self.encoder(x)  # [B, D]
        logits = self.head(self.projector(h))
        hits = (logits.detach().argmax(1) == y.argmax(1)).float().mean()
        return Step(soft_cross_entropy(logits, y), {"accuracy": hits}, h.detach())

    @torch.no_grad()
    def predict(self, inputs: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Probabilities of the classes; the caller has put the system into evaluation mode."""
        return self.head(self.projector(self.encoder(inputs))).float().softmax(1)

    def groups(self) -> Iterable[Group]:
        cfg = self.cfg
        layer = numbered(n for n, _ in self.encoder.named_parameters())
        top = max(layer.values())
        if cfg.layer_decay < 1 and not top:
            raise ValueError(
                f"setting system.layer_decay={cfg.layer_decay}: the backbone has no blocks; set 1"
            )
        found: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
        for name, p in self.named_parameters():
            if not p.requires_grad:
                continue
            scale = cfg.head_lr if name.startswith("head.") else 1.0
            if name.startswith("encoder."):
                scale = cfg.layer_decay ** (top - layer[name.removeprefix("encoder.")])
            decay = 0.0 if name.endswith(TABLES) else 1.0
            found.setdefault((scale, decay), []).append((name, p))
        return [Group(params, lr_scale=s, decay_scale=d) for (s, d), params in found.items()]


def _simclr_v2(epochs: int, labels: Labels, head_layers: int, source: str) -> SystemRecipe:
    return SystemRecipe(
        system=Classify.Config(labels=labels, head_layers=head_layers),
        backbone=BackboneConfig(name="resnet50"),
        optim=Optim(
            name="lars",
            lr=0.16,
            lr_rule="none",
            weight_decay=0.0,
            decay_1d=False,
            lr_in_buffer=True,
        ),
        epochs=epochs,
        batch_size=1024,
        normalize=Normalize(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        source=source,
    )


PIXELS = Normalize(mean=CIFAR_MEAN, std=CIFAR_STD)
RECIPES = {
    "small": SystemRecipe(
        system=Classify.Config(augment=Augment(crop=(0.3, 1.0)), smoothing=0.1),
        backbone=BackboneConfig(name="resnet18", image_size=32, stem="small"),
        optim=Optim(
            lr=0.05,
            lr_rule="linear-256",
            weight_decay=5e-4,
            decay_1d=False,
            schedule=Schedule(warmup_epochs=1.0),
        ),
        epochs=60,
        batch_size=64,
        normalize=PIXELS,
        source="ours, for pictures of 32 pixels on a CPU, with weights or without",
    ),
    "paper": _simclr_v2(
        30, Labels(), 0, "SimCLR v2, arXiv:2006.10029, all labels: ResNet-50 76.3 % on ImageNet"
    ),
    "paper-10": _simclr_v2(
        30, Labels(share=0.1), 1, "SimCLR v2, arXiv:2006.10029: 68.4 % with 10 % of the labels"
    ),
    "paper-1": _simclr_v2(
        60, Labels(share=0.01), 1, "SimCLR v2, arXiv:2006.10029: 57.9 % with 1 % of the labels"
    ),
    "metric-transfer": SystemRecipe(
        system=Classify.Config(
            augment=Augment(crop=(0.5, 1.0)),
            labels=Labels(ratio=0.2),
        ),
        backbone=BackboneConfig(name="resnet18", image_size=32, stem="small"),
        optim=Optim(lr=0.01, lr_rule="none", weight_decay=5e-4, schedule=Schedule(final_lr=1e-5)),
        steps=500_000,
        batch_size=128,
        normalize=PIXELS,
        source="arXiv:1812.08781, CIFAR-10, 250 labels: 71.3 % by a WRN-28-2; crops and stem ours",
    ),
    "vit": SystemRecipe(
        system=Classify.Config(
            augment=Augment(strong=StrongSet(name="randaugment", magnitude=9.0)),
            mix=Mix(mixup=0.8, cutmix=1.0, erase=0.25),
            smoothing=0.1,
            layer_decay=0.65,
        ),
        backbone=BackboneConfig(name="vit_base_patch16_224", drop_path=0.1),
        optim=Optim(
            name="adamw",
            lr=5e-4,
            lr_rule="linear-256",
            weight_decay=0.05,
            decay_1d=False,
            schedule=Schedule(warmup_epochs=5.0, final_lr=1e-6),
        ),
        epochs=100,
        batch_size=1024,
        source="MAE, arXiv:2111.06377, ViT-B: 83.6 % on ImageNet from the mean patch token",
    ),
}
