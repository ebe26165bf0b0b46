"""Exact nearest neighbors beside faiss: seconds and memory of the kNN protocols' search.

    python benchmarks/knn.py out.json --bank 1000000 --queries 10000 --dim 384 --k 20

Both search the same unit vectors in this process, in turn, on the same number of threads; each
figure is the smallest over rounds. Memory is what the process holds above the vectors themselves at
its peak. Needs `pip install faiss-cpu`.
"""

from __future__ import annotations

import argparse
import platform
import threading
import time
from collections.abc import Callable
from typing import Any

import faiss
import torch
import torch.nn.functional as F

from saccade.evals.knn import neighbors
from saccade.evals.results import write_json


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


class Peak:
    """The most memory held while the block runs, above what was held before."""

    def __enter__(self) -> Peak:
        self.start = self.most = resident()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        self.extra = self.most - self.start

    def _watch(self) -> None:
        while not self.done.wait(0.01):
            self.most = max(self.most, resident())


def timed(work: Callable[[], Any]) -> tuple[Any, float, float, int]:
    """Answer, wall seconds, processor seconds, extra bytes."""
    with Peak() as peak:
        wall, cpu = time.perf_counter(), time.process_time()
        answer = work()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return answer, wall, cpu, peak.extra


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    for name, value in (("bank", 200_000), ("queries", 2000), ("dim", 384), ("k", 20)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    draws = torch.Generator().manual_seed(0)
    bank = F.normalize(torch.randn(args.bank, args.dim, generator=draws), dim=1)
    query = F.normalize(torch.randn(args.queries, args.dim, generator=draws), dim=1)

    def by_faiss() -> torch.Tensor:
        index = faiss.IndexFlatIP(args.dim)
        index.add(bank.numpy())
        return torch.from_numpy(index.search(query.numpy(), args.k)[1])

    arms = {"faiss": by_faiss, "saccade": lambda: neighbors(query, bank, args.k)[1]}
    rounds: dict[str, list[tuple[float, float, int]]] = {name: [] for name in arms}
    rows: dict[str, torch.Tensor] = {}
    for _ in range(args.rounds):
        for name, work in arms.items():
            rows[name], *figures = timed(work)
            rounds[name].append(tuple(figures))  # type: ignore[arg-type]
    found = {
        name: {
            "seconds": min(r[0] for r in each),
            "cpu_seconds": min(r[1] for r in each),
            "extra_mib": max(r[2] for r in each) / 2**20,
            "rounds": each,
        }
        for name, each in rounds.items()
    }
    ratios = {
        key: found["saccade"][key] / found["faiss"][key] for key in ("seconds", "cpu_seconds")
    }
    content = {
        **vars(args),
        "arms": found,
        "ratio": ratios,
        "same_rows": (rows["faiss"] == rows["saccade"]).float().mean().item(),
        "versions": {"torch": torch.__version__, "faiss": faiss.__version__},
        "machine": platform.processor() or platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
    }
    write_json(args.out, content)
    print(
        {k: content[k] for k in ("ratio", "same_rows")},
        {k: v["extra_mib"] for k, v in found.items()},
    )


if __name__ == "__main__":
    main()
