"""The door to ultralytics' trackers: people in single frames to tracklets.

Tracking is kept apart from detection: detections are rows that can be tracked again with other settings in seconds.
The cameras are fixed, so no tracker here looks at pixels.

Shapes: T frames of a tracklet, N people in a frame, J joints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from csip.ingest.yolo import import_quietly
from csip.types import FloatArray, People, Tracklet

TOO_SHORT = "shorter than min_frames"
TOO_UNSURE = "low keypoint confidence"


@dataclass(frozen=True, slots=True)
class TrackResult:
    """What a video's detections were joined to.

    Attributes:
        tracklets: kept ones, in the order in which people appear.
        dropped: reason -> tracklets dropped for it; every reason is there.
    """

    tracklets: tuple[Tracklet, ...]
    dropped: Mapping[str, int]


class _Detections:
    """Boxes and scores of one frame, in the form that ultralytics' trackers read: they slice it by a mask."""

    def __init__(self, boxes: FloatArray, score: FloatArray) -> None:
        self.xyxy = boxes
        self.conf = score
        self.cls = np.zeros(len(score), dtype=np.float32)

    @property
    def xywh(self) -> FloatArray:
        size = self.xyxy[:, 2:] - self.xyxy[:, :2]
        return np.concatenate([self.xyxy[:, :2] + size / 2, size], axis=1)

    def __len__(self) -> int:
        return len(self.conf)

    def __getitem__(self, rows: npt.NDArray[np.bool_]) -> _Detections:
        return _Detections(self.xyxy[rows], self.conf[rows])


def build_tracklets(
    detections: Iterable[tuple[int, People]],
    *,
    fps: float,
    tracker: Literal["bytetrack", "botsort"],
    high_confidence: float,
    low_confidence: float,
    new_confidence: float,
    match_cost: float,
    buffer_seconds: float,
    min_frames: int,
    min_keypoint_confidence: float,
    make_id: Callable[[int], str],
) -> TrackResult:
    """Join detections over time.

    Boxes, scores and keypoints of a tracklet are the detections' own, not the tracker's smoothed ones.

    Args:
        detections: (frame_index, people) of every frame in order, those without people among them: the tracker's
            clock is the frame. A jump in frame_index (frames that were lost) lets as many frames pass.
        fps: of the video; turns `buffer_seconds` into frames.
        tracker: which one.
        high_confidence: see `csip.config.TrackConfig`, as for all that follow.
        low_confidence: lowest score that can prolong a track.
        new_confidence: lowest score that can start one.
        match_cost: largest cost of an association.
        buffer_seconds: how long a lost track may come back.
        min_frames: shorter tracklets are dropped.
        min_keypoint_confidence: tracklets with a lower mean over frames and joints are dropped.
        make_id: gives the tracklet_id of a track number; these count from 0 in order of appearance.

    Raises:
        ValueError: fps is not positive, or frame_index does not increase.
    """
    if not fps > 0:
        raise ValueError(f"build_tracklets: got {fps} frames a second, expected more than 0.")
    tracking = _make_tracker(
        tracker,
        track_high_thresh=high_confidence,
        track_low_thresh=low_confidence,
        new_track_thresh=new_confidence,
        match_thresh=match_cost,
        track_buffer=max(round(buffer_seconds * fps), 1),
    )
    tracks = _follow(detections, tracking)
    dropped = {TOO_SHORT: 0, TOO_UNSURE: 0}
    kept: list[Tracklet] = []
    for number, rows in enumerate(tracks):
        if len(rows) < min_frames:
            dropped[TOO_SHORT] += 1
            continue
        tracklet = _tracklet(make_id(number), rows)
        if tracklet.keypoints[:, :, 2].mean() < min_keypoint_confidence:
            dropped[TOO_UNSURE] += 1
            continue
        kept.append(tracklet)
    return TrackResult(tuple(kept), dropped)


def _make_tracker(tracker: str, **settings: float) -> Any:
    fixed = {"fuse_score": True}
    # Read by BoT-SORT only; without motion compensation and appearance its difference is the Kalman filter's state.
    fixed_camera = {"gmc_method": "none", "with_reid": False, "proximity_thresh": 0.5, "appearance_thresh": 0.8}
    trackers = import_quietly("ultralytics.trackers")
    make = {"bytetrack": trackers.BYTETracker, "botsort": trackers.BOTSORT}[tracker]
    return make(SimpleNamespace(tracker_type=tracker, **settings, **fixed, **fixed_camera))


def _follow(detections: Iterable[tuple[int, People]], tracking: Any) -> list[list[tuple[int, People, int]]]:
    """List each track's (frame_index, people, row of people), tracks in order of appearance."""
    tracks: dict[int, list[tuple[int, People, int]]] = {}
    before = None
    nobody = _Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    for frame_index, people in detections:
        if before is not None and frame_index <= before:
            raise ValueError(
                f"build_tracklets: frame_index {frame_index} comes after {before}; expected every frame in order."
            )
        for _ in range(0 if before is None else frame_index - before - 1):
            tracking.update(nobody)
        before = frame_index
        # Copies: the tracker keeps views of what it is given.
        seen = _Detections(people.boxes.astype(np.float32), people.score.astype(np.float32))
        rows = np.asarray(tracking.update(seen), dtype=np.float64).reshape(-1, 8)
        for row in rows[np.argsort(rows[:, 4], kind="stable")]:
            # Columns: x1 y1 x2 y2 track_id score class row.
            tracks.setdefault(int(row[4]), []).append((frame_index, people, int(row[7])))
    return list(tracks.values())


def _tracklet(tracklet_id: str, rows: list[tuple[int, People, int]]) -> Tracklet:
    return Tracklet(
        tracklet_id=tracklet_id,
        frame_index=np.array([frame_index for frame_index, _, _ in rows], dtype=np.int64),
        boxes=np.stack([people.boxes[row] for _, people, row in rows]),
        score=np.array([people.score[row] for _, people, row in rows], dtype=np.float32),
        keypoints=np.stack([people.keypoints[row] for _, people, row in rows]),
    )
