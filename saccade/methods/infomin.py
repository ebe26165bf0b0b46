"""InfoMin: contrast views that share no more than a task needs, and a jigsaw of the picture.

Tian et al. 2020, arXiv:2005.10243. Good views keep I(v1; v2) = I(x; y): InfoMin Aug is MoCo under
stronger augmentation, with PIRL's jigsaw. With unit q, k of two views, q_j of nine shuffled patches
and a queue of K past keys, and c(q) = -log softmax of q.k/t among k and the queue,
    loss = (1 - b) mean c(q) + b mean c(q_j),    b = `jigsaw`: one key k and one queue for both.
The patches pass the encoder on their own, 9N at a time, then a head each; joined in random order,
a last layer makes one vector of them, which has no slow copy. They cost .73 of a view more.
`information` is the estimate ln(K + 1) - loss of I(q; k): never above ln(K + 1), so near that it
says nothing more.

Views: crop, flip, jitter, blur, RandAugment, grayscale, in that order. The key network moves after
the update instead of before the forward pass; keys join the queue in the order of the batch, where
the official code leaves them shuffled; its blur has 23 taps, ours reaches 3 sigma. The learned
views of the paper's toy studies are not here, nor RandAugment in the linear stage, part of its
figures. What other tools call InfoMin is often SimCLR with more jitter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import Backbone, Clock, Method, Step, StrongSet, View, Views
from ..nn.dist import gather_frozen, mine, shuffle, unshuffle, world
from ..nn.functional import similarity
from ..nn.norm import split
from ..nn.parts import Ema, Queue, mlp
from ..nn.random import uniform
from ..recipe import CIFAR_MEAN, CIFAR_STD, BackboneConfig, Normalize, Optim, Recipe, Schedule

SIDE = 3  # patches along each side of the jigsaw
COLOR = (0.8, 0.8, 0.8, 0.2)
ORDER = ("flip", "jitter", "blur", "strong", "grayscale", "solarize")
PLAIN = View(size=255, crop=(0.6, 1.0), jitter=0.0, grayscale=0.0, blur=0.0)  # for the jigsaw


class InfoMin(Method[Backbone]):
    additive = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 2048
        dim: int = 128
        queue_size: int = 65536  # a multiple of the keys of one step
        momentum: float = 0.999
        temperature: float = 0.15
        jigsaw: float = 0.5  # weight of its loss; 0: no jigsaw, and no view for it
        patch_size: int = 64  # pixels, at a random place in each ninth of the last view
        splits: int = 1  # shares of a device's batch with batch statistics of their own
        views: tuple[View, ...] = (
            View(
                count=2,
                crop=(0.2, 1.0),
                strength=COLOR,
                strong=StrongSet(name="randaugment"),
                order=ORDER,
            ),
            PLAIN,
        )

    def __init__(self, cfg: Config, encoder: Backbone) -> None:
        super().__init__()
        _check(cfg)
        self.cfg = cfg
        self.encoder = encoder
        if cfg.splits > 1:
            split(self.encoder, cfg.splits)
        self.projector = mlp(encoder.dim, cfg.hidden, cfg.dim, norm="none")
        self.key_encoder = Ema(self.encoder)
        self.key_projector = Ema(self.projector)
        self.queue = Queue(cfg.queue_size, cfg.dim)
        self.jigsaw = None
        if cfg.jigsaw:
            self.jigsaw = nn.ModuleDict(
                {
                    "patch": mlp(encoder.dim, cfg.hidden, cfg.dim, norm="none"),
                    "whole": nn.Linear(SIDE**2 * cfg.dim, cfg.dim),
                }
            )
        self.fresh: list[Tensor] = []  # keys of this step: they join the queue after its update

    def forward(self, batch: Views, clock: Clock) -> Step:
        cfg = self.cfg
        h = self.encoder(batch.images[0])
        q = F.normalize(self.projector(h).float(), dim=-1)  # [B, D]
        keys = self.keys(batch)  # [N, D]
        self.fresh.append(keys)
        k = keys[mine(len(q))]
        plain, hits = self.contrast(q, k)
        loss, logs = (1 - cfg.jigsaw) * plain, {"accuracy": hits}
        if self.jigsaw is not None:
            solved, hits = self.contrast(self.solve(batch.images[2], batch.key), k)
            loss, logs = loss + cfg.jigsaw * solved, {**logs, "jigsaw_accuracy": hits}
        logs["information"] = math.log(cfg.queue_size + 1) - plain.detach()
        return Step(loss, logs, h.detach())

    def contrast(
        self, q: Float[Tensor, "b d"], k: Float[Tensor, "b d"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The loss of queries whose keys are k, and the share that find them."""
        t = self.cfg.temperature
        positive = (q * k).sum(-1) / t  # [B]
        negative = similarity(q / t, self.queue.rows)  # [B, K]
        loss = (torch.logaddexp(positive, negative.logsumexp(1)) - positive).mean()
        return loss, (positive.detach() > negative.detach().amax(1)).float().mean()

    def solve(self, x: Float[Tensor, "b c H W"], key: Int[Tensor, "b"]) -> Float[Tensor, "b d"]:
        """One unit vector of the patches of each picture, in an order of its own."""
        assert self.jigsaw is not None
        x = cut(x, self.cfg.patch_size, key)  # [B, 9, c, p, p]
        z = self.jigsaw["patch"](self.encoder(x.flatten(0, 1)))  # [9B, D]
        whole = self.jigsaw["whole"](z.unflatten(0, x.shape[:2]).flatten(1))
        return F.normalize(whole.float(), dim=-1)

    @torch.no_grad()
    def keys(self, batch: Views) -> Float[Tensor, "n d"]:
        """Keys of all ranks; batch statistics do not give them away."""
        x = batch.images[1]
        if world() == 1 and self.cfg.splits == 1:  # one batch has one set of statistics
            return self.key(x)
        order = uniform(gather_frozen(batch.key), 1, "shuffle")[:, 0].argsort(stable=True)
        return unshuffle(self.key(shuffle(x, order)), order)

    def key(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b d"]:
        return F.normalize(self.key_projector(self.key_encoder(x)).float(), dim=-1)

    def enqueue(self) -> None:
        """Move this step's keys into the queue: after its backward pass, which reads the queue."""
        if self.fresh:
            self.queue.push(torch.cat(self.fresh))
            self.fresh.clear()

    def after_update(self, clock: Clock) -> None:
        self.enqueue()
        self.key_encoder.update(self.encoder, self.cfg.momentum)
        self.key_projector.update(self.projector, self.cfg.momentum)


def cut(
    x: Float[Tensor, "b c H W"], patch: int, key: Int[Tensor, "b"]
) -> Float[Tensor, "b n c p p"]:
    """A patch at a random place in each cell of the grid, in a random order for each picture."""
    cell = x.shape[-1] // SIDE
    n = SIDE**2
    order = uniform(key, n, "jigsaw order").argsort(1)  # [B, 9] cell of each place
    corner = (uniform(key, 2 * n, "jigsaw place") * (cell - patch + 1)).long().view(-1, n, 2)
    corner = corner + cell * torch.stack([order // SIDE, order % SIDE], -1)  # [B, 9, 2] row, column
    along = torch.arange(patch, device=x.device)
    row, column = (corner[..., i, None] + along for i in (0, 1))  # [B, 9, p]
    b = torch.arange(len(x), device=x.device)[:, None, None, None]
    return x.movedim(1, -1)[b, row[..., None], column[:, :, None]].movedim(-1, 2)


def _check(cfg: InfoMin.Config) -> None:
    sizes = [v.size for v in cfg.views for _ in range(v.count)]
    wanted = 3 if cfg.jigsaw else 2
    if len(sizes) != wanted:
        raise ValueError(
            f"setting method.views: InfoMin with jigsaw={cfg.jigsaw} sees {wanted} views, "
            f"not {len(sizes)}"
        )
    if cfg.jigsaw and not 1 <= cfg.patch_size <= sizes[2] // SIDE:
        raise ValueError(
            f"setting method.patch_size: {cfg.patch_size} pixels of a cell of {sizes[2] // SIDE}; "
            "choose at most that"
        )


RECIPES = {
    "demo": Recipe(
        method=InfoMin.Config(
            hidden=512,
            queue_size=2048,
            momentum=0.99,
            splits=4,
            patch_size=16,
            views=(
                View(
                    count=2,
                    size=64,
                    crop=(0.2, 1.0),
                    strength=(0.4, 0.4, 0.2, 0.02),
                    grayscale=0.0,
                    blur=0.0,
                    strong=StrongSet(name="randaugment", count=1, magnitude=3.0),
                    order=ORDER,
                ),
                View(size=63, crop=(0.6, 1.0), jitter=0.0, grayscale=0.0, blur=0.0),
            ),
        ),
        backbone=BackboneConfig(name="resnet10_w32", image_size=64, stem="paper"),
        optim=Optim(lr=0.06, weight_decay=5e-4, schedule=Schedule(warmup_epochs=5.0)),
        epochs=40,
        batch_size=128,
        sync_batch_norm=False,
        source="ours: fruit differs by color, so RandAugment is mild and nothing is grayscaled",
    ),
    "small": Recipe(
        method=InfoMin.Config(
            hidden=512,
            queue_size=4096,
            momentum=0.99,
            jigsaw=0.0,
            splits=8,
            views=(
                View(
                    count=2,
                    size=32,
                    crop=(0.2, 1.0),
                    strength=COLOR,
                    blur=0.0,
                    strong=StrongSet(name="randaugment", count=1, magnitude=5.0),
                    order=ORDER,
                ),
            ),
        ),
        backbone=BackboneConfig(name="resnet18", image_size=32, stem="small"),
        optim=Optim(lr=0.03, weight_decay=5e-4, schedule=Schedule(per="epoch")),
        epochs=200,
        batch_size=512,
        normalize=Normalize(mean=CIFAR_MEAN, std=CIFAR_STD),
        sync_batch_norm=False,
        source="ours: MoCo's CIFAR-10 notebook with InfoMin's views; no jigsaw of 10-pixel patches",
    ),
    "paper": Recipe(
        method=InfoMin.Config(),
        backbone=BackboneConfig(name="resnet50"),
        optim=Optim(lr=0.03, weight_decay=1e-4, schedule=Schedule(final_lr=3e-5, per="epoch")),
        epochs=200,
        batch_size=256,
        sync_batch_norm=False,
        source="arXiv:2005.10243 and official code: 70.1 % linear on ImageNet; 73.0 at 800 epochs",
    ),
}
