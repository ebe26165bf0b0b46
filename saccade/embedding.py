"""A vector for every picture, in one parquet file, and the search in it.

Columns: path, label (class name or null), index (position in the source), vector (float32, as the
network gives it, not scaled to unit length). The file's metadata holds, under the key `saccade`,
a JSON table: version, model, weights (a hash), data, split, preprocess, pictures, skipped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from . import __version__
from .core import Backbone
from .data.source import Source
from .evals.features import (
    Preprocess,
    Progress,
    batches,
    check_any,
    evaluating,
    quiet,
    weights_hash,
)

KEY = b"saccade"  # of the file's metadata


@dataclass(frozen=True, slots=True)
class Embedded:
    """What was written."""

    path: Path
    rows: int
    dim: int  # of the vectors
    skipped: int  # pictures that could not be read


def embed(
    model: Backbone,
    source: Source,
    preprocess: Preprocess,
    out: Path | str,
    *,
    name: str = "model",
    data: str = "",
    batch_size: int = 256,
    threads: int = 2,
    progress: Progress = quiet,
) -> Embedded:
    """Write the pooled vector of every readable picture, batch by batch; the file comes whole.

    `name` and `data` say in its metadata what made the vectors, and of what.
    """
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    rows, bad = 0, []
    try:
        with pq.ParquetWriter(beside, _schema(model.dim)) as writer, evaluating(model):
            for x, index in batches(model, source, preprocess, batch_size, threads, bad):
                vectors = model(x).float().cpu().numpy()
                writer.write_table(_table(source, index.tolist(), vectors))
                rows += len(index)
                progress(rows, len(source))
            check_any(rows, bad)
            about = {
                "version": __version__,
                "model": name,
                "data": data,
                "split": source.split,
                "weights": weights_hash(model),
                "preprocess": asdict(preprocess),
                "pictures": rows,
                "skipped": len(bad),
            }
            writer.add_key_value_metadata({KEY: json.dumps(about).encode()})
        os.replace(beside, out)
    finally:
        beside.unlink(missing_ok=True)
    return Embedded(out, rows, model.dim, len(bad))


def metadata(path: Path | str) -> dict[str, Any]:
    """The metadata that `embed` wrote."""
    if not Path(path).is_file():
        raise ValueError(f"table {path} is not there; let `saccade embed` write it")
    table = (pq.read_metadata(path).metadata or {}).get(KEY)
    if table is None:
        raise ValueError(f"{path}: not written by `saccade embed`; embed the pictures first")
    return json.loads(table)


def search(path: Path | str, query: Float[np.ndarray, "d"] | str, top: int = 10) -> list[dict]:
    """The nearest rows by cosine: path, label, index, cosine, nearest first.

    The query is a vector, or the path of a row, which is then left out of the answer.
    """
    if top < 1:
        raise ValueError(f"setting top: {top} is too few; give 1 or more")
    own = query if isinstance(query, str) else None
    x = vector(path, query) if isinstance(query, str) else query
    rows = []
    for group in groups(path):
        rows += _nearest(group, x / max(float(np.linalg.norm(x)), 1e-12), own, top)
    return sorted(rows, key=lambda row: -row["cosine"])[:top]


def _schema(dim: int) -> pa.Schema:
    columns = {
        "path": pa.string(),
        "label": pa.string(),
        "index": pa.int64(),
        "vector": pa.list_(pa.float32(), dim),
    }
    return pa.schema(columns)


def _table(source: Source, index: list[int], vectors: Float[np.ndarray, "b d"]) -> pa.Table:
    numbers = [-1] * len(index) if source.labels is None else source.labels[index].tolist()
    columns = {
        "path": [source.name(i) for i in index],
        "label": [None if k < 0 else source.classes[k] for k in numbers],
        "index": index,
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
    }
    return pa.table(columns, schema=_schema(vectors.shape[1]))


def groups(path: Path | str) -> Iterator[pa.Table]:
    """The table piece by piece."""
    with pq.ParquetFile(path) as file:
        for i in range(file.num_row_groups):
            yield file.read_row_group(i)


def matrix(group: pa.Table) -> Float[np.ndarray, "n d"]:
    """Its vectors."""
    column = group["vector"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(group), column.type.list_size)


def vector(path: Path | str, name: str) -> Float[np.ndarray, "d"]:
    """That of the row with this path. Raises ValueError where there is none."""
    for group in groups(path):
        paths = group["path"].to_pylist()
        if name in paths:
            return matrix(group)[paths.index(name)]
    raise ValueError(f"query {name!r} is not among the paths of {path}; see its column path")


def _nearest(
    group: pa.Table, unit: Float[np.ndarray, "d"], own: str | None, top: int
) -> list[dict[str, Any]]:
    rows = matrix(group)
    if rows.shape[1] != len(unit):
        raise ValueError(
            f"query has {len(unit)} numbers, the file's vectors {rows.shape[1]}; "
            "take the query from the same weights"
        )
    cosine = rows @ unit / np.maximum(np.linalg.norm(rows, axis=1), 1e-12)
    found = []
    for i in np.argsort(-cosine, kind="stable")[: top + (own is not None)].tolist():
        row = group.select(["path", "label", "index"]).slice(i, 1).to_pylist()[0]
        if row["path"] != own:
            found.append(row | {"cosine": float(cosine[i])})
    return found
