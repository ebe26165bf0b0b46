"""Does pretraining learn? Each method on CIFAR-10, seed by seed, beside its own random weights.

    python benchmarks/learn.py cifar10.npz --json benchmarks/results/learn.json

The npz holds x, y, xt, yt: uint8 [N, 32, 32, 3] and labels in the official order. A folder with
train/ and test/, each a folder a class, does as well: the networks of 8 x 8 patches then see it at
96 pixels. Every arm goes through the product's command line: `saccade pretrain`, then `saccade
evaluate` of the encoder as it was before training (`initial`) and after. The bank of neighbors, and
the training set of a linear probe, is the pictures that the run trained on; the test pictures are
all there are. Baselines need no network. A run that stands in the JSON file is not run again, so a
stopped benchmark goes on. With `--labels N` both encoders are also trained further, all layers, on
as many labels and for the same number of steps: `initial` so is the network from scratch.

Accuracies are fractions; `low` and `high` end 95 % intervals: by bootstrap over test pictures
within a run (gains are paired over them), by Student's t over seeds in `summary`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from saccade import evals
from saccade.bench import machine, versions
from saccade.data.source import open_source
from saccade.evals.interval import over_seeds
from saccade.evals.results import Result, read_results, write_json


@dataclass(frozen=True, kw_only=True)
class Arm:
    """How one method is pretrained and measured; `sets` are `--set`s over its recipe `small`."""

    backbone: str
    steps: int
    batch_size: int
    protocols: tuple[str, ...] = ("knn-dino",)
    headline: str = "knn-dino"
    wanted: float = 0.12  # gain in accuracy over random weights
    sets: tuple[str, ...] = ()
    labels: bool = False  # the method trains on them
    codes: bool = False  # it predicts those of a tokenizer, trained first on the same pictures


CROPS = "method.views.0.crop=[0.2,1.0]"  # of few steps: gentler than the paper's 0.08
STEM = "backbone.stem=paper"  # an 8x8 map after the stem: a fifth of the small stem's cost
SGD = ("optim.name=sgd", "optim.lr=0.12", "optim.lr_rule=none", "optim.weight_decay=0.0005")
WARM = "optim.schedule.warmup_epochs=0.2"
CROPS_2 = (CROPS, CROPS.replace("0.crop", "1.crop"))  # of methods with a row for each view
GENTLE = ("method.views.0.strength=[0.4,0.4,0.4,0.1]", "method.views.0.blur=0")
EVEN = "optim.schedule.per=step"
BF16 = "engine.precision=bf16"  # half the time of a ResNet, where the processor has it
ADAM = (
    *("optim.name=adamw", "optim.lr=0.002", "optim.lr_rule=none"),
    *("optim.weight_decay=0.01", "optim.decay_1d=false"),
)


def small(steps: int, *sets: str, labels: bool = False) -> Arm:
    """An arm of the ResNet with batches of 128 and the gain wanted of later methods."""
    return Arm(
        backbone="resnet10_w32",
        steps=steps,
        batch_size=128,
        wanted=0.08,
        sets=(STEM, WARM, *sets),
        labels=labels,
    )


def vit(steps: int, *sets: str) -> Arm:
    """An arm of a small ViT that compares views."""
    return Arm(
        backbone="vit_femto_patch8_32",
        steps=steps,
        batch_size=64,
        wanted=0.08,
        sets=(WARM, *CROPS_2, "backbone.drop_path=0", *ADAM, "optim.lr=0.001", *sets),
    )


def pixels(*sets: str) -> Arm:
    """An arm that compares the cells of maps, of 4 x 4 here."""
    return Arm(
        backbone="resnet10_w16",
        steps=1000,
        batch_size=64,
        wanted=0.08,
        sets=(
            *("backbone.stem=small", "backbone.image_size=32", WARM, *CROPS_2, *ADAM),
            *("method.views.0.size=32", "method.views.1.size=32"),
            *("method.hidden=512", "method.dim=128", "method.momentum=0.9", BF16, *sets),
        ),
    )


def masked(
    *sets: str, backbone: str = "vit_atto_patch4_32", steps: int = 1500, codes: bool = False
) -> Arm:
    """An arm of a small ViT that fills in patches, judged by a linear classifier."""
    return Arm(
        codes=codes,
        backbone=backbone,
        steps=steps,
        batch_size=64,
        protocols=("knn-dino", "logistic"),
        headline="logistic",
        wanted=0.0,
        sets=("optim.lr=0.002", "optim.lr_rule=none", WARM, *sets),
    )


def on_photographs(arm: Arm) -> Arm:
    """The same network of 8 x 8 patches on pictures three times the side."""
    backbone = arm.backbone.replace("patch4", "patch12").replace("_32", "_96")
    size = ("backbone.image_size=96", "method.views.0.size=96")
    cells = ("method.mask_size=24",) if "method.mask_size=8" in arm.sets else ()
    return replace(arm, backbone=backbone, sets=(*arm.sets, *size, *cells))


KEYS = (
    *("method.hidden=512", "method.queue_size=1024", "method.momentum=0.9", "method.splits=1"),
    "method.temperature=0.1",
)
KEYS_OF_VIT = (
    "method.hidden=512",
    "method.dim=128",
    "method.queue_size=1024",
    "method.momentum=0.9",
)
MEAN = "vit_atto_patch4_gap_32"  # where no loss looks at CLS
DECODER = ("method.decoder_dim=64", "method.decoder_depth=2", "method.decoder_heads=2")
DINO_OF_VIT = (
    *("method.hidden=512", "method.bottleneck=64", "method.prototypes=512"),
    "method.momentum=0.97",
    "method.freeze_last_layer=0",
)

ARMS = {
    "simclr": Arm(
        backbone="resnet10_w32",
        steps=500,
        batch_size=128,
        sets=(STEM, CROPS, *SGD, WARM, "method.temperature=0.2", "method.hidden=512"),
    ),
    "moco": Arm(
        backbone="resnet10_w32",
        steps=3600,
        batch_size=128,
        sets=(
            *(STEM, CROPS, WARM, "method.hidden=512", "method.temperature=0.07"),
            *("method.queue_size=1024", "method.momentum=0.9", "method.splits=1"),
            *("optim.name=adamw", "optim.lr=0.002", "optim.lr_rule=none"),
            *("optim.weight_decay=0.01", "optim.schedule.per=step"),
        ),
    ),
    "dino": Arm(
        backbone="resnet10_w32",
        steps=6000,
        batch_size=64,
        sets=(
            *(STEM, *CROPS_2, WARM, "method.hidden=512"),
            *("method.bottleneck=64", "method.prototypes=512", "method.momentum=0.97"),
            *("method.batch_norm_in_head=true", "method.freeze_last_layer=0"),
            *("method.teacher_temperature=0.04", "optim.name=adamw", "optim.lr=0.001"),
            *("optim.lr_rule=none", "optim.weight_decay=0.01"),
        ),
    ),
    "mae": Arm(
        backbone="vit_pico_patch4_32",
        steps=2800,
        batch_size=128,
        protocols=("knn-dino", "linear-mae", "logistic"),
        headline="logistic",
        wanted=0.08,
        sets=(
            *(*DECODER, "optim.lr=0.003", "optim.lr_rule=none"),
            "optim.schedule.warmup_epochs=1",
        ),
    ),
    # Settings of single trials of 350 to 500 steps; no three-seed figures yet.
    "end_to_end": small(
        600, CROPS, *SGD, EVEN, "method.hidden=512", "method.temperature=0.2", "method.splits=1"
    ),
    "moco_bank": small(
        *(1500, "limit=2000", CROPS, *GENTLE, *ADAM, EVEN, "method.hidden=512"),
        *("method.temperature=0.07", "method.splits=1"),
    ),
    "moco_v3": small(
        600, *CROPS_2, *SGD, "method.hidden=512", "method.dim=128", "method.momentum=0.9"
    ),
    "memory_bank": small(
        *(1500, "limit=4000", CROPS, *SGD, EVEN, *GENTLE, "method.temperature=0.1"),
        *("method.views.0.flip=0.5", "method.views.0.jitter=0.8", "optim.schedule.shape=cosine"),
    ),
    "byol": small(1200, CROPS, *SGD, "method.hidden=512", "method.dim=128", "method.momentum=0.9"),
    "simsiam": small(1600, CROPS, *SGD, EVEN, BF16, "method.dim=512", "method.bottleneck=128"),
    "swav": small(
        *(600, CROPS, *GENTLE, *SGD, "optim.lr=0.5", "method.hidden=512", "method.prototypes=64"),
        *("method.epsilon=0.03", "method.queue_size=0", "method.freeze_prototypes=0"),
    ),
    "barlow_twins": small(
        600, *CROPS_2, *ADAM, "method.hidden=512", "method.dim=512", "method.bias_lr=1.0"
    ),
    "vicreg": small(800, *ADAM, "method.hidden=512", "method.dim=512", "method.variance=25.0"),
    "nnclr": small(
        *(600, *CROPS_2, *SGD, "method.hidden=512", "method.dim=128"),
        *("method.predictor_hidden=512", "method.queue_size=2048"),
    ),
    "supcon": small(800, CROPS, *GENTLE, *ADAM, "method.hidden=512", "limit=20000", labels=True),
    "pic": small(1500, "limit=4000", CROPS, *GENTLE, *SGD),
    "exemplar_cnn": small(
        *(1000, "limit=2000", *SGD, "optim.lr=0.05", EVEN, "optim.schedule.warmup_epochs=1"),
        *("method.samples=0", "method.hidden=512", "method.dropout=0.2"),
    ),
    # Never run: settings as those of the nearest relative above.
    "simclr_v2": small(500, CROPS, *SGD, "method.temperature=0.2"),
    "infomin": small(1800, CROPS, *KEYS, *ADAM, EVEN, "method.temperature=0.07"),
    "clsa": small(1000, *CROPS_2, *KEYS, *ADAM, EVEN, "method.temperature=0.07"),
    "pixpro": pixels(),
    "pixcontrast": pixels(),
    "moby": vit(2000, *KEYS_OF_VIT),
    "ibot": vit(2500, *DINO_OF_VIT, "method.batch_norm_in_head=true"),
    "dinov2": vit(
        2500, *DINO_OF_VIT, "method.batch_norm_in_head=true", "method.patch_bottleneck=64"
    ),
    "mst": vit(2500, *DINO_OF_VIT, "method.batch_norm_in_head=true", "method.decoder_dim=32"),
    "mae-atto": masked(*DECODER, steps=3000),
    "simmim": masked("method.mask_size=8", backbone=MEAN),
    "mlm": masked("method.mask_ratio=0.5", backbone=MEAN),
    "beit": masked("backbone.drop_path=0", backbone="beit_atto_shared_patch4_32", codes=True),
    "cae": masked(
        *("method.decoder_dim=64", "method.decoder_heads=2", "method.regressor_depth=1"),
        "optim.lr=0.001",
        backbone=MEAN,
        codes=True,
    ),
    "data2vec": masked(
        *("method.momentum=0.996", "method.last_layers=2", "optim.lr=0.001"),
        backbone=MEAN,
        steps=2000,
    ),
    "ijepa": masked(
        *("method.predictor_dim=64", "method.predictor_depth=2", "method.predictor_heads=2"),
        *("optim.lr=0.001", "optim.weight_decay=0.05"),
        backbone=MEAN,
        steps=2500,
    ),
}
PICTURES = 20_000  # of training
WORKERS = 2
QUIET = "engine.log_every=50"
TUNING = (
    *("optim.name=adamw", "optim.lr=0.001", "optim.lr_rule=none", "optim.weight_decay=0.05"),
    *("optim.schedule.warmup_epochs=2", QUIET),
)


def main(arguments: Sequence[str]) -> None:
    args = parse(arguments)
    report = begin(args)
    with tempfile.TemporaryDirectory() as scratch:
        runs = args.runs or Path(scratch)
        for method in args.methods.split(","):
            for seed in map(int, args.seeds.split(",")):
                if not done(report, method, seed):
                    report["runs"].append(run(args, method, seed, runs / f"{method}-{seed}"))
                    report["summary"] = summarize(report["runs"])
                    write_json(args.json, report)
    show(report)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", help="CIFAR-10 as npz, or a folder with train/ and test/")
    parser.add_argument("--json", type=Path, required=True, help="the report; goes on if it exists")
    parser.add_argument("--methods", default=",".join(ARMS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="training pictures")
    parser.add_argument("--steps", type=int, default=0, help="0: as in ARMS")
    parser.add_argument("--labels", type=int, default=0, help="to train all layers on; 0: do not")
    parser.add_argument("--tune-steps", type=int, default=600, help="of that, of 128 pictures")
    parser.add_argument("--runs", type=Path, help="keep the run folders here")
    args = parser.parse_args(arguments)
    if strange := sorted(set(args.methods.split(",")) - set(ARMS)):
        parser.error(f"unknown method {strange[0]}; choose from {', '.join(ARMS)}")
    return args


def begin(args: argparse.Namespace) -> dict[str, Any]:
    """The report so far, or a new one with its baselines."""
    settings = {"pictures": args.pictures, "steps": args.steps}
    if args.labels:
        settings |= {"labels": args.labels, "tune_steps": args.tune_steps}
    if args.json.exists():
        report = json.loads(args.json.read_text())
        if report["settings"] != settings:
            sys.exit(
                f"{args.json} was begun with {report['settings']}, not {settings}; choose another"
            )
        return report
    train = open_source(labelled(args), split="train", limit=args.pictures)
    test = open_source(labelled(args), split="test")
    report = {
        "bench": "learn",
        "command": f"python benchmarks/learn.py {named(args)} --json {args.json.name} "
        f"--methods {args.methods} --seeds {args.seeds} --pictures {args.pictures} "
        f"--steps {args.steps} --labels {args.labels} --tune-steps {args.tune_steps}",
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "settings": settings,
        "baselines": [r.to_dict() for r in evals.trivial(train, test, threads=WORKERS)],
        "runs": [],
        "summary": {},
    }
    write_json(args.json, report)
    return report


def done(report: dict[str, Any], method: str, seed: int) -> bool:
    return any((r["method"], r["seed"]) == (method, seed) for r in report["runs"])


def run(args: argparse.Namespace, method: str, seed: int, out: Path) -> dict[str, Any]:
    """Pretrain once and measure before and after. A method's second arm is named METHOD-ARM."""
    arm = on_photographs(ARMS[method]) if Path(args.data).is_dir() else ARMS[method]
    codes = (f"method.tokenizer={tokenizer(args, arm, seed, out.parent)}",) if arm.codes else ()
    pretrain = [
        *("pretrain", pictures(args, arm, out.parent), "--method", method.partition("-")[0]),
        *("--recipe", "small", "--backbone", arm.backbone, "--steps", str(args.steps or arm.steps)),
        *("--batch-size", str(arm.batch_size), "--seed", str(seed), "--workers", str(WORKERS)),
        *("--out", str(out), "--resume"),
        *(word for s in (*arm.sets, *codes, QUIET) for word in ("--set", s)),
    ]
    began, used = time.perf_counter(), cpu_seconds()
    saccade(pretrain)
    seconds, cpu = time.perf_counter() - began, cpu_seconds() - used
    before, after = (
        evaluate(args, arm, seed, out / folder)
        + (tune(args, seed, out / folder) if args.labels else [])
        for folder in ("initial", "backbone")
    )
    gains = {
        f"{a.protocol} {a.metric}": asdict(evals.gain(a, b))
        for a, b in zip(before, after, strict=True)
    }
    return {
        "method": method,
        "seed": seed,
        "command": "saccade " + plain(pretrain, args, out.parent),
        "arm": asdict(arm),
        "seconds": seconds,
        "cpu_seconds": cpu,
        "random": [r.to_dict() for r in before],
        "pretrained": [r.to_dict() for r in after],
        "gains": gains,
    }


