"""Table `frame_features`: a frozen image encoder's projected CLS token of every crop, computed once."""

import pyarrow as pa

from storage_schemas.fields import column, key, table

SCHEMA = table(
    key("tracklet_id", pa.string(), 1, "as in `tracklets`"),
    key("frame_index", pa.int64(), 2, "zero-based in the source"),
    key("encoder_digest", pa.string(), 3, "of the encoder's weights, image size, normalisation and interpolation"),
    column("feature", pa.list_(pa.float32()), "(C,) the projected CLS token"),
    rows="one crop seen by one encoder",
)
