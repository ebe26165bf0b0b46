"""Draw nearest neighbors by the same network before and after pretraining.

    python benchmarks/neighbors.py runs/first docs/neighbors.jpg

Queries are test pictures, evenly spaced and not chosen; neighbors are training pictures, by cosine.
A green frame is the query's class, a red one another class.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from saccade import evals, weights
from saccade.data.source import Source, open_source
from saccade.run import FILE, read

QUERIES, NEIGHBORS, SIDE, EDGE, GAP = 5, 5, 84, 4, 28  # pixels
RIGHT, WRONG, PLAIN = (30, 140, 60), (200, 50, 40), (120, 120, 120)


def nearest(folder: Path, train: Source, test: Source, rows: np.ndarray) -> np.ndarray:
    """For each test row the training pictures nearest to it, [queries, neighbors]."""
    loaded = weights.load(folder)
    preprocess = evals.preprocess_for(loaded.backbone, loaded.normalize)
    bank, query = (
        F.normalize(evals.extract(loaded.backbone, s, preprocess).x, dim=1) for s in (train, test)
    )
    return (query[torch.from_numpy(rows)] @ bank.T).topk(NEIGHBORS).indices.numpy()


def tile(source: Source, i: int, color: tuple[int, int, int]) -> Image.Image:
    picture = Image.fromarray(source.read(int(i)).permute(1, 2, 0).numpy())
    inner = SIDE - 2 * EDGE
    framed = Image.new("RGB", (SIDE, SIDE), color)
    framed.paste(picture.resize((inner, inner), Image.Resampling.LANCZOS), (EDGE, EDGE))
    return framed


def draw(run: Path, out: Path) -> None:
    data = read(run / FILE).data
    train, test = open_source(data, split="train"), open_source(data, split="test")
    assert train.labels is not None
    assert test.labels is not None
    rows = np.linspace(0, len(test) - 1, QUERIES + 2).astype(int)[1:-1]
    width = SIDE * (1 + 2 * NEIGHBORS) + 2 * GAP
    sheet = Image.new("RGB", (width, SIDE * QUERIES + 24), "white")
    pen = ImageDraw.Draw(sheet)
    for r, row in enumerate(rows):
        sheet.paste(tile(test, row, PLAIN), (0, 24 + r * SIDE))
    pen.text((4, 6), "query", "black")
    for k, (name, title) in enumerate(
        (("initial", "random weights"), ("backbone", "after pretraining without labels"))
    ):
        left = SIDE + GAP + k * (NEIGHBORS * SIDE + GAP)
        pen.text((left + 4, 6), title, "black")
        found = nearest(run / name, train, test, rows)
        for r, row in enumerate(rows):
            for c, i in enumerate(found[r]):
                same = train.classes[train.labels[i]] == test.classes[test.labels[row]]
                sheet.paste(
                    tile(train, i, RIGHT if same else WRONG), (left + c * SIDE, 24 + r * SIDE)
                )
    sheet.save(out, quality=85)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python benchmarks/neighbors.py RUN OUT.jpg")
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
