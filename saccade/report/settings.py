"""Settings of runs, and how they differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def flat(value: Any, where: str = "") -> dict[str, str]:
    """`a.b.0` to the value's text, as `--set` names settings."""
    if isinstance(value, dict) and value:
        items = value.items()
    elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
        items = enumerate(value)
    else:
        return {where: value if isinstance(value, str) else json.dumps(value)}
    found: dict[str, str] = {}
    for key, inner in items:
        found |= flat(inner, f"{where}.{key}" if where else str(key))
    return found


def different(configs: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Every setting whose value is not the same in all runs; — where a run has none."""
    tables = [flat(config) for config in configs]
    names = dict.fromkeys(name for table in tables for name in table)
    rows = [(name, [table.get(name, "—") for table in tables]) for name in names]
    return [row for row in rows if len(set(row[1])) > 1]
