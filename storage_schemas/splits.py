"""Table `splits`: who trains, who asks, who answers, under which protocol."""

import pyarrow as pa

from storage_schemas.fields import column, key, table

SCHEMA = table(
    key("dataset", pa.string(), 1, "the name of the snapshot that publishes it"),
    key("protocol", pa.string(), 2, "for example 'self-labelled'"),
    key("split", pa.string(), 3, "number of the split, for protocols that have several"),
    key("tracklet_id", pa.string(), 4, "as in `tracklets`"),
    key("first_frame", pa.int64(), 5, "first frame_index of the part; the tracklet's own where it is whole"),
    column("last_frame", pa.int64(), "last frame_index of the part, inclusive"),
    column("role", pa.string(), "'train', 'query' or 'gallery'"),
    column("group", pa.string(), "a named subset of people that scores are also reported for; empty for none"),
    column("pid", pa.int64(), "the person, as the data set or the protocol numbers people"),
    column("camid", pa.int64(), "zero-based camera number within the data set"),
    column("camera", pa.string(), "the camera's name"),
    rows="one part of a tracklet in one split",
)
