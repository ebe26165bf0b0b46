"""Does pretraining on the very pictures help to name their pixels? Against the same random weights.

    python benchmarks/segment.py camvid --json benchmarks/results/segment.json

The folder has SegNet's form of CamVid. Each method learns from the pictures of train/ alone,
without masks; `supervised` arms learn from the labelled pictures of another folder (`--labelled`,
as caltech43/train) instead, for about as long. Then `saccade train segment` trains each head of
HEADS: `linear`, a probe of the frozen encoder, and `fcn`, with all layers. The same is done with
the encoder as it was before pretraining. A run that stands in the JSON file is not run again, so a
stopped benchmark goes on.

Figures are fractions; `low` and `high` end 95 % intervals: by bootstrap over test pictures within a
run, by Student's t over seeds in `summary`, where gains are paired by seed. The random arm of a
method has its backbone, so methods of several backbones are compared by their gains.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learn import cpu_seconds, mean, percent, saccade

from saccade.bench import machine, versions
from saccade.evals.results import read_results, write_json


@dataclass(frozen=True, kw_only=True)
class Arm:
    """How a method is pretrained, over its recipe `demo`; sizes are pixels of its views."""

    sizes: tuple[int, ...] = (96,)
    batch_size: int = 64
    steps: int = 460
    backbone: str = "resnet10_w32"
    sets: tuple[str, ...] = ("backbone.stem=paper",)
    labels: bool = False  # learns to classify


STEM = "backbone.stem=paper"
BF16 = "engine.precision=bf16"  # half the time of a ResNet, where the processor has it
VIT = "vit_pico_patch8_32"
DISTILLED = (  # of a few hundred steps
    *("method.hidden=512", "method.bottleneck=64", "method.prototypes=512", "optim.lr=0.001"),
    *("optim.lr_rule=none", "method.momentum=0.97", "method.freeze_last_layer=0"),
    "method.batch_norm_in_head=true",
)
# Steps are what one core does in about two minutes, whatever the method.
METHODS = {
    "simclr": Arm(sets=(STEM, BF16)),
    "byol": Arm(steps=250, sets=(STEM, BF16, "method.momentum=0.9")),
    "moco": Arm(steps=250, sets=(STEM, BF16, "method.queue_size=1024")),
    "dino": Arm(sizes=(96, 48), steps=260),
    "pixpro": Arm(  # maps of 5 x 5
        sizes=(160,), batch_size=32, steps=220, sets=(STEM, BF16, "method.momentum=0.9")
    ),
    "mst": Arm(
        sizes=(64, 32),
        batch_size=32,
        steps=150,
        backbone=VIT,
        sets=(*DISTILLED, "method.decoder_dim=32"),
    ),
    "dino-vit": Arm(sizes=(64, 32), batch_size=32, steps=150, backbone=VIT, sets=DISTILLED),
    "supervised": Arm(steps=400, sets=(STEM, BF16, "optim.lr_rule=none"), labels=True),
    "supervised-vit": Arm(
        batch_size=32,
        sizes=(64,),
        steps=400,
        backbone=VIT,
        sets=("backbone.stem=auto", "optim.name=adamw", "optim.lr=0.001", "optim.lr_rule=none"),
        labels=True,
    ),
}
RANDOM = "random"  # the arm without pretraining; its backbone's name follows where it is another
HEADS = {"linear": "small-linear", "fcn": "small"}  # recipes
PLAIN = {"linear": (), "fcn": ("system.dilated=0",)}  # of a ViT
STEPS = 300
WORKERS = 1
QUIET = "engine.log_every=50"
FIGURES = ("mIoU", "pixel accuracy", "class accuracy")


def main(arguments: Sequence[str]) -> None:
    args = parse(arguments)
    report = begin(args)
    with tempfile.TemporaryDirectory() as scratch:
        runs = (args.runs or Path(scratch)).absolute()
        for seed in map(int, args.seeds.split(",")):
            for arm, method in arms(args.methods.split(",")).items():
                for head in args.heads.split(","):
                    if not done(report, arm, head, seed):
                        report["runs"].append(run(args, arm, method, head, seed, runs))
                        report["summary"] = summarize(report["runs"])
                        write_json(args.json, report)
    show(report)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, help="CamVid in SegNet's form")
    parser.add_argument("--json", type=Path, required=True, help="the report; goes on if it exists")
    parser.add_argument("--methods", default="simclr,pixpro", help=", ".join(METHODS))
    parser.add_argument("--labelled", type=Path, help="classes to learn, for supervised arms")
    parser.add_argument("--heads", default=",".join(HEADS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--pretrain-steps", type=int, default=0, help="0: as in METHODS")
    parser.add_argument("--steps", type=int, default=STEPS, help="of training a head")
    parser.add_argument("--runs", type=Path, help="keep the run folders here")
    args = parser.parse_args(arguments)
    for name, given, known in (("method", args.methods, METHODS), ("head", args.heads, HEADS)):
        if strange := sorted(set(given.split(",")) - set(known)):
            parser.error(f"unknown {name} {strange[0]}; choose from {', '.join(known)}")
    if not args.labelled and any(METHODS[name].labels for name in args.methods.split(",")):
        parser.error("supervised arms need --labelled FOLDER")
    return args


def arms(methods: list[str]) -> dict[str, str]:
    """Each method and, for each backbone, the random arm: the method whose run has the weights."""
    found = {name: name for name in methods}
    for name in methods:
        if not METHODS[name].labels:  # those keep no encoder from before
            found.setdefault(random_arm(name), name)
    return found


def random_arm(method: str) -> str:
    """What a method is compared with."""
    backbone = METHODS[method].backbone
    return RANDOM if backbone == Arm.backbone else f"{RANDOM} {backbone}"


def begin(args: argparse.Namespace) -> dict[str, Any]:
    """The report so far, or a new one."""
    settings = {"pretrain_steps": args.pretrain_steps, "steps": args.steps}
    if args.json.exists():
        report = json.loads(args.json.read_text())
        if report["settings"] != settings:
            sys.exit(
                f"{args.json} was begun with {report['settings']}, not {settings}; choose another"
            )
        return report
    return {
        "bench": "segment",
        "command": f"python benchmarks/segment.py {args.data.name} --json {args.json.name} "
        f"--methods {args.methods} --heads {args.heads} --seeds {args.seeds} "
        f"--pretrain-steps {args.pretrain_steps} --steps {args.steps}"
        + (f" --labelled {args.labelled.name}" if args.labelled else ""),
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "settings": settings,
        "runs": [],
        "summary": {},
    }


def done(report: dict[str, Any], arm: str, head: str, seed: int) -> bool:
    key = (arm, head, seed)
    return any((r["arm"], r["head"], r["seed"]) == key for r in report["runs"])


def run(
    args: argparse.Namespace, arm: str, method: str, head: str, seed: int, runs: Path
) -> dict[str, Any]:
    """Pretrain unless that is done, train the head, and read its figures."""
    before = pretrained(args, method, seed, runs)
    out = runs / f"{head}-{arm.replace(' ', '-')}-{seed}"
    train = [
        *("train", "segment", str(args.data), "--recipe", HEADS[head]),
        *("--weights", str(before / ("backbone" if arm == method else "initial"))),
        *("--steps", str(args.steps), "--seed", str(seed), "--workers", str(WORKERS)),
        *("--out", str(out), "--resume"),
        *sets(*(PLAIN[head] if METHODS[method].backbone == VIT else ()), QUIET),
    ]
    began, used = time.perf_counter(), cpu_seconds()
    saccade(train)
    return {
        "arm": arm,
        "head": head,
        "seed": seed,
        "backbone": METHODS[method].backbone,
        "against": random_arm(method),
        "command": plain(["saccade", *train], args, runs),
        "pretraining": json.loads((before / "cost.json").read_text()),
        "seconds": time.perf_counter() - began,
        "cpu_seconds": cpu_seconds() - used,
        "results": [r.to_dict() for r in read_results(out / "results.json")],
    }


def pretrained(args: argparse.Namespace, method: str, seed: int, runs: Path) -> Path:
    """The run folder of a method, which also holds the encoder before training."""
    arm, out = METHODS[method], runs / f"{method}-{seed}"
    if (out / "cost.json").is_file():
        return out
    if arm.labels:
        task = ["train", "classify", str(args.labelled), "--recipe", "small"]
        views = []
    else:
        method = method.partition("-")[0]
        task = ["pretrain", str(args.data / "train"), "--method", method, "--recipe", "demo"]
        views = [f"method.views.{i}.size={size}" for i, size in enumerate(arm.sizes)]
    words = [
        *(*task, "--backbone", arm.backbone, "--batch-size", str(arm.batch_size)),
        *("--steps", str(args.pretrain_steps or arm.steps), "--seed", str(seed)),
        *("--workers", str(WORKERS), "--out", str(out), "--resume"),
        *sets(f"backbone.image_size={arm.sizes[0]}", *arm.sets, *views, QUIET),
    ]
    began, used = time.perf_counter(), cpu_seconds()
    saccade(words)
    cost = {
        "command": plain(["saccade", *words], args, runs),
        "seconds": time.perf_counter() - began,
        "cpu_seconds": cpu_seconds() - used,
    }
    write_json(out / "cost.json", cost)
    return out


def sets(*assignments: str) -> list[str]:
    return [word for s in assignments for word in ("--set", s)]


def plain(words: list[str], args: argparse.Namespace, runs: Path) -> str:
    """The command without this machine's paths."""
    shown = " ".join(words).replace(str(runs), "runs").replace(str(args.data), args.data.name)
    return shown.replace(str(args.labelled), "labelled") if args.labelled else shown


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over seeds of each arm's figures with each head, and of their gains over random."""
    found = {
        (r["arm"], r["head"], r["seed"], one["metric"]): one["value"]
        for r in runs
        for one in r["results"]
    }
    summary: dict[str, Any] = {}
    for r in runs:
        key, against = (r["arm"], r["head"]), (r["against"], r["head"])
        seeds = [s["seed"] for s in runs if (s["arm"], s["head"]) == key]
        both = [s for s in seeds if (*against, s, FIGURES[0]) in found]
        figures = {}
        for metric in FIGURES:
            values = {s: found[*key, s, metric] for s in seeds}
            entry: dict[str, Any] = {"value": mean(list(values.values()))}
            if r["arm"] != r["against"] and both:
                gains = [values[s] - found[*against, s, metric] for s in both]
                entry |= {"gain": mean(gains), "smallest_gain": min(gains)}
            figures[metric] = entry
        summary.setdefault(r["arm"], {})[r["head"]] = {"seeds": seeds, "figures": figures}
    return summary


def show(report: dict[str, Any]) -> None:
    for arm, heads in report["summary"].items():
        for head, found in heads.items():
            entry = found["figures"][FIGURES[0]]
            gain = f"  gain {percent(entry['gain'])}" if "gain" in entry else ""
            name = f"{arm}, {head}, {FIGURES[0]}"
            print(f"{name:36} {100 * entry['value']['value']:5.1f} %{gain}")


if __name__ == "__main__":
    main(sys.argv[1:])
