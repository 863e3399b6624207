"""Decoding in a process of its own: a file that crashes or hangs FFmpeg costs one video, never the build.

The child (`csip.ingest.decoder_child`) is started when it is first needed and anew after every death. Frames come
through a ring of slots in memory that has no name and vanishes with the two processes; the child decodes ahead as far
as the ring reaches and then waits. What passes the pipes are lines of JSON: requests and "a slot is free again" to the
child, a line a frame back.

Shapes: F frames, H and W pixels.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from csip.config import RuntimeConfig
from csip.errors import DecoderLostError, StageError, VideoError
from csip.ingest.container import spell
from csip.ingest.video import VideoInfo
from csip.types import Frames

_LOG = logging.getLogger(__name__)

CHILD = ("-m", "csip.ingest.decoder_child")
"""What the Python interpreter is given to run."""

# A file is read through once to be known; disks and networks slower than this are not waited for.
_SLOWEST_READ = 5e6
_PATIENCE_WITH_THE_DEAD = 5.0


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
        self._child: _Child | None = None
        self._open: object | None = None  # the reading that the child is busy with

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

    def close(self) -> None:
        """End the child; the next request starts another one."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def interrupt(self) -> None:
        """End what the child does; a reading that goes on in another thread ends with DecoderLostError."""
        child = self._child
        if child is not None:
            child.interrupt()

    def probe(self, path: Path) -> VideoInfo:
        """Read a file's packets and digest its bytes; see `csip.ingest.video.probe`.

        Raises:
            VideoError: the file is no video, or its reading crashed, hung or outlasted its limit.
            StageError: the child cannot be started.
        """
        size = path.stat().st_size if path.is_file() else 0
        limit = self._runtime.decode_limit_seconds + size / _SLOWEST_READ
        answers = dict(self._ask(path, {"do": "probe"}, limit))
        return VideoInfo(path=path, **answers["info"])

    def frames(
        self, path: Path, *, batch: int, start: int = 0, stop: int | None = None, stride: int = 1
    ) -> Generator[Frames, None, None]:
        """Decode the frames whose index lies in ``range(start, stop, stride)``, numbered as in the whole video.

        Args:
            path: the video file.
            batch: frames a `Frames`; the last one may hold fewer. The child decodes two batches ahead.
            start: index of the first frame wanted.
            stop: index after the last one; None: to the video's end.
            stride: distance of two wanted frames.

        Yields:
            Frames in order, with pixels of their own. Every frame that decodes comes before an error is raised.

        Raises:
            ValueError: a number is out of its range, or another reading was begun before this one was at its end.
            VideoError: as from `probe`, or the file is damaged and was read to its end.
            StageError: the child cannot be started.
        """
        if batch < 1 or start < 0 or stride < 1 or (stop is not None and stop < start):
            raise ValueError(
                f"Decoder.frames: got batch {batch}, start {start}, stop {stop}, stride {stride}; expected batch and "
                "stride 1 or more, start 0 or more, and stop not before start."
            )
        request = {"do": "frames", "start": start, "stop": stop, "stride": stride, "batch": batch}
        request["threads"] = self._runtime.decode_threads
        held: _Batch | None = None
        try:
            with contextlib.closing(self._ask(path, request, self._runtime.decode_limit_seconds)) as answers:
                for kind, value in answers:
                    if kind == "opened":
                        held = _Batch(batch, value["height"], value["width"])
                    elif kind == "frame" and held is not None:
                        held.add(*value)
                        if held.full:
                            yield held.take()
        except VideoError:
            if held is not None and len(held):
                yield held.take()
            raise
        if held is not None and len(held):
            yield held.take()

    def _ask(self, path: Path, request: dict[str, Any], limit: float) -> Generator[tuple[str, Any], None, None]:
        """Send a request; give the answers up to its end, a frame as (index, seconds, view of its slot)."""
        if self._open:
            self.close()
        self._open = mine = object()
        try:
            if self._child is None:
                self._child = _Child(self._runtime.decode_stall_seconds)
            for answer in self._child.ask(path, request, limit, self._runtime.decode_limit_factor):
                yield answer
                if self._open is not mine:
                    raise ValueError(f"Decoder: another reading was begun before that of {spell(path)} was at its end.")
        except _BrokenError as error:
            self.close()
            raise DecoderLostError(f"{spell(path)}: {error}") from None
        except GeneratorExit:
            # A new process costs less than finding out how far this one is.
            if self._open is mine:
                self.close()
            raise
        finally:
            if self._open is mine:
                self._open = None


class _BrokenError(Exception):
    """The child died or had to be killed."""


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


