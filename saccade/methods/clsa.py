"""CLSA: a strongly changed view reproduces how a weakly changed one compares with everything.

Wang and Qi 2022, arXiv:2104.07713. On MoCo's networks, with unit queries x of weak (w) and strong
(s) views, the keys k of all N images of this step and a queue of K past keys,
    z(x) = [x.k_1 ... x.k_N | x.queue],   p_w = softmax(z(w) / t') without gradient,
    loss = sum_w CE(z(w) / t, own key) + a sum_w sum_s -p_w . log softmax(z(s) / t'),
each term a mean over images: sums over views, for which the rates are tuned, not means. Unlike
MoCo, the keys of other images in the batch are negatives too; no key, nor p_w, has a gradient.
The first picture of `views` is the key's; rows with a strong set are strong, the others weak. A
strong view is a crop of its own, smaller in `paper`, changed weakly first and strongly last. Crops
pass the query network one at a time.

The official label of a query is its local index; ours is the one among all ranks. The official
log(softmax) underflows; ours is log_softmax in float32. Its symmetric branch, which its authors
mark as unverified, is not here. `paper-multi` sees 5.5 pictures of 224 pixels beside the key.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..core import Backbone, Clock, Method, Step, StrongSet, View, Views
from ..nn.dist import gather_frozen, rank, shuffle, unshuffle, world
from ..nn.functional import similarity
from ..nn.norm import split
from ..nn.parts import Ema, Queue, mlp
from ..nn.random import uniform
from ..recipe import CIFAR_MEAN, CIFAR_STD, BackboneConfig, Normalize, Optim, Recipe, Schedule

ORDER = ("jitter", "grayscale", "blur", "flip", "solarize", "strong")
STRONG = StrongSet(name="clsa", count=5)
SIZES = (  # of the five crops of `paper-multi`: pixels, and range of area
    (224, (0.2, 1.0)),
    (192, (0.172, 0.86)),
    (160, (0.143, 0.715)),
    (128, (0.114, 0.571)),
    (96, (0.086, 0.429)),
)


class CLSA(Method[Backbone]):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 2048
        dim: int = 128
        queue_size: int = 65536  # a multiple of the keys of one step
        momentum: float = 0.999
        temperature: float = 0.2
        target_temperature: float = 0.2  # of both distributions
        alpha: float = 1.0  # weight of what strong views learn
        splits: int = 1  # shares of a device's batch with batch statistics of their own
        views: tuple[View, ...] = (
            View(count=2, crop=(0.2, 1.0), order=ORDER),
            View(size=96, crop=(0.086, 0.429), strong=STRONG, order=ORDER),
        )

    def __init__(self, cfg: Config, encoder: Backbone) -> None:
        super().__init__()
        strong = [v.strong.name != "none" for v in cfg.views for _ in range(v.count)]
        if len(strong) < 2 or strong[0] or all(strong[1:]):
            raise ValueError(
                "setting method.views: CLSA needs a key and a weak query, the key first, "
                f"and here the strong ones are {strong}"
            )
        self.cfg = cfg
        self.strong = strong[1:]  # of each query
        self.encoder = encoder
        if cfg.splits > 1:
            split(self.encoder, cfg.splits)
        self.projector = mlp(encoder.dim, cfg.hidden, cfg.dim, norm="none")
        self.key_encoder = Ema(self.encoder)
        self.key_projector = Ema(self.projector)
        self.queue = Queue(cfg.queue_size, cfg.dim)
        self.fresh: Tensor | None = None  # keys of this step: they join the queue after its update

    def forward(self, batch: Views, clock: Clock) -> Step:
        cfg = self.cfg
        keys = self.keys(batch)  # [N, D]
        self.fresh = keys
        against = torch.cat([keys, self.queue.rows])  # [N + K, D]
        weak, strong, h = [], [], []
        for x, hard in zip(batch.images[1:], self.strong, strict=True):
            h.append(self.encoder(x))
            z = similarity(F.normalize(self.projector(h[-1]).float(), dim=-1), against)
            (strong if hard else weak).append(z)  # [B, N + K]
        b = len(batch.index)
        own = rank() * b + torch.arange(b, device=keys.device)  # [B] among the keys of all ranks
        loss = torch.stack([F.cross_entropy(z / cfg.temperature, own) for z in weak]).sum()
        hits = (weak[0].detach().argmax(1) == own).float().mean()
        logs = {"accuracy": hits}
        if strong:
            divergence = diverge(weak, strong, cfg.target_temperature)
            loss, logs["divergence"] = loss + cfg.alpha * divergence, divergence.detach()
        return Step(loss, logs, h[self.strong.index(False)].detach())

    @torch.no_grad()
    def keys(self, batch: Views) -> Float[Tensor, "n d"]:
        """Keys of all ranks; batch statistics do not give them away."""
        x = batch.images[0]
        if world() == 1 and self.cfg.splits == 1:  # one batch has one set of statistics
            return self.key(x)
        order = uniform(gather_frozen(batch.key), 1, "shuffle")[:, 0].argsort(stable=True)
        return unshuffle(self.key(shuffle(x, order)), order)

    def key(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b d"]:
        return F.normalize(self.key_projector(self.key_encoder(x)).float(), dim=-1)

    def enqueue(self) -> None:
        """Move this step's keys into the queue: after its backward pass, which reads the queue."""
        if self.fresh is not None:
            self.queue.push(self.fresh)
            self.fresh = None

    def after_update(self, clock: Clock) -> None:
        self.enqueue()
        self.key_encoder.update(self.encoder, self.cfg.momentum)
        self.key_projector.update(self.projector, self.cfg.momentum)


