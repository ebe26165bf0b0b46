"""A linear classifier on frozen features.

`linear-moco` (He et al. 2020, arXiv:1911.05722): SGD, lr 30, momentum .9, batch 256, 100 epochs,
x .1 at 60 and 80, on the pooled vector as it comes.
`linear-dino` (Caron et al. 2021, arXiv:2104.14294): SGD, lr .001 x B/256, momentum .9, 100 epochs,
half a cosine moved per epoch, on the CLS tokens of the last 4 blocks, each after the final norm
(all, where there are fewer); on the pooled vector of networks without blocks; on mean tokens of
transformers without CLS.
`linear-mae` (He et al. 2021, arXiv:2111.06377): LARS, lr .1 x B/256, momentum .9, 90 epochs,
10 of warm-up, half a cosine, on the CLS token through a batch norm without weights.
`linear-mae-crops`: the same on a new random resized crop and flip of every picture in every epoch,
as the paper trains it; 90 times the cost.
`linear-simclr` (Chen et al. 2020, arXiv:2002.05709): SGD with Nesterov momentum .9, lr .1 x B/256,
90 epochs, half a cosine, weights from 0, on the pooled vector.
All: no weight decay, weights from N(0, .01) unless said, bias 0, and the accuracy after the last
epoch (many scripts report the best one).

Deviations: but for the crops above, features are cached from center crops, where the papers' probes
see a new RandomResizedCrop and flip of every picture in every epoch; MAE's draws such a crop once,
ours up to ten times until it fits. The batch is 256 for DINO
(official: 1024) and 1024 for MAE and SimCLR (official: 16384 and 4096), which the linear rule for
lr covers; SimCLR's README adds a weight decay of 1e-6.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import View
from ..data.loader import ViewLoader
from ..engine.optim import Lars
from ..engine.schedules import lr_at
from ..recipe import Optim, Schedule
from .features import Data, Features, Kind, evaluating
from .results import Score


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One paper's linear classifier; `optim.weight_decay` is 0 in all."""

    optim: Optim
    epochs: int
    batch_size: int
    features: Kind = "pooled"
    batch_norm: bool = False  # without weights, eps 1e-6, before the classifier
    nesterov: bool = False
    start_std: float = 0.01  # of the first weights
    crops: bool = False  # new features of a random crop and flip in every epoch


PROTOCOLS = {
    "linear-moco": Probe(
        optim=Optim(
            lr=30.0,
            lr_rule="none",
            weight_decay=0.0,
            schedule=Schedule(shape="steps", drops=(0.6, 0.8), per="epoch"),
        ),
        epochs=100,
        batch_size=256,
    ),
    "linear-dino": Probe(
        optim=Optim(lr=0.001, weight_decay=0.0, schedule=Schedule(per="epoch")),
        epochs=100,
        batch_size=256,
        features="cls-4",
    ),
    "linear-mae": Probe(
        optim=Optim(name="lars", lr=0.1, weight_decay=0.0, schedule=Schedule(warmup_epochs=10.0)),
        epochs=90,
        batch_size=1024,
        batch_norm=True,
    ),
    "linear-mae-crops": Probe(
        optim=Optim(name="lars", lr=0.1, weight_decay=0.0, schedule=Schedule(warmup_epochs=10.0)),
        epochs=90,
        batch_size=1024,
        batch_norm=True,
        crops=True,
    ),
    "linear-simclr": Probe(
        optim=Optim(lr=0.1, weight_decay=0.0),
        epochs=90,
        batch_size=1024,
        nesterov=True,
        start_std=0.0,
    ),
}


def run(protocol: str, data: Data) -> Iterator[Score]:
    """Top-1 after the last epoch."""
    cfg = PROTOCOLS[protocol]
    bank, query = data.features(cfg.features)
    head = fit_crops(cfg, data) if cfg.crops else fit(cfg, bank, data.classes, data.seed)
    with torch.no_grad():
        scores = head(query.x)
    if not scores.isfinite().all():
        raise ValueError(
            f"{protocol} diverged: its learning rate {cfg.optim.lr:g} does not fit the scale of "
            "these features; choose knn-dino or another linear protocol"
        )
    settings = asdict(cfg) | {
        "bank": len(bank.x),
        "dim": bank.x.shape[1],
        "augmentation": "crop and flip" if cfg.crops else "none",
        "epochs": (cfg.crops and data.epochs) or cfg.epochs,
    }
    yield Score("top1", (scores.argmax(1) == query.y).cpu().numpy(), settings)


