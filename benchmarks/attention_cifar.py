"""Does attention inside a small ResNet learn more than convolutions of the same cost? CIFAR-10.

    python benchmarks/attention_cifar.py cifar10.npz --json benchmarks/results/attention_cifar.json

The npz holds x, y, xt, yt: uint8 [N, 32, 32, 3] and labels in the official order. Each network
with a mechanism stands beside a plain ResNet widened or narrowed to its operations, on pictures of
the same size, for the same steps: with labels (`saccade train classify`, top-1 on the test
pictures) and without (`saccade pretrain --method simclr`, then 20 nearest neighbors of the pictures
it trained on). A run that stands in the JSON file is not run again, so a stopped benchmark goes on.

Operations are torch's count for one picture, two a multiply-add; a local relation layer's sums,
which torch does not see, are added. Accuracies are fractions; `low` and `high` end 95 % intervals
by Student's t over seeds, where gains over the plain network are paired by seed.
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
from functools import cache
from pathlib import Path
from typing import Any

import torch
from learn import CROPS, cpu_seconds, mean, percent, saccade, unlabelled
from torch.utils.flop_counter import FlopCounterMode

from saccade import backbones
from saccade.attention import LocalRelation
from saccade.bench import machine, versions
from saccade.evals.results import read_results, write_json
from saccade.recipe import BackboneConfig


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Backbones of equal cost, and the pixels they see."""

    attention: str
    plain: str
    size: int = 24


PAIRS = {
    "non_local": Pair(attention="nl_resnet10_w32", plain="resnet10_w34"),
    "disentangled_non_local": Pair(attention="dnl_resnet10_w32", plain="resnet10_w34"),
    "global_context": Pair(attention="gc_resnet10_w32", plain="resnet10_w32"),
    "lambda_layer": Pair(attention="lambda_resnet10_w32", plain="resnet10_w28"),
    "local_relation": Pair(attention="lr_net14_w16", plain="resnet14_w13", size=16),
}
KINDS = ("classify", "simclr")
STEPS = {"classify": 500, "simclr": 300}
BATCH = 64
PICTURES = 20_000  # of training
WORKERS = 1
SGD = ("optim.name=sgd", "optim.lr_rule=none", "optim.weight_decay=0.0005")
BF16 = "engine.precision=bf16"  # half the time of a ResNet, where the processor has it
SETS = {
    "classify": (
        BF16,
        *(*SGD, "optim.lr=0.05", "optim.schedule.warmup_epochs=0.1"),
        f"system.labels.share={PICTURES / 50_000}",
    ),
    "simclr": (
        BF16,
        *(*SGD, "optim.lr=0.12", "optim.schedule.warmup_epochs=0.2", CROPS),
        *("method.temperature=0.2", "method.hidden=512", "engine.knn_every=0"),
    ),
}


def main(arguments: Sequence[str]) -> None:
    args = parse(arguments)
    report = begin(args)
    with tempfile.TemporaryDirectory() as scratch:
        runs = (args.runs or Path(scratch)).absolute()
        runs.mkdir(parents=True, exist_ok=True)
        for seed in map(int, args.seeds.split(",")):
            for kind in args.kinds.split(","):
                for backbone, size in networks(args.mechanisms.split(",")):
                    key = {"kind": kind, "backbone": backbone, "size": size, "seed": seed}
                    if not any(key.items() <= r.items() for r in report["runs"]):
                        report["runs"].append(key | run(args, kind, backbone, size, seed, runs))
                        report["summary"] = summarize(report["runs"])
                        write_json(args.json, report)
    show(report)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", help="CIFAR-10 as npz")
    parser.add_argument("--json", type=Path, required=True, help="the report; goes on if it exists")
    parser.add_argument("--mechanisms", default=",".join(PAIRS))
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=0, help=f"0: {STEPS}")
    parser.add_argument("--runs", type=Path, help="keep the run folders here")
    args = parser.parse_args(arguments)
    for given, known in ((args.mechanisms, PAIRS), (args.kinds, KINDS)):
        if strange := sorted(set(given.split(",")) - set(known)):
            parser.error(f"unknown {strange[0]}; choose from {', '.join(known)}")
    return args


def networks(mechanisms: list[str]) -> list[tuple[str, int]]:
    """Each backbone and size of the pairs, once."""
    pairs = [PAIRS[m] for m in mechanisms]
    return list(dict.fromkeys((b, p.size) for p in pairs for b in (p.plain, p.attention)))