def tokenizer(args: argparse.Namespace, arm: Arm, seed: int, folder: Path) -> Path:
    """The run of a tokenizer of 512 codes with the arm's pictures and patches."""
    out = folder / f"tokenizer-{seed}"
    size = "96" if Path(args.data).is_dir() else "32"
    backbone = MEAN if size == "32" else on_photographs(replace(arm, backbone=MEAN)).backbone
    sets = ("method.hidden=64", "optim.lr=0.002", "optim.lr_rule=none", QUIET)
    sets += (f"backbone.image_size={size}", f"method.views.0.size={size}")
    saccade(
        [
            *("pretrain", pictures(args, arm, folder), "--method", "tokenizer"),
            *("--recipe", "small", "--backbone", backbone, "--steps", "600"),
            *("--batch-size", "64", "--seed", str(seed), "--workers", str(WORKERS)),
            *("--out", str(out), "--resume", *(word for s in sets for word in ("--set", s))),
        ]
    )
    return out


def cpu_seconds() -> float:
    """Time that ended child processes spent on all cores: what a busy machine does not stretch."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def pictures(args: argparse.Namespace, arm: Arm, folder: Path) -> str:
    """What the arm trains on; with labels it sets a limit, as the other pictures have been cut."""
    whole = arm.labels or Path(args.data).is_dir()
    return labelled(args) if whole else str(unlabelled(args, folder))


def labelled(args: argparse.Namespace) -> str:
    """The data as the command line takes it, test pictures and labels too."""
    return args.data if Path(args.data).is_dir() else f"cifar10:{args.data}"


def named(args: argparse.Namespace) -> str:
    """The data without this machine's path."""
    return Path(args.data).name if Path(args.data).is_dir() else "cifar10.npz"


