"""SimCLR: tell the other view of an image from every other view in the batch.

Chen et al. 2020, arXiv:2002.05709. For unit projections z of 2N views of N images,
    loss = mean_i -log( exp(z_i.z_p(i)/t) / sum_{k != i} exp(z_i.z_k/t) ).
N counts the images of all ranks. This is the paper's mean over 2N rows; the official code adds the
two directions and so reports twice as much. The head follows the official code: batch norm after
both layers, the last one without shift. Pictures are not normalized.
Not the same as the official TensorFlow code: torchvision's brightness multiplies and its contrast
pulls towards the mean gray, blur reaches 3 sigma where theirs has a tenth of the side, and
convolutions pad evenly on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..core import Backbone, Clock, Method, Step, View, Views
from ..nn.dist import gather, rank
from ..nn.functional import similarity
from ..nn.parts import mlp
from ..recipe import BackboneConfig, Normalize, Optim, Recipe, Schedule

PIXELS = Normalize(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # as they are


class SimCLR(Method[Backbone]):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 2048
        dim: int = 128
        temperature: float = 0.1
        views: tuple[View, ...] = (
            View(count=2, interpolation="bicubic", strength=(0.8, 0.8, 0.8, 0.2)),
        )

    def __init__(self, cfg: Config, encoder: Backbone) -> None:
        super().__init__()
        if (n := sum(v.count for v in cfg.views)) != 2:
            raise ValueError(f"setting method.views: SimCLR compares 2 views, not {n}")
        self.cfg = cfg
        self.encoder = encoder
        self.projector = mlp(encoder.dim, cfg.hidden, cfg.dim, norm="all")
        for layer in self.projector:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)

    def forward(self, batch: Views, clock: Clock) -> Step:
        b = len(batch.index)
        h = self.encoder(torch.cat(batch.images))  # [2B, H] one pass: batch norm sees both views
        z = F.normalize(self.projector(h).float(), dim=-1)  # [2B, D]
        own = rank() * 2 * b + torch.arange(2 * b, device=z.device)  # [2B] this rank's columns
        partner = own.roll(b)
        logits = similarity(z, gather(z)) / self.cfg.temperature  # [2B, 2N]
        logits = logits.scatter(1, own[:, None], -torch.inf)
        loss = F.cross_entropy(logits, partner)

        cosine = logits.detach().gather(1, partner[:, None]) * self.cfg.temperature
        hits = logits.detach().argmax(1) == partner
        logs = {"accuracy": hits.float().mean(), "positive": cosine.mean()}
        return Step(loss, logs, h[:b].detach())


RECIPES = {
    "demo": Recipe(
        method=SimCLR.Config(
            hidden=512,
            temperature=0.2,
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
        method=SimCLR.Config(
            temperature=0.5,
            views=(
                View(
                    count=2,
                    size=32,
                    interpolation="bicubic",
                    strength=(0.4, 0.4, 0.4, 0.1),
                    blur=0.0,
                ),
            ),
        ),
        backbone=BackboneConfig(name="resnet18", image_size=32, stem="small"),
        optim=Optim(
            name="lars",
            lr=1.0,
            weight_decay=1e-4,
            decay_1d=False,
            lr_in_buffer=True,
            schedule=Schedule(warmup_epochs=10.0),
        ),
        epochs=1000,
        batch_size=512,
        normalize=PIXELS,
        source="official README, CIFAR-10: about 91 % linear",
    ),
    "paper": Recipe(
        method=SimCLR.Config(),
        backbone=BackboneConfig(name="resnet50"),
        optim=Optim(
            name="lars",
            lr=0.3,
            weight_decay=1e-6,
            decay_1d=False,
            lr_in_buffer=True,
            schedule=Schedule(warmup_epochs=10.0),
        ),
        epochs=1000,
        batch_size=4096,
        normalize=PIXELS,
        source="arXiv:2002.05709, section 2 and appendix B: 69.3 % linear on ImageNet",
    ),
}
