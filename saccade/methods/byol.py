"""BYOL: predict what a slow copy of the network makes of another view; no negatives.

Grill et al. 2020, arXiv:2006.07733. The online network f, g, q meets the target network f', g'
across two views v, v' of an image:
    loss = mean over images of d(q(g(f(v))), g'(f'(v'))) + d(q(g(f(v'))), g'(f'(v))),
    d(a, b) = |a/|a| - b/|b||^2 = 2 - 2 cos(a, b).
The target is a moving average of the online parameters, with batch statistics of its own passes;
its momentum climbs to 1 with the steps, so a resumed run goes on where it stood. Every view passes
alone, so that batch norm never mixes views. The two rows of `views` are two different laws.
The loss starts near 4. Going to 0 within a hundred steps is collapse: then `spread`, 1 for
projections that fill all directions and 0 for a constant, goes to 0 too.

Heads end in a linear layer without bias, as in the official code; lightly and solo-learn keep that
bias. Official biases in front of a batch norm have no effect and are left out. Deviations: the
target starts as a copy (the official code draws another seed and saw no difference), brightness
multiplies where the official code adds, strided convolutions pad both sides alike where it pads the
far one more (its weights, a pickle of JAX arrays, are not read), the last norm of a residual block
starts at 0 (stabler; the paper's figures are with 1), and no linear probe trains along: online kNN
takes its place.
Below 64 images a device, batch statistics must span the devices: all recipes synchronize them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..core import Backbone, Clock, Method, Step, View, Views
from ..nn.functional import cosine_ramp, feature_std
from ..nn.parts import Ema, biasless_mlp, without_drop_path
from ..recipe import CIFAR_MEAN, CIFAR_STD, BackboneConfig, Normalize, Optim, Recipe, Schedule

COLOR = (0.4, 0.4, 0.2, 0.1)


class BYOL(Method[Backbone]):
    additive = True
    remedy = "keep method.predict=true and method.momentum near .99, or lower optim.lr"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 4096
        dim: int = 256
        momentum: float = 0.996  # at the start; 1 at the end; 0: the teacher is the student
        predict: bool = True  # without a predictor, and with momentum=0, it collapses
        views: tuple[View, ...] = (
            View(interpolation="bicubic", strength=COLOR, blur=1.0),
            View(interpolation="bicubic", strength=COLOR, blur=0.1, solarize=0.2),
        )

    def __init__(self, cfg: Config, encoder: Backbone) -> None:
        super().__init__()
        if (n := sum(v.count for v in cfg.views)) != 2:
            raise ValueError(f"setting method.views: BYOL compares 2 views, not {n}")
        self.cfg = cfg
        self.encoder = encoder
        self.projector = biasless_mlp(encoder.dim, cfg.hidden, cfg.dim, last_norm=False)
        predictor = biasless_mlp(cfg.dim, cfg.hidden, cfg.dim, last_norm=False)
        self.predictor = predictor if cfg.predict else nn.Identity()
        self.teacher = Ema(encoder)
        without_drop_path(self.teacher)
        self.teacher_projector = Ema(self.projector)

    def forward(self, batch: Views, clock: Clock) -> Step:
        a, b = batch.images
        h_a, h_b = self.encoder(a), self.encoder(b)  # [B, H]
        q_a = self.predictor(self.projector(h_a))  # [B, D]
        q_b = self.predictor(self.projector(h_b))
        z_a = self.teacher_projector(self.teacher(a))
        z_b = self.teacher_projector(self.teacher(b))
        loss = distance(q_a, z_b) + distance(q_b, z_a)
        return Step(loss, {"spread": feature_std(z_a)}, h_a.detach(), z_a)

    def after_update(self, clock: Clock) -> None:
        momentum = cosine_ramp(self.cfg.momentum, 1.0, clock.progress)
        self.teacher.update(self.encoder, momentum)
        self.teacher_projector.update(self.projector, momentum)


def distance(q: Float[Tensor, "b d"], z: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Mean squared distance between directions, in [0, 4]."""
    return (2 - 2 * F.cosine_similarity(q.float(), z.float(), eps=1e-6)).mean()


RECIPES = {
    "demo": Recipe(
        method=BYOL.Config(
            hidden=512,
            dim=128,
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
        method=BYOL.Config(
            hidden=1024,
            momentum=0.99,
            views=(View(count=2, size=32, strength=(0.4, 0.4, 0.4, 0.1), blur=0.0),),
        ),
        backbone=BackboneConfig(name="resnet18", image_size=32, stem="small"),
        optim=Optim(lr=0.12, weight_decay=5e-4),
        epochs=800,
        batch_size=512,
        normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD),
        source="lightly, CIFAR-10: 91.0 % kNN; its momentum stays at .99, ours climbs to 1",
    ),
    "paper": Recipe(
        method=BYOL.Config(),
        backbone=BackboneConfig(name="resnet50"),
        optim=Optim(
            name="lars",
            lr=0.2,
            weight_decay=1.5e-6,
            decay_1d=False,
            schedule=Schedule(warmup_epochs=10.0),
        ),
        epochs=1000,
        batch_size=4096,
        source="arXiv:2006.07733, official presets: 74.3 % linear on ImageNet",
    ),
}
