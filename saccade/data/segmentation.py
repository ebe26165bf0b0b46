"""Pictures with the class of every pixel, in the forms that people have, told apart by folders.

    images/ masks/               files of the same names, with train/ and val/ inside or around
    images/ annotations/         ADE20K and COCO-Stuff: training/, train2017/, ... inside
    train/ trainannot/ ...       CamVid as SegNet has it
    JPEGImages/ SegmentationClass/ ImageSets/Segmentation/       Pascal VOC
The first two need a list of classes beside the folders: see `class_list`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64, Shaped, UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from . import class_list
from .bad import Bad
from .class_list import Codes
from .decode import BadPicture
from .detection import NoSplit
from .folder import Files, scan
from .memory import in_memory
from .source import Source, Split
from .voc import VOC

SPLITS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training", "train2017"),
    "test": ("test", "val", "valid", "validation", "val2017"),
}
PICTURES = ("images", "imgs")
MASKS = ("masks", "annotations", "labels")
SUFFIXES = ("", "_mask", "_L")  # of a mask's name behind the picture's
FORMATS = ("PNG", "BMP", "GIF", "TIFF")  # that keep values as they are
INDEXED = ("P", "L", "1", "I", "I;16")  # Pillow's modes of one channel of whole numbers
CAMVID = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car"),
    *("pedestrian", "cyclist", "unlabelled"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Masked:
    """A data set of them: the last channel of a picture is the label of its pixels."""

    pictures: Source
    classes: tuple[str, ...]
    split: str  # "" where the data has no splits
    bad: list[Bad] = field(default_factory=list)  # files that were left out, and why


class Pairs(Source):
    """Picture files, each with its mask read into one more channel."""

    def __init__(self, pictures: Files, masks: Sequence[Path], codes: Codes) -> None:
        self.pictures, self.masks, self.codes = pictures, masks, codes
        self.channels, self.wide = pictures.channels + 1, pictures.wide
        self.classes, self.labels = (), None
        self.split, self.skipped = "", 0

    def __len__(self) -> int:
        return len(self.masks)

    def stored(self, i: int) -> Shaped[Tensor, "c h w"]:
        pixels = self.pictures.read(i)
        labels = read_mask(self.masks[i], self.codes)
        if labels.shape != pixels.shape[1:]:
            (h, w), (height, width) = labels.shape, pixels.shape[1:]
            raise BadPicture(
                self.name(i), f"its mask has {w} x {h} pixels, the picture {width} x {height}"
            )
        return torch.cat([pixels, torch.from_numpy(labels)[None].to(pixels.dtype)])

    def name(self, i: int) -> str:
        return self.pictures.name(i)


def read_mask(path: Path, codes: Codes) -> UInt8[np.ndarray, "h w"]:
    """The label of every pixel. Raises BadPicture."""
    try:
        with Image.open(path, formats=FORMATS) as mask:
            if codes.colored:
                rgb = np.array(mask.convert("RGB"), dtype=np.int64)
                stored: Int64[np.ndarray, "h w"] = rgb @ np.array([1 << 16, 1 << 8, 1])
            elif mask.mode in INDEXED:
                stored = np.array(mask, dtype=np.int64)
            else:
                raise ValueError(f"is {mask.mode}, and the class list gives no colors")
            return codes.labels_of(stored)
    except UnidentifiedImageError:
        raise BadPicture(path.name, f"is no mask in {', '.join(FORMATS)}") from None
    except Exception as error:  # a decoder may raise anything on a broken file
        raise BadPicture(path.name, str(error) or type(error).__name__) from None


def open_masked(data: str, *, split: Split = "train", channels: int = 3) -> Masked:
    """The pictures and masks that `data` names.

    Data without splits comes whole: its own `split` is then "".
    """
    root = Path(data)
    if not root.is_dir():
        raise ValueError(f"data {data!r}: no such folder; segmentation wants pictures and masks")
    if (root / "SegmentationClass").is_dir():
        return _voc(root, split, channels)
    pictures, masks, found = _folders(root, split)
    known = class_list.find(root)
    if known is None and masks.name.endswith("annot"):
        known = class_list.codes([(name, k) for k, name in enumerate(CAMVID)])
    if known is None:
        raise ValueError(
            f"data {data} has no list of classes; add {class_list.FILES[0]} with a name a line "
            "(or `value name`, or `red green blue name`)"
        )
    names, bad = scan(pictures)[0], []
    files = {Path(name).with_suffix("").as_posix(): masks / name for name in scan(masks)[0]}
    pairs = []
    for name in names:
        stem = Path(name).with_suffix("").as_posix()
        mask = next((files[stem + s] for s in SUFFIXES if stem + s in files), None)
        if mask is None:
            bad.append(Bad(name, "has no mask"))
        else:
            pairs.append((name, mask))
    return _masked(data, pictures, pairs, known, found, channels, bad)


def in_memory_masked(data: Masked, *, budget: int, threads: int) -> Masked:
    """The readable pictures, held decoded up to `budget` bytes; the others join `bad`."""
    held, bad = in_memory(data.pictures, budget=budget, threads=threads)
    return replace(data, pictures=held, bad=[*data.bad, *bad])


def relabeled(data: Masked, classes: Sequence[str]) -> Masked:
    """Data that is not held in memory, with its classes numbered as in training."""
    assert isinstance(data.pictures, Pairs)
    strange = [name for name in data.classes if name not in classes]
    if strange:
        raise ValueError(
            f"setting eval-data: class {strange[0]!r} was not trained; "
            f"the system knows {', '.join(classes)}"
        )
    old = data.pictures
    pairs = Pairs(old.pictures, old.masks, old.codes.renumbered(classes))
    return replace(data, pictures=pairs, classes=tuple(classes))


def _masked(
    data: str,
    root: Path,
    pairs: list[tuple[str, Path]],
    known: Codes,
    split: str,
    channels: int,
    bad: list[Bad],
) -> Masked:
    if not pairs:
        raise ValueError(f"data {data}: none of the {len(bad)} pictures in {root} has a mask")
    files = Files(root, [name for name, _ in pairs], channels)
    pictures = Pairs(files, [mask for _, mask in pairs], known)
    return Masked(pictures=pictures, classes=known.classes, split=split, bad=bad)


def _folders(root: Path, split: Split) -> tuple[Path, Path, Literal["train", "test", ""]]:
    """Pictures and masks of a split, or of data without splits."""

    def sides(name: str) -> list[tuple[Path, Path]]:
        kinds = [(p, m) for p in PICTURES for m in MASKS]
        inside = [(root / p / name, root / m / name) for p, m in kinds]
        around = [(root / name / p, root / name / m) for p, m in kinds]
        return [(root / name, root / f"{name}annot"), *inside, *around]

    found = {
        side: both
        for side, names in SPLITS.items()
        for name in reversed(names)
        for both in sides(name)
        if both[0].is_dir() and both[1].is_dir()
    }
    if split in found:
        return *found[split], split
    if found:
        raise NoSplit(
            f"data {root} has no {' or '.join(SPLITS[split][:2])} folder of pictures and masks"
        )
    for pictures, masks in ((root / p, root / m) for p in PICTURES for m in MASKS):
        if pictures.is_dir() and masks.is_dir():
            return pictures, masks, ""
    raise ValueError(
        f"data {root} has no masks; give images/ and masks/ with a list of classes, CamVid's "
        "train/ and trainannot/, or VOC's JPEGImages/ and SegmentationClass/"
    )


def _voc(root: Path, split: Split, channels: int) -> Masked:
    """VOC's lists; training takes the 10,582 pictures with later masks where they are there."""
    lists = {f.stem: f for f in (root / "ImageSets" / "Segmentation").glob("*.txt")}
    later = root / "SegmentationClassAug"
    wanted = ("train", "trainval") if split == "train" else ("val", "test")
    if split == "train" and later.is_dir():
        wanted = ("train_aug", "trainaug", *wanted)
    side = next((name for name in wanted if name in lists), None)
    if side is None:
        folder = root / "ImageSets" / "Segmentation"
        raise NoSplit(f"data {folder} has no {' or '.join(f'{w}.txt' for w in wanted)}; add one")
    masks = later if side.endswith("aug") else root / "SegmentationClass"
    stems = [
        Path(line.split()[0]).stem
        for line in lists[side].read_text(encoding="utf-8").splitlines()
        if line.strip()
    ]
    names = {Path(name).stem: name for name in scan(root / "JPEGImages")[0]}
    pairs, bad = [], []
    for stem in stems:
        mask = masks / f"{stem}.png"
        if stem not in names:
            bad.append(Bad(stem, "is in the list and not in JPEGImages"))
        elif not mask.is_file():
            bad.append(Bad(names[stem], "has no mask"))
        else:
            pairs.append((names[stem], mask))
    known = class_list.find(root) or class_list.codes(
        [(name, k) for k, name in enumerate(("background", *VOC))]
    )
    return _masked(str(root), root / "JPEGImages", pairs, known, split, channels, bad)
