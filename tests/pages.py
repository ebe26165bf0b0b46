"""A run folder such as `saccade pretrain` leaves, made without training, with hostile names."""

import csv
import json

import numpy as np
import torch
from PIL import Image

from saccade import backbones, weights
from saccade import run as runs
from saccade.config import override
from saccade.evals.results import Result, pack, write_results

CLASSES = ("<script>window.ran=1</script>", '"><img src=x onerror=ran()>', "plain & simple")
FILES = ("{} <b>bold</b>.png", "{} '\"onload=ran().png", "{}.png")
COLORS = ((200, 30, 30), (30, 160, 60), (40, 60, 200))


def data(folder, n=30, broken=True):
    """A list of pictures, each of one color, in three classes; one more may be no picture."""
    folder.mkdir(parents=True)
    g = np.random.default_rng(0)
    rows = []
    for i in range(n):
        name = FILES[i % 3].format(i).replace("/", "")
        shade = np.array(COLORS[i % 3]) + g.integers(-25, 26, 3)
        pixels = np.broadcast_to(shade.clip(0, 255).astype(np.uint8), (32, 32, 3))
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / name)
        rows.append([name, CLASSES[i % 3]])
    if broken:
        (folder / "broken.png").write_bytes(b"")
        rows.append(["broken.png", CLASSES[0]])
    path = folder / "list.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def run(folder, source, *sets, done=True, networks=False):
    """A SimCLR run on `source` of 40 steps; without `done` it still trains."""
    settings = override(
        runs.from_recipe("simclr", "small"),
        f"data={source}",
        "backbone.name=resnet10_w16",
        "engine.memory_gb=0",
        *sets,
    )
    folder.mkdir(parents=True)
    runs.write(settings, folder / "run.json")
    for seed, name in enumerate(("initial", "backbone") if networks else ()):
        torch.manual_seed(seed)
        backbone = backbones.create(settings.backbone)
        weights.save_backbone(folder / name, backbone, settings.backbone, settings.normalize, {})
    bad = {"name": "<i>broken.png", "reason": "empty file"}
    (folder / "bad_files.jsonl").write_text(json.dumps(bad) + "\n")
    log(folder, range(0, 40, 10))
    if done:
        finished = {"steps": 40, "verdict": "health: no collapse", "seconds": 9.0}
        (folder / "done.json").write_text(json.dumps(finished))
        write_results(folder / "results.json", figures())
    return folder


def log(folder, steps):
    """Append reports of these steps."""
    with (folder / "metrics.jsonl").open("a") as file:
        for step in steps:
            row = {"step": step, "epoch": 0, "loss": 5 / (1 + step), "lr": 0.1}
            row |= {"feature_std": 0.6, "rankme": 12.0, "uniformity": -2.0, "data_wait": 0.0}
            file.write(json.dumps(row) + "\n")


def figures():
    """Random weights right on 40 of 100 pictures, the histogram on 70, after pretraining on 60."""
    return [
        figure("color-histogram", "color-histogram/1", "top1@10", 70),
        figure("random weights", "knn-dino/1", "top1@20", 40),
        figure("after pretraining", "knn-dino/1", "top1@20", 60),
        figure("after pretraining", "knn-dino/1", "top1@10", 55),
    ]


def figure(model, protocol, metric, right):
    hits = np.arange(100) < right
    return Result(
        model=model,
        protocol=protocol,
        metric=metric,
        value=right / 100,
        low=right / 100 - 0.1,
        high=right / 100 + 0.1,
        n=100,
        settings={"test": "abc"},
        hits=pack(hits),
    )
