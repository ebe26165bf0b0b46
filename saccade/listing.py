"""What `saccade list` answers. Nothing here imports torch: names and files are enough."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path

from . import backbones, config, evals, methods

Row = dict[str, str]


def listing(what: str) -> list[Row]:
    """Rows of name and summary for methods, backbones, protocols or recipes."""
    kinds: dict[str, Callable[[], list[Row]]] = {
        "methods": _methods,
        "backbones": lambda: [{"name": n, "what": backbones.summary(n)} for n in backbones.names()],
        "protocols": lambda: [{"name": n, "what": evals.summary(n)} for n in evals.names()],
        "recipes": _recipes,
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


def _methods() -> list[Row]:
    return [{"name": n, "what": methods.summary(n)} for n in methods.names()]


def _recipes() -> list[Row]:
    return [
        {
            "name": f"{method} {recipe}",
            "what": f"saccade pretrain --method {method} --recipe {recipe}",
        }
        for method in methods.names()
        for recipe in _recipe_names(methods.path(method))
    ]


def _recipe_names(path: Path) -> list[str]:
    """Keys of the RECIPES table, read without running the file."""
    for node in ast.parse(path.read_text()).body:
        target = node.target if isinstance(node, ast.AnnAssign) else None
        target = node.targets[0] if isinstance(node, ast.Assign) else target
        if isinstance(target, ast.Name) and target.id == "RECIPES":
            assert isinstance(node, (ast.Assign, ast.AnnAssign))
            assert isinstance(node.value, ast.Dict)
            return [str(k.value) for k in node.value.keys if isinstance(k, ast.Constant)]
    return []
