"""What it costs to make views: ours, lightly's, torchvision's, and decoding alone, in turn.

A round makes the views of the same pictures once with each arm, one after the other. `decode` reads
and decodes and does nothing else: the floor. `saccade`: the loader as training uses it.
`lightly`: its transform of the method, on Pillow pictures. `torchvision.v2`: the method's table of
views on 8-bit tensors, decoded as ours are. `dataloader`: the same table on Pillow pictures in
worker processes, the usual recipe. With one thread, lightly and v2 run in this process; with more,
both run in as many worker processes of a DataLoader. All arms end in normalized float32 batches.
Files are in the system's memory after the first round, which does not count.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .. import methods
from ..core import View
from ..data.decode import decode
from ..data.loader import ViewLoader
from ..data.source import BadPicture, Source, Subset, open_source
from ..data.threads import ordered
from ..recipe import Normalize
from . import Work, interleave, machine, spread, versions

KERNEL = 0.1  # of a view's side: width of torchvision's blur
BATCH = 16
DINO_LOCALS = 6  # as lightly has them

Stored = str | bytes | Tensor  # a path, a file, or pixels
Transform = Callable[[Any], list[Tensor]]  # views of a picture


class Pictures(Dataset):
    """What a DataLoader's workers transform."""

    def __init__(self, items: list[Stored], opened: Callable[[Stored], Any], make: Transform):
        self.items, self.opened, self.make = items, opened, make

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> list[Tensor]:
        return self.make(self.opened(self.items[i]))


def run_data(
    data: str,
    *,
    views: str = "dino",
    threads: int = 1,
    pictures: int = 64,
    rounds: int = 10,
    image_size: int = 224,
) -> dict[str, Any]:
    """Seconds of every arm in every round, views a second, and ratios, ready for JSON."""
    if views not in LIGHTLY:
        raise ValueError(f"setting views: no bench for {views!r}; choose from {', '.join(LIGHTLY)}")
    rows = table(views, image_size)
    source = _readable(open_source(data), pictures)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # threads and workers are the parallelism of every arm
    try:
        seconds = interleave(_arms(views, rows, source, threads), rounds)
    finally:
        torch.set_num_threads(before)
    made = len(source) * sum(view.count for view in rows)
    return {
        "bench": "data",
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["saccade", *sys.argv[1:]]),
        "settings": {
            "data": data,
            "pictures": len(source),
            "sizes": _sizes(source),
            "views": views,
            "rows": [asdict(view) for view in rows],
            "threads": threads,
            "batch_size": min(BATCH, len(source)),
            "rounds": rounds,
        },
        "machine": machine(),
        "versions": versions(),
        "arms": {arm: _arm(s, made, seconds) for arm, s in seconds.items()},
    }


def table(views: str, image_size: int) -> tuple[View, ...]:
    """The method's own rows, scaled to this size; DINO's with as many local crops as lightly's."""
    rows: tuple[View, ...] = methods.get(views).Config().views  # type: ignore[attr-defined]
    if views == "dino":
        rows = (*rows[:-1], replace(rows[-1], count=DINO_LOCALS))
    largest = max(view.size for view in rows)
    return tuple(replace(v, size=round(v.size * image_size / largest)) for v in rows)


def torchvision_transform(rows: tuple[View, ...], library: Any, tail: list[Any]) -> Transform:
    """The table of views in torchvision's words; `library` is transforms or transforms.v2."""
    each = [_chain(view, library, tail) for view in rows for _ in range(view.count)]
    return partial(_views, each)  # worker processes may have to pickle it


def _views(each: list[Any], picture: Any) -> list[Tensor]:
    return [chain(picture) for chain in each]


def _chain(view: View, library: Any, tail: list[Any]) -> Any:
    kernel = max(round(KERNEL * view.size) // 2 * 2 + 1, 3)
    brightness, contrast, saturation, hue = view.strength
    color = library.ColorJitter(brightness, contrast, saturation, hue)
    steps = {
        "flip": library.RandomHorizontalFlip(view.flip),
        "jitter": library.RandomApply([color], view.jitter),
        "grayscale": library.RandomGrayscale(view.grayscale),
        "blur": library.RandomApply([library.GaussianBlur(kernel, view.sigma)], view.blur),
        "solarize": library.RandomSolarize(128, view.solarize),
    }
    crop = library.RandomResizedCrop(
        view.size,
        view.crop,
        view.ratio,
        interpolation=library.InterpolationMode(view.interpolation),
        antialias=True,
    )
    used = [steps[op] for op in view.order if op in steps and getattr(view, op) > 0]
    return library.Compose([crop, *used, *tail])


def _arms(views: str, rows: tuple[View, ...], source: Source, threads: int) -> dict[str, Work]:
    from torchvision import transforms as v1
    from torchvision.transforms import v2

    normalize = Normalize()
    batch = min(BATCH, len(source))
    loader = ViewLoader(source, rows, normalize, batch_size=batch, seed=0, threads=threads)
    items = [source.stored(i) for i in range(len(source))]
    scale = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(normalize.mean, normalize.std)]
    plain = [v1.ToTensor(), v1.Normalize(normalize.mean, normalize.std)]
    peers = {
        "torchvision.v2": Pictures(items, as_tensor, torchvision_transform(rows, v2, scale)),
        "dataloader": Pictures(items, as_pillow, torchvision_transform(rows, v1, plain)),
    }
    if lightly := _lightly(views, rows):
        peers["lightly"] = Pictures(items, as_pillow, lightly)
    alone = {"torchvision.v2", "lightly"} if threads == 1 else set()
    arms = {"decode": _decode(source, threads), "saccade": _ours(loader)}
    for name in sorted(peers, key=["lightly", "torchvision.v2", "dataloader"].index):
        arms[name] = _peer(peers[name], batch, 0 if name in alone else threads)
    return arms


