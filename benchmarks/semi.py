"""Few labels on CIFAR-10: SimCLR v2's stages and metric transfer, beside labels alone.

    python benchmarks/semi.py cifar10.npz --json benchmarks/results/semi.json

The npz holds x, y, xt, yt: uint8 [N, 32, 32, 3] and labels in the official order. Every arm goes
through the product's command line. A SimCLR v2 run without labels comes first, one for each seed
(or `--pretrained RUN`, for all seeds). With each number of labels, as many of every class:
    scratch    the network from random weights, on these labels
    tuned      from the encoder (SimCLR v2's layer 0)
    tuned-1    from the first layer of the pretrained head (stage 2)
    self       a student of its size taught by tuned-1, without labels, from the pretrained weights
    student    a student from scratch, taught likewise (stage 3 with a student of the same size)
    cut, vote  right guesses among the pictures without labels
    transfer   from the encoder, on the labels and the surest fifth of the cut's guesses
Steps are the same for scratch, tuned and transfer. An arm that stands in the JSON file is not run
again, so a stopped benchmark goes on; it needs the run folders for that (`--runs`).

Accuracies are fractions on all test pictures; `low` and `high` end 95 % intervals: by bootstrap
over test pictures within an arm, by Student's t over seeds in `summary`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from learn import cpu_seconds, mean, plain, saccade, unlabelled

from saccade.bench import machine, versions
from saccade.evals.results import read_results, write_json

ARMS = ("scratch", "tuned", "tuned-1", "self", "student", "cut", "vote", "transfer")
BACKBONE = ("--backbone", "resnet10_w32", "--set", "backbone.stem=paper")
WORKERS = 1
QUIET = ("--set", "engine.log_every=50", "--workers", str(WORKERS))
SGD = ("optim.name=sgd", "optim.lr_rule=none", "optim.weight_decay=0.0005")
PRETRAIN = (
    *("method.temperature=0.2", "method.views.0.crop=[0.2,1.0]", "engine.knn_every=0"),
    *SGD,
    *("optim.lr=0.12", "optim.schedule.warmup_epochs=0.2"),
)
RATE = {  # of the optimizer: a pretrained network moves less
    "scratch": 0.05,
    "tuned": 0.03,
    "tuned-1": 0.03,
    "transfer": 0.03,
    "self": 0.3,  # a temperature of .1 makes its gradients a tenth
    "student": 0.05,
}


def main(arguments: Sequence[str]) -> None:
    args = parse(arguments)
    report = begin(args)
    with tempfile.TemporaryDirectory() as scratch:
        runs = (args.runs or Path(scratch)).absolute()
        runs.mkdir(parents=True, exist_ok=True)
        for seed in map(int, args.seeds.split(",")):
            pretrained = args.pretrained or pretrain(args, report, seed, runs)
            for labels in map(int, args.labels.split(",")):
                for arm in ARMS:
                    if not done(report, arm, labels, seed):
                        found = run(args, arm, labels, seed, runs, pretrained)
                        report["runs"].append(found)
                        report["summary"] = summarize(report["runs"])
                        write_json(args.json, report)
    show(report)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", help="CIFAR-10 as npz")
    parser.add_argument("--json", type=Path, required=True, help="the report; goes on if it exists")
    parser.add_argument("--labels", default="250,1000")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--pictures", type=int, default=20_000, help="without labels")
    parser.add_argument("--pretrain-steps", type=int, default=2500)
    parser.add_argument("--steps", type=int, default=300, help="on labels, of 64 pictures")
    parser.add_argument("--distill-steps", type=int, default=400, help="of 128 pictures")
    parser.add_argument("--pretrained", type=Path, help="a simclr_v2 run to start from")
    parser.add_argument("--runs", type=Path, help="keep the run folders here")
    return parser.parse_args(arguments)


def begin(args: argparse.Namespace) -> dict[str, Any]:
    """The report so far, or a new one."""
    names = ("pictures", "pretrain_steps", "steps", "distill_steps")
    settings = {name: getattr(args, name) for name in names}
    settings["pretrained"] = bool(args.pretrained)
    if args.json.exists():
        report = json.loads(args.json.read_text())
        if report["settings"] != settings:
            sys.exit(
                f"{args.json} was begun with {report['settings']}, not {settings}; choose another"
            )
        return report
    flags = " ".join(f"--{n.replace('_', '-')} {settings[n]}" for n in names)
    return {
        "bench": "semi",
        "command": f"python benchmarks/semi.py cifar10.npz --json {args.json.name} "
        f"--labels {args.labels} --seeds {args.seeds} {flags}",
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "settings": settings,
        "runs": [],
        "summary": {},
    }


def done(report: dict[str, Any], arm: str, labels: int, seed: int) -> bool:
    return any((r["arm"], r["labels"], r["seed"]) == (arm, labels, seed) for r in report["runs"])


def pretrain(args: argparse.Namespace, report: dict[str, Any], seed: int, runs: Path) -> Path:
    """Stage 1, on pictures without labels."""
    out = runs / f"simclr_v2-{seed}"
    if (out / "done.json").is_file():
        return out
    words = ["pretrain", str(unlabelled(args, runs)), "--method", "simclr_v2", "--recipe", "small"]
    words += [*BACKBONE, *QUIET, "--steps", str(args.pretrain_steps), "--batch-size", "128"]
    words += ["--seed", str(seed), "--out", str(out), "--resume"]
    words += [word for s in PRETRAIN for word in ("--set", s)]
    began = cpu_seconds()
    saccade(words)
    report.setdefault("pretraining", []).append(
        {"seed": seed, "command": command(words, args, runs), "cpu_seconds": cpu_seconds() - began}
    )
    write_json(args.json, report)
    return out


def run(
    args: argparse.Namespace, arm: str, labels: int, seed: int, runs: Path, pretrained: Path
) -> dict[str, Any]:
    """One arm, its accuracy and what it took."""
    out = runs / f"{arm}-{labels}-{seed}"
    words = arguments_of(args, arm, labels, seed, out, pretrained)
    began, used = time.perf_counter(), cpu_seconds()
    saccade(words)
    file = out.with_suffix(".json") if arm in ("cut", "vote") else out / "results.json"
    results = json.loads(bare(json.dumps([r.to_dict() for r in read_results(file)]), args, runs))
    return {
        "arm": arm,
        "labels": labels,
        "seed": seed,
        "command": command(words, args, runs).replace(str(pretrained), "pretrained"),
        "seconds": time.perf_counter() - began,
        "cpu_seconds": cpu_seconds() - used,
        "results": [{**r, "model": arm} for r in results],
    }


def arguments_of(
    args: argparse.Namespace, arm: str, labels: int, seed: int, out: Path, pretrained: Path
) -> list[str]:
    """Words of the command of an arm."""
    data = f"cifar10:{args.data}"
    beside = out.parent
    if arm in ("cut", "vote"):
        words = ["propagate", str(pretrained), "--data", data, "--limit", str(args.pictures)]
        words += ["--labels", str(labels), "--algorithm", arm, "--seed", str(seed)]
        words += ["--workers", str(WORKERS), "--out", str(out.with_suffix(".txt"))]
        return [*words, "--json", str(out.with_suffix(".json"))]
    start = BACKBONE if arm in ("scratch", "student") else ("--weights", str(pretrained))
    sets = [*SGD, f"optim.lr={RATE[arm]}", "optim.schedule.warmup_epochs=0"]
    if arm in ("self", "student"):
        what, steps, size = "distill", args.distill_steps, 128
        data, test = str(unlabelled(args, beside)), data
        sets += [f"system.teacher={beside / f'tuned-1-{labels}-{seed}'}"]
        sets += [f"system.temperature={0.1 if arm == 'self' else 1.0}"]
    else:
        what, steps, size, test = "classify", args.steps, 64, ""
        guesses = beside / f"cut-{labels}-{seed}.txt"
        few = (f"file={guesses}", "ratio=0.2") if arm == "transfer" else (f"count={labels}",)
        sets += [f"system.labels.{x}" for x in few]
    sets += ["system.head_layers=1"] if arm in ("tuned-1", "self") else []
    words = ["train", what, data, *start, *QUIET, "--steps", str(steps), "--batch-size", str(size)]
    words += ["--eval-data", test] if test else []
    words += ["--seed", str(seed), "--out", str(out), "--resume"]
    return [*words, *(word for s in sets for word in ("--set", s))]


def command(words: list[str], args: argparse.Namespace, runs: Path) -> str:
    return "saccade " + plain(words, args, runs)


def bare(text: str, args: argparse.Namespace, runs: Path) -> str:
    """Without this machine's paths."""
    return text.replace(str(runs), "runs").replace(str(args.data), "cifar10.npz")


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean accuracy of each arm over seeds, with t-intervals from two seeds on."""
    summary: dict[str, Any] = {}
    for labels in dict.fromkeys(r["labels"] for r in runs):
        for arm in ARMS:
            values = [top1(r) for r in runs if (r["arm"], r["labels"]) == (arm, labels)]
            if values:
                summary.setdefault(str(labels), {})[arm] = {**mean(values), "seeds": len(values)}
    return summary


def top1(found: dict[str, Any]) -> float:
    return next(r["value"] for r in found["results"] if r["metric"] == "top1")


def show(report: dict[str, Any]) -> None:
    """A line an arm: its accuracy, and the interval of a single seed over test pictures."""
    for r in report["runs"]:
        figure = next(x for x in r["results"] if x["metric"] == "top1")
        ends = f"{100 * figure['low']:.1f} to {100 * figure['high']:.1f}"
        print(
            f"{r['labels']:6} labels, seed {r['seed']}  {r['arm']:9}"
            f" {100 * figure['value']:5.1f} %  ({ends})  {r['cpu_seconds']:6.0f} s"
        )
    for labels, arms in report["summary"].items():
        if "scratch" in arms:
            trained = [a for a in arms if a not in ("cut", "vote")]  # which are right guesses
            best = max(trained, key=lambda a: arms[a]["value"])
            gap = 100 * float(np.subtract(arms[best]["value"], arms["scratch"]["value"]))
            print(f"{labels} labels: {best} is {gap:+.1f} points above scratch")


if __name__ == "__main__":
    main(sys.argv[1:])
