"""Which patches a model may see."""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor

from .random import uniform


def kept_patches(patches: int, mask_ratio: float) -> int:
    """How many patches stay, rounded down: 100 patches at ratio .9 keep 9, as in MAE's code."""
    kept = int(patches * (1 - mask_ratio))
    if not 0 < kept < patches:
        raise ValueError(
            f"setting method.mask_ratio: {mask_ratio} keeps {kept} of {patches} patches;"
            " keep at least one and hide at least one"
        )
    return kept


def random_order(key: Int[Tensor, "b"], patches: int) -> Int[Tensor, "b patches"]:
    """A permutation of the patches for each key: the first ones are kept.

    It depends on nothing but the key. `argsort` along axis 1 brings it back to raster order.
    """
    return uniform(key, patches, "mask").argsort(dim=1, stable=True)
