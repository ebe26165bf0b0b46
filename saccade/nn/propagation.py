"""Few labels spread over many pictures by their features, each with a confidence.

Deep metric transfer: Liu et al. 2018, arXiv:1812.08781. Two algorithms on unit features x.
`vote`: every picture's nearest labeled ones vote with weight exp(cosine / t); probabilities.
`cut`, a constrained normalized cut, the better one with few labels: W_ij = exp(-(1 - cosine) / s)
for the k nearest of every picture, itself among them, then (W + W^T) / 2; D its degrees;
    L = I - D^-1/2 W D^-1/2,   S = sum_m e_m (e_m . prior) / lambda_m over the smallest eigenpairs
but the constant one; columns of S get unit length times sqrt(n), so that no class swallows the
rest. The label is the largest score, the confidence 1 - exp(-(first - second) / T).

Eigenvectors are those of the largest eigenvalues of D^-1/2 W D^-1/2, which are the same and quick
to find; the constant one is taken out exactly, and 1e-6 is added to every lambda, so that a graph
in several parts has an answer. Not here: the ImageNet variant in ten chunks with local scales.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from .functional import knn_scores

BLOCK = 1024  # rows of similarities at a time
DENSE = 1500  # pictures up to which all eigenvectors are found
TINY = 1e-6


def vote(
    x: Float[Tensor, "n d"],
    labels: Int[Tensor, "n"],
    *,
    classes: int,
    neighbors: int = 200,
    temperature: float = 0.1,
) -> tuple[Int[Tensor, "n"], Float[Tensor, "n"]]:
    """Label and confidence of every row by its nearest labeled ones; -1 is without label."""
    known = labels >= 0
    bank, own = x[known], labels[known]
    k = min(len(bank), neighbors)
    scores = [
        knn_scores(part, bank, own, classes=classes, k=k, temperature=temperature)
        for part in x.split(BLOCK)
    ]
    confidence, label = (s := torch.cat(scores)).div(s.sum(1, keepdim=True)).max(1)
    return label, confidence


def cut(
    x: Float[Tensor, "n d"],
    labels: Int[Tensor, "n"],
    *,
    classes: int,
    neighbors: int = 20,
    scale: float = 0.2,
    vectors: int = 200,
    temperature: float = 1.0,
) -> tuple[Int[Tensor, "n"], Float[Tensor, "n"]]:
    """Label and confidence of every row by a constrained normalized cut; -1 is without label."""
    weights = graph(x, min(neighbors, len(x)), scale)
    scores = torch.from_numpy(solve(weights, labels.cpu().numpy(), classes, vectors))
    first, second = scores.topk(2, 1).values.unbind(1)
    return scores.argmax(1), 1 - (-(first - second) / temperature).exp()


def graph(x: Float[Tensor, "n d"], neighbors: int, scale: float) -> Any:
    """Symmetric weights between rows and their nearest ones, as a sparse matrix of scipy."""
    sparse, _ = _scipy()
    found = [(part @ x.T).topk(neighbors, 1) for part in x.split(BLOCK)]
    cosine = torch.cat([f.values for f in found]).double().cpu().numpy()
    columns = torch.cat([f.indices for f in found]).cpu().numpy()
    rows = np.arange(len(x)).repeat(neighbors)
    weights = np.exp(-(1 - cosine.ravel()) / scale)
    one_way = sparse.csr_array((weights, (rows, columns.ravel())), shape=(len(x), len(x)))
    return (one_way + one_way.T) / 2


def solve(
    weights: Any, labels: Int[np.ndarray, "n"], classes: int, vectors: int
) -> Float64[np.ndarray, "n k"]:
    """Scores of every class, columns of length sqrt(n)."""
    degree = np.asarray(weights.sum(1)).ravel()
    values, e = smallest(weights, degree, min(vectors, len(labels)) - 1)
    scores = e @ ((e.T @ prior(degree, labels, classes)) / (values + TINY)[:, None])
    return scores / np.linalg.norm(scores, axis=0).clip(TINY) * np.sqrt(len(labels))


def prior(
    degree: Float64[np.ndarray, "n"], labels: Int[np.ndarray, "n"], classes: int
) -> Float64[np.ndarray, "n k"]:
    """What is known of every class: above 0 for its labels, below for others, of unit length."""
    columns = []
    for c in range(classes):
        p, n = degree * (labels == c), degree * ((labels >= 0) & (labels != c))
        if not p.any() or not n.any():
            raise ValueError(f"labels: class {c} or all others have no label; give one of each")
        ratio = p.sum() / n.sum()
        column = np.sqrt(p / ratio) - np.sqrt(n * ratio)
        columns.append(column / np.linalg.norm(column))
    return np.stack(columns, 1)


def smallest(
    weights: Any, degree: Float64[np.ndarray, "n"], count: int
) -> tuple[Float64[np.ndarray, "m"], Float64[np.ndarray, "n m"]]:
    """The smallest eigenpairs of the normalized Laplacian but the constant one."""
    sparse, linalg = _scipy()
    root = np.sqrt(degree)
    inside = sparse.diags_array(1 / root) @ weights @ sparse.diags_array(1 / root)
    constant = root / np.linalg.norm(root)
    n = len(degree)
    if n <= DENSE or count >= n - 1:
        table = inside.toarray() - 3 * np.outer(constant, constant)  # its eigenvalue becomes -2
        values, vectors = np.linalg.eigh(table)
        return 1 - values[-count:], vectors[:, -count:]

    def apply(v: np.ndarray) -> np.ndarray:
        return inside @ v - 3 * constant * (constant @ v)

    table = linalg.LinearOperator((n, n), matvec=apply, dtype=np.float64)
    start = np.random.default_rng(0).normal(size=n)
    values, vectors = linalg.eigsh(table, count, which="LA", v0=start, tol=1e-4, maxiter=30_000)
    return 1 - values, vectors


def _scipy() -> tuple[Any, Any]:
    try:
        from scipy import sparse
        from scipy.sparse import linalg
    except ImportError:
        raise ValueError("propagation needs scipy; pip install 'saccade[propagate]'") from None
    return sparse, linalg
