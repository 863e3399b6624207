"""Decoding in a process of its own: a file that crashes or hangs FFmpeg costs one video, never the build.

The child (`csip.ingest.decoder_child`) is started when it is first needed and anew after every death. Frames come
through a ring of slots in memory that has no name and vanishes with the two processes; the child decodes ahead as far
as the ring reaches and then waits. What passes the pipes are lines of JSON: requests and "a slot is free again" to the
child, a line a frame back.

Shapes: F frames, H and W pixels.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from csip.config import RuntimeConfig
from csip.errors import DecoderLostError, VideoError
from csip.ingest.container import spell
from csip.ingest.decoder_process import BrokenError, DecoderProcess, Patience
from csip.ingest.video import VideoInfo
from csip.types import Frames

# Disks and networks slower than this, bytes a second, are not waited for.
_SLOWEST_READ = 5e6

# How often a file is read from its begin to its end: its packets and for its digest; its packets, decord's index of
# them, its frames, and for a digest before and behind these where it does not look as it did.
_READ_FOR_PROBE, _READ_FOR_FRAMES = 2, 5


class Decoder:
    """Reads videos through a child process; a context manager.

    A new request ends a reading that is not at its end. Two decoders may work at once, and either may be used in any
    thread, by one thread at a time.
    """

    def __init__(self, runtime: RuntimeConfig) -> None:
        """Start nothing yet.

        Args:
            runtime: the decoder's threads and deadlines.
        """
        self._runtime = runtime
        self._child: DecoderProcess | None = None
        self._open: object | None = None  # the reading that the child is busy with
        self._interrupted = False

    def __enter__(self) -> Self:
        """Give itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the child."""
        self.close()

    @property
    def pid(self) -> int | None:
        """The child's process id, where there is a child."""
        return self._child.pid if self._child else None

    def prepare(self) -> None:
        """Start the child now, so that the first request need not wait for it.

        Raises:
            StageError: it cannot be started.
        """
        self._start()

    def _start(self) -> DecoderProcess:
        if self._child is None:
            self._child = DecoderProcess(self._runtime.decode_stall_seconds)
        if self._interrupted:
            self._child.interrupt()
        return self._child

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

    def close(self) -> None:
        """End the child; the next request starts another one."""
        self._end()
        self._interrupted = False

    def interrupt(self) -> None:
        """Kill the child, and every other one until `close`: what another thread reads ends with DecoderLostError."""
        self._interrupted = True
        child = self._child
        if child is not None:
            child.interrupt()

    def probe(self, path: Path) -> VideoInfo:
        """Read a file's packets and digest its bytes; see `csip.ingest.video.probe`.

        Raises:
            VideoError: the file is no video, or its reading crashed, hung or outlasted its limit.
            StageError: the child cannot be started.
        """
        answers = dict(self._ask(path, {"do": "probe"}, _READ_FOR_PROBE))
        info = answers["info"]
        return VideoInfo(path=path, look=tuple(info.pop("look")), **info)

    @staticmethod
    def _seconds_to_read(path: Path) -> float:
        """Give the seconds that reading a file once may take."""
        try:
            size = os.stat(path).st_size
        except (OSError, ValueError):
            size = 0  # The child says why it cannot be read.
        return size / _SLOWEST_READ

    def frames(
        self, video: VideoInfo, *, batch: int, start: int = 0, stop: int | None = None, stride: int = 1
    ) -> Generator[Frames, None, None]:
        """Decode the frames whose index lies in ``range(start, stop, stride)``, numbered as in the whole video.

        Args:
            video: as `probe` found it: no frame of another content is given out for one of its.
            batch: frames a `Frames`; the last one may hold fewer. The child decodes two batches ahead.
            start: index of the first frame wanted.
            stop: index after the last one; None: to the video's end.
            stride: distance of two wanted frames.

        Yields:
            Frames in order, with pixels of their own. Every frame that decodes comes before a file is called damaged.

        Raises:
            ValueError: a number is out of its range, or another reading was begun before this one was at its end.
            DecoderLostError: the file cannot be opened, or its content changed, or its reading failed, crashed, hung or
                outlasted its limit.
            VideoError: the file is damaged, and was read to its end.
            StageError: the child cannot be started.
        """
        if batch < 1 or start < 0 or stride < 1 or (stop is not None and stop < start):
            raise ValueError(
                f"Decoder.frames: got batch {batch}, start {start}, stop {stop}, stride {stride}; expected batch and "
                "stride 1 or more, start 0 or more, and stop not before start."
            )
        request = {"do": "frames", "start": start, "stop": stop, "stride": stride, "batch": batch}
        request |= {"threads": self._runtime.decode_threads, "sha256": video.sha256, "look": video.look}
        held: _Batch | None = None
        try:
            with contextlib.closing(self._ask(video.path, request, _READ_FOR_FRAMES)) as answers:
                for kind, value in answers:
                    if kind == "opened":
                        held = _Batch(batch, value["height"], value["width"])
                    elif kind == "frame" and held is not None:
                        held.add(*value)
                        if held.full:
                            yield held.take()
        except DecoderLostError:
            # Nobody vouches for frames that no full batch was made of.
            raise
        except VideoError as error:
            if held is None:
                # It may be there again the next time; it did not break off.
                raise DecoderLostError(str(error)) from None
            if len(held):
                yield held.take()
            raise
        if held is not None and len(held):
            yield held.take()

    def _ask(self, path: Path, request: dict[str, Any], times: int) -> Generator[tuple[str, Any], None, None]:
        """Send a request; give the answers up to its end, a frame as (index, seconds, view of its slot).

        `times` is how often the file is read for it.
        """
        if self._open:
            self._end()
        self._open = mine = object()
        reading = self._seconds_to_read(path)
        patience = Patience(
            self._runtime.decode_limit_seconds + times * reading, self._runtime.decode_limit_factor, reading
        )
        try:
            for answer in self._start().ask(path, request, patience):
                yield answer
                if self._open is not mine:
                    raise ValueError(f"Decoder: another reading was begun before that of {spell(path)} was at its end.")
        except BrokenError as error:
            self._end()
            raise DecoderLostError(f"{spell(path)}: {error}") from None
        except GeneratorExit:
            # A new process costs less than finding out how far this one is.
            if self._open is mine:
                self._end()
            raise
        finally:
            if self._open is mine:
                self._open = None


class _Batch:
    """Frames on their way into a `Frames`."""

    def __init__(self, size: int, height: int, width: int) -> None:
        self._shape = (size, height, width, 3)
        self._pixels = np.empty(self._shape, np.uint8)
        self._index: list[int] = []
        self._time: list[float] = []

    def __len__(self) -> int:
        return len(self._index)

    @property
    def full(self) -> bool:
        return len(self) == self._shape[0]

    def add(self, index: int, at: float, picture: npt.NDArray[np.uint8]) -> None:
        self._pixels[len(self)] = picture
        self._index.append(index)
        self._time.append(at)

    def take(self) -> Frames:
        frames = Frames(self._pixels[: len(self)], np.array(self._index, np.int64), np.array(self._time, np.float64))
        self._pixels = np.empty(self._shape, np.uint8)
        self._index, self._time = [], []
        return frames
