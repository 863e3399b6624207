"""How a column says what it is: its key position for Lance, its axes and units for people."""

import pyarrow as pa

SCHEMA_VERSION = "2"


def key(name: str, kind: pa.DataType, position: int, meaning: str) -> pa.Field:
    """Make a key column. Without Lance's primary-key metadata, concurrent upserts duplicate rows silently."""
    metadata = {
        "lance-schema:unenforced-primary-key": "true",
        "lance-schema:unenforced-primary-key:position": str(position),
        "csip.meaning": meaning,
    }
    return pa.field(name, kind, nullable=False, metadata=metadata)


def column(name: str, kind: pa.DataType, meaning: str, *, nullable: bool = False) -> pa.Field:
    """Make a column; `meaning` names units and axes."""
    return pa.field(name, kind, nullable=nullable, metadata={"csip.meaning": meaning})


def table(*fields: pa.Field, rows: str) -> pa.Schema:
    """Join columns to a table's schema; `rows` says what one row is."""
    return pa.schema(fields, metadata={"csip.schema_version": SCHEMA_VERSION, "csip.rows": rows})


def key_names(schema: pa.Schema) -> list[str]:
    """List a schema's key columns in key order."""
    position = b"lance-schema:unenforced-primary-key:position"
    keyed = [(int(f.metadata[position]), f.name) for f in schema if position in (f.metadata or {})]
    return [name for _, name in sorted(keyed)]


BOX = pa.list_(pa.float32(), 4)
"""x1, y1, x2, y2 in frame pixels."""

KEYPOINTS = pa.list_(pa.list_(pa.float32(), 3))
"""Joints x (x, y, confidence) in frame pixels, or joints x (x, y, z) in the source's own units."""
