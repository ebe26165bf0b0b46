"""The weights in a file that others released, by name; no code that a file names is run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


class Inert:
    """Stands for every class and function of a file: it keeps what the file says of an object."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, said: Any) -> None:
        if isinstance(said, dict):
            vars(self).update(said)


def read(path: Path) -> dict[str, Tensor]:
    """Every weight in a file under its name in a state dict.

    The file is safetensors, or of torch: a state dict, a checkpoint with one under `state_dict`,
    or a whole module. ValueError where it is damaged, or is none of these.
    """
    try:
        held: Any = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
        if isinstance(held, Inert):
            held = dict(_tensors(held, ""))
        held = held.get("state_dict", held)
        other = [k for k, v in held.items() if not (isinstance(k, str) and isinstance(v, Tensor))]
    except Exception as error:  # a damaged pickle may end in any
        raise _refused(path, type(error).__name__) from None
    if other:
        raise _refused(path, f"{other[0]} is no tensor")
    return held


def _unpickled(path: Path) -> Any:
    """What torch saved, with `Inert` wherever the file names a class that holds no tensor."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:
        names = []  # the format before torch 1.6, whose names cannot be listed
    with torch.serialization.safe_globals([(Inert, name) for name in names]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _tensors(node: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Every parameter in a tree of modules under its name in a state dict."""
    for name, value in vars(node)["_parameters"].items():
        yield prefix + name, value.detach()
    for name, child in vars(node)["_modules"].items():
        yield from _tensors(child, f"{prefix}{name}.")


def _refused(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"setting method.tokenizer: {path} cannot be read as weights ({reason}); copy it again, "
        "or give its state dict"
    )
