"""Image GPT on CIFAR-10 at 16 pixels: which layer knows most, how well it codes, how fast it draws.

    python benchmarks/igpt.py cifar10.npz --json benchmarks/results/igpt.json

The npz holds x, y, xt, yt: uint8 [N, 32, 32, 3] and labels in the official order. Every arm goes
through the product's command line: `saccade pretrain` on all training pictures without labels, then
`saccade evaluate --protocol linear-igpt` of the network before training (`initial`) and after, with
`--bank` training pictures and all test pictures. A run that stands in the JSON file is not run
again, so a stopped benchmark goes on.

`bits`: what the first test pictures cost in bits per red, green or blue value, once they are in
the colors of the run's palette. All of the first group code the same pictures of 512 colors:
the network; the histogram of each pixel's place (of the training pictures, mixed with that of all
places, the share chosen on a tenth of them held out); the histogram of all places; 9 bits a pixel;
PNG and WebP without loss, a file a picture (headers and all) and all pictures in one. None counts
weights, histograms or palette. The second group codes the 8-bit pictures from before: it says
more, and is there to show how much 512 colors leave out, not to be compared.

`speed`: seconds of process time to draw the lower half of one picture of 32 pixels with keys and
values held, without (the whole picture again for every pixel, as the official sampler does), and
without but of the pixels before alone. All draw the same colors, which is checked.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from saccade import backbones, weights
from saccade.bench import machine, versions
from saccade.core import PixelBackbone
from saccade.data.plain import pictures
from saccade.data.source import Source, open_source
from saccade.evals import preprocess_for
from saccade.evals.interval import bootstrap, over_seeds
from saccade.evals.results import read_results, write_json
from saccade.methods.igpt import complete, pick
from saccade.nn.random import keys, uniform
from saccade.recipe import BackboneConfig

ARMS = {"autoregressive": "igpt_pico_16", "bert": "igpt_pico_16_bert"}
BATCH, STEPS, WORKERS = 32, 1200, 1  # 12 minutes of one core
CODED = 2000  # test pictures whose bits are counted
FITTED = 20_000  # training pictures of the histograms
MIXES = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)  # pictures that the histogram of all places stands for
SPEED = "igpt_nano_32"


def main(arguments: Sequence[str]) -> None:
    args = parse(arguments)
    report = begin(args)
    if "speed" in args.parts.split(",") and "speed" not in report:
        report["speed"] = speed()
        write_json(args.json, report)
    with tempfile.TemporaryDirectory() as scratch:
        runs = args.runs or Path(scratch)
        for seed in map(int, args.seeds.split(",")):
            for arm in args.arms.split(",") if "layers" in args.parts.split(",") else ():
                if not any((r["arm"], r["seed"]) == (arm, seed) for r in report["runs"]):
                    report["runs"].append(run(args, arm, seed, runs / f"{arm}-{seed}"))
                    report["summary"] = summarize(report["runs"])
                    write_json(args.json, report)
    show(report)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", help="CIFAR-10 as npz")
    parser.add_argument("--json", type=Path, required=True, help="the report; goes on if it exists")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--bank", type=int, default=10_000, help="training pictures of the probe")
    parser.add_argument("--parts", default="speed,layers", help="layers has the bits too")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--runs", type=Path, help="keep the run folders here")
    args = parser.parse_args(arguments)
    if strange := sorted(set(args.arms.split(",")) - set(ARMS)):
        parser.error(f"unknown arm {strange[0]}; choose from {', '.join(ARMS)}")
    return args


def begin(args: argparse.Namespace) -> dict[str, Any]:
    settings = {"steps": args.steps, "batch_size": BATCH, "bank": args.bank, "coded": CODED}
    if args.json.exists():
        report = json.loads(args.json.read_text())
        if report["settings"] != settings:
            sys.exit(f"{args.json} was begun with {report['settings']}, not {settings}")
        return report
    return {
        "bench": "igpt",
        "command": f"python benchmarks/igpt.py cifar10.npz --json {args.json.name} "
        f"--arms {args.arms} --seeds {args.seeds} --steps {args.steps} --bank {args.bank}",
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "settings": settings,
        "runs": [],
        "summary": {},
    }


def run(args: argparse.Namespace, arm: str, seed: int, out: Path) -> dict[str, Any]:
    """Pretrain once, probe every layer before and after, and count bits where they are defined."""
    out.parent.mkdir(parents=True, exist_ok=True)
    bare = out.parent / "pictures.npz"
    if not bare.exists():
        with np.load(args.data) as arrays:
            np.savez(bare, x=arrays["x"])
    began = time.perf_counter()
    pretrain = [
        *("pretrain", str(bare), "--method", "igpt", "--recipe", "cpu", "--backbone", ARMS[arm]),
        *("--steps", str(args.steps), "--batch-size", str(BATCH), "--seed", str(seed)),
        *("--workers", str(WORKERS), "--out", str(out), "--resume"),
        *("--set", "engine.log_every=50"),
    ]
    saccade(pretrain)
    seconds = time.perf_counter() - began
    found = {
        "arm": arm,
        "seed": seed,
        "command": "saccade " + " ".join(pretrain).replace(str(out.parent), "runs"),
        "seconds": seconds,
        "initial": evaluate(args, seed, out / "initial"),
        "backbone": evaluate(args, seed, out / "backbone"),
    }
    if arm == "autoregressive":
        found["bits"] = bits(args.data, weights.load(out))
    return found


def evaluate(args: argparse.Namespace, seed: int, folder: Path) -> list[dict[str, Any]]:
    file = folder.with_suffix(".json")
    saccade(
        [
            *("evaluate", str(folder), "--data", f"cifar10:{args.data}", "--no-baselines"),
            *("--protocol", "linear-igpt", "--limit", str(args.bank), "--seed", str(seed)),
            *("--workers", str(WORKERS), "--json", str(file)),
        ]
    )
    return [{**r.to_dict(), "model": folder.name} for r in read_results(file)]


def saccade(words: list[str]) -> None:
    ended = subprocess.run([sys.executable, "-m", "saccade", *words])
    if ended.returncode:
        sys.exit(f"saccade {words[0]} ended with {ended.returncode}")


def bits(data: str, loaded: weights.Loaded) -> dict[str, Any]:
    """Bits per value of test pictures, each with its interval over pictures."""
    encoder = loaded.backbone
    assert isinstance(encoder, PixelBackbone)
    train = open_source(f"cifar10:{data}", split="train", limit=FITTED)
    test = open_source(f"cifar10:{data}", split="test", limit=CODED)
    fitted, tokens = (torch.cat([t for t, _ in read(encoder, s, loaded)]) for s in (train, test))
    before = torch.cat([x for _, x in read(encoder, test, loaded)])  # 8-bit pictures
    values = 3 * tokens[0].numel()
    flat = tokens.flatten(1)
    of_place, mix = by_place(fitted.flatten(1), len(encoder.palette))
    everywhere = share(fitted.flatten()[:, None], len(encoder.palette), torch.ones(1))[0]
    costs = {
        "network": network(encoder, tokens),
        "histogram of each place": -of_place.log2().T.gather(0, flat).sum(1),
        "histogram of all places": -everywhere.log2()[flat].sum(1),
    }
    unit = (127.5 * (encoder.palette + 1)).round().byte()[tokens]  # [N, H, W, 3]
    found = {name: asdict(bootstrap((c / values).numpy())) for name, c in costs.items()}
    found["9 bits a pixel"] = {"value": 3.0, "low": 3.0, "high": 3.0}
    return {
        "pictures": len(tokens),
        "mixed_with": mix,
        "palette colors": found | files(unit),
        "8-bit colors": files(before.permute(0, 2, 3, 1)),
    }


def read(encoder: PixelBackbone, source: Source, loaded: weights.Loaded) -> Any:
    """Tokens, and the 8-bit pictures they are of."""
    preprocess = preprocess_for(encoder, loaded.normalize)
    mean, std = (torch.tensor(v)[:, None, None] for v in asdict(loaded.normalize).values())
    for x, _ in pictures(
        source,
        size=preprocess.size,
        resize=preprocess.resize,
        interpolation=preprocess.interpolation,
        normalize=loaded.normalize,
        batch_size=250,
        threads=WORKERS,
    ):
        yield encoder.tokens(x), (255 * (x * std + mean)).round().byte()


@torch.inference_mode()
def network(encoder: PixelBackbone, tokens: Tensor) -> Tensor:
    """Bits of each picture."""
    parts = []
    for part in tokens.split(50):
        scores = encoder.scores(encoder.encode(part))
        cost = F.cross_entropy(scores.mT, part.flatten(1), reduction="none")
        parts.append(cost.double().sum(1) / math.log(2))
    return torch.cat(parts)


def by_place(tokens: Tensor, colors: int) -> tuple[Tensor, float]:
    """Shares [N places, K] and how many pictures the mixture with all places counts as."""
    held = len(tokens) // 10

    def mixed(rows: Tensor, mix: float) -> Tensor:
        everywhere = share(rows.flatten()[:, None], colors, torch.ones(1))
        return share(rows, colors, mix * everywhere)

    def cost(mix: float) -> float:
        table = mixed(tokens[held:], mix).log2()
        return -float(table.T.gather(0, tokens[:held]).sum())

    best = min(MIXES, key=cost)
    return mixed(tokens, best), best


def share(tokens: Tensor, colors: int, prior: Tensor) -> Tensor:
    """Counts of each column's colors and of the prior, as shares: [columns, K]."""
    places = tokens.shape[1]
    at = tokens + colors * torch.arange(places)
    counts = torch.bincount(at.flatten(), minlength=places * colors).view(places, colors)
    total = counts.double() + prior.expand(places, colors)
    return total / total.sum(1, keepdim=True)


