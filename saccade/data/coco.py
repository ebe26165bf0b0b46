"""COCO's JSON: images, annotations, categories."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .bad import Bad
from .detection import Entry, NoSplit
from .source import Split

SIDES = {"train": ("train",), "test": ("val", "test")}


def fits(path: Path) -> bool:
    return path.suffix.lower() == ".json" or bool(_files(path, ("",)))


def read(path: Path, split: Split) -> tuple[Path, list[Entry], tuple[str, ...], str, list[Bad]]:
    """Root of the pictures, pictures, class names, split, and what was left out."""
    file, side = (path, "") if path.is_file() else (_file(path, split), split)
    content = _content(file)
    categories = sorted(content["categories"], key=lambda c: c["id"])
    number = {c["id"]: k for k, c in enumerate(categories)}
    base = file.parent.parent if file.parent.name == "annotations" else file.parent
    folder = _pictures(base, file.stem.removeprefix("instances_"))
    entries = {
        image["id"]: Entry(name=image["file_name"], height=image["height"], width=image["width"])
        for image in content["images"]
    }
    bad = []
    for row in content["annotations"]:
        if row["category_id"] not in number:
            raise ValueError(
                f"data {file}: annotation {row.get('id')} has category {row['category_id']}, "
                f"which is not among its {len(number)} categories"
            )
        if row["image_id"] in entries:
            _add(entries[row["image_id"]], row, number[row["category_id"]])
        else:
            bad.append(Bad(file.name, f"annotation {row.get('id')} is of no picture"))
    _even(entries.values())
    return folder, list(entries.values()), tuple(c["name"] for c in categories), side, bad


def _add(entry: Entry, row: dict[str, Any], label: int) -> None:
    x, y, width, height = row["bbox"]
    entry.add(
        (x, y, x + width, y + height),
        label,
        crowd=bool(row.get("iscrowd", 0)),
        area=float(row.get("area", 0.0)),
        outline=row.get("segmentation") or None,
    )


def _even(entries: Iterable[Entry]) -> None:
    """Outlines count only where every object of a picture has one."""
    for entry in entries:
        if len(entry.outlines) < len(entry.labels):
            entry.outlines = []


def _content(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"data {file} is not JSON ({error})") from None
    missing = {"images", "annotations", "categories"} - set(content)
    if missing:
        raise ValueError(f"data {file} has no {', '.join(sorted(missing))}; is it COCO's form?")
    return content


def _files(folder: Path, sides: tuple[str, ...]) -> list[Path]:
    return [f for side in sides for f in sorted(folder.glob(f"annotations/instances_{side}*.json"))]


def _file(folder: Path, split: Split) -> Path:
    files = _files(folder, SIDES[split])
    if not files:
        named = " or ".join(f"instances_{side}*.json" for side in SIDES[split])
        raise NoSplit(f"data {folder}/annotations has no {named}; name the file itself")
    return files[0]


def _pictures(base: Path, side: str) -> Path:
    """images/train2017 or train2017 beside the annotations of train2017; else images/."""
    for above in (base / "images", base):
        folders = [f for f in above.iterdir() if f.is_dir()] if above.is_dir() else []
        named = [f for f in folders if side.startswith(f.name)]
        if named:
            return max(named, key=lambda f: len(f.name))
    return base / "images" if (base / "images").is_dir() else base
