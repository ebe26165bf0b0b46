"""Kill a run at random moments with SIGKILL, resume it, and compare the weights bit by bit.

    python benchmarks/kill.py --kills 20 --json benchmarks/results/kill.json

One run is never killed; each of the others is killed once at a random moment between its start and
its end, resumed with `--resume`, and must end with the very same bytes in `backbone/`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

METHODS = ("simclr", "moco", "dino", "mae")
TINY = {
    "simclr": ["method.hidden=32", "method.dim=16"],
    "moco": ["method.queue_size=128", "method.dim=16", "method.splits=1"],
    "dino": ["method.hidden=32", "method.bottleneck=16", "method.prototypes=64"],
    "mae": ["method.decoder_dim=32", "method.decoder_depth=1", "method.decoder_heads=2"],
}


def pictures(path: Path, n: int = 256) -> None:
    """A small labelled set of smooth random pictures."""
    g = np.random.default_rng(0)
    coarse = g.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    x = coarse.repeat(8, 1).repeat(8, 2)
    y = g.integers(0, 4, n, dtype=np.uint8)
    np.savez(path, x=x, y=y, xt=x[:64], yt=y[:64])


def command(method: str, data: Path, out: Path, *more: str) -> list[str]:
    backbone = "vit_nano_patch4_32" if method == "mae" else "resnet10_w16"
    sets = [*TINY[method], "engine.save_seconds=0.3", "engine.log_every=5", "engine.knn_every=0"]
    return [
        *(sys.executable, "-m", "saccade", "pretrain", str(data), "--method", method),
        *("--recipe", "small", "--backbone", backbone, "--batch-size", "32", "--steps", "40"),
        *("--out", str(out), *more),
        *(part for s in sets for part in ("--set", s)),
    ]


def run(args: list[str]) -> None:
    done = subprocess.run(args, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(args)}\nended with {done.returncode}:\n{done.stderr}")


def killed(args: list[str], after: float) -> bool:
    """Start, kill after so many seconds; was it still running."""
    process = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(after)
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return alive


def trial(method: str, data: Path, out: Path, seconds: float, want: bytes) -> dict[str, object]:
    """One kill at a random moment, one resume, one comparison."""
    after = random.uniform(0.0, seconds)
    alive = killed(command(method, data, out), after)
    steps = [int(p.name[5:]) for p in out.glob("checkpoints/step-*")]
    run(command(method, data, out, "--resume"))
    same = (out / "backbone" / "model.safetensors").read_bytes() == want
    return {
        "method": method,
        "killed_after_seconds": round(after, 2),
        "was_running": alive,
        "resumed_from_step": max(steps, default=0),
        "identical": same,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    random.seed(args.seed)
    methods, trials = args.methods.split(","), []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "pictures.npz"
        pictures(data)
        whole: dict[str, tuple[float, bytes]] = {}
        for k in range(args.kills):
            method = methods[k % len(methods)]
            if method not in whole:
                began = time.perf_counter()
                run(command(method, data, Path(folder) / method))
                path = Path(folder) / method / "backbone" / "model.safetensors"
                whole[method] = (time.perf_counter() - began, path.read_bytes())
            trials.append(trial(method, data, Path(folder) / f"{method}-{k}", *whole[method]))
            print(trials[-1], flush=True)
    identical = sum(bool(t["identical"]) for t in trials)
    print(f"{identical} of {len(trials)} identical to the run never killed")
    if args.json:
        found = {
            "what": "SIGKILL at random moments, resumed, compared bit by bit",
            "command": f"python benchmarks/kill.py --kills {args.kills} --json kill.json",
            "date": datetime.date.today().isoformat(),
            "machine": platform.platform(),
            "identical": identical,
            "kills": len(trials),
            "trials": trials,
        }
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    sys.exit(0 if identical == len(trials) else 1)


if __name__ == "__main__":
    main()
