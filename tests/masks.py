"""Toy pictures of colored halves with the class of every pixel, written in four forms."""

import numpy as np
import torch
from PIL import Image

from saccade.core import Clock, Segments

CLASSES = ("ground", "water", "sky")
COLORS = np.array([[40, 160, 40], [20, 40, 230], [200, 220, 250]], np.uint8)
VOID = 255
CLOCK = Clock(0, 10, 5)


def draw(n, seed=0, size=(40, 56)):
    """n pictures [h, w, 3] of noise and their labels [h, w], with VOID in one corner."""
    g = np.random.default_rng(seed)
    pictures, labels = [], []
    for _ in range(n):
        mine = np.zeros(size, np.uint8)
        mine[: int(g.integers(8, size[0] - 8))] = 2
        mine[-int(g.integers(6, 12)) :, int(g.integers(4, 30)) :] = 1
        noise = g.integers(-15, 16, (*size, 3))
        pictures.append((COLORS[mine].astype(int) + noise).clip(0, 255).astype(np.uint8))
        mine[:3, :4] = VOID
        labels.append(mine)
    return pictures, labels


def save(folder, arrays, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, one in enumerate(arrays):
        Image.fromarray(one).save(folder / f"{i}{suffix}")


def folders(root, splits):
    """images/SPLIT and masks/SPLIT, index masks."""
    for name, (pictures, labels) in splits.items():
        save(root / "images" / name, pictures)
        save(root / "masks" / name, labels)
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


def colored(root, splits):
    """SPLIT/images and SPLIT/masks, masks in colors, classes in another order."""
    colors = np.concatenate([COLORS, np.zeros((253, 3), np.uint8)])
    for name, (pictures, labels) in splits.items():
        save(root / name / "images", pictures)
        save(root / name / "masks", [colors[x] for x in labels])
    rows = [("Void", 0, 0, 0), *((c, *COLORS[k].tolist()) for k, c in enumerate(CLASSES))]
    text = "name,r,g,b\n" + "\n".join(",".join(map(str, row)) for row in rows)
    (root / "class_dict.csv").write_text(text)
    return root


def camvid(root, splits):
    """SPLIT and SPLITannot with the class numbers of CamVid, whose 11 is not learned."""
    table = np.full(256, 11, np.uint8)
    table[:3] = (3, 5, 0)  # road, tree, sky
    for name, (pictures, labels) in splits.items():
        save(root / name, pictures, ".webp")
        save(root / f"{name}annot", [table[x] for x in labels])
    return root


def ade(root, splits):
    """images/training and annotations/training, where 0 is no class."""
    for name, (pictures, labels) in splits.items():
        save(root / "images" / name, pictures)
        save(root / "annotations" / name, [np.where(x == VOID, 0, x + 1) for x in labels])
    head = "Idx\tRatio\tTrain\tVal\tName\n"
    rows = [f"{k + 1}\t0.1\t5\t5\t{c}\n" for k, c in enumerate(CLASSES)]
    (root / "objectInfo150.txt").write_text(head + "".join(rows))
    return root


def voc(root, splits):
    """JPEGImages, SegmentationClass in palette colors, and lists."""
    for name, (pictures, labels) in splits.items():
        lists = root / "ImageSets" / "Segmentation"
        for folder in (lists, root / "JPEGImages", root / "SegmentationClass"):
            folder.mkdir(parents=True, exist_ok=True)
        names = [f"{name}_{i}" for i in range(len(pictures))]
        (lists / f"{name}.txt").write_text("\n".join(names) + "\n")
        for stem, picture, mine in zip(names, pictures, labels, strict=True):
            Image.fromarray(picture).save(root / "JPEGImages" / f"{stem}.png")
            mask = Image.fromarray(mine)
            mask.putpalette(bytes(range(256)) * 3)
            mask.save(root / "SegmentationClass" / f"{stem}.png")
    return root


def segments(n=2, seed=0, size=(40, 56)):
    """A batch as the loader makes it, without crops."""
    pictures, labels = draw(n, seed, size)
    images = torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p in pictures]) / 127.5 - 1
    return Segments(
        images=images,
        stored=[size] * n,
        index=torch.arange(n),
        labels=[torch.from_numpy(x) for x in labels],
    )
