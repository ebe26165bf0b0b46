"""What makes a better detector? Arms of a study, from the same weights, on the same pictures.

    python benchmarks/detect.py detect_animals --json benchmarks/results/detect.json
    python benchmarks/detect.py detect_animals --study fpt-vs-fpn --json fpt.json
    python benchmarks/detect.py detect_animals --study relation-dedup --json relation.json

The folder has VOC's form, with lists train and val, or COCO's or YOLO's, with such splits. Each
method learns from the pictures of the training split alone, without boxes; then `saccade train
detect` fine-tunes all layers from the pretrained encoder, or from the encoder as it was before
pretraining, with the settings of the arm. A run that stands in the JSON file is not
run again, so a stopped benchmark goes on.

    pretraining     SimCLR, MoCo, and the same random weights
    fpt-vs-fpn      a feature pyramid transformer, the bottom-up pyramid that its paper counts its
                    gain from, and FPN; pictures are small, as all cells attend to all
    relation-dedup  relations of regions, learned duplicate removal, both, and neither (NMS at .5)

AP is a fraction; `low` and `high` end 95 % intervals: by bootstrap over test pictures within a run,
by Student's t over seeds in `summary`, where gains over the study's last arm are paired by seed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from learn import cpu_seconds, mean, percent, saccade

from saccade import studies
from saccade.bench import machine, versions
from saccade.data.detection import open_annotated
from saccade.evals.results import read_results, write_json

BACKBONE = "resnet10_w32"
SIZE = 96  # pixels of the views
BATCH = 64
WORKERS = 2
COMMON = (
    *("--recipe", "demo", "--backbone", BACKBONE, "--batch-size", str(BATCH)),
    *("--set", f"backbone.image_size={SIZE}", "--set", "backbone.stem=paper"),
    *("--set", f"method.views.0.size={SIZE}", "--set", "engine.log_every=50"),
)
METHODS = {"simclr": COMMON, "moco": (*COMMON, "--set", "method.queue_size=1024")}
PRETRAIN_STEPS = 600
STEPS = 400
FIGURES = (("coco-box", "AP"), ("coco-box", "AP50"), ("voc07-box", "AP50"))


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A detector: whose encoder it starts from, and `--set`s over the recipe `small`."""

    method: str = "simclr"
    random: bool = False  # the encoder as it was before the method
    sets: tuple[str, ...] = ()


def of_study(name: str) -> dict[str, Arm]:
    """The arms of `saccade reproduce`, from encoders that SimCLR pretrained."""
    study = studies.get(name)
    return {a.name: Arm(sets=(*study.system_common, *a.system_sets)) for a in study.arms}


STUDIES = {  # the last arm is what the others are compared with
    "pretraining": {"simclr": Arm(), "moco": Arm(method="moco"), "random": Arm(random=True)},
    "fpt-vs-fpn": of_study("fpt-vs-fpn"),
    "relation-dedup": of_study("relation-dedup"),
}


def main(arguments: Sequence[str]) -> None:
    args = parse(arguments)
    report = begin(args)
    with tempfile.TemporaryDirectory() as scratch:
        runs = (args.runs or Path(scratch)).absolute()
        runs.mkdir(parents=True, exist_ok=True)
        for seed in map(int, args.seeds.split(",")):
            for arm in args.arms:
                if not any((r["arm"], r["seed"]) == (arm, seed) for r in report["runs"]):
                    report["runs"].append(run(args, arm, seed, runs))
                    report["summary"] = summarize(report["runs"], list(STUDIES[args.study])[-1])
                    write_json(args.json, report)
    show(report)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, help="detection data with a test split")
    parser.add_argument("--json", type=Path, required=True, help="the report; goes on if it exists")
    parser.add_argument("--study", choices=list(STUDIES), default="pretraining")
    parser.add_argument("--arms", default="", help="of the study, by commas; empty: all")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--pretrain-steps", type=int, default=PRETRAIN_STEPS)
    parser.add_argument("--steps", type=int, default=STEPS, help="of training the detector")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--runs", type=Path, help="keep the run folders here")
    args = parser.parse_args(arguments)
    known = STUDIES[args.study]
    args.arms = args.arms.split(",") if args.arms else list(known)
    if strange := sorted(set(args.arms) - set(known)):
        parser.error(f"unknown arm {strange[0]}; choose from {', '.join(known)}")
    return args


