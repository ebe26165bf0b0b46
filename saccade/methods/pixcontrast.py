"""PixContrast: tell the cells that show the same spot from the other cells of the other crop.

Xie et al. 2021, arXiv:2011.10043, section 3.1. x_i are unit projections of the cells of a map, x'_j
those of the other view of the same image by the averaged network. P_i holds the cells j within
`threshold` cell diagonals of cell i in the picture, and j runs over all cells of the other view:
    l_i = -log( sum_{j in P_i} exp(x_i.x'_j / t) / sum_j exp(x_i.x'_j / t) ),
    loss = mean over images of the mean of l_i over cells i that have positives, of both directions.
Negatives come from the same image only; there is no queue. A pair of crops that do not meet counts
as 0. The official repository holds no PixContrast: projector, average and views are those of its
PixPro, t = .3 is from memory, and the mean of the two directions is our reading. Places are shares
of the picture's sides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core import Backbone, Clock, Method, Step, View, Views
from ..nn.functional import cosine_ramp, feature_std
from ..nn.parts import Ema, pixel_mlp, without_drop_path
from ..nn.pixels import bin_distances, cells
from ..recipe import BackboneConfig, Optim, Recipe, Schedule

COLOR = (0.4, 0.4, 0.2, 0.1)


class PixContrast(Method[Backbone]):
    additive = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 4096
        dim: int = 256
        temperature: float = 0.3
        threshold: float = 0.7  # diagonals of a cell
        momentum: float = 0.99  # at the start; 1 at the end
        views: tuple[View, ...] = (
            View(strength=COLOR, blur=1.0),
            View(strength=COLOR, blur=0.1, solarize=0.2),
        )

    def __init__(self, cfg: Config, encoder: Backbone) -> None:
        super().__init__()
        each = [v for v in cfg.views for _ in range(v.count)]
        if len(each) != 2 or len({v.size for v in each}) != 1:
            sizes = ", ".join(str(v.size) for v in each)
            raise ValueError(
                "setting method.views: PixContrast compares 2 views of one size, not of "
                f"{sizes} pixels"
            )
        if any(v.strong.name != "none" for v in each):
            raise ValueError(
                "setting method.views: strong operations move what a cell shows; set"
                " strong.name=none"
            )
        self.cfg = cfg
        self.encoder = encoder
        self.projector = pixel_mlp(encoder.dim, cfg.hidden, cfg.dim)
        self.teacher = Ema(encoder)
        without_drop_path(self.teacher)
        self.teacher_projector = Ema(self.projector)

    def forward(self, batch: Views, clock: Clock) -> Step:
        a, b = batch.images
        h_a, h_b = self.encoder.features(a), self.encoder.features(b)  # [B, H, h, w]
        x_a, x_b = cells(self.projector(h_a)), cells(self.projector(h_b))  # [B, N, D]
        with torch.no_grad():
            k_a, k_b = (self.teacher.module.features(x) for x in (a, b))
            z_a, z_b = cells(self.teacher_projector(k_a)), cells(self.teacher_projector(k_b))
            boxes, flips = batch.boxes, batch.flips
            grid = (h_a.shape[-2], h_a.shape[-1])
            apart = bin_distances((boxes[0], boxes[1]), (flips[0], flips[1]), grid)
            near = apart <= self.cfg.threshold  # [B, N, N]
        t = self.cfg.temperature
        loss = (contrast(x_a, z_b, near, t) + contrast(x_b, z_a, near.mT, t)) / 2
        pairs = near.float().sum((1, 2)).mean()
        compared = z_a.flatten(0, 1)  # [B N, D]
        logs = {"spread": feature_std(compared), "pairs": pairs}
        return Step(loss, logs, h_a.detach().mean((2, 3)), compared)

    def after_update(self, clock: Clock) -> None:
        momentum = cosine_ramp(self.cfg.momentum, 1.0, (clock.step + 1) / clock.total)
        self.teacher.update(self.encoder, momentum)
        self.teacher_projector.update(self.projector, momentum)


def contrast(
    x: Float[Tensor, "b n d"], z: Float[Tensor, "b n d"], near: Bool[Tensor, "b n n"], t: float
) -> Float[Tensor, ""]:
    """The loss of one direction."""
    with torch.autocast(x.device.type, enabled=False):
        logits = x @ z.mT / t  # [B, N, N]
    met = near.any(-1)  # [B, N]
    positives = near | ~met[..., None]  # a cell without any: its loss is exactly 0
    each = logits.logsumexp(-1) - logits.masked_fill(~positives, -torch.inf).logsumexp(-1)
    return (each.sum(-1) / met.sum(-1).clamp_min(1)).mean()


RECIPES = {
    "demo": Recipe(
        method=PixContrast.Config(
            hidden=512,
            dim=128,
            views=(
                View(
                    count=2,
                    size=48,
                    crop=(0.2, 1.0),
                    strength=(0.4, 0.4, 0.2, 0.02),
                    grayscale=0.0,
                    blur=0.0,
                ),
            ),
        ),
        backbone=BackboneConfig(name="resnet10_w16", image_size=48, stem="small"),
        optim=Optim(
            lr=0.12, weight_decay=5e-4, decay_1d=False, schedule=Schedule(warmup_epochs=3.0)
        ),
        epochs=20,
        batch_size=128,
        source="ours: maps of 6 x 6, hue left alone as fruit differs by color; not tuned",
    ),
    "small": Recipe(
        method=PixContrast.Config(
            hidden=1024,
            views=(
                View(size=96, crop=(0.2, 1.0), strength=COLOR, blur=1.0),
                View(size=96, crop=(0.2, 1.0), strength=COLOR, blur=0.1, solarize=0.2),
            ),
        ),
        backbone=BackboneConfig(name="resnet18", image_size=96, stem="small"),
        optim=Optim(lr=0.06, weight_decay=5e-4, schedule=Schedule(warmup_epochs=10.0)),
        epochs=400,
        batch_size=256,
        source="ours, for STL-10 and Imagenette: maps of 12 x 12; nothing is published, not tuned",
    ),
    "paper": Recipe(
        method=PixContrast.Config(),
        backbone=BackboneConfig(name="resnet50"),
        optim=Optim(
            name="lars",
            lr=1.0,
            weight_decay=1e-5,
            decay_1d=False,
            schedule=Schedule(warmup_epochs=5.0, final_lr=1e-6),
        ),
        epochs=100,
        batch_size=1024,
        source="arXiv:2011.10043 with PixPro's settings: about 58.1 AP on VOC, from memory",
    ),
}
