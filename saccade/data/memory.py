"""Pictures decoded once and kept as 8-bit pixels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Int64, Shaped
from torch import Tensor

from .bad import Bad
from .source import BadPicture, Source
from .threads import ordered

VERIFY = 20_000  # pictures: sets up to this size are read to the end even where memory is short


class Memory(Source):
    """Pictures of another source, of which the first ones are held decoded."""

    def __init__(
        self, source: Source, rows: Int64[np.ndarray, "m"], held: list[Shaped[Tensor, "c _ _"]]
    ) -> None:
        self.channels, self.classes = source.channels, source.classes
        self.split, self.skipped = source.split, source.skipped
        self.wide = source.wide
        self.labels = None if source.labels is None else source.labels[rows]
        self.source, self.rows, self.held = source, rows, held

    def __len__(self) -> int:
        return len(self.rows)

    def stored(self, i: int) -> str | bytes | Shaped[Tensor, "k h w"]:
        return self.held[i] if i < len(self.held) else self.source.stored(int(self.rows[i]))

    def name(self, i: int) -> str:
        return self.source.name(int(self.rows[i]))


def in_memory(
    source: Source,
    *,
    budget: int,
    threads: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Source, list[Bad]]:
    """The readable pictures, held decoded up to `budget` bytes, and those that were dropped.

    Beyond the budget pictures are still tried, in sets up to VERIFY, but read again when asked
    for; larger sets stay unread there. `progress` is told how many of how many are done.
    """
    if source.resident:
        return source, []
    held: list[Tensor] = []
    good: list[int] = []
    bad: list[Bad] = []
    full = False

    def work(i: int) -> Tensor | Bad:
        try:
            return source.read(i)
        except BadPicture as error:
            return Bad(error.name, error.reason)

    stream = ordered(work, range(len(source)), threads=threads, ahead=2 * threads)
    for i, got in enumerate(stream):
        if isinstance(got, Bad):
            bad.append(got)
        else:
            good.append(i)
            budget -= got.nbytes
            full = full or budget < 0
            if not full:
                held.append(got)
        if progress:
            progress(i + 1, len(source))
        if full and len(source) > VERIFY:
            good.extend(range(i + 1, len(source)))
            break
    stream.close()
    if not good:
        raise ValueError(
            f"data: none of {len(bad)} pictures can be read, such as {bad[0].name}: {bad[0].reason}"
        )
    return Memory(source, np.array(good, dtype=np.int64), held), bad
