"""Imports point one way. The table is the architecture."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "saccade"
BASE = {"core", "recipe", "config", "errors"}
MAY_IMPORT = {
    "core": {"nn"},
    "config": set(),
    "errors": set(),
    "recipe": set(),
    "nn": set(),
    "attention": {"core", "nn"},
    "registry": {"config"},
    "drawing": set(),
    "microscope": {"core", "nn", "drawing"},
    "backbones": {"core", "recipe", "config", "nn", "attention"},
    "tokenizers": {*BASE, "nn", "weights"},
    "methods": {*BASE, "registry", "nn", "attention", "tokenizers"},
    "detector": {"core", "nn", "attention"},
    "systems": {*BASE, "registry", "nn", "attention", "detector"},
    "studies": {"config"},
    "data": {*BASE, "nn"},
    "engine": {*BASE, "nn", "data"},
    "evals": {*BASE, "nn", "data", "engine", "backbones"},
    "domains": {*BASE, "nn", "data", "engine", "evals", "run", "trained"},
    "layouts": {"backbones"},
    "weights": {*BASE, "backbones", "layouts"},
    "exports": {*BASE, "backbones", "weights", "nn"},
    "report": {*BASE, "__version__", "data", "engine", "evals", "looking", "run", "weights"},
}
ANYTHING = {"__init__", "__main__", "cli", "commands", "run", "pretraining", "embedding", "bench"}
ANYTHING |= {
    "stage",
    "trained",
    "training",
    "evaluation",
    "listing",
    "looking",
    "inside",
    "revived",
    "sight",
    "completion",
    "predicting",
    "planning",
    "doctor",
    "data_report",
    "api",
    "verdict",
    "searching",
    "reproduction",
    "study_runs",
    "propagating",
}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_layers(path):
    here = path.relative_to(ROOT).with_suffix("").parts
    if here[0] in ANYTHING:
        return
    for target in imported(path, here):
        assert target in MAY_IMPORT[here[0]] | {here[0]}, f"{here[0]} must not import {target}"


def imported(path, here):
    """Top-level names inside the package that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*here[: len(here) - node.level], *(node.module or "").split(".")]
            base = [b for b in base if b]
            if base:
                yield base[0]
            else:
                yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("saccade"):
            yield from [node.module.split(".")[1]] if "." in node.module else []


@pytest.mark.parametrize("folder", ["methods", "systems"])
def test_a_paper_imports_no_other_paper(folder):
    for path in (ROOT / folder).glob("*.py"):
        if path.name == "__init__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            near = isinstance(node, ast.ImportFrom) and node.level == 1
            assert not near, f"{path.name} imports a sibling"
