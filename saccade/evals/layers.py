"""Which layer of a transformer over colors knows most: a linear classifier on each.

`linear-igpt` (Chen et al. 2020): the mean over places of what each block's first norm gives, and of
the last norm, under logistic regression at its optimum (L-BFGS, C 1). A tenth of the training
pictures, not trained on, chooses the layer that the figure is of; `top1@I` then names every layer,
0 for the colors alone, the last one for what the scores are made of.

Deviations: features are of center crops. The paper's concatenation of five layers around the best
(iGPT-XL) and its vote over five masked inputs of a BERT network are left out.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..core import PixelBackbone
from .features import Data
from .logistic import C, fit
from .results import Score

HELD_OUT = 0.1  # share of the training pictures that chooses


def run(protocol: str, data: Data) -> Iterator[Score]:
    """Top-1 of the chosen layer, then of all."""
    if not isinstance(data.model, PixelBackbone):
        raise ValueError(
            f"setting protocol: {protocol} is for transformers over colors; choose linear-dino"
        )
    bank, query = data.features("layers")
    order = torch.randperm(len(bank.x), generator=torch.Generator().manual_seed(data.seed))
    held = max(1, round(HELD_OUT * len(order)))
    judge, learn = (rows.to(bank.x.device) for rows in (order[:held], order[held:]))
    known, right = [], []
    for x, q in zip(bank.x.split(data.model.dim, 1), query.x.split(data.model.dim, 1), strict=True):
        head = fit(x[learn], bank.y[learn], data.classes)
        known.append(float((head(x[judge]).argmax(1) == bank.y[judge]).double().mean()))
        right.append((head(q).argmax(1) == query.y).cpu().numpy())
        data.progress(len(known), data.model.depth + 1)
    best = known.index(max(known))
    settings = {"C": C, "bank": len(learn), "dim": data.model.dim, "held_out": len(judge)}
    yield Score("top1", right[best], settings | {"layer": best, "known": known})
    for i, hits in enumerate(right):
        yield Score(f"top1@{i}", hits, settings | {"layer": i})
