"""Pretraining. The file name is the name users type; `saccade.methods` is the entry-point group."""

from __future__ import annotations

from ..registry import Registry

_files = Registry("method", __name__, __path__)
names, recipes, recipe_names = _files.names, _files.recipes, _files.recipe_names
summary, path = _files.summary, _files.path


def get(name: str) -> type:
    """The one Method class defined in methods/<name>.py."""
    from ..core import Method

    return _files.get(name, Method)
