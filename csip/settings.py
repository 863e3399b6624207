"""What a recorded step was set to, value by value, in the spelling of `--set`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from csip.config import Experiment
from csip.plain import to_plain

_DEFAULTS: Mapping[str, Any] = {
    one.name: to_plain(getattr(Experiment(name=""), one.name)) for one in fields(Experiment) if one.name != "name"
}
_SECTIONS = {frozenset(section): name for name, section in _DEFAULTS.items() if isinstance(section, Mapping)}


def settings_of(config: Any) -> dict[str, str]:
    """List what a run was set to that is no default of `Experiment`, which the recipe `video` has: name -> value.

    Args:
        config: of the run, as `runs` has it: sections and plain values, each under the name that its stage has for it,
            or one section alone. What this CSIP knows no section for is listed as it is.
    """
    return {name: spell(value) for name, value in _leaves(config, "") if not _is_default(name, value)}


def spell(value: Any) -> str:
    """Write a value as `--set` reads it."""
    if isinstance(value, list | tuple):
        nested = any(isinstance(one, list | tuple) for one in value)
        return json.dumps(value, separators=(",", ":")) if nested else ",".join(map(spell, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield name, value
        return
    section = _section(value, name)
    for key, inner in value.items():
        yield from _leaves(inner, f"{section}.{key}" if section else key)


def _section(value: Mapping[str, Any], name: str) -> str:
    """Tell which section a mapping is: a stage calls its own one `config`, say, but its fields are no other's."""
    if frozenset(value) in _SECTIONS or name in _DEFAULTS:
        return _SECTIONS.get(frozenset(value), name)
    joined = any(isinstance(inner, Mapping) and isinstance(_DEFAULTS.get(key), Mapping) for key, inner in value.items())
    return "" if joined else name


def _is_default(name: str, value: Any) -> bool:
    section, _, field = name.rpartition(".")
    known = _DEFAULTS.get(section) if section else _DEFAULTS
    if isinstance(known, Mapping) and field in known:
        return bool(known[field] == value)
    return value in (None, "", [])
