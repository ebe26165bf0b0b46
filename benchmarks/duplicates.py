"""Plant changed copies among real pictures and count what `saccade doctor` finds of them.

python benchmarks/duplicates.py FOLDER ... --json benchmarks/results/duplicates.json

Every 4th picture is planted anew in each way; the other pairs found are listed for the eye.
"""

from __future__ import annotations

import argparse
import datetime
import io
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from saccade.bench import machine, versions
from saccade.data.duplicates import groups, near, thumbnail
from saccade.data.source import open_source
from saccade.evals.results import write_json

EVERY = 4


def encoded(picture: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=60)
    return Image.open(stream)


def smaller(picture: Image.Image) -> Image.Image:
    size = (round(picture.width * 0.7), round(picture.height * 0.7))
    return picture.resize(size, Image.Resampling.BICUBIC)


def cropped(picture: Image.Image, share: float, place: random.Random) -> Image.Image:
    w, h = round(picture.width * (1 - share)), round(picture.height * (1 - share))
    x, y = place.randint(0, picture.width - w), place.randint(0, picture.height - h)
    return picture.crop((x, y, x + w, y + h))


def changes() -> dict[str, Callable[[Image.Image], Image.Image]]:
    place = random.Random(0)
    return {
        "JPEG quality 60": encoded,
        "resized by 0.7": smaller,
        "sides cropped by 5 %": lambda p: cropped(p, 0.05, place),
        "sides cropped by 10 %": lambda p: cropped(p, 0.1, place),
        "all: 5 % crop, 0.7, quality 60": lambda p: encoded(smaller(cropped(p, 0.05, place))),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="+")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    rows, names, planted = [], [], {name: [] for name in changes()}
    ways = changes()
    for data in args.data:
        source = open_source(data)
        for i in range(len(source)):
            x = source.read(i)
            if len(rows) % EVERY == 0:
                picture = Image.fromarray(x.permute(1, 2, 0).numpy())
                for name, change in ways.items():
                    copy = torch.from_numpy(np.array(change(picture))).permute(2, 0, 1)
                    planted[name].append((len(rows), thumbnail(copy)))
            rows.append(thumbnail(x))
            names.append(f"{data}/{source.name(i)}")
    own, n = np.stack(rows), len(rows)
    began = time.perf_counter()
    pairs = near(own)
    seconds = time.perf_counter() - began
    recall = {}
    for name, copies in planted.items():
        found = {pair[:2] for pair in near(np.concatenate([own, [t for _, t in copies]]))}
        recall[name] = sum((i, n + k) in found for k, (i, _) in enumerate(copies)) / len(copies)
    content = {
        "command": f"python benchmarks/duplicates.py {' '.join(args.data)} --json {args.json.name}",
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "pictures": n,
        "planted": len(planted["resized by 0.7"]),
        "recall": recall,
        "seconds": seconds,
        "groups": len(groups(pairs)),
        "pairs": [[names[i], names[j], score] for i, j, score in pairs],
    }
    write_json(args.json, content)
    print({k: v for k, v in content.items() if k != "pairs"}, len(pairs))


if __name__ == "__main__":
    main()
