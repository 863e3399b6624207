"""The door to ultralytics' trackers: people in single frames to track numbers, frame by frame.

The cameras are fixed, so no tracker here looks at pixels. What becomes of the tracks is decided in
`csip.ingest.tracklets`.

Shapes: N people in a frame.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from csip.config import TrackConfig
from csip.ingest.yolo import import_quietly
from csip.types import FloatArray, People


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


class Association:
    """One video's tracker. Its clock is the frame that is looked at; people come in the order of frames.

    Attributes:
        buffer: frames that a track may be unseen for and still come back under its number.
    """

    def __init__(self, config: TrackConfig, *, rate: float, stride: int) -> None:
        """Begin a video.

        Args:
            config: which tracker, and its thresholds.
            rate: frames looked at a second.
            stride: distance of two frames that are looked at, in frame_index.

        Raises:
            ValueError: rate is not positive.
        """
        if not rate > 0:
            raise ValueError(f"Association: got {rate} frames a second, expected more than 0.")
        self.buffer = max(round(config.buffer_seconds * rate), 1)
        self._stride = stride
        self._before: int | None = None
        self._tracker = _make_tracker(config, self.buffer)

    def update(self, frame_index: int, people: People) -> list[tuple[int, int]]:
        """Associate the people of the next frame.

        Args:
            frame_index: of the frame. Frames that were lost before it let as much time pass.
            people: in it; a frame without people counts as well.

        Returns:
            (track number, row of `people`) of those that belong to a track, by track number. A track's first detection
            belongs to it from the next frame on, except in the first frame of a video.

        Raises:
            ValueError: frame_index does not increase.
        """
        if self._before is not None and frame_index <= self._before:
            raise ValueError(
                f"Association: frame_index {frame_index} comes after {self._before}; expected every frame in order."
            )
        lost = 0 if self._before is None else (frame_index - self._before) // self._stride - 1
        # Beyond the buffer nothing is left to be forgotten.
        for _ in range(min(lost, self.buffer + 1)):
            self._step(_Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32)))
        self._before = frame_index
        # Copies: the tracker keeps views of what it is given.
        return self._step(_Detections(people.boxes.astype(np.float32), people.score.astype(np.float32)))

    def _step(self, seen: _Detections) -> list[tuple[int, int]]:
        tracker = self._tracker
        rows = np.asarray(tracker.update(seen), dtype=np.float64).reshape(-1, 8)
        # Ultralytics strikes out who was lost for too long one frame late: until then they could come back, after
        # however long a hole in the video, and once back would be forgotten as soon as they are unseen again.
        lost = [track for track in tracker.lost_stracks if tracker.frame_id - track.end_frame <= self.buffer]
        tracker.lost_stracks = lost
        # Columns: x1 y1 x2 y2 track_id score class row.
        return sorted((int(row[4]), int(row[7])) for row in rows)


def _make_tracker(config: TrackConfig, buffer: int) -> Any:
    settings = {
        "track_high_thresh": config.high_confidence,
        "track_low_thresh": config.low_confidence,
        "new_track_thresh": config.new_confidence,
        "match_thresh": config.match_cost,
        "track_buffer": buffer,
        "fuse_score": True,
    }
    # Read by BoT-SORT only; without motion compensation and appearance its difference is the Kalman filter's state.
    fixed_camera = {"gmc_method": "none", "with_reid": False, "proximity_thresh": 0.5, "appearance_thresh": 0.8}
    trackers = import_quietly("ultralytics.trackers")
    make = {"bytetrack": trackers.BYTETracker, "botsort": trackers.BOTSORT}[config.tracker]
    return make(SimpleNamespace(tracker_type=config.tracker, **settings, **fixed_camera))
