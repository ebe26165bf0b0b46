"""Classes of pixels: systems that take `Segments` and give a class for every pixel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from ..config import to_dict
from ..core import System
from ..data.bad import Bad
from ..data.crops import CropLoader, whole_pictures
from ..data.decode import MODES
from ..data.detection import NoSplit
from ..data.segmentation import Masked, in_memory_masked, open_masked, relabeled
from ..data.source import Source, Split
from ..engine.log import counter
from ..evals import segmentation as judge
from ..evals.results import Result, write_json
from ..nn import dist
from ..run import TrainRun
from .detection import COLORS, opened

TEST_BATCH = 4  # pictures
SHADE = 0.55  # of the class's color over the picture
LINE = 14  # pixels of a line of the legend
LISTED = 0.001  # of the picture, from which on a class stands in the legend


def open_data(run: TrainRun, split: Split) -> Masked | None:
    if split == "test":
        data = _test(run)
        return None if data is None else relabeled(data, run.system.classes)
    data = open_masked(run.data, channels=run.backbone.channels)
    budget = int(run.engine.memory_gb * 2**30)
    return in_memory_masked(data, budget=budget, threads=run.engine.workers)


def _test(run: TrainRun) -> Masked | None:
    channels = run.backbone.channels
    if run.eval_data:
        return open_masked(run.eval_data, split="test", channels=channels)
    try:
        data = open_masked(run.data, split="test", channels=channels)
    except NoSplit:
        return None
    return data if data.split == "test" else None


def fitted(run: TrainRun, data: Masked) -> TrainRun:
    if run.system.classes not in ((), data.classes):
        raise ValueError(
            f"setting system.classes: {list(run.system.classes)} are not the data's "
            f"{list(data.classes)}; leave them out"
        )
    return replace(run, system=replace(run.system, classes=data.classes))


def summary(data: Masked) -> str:
    return f"{len(data.pictures)} pictures with masks of {len(data.classes)} classes"


def bad(data: Masked) -> list[Bad]:
    return data.bad


def record(run: TrainRun, data: Masked, out: Path) -> None:
    """Nothing: all pictures train."""


def loader(run: TrainRun, data: Masked, device: torch.device) -> CropLoader:
    each = run.batch_size // dist.world()
    if each < 2 and run.system.head == "uper":
        raise ValueError(
            f"setting batch_size={run.batch_size}: batch norm over one cell a picture, as uper "
            "has it, needs 2 pictures a device; choose a larger one"
        )
    return CropLoader(
        data,
        run.system.cropping,
        run.normalize,
        batch_size=run.batch_size,
        seed=run.seed,
        rank=dist.rank(),
        world=dist.world(),
        threads=run.engine.workers,
        device=device,
    )


def later_bad(loader: CropLoader) -> list[Bad]:
    return [Bad(loader.data.pictures.name(i), reason) for i, reason in loader.bad.items()]


def evaluate(run: TrainRun, system: System, data: Masked, device: torch.device) -> list[Result]:
    """IoU on the test pictures that can be read."""
    unreadable: dict[int, str] = {}
    found = [
        judge.counted(truth, labels, len(run.system.classes))
        for _, labels, truth in seen(run, system, data.pictures, device, unreadable, "tested")
    ]
    if not found:
        raise ValueError("setting eval-data: none of its pictures can be read")
    settings = {
        "system": run.name,
        "cropping": to_dict(run.system.cropping),
        "unreadable": len(unreadable) + len(data.bad),
    }
    return judge.evaluate(
        found, run.system.classes, model=run.name, settings=settings, seed=run.seed
    )


def seen(
    run: TrainRun,
    system: System,
    source: Source,
    device: torch.device,
    unreadable: dict[int, str],
    what: str,
) -> Iterator[tuple[int, UInt8[np.ndarray, "h w"], UInt8[np.ndarray, "H W"]]]:
    """Number and classes of every readable picture, and its labels, none without a mask."""
    told, done = counter(what), 0
    batches = whole_pictures(
        source,
        run.system.cropping,
        run.normalize,
        batch_size=TEST_BATCH,
        threads=run.engine.workers,
        device=device,
        bad=unreadable,
    )
    for batch in batches:
        found = system.predict(batch)
        done += len(found)
        told(done, len(source))
        for i, labels, known in zip(batch.index.tolist(), found, batch.labels, strict=True):
            yield i, labels.cpu().numpy(), known.cpu().numpy()


def predict(
    run: TrainRun, system: System, pictures: str, out: Path, device: torch.device
) -> list[Bad]:
    """`predictions.json`, a mask of class numbers for each picture, and the picture in colors."""
    source = opened(pictures, run.backbone.channels)
    classes = run.system.classes
    colors = palette(len(classes))
    rows: list[dict[str, Any]] = []
    unreadable: dict[int, str] = {}
    for folder in ("masks", "pictures"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for index, labels, _ in seen(run, system, source, device, unreadable, "seen"):
        name = source.name(index)
        file = f"{index:06d}-{Path(name).stem}.png"
        mask = Image.fromarray(labels)
        mask.putpalette(colors.tobytes())
        mask.save(out / "masks" / file)
        shares = np.bincount(labels.ravel(), minlength=len(classes)) / labels.size
        drawn(source.read(index), labels, classes, shares).save(out / "pictures" / file)
        rows.append(
            {
                "picture": name,
                "height": labels.shape[0],
                "width": labels.shape[1],
                "shares": {classes[k]: shares[k] for k in np.flatnonzero(shares).tolist()},
                "mask": f"masks/{file}",
                "drawn": f"pictures/{file}",
            }
        )
    content = {"classes": classes, "colors": colors.tolist(), "pictures": rows}
    write_json(out / "predictions.json", content)
    return [Bad(source.name(i), reason) for i, reason in unreadable.items()]


def palette(classes: int) -> UInt8[np.ndarray, "k 3"]:
    """Colors told apart by everybody, then the same ones darker and lighter, and again."""
    base = np.array(COLORS, dtype=np.float64)
    shades = np.concatenate([base, 0.55 * base, 255 - 0.45 * (255 - base)])
    return np.resize(shades.round().astype(np.uint8), (classes, 3))


def drawn(
    pixels: Shaped[Tensor, "c h w"],
    labels: UInt8[np.ndarray, "h w"],
    classes: Sequence[str],
    shares: Shaped[np.ndarray, "k"],
) -> Image.Image:
    """The picture under the colors of its classes, and below it a legend, largest share first."""
    picture, colors = visible(pixels), palette(len(classes))
    shaded = Image.blend(picture, Image.fromarray(colors[labels]), SHADE)
    order = [k for k in np.argsort(-shares, kind="stable").tolist() if shares[k] >= LISTED]
    texts = [f"{classes[k]} {100 * shares[k]:.1f} %" for k in order]
    step = 2 * LINE + max(int(ImageDraw.Draw(picture).textlength(text)) for text in texts)
    columns = max(1, picture.width // step)
    lines = -(-len(order) // columns)
    canvas = Image.new("RGB", (picture.width, picture.height + lines * LINE), (255, 255, 255))
    canvas.paste(shaded)
    pen = ImageDraw.Draw(canvas)
    for i, (k, text) in enumerate(zip(order, texts, strict=True)):
        x, y = i % columns * step, picture.height + i // columns * LINE
        color = tuple(colors[k].tolist())
        pen.rectangle((x + 2, y + 2, x + LINE - 3, y + LINE - 3), fill=color, outline=(0, 0, 0))
        pen.text((x + LINE + 1, y + 1), text, fill=(0, 0, 0))
    return canvas


def visible(pixels: Shaped[Tensor, "c h w"]) -> Image.Image:
    """As RGB; the mean of bands that are none of a photograph's, from their least to their most."""
    if pixels.dtype != torch.uint8 or len(pixels) not in MODES:
        gray = pixels.float().mean(0, keepdim=True)
        low, high = gray.aminmax()
        pixels = ((gray - low) * (255 / (high - low).clamp(min=1e-12))).to(torch.uint8)
    array = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if len(pixels) == 1 else array).convert("RGB")
