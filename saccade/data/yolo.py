"""YOLO's text: a line an object, `class x y width height` or `class x y x y ...`, in shares of 1.

The text of images/a/b.jpg is labels/a/b.txt; a picture without one has no objects. Class names and
splits stand in a .yaml; without one, names stand in classes.txt, one a line.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from .bad import Bad
from .decode import ORIENTATION, is_picture
from .detection import Entry, NoSplit
from .folder import scan
from .source import Split

SIDES = {"train": ("train",), "test": ("val", "test")}
YAML = (".yaml", ".yml")


def fits(path: Path) -> bool:
    if path.is_file():
        return path.suffix.lower() in YAML
    return bool(_yaml(path)) or (path / "labels").is_dir()


def read(path: Path, split: Split) -> tuple[Path, list[Entry], tuple[str, ...], str, list[Bad]]:
    """Root of the pictures, pictures, class names, split, and what was left out."""
    file = path if path.is_file() else _yaml(path)
    if file:
        base, classes, pictures = _described(file, split)
        side = split
    else:
        base, side = path, ""
        names = path / "classes.txt"
        if not names.is_file():
            raise ValueError(
                f"data {path} names no classes; add a .yaml with names, or classes.txt"
            )
        classes = tuple(names.read_text(encoding="utf-8").split("\n"))
        classes = tuple(name.strip() for name in classes if name.strip())
        pictures = _below(path / "images")
    entries, bad = [], []
    for picture in pictures:
        try:
            entries.append(_entry(picture, os.path.relpath(picture, base), len(classes), file))
        except (OSError, Image.DecompressionBombError) as error:
            bad.append(Bad(os.path.relpath(picture, base), f"cannot be read ({error})"))
    return base, entries, classes, side, bad


def _yaml(folder: Path) -> Path | None:
    """The first .yaml that names classes."""
    files = (
        sorted(f for f in folder.iterdir() if f.suffix.lower() in YAML) if folder.is_dir() else []
    )
    return next((f for f in files if "names" in _content(f)), None)


def _content(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"data {file} is not YAML ({' '.join(str(error).split())})") from None
    return content if isinstance(content, dict) else {}


def _described(file: Path, split: Split) -> tuple[Path, tuple[str, ...], list[Path]]:
    """Root, class names and pictures of a .yaml; its `path` counts from where it lies."""
    content = _content(file)
    named = content.get("names")
    if not isinstance(named, dict | list):
        raise ValueError(f"data {file} has no names of classes; add `names: [...]`")
    table = named if isinstance(named, dict) else dict(enumerate(named))
    if set(table) != set(range(len(table))):
        raise ValueError(f"data {file} numbers its classes {sorted(table)[:5]}...; count from 0")
    base = file.parent / str(content.get("path") or ".")
    side = next((content[s] for s in SIDES[split] if content.get(s)), None)
    if side is None:
        raise NoSplit(f"data {file} has no {' or '.join(SIDES[split])}; add one")
    pictures = [
        p for one in ([side] if isinstance(side, str) else side) for p in _below(base / one)
    ]
    return base, tuple(str(table[k]) for k in range(len(table))), pictures


def _below(path: Path) -> list[Path]:
    """The pictures of a folder, or of a text file with one path a line."""
    if path.is_dir():
        return [path / name for name in scan(path)[0]]
    if not path.is_file():
        raise ValueError(f"data: {path} is not there; it should hold pictures")
    lines = path.read_text(encoding="utf-8").split("\n")
    return [path.parent / line.strip() for line in lines if is_picture(line.strip())]


def _entry(picture: Path, name: str, classes: int, file: Path | None) -> Entry:
    parts = list(picture.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    text = Path(*parts).with_suffix(".txt")
    height, width = _size(picture)
    entry = Entry(name=name, height=height, width=width)
    lines = text.read_text(encoding="utf-8").split("\n") if text.is_file() else []
    for at, line in enumerate(lines, 1):
        if line.strip():
            _add(entry, line, classes, f"{text}, line {at}", file)
    if len(entry.outlines) < len(entry.labels):
        entry.outlines = []
    return entry


def _add(entry: Entry, line: str, classes: int, where: str, file: Path | None) -> None:
    try:
        label, *numbers = map(float, line.split())
    except ValueError:
        raise ValueError(f"data {where}: {line.strip()!r} are not numbers") from None
    if not 0 <= label < classes or label != int(label):
        names = file or "classes.txt"
        raise ValueError(f"data {where}: class {label:g} is not among the {classes} of {names}")
    scale = np.array([entry.width, entry.height])
    if len(numbers) == 4:
        middle, half = np.array(numbers[:2]), np.array(numbers[2:]) / 2
        box = np.concatenate([(middle - half) * scale, (middle + half) * scale])
        entry.add(box.tolist(), int(label))
        return
    if len(numbers) < 6 or len(numbers) % 2:
        raise ValueError(f"data {where}: {len(numbers)} numbers; give 4, or pairs of an outline")
    points = np.array(numbers).reshape(-1, 2) * scale
    box = np.concatenate([points.min(0), points.max(0)])
    entry.add(box.tolist(), int(label), area=_area(points), outline=[points.flatten().tolist()])


def _area(points: np.ndarray) -> float:
    """Of a polygon, by the shoelace formula."""
    x, y = points.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _size(picture: Path) -> tuple[int, int]:
    """Height and width as the picture is shown, from its header."""
    with Image.open(picture) as opened:
        turned = opened.getexif().get(ORIENTATION, 1) >= 5
        return (opened.width, opened.height) if turned else (opened.height, opened.width)
