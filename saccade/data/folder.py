"""Pictures that are files: a folder, class folders, or a list of paths."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from . import bands, decode
from .source import Source, Split

TEST_FOLDERS = ("test", "val", "valid", "validation")
PATH_COLUMNS = ("path", "file", "file_name", "filename", "image")
LABEL_COLUMNS = ("label", "class", "target")
MOST = 1_000_000  # a whole number above this is an id, not the number of a class


class Files(Source):
    """Picture files below one root."""

    def __init__(self, root: Path, names: list[str], channels: int) -> None:
        self.root = str(root)
        self.names = names  # relative to root, or absolute
        self.channels = channels
        self.classes, self.labels = (), None
        self.split, self.skipped = "", 0
        array = bool(names) and bands.is_array(self.stored(0))
        self.wide = array or channels not in decode.MODES

    def __len__(self) -> int:
        return len(self.names)

    def stored(self, i: int) -> str:
        return os.path.join(self.root, self.names[i])

    def name(self, i: int) -> str:
        return self.names[i]


def from_folder(root: Path, split: Split, channels: int) -> Files:
    """All pictures below a folder, labeled where they lie in class folders.

    train/ and test/ (or val/) above the pictures are splits. Both splits share their classes.
    """
    sides = _sides(root)
    if sides and split not in sides:
        raise ValueError(
            f"data {root} has no test/ or val/ beside train/; add one, or name the test data itself"
        )
    base = sides.get(split, root)
    names, skipped = scan(base)
    source = Files(base, names, channels)
    source.skipped = skipped
    source.split = split if sides else ""
    used = {name.partition("/")[0] for name in names if "/" in name}
    own = class_folders(base) & used
    if len(own) > 1:
        classes = sorted(own.union(*map(class_folders, sides.values())))
        number = {name: k for k, name in enumerate(classes)}
        source.classes = tuple(classes)
        source.labels = np.array(
            [number.get(n.partition("/")[0], -1) for n in names], dtype=np.int64
        )
    return source


def _sides(root: Path) -> dict[str, Path]:
    """The folders of the two splits; empty where train/ is missing or is a class among others."""
    folders = {entry.name for entry in _entries(root) if entry.is_dir()}
    if "train" not in folders:
        return {}
    tests = [name for name in TEST_FOLDERS if name in folders]
    if not tests:
        return {"train": root / "train"} if folders == {"train"} else {}
    labeled = [name for name in tests if class_folders(root / name)]  # test/ often has no labels
    return {"train": root / "train", "test": root / (labeled or tests)[0]}


def class_folders(base: Path) -> set[str]:
    """Names of the subfolders; empty where pictures lie beside them."""
    names = set()
    for entry in _entries(base):
        if not entry.is_dir():
            if decode.is_picture(entry.name):
                return set()
        elif not decode.is_picture(entry.name):
            names.add(entry.name)
    return names


def scan(root: Path) -> tuple[list[str], int]:
    """Relative paths of all that is called a picture, sorted, and the count of other files.

    Hidden files are neither. Where nothing is called a picture, .npy files are the pictures.
    A folder called x.png is listed: reading it says what is wrong. Links are followed, but never
    into a folder they came from.
    """
    found, arrays, others = [], [], 0
    stack: list[tuple[str, tuple[str, ...]]] = [("", ())]
    while stack:
        folder, above = stack.pop()
        real = os.path.realpath(root / folder)
        if real in above:
            continue
        for entry in _entries(root / folder):
            name = f"{folder}{entry.name}"
            if decode.is_picture(name):
                found.append(name)
            elif entry.is_dir():
                stack.append((f"{name}/", (*above, real)))
            elif name.endswith(".npy"):
                arrays.append(name)
            else:
                others += 1
    return (sorted(found), others + len(arrays)) if found else (sorted(arrays), others)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [e for e in entries if not e.name.startswith(".")]
    except OSError as error:
        raise ValueError(f"data: cannot list {folder}: {error.strerror}") from None


def from_list(path: Path, channels: int) -> Files:
    """Pictures of a text file: one path a line, relative to the file, then perhaps a label.

    A first line with a column called path is a header: other columns are then ignored, but label.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        tab = path.suffix == ".tsv"
        rows = [row for row in csv.reader(file, delimiter="\t" if tab else ",") if any(row)]
    at, label_at = 0, 1
    head = [cell.strip().lower() for cell in rows[0]] if rows else []
    if set(head) & set(PATH_COLUMNS):
        at = next(k for k, cell in enumerate(head) if cell in PATH_COLUMNS)
        label_at = next((k for k, cell in enumerate(head) if cell in LABEL_COLUMNS), -1)
        rows = rows[1:]
    source = Files(path.parent, [row[at].strip() for row in rows], channels)
    texts = [row[label_at].strip() if 0 <= label_at < len(row) else "" for row in rows]
    if any(texts):
        if "" in texts:
            raise ValueError(f"data {path}: {source.names[texts.index('')]} has no label")
        source.classes, source.labels = numbered(texts)
    return source


def numbered(texts: list[str]) -> tuple[tuple[str, ...], Int64[np.ndarray, "n"]]:
    """Class names and labels: whole numbers up to MOST stand for themselves, words are sorted."""
    if all(text.isdigit() and int(text) <= MOST for text in texts):
        labels = np.array([int(text) for text in texts], dtype=np.int64)
        return tuple(str(k) for k in range(labels.max(initial=-1) + 1)), labels
    classes, labels = np.unique(np.array(texts), return_inverse=True)
    return tuple(classes.tolist()), labels.astype(np.int64)
