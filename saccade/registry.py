"""Files of a folder as things users name: one paper, one file. Nothing here imports torch.

Another package adds one by an entry point that names a module written like ours: a docstring, one
subclass of the contract's class, and `RECIPES`.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from .config import suggest


@dataclass(frozen=True, slots=True)
class Registry:
    """The files of one package, and what entry points add."""

    kind: str  # what errors call it: "method"
    package: str  # dotted name, also the group of its entry points
    folders: Iterable[str]

    def names(self) -> list[str]:
        return sorted(self._modules())

    def get(self, name: str, base: type) -> type:
        """The one subclass of `base` defined in <name>.py."""
        module = self._load(name)
        (cls,) = (
            c
            for c in vars(module).values()
            if isinstance(c, type) and issubclass(c, base) and c.__module__ == module.__name__
        )
        return cls

    def recipes(self, name: str) -> dict[str, Any]:
        """Settings by purpose."""
        return self._load(name).RECIPES

    def recipe_names(self, name: str) -> list[str]:
        """Keys of the RECIPES table, read without running the file."""
        for node in ast.parse(self.path(name).read_text(encoding="utf-8")).body:
            target = node.target if isinstance(node, ast.AnnAssign) else None
            target = node.targets[0] if isinstance(node, ast.Assign) else target
            if isinstance(target, ast.Name) and target.id == "RECIPES":
                assert isinstance(node, (ast.Assign, ast.AnnAssign))
                assert isinstance(node.value, ast.Dict)
                return [str(k.value) for k in node.value.keys if isinstance(k, ast.Constant)]
        return []

    def summary(self, name: str) -> str:
        """The first line of the paper's file, read without running it."""
        doc = ast.get_docstring(ast.parse(self.path(name).read_text(encoding="utf-8")))
        return (doc or "").partition("\n")[0]

    def path(self, name: str) -> Path:
        """The paper's file."""
        spec = find_spec(self._known(name))
        assert spec is not None
        assert spec.origin is not None
        return Path(spec.origin)

    def _modules(self) -> dict[str, str]:
        """Dotted module by name; our own names win."""
        theirs = {e.name: e.module for e in entry_points(group=self.package)}
        ours = pkgutil.iter_modules(self.folders)
        return theirs | {m.name: f"{self.package}.{m.name}" for m in ours}

    def _known(self, name: str) -> str:
        modules = self._modules()
        if name not in modules:
            raise ValueError(f"setting {self.kind}: {name!r} is unknown{suggest(name, modules)}")
        return modules[name]

    def _load(self, name: str) -> ModuleType:
        return importlib.import_module(self._known(name))
