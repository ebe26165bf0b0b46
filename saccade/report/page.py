"""The page: plain values into one HTML file that holds its style, its script and its pictures.

Names of files and classes are anybody's text: the template escapes all of it, the script puts it
into text nodes only, and the page's own policy lets nothing run but the script it names by hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .. import __version__
from ..evals import BASELINES, PROTOCOLS
from ..evals.results import Result, shown
from ..weights import write_beside
from . import curves, settings, words
from .files import RunFiles, predictions, read
from .looked import Asked, Group, Looked, look
from .pictures import row, uri
from .views import Sample

HERE = Path(__file__).parent
SCRIPTS = ("curves.js", "map.js", "live.js")
BAD = 200  # unreadable pictures that are named
PICTURES = 8  # whose neighbors are shown without asking
SCALE = (10, 180)  # where 0 and 100 % lie in the small drawing of a figure
VIEW_ROW = 96  # pixels
PREDICTION = 640  # pixels of the longer side


def write(folders: Sequence[Path], out: Path, asked: Asked) -> Looked:
    """Write the report of these runs; what could not be shown stands in the answer's notes."""
    runs = read(folders)
    looked = look(runs, asked)
    html = render(runs, looked).encode("utf-8", "replace")  # names of files may be no text
    out.parent.mkdir(parents=True, exist_ok=True)
    write_beside(out, lambda beside: beside.write_bytes(html))
    return looked


def render(runs: Sequence[RunFiles], looked: Looked, version: str = "") -> str:
    """The page; with a `version` it asks its server for news and is told of another version."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    place = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    place.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    style = (HERE / "page.css").read_text("utf-8")
    script = "\n".join((HERE / name).read_text("utf-8") for name in SCRIPTS)
    return place.get_template("page.html").render(
        style=Markup(style),
        script=Markup(script),
        policy=policy(style, script, live=bool(version)),
        live=bool(version),
        saccade=__version__,
        runs=runs,
        summaries=[words.summarize(run) for run in runs],
        values=curves.last_values(runs),
        results=[figure for run in runs for figure in _figures(run)],
        samples=[(label, [_sample(s) for s in drawn]) for label, drawn in looked.samples],
        groups=[_group(group) for group in looked.groups],
        panels=[(label, _panels(drawn)) for label, drawn in looked.panels],
        predictions=[(run.label, _predictions(run)) for run in runs],
        configs=[settings.flat(run.config) for run in runs],
        differences=settings.different([run.config for run in runs]),
        most_bad=BAD,
        notes=looked.notes,
        data={
            **news(runs),
            "version": version,
            "maps": [_map(group) for group in looked.groups],
        },
    )


def news(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """What changes while runs train."""
    return {
        "runs": [run.label for run in runs],
        "charts": curves.charts(runs),
        "summaries": [asdict(words.summarize(run)) for run in runs],
    }


def policy(style: str, script: str, *, live: bool) -> str:
    """What the browser may load and run: nothing but this style, this script, these pictures."""
    server = "'self'" if live else "'none'"
    return (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        f"img-src data: blob:; connect-src {server}; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _figures(run: RunFiles) -> list[dict[str, Any]]:
    """Rows of the table of results, the first of each protocol and model marked."""
    seen: set[tuple[str, str]] = set()
    found = []
    for r in run.results:
        first = (r.model, r.protocol) not in seen
        seen.add((r.model, r.protocol))
        found.append({"run": run.label, "r": r, "first": first, "shown": shown(r), **_drawn(r)})
    return found


def _drawn(r: Result) -> dict[str, Any]:
    """Where value and interval lie in the small drawing, and what the protocol measures."""
    left, width = SCALE[0], SCALE[1] - SCALE[0]
    places = [round(left + width * min(max(v, 0), 1), 1) for v in (r.low, r.value, r.high)]
    known = (PROTOCOLS | BASELINES).get(r.protocol.partition("/")[0])
    own = r.model not in BASELINES and not words.untrained(r)
    summary = known.summary if known else ""
    return {"places": places if r.unit == "%" else None, "summary": summary, "own": own}


def _sample(sample: Sample) -> dict[str, Any]:
    return {
        "name": sample.name,
        "original": uri(row([sample.original], VIEW_ROW)),
        "views": uri(row(sample.views, VIEW_ROW)),
        "count": len(sample.views),
    }


def _panels(drawn: dict[str, Image.Image]) -> list[tuple[str, str]]:
    return [(name, uri(picture)) for name, picture in drawn.items()]


def _predictions(run: RunFiles) -> list[tuple[str, str]]:
    found = []
    for path in predictions(run.folder):
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        picture.thumbnail((PREDICTION, PREDICTION))
        found.append((path.stem, uri(picture)))
    return found


def _group(group: Group) -> dict[str, Any]:
    """What the template says of a map: arms, pictures with their neighbors, errors."""
    space = group.space
    n = len(space.names)
    chosen = [k * n // min(PICTURES, n) for k in range(min(PICTURES, n))]
    return {
        "data": group.data,
        "count": n,
        "thumbnails": len(group.sheet.points),
        "arms": [
            {
                "name": arm.name,
                "near": [(i, arm.near[i].tolist()) for i in chosen],
                "errors": [(e, arm.near[e.point].tolist()[:4]) for e in arm.errors],
            }
            for arm in space.arms
        ],
        "names": space.names,
        "classes": space.classes,
        "labels": space.labels,
    }


def _map(group: Group) -> dict[str, Any]:
    """What the script draws a map from; numbers as base64 of little-endian arrays."""
    space, sheet = group.space, group.sheet
    return {
        "names": space.names,
        "labels": space.labels,
        "classes": space.classes,
        "sheet": base64.b64encode(sheet.data).decode(),
        "size": sheet.size,
        "columns": sheet.columns,
        "pictured": _packed(sheet.points, "<u4"),
        "arms": [
            {
                "name": arm.name,
                "xy": _packed(np.rint(arm.flat * 65535), "<u2"),
                "near": _packed(arm.near, "<u4"),
                "cosine": _packed(np.rint(arm.cosine * 100), "<i1"),
                "k": arm.near.shape[1],
            }
            for arm in space.arms
        ],
    }


def _packed(values: Any, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=kind).tobytes()).decode()
