"""How far a few labels carry: frozen, fine-tuned, from scratch, and without any network.

At every number of labels, the same class-balanced pictures are given to every arm, and all test
pictures judge it. `frozen`: logistic regression at its optimum on the pooled vector. `trained`: all
layers, AdamW lr 1e-3, weight decay .05, half a cosine after 20 steps of warm-up, batches of 64 at
most, random resized crops and flips; from-scratch training has the same steps. `trivial`: 10-NN of
color and gradient histograms. No setting is chosen by looking at test pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Int64

from ..core import Backbone
from ..data.balanced import balanced
from ..data.loader import ViewLoader
from ..data.source import Source, Subset
from ..recipe import Optim, Schedule
from . import finetune, logistic
from .baselines import Described, judge
from .features import Data

BATCH = 64
TRAINING = finetune.FineTune(
    optim=Optim(
        name="adamw",
        lr=1e-3,
        lr_rule="none",
        weight_decay=0.05,
        schedule=Schedule(warmup_steps=20),
    ),
    epochs=0,  # steps count
    batch_size=BATCH,
)

Hits = Bool[np.ndarray, "n"]  # which test pictures were named rightly


@dataclass(frozen=True, slots=True)
class Chosen:
    """The pictures whose labels are given."""

    rows: Int64[np.ndarray, "m"]
    classes: int
    seed: int


def choose(train: Source, labels: int, seed: int) -> Chosen:
    """`labels` pictures spread evenly over the classes. Raises ValueError where that cannot be."""
    assert train.labels is not None
    classes = len(train.classes)
    if labels < classes:
        raise ValueError(
            f"setting labels: {labels} are fewer than the {classes} classes; "
            f"give {classes} or more, one a class"
        )
    rows = balanced(train.labels, labels // classes, seed=seed)
    if len(rows) < labels // classes * classes:
        raise ValueError(
            f"setting labels: {labels} are more than a class has ({len(rows)} pictures in all); "
            "give fewer"
        )
    return Chosen(rows, classes, seed)


def frozen(data: Data, chosen: Chosen) -> Hits:
    """Logistic regression on frozen features; unreadable pictures take no part."""
    bank, query = data.features("pooled")
    mine = torch.isin(bank.index.cpu(), torch.from_numpy(chosen.rows)).to(bank.x.device)
    head = logistic.fit(bank.x[mine], bank.y[mine], chosen.classes)
    return (head(query.x).argmax(1) == query.y).cpu().numpy()


def trained(data: Data, chosen: Chosen, backbone: Backbone, steps: int) -> Hits:
    """All layers trained from this backbone, which stays as it is."""
    size = min(BATCH, len(chosen.rows))
    loader = ViewLoader(
        Subset(data.train, chosen.rows),
        (finetune.view(TRAINING, data),),
        data.preprocess.normalize,
        batch_size=size,
        seed=chosen.seed,
        threads=data.threads,
        device=next(backbone.parameters()).device,
    )
    cfg = replace(TRAINING, batch_size=size)
    with finetune.seeded(chosen.seed):
        model = finetune.build(cfg, backbone, chosen.classes)
        finetune.train(cfg, model, data, loader, max(1, round(steps / loader.steps)))
    return finetune.answers(model, data)


def trivial(bank: Described, query: Described, data: Data, chosen: Chosen) -> dict[str, Hits]:
    """The baselines with these labels alone, of pictures described once."""
    mine = bank.only(torch.from_numpy(chosen.rows))
    found = judge(mine, query, data.train.classes, data.test.classes)
    return {name: score.values.astype(bool) for name, score in found}
