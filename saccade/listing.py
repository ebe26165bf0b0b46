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
        "methods": lambda: _files(methods),
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
    width = max(len(r["name"]) for r in rows)
    for row in rows:
        print(f"{row['name']:{width}}  {row['what']}")


def _files(folder: ModuleType) -> list[Row]:
    return [{"name": n, "what": folder.summary(n)} for n in folder.names()]


def _recipes() -> list[Row]:
    commands = ((methods, "saccade pretrain --method"), (systems, "saccade train"))
    return [
        {"name": f"{name} {recipe}", "what": f"{command} {name} --recipe {recipe}"}
        for folder, command in commands
        for name in folder.names()
        for recipe in folder.recipe_names(name)
    ]
