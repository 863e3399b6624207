"""A video's frames once more, for the crops: those that are wanted, in order.

Shapes: H W pixels of a frame.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import numpy as np
import numpy.typing as npt

from csip.errors import DecoderLostError, VideoError
from csip.ingest.decoder import Decoder
from csip.ingest.video import VideoInfo
from csip.types import Frames

_DECODE_BATCH = 8


class Pictures:
    """Reads a video's wanted frames, in order; a later call reads on from where the last one stopped."""

    def __init__(self, video: VideoInfo, decoder: Decoder, stride: int) -> None:
        """Open nothing yet.

        Args:
            video: which.
            decoder: decodes.
            stride: distance of two frames that may be wanted, in frame_index.
        """
        self._video, self._decoder, self._stride = video, decoder, stride
        self._frames: Generator[Frames, None, None] | None = None
        self._held: Frames | None = None

    def __call__(self, wanted: list[int]) -> Iterator[list[tuple[int, float, npt.NDArray[np.uint8]]]]:
        """Give (frame_index, seconds, (H, W, 3) RGB) of the wanted frames, ascending, some at a time.

        Frames that no longer decode are left out.
        """
        if not wanted:
            return
        if self._frames is None:
            self._frames = self._decoder.frames(self._video, batch=_DECODE_BATCH, start=wanted[0], stride=self._stride)
        names = set(wanted)
        while (some := self._next()) is not None:
            index = some.frame_index.tolist()
            given = [(index[i], float(some.time[i]), some.pixels[i]) for i in range(len(some)) if index[i] in names]
            if given:
                yield given
            if index[-1] >= wanted[-1]:
                self._held = some if index[-1] > wanted[-1] else None
                return

    def _next(self) -> Frames | None:
        if self._held is not None:
            some, self._held = self._held, None
            return some
        try:
            return next(self._frames, None) if self._frames else None
        except DecoderLostError:
            raise
        except VideoError:
            return None  # It breaks off, as in the first pass; whether a wanted frame is missing, the caller sees.

    def close(self) -> None:
        """Let go of the decoder."""
        if self._frames is not None:
            self._frames.close()
