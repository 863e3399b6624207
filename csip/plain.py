"""Records as plain JSON values, checked on the way back, and digests of them."""

from __future__ import annotations

import hashlib
import json
import typing
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Turn a record (a config, a reference, a tuple of them) into plain JSON values."""
    return TypeAdapter(type(value)).dump_python(value, mode="json")


def from_plain(kind: type[T] | Any, value: Any) -> T:
    """Read what `to_plain` wrote back as `kind`, checked.

    Raises:
        ValueError: the value does not fit; the message names the field.
    """
    try:
        return typing.cast("T", TypeAdapter(kind).validate_python(value))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'value'}: {e['msg']}" for e in error.errors())
        raise ValueError(f"{getattr(kind, '__name__', kind)}: {problems}.") from error


def digest(*values: Any) -> str:
    """SHA-256 over the JSON of `values`: the same on every machine and PYTHONHASHSEED."""
    text = json.dumps([to_plain(v) for v in values], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
