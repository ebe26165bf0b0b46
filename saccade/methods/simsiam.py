"""SimSiam: two views through one network; a predictor and a stopped gradient keep it alive.

Chen and He 2020, arXiv:2011.10566. With z = g(f(x)), p = h(z) and sg the stopped gradient,
    loss = -mean over images of (cos(p_1, sg z_2) + cos(p_2, sg z_1)) / 2, in [-1, 1].
No negatives, no moving average. The projector's last batch norm has no weights; every view passes
alone. The predictor keeps the peak learning rate through the schedule. `spread` is the standard
deviation of unit z times sqrt(D): near 1 when well, 0 when collapsed, and then the loss is -1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..core import Backbone, Clock, Group, Method, Step, View, Views
from ..nn.functional import feature_std
from ..nn.parts import biasless_mlp, mlp
from ..recipe import CIFAR_MEAN, CIFAR_STD, BackboneConfig, Normalize, Optim, Recipe, Schedule


class SimSiam(Method[Backbone]):
    additive = True
    remedy = "lower optim.lr, or choose byol: its slow teacher is steadier"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        dim: int = 2048  # of the projection and of the projector's hidden layers
        layers: int = 3  # of the projector
        bottleneck: int = 512  # hidden width of the predictor
        views: tuple[View, ...] = (View(count=2, crop=(0.2, 1.0)),)

    def __init__(self, cfg: Config, encoder: Backbone) -> None:
        super().__init__()
        if (n := sum(v.count for v in cfg.views)) != 2:
            raise ValueError(f"setting method.views: SimSiam compares 2 views, not {n}")
        self.cfg = cfg
        self.encoder = encoder
        self.projector = biasless_mlp(encoder.dim, *[cfg.dim] * cfg.layers, last_norm=True)
        self.predictor = mlp(cfg.dim, cfg.bottleneck, cfg.dim)

    def forward(self, batch: Views, clock: Clock) -> Step:
        a, b = batch.images
        h_a, h_b = self.encoder(a), self.encoder(b)  # [B, H]
        z_a, z_b = self.projector(h_a), self.projector(h_b)  # [B, D]
        p_a, p_b = self.predictor(z_a), self.predictor(z_b)
        loss = -(agreement(p_a, z_b) + agreement(p_b, z_a)) / 2
        return Step(loss, {"spread": feature_std(z_a)}, h_a.detach(), z_a.detach())

    def groups(self) -> Iterable[Group]:
        ours = [(n, p) for n, p in self.named_parameters() if p.requires_grad]
        for constant in (False, True):
            params = [(n, p) for n, p in ours if n.startswith("predictor.") == constant]
            yield Group(params, constant_lr=constant)


def agreement(p: Float[Tensor, "b d"], z: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Mean cosine; no gradient reaches z."""
    return F.cosine_similarity(p.float(), z.detach().float()).mean()


RECIPES = {
    "demo": Recipe(
        method=SimSiam.Config(
            dim=512,
            layers=2,
            bottleneck=128,
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
        optim=Optim(lr=0.12, weight_decay=5e-4),
        epochs=40,
        batch_size=128,
        source="ours: fruit differs by color, so hue is left alone and nothing is grayscaled",
    ),
    "small": Recipe(
        method=SimSiam.Config(layers=2, views=(View(count=2, size=32, crop=(0.2, 1.0), blur=0.0),)),
        backbone=BackboneConfig(name="resnet18", image_size=32, stem="small"),
        optim=Optim(lr=0.03, weight_decay=5e-4, schedule=Schedule(per="epoch")),
        epochs=800,
        batch_size=512,
        normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD),
        source="arXiv:2011.10566, appendix D, CIFAR-10: 91.8 % linear",
    ),
    "paper": Recipe(
        method=SimSiam.Config(),
        backbone=BackboneConfig(name="resnet50"),
        optim=Optim(lr=0.05, weight_decay=1e-4, schedule=Schedule(per="epoch")),
        epochs=100,
        batch_size=512,
        source="arXiv:2011.10566, official code: 68.1 % linear on ImageNet",
    ),
}
