"""What it costs to judge frozen features: ours beside the libraries one would reach for otherwise.

`knn`: the classes of test features by the vote of their 20 nearest of a bank, weighted by
exp(cosine / .07). `saccade`; lightly's `knn_predict`, which is the same vote; `faiss`, which finds
the neighbors for our vote; scikit-learn's `KNeighborsClassifier` with these weights. `logistic`:
the softmax classifier at its optimum, ours and scikit-learn's, to the same tolerance, on features
of mean 0 and variance 1, and what it says of test features. Peers that are not installed are left
out. Features are drawn: each class is a normal distribution of its own. `same` is the share of test
features for which a peer says what we say: speed counts where that is near 1.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..config import suggest
from ..evals import knn, logistic
from . import interleave, machine, single, spread, versions, wall

K, TEMPERATURE = 20, 0.07
APART = 2.0  # length of a class's center, where features around it have variance 1 in each channel
PEERS = {"lightly": "lightly", "faiss": "faiss-cpu", "sklearn": "scikit-learn"}

Answer = Callable[[], Int[Tensor, "n"]]  # classes of the test features


@dataclass(frozen=True, slots=True)
class Drawn:
    x: Float[Tensor, "m d"]
    y: Int[Tensor, "m"]
    query: Float[Tensor, "n d"]
    classes: int


def run_evals(
    protocols: tuple[str, ...], *, bank: int, queries: int, dim: int, classes: int, rounds: int
) -> dict[str, Any]:
    """Seconds of each arm of each protocol, as multiples of ours, and how often they agree."""
    for name in protocols:
        if name not in ARMS:
            raise ValueError(f"setting protocol: no bench for {name!r}{suggest(name, ARMS)}")
    if min(bank, queries) < max(K, classes):
        raise ValueError(
            f"settings bank={bank}, queries={queries}: each must be {max(K, classes)} at least, "
            "the number of neighbors and of classes"
        )
    drawn = draw(bank, queries, dim, classes)
    peers = {package: version(package) for name, package in PEERS.items() if find_spec(name)}
    return {
        "bench": "eval",
        "date": datetime.date.today().isoformat(),
        "settings": {
            "bank": bank,
            "queries": queries,
            "dim": dim,
            "classes": classes,
            "rounds": rounds,
            "k": K,
            "temperature": TEMPERATURE,
            "clock": "process" if single() else "wall",
        },
        "machine": machine(),
        "versions": versions() | peers,
        "protocols": {name: measured(ARMS[name](drawn), rounds) for name in protocols},
    }


def draw(bank: int, queries: int, dim: int, classes: int) -> Drawn:
    """Features of classes that overlap; every class is in the bank."""
    g = torch.Generator().manual_seed(0)
    centers = APART * F.normalize(torch.randn(classes, dim, generator=g), dim=1)
    y, asked = (torch.randperm(n, generator=g) % classes for n in (bank, queries))
    x, query = (centers[c] + torch.randn(len(c), dim, generator=g) for c in (y, asked))
    return Drawn(x, y, query, classes)


def measured(arms: dict[str, Answer], rounds: int) -> dict[str, Any]:
    """Ours is the arm that others are compared with."""
    said: dict[str, Tensor] = {}

    def keeping(name: str, answer: Answer) -> Callable[[], None]:
        def work() -> None:
            said[name] = answer()

        return work

    works = {name: keeping(name, answer) for name, answer in arms.items()}
    seconds = interleave(works, rounds, time.process_time if single() else wall)
    return {
        name: {
            "seconds": mine,
            **spread(mine),
            "times saccade": spread([a / b for a, b in zip(mine, seconds["saccade"], strict=True)]),
            "same": (said[name] == said["saccade"]).float().mean().item(),
        }
        for name, mine in seconds.items()
    }


def neighbors(drawn: Drawn) -> dict[str, Answer]:
    arms: dict[str, Answer] = {"saccade": lambda: vote(drawn, _ours(drawn))}
    if find_spec("lightly"):
        arms["lightly"] = lambda: by_lightly(drawn)
    if find_spec("faiss"):
        arms["faiss, our vote"] = lambda: vote(drawn, by_faiss(drawn))
    if find_spec("sklearn"):
        arms["scikit-learn"] = lambda: by_sklearn(drawn)
    return arms


def _ours(drawn: Drawn) -> tuple[Tensor, Tensor]:
    return knn.neighbors(drawn.query, drawn.x, K)


def vote(drawn: Drawn, near: tuple[Tensor, Tensor]) -> Int[Tensor, "n"]:
    return knn.vote(near, drawn.y, drawn.classes, K, TEMPERATURE).argmax(1)


def by_lightly(drawn: Drawn) -> Int[Tensor, "n"]:
    from lightly.utils.benchmarking import knn_predict

    unit = F.normalize(drawn.x, dim=1).T.contiguous()
    blocks = F.normalize(drawn.query, dim=1).split(knn.QUERIES)  # as many as ours takes at a time
    ranked = [knn_predict(b, unit, drawn.y, drawn.classes, K, TEMPERATURE) for b in blocks]
    return torch.cat(ranked)[:, 0]


def by_faiss(drawn: Drawn) -> tuple[Tensor, Tensor]:
    import faiss  # pyright: ignore[reportMissingImports]

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(drawn.x.shape[1])
    index.add(F.normalize(drawn.x, dim=1).numpy())
    cosine, row = index.search(F.normalize(drawn.query, dim=1).numpy(), K)
    return torch.from_numpy(cosine), torch.from_numpy(row)


def by_sklearn(drawn: Drawn) -> Int[Tensor, "n"]:
    from sklearn.neighbors import KNeighborsClassifier

    def weights(distance: np.ndarray) -> np.ndarray:  # 1 - cosine
        return np.exp((1 - distance) / TEMPERATURE)

    kind: Any = KNeighborsClassifier  # its stubs know no weights but named ones
    model = kind(K, metric="cosine", algorithm="brute", weights=weights)
    model.fit(drawn.x.numpy(), drawn.y.numpy())
    return torch.from_numpy(model.predict(drawn.query.numpy()))


def regressions(drawn: Drawn) -> dict[str, Answer]:
    def ours() -> Int[Tensor, "n"]:
        return logistic.fit(drawn.x, drawn.y, drawn.classes)(drawn.query).argmax(1)

    arms: dict[str, Answer] = {"saccade": ours}
    if find_spec("sklearn"):
        arms["scikit-learn"] = lambda: regressed(drawn)
    return arms


def regressed(drawn: Drawn) -> Int[Tensor, "n"]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    settings = {"C": logistic.C, "max_iter": logistic.STEPS, "tol": logistic.TOLERANCE}
    solver = LogisticRegression(**settings)
    model = make_pipeline(StandardScaler(), solver)
    model.fit(drawn.x.double().numpy(), drawn.y.numpy())
    return torch.from_numpy(model.predict(drawn.query.double().numpy()))


ARMS: dict[str, Callable[[Drawn], dict[str, Answer]]] = {
    "knn": neighbors,
    "logistic": regressions,
}


def show(found: dict[str, Any]) -> None:
    """Every arm's seconds, as multiples of ours, as a table."""
    from rich.console import Console
    from rich.table import Table

    settings = found["settings"]
    view = Table(
        box=None,
        title=f"{settings['queries']:,} features judged by {settings['bank']:,} of "
        f"{settings['dim']} channels, {settings['classes']} classes",
        caption=f"medians of {settings['rounds']} interleaved rounds, between quartiles",
    )
    for name in ("protocol", "arm", "s", "x ours", "", "same, %"):
        view.add_column(name, justify="left" if name in ("protocol", "arm") else "right")
    for protocol, arms in found["protocols"].items():
        for name, arm in arms.items():
            times = arm["times saccade"]
            view.add_row(
                protocol,
                name,
                f"{arm['median']:.3f}",
                f"{times['median']:.2f}",
                f"{times['low']:.2f} to {times['high']:.2f}",
                f"{100 * arm['same']:.2f}",
            )
    Console().print(view)
