"""How a column says what it is: its key position for Lance, its axes and units for people, and since when it is there.

To add a column to a table that people already have stores of:

1. Raise `SCHEMA_VERSION` by one (once a release, however many columns come with it).
2. Put the column at the end of its table, with that version and with what rows written before say in it:
   `column("begins", pa.string(), "why it begins", since=3, default="unknown")`.
3. Fill it wherever rows of the table are made.

Stores need nothing: whoever next writes to a table brings it up in one commit, and a version that was published
before reads as if its rows had the default. Columns are never taken away, renamed or given another type or meaning:
that is another column.
"""

import json
from typing import Any

import pyarrow as pa

FIRST_VERSION = 2
"""The oldest schema that is still read; tables were given columns before, in ways that say nothing of old rows."""

SCHEMA_VERSION = 3

_VERSION = b"csip.schema_version"
_KEY = b"lance-schema:unenforced-primary-key"
_POSITION = _KEY + b":position"


def key(name: str, kind: pa.DataType, position: int, meaning: str) -> pa.Field:
    """Make a key column. Without Lance's primary-key metadata, concurrent upserts duplicate rows silently."""
    metadata = {
        _KEY.decode(): "true",
        _POSITION.decode(): str(position),
        "csip.meaning": meaning,
    }
    return pa.field(name, kind, nullable=False, metadata=metadata)


def column(
    name: str,
    kind: pa.DataType,
    meaning: str,
    *,
    nullable: bool = False,
    since: int = FIRST_VERSION,
    default: Any = None,
) -> pa.Field:
    """Make a column.

    Args:
        name: what it is called.
        kind: its type.
        meaning: units and axes.
        nullable: whether a row may have no value.
        since: the schema version that it came with.
        default: what rows have that are older than the column: a plain value, as JSON can hold it.

    Raises:
        ValueError: a later column that leaves old rows without a value, or comes with a version that is not there yet.
    """
    metadata = {"csip.meaning": meaning}
    if since != FIRST_VERSION:
        if not FIRST_VERSION < since <= SCHEMA_VERSION:
            raise ValueError(f"column {name}: got since={since}, expected at most SCHEMA_VERSION = {SCHEMA_VERSION}.")
        if default is None and not nullable:
            raise ValueError(f"column {name}: expected a default, which older rows get, or nullable=True.")
        metadata |= {"csip.since": str(since), "csip.default": json.dumps(default)}
    return pa.field(name, kind, nullable=nullable, metadata=metadata)


def table(*fields: pa.Field, rows: str) -> pa.Schema:
    """Join columns to a table's schema; `rows` says what one row is.

    Raises:
        ValueError: a column that came later stands before one that was there.
    """
    came = [since(field) for field in fields]
    if came != sorted(came):
        raise ValueError(f"table of {[f.name for f in fields]}: expected columns that came later behind the others.")
    return pa.schema(fields, metadata={_VERSION: str(SCHEMA_VERSION), "csip.rows": rows})


def since(field: pa.Field) -> int:
    """Tell which schema version a column came with."""
    return int((field.metadata or {}).get(b"csip.since", FIRST_VERSION))


def default(field: pa.Field) -> pa.Scalar:
    """Give what rows have that are older than a column."""
    return pa.scalar(json.loads(field.metadata[b"csip.default"]), field.type)


def version_of(schema: pa.Schema) -> int:
    """Tell which schema version a table says it has; 0 where it does not say."""
    said = (schema.metadata or {}).get(_VERSION, b"")
    return int(said) if said.isdigit() else 0


def at_version(schema: pa.Schema, version: int) -> pa.Schema:
    """Give a table's schema as it was at an earlier version."""
    fields = [field for field in schema if since(field) <= version]
    return pa.schema(fields, metadata={**(schema.metadata or {}), _VERSION: str(version).encode()})


def key_position(field: pa.Field) -> int:
    """Tell where a column stands in the key as Lance knows it, from 1; 0 where it is no part of it."""
    metadata = field.metadata or {}
    return int(metadata.get(_POSITION, 0)) if metadata.get(_KEY) == b"true" else 0


def key_names(schema: pa.Schema) -> list[str]:
    """List a schema's key columns in key order."""
    return [name for position, name in sorted((key_position(field), field.name) for field in schema) if position]


BOX = pa.list_(pa.float32(), 4)
"""x1, y1, x2, y2 in frame pixels."""

KEYPOINTS = pa.list_(pa.list_(pa.float32(), 3))
"""Joints x (x, y, confidence) in frame pixels, or joints x (x, y, z) in the source's own units."""
