"""One paper, one file. The file name is the name users type. Nothing here imports torch.

Another package adds a method by an entry point of the group `saccade.methods` that names a module
written like the ones here: a docstring, one subclass of `Method`, and `RECIPES`.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from ..config import suggest
from ..recipe import Recipe


def names() -> list[str]:
    return sorted(_modules())


def get(name: str) -> type:
    """The one Method class defined in methods/<name>.py."""
    from ..core import Method

    module = _load(name)
    (cls,) = (
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, Method) and c.__module__ == module.__name__
    )
    return cls


def recipes(name: str) -> dict[str, Recipe]:
    """Settings by purpose: demo, small, paper, and the method's own variants."""
    return _load(name).RECIPES


def summary(name: str) -> str:
    """The first line of the paper's file, read without running it."""
    doc = ast.get_docstring(ast.parse(path(name).read_text(encoding="utf-8")))
    return (doc or "").partition("\n")[0]


def path(name: str) -> Path:
    """The paper's file."""
    spec = find_spec(_known(name))
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin)


def _modules() -> dict[str, str]:
    """Dotted module by method name; our own names win."""
    theirs = {e.name: e.module for e in entry_points(group="saccade.methods")}
    return theirs | {m.name: f"{__name__}.{m.name}" for m in pkgutil.iter_modules(__path__)}


def _known(name: str) -> str:
    modules = _modules()
    if name not in modules:
        raise ValueError(f"setting method: {name!r} is unknown{suggest(name, modules)}")
    return modules[name]


def _load(name: str) -> ModuleType:
    return importlib.import_module(_known(name))
