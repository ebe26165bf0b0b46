"""Few labels: episodes among test pictures, and a few training pictures of every class.

Episodes (Snell et al. 2017, arXiv:1703.05175; 600, as usual): 5 classes, 1 or 5 pictures of each to
learn from, 15 of each to answer, by the nearest mean of unit features; the figure is the mean over
episodes. A few of every class: logistic regression at the optimum on 1, 5 or 10 training pictures
of every class, tested on all test pictures; the figure is the mean over 3 draws.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..data.balanced import balanced
from ..nn.random import fold, permutation, salt
from .features import Data
from .logistic import fit
from .results import Score

WAYS, SHOTS, ANSWERED, EPISODES = 5, (1, 5), 15, 600
EACH, DRAWS = (1, 5, 10), 3


def run(protocol: str, data: Data) -> Iterator[Score]:
    """Episodes first: 5-way 1-shot is the headline. What the data cannot fill is left out."""
    query = data.rows("pooled", train=False)
    counts = query.y.bincount()
    yielded = False
    for shots in SHOTS:
        fit_for = (counts >= shots + ANSWERED).nonzero()[:, 0]
        if len(fit_for) >= WAYS:
            rows = [(query.y == c).nonzero()[:, 0].cpu() for c in fit_for.tolist()]
            values = [episode(query.x, rows, shots, data.seed, e) for e in range(EPISODES)]
            settings = {"episodes": EPISODES, "answered": ANSWERED, "classes": len(rows)}
            yield Score(f"{WAYS}-way {shots}-shot", np.array(values), settings)
            yielded = True
    bank, query = data.features("pooled")
    labels = bank.y.cpu().numpy()
    for each in EACH:
        if labels.size and np.bincount(labels).min(initial=each) >= each:
            draws = [_few(data, balanced(labels, each, seed=data.seed + d)) for d in range(DRAWS)]
            settings = {"draws": DRAWS, "each": each}
            yield Score(f"top1, {each} a class", np.stack(draws).mean(0), settings)
            yielded = True
    if not yielded:
        raise ValueError("setting data: too few pictures for few-shot; give one or more a class")


def episode(
    x: Float[Tensor, "n d"], rows: list[Int[Tensor, "_"]], shots: int, seed: int, number: int
) -> float:
    """Share of right answers of one episode; `rows` are those of each class."""
    key = int(fold(fold(torch.tensor(seed), salt("episode")), number))
    ways = permutation(len(rows), key, 0)[:WAYS].tolist()
    picked = [rows[w][permutation(len(rows[w]), key, 1 + w)[: shots + ANSWERED]] for w in ways]
    unit = F.normalize(x[torch.stack(picked)], dim=-1)  # [ways, shots + answered, D]
    means = F.normalize(unit[:, :shots].mean(1), dim=-1)
    answer = (unit[:, shots:] @ means.T).argmax(2)  # [ways, answered]
    return (answer == torch.arange(WAYS, device=x.device)[:, None]).double().mean().item()


def _few(data: Data, rows: np.ndarray) -> np.ndarray:
    bank, query = data.features("pooled")
    at = torch.from_numpy(rows)
    answer = fit(bank.x[at], bank.y[at], data.classes)(query.x).argmax(1)
    return (answer == query.y).double().cpu().numpy()
