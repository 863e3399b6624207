"""Tracklets cut out of videos, each video in one pass as long as they are asked for in their order.

Shapes: T frames of a tracklet, H and W pixels of a frame.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csip.errors import VideoError
from csip.ingest.cut import encode_crop
from csip.ingest.decoder import Decoder
from csip.ingest.video import VideoInfo
from csip.types import Frames, IntArray

_DECODE_BATCH = 16


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """What is cut out for one tracklet.

    Attributes:
        run: tracklets of one run are asked for one after the other.
        video: where they are cut from.
        frame_index: (T,) strictly increasing.
        boxes: (T, 4) x1 y1 x2 y2, whole pixels inside the frame.
    """

    run: str
    video: VideoInfo
    frame_index: IntArray
    boxes: IntArray


class Cutter:
    """Cuts crops out of one video at a time.

    Where tracklets are asked for in their order, a video is decoded once for each run that it has tracklets of. Held in
    memory are a few frames, and the encoded crops of the tracklets that have begun and were not asked for yet: since
    tracklets are sorted by their last frames, those that overlap in time. Any other order works and decodes more.

    Args:
        tracks: those of a run lie together, in it those of a video, in it the earlier last frame comes first.
        quality: of the crops' JPEG, 1..100.
        decoder: reads the videos; this closes nothing.
    """

    def __init__(self, tracks: Sequence[Track], *, quality: int, decoder: Decoder) -> None:
        self._tracks, self._quality, self._decoder = tracks, quality, decoder
        self._pass: _Pass | None = None

    def cut(self, number: int) -> tuple[list[bytes], npt.NDArray[np.float64]]:
        """Give a tracklet's T crops as JPEG, and the T times of their frames in seconds from the container.

        Raises:
            VideoError: the video gives no picture for one of the frames, or its decoder hung or died.
        """
        if self._pass is None or not self._pass.can_give(number):
            self._pass = _Pass(self._tracks, number, self._quality, self._decoder)
        return self._pass.give(number)


class _Pass:
    """One reading of a video, for the tracklets from `first` to the last of its run."""

    def __init__(self, tracks: Sequence[Track], first: int, quality: int, decoder: Decoder) -> None:
        self._video, self._quality, self._next = tracks[first].video, quality, first
        end = first
        while end < len(tracks) and (tracks[end].run, tracks[end].video) == (tracks[first].run, self._video):
            end += 1
        self._end = end
        self._missing = {number: len(tracks[number].frame_index) for number in range(first, end)}
        self._held: dict[int, list[tuple[bytes, float]]] = {number: [] for number in self._missing}
        frame = np.concatenate([tracks[number].frame_index for number in self._missing])
        order = np.argsort(frame, kind="stable")
        owner = np.repeat(list(self._missing), list(self._missing.values()))
        self._frame, self._owner = frame[order], owner[order]
        self._boxes = np.concatenate([tracks[number].boxes for number in self._missing])[order]
        self._at = 0
        first, last = int(self._frame[0]), int(self._frame[-1])
        self._images = _images(decoder.frames(self._video, batch=_DECODE_BATCH, start=first, stop=last + 1))

    def can_give(self, number: int) -> bool:
        """Tell whether a tracklet is still to come."""
        return self._next <= number < self._end

    def give(self, number: int) -> tuple[list[bytes], npt.NDArray[np.float64]]:
        """Read on until a tracklet is whole; those before it are given up."""
        for before in range(self._next, number):
            self._held.pop(before)
        self._next = number + 1
        while self._missing[number]:
            step = next(self._images, None)
            if step is None:
                break
            self._cut(*step)
        crops = self._held.pop(number)
        if self._missing[number]:
            raise VideoError(
                f"{self._video.path}: found no picture for {self._missing[number]} frames of a tracklet that the "
                "container has, and cut the others. The file is damaged; copy it anew, or take these frames out of the "
                "file that names them."
            )
        if self._next == self._end:
            # Read to where it ends, the decoder need not be started anew; what else is wrong there, nobody needs.
            with contextlib.suppress(VideoError):
                deque(self._images, maxlen=0)
        return [image for image, _ in crops], np.array([time for _, time in crops], np.float64)

    def _cut(self, pixels: npt.NDArray[np.uint8], frame: int, time: float) -> None:
        """Cut out of a frame (H, W, 3) what lies in it for tracklets that were not given yet."""
        while self._at < len(self._frame) and self._frame[self._at] <= frame:
            owner = int(self._owner[self._at])
            if self._frame[self._at] == frame:
                self._missing[owner] -= 1
                if owner in self._held:
                    box = self._boxes[self._at].astype(np.float32)
                    self._held[owner].append((encode_crop(pixels, box, self._quality), time))
            self._at += 1


def _images(frames: Iterator[Frames]) -> Iterator[tuple[npt.NDArray[np.uint8], int, float]]:
    for some in frames:
        yield from zip(some.pixels, some.frame_index.tolist(), some.time.tolist(), strict=True)
