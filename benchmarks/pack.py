"""Pictures per second from a packed cache against the files it was made of.

    python benchmarks/pack.py FOLDER [FOLDER ...] --sizes 0,160 --json benchmarks/results/pack.json
    python benchmarks/pack.py --npz cifar.npz --pictures 5000

Each arm reads and decodes the same pictures in the same random order, in one thread of one process.
The arms take turns; a figure is the median over the rounds of pictures per second of CPU time.
An npz file is first written out as a folder of PNG files, as CIFAR-10 is often kept.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from saccade.bench import machine, versions
from saccade.data import Source, open_source
from saccade.data.packing import pack
from saccade.evals.results import write_json
from saccade.recipe import Cache


def as_folder(npz: Path, folder: Path, pictures: int) -> str:
    """The first training pictures of an npz file as PNG files in class folders."""
    with np.load(npz) as held:
        x, y = held["x"][:pictures], held["y"][:pictures]
    for k in np.unique(y):
        (folder / str(k)).mkdir(parents=True)
    for i, (pixels, k) in enumerate(zip(x, y, strict=True)):
        Image.fromarray(pixels).save(folder / str(k) / f"{i:05d}.png")
    return str(folder)


def seconds(source: Source, order: list[int]) -> float:
    """CPU time of reading and decoding these pictures."""
    began = time.thread_time()
    for i in order:
        source.read(i)
    return time.thread_time() - began


def measure(data: str, sizes: list[int], pictures: int, rounds: int, work: Path) -> dict[str, Any]:
    """Rates of the folder and of a pack of each size, side by side."""
    arms, packs = {"folder": open_source(data)}, {}
    for size in sizes:
        name, folder = f"pack, size {size}", work / str(size)
        began = time.perf_counter()
        report = pack(data, Cache(folder=str(folder), size=size), threads=2)
        packs[name] = {
            "seconds_to_pack": round(time.perf_counter() - began, 1),
            "MiB": round(report.bytes / 2**20, 1),
        }
        arms[name] = open_source(str(folder))
    count = min(pictures, len(arms["folder"]))
    order = np.random.default_rng(0).permutation(len(arms["folder"]))[:count].tolist()
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for k in range(rounds + 1):
        for name, source in arms.items():
            rate = count / seconds(source, order)
            if k:  # the first round fills the system's cache of files
                rates[name].append(rate)
    middle = {name: statistics.median(found) for name, found in rates.items()}
    return {
        "pictures": count,
        "pictures_per_second": {name: round(rate, 1) for name, rate in middle.items()},
        "times_the_folder": {n: round(r / middle["folder"], 2) for n, r in middle.items()},
        "rounds": {name: [round(rate, 1) for rate in found] for name, found in rates.items()},
        "packs": packs,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="*")
    parser.add_argument("--npz", type=Path)
    parser.add_argument("--sizes", default="0,160")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sizes = [int(s) for s in args.sizes.split(",")]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for k, data in enumerate(args.folders):
            one = measure(data, sizes, args.pictures, args.rounds, work / f"packs-{k}")
            found["/".join(Path(data).parts[-2:])] = one
        if args.npz:
            data = as_folder(args.npz, work / "png", args.pictures)
            one = measure(data, [0], args.pictures, args.rounds, work / "packs-npz")
            found[args.npz.stem] = one
    for name, one in found.items():
        print(name, json.dumps({k: v for k, v in one.items() if k != "rounds"}, indent=2))
    if args.json:
        content = {
            "what": "pictures read and decoded a second, one thread, folder against packed cache",
            "command": " ".join(["python", "benchmarks/pack.py", *map(shown, sys.argv[1:])]),
            "date": datetime.date.today().isoformat(),
            "machine": machine(),
            "versions": versions(),
            "results": found,
        }
        write_json(args.json, content)


def shown(argument: str) -> str:
    """An argument without the folders of this machine."""
    return "/".join(Path(argument).parts[-2:]) if "/" in argument else argument


if __name__ == "__main__":
    main()
