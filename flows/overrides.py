"""What ``--set section.field=value`` says, as a changed `Experiment`."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any

from csip.config import Experiment
from csip.plain import from_plain


def with_overrides(experiment: Experiment, assignments: list[str]) -> Experiment:
    """Apply ``section.field=value`` assignments, each value read as the field's own type.

    Tuples are written with commas (``stage2.milestones=30,50``), tuples of tuples as JSON
    (``detect.region=[[0,0.5],[1,0.5],[1,1]]``).

    Raises:
        ValueError: no such section or field (the message lists those there are), or a value that does not fit.
    """
    changes: dict[str, Any] = {}
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator or not path:
            raise ValueError(f"--set {assignment}: expected section.field=value.")
        _assign(experiment, path.split("."), text, path, changes)
    # All at once: values that must go together may come in any order.
    return typing.cast("Experiment", _changed(experiment, changes))


def _changed(section: Any, changes: dict[str, Any]) -> Any:
    new = {name: _changed(getattr(section, name), v) if isinstance(v, dict) else v for name, v in changes.items()}
    return dataclasses.replace(section, **new)


def _assign(section: Any, path: list[str], text: str, whole: str, changes: dict[str, Any]) -> None:
    """Read one assignment into `changes`: field -> value, or section -> changes in it."""
    hints = typing.get_type_hints(type(section))
    names = [f.name for f in dataclasses.fields(section)]
    if path[0] not in names:
        raise ValueError(f"--set {whole}: found {path[0]!r}, expected one of: {', '.join(names)}.")
    old = getattr(section, path[0])
    if dataclasses.is_dataclass(old):
        if len(path) == 1:
            inner = ", ".join(f.name for f in dataclasses.fields(old))
            raise ValueError(f"--set {whole}: {path[0]} is a section; name one of its fields: {inner}.")
        _assign(old, path[1:], text, whole, changes.setdefault(path[0], {}))
    elif len(path) > 1:
        raise ValueError(f"--set {whole}: {path[0]} is a number or a word, not a section.")
    else:
        changes[path[0]] = _parse(hints[path[0]], text, whole)


def _parse(hint: Any, text: str, whole: str) -> Any:
    raw: Any = text
    if isinstance(hint, types.UnionType) and text == "none":
        raw = None
    try:
        if typing.get_origin(hint) is tuple:
            raw = json.loads(text) if text.startswith("[") else [part for part in text.split(",") if part]
        return from_plain(hint, raw)
    except ValueError as error:
        raise ValueError(f"--set {whole}={text}: {error}") from error
