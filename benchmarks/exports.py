"""Export networks to every format and collect what each target library measured on photographs.

python benchmarks/exports.py --json benchmarks/results/exports.json
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
from dataclasses import asdict
from pathlib import Path

from saccade import exports, weights
from saccade.bench import machine, versions
from saccade.commands import pictures_for
from saccade.evals.results import write_json

WORK = {
    "random:resnet50": ("timm", "torchvision", "state-dict", "onnx"),
    "random:vit_small_patch16_224": ("timm", "hf", "state-dict", "onnx"),
    "random:swin_tiny_patch4_window7_224": ("timm",),
    "random:convnext_tiny": ("timm",),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--data", default="demo")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, formats in WORK.items():
            loaded = weights.load(name)
            pictures = pictures_for(loaded, args.data)
            for format in formats:
                suffix = {"onnx": ".onnx", "state-dict": ".safetensors"}.get(format, "")
                out = Path(folder) / f"{name.partition(':')[2]}-{format}{suffix}"
                rows.append(
                    {"weights": name, **asdict(exports.export(loaded, format, out, pictures))}
                )
                print(rows[-1], flush=True)
    write_json(
        args.json,
        {
            "command": f"python benchmarks/exports.py --json {args.json.name}",
            "date": datetime.date.today().isoformat(),
            "data": args.data,
            "machine": machine(),
            "versions": versions(),
            "exports": rows,
        },
    )


if __name__ == "__main__":
    main()
