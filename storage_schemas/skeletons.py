"""Table `skeletons`: the pose of one person in one frame, raw; normalisation happens on load."""

import pyarrow as pa

from storage_schemas.fields import KEYPOINTS, column, key, table

SCHEMA = table(
    key("tracklet_id", pa.string(), 1, "as in `tracklets`"),
    key("frame_index", pa.int64(), 2, "zero-based in the source"),
    key("extractor_digest", pa.string(), 3, "of what made the skeleton: settings, weights, version"),
    column("has_skeleton", pa.bool_(), "False where the extractor found nobody: the keypoints are zero then"),
    column("layout", pa.string(), "name of the joint layout, as in csip.joints"),
    column("keypoints", KEYPOINTS, "joints x 3, raw: frame pixels and confidence, or the source's own 3D units"),
    rows="one frame of one tracklet, with its skeleton or without",
)