def files(x: Tensor) -> dict[str, Any]:
    """Bits per value of PNG and WebP without loss."""
    side = math.isqrt(len(x))
    whole = x[: side * side].unflatten(0, (side, side)).transpose(1, 2).flatten(0, 1).flatten(1, 2)
    found: dict[str, Any] = {}
    for name, options in {
        "PNG": {"format": "PNG", "optimize": True},
        "WebP": {"format": "WEBP", "lossless": True, "quality": 100, "method": 6},
    }.items():
        each = [8 * stored(one, options) / one.numel() for one in x]
        found[f"{name}, a file a picture"] = asdict(bootstrap(np.array(each)))
        one = 8 * stored(whole, options) / whole.numel()
        found[f"{name}, all in one file"] = {"value": one}
    return found


def stored(x: Tensor, options: dict[str, Any]) -> int:
    """Bytes."""
    buffer = io.BytesIO()
    Image.fromarray(x.contiguous().numpy()).save(buffer, **options)
    return buffer.tell()


def speed() -> dict[str, Any]:
    """Process seconds for the lower half of one picture, the ways in turn."""
    torch.manual_seed(0)
    encoder = backbones.create(BackboneConfig(name=SPEED, image_size=32)).eval()
    assert isinstance(encoder, PixelBackbone)
    torch.nn.init.normal_(encoder.get_parameter("output.weight"), std=0.1)
    tokens, key = torch.randint(512, (1, 32, 32)), keys(0, 0, torch.arange(1))
    ways: dict[str, Callable[[], Tensor]] = {
        "held": lambda: complete(encoder, tokens, 512, key),
        "whole picture again": lambda: again(encoder, tokens, 512, key, whole=True),
        "pixels before again": lambda: again(encoder, tokens, 512, key, whole=False),
    }
    made, seconds = [], {name: [] for name in ways}
    ways["held"]()
    for name in ("held", "whole picture again", "held", "pixels before again", "held"):
        began = time.process_time()
        made.append(ways[name]())
        seconds[name].append(time.process_time() - began)
    least = {name: min(s) for name, s in seconds.items()}
    return {
        "backbone": SPEED,
        "pixels": 512,
        "seconds": seconds,
        "same": all(torch.equal(m, made[0]) for m in made),
        "times": {name: s / least["held"] for name, s in least.items()},
    }


