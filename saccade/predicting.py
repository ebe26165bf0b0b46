"""What `saccade predict` does: a trained system looks, a pretrained iGPT draws."""

from __future__ import annotations

import json
from pathlib import Path

from . import completion, training
from .data.bad import Bad
from .run import FILE


def predict(run: Path, pictures: str, out: Path, sets: list[str]) -> list[Bad]:
    """Write predictions into the folder `out`; pictures that could not be read."""
    if _pretrained(run):
        return completion.predict(run, pictures, out, sets)
    if sets:
        raise ValueError(f"setting {sets[0]}: only igpt runs have settings of prediction")
    if not pictures:
        raise ValueError("setting pictures is missing; give a picture, or any source of them")
    return training.predict(run, pictures, out)


def _pretrained(run: Path) -> bool:
    try:
        return "method" in json.loads((run / FILE).read_text())
    except (OSError, ValueError):  # `training` says what is wrong
        return False
