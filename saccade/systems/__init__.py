"""Downstream systems. The file name is the name users type; `saccade.systems` is the entry-point
group."""

from __future__ import annotations

from ..registry import Registry

_files = Registry("system", __name__, __path__)
names, recipes, recipe_names = _files.names, _files.recipes, _files.recipe_names
summary, path = _files.summary, _files.path


def get(name: str) -> type:
    """The one System class defined in systems/<name>.py."""
    from ..core import System

    return _files.get(name, System)
