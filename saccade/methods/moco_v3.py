"""MoCoV3: contrast predicted queries with a slow copy's keys of the same batch, without a queue.

Chen et al. 2021, arXiv:2104.02057. With queries q = predictor(projector(encoder(x))) and keys k of
the averaged projector and encoder, all of unit length, for the two views x_1, x_2 of N images:
    loss = ctr(q_1, k_2) + ctr(q_2, k_1),
    ctr(q, k) = 2t mean_i -log( exp(q_i.k_i/t) / sum_j exp(q_i.k_j/t) ), j over images of all ranks.
The factor 2t belongs to the loss: without it the learning rate would mean something else. Every
view passes alone. The average moves with momentum from m to 1 along half a cosine, before the keys
of the next step, as in the official code. It keeps batch statistics of its own passes.

A plain transformer gets fixed sine-cosine positions, and the projection of its patches stays as
drawn (`freeze_patches`): training it makes the run unstable, which shows as dips of the online kNN.
Its layers start as the official code starts them: Xavier, queries, keys and values apart. Heads:
transformers have a three-layer projector and a norm at the end of the predictor, ResNets two
layers and none. The official ViT-S has 12 heads where timm's has 6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..core import Backbone, Clock, Method, PatchBackbone, Step, View, Views
from ..nn.dist import gather_frozen, rank
from ..nn.functional import cosine_ramp, similarity
from ..nn.parts import Ema, biasless_mlp, without_drop_path
from ..nn.positions import sincos_2d
from ..recipe import CIFAR_MEAN, CIFAR_STD, BackboneConfig, Normalize, Optim, Recipe, Schedule

COLOR = (0.4, 0.4, 0.2, 0.1)


class MoCoV3(Method[Backbone]):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 4096
        dim: int = 256
        layers: int = 3  # of the projector
        predictor_norm: bool = True  # at its end
        temperature: float = 0.2
        momentum: float = 0.99  # at the start; 1 at the end
        freeze_patches: bool = True  # the projection of patches, where there is one
        views: tuple[View, ...] = (
            View(strength=COLOR, blur=1.0),
            View(strength=COLOR, blur=0.1, solarize=0.2),
        )

    def __init__(self, cfg: Config, encoder: Backbone) -> None:
        super().__init__()
        if (n := sum(v.count for v in cfg.views)) != 2:
            raise ValueError(f"setting method.views: MoCoV3 compares 2 views, not {n}")
        self.cfg = cfg
        self.encoder = encoder
        if isinstance(encoder, PatchBackbone):
            start(encoder)
            encoder.projection().requires_grad_(not cfg.freeze_patches)
        widths = (encoder.dim, *[cfg.hidden] * (cfg.layers - 1), cfg.dim)
        self.projector = biasless_mlp(*widths, last_norm=True)
        self.predictor = biasless_mlp(cfg.dim, cfg.hidden, cfg.dim, last_norm=cfg.predictor_norm)
        self.teacher = Ema(encoder)
        without_drop_path(self.teacher)
        self.teacher_projector = Ema(self.projector)

    def forward(self, batch: Views, clock: Clock) -> Step:
        a, b = batch.images
        h_a, h_b = self.encoder(a), self.encoder(b)  # [B, H]
        q_a = self.predictor(self.projector(h_a))  # [B, D]
        q_b = self.predictor(self.projector(h_b))
        k_a = self.teacher_projector(self.teacher(a))
        k_b = self.teacher_projector(self.teacher(b))
        (one, hits), (two, _) = self.contrast(q_a, k_b), self.contrast(q_b, k_a)
        return Step(one + two, {"accuracy": hits}, h_a.detach())

    def contrast(
        self, q: Float[Tensor, "b d"], k: Float[Tensor, "b d"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The loss of one direction, and the share of queries whose nearest key is their own."""
        t = self.cfg.temperature
        keys = gather_frozen(F.normalize(k.float(), dim=-1))  # [N, D]
        logits = similarity(F.normalize(q.float(), dim=-1), keys) / t  # [B, N]
        own = rank() * len(q) + torch.arange(len(q), device=q.device)
        hits = (logits.detach().argmax(1) == own).float().mean()
        return 2 * t * F.cross_entropy(logits, own), hits

    def after_update(self, clock: Clock) -> None:
        momentum = cosine_ramp(self.cfg.momentum, 1.0, (clock.step + 1) / clock.total)
        self.teacher.update(self.encoder, momentum)
        self.teacher_projector.update(self.projector, momentum)


