"""Table `results`: scores, each with the protocol it was measured under."""

import pyarrow as pa

from storage_schemas.fields import column, key, table

SCHEMA = table(
    key("run_id", pa.string(), 1, "of the evaluation, as in `runs`"),
    key("protocol", pa.string(), 2, "for example 'self-labelled'"),
    key("split", pa.string(), 3, "number of the split"),
    key("encoder", pa.string(), 4, "'trained', 'untrained', 'hsv-histogram'"),
    key("name", pa.string(), 5, "'mean_ap', 'rank-1', 'cmc-007', ...; 'GROUP/mean_ap' of a group's queries"),
    column("value", pa.float64(), "shares are 0..1"),
    column("described", pa.string(), "the protocol in words"),
    column("encoder_digest", pa.string(), "of the embeddings that were ranked"),
    column("checkpoint_sha", pa.string(), "SHA-256 of the checkpoint; empty for baselines without one"),
    rows="one score",
)
