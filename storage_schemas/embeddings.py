"""Table `embeddings`: what is ranked."""

import pyarrow as pa

from storage_schemas.fields import column, key, table

SCHEMA = table(
    key("encoder_digest", pa.string(), 1, "of the checkpoint and of how clips are sampled and prepared"),
    key("tracklet_id", pa.string(), 2, "as in `tracklets`"),
    key("first_frame", pa.int64(), 3, "first frame_index of the part"),
    key("last_frame", pa.int64(), 4, "last frame_index of the part, inclusive"),
    column("checkpoint_sha", pa.string(), "SHA-256 of the checkpoint; empty for baselines without one"),
    column("encoder", pa.string(), "what it is called in results: 'trained', 'untrained', 'hsv-histogram'"),
    column("feature", pa.list_(pa.float32()), "(E,) as it is ranked; of pictures L2-normalised"),
    rows="one part of a tracklet, or one clip or window of it, under one encoder",
)
