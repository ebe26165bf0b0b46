"""Figures of baselines, kept between calls: they do not change while the data does not."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..data.source import BadPicture, Source
from .results import Result, read_results, write_results
from .run import fingerprint

LOOKED_AT = 32  # pictures whose pixels are part of the key, evenly spread


def folder() -> Path:
    """`$SACCADE_CACHE`, or ~/.cache/saccade."""
    return Path(os.environ.get("SACCADE_CACHE", "~/.cache/saccade")).expanduser() / "baselines"


def remembered(
    settings: dict[str, Any], sources: tuple[Source, ...], make: Callable[[], list[Result]]
) -> list[Result]:
    """What `make` gave for these settings and pictures before, or gives now.

    Pictures are known by their names and labels, and some by their pixels.
    """
    text = json.dumps([settings, *(look(s) for s in sources)], sort_keys=True)
    path = folder() / f"{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}.json"
    if path.exists():
        return read_results(path)
    results = make()
    write_results(path, results)
    return results


def look(source: Source) -> str:
    """Short hash of all names and labels and the pixels of some pictures."""
    total = hashlib.blake2b(fingerprint(source).encode(), digest_size=8)
    total.update(repr(source.classes).encode())
    for i in range(0, len(source), max(1, len(source) // LOOKED_AT)):
        try:
            total.update(source.read(i).contiguous().numpy().tobytes())
        except BadPicture as bad:
            total.update(str(bad).encode())
    return total.hexdigest()
