"""A student that learns a teacher's answers on pictures without labels.

Stage 3 of SimCLR v2, Chen et al. 2020, arXiv:2006.10029. With P(x; t) = softmax(logits(x) / t) of a
trained classifier T and the student S on the same augmented picture,
    loss = a t^2 mean_x -P_T(x; t) . log P_S(x; t) + (1 - a) mean over labeled x of CE.
t^2 keeps the gradient's size, as in the official code. a = 1, the default, uses no labels at all.
The teacher is a run of `classify` or `distill`: frozen, in evaluation mode, no part of the state.
Self-training has a student of the teacher's size, t = .1, which sharpens, from the pretrained
weights (`--weights`); a small student of a big teacher t = 1, from scratch. The paper first lets a
big teacher teach itself. Crops and flips only; all pictures of the data, labeled or not.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import Augment, Backbone, Clock, Labels, Lessons, Step, System
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

LEAST = 1e-30  # probability of a teacher, instead of 0


class Distill(System):
    domain = "distillation"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        classes: tuple[str, ...] = ()  # names, taken from the teacher
        teacher: str = ""  # run folder of a trained `classify` or `distill`
        temperature: float = 1.0
        alpha: float = 1.0  # weight of the teacher's answers; the rest is that of labels
        labels: Labels = field(default_factory=Labels)  # that count where alpha is below 1
        augment: Augment = field(default_factory=Augment)
        head_layers: int = 0  # of a pretrained head, kept

    def __init__(self, cfg: Config, encoder: Backbone) -> None:
        super().__init__()
        if not 0 <= cfg.alpha <= 1 or cfg.temperature <= 0:
            raise ValueError(
                f"setting system: alpha={cfg.alpha} must be in 0..1 and "
                f"temperature={cfg.temperature} above 0"
            )
        self.cfg = cfg
        self.encoder = encoder
        self.projector = hidden_layers(encoder.dim, cfg.head_layers)
        self.head = nn.Linear(encoder.dim, len(cfg.classes))
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: Lessons, clock: Clock) -> Step:
        assert batch.taught is not None
        h = self.encoder(batch.images)  # [B, D]
        logits = self.head(self.projector(h)).float()
        answers = distillation(logits, batch.taught, self.cfg.temperature)
        loss = self.cfg.alpha * answers
        if self.cfg.alpha < 1:
            loss = loss + (1 - self.cfg.alpha) * labeled(logits, batch.labels)
        same = (logits.detach().argmax(1) == batch.taught.argmax(1)).float().mean()
        return Step(loss, {"agreement": same}, h.detach())

    @torch.no_grad()
    def predict(self, inputs: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Probabilities of the classes; the caller has put the system into evaluation mode."""
        return self.head(self.projector(self.encoder(inputs))).float().softmax(1)


def distillation(
    logits: Float[Tensor, "b k"], taught: Float[Tensor, "b k"], temperature: float
) -> Float[Tensor, ""]:
    """Cross-entropy from the teacher's probabilities at a temperature, times its square."""
    target = (taught.clamp_min(LEAST).log() / temperature).softmax(1).detach()
    return temperature**2 * F.cross_entropy(logits / temperature, target)


def labeled(logits: Float[Tensor, "b k"], labels: Int[Tensor, "b"]) -> Float[Tensor, ""]:
    """Cross-entropy, averaged over the pictures that have a label; 0 where none has."""
    total = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
    return total / (labels >= 0).sum().clamp_min(1)


def _paper(temperature: float, source: str) -> SystemRecipe:
    return SystemRecipe(
        system=Distill.Config(temperature=temperature),
        backbone=BackboneConfig(name="resnet50"),
        optim=Optim(
            name="lars",
            lr=6.4,
            lr_rule="none",
            weight_decay=1e-4,
            decay_1d=False,
            lr_in_buffer=True,
            schedule=Schedule(warmup_epochs=20.0),
        ),
        epochs=400,
        batch_size=4096,
        normalize=Normalize(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        source=source,
    )


RECIPES = {
    "small": SystemRecipe(
        system=Distill.Config(augment=Augment(crop=(0.3, 1.0))),
        backbone=BackboneConfig(name="resnet18", image_size=32, stem="small"),
        optim=Optim(
            lr=0.05,
            lr_rule="linear-256",
            weight_decay=5e-4,
            decay_1d=False,
            schedule=Schedule(warmup_epochs=1.0),
        ),
        epochs=60,
        batch_size=128,
        normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD),
        source="ours, for pictures of 32 pixels on a CPU",
    ),
    "paper": _paper(
        1.0, "arXiv:2006.10029, ResNet-50 of a large teacher: 73.9 % with 1 %, 77.5 % with 10 %"
    ),
    "paper-self": _paper(0.1, "arXiv:2006.10029: a student of the teacher's size"),
}
