"""Files of a folder as things users name: one paper, one file. Nothing here imports torch.

Another package adds one by an entry point that names a module written like ours: a docstring, one
subclass of the contract's class, and `RECIPES`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from .config import suggest

DOCSTRING = re.compile(r'(?:\s|#[^\n]*\n)*r?"""(.*?)"""', re.DOTALL)  # parsing takes its time
AUTHORS = re.compile(r"([A-Z][\w-]+(?:\s+et\s+al\.|\s+and\s+[A-Z][\w-]+))\s+(\d{4})\b")
ARXIV = re.compile(r"arXiv:\d{4}\.\d{4,5}")


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
        return self._docstring(name).partition("\n")[0]

    def citation(self, name: str) -> tuple[str, str]:
        """The paper that the file names first, and its year; empty where it names none."""
        authors = AUTHORS.search(doc := self._docstring(name))
        number = ARXIV.search(doc)
        if authors is None:
            return "", ""
        return ", ".join([authors[1], *([number[0]] if number else [])]), authors[2]

    def _docstring(self, name: str) -> str:
        """Of the file: the string that it starts with."""
        text = self.path(name).read_text(encoding="utf-8")
        start = DOCSTRING.match(text)
        return inspect.cleandoc(start[1]) if start else ""

    def path(self, name: str) -> Path:
        """The paper's file."""
        spec = find_spec(self._known(name))
        assert spec is not None
        assert spec.origin is not None
        return Path(spec.origin)

    def _ours(self) -> dict[str, str]:
        """Dotted module by name."""
        return {m.name: f"{self.package}.{m.name}" for m in pkgutil.iter_modules(self.folders)}

    def _modules(self) -> dict[str, str]:
        """Those of other packages too; our own names win."""
        return {e.name: e.module for e in entry_points(group=self.package)} | self._ours()

    def _known(self, name: str) -> str:
        ours = self._ours()
        modules = ours if name in ours else self._modules()  # other packages take time to ask
        if name not in modules:
            raise ValueError(f"setting {self.kind}: {name!r} is unknown{suggest(name, modules)}")
        return modules[name]

    def _load(self, name: str) -> ModuleType:
        return importlib.import_module(self._known(name))
