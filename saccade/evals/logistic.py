"""Logistic regression at its optimum: the linear classifier without a learning rate to choose.

Minimizes  C sum_i loss_i + |W|^2 / 2  by L-BFGS, as scikit-learn's LogisticRegression does, on
features of zero mean and unit variance over the training pictures. `logistic`: one class a picture,
softmax, C 1. `multi-label`: several a picture (class names joined by |, as in `cat|dog`), one
sigmoid each, judged by the mean over classes of average precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .features import Data
from .interval import weighted_bootstrap
from .results import Figure, Score

C = 1.0
STEPS = 1000  # of L-BFGS, at most
TOLERANCE = 1e-7  # of the gradient of the mean loss
SEPARATOR = "|"  # between the classes of one picture

Linear = Callable[[Float[Tensor, "n d"]], Float[Tensor, "n k"]]


def run(protocol: str, data: Data) -> Iterator[Score | Figure]:
    if protocol == "multi-label":
        yield _multi_label(data)
        return
    bank, query = data.features("pooled")
    head = fit(bank.x, bank.y, data.classes)
    right = (head(query.x).argmax(1) == query.y).cpu().numpy()
    yield Score("top1", right, {"C": C, "bank": len(bank.x), "dim": bank.x.shape[1]})


def fit(x: Float[Tensor, "n d"], y: Int[Tensor, "n"], classes: int, c: float = C) -> Linear:
    """The softmax classifier at the optimum, standardization included."""
    return _optimum(x, classes, c, lambda scores: F.cross_entropy(scores, y, reduction="sum"))


def fit_many(x: Float[Tensor, "n d"], truth: Bool[Tensor, "n k"], c: float = C) -> Linear:
    """One sigmoid a class at the optimum, standardization included."""
    target = truth.double()

    def loss(scores: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
        return F.binary_cross_entropy_with_logits(scores, target, reduction="sum")

    return _optimum(x, truth.shape[1], c, loss)


def _optimum(
    x: Float[Tensor, "n d"],
    classes: int,
    c: float,
    loss: Callable[[Float[Tensor, "n k"]], Float[Tensor, ""]],
) -> Linear:
    mean, std = x.double().mean(0), x.double().std(0, correction=0)
    scale = torch.where(std > 0, 1 / std.clamp_min(1e-12), 0.0)
    z = ((x.double() - mean) * scale).T.contiguous()  # [D, N]: the gradient's product is 3 x faster
    weight = z.new_zeros(len(z), classes, requires_grad=True)
    bias = z.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=STEPS,
        tolerance_grad=TOLERANCE,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = (loss(z.T @ weight + bias) + weight.square().sum() / (2 * c)) / len(x)
        total.backward()
        return total

    optimizer.step(closure)
    w, b = weight.detach(), bias.detach()
    return lambda query: ((query.double() - mean) * scale) @ w + b


def _multi_label(data: Data) -> Figure:
    bank, query = data.rows("pooled", train=True), data.rows("pooled", train=False)
    names = sorted({n for c in data.train.classes for n in c.split(SEPARATOR) if n})
    truth = tags(data.train.classes, names)[bank.y.cpu()].to(bank.x.device)
    answer = tags(data.test.classes, names)[query.y.cpu()].numpy()
    scores = fit_many(bank.x, truth)(query.x).cpu().numpy()
    judged = answer.any(0)
    if not judged.any():
        raise ValueError("setting eval-data: none of its classes is among the classes of data")
    interval = weighted_bootstrap(
        lambda w: float(np.nanmean(average_precision(scores[:, judged], answer[:, judged], w))),
        len(answer),
        seed=data.seed,
    )
    settings = {"C": C, "bank": len(bank.x), "names": names, "judged": int(judged.sum())}
    return Figure("mAP", interval, len(answer), settings, unit="%")


def tags(classes: tuple[str, ...], names: list[str]) -> Bool[Tensor, "k t"]:
    """Which of the names each class stands for; strange names are left out."""
    held = [set(c.split(SEPARATOR)) for c in classes]
    return torch.tensor([[n in own for n in names] for own in held])


def average_precision(
    scores: Float[np.ndarray, "n k"], truth: Bool[np.ndarray, "n k"], weight: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "k"]:
    """Area under precision over recall of each class by steps; NaN for one without a positive.

    A picture counts as often as its weight says. Pictures of equal score stand in any order.
    """
    order = np.argsort(-scores, axis=0, kind="stable")
    found = np.take_along_axis(truth, order, 0) * weight[order]  # [n, k]
    hits, seen = found.cumsum(0), weight[order].cumsum(0)
    precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
    total = hits[-1]
    return np.divide(
        (precision * found).sum(0), total, out=np.full(len(total), np.nan), where=total > 0
    )
