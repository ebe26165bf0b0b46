"""Randomness as a function: the same key always gives the same draw, on any rank or device.

A counter-based generator: the 64-bit finalizer of MurmurHash3 (Appleby 2011, as varied by Stafford,
"mix 13") over key, salt and position. Keys, salts and positions are int64 and wrap around.
"""

from __future__ import annotations

import zlib

import torch
from jaxtyping import Float, Int
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 / golden ratio, as int64


def _mix(x: Tensor) -> Tensor:
    for shift, factor in (
        (30, 0xBF58476D1CE4E5B9 - (1 << 64)),
        (27, 0x94D049BB133111EB - (1 << 64)),
    ):
        x = (
            x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))
        ) * factor  # logical shift, wrapping product
    return x ^ ((x >> 31) & ((1 << 33) - 1))


@torch.compiler.assume_constant_result  # zlib cannot be traced
def salt(name: str) -> int:
    """A fixed number for an operation's name."""
    return zlib.crc32(name.encode())


def fold(key: Int[Tensor, "*shape"], value: Int[Tensor, "*shape"] | int) -> Int[Tensor, "*shape"]:
    """A new key from a key and one more number: fold(fold(seed, epoch), index)."""
    return _mix(_mix(key + GOLDEN) ^ (torch.as_tensor(value, device=key.device) * GOLDEN))


def keys(seed: int, epoch: int, index: Int[Tensor, "b"]) -> Int[Tensor, "b"]:
    """One key per picture and epoch."""
    start = fold(torch.tensor(seed, device=index.device), epoch)
    return fold(start.expand_as(index), index)


def permutation(n: int, seed: int, epoch: int) -> Int[Tensor, "n"]:
    """Every number below n once, in the order of an epoch."""
    return fold(keys(seed, epoch, torch.arange(n)), salt("order")).argsort(stable=True)


def uniform(key: Int[Tensor, "b"], n: int, name: str) -> Float[Tensor, "b n"]:
    """n draws in [0, 1) for each key, float32, independent between names."""
    return ((_bits(key, n, name) >> 40) & 0xFFFFFF).float() / (1 << 24)


def integers(key: Int[Tensor, "b"], n: int, below: int, name: str) -> Int[Tensor, "b n"]:
    """n draws with replacement of 0, 1, ... below - 1 for each key, independent between names."""
    return ((_bits(key, n, name) >> 1) & ((1 << 63) - 1)) % below


def _bits(key: Tensor, n: int, name: str) -> Tensor:
    at = torch.arange(n, device=key.device)
    return fold(fold(key, salt(name))[:, None].expand(-1, n), at.expand(len(key), -1))