def _ours(loader: ViewLoader) -> Work:
    epochs = iter(range(1 << 30))

    def work() -> None:
        for _ in loader.batches(next(epochs)):
            pass

    return work


def _decode(source: Source, threads: int) -> Work:
    def work() -> None:
        for _ in ordered(source.read, range(len(source)), threads=threads, ahead=2 * threads):
            pass

    return work


def _peer(pictures: Pictures, batch: int, workers: int) -> Work:
    loader = DataLoader(
        pictures,
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )

    def work() -> None:
        for _ in loader:
            pass

    return work


def as_pillow(stored: Stored) -> Image.Image:
    """As torchvision's own loader opens a file."""
    if isinstance(stored, Tensor):
        return Image.fromarray(stored.permute(1, 2, 0).numpy())
    with Image.open(BytesIO(stored) if isinstance(stored, bytes) else stored) as picture:
        return picture.convert("RGB")


def as_tensor(stored: Stored) -> Tensor:
    """By our own decoder: torchvision gives its own up."""
    return stored if isinstance(stored, Tensor) else decode(stored, "", 3)


def _lightly(views: str, rows: tuple[View, ...]) -> Transform | None:
    """Its transform of the method with its own defaults, at our sizes; None where not installed."""
    try:
        from lightly import transforms
    except ImportError:
        return None
    sizes: dict[str, Any] = {"input_size": rows[0].size}
    if views == "dino":
        sizes = {"global_crop_size": rows[0].size, "local_crop_size": rows[-1].size}
        sizes |= {"n_local_views": DINO_LOCALS}
    return vars(transforms)[LIGHTLY[views]](**sizes)


def _readable(source: Source, count: int) -> Source:
    """`count` pictures, evenly spread, of those that can be read."""
    good = []
    for i in (k * len(source) // min(count, len(source)) for k in range(min(count, len(source)))):
        try:
            source.read(i)
        except BadPicture:
            continue
        good.append(i)
    if not good:
        raise ValueError("setting data: none of the pictures tried can be read")
    return Subset(source, np.array(good, dtype=np.int64))


def _sizes(source: Source) -> dict[str, list[int]]:
    shapes = [source.read(i).shape for i in range(len(source))]
    return {"median height, width": [int(np.median([s[k] for s in shapes])) for k in (1, 2)]}


def _arm(own: list[float], made: int, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Spread of the seconds, views a second, and time as a multiple of ours and of the floor's."""
    times = {
        f"times {other}": spread([a / b for a, b in zip(own, seconds[other], strict=True)])
        for other in ("saccade", "decode")
    }
    middle = spread(own)
    return {"seconds": own, **middle, "views_per_second": made / middle["median"], **times}


def show(found: dict[str, Any]) -> None:
    """Every arm's views a second and ratios, as a table."""
    from rich.console import Console
    from rich.table import Table

    settings = found["settings"]
    view = Table(
        box=None,
        title=f"{settings['views']} views of {settings['pictures']} pictures, "
        f"{settings['threads']} threads",
        caption=f"medians of {settings['rounds']} interleaved rounds; time as a multiple of ours "
        "and of decoding alone, with quartiles",
    )
    for name in ("", "ms/picture", "views/s", "x ours", "", "x decode", ""):
        view.add_column(name, justify="right", no_wrap=True)
    for name, arm in found["arms"].items():
        cells = [f"{1000 * arm['median'] / settings['pictures']:.2f}"]
        cells.append("" if name == "decode" else f"{arm['views_per_second']:.0f}")
        for r in (arm["times saccade"], arm["times decode"]):
            cells += [f"{r['median']:.3g}", f"{r['low']:.3g}-{r['high']:.3g}"]
        view.add_row(name, *cells)
    Console().print(view)


LIGHTLY = {
    "dino": "DINOTransform",
    "simclr": "SimCLRTransform",
    "moco": "MoCoV2Transform",
    "mae": "MAETransform",
}
