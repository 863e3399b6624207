"""Table `runs`: one row a finished stage; the chain that leads from a score back to the frames."""

import pyarrow as pa

from storage_schemas.fields import column, key, table

SCHEMA = table(
    key("run_id", pa.string(), 1, "unique"),
    column("stage", pa.string(), "the stage's name"),
    column("key", pa.string(), "digest of inputs, config and reachable source: equal keys mean equal results"),
    column("inputs", pa.string(), "JSON: name -> reference"),
    column("outputs", pa.string(), "JSON: the stage's result"),
    column("config", pa.string(), "JSON: the sections the stage read"),
    column("counts", pa.string(), "JSON: what was kept, and what was dropped and why"),
    column("weights", pa.string(), "JSON: file name -> SHA-256 of weights that came from outside"),
    column("source_digest", pa.string(), "of the code the stage reaches by import"),
    column("git_commit", pa.string(), "of the checkout, '+' behind it when there were changes; empty without one"),
    column("device", pa.string(), "where it ran"),
    column("started", pa.string(), "ISO 8601, UTC"),
    column("seconds", pa.float64(), "wall time"),
    rows="one finished stage",
)
