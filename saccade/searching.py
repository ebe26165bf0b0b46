"""Search in what `saccade embed` wrote: by a picture that is not in it, by an index, as a sheet.

Without an index every vector is compared, which is exact: a million vectors of 384 numbers take
seconds. `build_index` makes usearch's graph beside the file (HNSW, Malkov and Yashunin 2016,
arXiv:1603.09320), which answers in milliseconds and misses a few; cosines it gives are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float, Int
from PIL import Image, ImageDraw, ImageFont

from . import embedding, weights
from .config import from_dict
from .data.source import BadPicture, Source, open_source
from .engine import distributed
from .evals.features import Preprocess, Progress, extract, quiet, weights_hash

INDEX = ".usearch"  # added to the table's name
SIDE, TEXT, ACROSS = 160, 34, 6  # pixels of a tile and of the words below it; tiles in a row


def vector_of(table: Path, picture: Path, name: str = "") -> Float[np.ndarray, "d"]:
    """The picture through the network that made the table: `name`, or what the table says.

    Raises ValueError where the weights are others.
    """
    about = embedding.metadata(table)
    loaded = weights.load(name or about["model"])
    if weights_hash(loaded.backbone) != about["weights"]:
        raise ValueError(
            f"setting weights: {loaded.source} is not what made {table} ({about['model']}); "
            "give those weights, or embed again"
        )
    source = open_source(str(picture), channels=loaded.config.channels)
    preprocess = from_dict(Preprocess, about["preprocess"], "preprocess.")
    found = extract(loaded.backbone.to(distributed.device()), source, preprocess)
    return found.x[0].float().cpu().numpy()


def search(
    table: Path, query: str, *, top: int = 10, name: str = "", exact: bool = False
) -> list[dict[str, Any]]:
    """The nearest rows to a path in the table or to a picture file, nearest first.

    Taken from the index where there is one that fits the table, unless `exact`.
    """
    embedding.metadata(table)  # or it is no table
    vector: str | Float[np.ndarray, "d"] = query
    if Path(query).is_file() and not _holds(table, query):
        vector = vector_of(table, Path(query), name)
    elif name:
        raise ValueError(f"setting weights: {query!r} stands in {table}; leave weights out")
    if exact or not index_path(table).exists():
        return embedding.search(table, vector, top)
    own = vector if isinstance(vector, str) else None
    x = embedding.vector(table, vector) if isinstance(vector, str) else vector
    rows = _rows(table, _ask(table, x, top + (own is not None)))
    kept = [(row, v) for row, v in rows if row["path"] != own]
    unit = x / max(float(np.linalg.norm(x)), 1e-12)
    for row, v in kept:
        row["cosine"] = float(v @ unit / max(float(np.linalg.norm(v)), 1e-12))
    return sorted((row for row, _ in kept), key=lambda row: -row["cosine"])[:top]


def build_index(table: Path, progress: Progress = quiet) -> Path:
    """Write the index beside the table, whole or not at all. Needs the extra `search`."""
    index, total = _usearch(table), pq.read_metadata(table).num_rows
    first = 0
    for group in embedding.groups(table):
        rows = embedding.matrix(group)
        index.add(np.arange(first, first + len(rows)), rows)
        first += len(rows)
        progress(first, total)
    weights.write_beside(index_path(table), lambda beside: index.save(str(beside)))
    return index_path(table)


def index_path(table: Path) -> Path:
    return table.with_name(table.name + INDEX)


def sheet(table: Path, query: str, rows: Sequence[dict[str, Any]], data: str = "") -> Image.Image:
    """The query and its neighbors as pictures, from `data` or from where the table came from."""
    about = embedding.metadata(table)
    data = data or about.get("data", "")
    if not data:
        raise ValueError(f"setting data: {table} does not say where its pictures lie; give data")
    source = open_source(data, split=about.get("split") or "train")
    tiles = [(_query(table, query, source), "query", "")]
    for row in rows:
        if row["index"] >= len(source) or source.name(row["index"]) != row["path"]:
            raise ValueError(
                f"setting data: {data} has no {row['path']} at {row['index']} any more; embed again"
            )
        tiles.append((_read(source, row["index"]), f"{row['cosine']:.3f}", row["label"] or ""))
    high = -(-len(tiles) // ACROSS)
    page = Image.new("RGB", (ACROSS * SIDE, high * (SIDE + TEXT)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for i, (picture, *words) in enumerate(tiles):
        x, y = i % ACROSS * SIDE, i // ACROSS * (SIDE + TEXT)
        page.paste(picture, (x + (SIDE - picture.width) // 2, y + (SIDE - picture.height) // 2))
        pen.text((x + 6, y + SIDE + 2), "  ".join(words)[:24], "black", font)
    return page


def _holds(table: Path, path: str) -> bool:
    return any(path in group["path"].to_pylist() for group in embedding.groups(table))


def _query(table: Path, query: str, source: Source) -> Image.Image:
    """The picture asked for: a row of the table, or a file."""
    for group in embedding.groups(table):
        paths = group["path"].to_pylist()
        if query in paths:
            return _read(source, group["index"][paths.index(query)].as_py())
    return _read(open_source(query), 0)


def _read(source: Source, i: int) -> Image.Image:
    """A tile; gray where the picture cannot be read."""
    try:
        picture = Image.fromarray(source.read(i)[:3].permute(1, 2, 0).numpy())
    except BadPicture:
        return Image.new("RGB", (SIDE - 8, SIDE - 8), "#999999")
    picture.thumbnail((SIDE - 8, SIDE - 8))
    return picture.convert("RGB")


def _ask(table: Path, x: Float[np.ndarray, "d"], top: int) -> Int[np.ndarray, "k"]:
    """Numbers of rows near the vector, by the index."""
    index = _usearch(table)
    index.load(str(index_path(table)))
    if len(index) != pq.read_metadata(table).num_rows:
        raise ValueError(
            f"{index_path(table)} is the index of another table ({len(index)} rows); "
            "delete it, or embed again with --index"
        )
    return np.sort(index.search(x.astype(np.float32), top).keys.astype(np.int64))


def _rows(
    table: Path, wanted: Int[np.ndarray, "k"]
) -> list[tuple[dict[str, Any], Float[np.ndarray, "d"]]]:
    """Rows of the table by number, with their vectors; only the groups that hold one are read."""
    found, first = [], 0
    with pq.ParquetFile(table) as file:
        for g in range(file.num_row_groups):
            last = first + file.metadata.row_group(g).num_rows
            mine = wanted[(wanted >= first) & (wanted < last)] - first
            if len(mine):
                group = file.read_row_group(g)
                vectors = embedding.matrix(group)
                rows = group.select(["path", "label", "index"]).take(mine).to_pylist()
                found += [(row, vectors[i]) for row, i in zip(rows, mine, strict=True)]
            first = last
    return found


def _usearch(table: Path) -> Any:
    try:
        from usearch.index import Index
    except ImportError:
        raise ValueError(
            "setting index: needs the package usearch; pip install 'saccade[search]'"
        ) from None
    dim = pq.read_schema(table).field("vector").type.list_size
    return Index(ndim=dim, metric="cos", dtype="f32")
