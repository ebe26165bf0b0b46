"""What `saccade doctor DATA` finds in pictures, in sentences and tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from . import run as runs
from .core import View
from .data import band_views, bands, check
from .data.source import Source, open_source
from .data.speed import speed
from .engine.log import counter
from .recipe import Normalize

SHOWN = 8  # names of each kind in the tables; JSON has all
SCARCE = 10  # times fewer pictures than the largest class


def report(
    data: str, *, eval_data: str, sample: int, method: str, recipe: str, workers: int
) -> dict[str, Any]:
    """Facts under `data`, `eval` and `shared`, with their problems and notes."""
    run = runs.from_recipe(method, recipe)
    source = open_source(data)
    if source.wide:
        source = open_source(data, channels=bands.channels(source.mode(0)))
    test = _test(data, eval_data, source)
    found: dict[str, Any] = {"problems": [], "notes": []}
    timing = speed(source, run.method.views, normalize_for(source), threads=workers)
    scans = {}
    for side, one in (("data", source), ("eval", test)):
        if one is None:
            continue
        progress = counter("pictures checked")
        scans[side] = check.scan(
            one, sample=sample or check.ALL, threads=workers, progress=progress
        )
        found[side] = check.facts(scans[side])
        problems, notes = findings(side, found[side])
        found["problems"] += problems
        found["notes"] += notes
    if source.wide or source.channels != 3:
        found["notes"].append(settings_for(found["data"], run.method.views))
    found["data"]["speed"] = timing | {"method": method, "recipe": recipe} if timing else {}
    if timing:
        found["notes"].append(remedy(data, timing, run.method.views))
    if "eval" in scans:
        found["shared"] = check.shared(scans["data"], scans["eval"])
        problems, notes = leaks(found["shared"], source, scans["eval"].source)
        found["problems"] += problems
        found["notes"] += notes
    return found


def normalize_for(source: Source) -> Normalize:
    """Any mean and deviation with as many channels: timing does not depend on them."""
    return Normalize(mean=(0.5,) * source.channels, std=(0.25,) * source.channels)


def findings(side: str, facts: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Problems and notes of one set."""
    problems, notes = [], []
    tried, twice = facts["sampled"], facts["duplicates"]
    if tried < facts["pictures"]:
        notes.append(
            f"{side}: {tried} of {facts['pictures']} pictures were looked at, evenly spread; "
            f"--sample {facts['pictures']} takes all"
        )
    if facts["unreadable"]:
        n = len(facts["unreadable"])
        problems.append(f"{side}: {n} of {tried} pictures are unreadable; they are skipped")
    if twice["exact"] or twice["near"]:
        notes.append(
            f"{side}: {twice['exact']} exact and {twice['near']} near duplicates; "
            "--json FILE lists them"
        )
    if twice["blank"]:
        notes.append(f"{side}: {twice['blank']} pictures show nothing but one gray")
    labels = facts["labels"]
    if labels and labels["empty"]:
        notes.append(f"{side}: {len(labels['empty'])} classes have no pictures")
    if labels and labels["imbalance"] >= SCARCE:
        notes.append(
            f"{side}: the largest class has {labels['imbalance']:.0f} times the pictures of the "
            "smallest; read accuracy class by class"
        )
    return problems, notes


def leaks(shared: dict[str, Any], train: Source, test: Source) -> tuple[list[str], list[str]]:
    """Problems and notes of two sets beside each other."""
    problems, notes = [], []
    if shared["exact"]:
        problems.append(
            f"{shared['exact']} test pictures are training pictures too; "
            "remove them from one side, or figures come out too high"
        )
    if shared["near"]:
        notes.append(
            f"{shared['near']} further test pictures are nearly training pictures; "
            "--json FILE lists them"
        )
    strange = sorted(set(test.classes) - set(train.classes))
    if train.classes and strange:
        problems.append(
            f"classes of the test pictures that the training pictures lack: {_some(strange)}"
        )
    return problems, notes


def settings_for(facts: dict[str, Any], views: tuple[View, ...]) -> str:
    """What `saccade pretrain` needs to know of other pictures than 8-bit RGB."""
    lost = band_views.skipped(views, facts["channels"])
    values = {key: ",".join(f"{x:.6g}" for x in facts[key]) for key in ("mean", "std")}
    sets = [f"backbone.channels={facts['channels']}"]
    sets += [f"normalize.{key}=[{text}]" for key, text in values.items()]
    return (
        "pretrain with "
        + " ".join(f"--set {one}" for one in sets)
        + (f"; {', '.join(lost)} need RGB and are skipped" if lost else "")
    )


