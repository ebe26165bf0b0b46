"""What each stage of making views costs on one core, beside the tools that could do it.

    python benchmarks/stages.py PICTURES [PICTURES ...] --out benchmarks/results/stages.json

PICTURES are folders of JPEG files. Times are CPU milliseconds a picture: the least of a few rounds,
in which the tools take turns. Needs lightly and opencv-python-headless.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image
from torchvision import io as tio
from torchvision.transforms.v2 import functional as tv

from saccade.core import View
from saccade.data import decode, jpeg, kernels, opcodes, open_source
from saccade.data.loader import ViewLoader
from saccade.data.source import Source
from saccade.recipe import Normalize

PICTURES = 48  # of each folder
ROUNDS = 7
EPOCH = 240  # pictures of an epoch beside others: what its threads cost at the start counts little
DINO = {"interpolation": "bicubic", "strength": (0.4, 0.4, 0.2, 0.1)}
VIEWS = {
    "dino 2x224+6x96": (
        View(size=224, crop=(0.4, 1.0), blur=1.0, **DINO),
        View(size=224, crop=(0.4, 1.0), blur=0.1, solarize=0.2, **DINO),
        View(size=96, count=6, crop=(0.05, 0.4), **DINO),
    ),
    "simclr 2x224": (View(count=2, strength=(0.8, 0.8, 0.8, 0.2)),),
    "moco 2x224": (View(count=2, crop=(0.2, 1.0)),),
    "mae 224": (
        View(crop=(0.2, 1.0), interpolation="bicubic", jitter=0.0, grayscale=0.0, blur=0.0),
    ),
}


class Files(Source):
    """The bytes of some files in memory, so that the disk is left out."""

    channels, classes, labels, split, skipped = 3, (), None, "", 0

    def __init__(self, files: list[bytes]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def stored(self, i: int) -> bytes:
        return self.files[i]

    def name(self, i: int) -> str:
        return str(i)


def least(tools: dict[str, Callable[[], object]], count: int) -> dict[str, float]:
    """CPU milliseconds of each, for one of `count`."""
    times: dict[str, list[float]] = {name: [] for name in tools}
    for _ in range(ROUNDS):
        for name, work in tools.items():
            began = time.process_time()
            work()
            times[name].append((time.process_time() - began) / count * 1e3)
    return {name: round(min(values), 4) for name, values in times.items()}


def each(work: Callable[[bytes], object], files: list[bytes]) -> Callable[[], object]:
    return lambda: [work(file) for file in files]


def common(file: bytes) -> bool:
    """Whether libjpeg-turbo's simple interface takes the file; Pillow reads the others."""
    try:
        simplejpeg.decode_jpeg(file, "RGB")
    except ValueError:
        return False
    return True


