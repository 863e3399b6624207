"""Table `detections`: what the pose model saw, before any tracking; tracking again needs no GPU."""

import pyarrow as pa

from storage_schemas.fields import BOX, KEYPOINTS, column, key, table

SCHEMA = table(
    key("video_sha", pa.string(), 1, "SHA-256 of the video's bytes"),
    key("detect_digest", pa.string(), 2, "of the detection settings, the weights and EXTRACT_VERSION"),
    key("frame_index", pa.int64(), 3, "zero-based in the video"),
    key("n", pa.int32(), 4, "number of the person within the frame, by descending score"),
    column("time", pa.float64(), "seconds from the container"),
    column("box", BOX, "x1 y1 x2 y2, frame pixels"),
    column("score", pa.float32(), "detection confidence 0..1"),
    column("keypoints", KEYPOINTS, "joints x (x, y, confidence), frame pixels"),
    rows="one person in one frame",
)