class _Child:
    """One process, its two pipes and the memory it shares with this one."""

    def __init__(self, stall: float) -> None:
        self._stall = stall
        self._memory = os.memfd_create("csip-frames", os.MFD_CLOEXEC)
        # Nothing is ever written to it: its end tells the child, even one that hangs in native code, that we are gone.
        watched, self._lifeline = os.pipe()
        # Code comes from where this process has it; a thread of numpy's a core would be idle memory.
        paths = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYTHONSAFEPATH": "1"}
        try:
            self._process = subprocess.Popen(
                [sys.executable, *CHILD, str(self._memory), str(watched), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                pass_fds=(self._memory, watched),
                env=os.environ | paths | {"OPENBLAS_NUM_THREADS": "1"},
            )
        finally:
            os.close(watched)
        self._poll = select.poll()
        self._poll.register(self._stdout, select.POLLIN)
        self._held = b""
        self._lines: list[bytes] = []
        self._waited = 0.0
        self._slots: npt.NDArray[np.uint8] | None = None
        try:
            self._receive(stall)
        except _BrokenError as error:
            self.kill()
            raise StageError(
                f"The decoder's process could not start: {error} Its own words are above, or in the run's log."
            ) from None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def _stdout(self) -> int:
        return self._process.stdout.fileno()  # type: ignore[union-attr]

    def interrupt(self) -> None:
        self._process.kill()

    def kill(self) -> None:
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # It waits for a disk or network that is gone.
            self._process.wait(timeout=_PATIENCE_WITH_THE_DEAD)
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]
        if self._memory >= 0:
            os.close(self._lifeline)
            os.close(self._memory)
            self._memory = -1
        self._slots = None

    def ask(self, path: Path, request: dict[str, Any], limit: float, factor: float) -> Iterator[tuple[str, Any]]:
        """Send a request, and give its answers.

        Raises:
            VideoError: what the child raised.
            _BrokenError: the child died, hung, or was waited for longer than `limit` and `factor` times its length.
        """
        self._waited = 0.0
        self._send({**request, "path": os.fspath(path)})
        number = 0
        while True:
            kind, value = self._receive(limit)
            if kind == "end":
                self._slots = None
                return
            if kind == "error":
                self._slots = None
                raise VideoError(value)
            if kind == "log":
                _LOG.log(*value)
            elif kind == "opened":
                limit += factor * value["duration"]
                shape = (value["slots"], value["height"], value["width"], 3)
                self._slots = _view(self._memory, shape)
                yield kind, value
            elif kind == "frame":
                if self._slots is None:
                    raise _BrokenError("the decoder's process sent a frame before its shape.")
                index, at = value
                yield kind, (index, at, self._slots[number % len(self._slots)])
                number += 1
                self._send("free")
            elif kind != "alive":
                yield kind, value

    def _send(self, message: Any) -> None:
        # A child that has just died is noticed where its answer is missed.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._process.stdin.fileno(), json.dumps(message).encode() + b"\n")  # type: ignore[union-attr]

    def _receive(self, limit: float) -> tuple[str, Any]:
        """Wait for the next line; only this waiting counts, not what the caller does between two of them."""
        while not self._lines:
            left = min(self._stall, limit - self._waited)
            before = time.monotonic()
            ready = self._poll.poll(max(0.0, left) * 1000)
            self._waited += time.monotonic() - before
            if not ready:
                raise _BrokenError(self._overdue(limit))
            read = os.read(self._stdout, 1 << 16)
            if not read:
                raise _BrokenError(self._last_words())
            *self._lines, self._held = (self._held + read).split(b"\n")
        kind, value = json.loads(self._lines.pop(0))
        return kind, value

    def _overdue(self, limit: float) -> str:
        if self._waited >= limit:
            return (
                f"was waited for {self._waited:.0f} s, longer than a video of its length may take, and its decoder was "
                "killed. Is the disk very slow? Raise runtime.decode_limit_seconds or runtime.decode_limit_factor."
            )
        return (
            f"the decoder hung: no frame for {self._stall:g} s, and it was killed. The file is damaged, or its disk or "
            "network does not answer; copy it anew, or raise runtime.decode_stall_seconds."
        )

    def _last_words(self) -> str:
        try:
            code = self._process.wait(timeout=_PATIENCE_WITH_THE_DEAD)
        except subprocess.TimeoutExpired:
            return "the decoder's process closed its pipe and did not end."
        if code >= 0:
            return f"the decoder's process ended with code {code}; its own words are above, or in the run's log."
        why = "Was the machine out of memory?" if -code == signal.SIGKILL else "The file is damaged, or hits a bug."
        return f"the decoder's process died of {signal.Signals(-code).name}. {why} Play the file elsewhere, or copy it."


def _view(memory: int, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Look at shared memory as an array; the mapping ends with it."""
    mapped = mmap.mmap(memory, int(np.prod(shape)), mmap.MAP_SHARED, mmap.PROT_READ)
    return np.frombuffer(mapped, np.uint8).reshape(shape)
