"""Datasets of Hugging Face, from the hub or a folder: at random, or as a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from .folder import LABEL_COLUMNS, TEST_FOLDERS, numbered
from .source import Source, Split

WHOLE = "all"  # of a folder saved without splits


class HuggingFace(Source):
    """The image column of a dataset, as its files; labels where a column is called so."""

    def __init__(self, title: str, dataset: Any, split: Split | None, channels: int) -> None:
        self.title, self.channels = title, channels
        self.split, self.skipped = split or "", 0
        self.column, self.dataset = encoded(title, dataset)
        self.classes, self.labels = _labels(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def stored(self, i: int) -> str | bytes | UInt8[Tensor, "k h w"]:
        return _file(self.dataset[i][self.column])

    def name(self, i: int) -> str:
        return f"{self.title}[{i}]"


def from_hub(spec: str, split: Split, channels: int) -> HuggingFace:
    """The dataset NAME or NAME:SPLIT; NAME may be a folder, also one of `save_to_disk`."""
    dataset, side, name = load(spec, split, streaming=False)
    chosen = ":" in spec or side == WHOLE
    return HuggingFace(f"{Path(name).name}/{side}", dataset, None if chosen else split, channels)


def load(spec: str, split: Split, *, streaming: bool) -> tuple[Any, str, str]:
    """The dataset, the name of its split, and its name. Nothing of it is executed."""
    name, _, side = spec.partition(":")
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError:
        raise ValueError(
            f"data hf:{spec} needs the package datasets; run: pip install 'saccade[datasets]'"
        ) from None
    try:
        if (Path(name) / "dataset_dict.json").is_file():
            saved = datasets.load_from_disk(name)
            side = side or _side(name, list(saved), split)
            if side not in saved:
                raise ValueError(f"no split {side!r}, only {', '.join(map(str, saved))}")
            return _stream(saved[side], streaming), side, name
        if (Path(name) / "state.json").is_file():
            return _stream(datasets.load_from_disk(name), streaming), side or WHOLE, name
        side = side or _side(name, datasets.get_dataset_split_names(name), split)
        return datasets.load_dataset(name, split=side, streaming=streaming), side, name
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise ValueError(f"data hf:{spec}: {error}") from None


def encoded(title: str, dataset: Any) -> tuple[str, Any]:
    """The name of the image column, and the dataset with that column as files."""
    import datasets

    features = dataset.features or {}
    images = [k for k, v in features.items() if isinstance(v, datasets.Image)]
    if not images:
        raise ValueError(f"data {title}: no column of pictures among {list(features)}")
    plain = dataset.select_columns(images[:1])
    return images[0], plain.cast_column(images[0], datasets.Image(decode=False))


def shard(dataset: Any, column: str, k: int, title: str) -> Iterator[tuple[str, str | bytes]]:
    """Names and contents of a shard of a streamed dataset."""
    for place, row in enumerate(dataset.shard(dataset.num_shards, k)):
        yield f"{title}[{k}][{place}]", _file(row[column])


def _file(cell: dict[str, Any] | None) -> str | bytes:
    """The bytes of a cell, or its path; no bytes where it is empty."""
    return (cell["bytes"] or cell["path"] or b"") if cell else b""


def _stream(dataset: Any, streaming: bool) -> Any:
    if not streaming:
        return dataset
    return dataset.to_iterable_dataset(num_shards=max(len(dataset.cache_files), 1))


def _side(name: str, found: Sequence[Any], split: Split) -> str:
    wanted = ("train",) if split == "train" else TEST_FOLDERS
    for side in wanted:
        if side in found:
            return side
    raise ValueError(f"no {split} split, only {', '.join(found)}; name one: hf:{name}:SPLIT")


def _labels(dataset: Any) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Labels of the first column that is called so: of classes, whole numbers or words."""
    import datasets

    names = [k for k in dataset.features if k.lower() in LABEL_COLUMNS]
    if not names:
        return (), None
    column = dataset.select_columns(names[:1]).with_format("arrow")[:][names[0]]
    if column.null_count:
        return (), None
    feature = dataset.features[names[0]]
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names), column.to_numpy().astype(np.int64)
    return numbered([str(value) for value in column.to_pylist()])
