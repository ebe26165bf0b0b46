"""What the page shows of a run's pictures and networks; where they are gone, a note says so."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from .. import run as runs
from ..data.source import BadPicture, Source, open_source
from ..data.stream import is_stream
from ..errors import RunError
from ..looking import panels
from ..recipe import Normalize
from ..run import Run
from . import pictures, space, views
from .files import RunFiles
from .pictures import Sheet
from .space import Projection, Space
from .views import Sample

PANELS = 2  # pictures that a network is watched on
PANEL_SIZE = 512  # pixels of the longer side that it sees

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How much to show."""

    points: int = 2000  # pictures of a map; 0: no map
    projection: Projection = "tsne"
    threads: int = 2


@dataclass(frozen=True, slots=True)
class Group:
    """Runs on the same pictures, and the map of these."""

    data: str
    space: Space
    sheet: Sheet


@dataclass(frozen=True, slots=True)
class Looked:
    samples: list[tuple[str, list[Sample]]] = field(default_factory=list)  # by label of run
    groups: list[Group] = field(default_factory=list)
    panels: list[tuple[str, dict[str, Image.Image]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Opened:
    """A run whose pictures are at hand."""

    files: RunFiles
    run: Run
    source: Source


def look(found: Sequence[RunFiles], asked: Asked) -> Looked:
    """All that can be shown of these runs."""
    looked = Looked()
    opened = []
    for files in found:
        if files.pretraining:
            one = tried(lambda files=files: _open(files), f"{files.label}: no pictures", looked)
            opened += [one] if one else []
    for one in opened:
        label = one.files.label
        drawn = tried(lambda one=one: views.samples(one.run, one.source), f"{label}: views", looked)
        looked.samples.extend([(label, drawn)] if drawn else [])
    groups: dict[tuple, list[Opened]] = {}
    for one in opened:
        groups.setdefault(_pictures_key(one.run), []).append(one)
    for members in groups.values() if asked.points else ():
        made = tried(lambda m=members: _group(m, asked, len(groups)), "map", looked)
        looked.groups.extend([made] if made else [])
    for one in opened:
        what = f"{one.files.label}: inside the network"
        looked.panels.extend(tried(lambda one=one: _panels(one), what, looked) or [])
    return looked


def tried(work: Callable[[], T], what: str, looked: Looked) -> T | None:
    """The answer, or None and a note of why there is none."""
    try:
        return work()
    except (ValueError, OSError, RunError, BadPicture, ImportError) as error:
        looked.notes.append(f"{what}: {error}")
        return None


def _open(files: RunFiles) -> Opened:
    run = runs.read(files.folder / runs.FILE)
    if is_stream(run.data):
        raise ValueError(f"data {run.data} is a stream, which is not read again")
    cache = run.engine.cache.folder
    data = cache if cache and Path(cache).is_dir() else run.data
    channels = run.backbone.channels
    source = open_source(data, split="train", channels=channels, limit=run.limit)
    return Opened(files, run, source)


def _pictures_key(run: Run) -> tuple:
    return run.data, run.limit, run.backbone.channels, run.engine.cache.folder


def _group(members: Sequence[Opened], asked: Asked, share: int) -> Group | None:
    networks = _networks(members)
    if not networks:
        return None
    first = members[0]
    source = space.spread(first.source, asked.points)
    made = space.build(source, networks, projection=asked.projection, threads=asked.threads)
    normalize: Normalize = first.run.normalize
    threads = asked.threads
    sheet = pictures.sheet(source, made.index, normalize, threads=threads, share=share)
    return Group(first.run.data, made, sheet)


def _networks(members: Sequence[Opened]) -> list[tuple[str, Path]]:
    """Each run's network after and before, by name; the same start of two runs once."""
    found, starts = [], []
    for one in members:
        name = f"{one.files.label}: " if len(members) > 1 else ""
        folder, run = one.files.folder, one.run
        start = (run.backbone, run.seed, run.weights)
        if not (folder / "backbone").is_dir():  # it still trains
            continue
        found.append((f"{name}after pretraining", folder / "backbone"))
        if (folder / "initial").is_dir() and start not in starts:
            starts.append(start)
            what = "before pretraining" if run.weights else "random weights"
            found.append((f"{name}{what}", folder / "initial"))
    return found


def _panels(one: Opened) -> list[tuple[str, dict[str, Image.Image]]]:
    """What `saccade look` draws of a few pictures."""
    if not (one.files.folder / "backbone").is_dir():
        return []
    n = min(PANELS, len(one.source))
    chosen = (np.arange(n) * len(one.source) // n).tolist()
    with tempfile.TemporaryDirectory() as scratch:
        paths = []
        for k, i in enumerate(chosen):
            x = one.source.read(i)
            picture = pictures.shown(x, one.run.normalize, wide=one.source.wide)
            picture.thumbnail((PANEL_SIZE, PANEL_SIZE))
            paths.append(Path(scratch) / f"{k}.png")
            picture.save(paths[-1])
        return [(one.files.label, panels(str(one.files.folder), paths))]
