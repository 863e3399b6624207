"""Table `videos`: every file that was ever offered, readable or not."""

import pyarrow as pa

from storage_schemas.fields import column, key, table

SCHEMA = table(
    key("video_sha", pa.string(), 1, "SHA-256 of the file's bytes"),
    column("path", pa.string(), "where the file lay when it was last read"),
    column("bytes", pa.int64(), "size of the file, bytes"),
    column("codec", pa.string(), "as the container names it; empty where unreadable"),
    column("width", pa.int32(), "of a frame, pixels"),
    column("height", pa.int32(), "of a frame, pixels"),
    column("fps", pa.float64(), "mean frames a second"),
    column("expected_frames", pa.int64(), "frames the container promises"),
    column("num_frames", pa.int64(), "frames that could be decoded"),
    column("duration", pa.float64(), "seconds"),
    column("status", pa.string(), "'ok'; 'partial': damaged, what came was kept; 'quarantined', 'forgotten': no rows"),
    column("reason", pa.string(), "what went wrong; empty when ok"),
    rows="one video file, known by its content",
)