@torch.no_grad()
def again(
    encoder: PixelBackbone, tokens: Tensor, given: int, key: Tensor, *, whole: bool
) -> Tensor:
    """What `complete` draws, with nothing held from pixel to pixel."""
    flat = tokens.flatten(1).clone()
    draws = uniform(key, flat.shape[1], "color")
    for i in range(given, flat.shape[1]):
        if whole:
            h = encoder.encode(flat.view_as(tokens))[:, i]
        else:
            h = encoder.advance(flat[:, :i], 0, encoder.memory(len(flat)))
        flat[:, i] = pick(encoder.scores(h), draws[:, i], 1.0, 0)
    return flat.view_as(tokens)


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, with t-intervals from two seeds on."""
    summary: dict[str, Any] = {}
    for arm in dict.fromkeys(r["arm"] for r in runs):
        mine = [r for r in runs if r["arm"] == arm]
        metrics = [one["metric"] for one in mine[0]["backbone"]]
        summary[arm] = {
            when: {
                metric: mean([r[when][i]["value"] for r in mine])
                for i, metric in enumerate(metrics)
            }
            for when in ("initial", "backbone")
        }
        best = [r["backbone"][0]["value"] - r["backbone"][-1]["value"] for r in mine]
        summary[arm]["chosen layer minus last"] = mean(best)
        summary[arm]["seeds"] = [r["seed"] for r in mine]
        if "bits" in mine[0]:
            summary[arm]["bits"] = {
                name: mean([r["bits"]["palette colors"][name]["value"] for r in mine])
                for name in mine[0]["bits"]["palette colors"]
            }
    return summary


def mean(values: list[float]) -> dict[str, float]:
    return asdict(over_seeds(values)) if len(values) > 1 else {"value": values[0]}


def show(report: dict[str, Any]) -> None:
    if "speed" in report:
        times = ", ".join(f"{name} {t:.1f}x" for name, t in report["speed"]["times"].items())
        print(f"drawing, {report['speed']['backbone']}: {times}; same {report['speed']['same']}")
    for arm, found in report["summary"].items():
        for metric, after in found["backbone"].items():
            before = found["initial"][metric]
            print(f"{arm:16} {metric:8} {before['value']:7.1%} -> {after['value']:7.1%}")
        print(f"{arm:16} chosen minus last {found['chosen layer minus last']['value']:+.1%}")
        for name, value in found.get("bits", {}).items():
            print(f"{arm:16} {name:28} {value['value']:.3f} bits a value")


if __name__ == "__main__":
    main(sys.argv[1:])