def pillow(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def enlarged(file: bytes, width: int, height: int) -> bytes:
    stream = io.BytesIO()
    picture = Image.open(io.BytesIO(file)).convert("RGB")
    picture.resize((width, height), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def decoders(files: list[bytes]) -> dict[str, float]:
    def torchvision(file: bytes) -> object:
        data = torch.frombuffer(bytearray(file), dtype=torch.uint8)
        return tio.decode_jpeg(data, mode=tio.ImageReadMode.RGB)

    def opencv(file: bytes, flag: int = cv2.IMREAD_COLOR_RGB) -> object:
        return cv2.imdecode(np.frombuffer(file, np.uint8), flag)

    def scaled(file: bytes, scale: int) -> object:
        return decode.shrunk(file, "", 3, lambda height, width: scale)

    tools = {
        "simplejpeg": lambda f: simplejpeg.decode_jpeg(f, "RGB"),
        "simplejpeg, fast DCT": lambda f: simplejpeg.decode_jpeg(
            f, "RGB", fastdct=True, fastupsample=True
        ),
        "opencv": opencv,
        "torchvision": torchvision,
        "pillow": pillow,
        "ours": lambda f: scaled(f, 1),
        "ours, 1/2": lambda f: scaled(f, 2),
        "ours, 1/4": lambda f: scaled(f, 4),
        "ours, 1/8": lambda f: scaled(f, 8),
        "opencv, 1/2": lambda f: opencv(f, cv2.IMREAD_REDUCED_COLOR_2),
    }
    return least({name: each(work, files) for name, work in tools.items()}, len(files))


def crops(files: list[bytes]) -> dict[str, float]:
    """The middle of each picture, three quarters of either side, to 224 and to 96 pixels."""
    arrays = [simplejpeg.decode_jpeg(file, "RGB") for file in files]
    times = {}
    for size in (224, 96):
        for mode in ("bilinear", "bicubic"):
            kind = tv.InterpolationMode(mode)
            out = np.empty((3, size, size), np.uint8)

            def box(a: np.ndarray) -> tuple[int, int, int, int]:
                h, w = a.shape[:2]
                return h // 8, w // 8, h * 3 // 4, w * 3 // 4

            def ours(a: np.ndarray, bicubic: int = int(mode == "bicubic"), out: np.ndarray = out):
                kernels.crop(a, *a.shape[:2], 1, np.array(box(a)), bicubic, 0, out, len(out[0]))

            def torchs(a: np.ndarray, size: int = size, kind: tv.InterpolationMode = kind):
                x = torch.from_numpy(a).permute(2, 0, 1)
                tv.resized_crop(x, *box(a), [size] * 2, kind, antialias=True)

            def opencv(a: np.ndarray, size: int = size):
                y, x, h, w = box(a)
                cv2.resize(a[y : y + h, x : x + w], (size,) * 2, interpolation=cv2.INTER_AREA)

            tools = {"ours": ours, "torchvision": torchs, "opencv area (no such kernel)": opencv}
            got = least(
                {n: lambda f=f: [f(a) for a in arrays] for n, f in tools.items()}, len(files)
            )
            times |= {f"{size} {mode}, {name}": value for name, value in got.items()}
    return times


def colors(size: int = 224) -> dict[str, float]:
    """Each operation on a picture of noise, with loading and normalization."""
    x = torch.randint(0, 256, (3, size, size), dtype=torch.uint8)
    floats, lines = x / 255, np.empty(size * -(-size // opcodes.SPAN) * opcodes.SPAN, np.float32)
    pixels, normal = x.numpy(), np.ones((2, 3), np.float32)
    out = np.empty((3, size, size), np.float32)

    def ours(code: int, value: float) -> Callable[[], object]:
        codes, values = np.array([code]), np.array([value], np.float32)
        return lambda: kernels.color(pixels, size, size, codes, values, 1, normal, lines, out)

    tools = {
        "nothing but normalize": ours(opcodes.NOTHING, 0),
        "brightness": ours(opcodes.BRIGHTNESS, 1.2),
        "contrast": ours(opcodes.CONTRAST, 1.2),
        "saturation": ours(opcodes.SATURATION, 1.2),
        "hue": ours(opcodes.HUE, 0.1),
        "grayscale": ours(opcodes.GRAYSCALE, 0),
        "solarize": ours(opcodes.SOLARIZE, 0),
        "blur, sigma 0.5": ours(opcodes.BLUR, 0.5),
        "blur, sigma 2": ours(opcodes.BLUR, 2.0),
        "torchvision brightness": lambda: tv.adjust_brightness(floats, 1.2),
        "torchvision contrast": lambda: tv.adjust_contrast(floats, 1.2),
        "torchvision saturation": lambda: tv.adjust_saturation(floats, 1.2),
        "torchvision hue": lambda: tv.adjust_hue(floats, 0.1),
        "torchvision blur, sigma 2": lambda: tv.gaussian_blur(floats, [13, 13], [2.0, 2.0]),
        "opencv blur, sigma 2": lambda: cv2.GaussianBlur(
            floats.permute(1, 2, 0).numpy(), (13, 13), 2.0
        ),
    }
    return least(tools, 1)


def stages(files: list[bytes], views: tuple[View, ...]) -> dict[str, float]:
    """What is added by each stage, and the whole."""
    loader = ViewLoader(Files(files), views, Normalize(), batch_size=len(files), seed=0, threads=1)
    slots = torch.arange(len(files))
    making = loader._begin(slots, 0)
    opened = [loader._open(making, row) for row in range(len(files))]
    out, draws = making.memory, making.draws
    bytes_out = torch.empty(len(out), dtype=torch.uint8)
    kept = draws.operations.copy()

    def make(target: torch.Tensor) -> None:
        for row, (picture, scale) in enumerate(opened):
            loader.maker.make(picture, scale, draws, row, target)

    def without(*codes: int) -> Callable[[], None]:
        def work() -> None:
            draws.operations[:] = np.where(np.isin(kept, codes), opcodes.NOTHING, kept)
            make(out)
            draws.operations[:] = kept

        return work

    def scaled() -> None:
        for file, (_, scale) in zip(files, opened, strict=True):
            decode.shrunk(file, "", 3, lambda height, width, scale=scale: scale)

    got = least(
        {
            "decode": each(lambda f: simplejpeg.decode_jpeg(f, "RGB"), files),
            "scaled": scaled,
            "draws": lambda: loader._begin(slots, 0),
            "open": lambda: [loader._open(making, row) for row in range(len(files))],
            "crops": lambda: make(bytes_out),
            "normalize": without(*range(1, 8)),
            "no blur": without(opcodes.BLUR),
            "views": lambda: make(out),
            "whole": lambda: [None for _ in loader.batches(0)],
        },
        len(files),
    )
    return {
        "decode in full, alone": got["decode"],
        "decode as needed": got["scaled"],
        "header, boxes, Python": round(got["open"] - got["scaled"], 4),
        "draws and memory": got["draws"],
        "crops": got["crops"],
        "to float, normalize": round(got["normalize"] - got["crops"], 4),
        "jitter, grayscale, solarize": round(got["no blur"] - got["normalize"], 4),
        "blur": round(got["views"] - got["no blur"], 4),
        "fresh memory, threads": round(got["whole"] - got["open"] - got["views"], 4),
        "whole": got["whole"],
    }


def peers(files: list[bytes]) -> dict[str, dict[str, float]]:
    """Beside lightly, and beside decoding alone."""
    from lightly import transforms as lightly

    theirs = {
        "dino 2x224+6x96": lightly.DINOTransform(
            global_crop_scale=(0.4, 1.0), local_crop_scale=(0.05, 0.4)
        ),
        "simclr 2x224": lightly.SimCLRTransform(input_size=224),
        "moco 2x224": lightly.MoCoV2Transform(input_size=224),
        "mae 224": lightly.MAETransform(input_size=224),
    }
    results = {}
    size = max(1, len(files) // 2)
    many = files * max(1, EPOCH // len(files) if len(files) > 4 else 1)
    for name, views in VIEWS.items():
        loader = ViewLoader(Files(many), views, Normalize(), batch_size=size, seed=0, threads=1)

        def their(f: bytes, transform: Callable[[Image.Image], object] = theirs[name]) -> object:
            return transform(Image.open(io.BytesIO(f)).convert("RGB"))

        got = least(
            {
                "ours": lambda loader=loader: [None for _ in loader.batches(0)],
                "lightly": each(their, files),
                "decode": each(lambda f: simplejpeg.decode_jpeg(f, "RGB"), files),
            },
            len(files),
        )
        got["ours"] = round(got["ours"] * len(files) / len(many), 4)
        got["times lightly"] = round(got["lightly"] / got["ours"], 2)
        got["times decode"] = round(got["ours"] / got["decode"], 2)
        results[name] = got
    return results


def threads(files: list[bytes]) -> dict[str, float]:
    """Wall milliseconds a picture of DINO's views with 1 and 2 threads, in turns."""
    many = (files * (256 // len(files) + 1))[:256]
    loaders = {
        n: ViewLoader(
            Files(many), VIEWS["dino 2x224+6x96"], Normalize(), batch_size=32, seed=0, threads=n
        )
        for n in (1, 2)
    }
    times: dict[int, list[float]] = {n: [] for n in loaders}
    for epoch in range(ROUNDS):
        for n, loader in loaders.items():
            began = time.perf_counter()
            for _ in loader.batches(epoch):
                pass
            times[n].append((time.perf_counter() - began) / len(many) * 1e3)
    one, two = (min(times[n]) for n in (1, 2))
    return {"1 thread": round(one, 4), "2 threads": round(two, 4), "gain": round(one / two, 3)}


FIRST = """
import resource, sys, time, torch
import torchvision
from saccade.core import View
from saccade.recipe import Normalize
began, spent = time.perf_counter(), time.process_time()
from saccade.data import open_source
from saccade.data.loader import ViewLoader
source = open_source(sys.argv[1])
views = (View(count=2, size=224),)
next(ViewLoader(source, views, Normalize(), batch_size=64, seed=0, threads=2).batches(0))
print(len(source), time.perf_counter() - began, time.process_time() - spent)
"""


def first_batch(files: list[bytes]) -> dict[str, float]:
    """Seconds to the first 64 pictures of a folder of 10,000 files; torch is already imported."""
    with tempfile.TemporaryDirectory() as folder:
        for k in range(10_000):
            (Path(folder) / f"{k:05}.jpg").write_bytes(files[k % len(files)])
        command = [sys.executable, "-c", FIRST, folder]
        runs = [
            subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(5)
        ]
        rows = [[float(x) for x in run.stdout.split()] for run in runs[1:]]
    return {"files": rows[0][0], "wall": min(r[1] for r in rows), "cpu": min(r[2] for r in rows)}


def memory(files: list[bytes]) -> list[float]:
    """Resident MB after each of 20 epochs."""
    loader = ViewLoader(
        Files(files), VIEWS["dino 2x224+6x96"], Normalize(), batch_size=16, seed=0, threads=2
    )
    page, sizes = resource.getpagesize(), []
    for epoch in range(20):
        for _ in loader.batches(epoch):
            pass
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        sizes.append(round(pages * page / 1e6, 1))
    return sizes


PARTS = ("sets", "operations", "threads", "first", "memory")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", default=",".join(PARTS), help="some alone go into --out again")
    options = parser.parse_args()
    parts = options.parts.split(",")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    report: dict[str, Any] = {
        "command": f"python benchmarks/stages.py {' '.join(Path(f).name for f in options.folders)}",
        "date": datetime.date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "versions": {
            name: version(name)
            for name in ("torch", "torchvision", "numba", "simplejpeg", "pillow", "lightly")
        },
    }
    if parts != [*PARTS] and options.out.exists():
        today = report["date"]
        report = json.loads(options.out.read_text())
        report.setdefault("measured again", {}).update(dict.fromkeys(parts, today))
    sets: dict[str, list[bytes]] = {}
    for folder in options.folders:
        source = open_source(folder, limit=PICTURES)
        stored = [source.stored(i) for i in range(len(source))]
        files = [Path(s).read_bytes() for s in stored if isinstance(s, str)]
        sets[Path(folder).name] = [f for f in files if jpeg.header(f) and common(f)]
    first = next(iter(sets.values()))
    sets["500x375, enlarged"] = [enlarged(f, 500, 375) for f in first[:24]]
    sets["12 megapixels, enlarged"] = [enlarged(f, 4000, 3000) for f in first[:4]]
    for name, files in sets.items() if "sets" in parts else ():
        report[name] = {
            "decoders": decoders(files),
            "stages": {kind: stages(files, views) for kind, views in VIEWS.items()},
            "beside others": peers(files),
        }
        print(name, json.dumps(report[name]["beside others"], indent=2), flush=True)
    if "operations" in parts:
        report["crops, 500x375"] = crops(sets["500x375, enlarged"])
        report["colors, 224 pixels"] = colors()
    if "threads" in parts:
        report["threads"] = threads(sets["500x375, enlarged"])
    if "first" in parts:
        report["first batch"] = first_batch(first)
    if "memory" in parts:
        report["resident MB of 20 epochs"] = memory(first)
    options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