def begin(args: argparse.Namespace) -> dict[str, Any]:
    """The report so far, or a new one."""
    settings = {"steps": args.steps, "batch_size": BATCH, "pictures": PICTURES}
    if args.json.exists():
        report = json.loads(args.json.read_text())
        if report["settings"] != settings:
            sys.exit(
                f"{args.json} was begun with {report['settings']}, not {settings}; choose another"
            )
        return report
    return {
        "bench": "attention_cifar",
        "command": f"python benchmarks/attention_cifar.py cifar10.npz --json {args.json.name} "
        f"--mechanisms {args.mechanisms} --kinds {args.kinds} --seeds {args.seeds} "
        f"--steps {args.steps}",
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "settings": settings,
        "runs": [],
        "summary": {},
    }


def run(
    args: argparse.Namespace, kind: str, backbone: str, size: int, seed: int, runs: Path
) -> dict[str, Any]:
    """Train one network and measure it."""
    out = runs / f"{kind}-{backbone}-{size}-{seed}"
    steps = args.steps or STEPS[kind]
    common = [
        *("--backbone", backbone, "--recipe", "small", "--steps", str(steps)),
        *("--batch-size", str(BATCH), "--seed", str(seed), "--workers", str(WORKERS)),
        *("--out", str(out), "--resume", "--set", f"backbone.image_size={size}"),
        *("--set", "backbone.stem=small", "--set", "engine.log_every=50"),
        *(word for s in SETS[kind] for word in ("--set", s)),
    ]
    data = f"cifar10:{args.data}"
    began, used = time.perf_counter(), cpu_seconds()
    if kind == "classify":
        words = ["train", "classify", data, *common]
        saccade(words)
        found = read_results(out / "results.json")
    else:
        pictures = str(unlabelled(argparse.Namespace(data=args.data, pictures=PICTURES), runs))
        words = ["pretrain", pictures, "--method", "simclr", *common]
        words += ["--set", f"method.views.0.size={size}"]
        saccade(words)
        file = out / "knn.json"
        saccade(
            [
                *("evaluate", str(out / "backbone"), "--data", data, "--protocol", "knn-dino"),
                *("--limit", str(PICTURES), "--workers", str(WORKERS), "--json", str(file)),
                "--no-baselines",
            ]
        )
        found = read_results(file)
    return {
        "command": "saccade " + shown(words, args.data, runs),
        "flops": operations(backbone, size),
        "seconds": time.perf_counter() - began,
        "cpu_seconds": cpu_seconds() - used,
        "results": [{**r.to_dict(), "model": backbone} for r in found],
    }


def shown(words: list[str], data: str, runs: Path) -> str:
    """The command without this machine's paths."""
    return " ".join(words).replace(str(runs), "runs").replace(str(data), "cifar10.npz")


@cache
def operations(backbone: str, size: int) -> int:
    """Of the network for one picture: two a multiply-add."""
    net = backbones.create(BackboneConfig(name=backbone, image_size=size, stem="small")).eval()
    unseen: list[int] = []

    def note(layer: Any, given: Any, made: torch.Tensor) -> None:
        unseen.append(2 * layer.kernel**2 * made.numel())

    for layer in net.modules():
        if isinstance(layer, LocalRelation):
            layer.register_forward_hook(note)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.randn(1, 3, size, size))
    return counter.get_total_flops() + sum(unseen)


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each kind and pair: operations, and means over the seeds that both networks have."""
    found = {(r["kind"], r["backbone"], r["size"], r["seed"]): r for r in runs}
    summary: dict[str, Any] = {}
    for kind in KINDS:
        for name, pair in PAIRS.items():
            both = [
                s
                for k, b, size, s in found
                if (k, b, size) == (kind, pair.attention, pair.size)
                and (kind, pair.plain, pair.size, s) in found
            ]
            if not both:
                continue
            entry: dict[str, Any] = {"seeds": both}
            values = {}
            for role in ("attention", "plain"):
                backbone = getattr(pair, role)
                mine = [found[kind, backbone, pair.size, s] for s in both]
                values[role] = [r["results"][0]["value"] for r in mine]
                entry[role] = {
                    "backbone": backbone,
                    "flops": mine[0]["flops"],
                    "cpu_seconds": sum(r["cpu_seconds"] for r in mine) / len(mine),
                    "accuracy": mean(values[role]),
                }
            gains = [a - p for a, p in zip(values["attention"], values["plain"], strict=True)]
            summary[f"{kind} {name}"] = entry | {"gain": mean(gains)}
    return summary


def show(report: dict[str, Any]) -> None:
    for name, found in report["summary"].items():
        a, p = found["attention"], found["plain"]
        print(
            f"{name:32} {a['backbone']}, {a['flops'] / 1e6:.1f} MFLOP"
            f" {100 * a['accuracy']['value']:5.1f} %; {p['backbone']}, {p['flops'] / 1e6:.1f} MFLOP"
            f" {100 * p['accuracy']['value']:5.1f} %; gain {percent(found['gain'])}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