def unlabelled(args: argparse.Namespace, folder: Path) -> Path:
    """The training pictures that the bank holds, without their labels."""
    path = folder / f"pictures-{args.pictures}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with np.load(args.data) as arrays:
            x = arrays["x"]
        np.savez(path, x=x[np.arange(args.pictures) * len(x) // args.pictures])
    return path


def evaluate(args: argparse.Namespace, arm: Arm, seed: int, weights: Path) -> list[Result]:
    file = weights.with_suffix(".json")
    saccade(
        [
            *("evaluate", str(weights), "--data", labelled(args)),
            *("--protocol", ",".join(arm.protocols), "--limit", str(args.pictures)),
            *("--seed", str(seed), "--workers", str(WORKERS), "--json", str(file)),
            "--no-baselines",
        ]
    )
    return [Result(**{**r.to_dict(), "model": weights.name}) for r in read_results(file)]


def tune(args: argparse.Namespace, seed: int, weights: Path) -> list[Result]:
    """All layers trained on some labels."""
    out = weights.parent / f"tuned-{weights.name}"
    saccade(
        [
            *("train", "classify", labelled(args), "--weights", str(weights)),
            *("--steps", str(args.tune_steps), "--batch-size", "128", "--seed", str(seed)),
            *("--workers", str(WORKERS), "--out", str(out), "--resume"),
            *(
                word
                for s in (*TUNING, f"system.labels.count={args.labels}")
                for word in ("--set", s)
            ),
        ]
    )
    found = [r for r in read_results(out / "results.json") if r.metric == "top1"]
    return [Result(**{**r.to_dict(), "model": weights.name}) for r in found]


def saccade(words: list[str]) -> None:
    ended = subprocess.run([sys.executable, "-m", "saccade", *words])
    if ended.returncode:
        sys.exit(f"saccade {words[0]} ended with {ended.returncode}")


def plain(words: list[str], args: argparse.Namespace, runs: Path) -> str:
    """The command without this machine's paths."""
    return " ".join(words).replace(str(runs), "runs").replace(str(args.data), named(args))


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over seeds of each method's accuracies and gains, with t-intervals from two seeds on."""
    summary: dict[str, Any] = {}
    for method in dict.fromkeys(r["method"] for r in runs):
        mine = [r for r in runs if r["method"] == method]
        arm = mine[0]["arm"]
        figures = {}
        for i, figure in enumerate(mine[0]["gains"]):
            figures[figure] = {
                "random": mean([r["random"][i]["value"] for r in mine]),
                "pretrained": mean([r["pretrained"][i]["value"] for r in mine]),
                "gain": mean([r["gains"][figure]["value"] for r in mine]),
            }
        headline = next(f for f in figures if f.startswith(arm["headline"]))
        summary[method] = {
            "seeds": [r["seed"] for r in mine],
            "headline": headline,
            "wanted": arm["wanted"],
            "smallest_gain": min(r["gains"][headline]["value"] for r in mine),
            "figures": figures,
        }
    return summary


def mean(values: list[float]) -> dict[str, float]:
    return asdict(over_seeds(values)) if len(values) > 1 else {"value": values[0]}


def show(report: dict[str, Any]) -> None:
    for r in report["baselines"]:
        print(f"{r['protocol']:32} {100 * r['value']:5.1f} %")
    for method, found in report["summary"].items():
        tuned = [name for name in found["figures"] if name.startswith("classify")]
        for name in (found["headline"], *tuned):
            figure = found["figures"][name]
            before, after = (100 * figure[arm]["value"] for arm in ("random", "pretrained"))
            print(
                f"{method + ', ' + name:32} {before:5.1f} % -> {after:5.1f} %"
                f"  gain {percent(figure['gain'])}"
            )
        print(
            f"    smallest {100 * found['smallest_gain']:+.1f}, wanted {100 * found['wanted']:+.0f}"
        )


def percent(interval: dict[str, float]) -> str:
    ends = [f"{100 * interval[e]:+.1f}" for e in ("low", "high") if e in interval]
    return f"{100 * interval['value']:+.1f}" + (f" ({' to '.join(ends)})" if ends else "")


if __name__ == "__main__":
    main(sys.argv[1:])
