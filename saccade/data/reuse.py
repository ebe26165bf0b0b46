"""Memory of batches, used again: fresh pages from the system would cost as much as decoding."""

from __future__ import annotations

import weakref

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor


class Pool:
    """Blocks of one size, each handed out again once nothing looks at it any more."""

    def __init__(self, *, pin: bool) -> None:
        self.pin = pin  # for copies to a GPU
        self.free: list[np.ndarray] = []

    def take(self, count: int, dtype: np.dtype) -> Shaped[Tensor, "count"]:
        """Numbers of any value; `count` and `dtype` are those of the first call."""
        try:
            block = self.free.pop()
        except IndexError:
            block = np.empty(count, dtype)
            if self.pin:
                block = torch.from_numpy(block).pin_memory().numpy()
        lease = block.view()  # every tensor made of it keeps it alive
        weakref.finalize(lease, self.free.append, block).atexit = False
        return torch.from_numpy(lease)
