"""Toy pictures with squares on them, written in the three forms of detection data."""

import json

import numpy as np
import torch
from PIL import Image

from saccade.core import Clock, Scenes

CLASSES = ("blue", "red")
COLORS = ((20, 40, 230), (230, 30, 20))
CLOCK = Clock(0, 10, 5)


def draw(n, seed=0, size=(48, 64)):
    """n pictures [h, w, 3] and their objects: lists of (class, x0, y0, x1, y1), whole pixels."""
    g = np.random.default_rng(seed)
    pictures, objects = [], []
    for _ in range(n):
        picture = g.integers(90, 130, (*size, 3)).astype(np.uint8)
        mine = []
        for kind, left in ((0, 2), (1, size[1] // 2)):
            w, h = g.integers(12, 24, 2)
            x, y = left + g.integers(0, 6), g.integers(1, size[0] - h - 1)
            picture[y : y + h, x : x + w] = COLORS[kind]
            mine.append((kind, int(x), int(y), int(x + w), int(y + h)))
        pictures.append(picture)
        objects.append(mine)
    return pictures, objects


def save(folder, pictures):
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{i}.png")


def coco(root, splits, outlines=True):
    """`splits`: name, such as train2017 -> (pictures, objects)."""
    (root / "annotations").mkdir(parents=True)
    for name, (pictures, objects) in splits.items():
        save(root / "images" / name, pictures)
        rows = []
        for i, mine in enumerate(objects):
            for kind, x0, y0, x1, y1 in mine:
                row = {"id": len(rows) + 1, "image_id": i + 7, "category_id": 3 + 2 * kind}
                row |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
                row |= {"iscrowd": 0}
                if outlines:
                    row["segmentation"] = [[x0, y0, x1, y0, x1, y1, x0, y1]]
                rows.append(row)
        content = {
            "images": [
                {"id": i + 7, "file_name": f"{i}.png", "height": p.shape[0], "width": p.shape[1]}
                for i, p in enumerate(pictures)
            ],
            "annotations": rows,
            "categories": [{"id": 3 + 2 * k, "name": c} for k, c in enumerate(CLASSES)],
        }
        (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))
    return root


def voc(root, splits):
    """`splits`: train or val -> (pictures, objects); names are split and number."""
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "JPEGImages").mkdir(parents=True)
    for split, (pictures, objects) in splits.items():
        names = [f"{split}_{i}" for i in range(len(pictures))]
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name, picture, mine in zip(names, pictures, objects, strict=True):
            Image.fromarray(picture).save(root / "JPEGImages" / f"{name}.png")
            rows = "".join(
                f"<object><name>{CLASSES[kind]}</name><difficult>0</difficult><bndbox>"
                f"<xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
                "</bndbox></object>"
                for kind, x0, y0, x1, y1 in mine
            )
            h, w = picture.shape[:2]
            size = f"<size><width>{w}</width><height>{h}</height><depth>3</depth></size>"
            text = f"<annotation>{size}{rows}</annotation>"
            (root / "Annotations" / f"{name}.xml").write_text(text)
    return root


def yolo(root, splits, outlines=False):
    """`splits`: train or val -> (pictures, objects)."""
    root.mkdir(parents=True, exist_ok=True)
    lines = [f"{split}: images/{split}" for split in splits]
    lines.append(f"names: [{', '.join(CLASSES)}]")
    (root / "data.yaml").write_text("\n".join(lines) + "\n")
    for split, (pictures, objects) in splits.items():
        save(root / "images" / split, pictures)
        (root / "labels" / split).mkdir(parents=True)
        for i, (picture, mine) in enumerate(zip(pictures, objects, strict=True)):
            h, w = picture.shape[:2]
            rows = []
            for kind, x0, y0, x1, y1 in mine:
                numbers = [(x0 + x1) / 2 / w, (y0 + y1) / 2 / h, (x1 - x0) / w, (y1 - y0) / h]
                if outlines:
                    corners = ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
                    numbers = [c for x, y in corners for c in (x / w, y / h)]
                rows.append(" ".join(map(str, [kind, *numbers])))
            (root / "labels" / split / f"{i}.txt").write_text("\n".join(rows) + "\n")
    return root


def scenes(n=2, seed=0, masks=False):
    """A batch as the loader makes it, without resizing."""
    pictures, objects = draw(n, seed)
    h, w = pictures[0].shape[:2]
    images = torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p in pictures]) / 127.5 - 1
    outlines = []
    for mine in objects:
        one = torch.zeros(len(mine), h, w, dtype=torch.uint8)
        for k, (_, x0, y0, x1, y1) in enumerate(mine):
            one[k, y0:y1, x0:x1] = 1
        outlines.append(one)
    return Scenes(
        images=images,
        sizes=[(h, w)] * n,
        stored=[(h, w)] * n,
        index=torch.arange(n),
        boxes=[torch.tensor([o[1:] for o in mine], dtype=torch.float32) for mine in objects],
        labels=[torch.tensor([o[0] for o in mine]) for mine in objects],
        masks=outlines if masks else [torch.zeros(0, h, w, dtype=torch.uint8)] * n,
    )
