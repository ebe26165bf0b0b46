"""SimCLRv2: SimCLR with a deeper head, whose first layer stays when labels come.

Chen et al. 2020, arXiv:2006.10029. Three stages, each a run of its own:
1. This file. For unit z = g(f(x)) of 2N views of N images, g(h) = W3 s(W2 s(W1 h)), s = ReLU of
   batch norm, hidden layers as wide as the encoder's output,
       loss = mean_i -log( exp(z_i.z_p(i)/t) / sum_{k != i} exp(z_i.z_k/t) );
   with `queue_size`, past projections by an averaged network join the sum (about +1 %, less with
   large batches; the paper's tables are without).
2. `saccade train classify` from this run on few labels, with system.head_layers=1: a classifier on
   s(W1 h), all of it trained. The run folder keeps the hidden layers for that, behind batch norm
   and ReLU, as `projector` in heads.safetensors; 0 layers is plain fine-tuning.
3. `saccade train distill` with that run as the teacher, on pictures without labels.

Its big networks are `resnet152_x3_sk` and its like (see `saccade list backbones`). Pictures are not
normalized. Not the same as the official TensorFlow code: brightness, contrast and blur as in
`simclr`, and convolutions pad evenly on both sides; so its released weights, whose norms differ
from version 1's, give other figures here (about .7 points by padding alone).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..core import Backbone, Clock, Method, Step, View, Views
from ..nn.dist import gather, gather_frozen, rank
from ..nn.functional import similarity
from ..nn.parts import Ema, Queue, mlp
from ..recipe import BackboneConfig, Normalize, Optim, Recipe, Schedule

COLOR = (0.8, 0.8, 0.8, 0.2)
PIXELS = Normalize(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # as they are


class SimCLRv2(Method[Backbone]):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        layers: int = 3  # of the head
        dim: int = 128
        temperature: float = 0.1
        queue_size: int = 0  # past projections, a multiple of those of one step; the paper: 65536
        momentum: float = 0.999  # of the averaged network that makes them
        views: tuple[View, ...] = (View(count=2, interpolation="bicubic", strength=COLOR),)

    def __init__(self, cfg: Config, encoder: Backbone) -> None:
        super().__init__()
        if (n := sum(v.count for v in cfg.views)) != 2:
            raise ValueError(f"setting method.views: SimCLRv2 compares 2 views, not {n}")
        if cfg.layers < 1:
            raise ValueError(f"setting method.layers: {cfg.layers}; choose 1 or more")
        self.cfg = cfg
        self.encoder = encoder
        self.projector = mlp(*(encoder.dim,) * cfg.layers, cfg.dim, norm="all")
        for layer in self.projector:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)
        self.queue = Queue(cfg.queue_size, cfg.dim) if cfg.queue_size else None
        self.slow_encoder = Ema(self.encoder) if cfg.queue_size else None
        self.slow_projector = Ema(self.projector) if cfg.queue_size else None
        self.fresh: Tensor | None = None  # projections that join the queue after the update

    def forward(self, batch: Views, clock: Clock) -> Step:
        b, x = len(batch.index), torch.cat(batch.images)
        h = self.encoder(x)  # [2B, H] one pass: batch norm sees both views
        z = F.normalize(self.projector(h).float(), dim=-1)  # [2B, D]
        own = rank() * 2 * b + torch.arange(2 * b, device=z.device)  # [2B] this rank's columns
        partner = own.roll(b)
        logits = similarity(z, gather(z)).scatter(1, own[:, None], -torch.inf)  # [2B, 2N]
        if self.queue is not None:
            logits = torch.cat([logits, similarity(z, self.queue.rows)], 1)  # [2B, 2N + K]
            self.fresh = self.slow(x, b)
        loss = F.cross_entropy(logits / self.cfg.temperature, partner)

        hits = logits.detach().argmax(1) == partner
        cosine = logits.detach().gather(1, partner[:, None])
        logs = {"accuracy": hits.float().mean(), "positive": cosine.mean()}
        return Step(loss, logs, h[:b].detach())

    @torch.no_grad()
    def slow(self, x: Float[Tensor, "v c H W"], b: int) -> Float[Tensor, "n d"]:
        """Projections of all ranks by the averaged network, the views of a picture in turn."""
        assert self.slow_encoder is not None
        assert self.slow_projector is not None
        z = F.normalize(self.slow_projector(self.slow_encoder(x)).float(), dim=-1)
        return gather_frozen(z.unflatten(0, (2, b)).transpose(0, 1)).flatten(0, 1)

    def enqueue(self) -> None:
        """Move this step's slow projections into the queue, after its backward pass."""
        if self.queue is not None and self.fresh is not None:
            self.queue.push(self.fresh)
            self.fresh = None

    def after_update(self, clock: Clock) -> None:
        self.enqueue()
        if self.slow_encoder is not None and self.slow_projector is not None:
            self.slow_encoder.update(self.encoder, self.cfg.momentum)
            self.slow_projector.update(self.projector, self.cfg.momentum)

    def heads(self) -> dict[str, Tensor]:
        hidden = self.projector[: 3 * (self.cfg.layers - 1)]  # linear, batch norm, ReLU each
        return {f"projector.{k}": v for k, v in hidden.state_dict().items()}


RECIPES = {
    "demo": Recipe(
        method=SimCLRv2.Config(
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
        method=SimCLRv2.Config(
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
        source="SimCLR's official CIFAR-10 settings with the deeper head; no figures are published",
    ),
    "paper": Recipe(
        method=SimCLRv2.Config(),
        backbone=BackboneConfig(name="resnet50"),
        optim=Optim(
            name="lars",
            lr=6.4,
            lr_rule="none",
            weight_decay=1e-4,
            decay_1d=False,
            lr_in_buffer=True,
            schedule=Schedule(warmup_epochs=40.0),
        ),
        epochs=800,
        batch_size=4096,
        normalize=PIXELS,
        source="arXiv:2006.10029: 71.7 % linear, 57.9 % with 1 % of the labels, 68.4 % with 10 %",
    ),
}
