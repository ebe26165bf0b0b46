"""Lists of classes beside masks: which stored value, or which color, is which class.

Any of these, one class a line, told apart by what stands in the lines:
    sky                        the value is the number of the line, from 0
    3 sky       3: sky         the value
    128 128 128 sky            the color (CamVid's label_colors.txt)
    name,r,g,b                 a table with a header (class_dict.csv, ADE20K's objectInfo150.txt)
Classes called void, unlabeled or the like are not learned. Where a list gives values, so is 255,
and 0 if it has no name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int64, UInt8

from ..core import IGNORED

FILES = ("classes.txt", "class_dict.csv", "label_colors.txt", "labels.txt", "objectInfo150.txt")
UNLEARNED = {"void", "ignore", "ignored", "unlabeled", "unlabelled"}
NUMBERED = re.compile(r"(\d+)\s*[\s,:]\s*(\S.*)")
COLORED = re.compile(r"(\d+)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(\S.*)")
COLUMNS = {"name": 0, "idx": 1, "id": 1, "index": 1, "value": 1, "r": 2, "g": 3, "b": 4}
COCO_STUFF = 183  # lines of its labels.txt, whose numbers are the masks' values plus 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Codes:
    """What the pixels of masks mean."""

    classes: tuple[str, ...]
    stored: Int64[np.ndarray, "v"]  # rising: values, or colors as one number 0xRRGGBB
    labels: UInt8[np.ndarray, "v"]  # of each: a class, or IGNORED
    colored: bool = False

    def labels_of(self, stored: Int[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
        """Raises ValueError for what the list does not have."""
        at = np.searchsorted(self.stored, stored).clip(max=len(self.stored) - 1)
        strange = self.stored[at] != stored
        if strange.any():
            one = int(stored[strange][0])
            what = f"color {one >> 16} {one >> 8 & 255} {one & 255}" if self.colored else one
            raise ValueError(f"pixels of {what} are not in the class list")
        return self.labels[at]

    def renumbered(self, classes: Sequence[str]) -> Codes:
        """The same classes with other numbers."""
        new = [*(classes.index(c) for c in self.classes), *[IGNORED] * (256 - len(self.classes))]
        labels = np.array(new, dtype=np.uint8)[self.labels]
        return replace(self, classes=tuple(classes), labels=labels)


def codes(rows: Sequence[tuple[str, int]], *, colored: bool = False) -> Codes:
    """From names and stored values; a name may come again."""
    names = [name for name, _ in rows]
    classes = tuple(dict.fromkeys(n for n in names if n.lower() not in UNLEARNED))
    if len(classes) >= IGNORED:
        raise ValueError(f"{len(classes)} classes are too many; {IGNORED - 1} is the most")
    known = {value: classes.index(name) if name in classes else IGNORED for name, value in rows}
    if len(known) < len(rows):
        values = [value for _, value in rows]
        twice = next(value for value in values if values.count(value) > 1)
        raise ValueError(f"{twice:#x} stands twice in the class list")
    if not colored:
        known = {0: IGNORED, 255: IGNORED} | known
    stored = sorted(known)
    return Codes(
        classes=classes,
        stored=np.array(stored, dtype=np.int64),
        labels=np.array([known[v] for v in stored], dtype=np.uint8),
        colored=colored,
    )


def find(root: Path) -> Codes | None:
    """The codes of the first list that the folder holds."""
    path = next((root / name for name in FILES if (root / name).is_file()), None)
    if path is None:
        return None
    try:
        return parse(path.read_text(encoding="utf-8-sig").splitlines())
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"data {path}: {error}") from None


def parse(lines: Sequence[str]) -> Codes:
    """Codes of the lines of a list."""
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
        raise ValueError("the class list is empty")
    separator = "\t" if "\t" in lines[0] else ","
    head = [cell.strip().lower() for cell in lines[0].split(separator)]
    if "name" in head:
        return _table(head, [line.split(separator) for line in lines[1:]])
    colors = [COLORED.fullmatch(line) for line in lines]
    if all(colors):
        rows = [(m[4].strip(), _color(*m.group(1, 2, 3))) for m in colors if m]
        return codes(rows, colored=True)
    numbers = [NUMBERED.fullmatch(line) for line in lines]
    if all(numbers):
        rows = [(m[2].strip(), int(m[1])) for m in numbers if m]
        if len(rows) == COCO_STUFF and rows[0] == ("unlabeled", 0):
            rows = [(name, value - 1) for name, value in rows[1:]]
        return codes(rows)
    mixed = next((m for m in (*numbers, *colors) if m), None)
    if mixed:
        raise ValueError(f"some lines have numbers, as {mixed[0]!r}, and some have none")
    return codes([(name, k) for k, name in enumerate(lines)])


def _table(head: list[str], rows: list[list[str]]) -> Codes:
    at = {COLUMNS[name]: k for k, name in enumerate(head) if name in COLUMNS}
    colored = {2, 3, 4} <= set(at)
    if not colored and 1 not in at:
        raise ValueError(f"a table of {', '.join(head)} has neither r, g, b nor id")
    wanted = [at[k] for k in ((2, 3, 4) if colored else (1,))]
    found = []
    for row in rows:
        cells = [row[k].strip() if k < len(row) else "" for k in wanted]
        if not all(cell.isdigit() for cell in cells):
            raise ValueError(f"{' '.join(row)!r} lacks whole numbers under {', '.join(head)}")
        value = _color(*cells) if colored else int(cells[0])
        found.append((row[at[0]].strip(), value))
    return codes(found, colored=colored)


def _color(red: str, green: str, blue: str) -> int:
    if max(int(red), int(green), int(blue)) > 255:
        raise ValueError(f"color {red} {green} {blue} is not within 0..255")
    return int(red) << 16 | int(green) << 8 | int(blue)
