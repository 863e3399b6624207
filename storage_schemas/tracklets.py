"""Table `tracklets`: one person under one camera, unbroken."""

import pyarrow as pa

from storage_schemas.fields import column, key, table

APPEARED, JUMPED, LEFT, ENDED = "appeared", "identity jump", "left", "video ended"
"""Why a tracklet begins or ends, in the tracker's words."""
UNKNOWN = "unknown"
"""The same of what no tracker of ours made, or none that said."""
BEGINS = (APPEARED, JUMPED, UNKNOWN)
ENDS = (LEFT, JUMPED, ENDED, UNKNOWN)

SCHEMA = table(
    key("tracklet_id", pa.string(), 1, "deterministic: video (or data set), settings and the number there"),
    column("video_sha", pa.string(), "SHA-256 of the video's bytes; empty on benchmarks, which have none"),
    column("track_digest", pa.string(), "of the tracking settings and their detections; on benchmarks, of the import"),
    column("first_frame", pa.int64(), "first frame_index"),
    column("last_frame", pa.int64(), "last frame_index, inclusive"),
    column("first_time", pa.float64(), "seconds from the container"),
    column("last_time", pa.float64(), "seconds from the container"),
    column("num_frames", pa.int64(), "frames with a box"),
    column("keypoint_confidence", pa.float32(), "mean over frames and joints, 0..1; in 3D the share of frames seen"),
    column("pid", pa.int64(), "the person as the source numbers people; null where nobody labelled", nullable=True),
    column(
        "begins",
        pa.string(),
        "why it begins, in the tracker's words: 'appeared', 'identity jump' or 'unknown'",
        since=3,
        default=UNKNOWN,
    ),
    column(
        "ends",
        pa.string(),
        "why it ends, in the tracker's words: 'left', 'identity jump', 'video ended' or 'unknown'",
        since=3,
        default=UNKNOWN,
    ),
    column(
        "interpolated_frames",
        pa.int64(),
        "of num_frames, those whose box was interpolated over a gap",
        since=3,
        default=0,
    ),
    rows="one tracklet that was kept; dropped ones are counted in `runs`",
)
