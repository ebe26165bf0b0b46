"""Pascal VOC's XML: one file a picture in Annotations/, lists of names in ImageSets/Main/."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from .bad import Bad
from .detection import Entry, NoSplit
from .source import Split

# VOC's twenty, in the order of their numbers; other data has its names sorted.
VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)


def fits(path: Path) -> bool:
    return (path / "Annotations").is_dir()


def read(path: Path, split: Split) -> tuple[Path, list[Entry], tuple[str, ...], str, list[Bad]]:
    """Root of the pictures, pictures, class names, split, and what was left out.

    Training takes trainval where there is a test list, else train; a test takes test, else val.
    Classes are those of all files, so that both splits number them alike.
    """
    trees, bad = _trees(path)
    named = {name: _objects(tree) for name, tree in trees.items()}
    used = {kind for objects in named.values() for kind, _ in objects}
    classes = VOC if used <= set(VOC) else tuple(sorted(used))
    names, side = _names(path, split, list(trees))
    folder = path / "JPEGImages"
    files = {f.stem: f.name for f in folder.iterdir()} if folder.is_dir() else {}
    entries = []
    for name in names:
        if name in trees:
            entry = Entry(name=files.get(name, f"{name}.jpg"))
            _fill(entry, trees[name], named[name], classes)
            entries.append(entry)
        elif not any(one.name == f"{name}.xml" for one in bad):
            bad.append(Bad(f"{name}.xml", "is in the list and not in Annotations"))
    return folder, entries, classes, side, bad


def _trees(path: Path) -> tuple[dict[str, ElementTree.Element], list[Bad]]:
    trees, bad = {}, []
    for file in sorted((path / "Annotations").glob("*.xml")):
        try:
            tree = ElementTree.parse(file).getroot()
            _objects(tree)
        except (ElementTree.ParseError, ValueError, UnicodeDecodeError) as error:
            bad.append(Bad(file.name, f"annotation cannot be read ({error})"))
        else:
            trees[file.stem] = tree
    return trees, bad


def _names(path: Path, split: Split, every: list[str]) -> tuple[list[str], str]:
    """The names of a split; all of them where there are no lists."""
    lists = {f.stem: f for f in (path / "ImageSets" / "Main").glob("*.txt")}
    wanted = {
        "train": ("trainval", "train") if "test" in lists else ("train", "trainval"),
        "test": ("test", "val"),
    }
    if not lists:
        return every, ""
    for side in wanted[split]:
        if side in lists:
            lines = lists[side].read_text(encoding="utf-8").split("\n")
            return [line.split()[0] for line in lines if line.strip()], split
    raise NoSplit(
        f"data {path}/ImageSets/Main has no {' or '.join(f'{s}.txt' for s in wanted[split])}; "
        "add one"
    )


def _objects(tree: ElementTree.Element) -> list[tuple[str, tuple[float, ...]]]:
    """Class and box of each object; VOC counts pixels from 1 and the last one is inside."""
    found = []
    for one in tree.iter("object"):
        kind = (one.findtext("name") or "").strip()
        x0, y0, x1, y1 = (
            float(one.findtext(f"bndbox/{edge}") or "nan")
            for edge in ("xmin", "ymin", "xmax", "ymax")
        )
        if not kind:
            raise ValueError("an object has no name")
        found.append((kind, (x0 - 1, y0 - 1, x1, y1)))
    return found


def _fill(
    entry: Entry,
    tree: ElementTree.Element,
    objects: list[tuple[str, tuple[float, ...]]],
    classes: tuple[str, ...],
) -> None:
    height, width = (float(tree.findtext(f"size/{side}") or 0) for side in ("height", "width"))
    if height > 0 and width > 0:
        entry.height, entry.width = height, width
    for (kind, box), one in zip(objects, tree.iter("object"), strict=True):
        difficult = (one.findtext("difficult") or "0").strip() == "1"
        entry.add(box, classes.index(kind), difficult=difficult)
