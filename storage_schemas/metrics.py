"""Table `metrics`: the figures of a training, epoch by epoch."""

import pyarrow as pa

from storage_schemas.fields import column, key, table

SCHEMA = table(
    key("run_id", pa.string(), 1, "as in `runs`"),
    key("step", pa.int64(), 2, "epoch, from 1"),
    key("name", pa.string(), 3, "for example 'loss' or 'learning_rate'"),
    column("stage", pa.string(), "the stage's name"),
    column("value", pa.float64(), "the figure"),
    rows="one figure of one epoch",
)
