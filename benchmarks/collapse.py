"""Is collapse caught, and is nobody alarmed for nothing?

    python benchmarks/collapse.py cifar10.npz --json benchmarks/results/collapse.json

The npz holds x, y, xt, yt: uint8 [N, 32, 32, 3] and labels in the official order. Each arm is a
short `saccade pretrain` with each seed. Counted are runs whose health warned, at what step first,
and runs whose verdict at the end is collapse. Failing arms lack what keeps their method from
collapse: BYOL without predictor and with a teacher that is the student, DINO without its center.
A run that stands in the JSON file is not run again, so a stopped benchmark goes on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learn import SGD, STEM, plain, saccade, unlabelled

from saccade.bench import machine, versions
from saccade.evals.results import write_json


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A method with settings over its recipe `small`; whether it must collapse."""

    method: str
    fails: bool
    sets: tuple[str, ...]


COMMON = (*SGD, STEM, "optim.schedule.warmup_epochs=0.1", "engine.log_every=10")
QUIET = "engine.knn_every=0"
BYOL = ("method.hidden=512", "method.dim=128")
DINO = (
    *("method.hidden=512", "method.bottleneck=64", "method.prototypes=512"),
    *("method.momentum=0.97", "method.freeze_last_layer=0", "method.batch_norm_in_head=true"),
)
ARMS = {
    "byol, no predictor, no teacher": Arm(
        method="byol", fails=True, sets=(*BYOL, "method.predict=false", "method.momentum=0")
    ),
    "dino, no center": Arm(method="dino", fails=True, sets=(*DINO, "method.center_momentum=1")),
    "byol": Arm(method="byol", fails=False, sets=(*BYOL, "method.momentum=0.9")),
    "dino": Arm(method="dino", fails=False, sets=DINO),
    "simsiam": Arm(method="simsiam", fails=False, sets=("method.dim=512", "method.bottleneck=128")),
    "simclr": Arm(method="simclr", fails=False, sets=("method.hidden=512",)),
}
BACKBONE, STEPS, BATCH, PICTURES, WORKERS = "resnet10_w16", 200, 64, 5_000, 1


def main(arguments: Sequence[str]) -> None:
    args = parse(arguments)
    report = begin(args)
    with tempfile.TemporaryDirectory() as scratch:
        runs = args.runs or Path(scratch)
        for seed in range(args.seeds):
            for name in args.arms.split(";"):
                if not any((r["arm"], r["seed"]) == (name, seed) for r in report["runs"]):
                    report["runs"].append(run(args, name, seed, runs))
                    report["summary"] = summarize(report["runs"])
                    write_json(args.json, report)
    for name, found in report["summary"].items():
        print(f"{name:32} {found['collapsed']} of {found['runs']} collapsed", found["first"] or "")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", help="CIFAR-10 as npz")
    parser.add_argument("--json", type=Path, required=True, help="the report; goes on if it exists")
    parser.add_argument("--arms", default=";".join(ARMS), help="separated by semicolons")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--runs", type=Path, help="keep the run folders here")
    args = parser.parse_args(arguments)
    args.pictures = PICTURES
    if strange := sorted(set(args.arms.split(";")) - set(ARMS)):
        parser.error(f"unknown arm {strange[0]!r}; choose from {'; '.join(ARMS)}")
    return args


def begin(args: argparse.Namespace) -> dict[str, Any]:
    """The report so far, or a new one."""
    if args.json.exists():
        return json.loads(args.json.read_text())
    return {
        "bench": "collapse",
        "command": f"python benchmarks/collapse.py cifar10.npz --json {args.json.name}",
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "runs": [],
        "summary": {},
    }


def run(args: argparse.Namespace, name: str, seed: int, runs: Path) -> dict[str, Any]:
    """Pretrain, and read what the health of the run said."""
    arm, out = ARMS[name], runs / f"{name.replace(',', '').replace(' ', '-')}-{seed}"
    words = [
        *("pretrain", str(unlabelled(args, runs)), "--method", arm.method, "--recipe", "small"),
        *("--backbone", BACKBONE, "--steps", str(STEPS), "--batch-size", str(BATCH)),
        *("--seed", str(seed), "--workers", str(WORKERS), "--out", str(out), "--resume"),
        *(word for s in (*COMMON, *arm.sets, QUIET) for word in ("--set", s)),
    ]
    saccade(words)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    warned = [r for r in rows if "warning" in r]
    verdict = json.loads((out / "done.json").read_text())["verdict"]
    return {
        "arm": name,
        "seed": seed,
        "command": "saccade " + plain(words, args, runs),
        "warnings": [r["warning"] for r in warned],
        "first": warned[0]["step"] if warned else None,
        "verdict": verdict,
        "output_std": [r["output_std"] for r in rows if "output_std" in r],
    }


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each arm: whether it must fail, how many runs did, and the steps of first warnings."""
    summary: dict[str, Any] = {}
    for name in dict.fromkeys(r["arm"] for r in runs):
        mine = [r for r in runs if r["arm"] == name]
        summary[name] = {
            "must_fail": ARMS[name].fails,
            "runs": len(mine),
            "warned": sum(bool(r["warnings"]) for r in mine),
            "collapsed": sum(r["verdict"].startswith("health: collapsed") for r in mine),
            "first": sorted(r["first"] for r in mine if r["first"] is not None),
        }
    return summary


if __name__ == "__main__":
    main(sys.argv[1:])
