"""Work on threads, handed out in order and never far ahead of who consumes it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def ordered(
    work: Callable[[T], R], items: Iterable[T], *, threads: int, ahead: int
) -> Generator[R]:
    """work(item) for each item, in order; at most `ahead` results wait for the consumer.

    What a thread raises is raised here. Closing the generator ends its threads.
    """
    torch.get_num_threads()  # the caller keeps its own count: workers set theirs below
    pool = ThreadPoolExecutor(threads, "saccade-data", initializer=_one_core)
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _one_core() -> None:
    torch.set_num_threads(1)  # of this thread: the pool is the parallelism
