"""What `saccade list` answers. Nothing here imports torch: names and files are enough."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType

from . import backbones, config, evals, methods, studies, systems

Row = dict[str, str]


def listing(what: str) -> list[Row]:
    """Rows of name and summary for methods, systems, backbones, protocols, recipes or studies."""
    kinds: dict[str, Callable[[], list[Row]]] = {
        "methods": _methods,
        "systems": lambda: _files(systems),
        "backbones": lambda: [{"name": n, "what": backbones.summary(n)} for n in backbones.names()],
        "protocols": lambda: [{"name": n, "what": evals.summary(n)} for n in evals.names()],
        "recipes": _recipes,
        "studies": lambda: [{"name": n, "what": studies.summary(n)} for n in studies.names()],
    }
    if what not in kinds:
        raise ValueError(f"cannot list {what!r}{config.suggest(what, kinds)}")
    return kinds[what]()


def show(rows: list[Row], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    *columns, last = rows[0]
    widths = {c: max(len(c), *(len(r[c]) for r in rows)) for c in columns}
    if len(columns) > 1:
        print(*(f"{c:{widths[c]}}" for c in columns), last, sep="  ")
    for row in rows:
        print(*(f"{row[c]:{widths[c]}}" for c in columns), row[last], sep="  ")


def _files(folder: ModuleType) -> list[Row]:
    return [{"name": n, "what": folder.summary(n)} for n in folder.names()]


def _methods() -> list[Row]:
    """Paper, year, family, needs and idea of each."""
    rows = []
    for name in methods.names():
        paper, year = methods.citation(name)
        family, needs = methods.FACTS.get(name, ("", ""))
        idea = methods.summary(name).partition(": ")[2]
        row = {"name": name, "paper": paper, "year": year, "family": family, "needs": needs}
        rows.append({**row, "what": idea})
    return rows


def _recipes() -> list[Row]:
    commands = ((methods, "saccade pretrain --method"), (systems, "saccade train"))
    return [
        {"name": f"{name} {recipe}", "what": f"{command} {name} --recipe {recipe}"}
        for folder, command in commands
        for name in folder.names()
        for recipe in folder.recipe_names(name)
    ]
