"""A folder of 200 small pictures, 20 of them odd in ten ways; four of the ways are unreadable."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def make(folder: Path) -> dict[str, str]:
    """Fill the folder; return the name of each unreadable entry and a part of the reason."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)

    def picture() -> Image.Image:
        return Image.fromarray(random.integers(0, 256, (40, 56, 3), dtype=np.uint8))

    for i in range(180):
        picture().save(folder / f"good_{i:03d}.{('jpg', 'png')[i % 2]}")
    bad = {}
    for i in range(2):
        _readable(folder, i, picture)
        stream = io.BytesIO()
        picture().save(stream, ("JPEG", "PNG")[i])
        cut = f"cut_{i}.{('jpg', 'png')[i]}"
        (folder / cut).write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])
        (folder / f"empty_{i}.jpg").touch()
        (folder / f"text_{i}.jpg").write_text("This is a text, not a picture.\n")
        (folder / f"directory_{i}.png").mkdir()
        bad |= {cut: "truncated", f"empty_{i}.jpg": "empty file"}
        bad |= {f"text_{i}.jpg": "not a picture", f"directory_{i}.png": "is a directory"}
    return bad


def _readable(folder: Path, i: int, picture) -> None:
    picture().convert("CMYK").save(folder / f"cmyk_{i}.jpg")
    wide = np.linspace(0, 65535, 40 * 56).reshape(40, 56).astype(np.uint16)
    Image.fromarray(wide).save(folder / f"deep_{i}.png")
    picture().quantize(16).save(folder / f"palette_{i}.png")
    frames = [picture().quantize(16) for _ in range(3)]
    frames[0].save(folder / f"animated_{i}.gif", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(folder / f"turned_{i}.jpg", exif=exif)
    Image.new("RGB", (1, 1), (200, 100, 50)).save(folder / f"dot_{i}.png")
