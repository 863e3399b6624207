"""Table `crops`: the pixels of one person in one frame."""

import pyarrow as pa

from storage_schemas.fields import BOX, column, key, table

SCHEMA = table(
    key("tracklet_id", pa.string(), 1, "as in `tracklets`"),
    key("frame_index", pa.int64(), 2, "zero-based in the source"),
    column("time", pa.float64(), "seconds from the container"),
    column("box", BOX, "x1 y1 x2 y2, frame pixels, as the detector gave it, on benchmarks clipped to the frame"),
    column("score", pa.float32(), "detection confidence 0..1"),
    column("media_type", pa.string(), "of `image`, for example image/jpeg"),
    column("image", pa.binary(), "the encoded crop"),
    rows="one crop of one tracklet",
)