def begin(args: argparse.Namespace) -> dict[str, Any]:
    """The report so far, or a new one."""
    settings = {
        "study": args.study,
        "pretrain_steps": args.pretrain_steps,
        "steps": args.steps,
        "precision": args.precision,
    }
    if args.json.exists():
        report = json.loads(args.json.read_text())
        if report["settings"] != settings:
            sys.exit(
                f"{args.json} was begun with {report['settings']}, not {settings}; choose another"
            )
        return report
    return {
        "bench": "detect",
        "command": f"python benchmarks/detect.py {args.data.name} --json {args.json.name} "
        f"--study {args.study} --arms {','.join(args.arms)} --seeds {args.seeds} "
        f"--pretrain-steps {args.pretrain_steps} --steps {args.steps} --precision {args.precision}",
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "settings": settings,
        "runs": [],
        "summary": {},
    }


def run(args: argparse.Namespace, arm: str, seed: int, runs: Path) -> dict[str, Any]:
    """Pretrain where the arm says so, train the detector, and read its figures."""
    cfg = STUDIES[args.study][arm]
    began, used = time.perf_counter(), cpu_seconds()
    before = pretrained(args, cfg.method, seed, runs)
    pretraining = (time.perf_counter() - began, cpu_seconds() - used)
    out = runs / f"{args.study}-{arm.replace(' ', '-')}-{seed}"
    train = [
        *("train", "detect", str(args.data), "--recipe", "small", "--steps", str(args.steps)),
        *("--weights", str(before / ("initial" if cfg.random else "backbone"))),
        *("--seed", str(seed), "--workers", str(WORKERS), "--set", "engine.log_every=50"),
        *("--out", str(out), "--resume", "--set", f"engine.precision={args.precision}"),
        *(word for s in cfg.sets for word in ("--set", s)),
    ]
    began, used = time.perf_counter(), cpu_seconds()
    saccade(train)
    training = (time.perf_counter() - began, cpu_seconds() - used)
    return {
        "arm": arm,
        "seed": seed,
        "settings": asdict(cfg),
        "command": "saccade " + shown(train, args.data, runs),
        "pretrain_seconds": dict(zip(("wall", "cpu"), pretraining, strict=True)),
        "train_seconds": dict(zip(("wall", "cpu"), training, strict=True)),
        "results": [r.to_dict() for r in read_results(out / "results.json")],
    }


def pretrained(args: argparse.Namespace, method: str, seed: int, runs: Path) -> Path:
    """The run folder of a method, which also holds the encoder before training."""
    out = runs / f"{method}-{seed}"
    if (out / "done.json").is_file():
        return out
    saccade(
        [
            *("pretrain", str(pictures(args.data, runs)), "--method", method, *METHODS[method]),
            *("--steps", str(args.pretrain_steps), "--seed", str(seed)),
            *("--workers", str(WORKERS), "--out", str(out), "--resume"),
            *("--set", f"engine.precision={args.precision}"),
        ]
    )
    return out


def pictures(data: Path, runs: Path) -> Path:
    """The pictures of the training split, one path a line."""
    path = runs / "pictures.txt"
    found = open_annotated(str(data.absolute())).pictures
    path.write_text("".join(f"{found.stored(i)}\n" for i in range(len(found))))
    return path


def shown(words: list[str], data: Path, runs: Path) -> str:
    """The command without this machine's paths."""
    return " ".join(words).replace(str(runs), "runs").replace(str(data), data.name)


def summarize(runs: list[dict[str, Any]], base: str) -> dict[str, Any]:
    """Mean over seeds of each arm's figures, and of their gains over the base arm."""
    found = {(r["arm"], r["seed"]): r["results"] for r in runs}
    summary: dict[str, Any] = {}
    for arm in dict.fromkeys(r["arm"] for r in runs):
        seeds = [r["seed"] for r in runs if r["arm"] == arm]
        both = [s for s in seeds if (base, s) in found]
        figures = {}
        for protocol, metric in FIGURES:
            values = {s: figure(found[arm, s], protocol, metric) for s in seeds}
            entry: dict[str, Any] = {"value": mean(list(values.values()))}
            if arm != base and both:
                gains = [values[s] - figure(found[base, s], protocol, metric) for s in both]
                entry |= {"gain": mean(gains), "smallest_gain": min(gains)}
            figures[f"{protocol} {metric}"] = entry
        summary[arm] = {"seeds": seeds, "figures": figures}
    return summary


def figure(results: list[dict[str, Any]], protocol: str, metric: str) -> float:
    return next(
        r["value"]
        for r in results
        if r["protocol"].partition("/")[0] == protocol and r["metric"] == metric
    )


def show(report: dict[str, Any]) -> None:
    for arm, found in report["summary"].items():
        for name, entry in found["figures"].items():
            gain = f"  gain {percent(entry['gain'])}" if "gain" in entry else ""
            print(f"{arm + ', ' + name:28} {100 * entry['value']['value']:5.1f} %{gain}")


if __name__ == "__main__":
    main(sys.argv[1:])