def fit(cfg: Probe, bank: Features, classes: int, seed: int) -> nn.Module:
    """The trained classifier in eval mode; the same seed gives the same weights."""
    draws = torch.Generator().manual_seed(seed)
    head = classifier(cfg, bank.x.shape[1], classes, draws).to(bank.x.device).train()
    optimizer = _optimizer(cfg, head)
    size = min(cfg.batch_size, len(bank.x))
    epoch_steps = len(bank.x) // size if cfg.batch_norm else -(-len(bank.x) // size)
    step, steps = 0, cfg.epochs * epoch_steps
    for _ in range(cfg.epochs):
        order = torch.randperm(len(bank.x), generator=draws).to(bank.x.device)
        for x, y in _split(bank.x[order], bank.y[order], size, epoch_steps):
            for group in optimizer.param_groups:
                group["lr"] = lr_at(cfg.optim, size, step, steps, epoch_steps)
            optimizer.zero_grad()
            F.cross_entropy(head(x), y).backward()
            optimizer.step()
            step += 1
    return head.eval()


def fit_crops(cfg: Probe, data: Data) -> nn.Module:
    """As `fit`, on new crops and flips in every epoch; whole batches only.

    With other epochs than the paper's, warm-up keeps its share.
    """
    epochs = data.epochs or cfg.epochs
    warmup = cfg.optim.schedule.warmup_epochs * epochs / cfg.epochs
    optim = replace(cfg.optim, schedule=replace(cfg.optim.schedule, warmup_epochs=warmup))
    draws = torch.Generator().manual_seed(data.seed)
    device = next(data.model.parameters()).device
    head = classifier(cfg, data.model.dim, data.classes, draws).to(device).train()
    optimizer = _optimizer(cfg, head)
    look = View(
        size=data.preprocess.size, interpolation="bicubic", jitter=0.0, grayscale=0.0, blur=0.0
    )
    loader = ViewLoader(
        data.train,
        (look,),
        data.preprocess.normalize,
        batch_size=min(cfg.batch_size, len(data.train)),
        seed=data.seed,
        threads=data.threads,
        device=device,
    )
    step, steps = 0, epochs * loader.steps
    for epoch in range(epochs):
        with closing(loader.batches(epoch)) as stream:
            for batch in stream:
                assert batch.labels is not None
                with evaluating(data.model):
                    frozen = data.model(batch.images[0]).float()
                for group in optimizer.param_groups:
                    group["lr"] = lr_at(optim, loader.batch_size, step, steps, loader.steps)
                optimizer.zero_grad()
                F.cross_entropy(head(frozen.clone()), batch.labels).backward()
                optimizer.step()
                step += 1
        data.progress(epoch + 1, epochs)
    return head.eval()


def classifier(cfg: Probe, dim: int, classes: int, draws: torch.Generator) -> nn.Sequential:
    """Normal weights and zero bias, behind MAE's batch norm where the protocol has it."""
    linear = nn.Linear(dim, classes)
    nn.init.normal_(linear.weight, std=cfg.start_std, generator=draws)
    nn.init.zeros_(linear.bias)
    norm = nn.BatchNorm1d(dim, eps=1e-6, affine=False) if cfg.batch_norm else nn.Identity()
    return nn.Sequential(norm, linear)


def _optimizer(cfg: Probe, head: nn.Sequential) -> torch.optim.Optimizer:
    linear = head[1]
    if cfg.optim.name == "lars":  # the bias is not adapted
        groups = [{"params": [linear.weight]}, {"params": [linear.bias], "adapt": False}]
        return Lars(groups, momentum=cfg.optim.momentum, trust=cfg.optim.trust)
    return torch.optim.SGD(
        linear.parameters(), cfg.optim.lr, cfg.optim.momentum, nesterov=cfg.nesterov
    )


def _split(
    x: Float[Tensor, "n d"], y: Int[Tensor, "n"], size: int, batches: int
) -> Iterator[tuple[Float[Tensor, "b d"], Int[Tensor, "b"]]]:
    """The first batches; batch statistics leave out a last one that is short."""
    return zip(x.split(size)[:batches], y.split(size)[:batches], strict=True)