def diverge(
    weak: list[Float[Tensor, "b n"]], strong: list[Float[Tensor, "b n"]], temperature: float
) -> Float[Tensor, ""]:
    """Cross-entropy from each weak distribution, a constant, to each strong one, summed."""
    p = torch.stack([(z.detach() / temperature).softmax(1) for z in weak]).sum(0)  # [B, N + K]
    log_p = torch.stack([(z / temperature).log_softmax(1) for z in strong]).sum(0)
    return -(p * log_p).sum(1).mean()


RECIPES = {
    "demo": Recipe(
        method=CLSA.Config(
            hidden=512,
            queue_size=2048,
            momentum=0.99,
            splits=4,
            views=(
                View(
                    count=2,
                    size=64,
                    crop=(0.2, 1.0),
                    strength=(0.4, 0.4, 0.2, 0.02),
                    grayscale=0.0,
                    blur=0.0,
                    order=ORDER,
                ),
                View(
                    size=32,
                    crop=(0.086, 0.429),
                    strength=(0.4, 0.4, 0.2, 0.02),
                    grayscale=0.0,
                    blur=0.0,
                    strong=STRONG,
                    order=ORDER,
                ),
            ),
        ),
        backbone=BackboneConfig(name="resnet10_w32", image_size=64, stem="paper"),
        optim=Optim(lr=0.06, weight_decay=5e-4, schedule=Schedule(warmup_epochs=5.0)),
        epochs=40,
        batch_size=128,
        sync_batch_norm=False,
        source="ours: fruit differs by color, so hue is left alone and nothing is grayscaled",
    ),
    "small": Recipe(
        method=CLSA.Config(
            hidden=512,
            queue_size=4096,
            momentum=0.99,
            splits=8,
            views=(
                View(count=2, size=32, crop=(0.2, 1.0), blur=0.0, order=ORDER),
                View(size=32, crop=(0.2, 1.0), blur=0.0, strong=STRONG, order=ORDER),
            ),
        ),
        backbone=BackboneConfig(name="resnet18", image_size=32, stem="small"),
        optim=Optim(lr=0.03, weight_decay=5e-4, schedule=Schedule(per="epoch")),
        epochs=200,
        batch_size=512,
        normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD),
        sync_batch_norm=False,
        source="ours: MoCo's CIFAR-10 notebook with one strong view of 32 pixels",
    ),
    "paper": Recipe(
        method=CLSA.Config(),
        backbone=BackboneConfig(name="resnet50"),
        optim=Optim(lr=0.03, weight_decay=1e-4, schedule=Schedule(per="epoch")),
        epochs=200,
        batch_size=256,
        sync_batch_norm=False,
        source="CLSA-Single, arXiv:2104.07713: 69.4 % linear on ImageNet, 72.2 % at 800 epochs",
    ),
    "paper-multi": Recipe(
        method=CLSA.Config(
            views=(
                View(crop=(0.2, 1.0), order=ORDER),
                *(View(size=size, crop=area, order=ORDER) for size, area in SIZES),
                *(View(size=size, crop=area, strong=STRONG, order=ORDER) for size, area in SIZES),
            )
        ),
        backbone=BackboneConfig(name="resnet50"),
        optim=Optim(lr=0.03, weight_decay=1e-4, schedule=Schedule(per="epoch")),
        epochs=200,
        batch_size=256,
        sync_batch_norm=False,
        source="CLSA-Multi, arXiv:2104.07713: 73.3 % linear on ImageNet, 76.2 % at 800 epochs",
    ),
}