@torch.no_grad()
def start(encoder: PatchBackbone) -> None:
    """Fixed positions and the official code's first weights."""
    encoder.fix_positions(sincos_2d(encoder.grid, encoder.dim))
    for layer in encoder.modules():
        if isinstance(layer, nn.Linear):
            joint = 3 if layer.out_features == 3 * layer.in_features else 1  # q, k, v in one
            xavier(layer.weight, layer.in_features + layer.out_features // joint)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    pixels = encoder.channels * encoder.patch**2
    for p in encoder.projection().parameters():
        xavier(p, pixels + encoder.dim) if p.ndim > 1 else nn.init.zeros_(p)


def xavier(weight: Tensor, fans: int) -> None:
    """Uniform draws for a layer with that many inputs and outputs together."""
    nn.init.uniform_(weight, -math.sqrt(6 / fans), math.sqrt(6 / fans))


RECIPES = {
    "demo": Recipe(
        method=MoCoV3.Config(
            hidden=512,
            dim=128,
            layers=2,
            predictor_norm=False,
            momentum=0.98,
            views=(
                View(
                    count=2,
                    size=64,
                    crop=(0.2, 1.0),
                    strength=(0.4, 0.4, 0.2, 0.02),
                    grayscale=0.0,
                    blur=0.0,
                ),
            ),
        ),
        backbone=BackboneConfig(name="resnet10_w32", image_size=64, stem="paper"),
        optim=Optim(
            lr=0.24, weight_decay=5e-4, decay_1d=False, schedule=Schedule(warmup_epochs=3.0)
        ),
        epochs=40,
        batch_size=128,
        source="ours: fruit differs by color, so hue is left alone and nothing is grayscaled",
    ),
    "small": Recipe(
        method=MoCoV3.Config(
            layers=2,
            predictor_norm=False,
            views=(
                View(size=32, interpolation="bicubic", strength=COLOR, blur=0.0),
                View(size=32, interpolation="bicubic", strength=COLOR, blur=0.0, solarize=0.2),
            ),
        ),
        backbone=BackboneConfig(name="resnet18", image_size=32, stem="small"),
        optim=Optim(
            name="lars",
            lr=0.3,
            weight_decay=1e-6,
            decay_1d=False,
            trust=0.02,
            schedule=Schedule(warmup_epochs=10.0),
        ),
        epochs=1000,
        batch_size=256,
        normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD),
        source="solo-learn, CIFAR-10: 93.1 % linear; it also clips the LARS rate, we do not",
    ),
    "paper": Recipe(
        method=MoCoV3.Config(),
        backbone=BackboneConfig(name="vit_small_patch16_224"),
        optim=Optim(
            name="adamw", lr=1.5e-4, weight_decay=0.1, schedule=Schedule(warmup_epochs=40.0)
        ),
        epochs=300,
        batch_size=4096,
        source="arXiv:2104.02057, ViT-S: 72.5 % linear on ImageNet",
    ),
    "resnet": Recipe(
        method=MoCoV3.Config(
            layers=2,
            predictor_norm=False,
            temperature=1.0,
            momentum=0.996,
            views=(
                View(crop=(0.2, 1.0), strength=COLOR, blur=1.0),
                View(crop=(0.2, 1.0), strength=COLOR, blur=0.1, solarize=0.2),
            ),
        ),
        backbone=BackboneConfig(name="resnet50"),
        optim=Optim(
            name="lars",
            lr=0.3,
            weight_decay=1.5e-6,
            decay_1d=False,
            schedule=Schedule(warmup_epochs=10.0),
        ),
        epochs=1000,
        batch_size=4096,
        source="arXiv:2104.02057, ResNet-50: 74.6 % linear on ImageNet",
    ),
}
