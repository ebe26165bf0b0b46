"""Attentive probing: a learned query looks at frozen tokens, and a linear layer at what it takes.

`attentive-cae` (Chen et al. 2022, arXiv:2202.03026): the tokens after the encoder's last norm, CLS
and patches, go through one cross-attention of a learned query that starts at 0,
    a = attention(LN_q(query), LN_k(tokens), LN_v(tokens)),
with biases of queries and values and an output layer, without residual or MLP, then through a batch
norm without weights and a linear layer of N(0, .01). SGD with Nesterov momentum .9, lr .4 x B/8192,
90 epochs, 10 of warm-up, half a cosine, no weight decay; random resized crops and flips; heads 64
wide. The frozen network is in evaluation mode. Networks without tokens give the cells of their map.

Deviations: the batch is 256 (official: 8192), which the linear rule for lr covers. The official
batch norm uses the statistics of the test batch when it is evaluated, so that a figure depends on
its neighbors; here they are the running ones of training. The code is followed in its first
release: the official HEAD's probe does not run. Linear layers start at torch's default,
and LN_k has no bias, which softmax cancels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..core import Backbone, PatchBackbone, View
from ..data.loader import ViewLoader
from ..engine.schedules import lr_at
from ..recipe import Optim
from .features import Data, batches, evaluating, translate
from .finetune import seeded
from .results import Score

HEAD_WIDTH = 64  # channels


@dataclass(frozen=True, kw_only=True)
class Attentive:
    """The paper's probe."""

    optim: Optim
    warmup: float  # share of the epochs
    epochs: int
    batch_size: int


PROTOCOLS = {
    "attentive-cae": Attentive(
        optim=Optim(lr=0.4 * 256 / 8192, weight_decay=0.0),
        warmup=1 / 9,
        epochs=90,
        batch_size=256,
    )
}


class Probe(nn.Module):
    """What trains: the query, its attention, and the classifier."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        most = max(dim // HEAD_WIDTH, 1)
        self.heads = next(h for h in range(most, 0, -1) if dim % h == 0)
        self.query = nn.Parameter(torch.zeros(1, 1, dim))
        self.norm_q, self.norm_v = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.norm_k = nn.LayerNorm(dim, eps=1e-6, bias=False)
        self.q, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.BatchNorm1d(dim, eps=1e-6, affine=False)
        self.head = nn.Linear(dim, classes)
        nn.init.normal_(self.head.weight, std=0.01)
        for layer in (self.q, self.v, self.head):
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b k"]:
        q = self.q(self.norm_q(self.query)).expand(len(tokens), -1, -1)
        k, v = self.k(self.norm_k(tokens)), self.v(self.norm_v(tokens))
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        a = F.scaled_dot_product_attention(q, k, v)  # [B, heads, 1, D / heads]
        return self.head(self.norm(self.proj(a.flatten(1))))


def run(protocol: str, data: Data) -> Iterator[Score]:
    """Top-1 after the last epoch, on all test pictures that can be read."""
    cfg = PROTOCOLS[protocol]
    epochs, size = data.epochs or cfg.epochs, min(cfg.batch_size, len(data.train))
    if size < 2:
        raise ValueError(f"{protocol}: a batch norm needs 2 pictures or more; give more")
    device = next(data.model.parameters()).device
    loader = ViewLoader(
        data.train,
        (view(data.preprocess.size),),
        data.preprocess.normalize,
        batch_size=size,
        seed=data.seed,
        threads=data.threads,
        device=device,
    )
    with seeded(data.seed):
        probe = Probe(data.model.dim, data.classes).to(device)
        train(cfg, probe, data, loader, epochs)
    settings = asdict(cfg) | {"epochs": epochs, "batch_size": size, "dim": data.model.dim}
    yield Score("top1", answers(probe, data), settings | {"heads": probe.heads})


def view(size: int) -> View:
    """Random resized crop and flip."""
    return View(size=size, interpolation="bicubic", jitter=0.0, grayscale=0.0, blur=0.0)


def tokens_of(model: Backbone, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b n d"]:
    """All tokens after the last norm, or the cells of the map."""
    if isinstance(model, PatchBackbone):
        return model.layers(x, 1)[0]
    return model.features(x).flatten(2).mT


def train(cfg: Attentive, probe: Probe, data: Data, loader: ViewLoader, epochs: int) -> None:
    """The schedule over all epochs, in place; the network is left as it is."""
    schedule = replace(cfg.optim.schedule, warmup_epochs=cfg.warmup * epochs)
    optim = replace(cfg.optim, schedule=schedule)
    optimizer = torch.optim.SGD(probe.parameters(), cfg.optim.lr, cfg.optim.momentum, nesterov=True)
    step, steps = 0, epochs * loader.steps
    probe.train()
    for epoch in range(epochs):
        with closing(loader.batches(epoch)) as stream:
            for batch in stream:
                assert batch.labels is not None
                with evaluating(data.model):
                    frozen = tokens_of(data.model, batch.images[0])
                for group in optimizer.param_groups:
                    group["lr"] = lr_at(optim, loader.batch_size, step, steps, loader.steps)
                optimizer.zero_grad()
                F.cross_entropy(probe(frozen.float().clone()), batch.labels).backward()
                optimizer.step()
                step += 1
        data.progress(epoch + 1, epochs)


def answers(probe: Probe, data: Data) -> np.ndarray:
    """Which test pictures the probe names rightly."""
    labels = data.test.labels
    assert labels is not None
    own, right = translate(data.train.classes, data.test.classes), []
    with evaluating(data.model), evaluating(probe):
        for x, index in batches(
            data.model, data.test, data.preprocess, data.batch_size, data.threads, []
        ):
            truth = own[torch.from_numpy(labels)[index]]
            right.append(probe(tokens_of(data.model, x).float()).argmax(1).cpu() == truth)
    return torch.cat(right).numpy()
