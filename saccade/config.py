"""Frozen dataclasses to JSON and back, and dotted overrides: `optim.lr=0.3`."""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")

# What people of other tools type, and our name for it.
ALIASES = {
    "arch": "backbone",
    "model": "backbone",
    "data_path": "data",
    "dataset": "data",
    "input_dir": "data",
    "output_dir": "out",
    "work_dir": "out",
    "max_epochs": "epochs",
    "num_workers": "workers",
    "imgsz": "image_size",
    "input_size": "image_size",
    "learning_rate": "lr",
    "wd": "weight_decay",
}


def to_dict(cfg: Any) -> dict[str, Any]:
    """Nested plain values, ready for JSON."""
    return dataclasses.asdict(cfg)


def from_dict(cls: type[T], data: Any, where: str = "") -> T:
    """The dataclass with these values. Unknown names and wrong types raise ValueError."""
    if not isinstance(data, dict):
        raise ValueError(f"{where.rstrip('.')}: {data!r} is not a table of settings")
    hints = _hints(cls)
    for key in data:
        _known(hints, key, where)
    try:
        return cls(**{k: _value(hints[k], v, f"{where}{k}") for k, v in data.items()})
    except TypeError as missing:  # a field without default is absent
        raise ValueError(f"{where.rstrip('.') or cls.__name__}: {missing}") from None


def override(cfg: T, *assignments: str) -> T:
    """A copy with each `a.b=value` applied. Unknown names and wrong types raise ValueError."""
    for assignment in assignments:
        path, sep, text = assignment.partition("=")
        if not sep:
            raise ValueError(f"setting {assignment!r} has no value; write {assignment}=VALUE")
        cfg = _set(cfg, path.split("."), text, "")
    return cfg


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` where something is near, else the choices."""
    known = sorted(known)
    close = [ALIASES[name]] if ALIASES.get(name) in known else []
    close += difflib.get_close_matches(name, known, 1, 0.5)
    return f"; did you mean {close[0]}?" if close else f"; choose from {', '.join(known)}"


def _set(cfg: Any, path: list[str], text: str, where: str) -> Any:
    name, *rest = path
    full = f"{where}{name}"
    if isinstance(cfg, tuple):
        if not name.isdigit() or int(name) >= len(cfg):
            raise ValueError(f"setting {full}: choose an index below {len(cfg)}")
        kind, old = type(cfg[int(name)]), cfg[int(name)]
    elif is_dataclass(cfg) and not isinstance(cfg, type):
        _known(_hints(type(cfg)), name, where, _inside(cfg, name))
        kind, old = _hints(type(cfg))[name], getattr(cfg, name)
    else:
        raise ValueError(f"setting {where.rstrip('.')} is a plain value and has no {name!r} inside")
    if rest:
        new = _set(old, rest, text, f"{full}.")
    else:
        if is_dataclass(old):
            raise ValueError(
                f"setting {full} holds {', '.join(_hints(type(old)))}; set one of those"
            )
        new = _value(kind, text if kind is str else _parse(text, kind), full)
    if isinstance(cfg, tuple):
        return (*cfg[: int(name)], new, *cfg[int(name) + 1 :])
    return replace(cfg, **{name: new})  # pyright: ignore[reportArgumentType]


@cache
def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}


def _inside(cfg: Any, name: str) -> list[str]:
    """Settings of that name one table further in."""
    tables = {f: getattr(cfg, f) for f in _hints(type(cfg))}
    return [f"{f}.{name}" for f, t in tables.items() if is_dataclass(t) and name in _hints(type(t))]


def _known(hints: dict[str, Any], name: str, where: str, inside: Iterable[str] = ()) -> None:
    if name not in hints:
        further = " or ".join(f"{where}{path}" for path in inside)
        hint = suggest(name, hints).replace("did you mean ", f"did you mean {where}")
        hint = f"; did you mean {further}?" if further else hint
        raise ValueError(f"unknown setting {where}{name}{hint}")


def _parse(text: str, kind: Any) -> Any:
    """JSON, or else words: several between commas where the setting holds several."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        if typing.get_origin(kind) is not tuple:
            return text
        return [_parse(word.strip(), str) for word in text.strip("[] ").split(",")]


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _value(kind: Any, value: Any, where: str) -> Any:
    from pydantic import ValidationError

    if is_dataclass(kind) and isinstance(kind, type):
        return value if isinstance(value, kind) else from_dict(kind, value, f"{where}.")
    args = typing.get_args(kind)
    if typing.get_origin(kind) is tuple and is_dataclass(args[0]):
        return tuple(_value(args[0], v, f"{where}.{i}") for i, v in enumerate(value))
    try:  # JSON mode: strict about types, but lists become tuples
        return _adapter(kind).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise ValueError(f"setting {where}: {value!r} {_plain(error)}") from None


def _plain(error: Any) -> str:
    first = error.errors()[0]
    message = first["msg"].removeprefix("Input should be ")
    return f"is wrong; it should be {message[0].lower()}{message[1:]}"
