"""People in frames to rows of `detections`, and back.

Shapes: N people, J joints.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from csip import tables
from csip.ingest.plan import in_frames
from csip.joints import COCO17
from csip.tables import quote
from csip.types import People
from storage_schemas import TABLES


def which_detections(video_sha: str, detect_digest: str, first: int, end: int | None) -> str:
    """Write the condition for a video's detections in some of its frames; see `in_frames`."""
    return f"video_sha = {quote(video_sha)} AND detect_digest = {quote(detect_digest)} AND {in_frames(first, end)}"


def detection_rows(
    video_sha: str, detect_digest: str, frame_index: Sequence[int], time: Sequence[float], people: Sequence[People]
) -> pa.Table:
    """Lay out the people of some frames, with each frame's index and seconds, as rows of `detections`."""
    count = [len(some) for some in people]
    n = [np.arange(c, dtype=np.int32) for c in count]
    people = [nobody(), *people]
    rows = sum(count)
    return pa.table(
        [
            pa.array([video_sha] * rows, pa.string()),
            pa.array([detect_digest] * rows, pa.string()),
            pa.array(np.repeat(np.array(frame_index, np.int64), count)),
            pa.array(np.concatenate([np.zeros(0, np.int32), *n])),
            pa.array(np.repeat(np.array(time, np.float64), count)),
            tables.boxes_column(np.concatenate([p.boxes for p in people])),
            pa.array(np.concatenate([p.score for p in people])),
            tables.keypoints_column(np.concatenate([p.keypoints for p in people])),
        ],
        schema=TABLES["detections"],
    )


def nobody() -> People:
    """Make the record of an empty frame."""
    j = len(COCO17.joints)
    return People(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, j, 3), np.float32))


def read_detections(
    store: str, video_sha: str, detect_digest: str, first: int, end: int, stride: int
) -> Iterator[tuple[int, float, People]]:
    """Give the frames of a video that were looked at, in order, with the people that `detections` holds of each.

    Yields:
        frame_index, seconds from the container (not a number where nobody was seen), people.
    """
    table = tables.read(
        tables.current(store, "detections"), where=which_detections(video_sha, detect_digest, first, end)
    )
    score = np.asarray(table["score"], dtype=np.float32)
    boxes = tables.boxes_array(table["box"])
    keypoints = tables.keypoints_array(table["keypoints"], len(COCO17.joints))
    time_of = np.asarray(table["time"], dtype=np.float64)
    frame_index = np.asarray(table["frame_index"], dtype=np.int64)
    looked_at = range(first, end, stride)
    begin = np.searchsorted(frame_index, np.array(looked_at))
    stop = np.searchsorted(frame_index, np.array(looked_at), side="right")
    for index, a, b in zip(looked_at, begin.tolist(), stop.tolist(), strict=True):
        yield index, float(time_of[a]) if b > a else math.nan, People(boxes[a:b], score[a:b], keypoints[a:b])
