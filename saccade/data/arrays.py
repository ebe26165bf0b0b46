"""Pictures that are arrays: npz files, and torchvision's datasets by name."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from ..config import suggest
from . import decode
from .decode import BadPicture
from .source import Source, Split

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
KEYS = {"train": ("x", "y"), "test": ("xt", "yt")}


class Arrays(Source):
    """Pictures of one size in memory."""

    resident = True

    def __init__(
        self,
        title: str,
        pictures: UInt8[Tensor, "n h w k"],
        labels: Int64[np.ndarray, "n"] | None,
        classes: tuple[str, ...],
        split: Split,
        channels: int,
    ) -> None:
        self.title = title
        self.pictures = pictures
        self.labels, self.classes = labels, classes
        self.split, self.skipped, self.channels = split, 0, channels

    def __len__(self) -> int:
        return len(self.pictures)

    def stored(self, i: int) -> str | bytes | UInt8[Tensor, "k h w"]:
        return self.pictures[i].permute(2, 0, 1)

    def name(self, i: int) -> str:
        return f"{self.title}[{i}]"


class Torchvision(Source):
    """A dataset of torchvision that returns Pillow pictures."""

    def __init__(
        self, title: str, dataset: Any, split: Literal["train", "test", ""], channels: int
    ) -> None:
        self.title, self.dataset = title, dataset
        self.split, self.skipped, self.channels = split, 0, channels
        self.labels = _labels(dataset)
        self.classes = () if self.labels is None else _classes(dataset, self.labels)

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, i: int) -> str:
        return f"{self.title}[{i}]"

    def stored(self, i: int) -> str | bytes | UInt8[Tensor, "k h w"]:
        try:
            picture = self.dataset[i][0]
        except Exception as error:  # whatever the dataset's own decoder raises
            raise BadPicture(self.name(i), str(error) or type(error).__name__) from error
        if not isinstance(picture, Image.Image):
            raise BadPicture(self.name(i), f"a {type(picture).__name__}, not a picture")
        return decode.pixels(picture, self.channels)


def from_npz(path: Path, split: Split, channels: int, classes: tuple[str, ...] = ()) -> Arrays:
    """uint8 pictures [n, h, w, c] or [n, h, w] under x and xt, their labels under y and yt."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {key: file[key] for key in KEYS[split] if key in file.files}
            held = sorted(file.files)
    except (OSError, ValueError) as error:
        raise ValueError(f"data {path} is not an npz file of arrays: {error}") from None
    x, y = (found.get(key) for key in KEYS[split])
    if x is None:
        raise ValueError(f"data {path} has no {KEYS[split][0]} ({split} pictures), only {held}")
    x = x[..., None] if x.ndim == 3 else x
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[-1] not in decode.MODES:
        raise ValueError(f"data {path}: {x.dtype} {x.shape} is not uint8 pictures [n, h, w, 1|3|4]")
    if y is not None and y.shape != x.shape[:1]:
        raise ValueError(f"data {path}: {len(y)} labels for {len(x)} pictures")
    labels = None if y is None else y.astype(np.int64)
    if labels is not None and not classes:
        classes = tuple(str(k) for k in range(labels.max(initial=-1) + 1))
    return Arrays(f"{path.stem}/{split}", torch.from_numpy(x), labels, classes, split, channels)


def cifar10(file: str, split: Split, channels: int) -> Arrays:
    """CIFAR-10 from an npz file, or as torchvision's download lies in the default folder."""
    if file:
        if not Path(file).is_file():
            raise ValueError(f"data cifar10:{file}: no such file")
        return from_npz(Path(file), split, channels, CIFAR10)
    dataset = _dataset("CIFAR10", _default_root(), split)
    labels = np.array(dataset.targets, dtype=np.int64)
    pictures = torch.from_numpy(dataset.data)
    return Arrays(f"cifar10/{split}", pictures, labels, CIFAR10, split, channels)


def torchvision(name: str, split: Split, channels: int) -> Torchvision:
    """A dataset by its class name, NAME or NAME:ROOT, already downloaded."""
    name, _, root = name.partition(":")
    dataset = _dataset(name, Path(root) if root else _default_root(), split)
    known = inspect.signature(type(dataset)).parameters
    side = split if {"train", "split"} & known.keys() else ""
    return Torchvision(f"{name}/{side or 'all'}", dataset, side, channels)


def _default_root() -> Path:
    return Path(os.environ.get("SACCADE_DATASETS", "~/.cache/saccade")).expanduser()


def _dataset(name: str, root: Path, split: Split) -> Any:
    from torchvision import datasets

    if name not in datasets.__all__:
        raise ValueError(f"data torchvision:{name} is unknown{suggest(name, datasets.__all__)}")
    build = vars(datasets)[name]
    known = inspect.signature(build).parameters
    fixed = {"root": str(root)} if "root" in known else {}
    choices = _split_arguments(known, split)
    for k, choice in enumerate(choices):
        try:
            return build(**fixed, **choice)
        except (RuntimeError, FileNotFoundError):
            call = f"torchvision.datasets.{name}({str(root)!r}, download=True)"
            remedy = f'download it: python -c "import torchvision; {call}"'
            raise ValueError(f"data {name} is not in {root}; {remedy}") from None
        except (TypeError, ValueError) as error:
            if k + 1 == len(choices):
                raise ValueError(f"data torchvision:{name}: {error}") from None
    raise AssertionError("there is always a last choice")


def _split_arguments(
    known: Mapping[str, inspect.Parameter], split: Split
) -> list[dict[str, str | bool]]:
    if "train" in known:
        return [{"train": split == "train"}]
    if "split" not in known:
        return [{}]
    if split == "train":  # the default, which is trainval or train-standard in some
        return [{}]
    return [{"split": "test"}, {"split": "val"}]


def _labels(dataset: Any) -> Int64[np.ndarray, "n"] | None:
    """Labels without decoding: torchvision keeps them under one of three names."""
    held = vars(dataset)
    for name in ("targets", "labels", "_labels"):
        labels = np.asarray(held[name]) if held.get(name) is not None else np.empty(0)
        if labels.shape == (len(dataset),) and labels.dtype.kind in "iu":
            return labels.astype(np.int64)
    return None


def _classes(dataset: Any, labels: Int64[np.ndarray, "n"]) -> tuple[str, ...]:
    count = int(labels.max(initial=-1)) + 1
    names = tuple(str(name) for name in getattr(dataset, "classes", ()))  # not ours: may lack it
    return names if len(names) >= count else tuple(str(k) for k in range(count))
