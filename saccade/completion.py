"""Pictures that an iGPT run draws: the rest of given ones, or whole ones.

It leaves `sheet.png` (a row a picture: the picture in the palette's colors, what was given, the
completions), `pictures/` with each completion by itself, and `completions.json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from . import weights
from .config import override
from .core import PixelBackbone
from .data.bad import Bad
from .data.decode import is_picture
from .data.folder import Files
from .data.plain import pictures
from .data.source import Source, open_source
from .drawing.colors import NOTHING
from .drawing.sheet import Cell, Row, sheet
from .engine import distributed
from .engine.log import counter
from .evals import preprocess_for
from .methods.igpt import complete
from .nn.random import keys
from .weights import Loaded, write_json

WIDTH, COLUMNS = 1200, 8  # of the sheet: pixels, pictures


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `--set` reaches."""

    keep: float = 0.5  # share of the rows that is given, from the top
    samples: int = 3  # of each picture; of whole ones, all
    temperature: float = 1.0  # below 1: likelier colors
    top_k: int = 0  # draw among that many colors; 0 among all
    seed: int = 0
    limit: int = 16  # pictures, evenly spread; 0 takes all


@dataclass(frozen=True, slots=True)
class Drawn:
    """One picture and what became of it."""

    name: str
    original: Int[Tensor, "h w"]  # tokens
    given: int  # pixels
    samples: Int[Tensor, "s h w"]


def predict(run: Path, given: str, out: Path, sets: list[str]) -> list[Bad]:
    """Complete pictures, or draw whole ones where none are given; those that cannot be read."""
    options = read_options(sets)
    loaded = weights.load(run)
    if not (isinstance(loaded.backbone, PixelBackbone) and loaded.backbone.causal):
        raise ValueError(
            f"setting run: the {loaded.config.name} of {run} does not draw pictures pixel by "
            "pixel; give a run of igpt whose backbone is not called _bert"
        )
    encoder = loaded.backbone.to(distributed.device())
    bad: list[Bad] = []
    rows: Sequence[Row]
    if given:
        drawn = list(completed(encoder, opened(given, options), loaded, options, bad))
        rows = [_row(encoder, loaded, one) for one in drawn]
    else:
        drawn = [whole(encoder, options)]
        cells = [Cell(f"{k}", p) for k, p in enumerate(_shown(encoder, loaded, drawn[0].samples))]
        rows = [cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)]
    if not rows:
        raise ValueError(f"setting pictures: none of {given} can be read ({bad[0].reason})")
    _write(out, encoder, loaded, drawn, rows, options)
    return bad


def read_options(sets: list[str]) -> Options:
    options = override(Options(), *sets)
    for name, good, wanted in (
        ("keep", 0 <= options.keep < 1, "0 or more, below 1"),
        ("samples", options.samples >= 1, "1 or more"),
        ("temperature", options.temperature > 0, "above 0"),
        ("top_k", options.top_k >= 0, "0 or more"),
        ("limit", options.limit >= 0, "0 or more"),
    ):
        if not good:
            raise ValueError(f"setting {name}: {getattr(options, name)}; choose {wanted}")
    return options


def opened(given: str, options: Options) -> Source:
    """One picture file, or the test pictures of a source."""
    path = Path(given)
    if path.is_file() and is_picture(path.name):
        return Files(path.parent, [path.name], 3)
    return open_source(given, split="test", channels=3, limit=options.limit)


def completed(
    encoder: PixelBackbone, source: Source, loaded: Loaded, options: Options, bad: list[Bad]
) -> Iterator[Drawn]:
    """Each picture with completions of its own draws."""
    told, device = counter("completed"), encoder.palette.device
    preprocess = preprocess_for(encoder, loaded.normalize)
    stream = pictures(
        source,
        size=preprocess.size,
        resize=preprocess.resize,
        interpolation=preprocess.interpolation,
        normalize=loaded.normalize,
        batch_size=1,
        threads=1,
        bad=bad,
    )
    for done, (x, index) in enumerate(stream):
        tokens = encoder.tokens(x.to(device))  # [1, H, W]
        given = round(options.keep * tokens.shape[1]) * tokens.shape[2]
        samples = draw(encoder, tokens.expand(options.samples, -1, -1), given, int(index), options)
        yield Drawn(source.name(int(index)), tokens[0], given, samples)
        told(done + 1, len(source))


def whole(encoder: PixelBackbone, options: Options) -> Drawn:
    """Pictures of which nothing is given."""
    size = (options.samples, encoder.image_size, encoder.image_size)
    blank = torch.zeros(size, dtype=torch.long, device=encoder.palette.device)
    return Drawn("", blank[0], 0, draw(encoder, blank, 0, -1, options))


def draw(
    encoder: PixelBackbone, tokens: Int[Tensor, "s H W"], given: int, index: int, options: Options
) -> Int[Tensor, "s H W"]:
    """Samples whose draws depend on the seed, the picture's number and their own alone."""
    own = torch.tensor([index], device=tokens.device)
    key = torch.cat([keys(options.seed, s, own) for s in range(len(tokens))])
    return complete(encoder, tokens, given, key, options.temperature, options.top_k)


def _row(encoder: PixelBackbone, loaded: Loaded, one: Drawn) -> Row:
    first = _shown(encoder, loaded, one.original[None])[0]
    rows = one.given // one.original.shape[1]
    half = first.clone()
    half[:, rows:] = round(255 * NOTHING)
    samples = _shown(encoder, loaded, one.samples)
    cells = [Cell(one.name, first), Cell("given", half)]
    return [*cells, *(Cell(f"{k}", p) for k, p in enumerate(samples))]


def _shown(
    encoder: PixelBackbone, loaded: Loaded, tokens: Int[Tensor, "s h w"]
) -> UInt8[Tensor, "s 3 h w"]:
    """8-bit pictures of tokens."""
    x: Float[Tensor, "s 3 h w"] = encoder.paint(tokens).cpu()
    mean, std = (torch.tensor(v)[:, None, None] for v in asdict(loaded.normalize).values())
    return (255 * (x * std + mean)).round().clamp(0, 255).to(torch.uint8)


def _write(
    out: Path,
    encoder: PixelBackbone,
    loaded: Loaded,
    drawn: list[Drawn],
    rows: Sequence[Row],
    options: Options,
) -> None:
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    listed = []
    for i, one in enumerate(drawn):
        files = []
        for k, pixels in enumerate(_shown(encoder, loaded, one.samples)):
            file = f"pictures/{i:06d}-{Path(one.name).stem or 'whole'}-{k}.png"
            Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(out / file)
            files.append(file)
        listed.append({"picture": one.name, "given": one.given, "completions": files})
    title = f"{loaded.config.name}, temperature {options.temperature:g}, top-k {options.top_k}"
    sheet(title, rows, WIDTH).save(out / "sheet.png")
    write_json(out / "completions.json", {"settings": asdict(options), "pictures": listed})
