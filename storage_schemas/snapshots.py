"""Table `snapshots`: published data sets; one row names a version of every table."""

import pyarrow as pa

from storage_schemas.fields import column, key, table

SCHEMA = table(
    key("name", pa.string(), 1, "what a user calls it"),
    column("digest", pa.string(), "of what decides its rows"),
    column("tables", pa.string(), "JSON: table -> version"),
    column("config", pa.string(), "JSON: the sections that made it; of videos also `digests`, of their extraction"),
    column("counts", pa.string(), "JSON: videos, frames, detections, tracklets kept and dropped, people, parts"),
    column("videos", pa.string(), "JSON: SHA-256 of every video in it"),
    column("created", pa.string(), "ISO 8601, UTC"),
    rows="one published snapshot",
)