def remedy(data: str, timing: dict[str, Any], views: tuple[View, ...]) -> str:
    """What holds the data path up, and what to do about it."""
    size = max(view.size for view in views)
    pack = f"`saccade pack {data} --size {_packed(size)} --out packed` stores them small"
    rates = timing["pictures_per_second"]
    threads, cores = timing["threads"], timing["cores"]
    remedies = {
        "disk": f"reading files takes longest; {pack} and in one piece",
        "threads": (
            f"too few threads: {rates[str(threads)]:.0f} pictures a second with {threads}, "
            f"{rates[str(cores)]:.0f} with {cores}; add --workers {cores}"
        ),
        "decoding": f"decoding takes longest; {pack}",
        "augmentation": (
            "making views takes longest, and all cores are at work; "
            "a GPU takes over their colors, fewer or smaller views cost less"
        ),
    }
    return f"bottleneck: {remedies[timing['bottleneck']]}"


def tables(found: dict[str, Any]) -> Iterator[Table]:
    """What was found, for the terminal."""
    for side, title in (("data", "pictures"), ("eval", "test pictures")):
        if side in found:
            yield _facts(found[side], title)
    names = [n for side in ("data", "eval") for n in _names(found.get(side))]
    if "shared" in found:
        shared = found["shared"]
        pairs = [*shared["exact_pairs"], *(pair[:2] for pair in shared["near_pairs"])]
        names += [("in both sets", " = ".join(pair)) for pair in pairs[:SHOWN]]
    if names:
        table = Table("what", "which", title="worth a look", title_justify="left")
        for what, which in names:
            table.add_row(what, which)
        yield table
    if found["data"]["speed"]:
        yield _speed(found["data"]["speed"])


def _facts(facts: dict[str, Any], title: str) -> Table:
    table = Table(show_header=False, box=None, title=title, title_justify="left")
    counts = f"{facts['pictures']}, of which {facts['sampled']} looked at"
    table.add_row("pictures", counts + f"; {facts['other_files']} other files")
    table.add_row("unreadable", str(len(facts["unreadable"])))
    twice = facts["duplicates"]
    table.add_row("duplicates", f"{twice['exact']} exact, {twice['near']} near")
    for key in ("width", "height"):
        if facts[key]:
            low, middle, high = (f"{facts[key][k]:.0f}" for k in ("min", "median", "max"))
            table.add_row(key, f"{low} to {high}, median {middle}")
    for key in ("modes", "depths"):
        table.add_row(key, ", ".join(f"{name} {n}" for name, n in facts[key].items()))
    for key in ("range", "mean", "std"):
        table.add_row(key, ", ".join(f"{value:.4g}" for value in facts[key]))
    if labels := facts["labels"]:
        counts = list(labels["counts"].items())
        ends = " ... ".join(f"{name} {n}" for name, n in (counts[0], counts[-1]))
        table.add_row("labels", f"{labels['labeled']}, {labels['unlabeled']} without")
        table.add_row("classes", f"{labels['classes']}: {ends}")
    return table


def _names(facts: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    if facts is None:
        return
    for one in facts["unreadable"][:SHOWN]:
        yield "unreadable", f"{one['name']}: {one['reason']}"
    for group in facts["duplicates"]["exact_groups"][:SHOWN]:
        yield "the same", " = ".join(group[:SHOWN])
    for a, b, score in facts["duplicates"]["near_pairs"][:SHOWN]:
        yield "nearly the same", f"{a} = {b} ({score:.3f})"


def _speed(timing: dict[str, Any]) -> Table:
    recipe = f"{timing['views']} views of {timing['method']} {timing['recipe']}"
    table = Table(show_header=False, box=None, title=f"speed, {recipe}", title_justify="left")
    for stage, seconds in timing["seconds"].items():
        table.add_row(stage, f"{1000 * seconds:.2f} ms a picture, one thread")
    for threads, rate in timing["pictures_per_second"].items():
        table.add_row(f"{threads} threads", f"{rate:.1f} pictures a second")
    return table


def _test(data: str, eval_data: str, train: Source) -> Source | None:
    if eval_data:
        return open_source(eval_data, split="test", channels=train.channels)
    try:
        channels = train.channels
        return open_source(data, split="test", channels=channels) if train.split else None
    except ValueError:  # training pictures alone
        return None


def _packed(size: int) -> int:
    return round(size * 8 / 7)  # 256 for 224: what is cut from the middle of ImageNet


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")
