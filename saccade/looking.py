"""Pictures of what a network sees: `saccade look`, and the report's panels.

A picture is looked at whole, in its own shape, with about as many pixels as the network was made
for, or as make a last map of 7 x 7 cells where that is more. The query is a point of the first
picture. Kinds are drawn only where they mean something:

    attention    ViT with CLS: the last block's CLS row (or that of the query), each head, and the
                 cells that hold 60 % of it; others: the query's row in every layer of attention
    pca          the first three principal components of all cells, as red, green, blue
    foreground   the same of the cells in front: one side of the first component
    similarity   cosine of every cell with the query's
    neighbors    the nearest cells to the query's in all pictures
    degeneracy   how equal the rows of different queries are, layer by layer
    system       what a trained detector or segmenter attends to behind its encoder
    method       what the pretraining method itself draws (`core.Method.draw`)
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from . import evaluation, inside, microscope, revived, weights
from .config import suggest
from .core import Backbone
from .data.augment import normalizer
from .data.folder import Files
from .data.loader import check_channels
from .data.source import BadPicture
from .drawing.colors import photo
from .drawing.sheet import stacked
from .engine import distributed
from .evals.results import write_json
from .recipe import Normalize
from .sight import DRAW, Panel, Point, Sight, method_panel, system_panel

KINDS = (*DRAW, "system", "method")
CELLS = 7  # along a side of the last map, at least: fewer show nothing


def panels(weights: str, pictures: Sequence[Path], *, width: int = 900) -> dict[str, Image.Image]:
    """A contact sheet, so many pixels wide, for every kind that these weights have."""
    return {kind: panel.page for kind, panel in look(weights, pictures, width=width).items()}


def look(
    name: str,
    pictures: Sequence[Path],
    *,
    kinds: Sequence[str] = (),
    query: str = "",
    backbone: str = "",
    image_size: int = 0,
    width: int = 900,
    told: Callable[[weights.Loaded], None] = lambda _: None,
) -> dict[str, Panel]:
    """The panels of these kinds, or of all that have meaning for the weights.

    `told` hears of the weights that were loaded.
    """
    loaded = weights.load(name, backbone=backbone, image_size=image_size or None)
    told(loaded)
    chosen = choose(kinds, loaded.backbone, Path(name))
    if not pictures:
        raise ValueError("images are missing; give one picture or more")
    source = Files(Path(), [str(p) for p in pictures], loaded.config.channels)
    check_channels(loaded.normalize, source.channels)
    device = distributed.device()
    raw = [_read(source, i) for i in range(len(source))]
    mean, inverse = normalizer(loaded.normalize, torch.device("cpu"))
    step = loaded.backbone.stride
    size = image_size or max(loaded.config.image_size, CELLS * step)
    inputs = [(fitted(x, size, step) - mean).mul_(inverse)[None].to(device) for x in raw]
    sight = Sight(
        backbone=loaded.backbone.to(device),
        names=[Path(p).name for p in pictures],
        inputs=inputs,
        shown=[photo(x[0], loaded.normalize.mean, loaded.normalize.std) for x in inputs],
        query=parse_query(query, raw[0].shape[2], raw[0].shape[1]) if query else None,
        width=width,
    )
    made: dict[str, Panel] = {}
    for kind in chosen:
        if kind == "method":
            drawn = revived.draw(Path(name), source, device)
            made[kind] = method_panel(drawn, sight.names, width)
        elif kind == "system":
            made[kind] = _system(Path(name), source, sight, loaded.normalize)
        else:
            made[kind] = DRAW[kind](sight)
    return made


def _system(run: Path, source: Files, sight: Sight, normalize: Normalize) -> Panel:
    each = inside.look(run, source, sight.point, distributed.device())
    found = [(photo(x, normalize.mean, normalize.std), parts) for x, parts in each]
    return system_panel(found, sight)


def choose(kinds: Sequence[str], backbone: Backbone, run: Path) -> list[str]:
    """The kinds asked for, each with meaning here, or all that have it."""
    has = {
        "attention": bool(microscope.layers(backbone)),
        "degeneracy": bool(microscope.layers(backbone)),
        "system": inside.looks(run),
        "method": revived.draws(run),
    }
    meant = [kind for kind in KINDS if has.get(kind, True)]
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"setting kind: {kind!r} is unknown{suggest(kind, KINDS)}")
        if kind not in meant:
            raise ValueError(
                f"setting kind: {kind} has no meaning for these weights; choose from "
                f"{', '.join(meant)}"
            )
    return list(kinds) or meant


def parse_query(text: str, width: int, height: int) -> Point:
    """`x,y` as shares of the picture's sides: given so, or in pixels where one is above 1."""
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"setting query: {text!r} is not x,y; give 0.5,0.5 or pixels") from None
    if max(x, y) > 1:
        x, y = (x + 0.5) / width, (y + 0.5) / height
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise ValueError(
            f"setting query: {text} lies outside the first picture, {width} x {height} pixels; "
            "give shares from 0 to 1, or pixels inside"
        )
    return x, y


def fitted(x: Float[Tensor, "c h w"], size: int, step: int) -> Float[Tensor, "c H W"]:
    """About size x size pixels in the picture's own shape, sides multiples of `step`."""
    height, width = x.shape[1:]
    scale = size / math.sqrt(height * width)
    target = [max(step, round(side * scale / step) * step) for side in (height, width)]
    return F.interpolate(x[None], target, mode="bicubic", antialias=True)[0]


def _read(source: Files, i: int) -> Float[Tensor, "c h w"]:
    """In [0, 1], or as they are where they have more than 8 bits."""
    try:
        x = source.read(i)
    except BadPicture as error:
        raise ValueError(f"image {error}; give a picture") from None
    return x.float() if source.wide else x.float() / 255


def run_look(
    name: str,
    pictures: Sequence[Path],
    out: Path,
    kinds: str,
    query: str,
    backbone: str,
    image_size: int,
    width: int,
    json_out: str,
) -> None:
    """The command: all panels in one picture, the figures on stdout or in a file."""
    if out.suffix.lower() != ".png":
        raise ValueError(f"setting out: {out} is not a .png; name one")
    made = look(
        name,
        pictures,
        kinds=kinds.split(",") if kinds else (),
        query=query,
        backbone=backbone,
        image_size=image_size,
        width=width,
        told=evaluation.say,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    stacked([panel.page for panel in made.values()]).save(out)
    figures = {kind: panel.numbers for kind, panel in made.items() if panel.numbers is not None}
    about = {"weights": name, "pictures": [str(p) for p in pictures], "query": query}
    found = {**about, "kinds": list(made), **figures}
    if json_out == "-":
        print(json.dumps(found, indent=2))
        return
    if json_out:
        write_json(json_out, found)
    for row in figures.get("degeneracy", []):
        print(
            f"degeneracy {row['degeneracy']:.3f}, of its input {row['before']:.3f}, of what it "
            f"finds {row['found']:.3f}  {row['layer']} {row['part']}"
        )
    print(f"saccade: {', '.join(made)} in {out}", file=sys.stderr, flush=True)
