"""The parent's end of a decoder: one child process, the pipes to it, the memory shared with it, and its deadlines."""

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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from csip.errors import DecoderLostError, StageError, VideoError

_LOG = logging.getLogger(__name__)

CHILD = ("-m", "csip.ingest.decoder_child")
"""What the Python interpreter is given to run."""

_PATIENCE_WITH_THE_DEAD = 5.0
_PATIENCE_WITH_THE_NEWBORN = 60.0  # at least: it loads its libraries, on a machine that may be busy
_ERRORS = {"error": VideoError, "lost": DecoderLostError}


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a process is waited for, beside the seconds for which it may be silent.

    Attributes:
        limit: seconds for a request.
        factor: seconds more for every second of the video.
        indexing: seconds more that it may be silent for once it has opened the video: decord reads the whole file for
            an index before it gives a sign of life.
    """

    limit: float
    factor: float
    indexing: float


class BrokenError(Exception):
    """The child died or had to be killed."""


class DecoderProcess:
    """One process, its two pipes and the memory it shares with this one."""

    def __init__(self, stall: float) -> None:
        """Start it, and wait until it is ready.

        Args:
            stall: seconds without a sign of life after which it has hung.

        Raises:
            StageError: it died or hung before.
        """
        self._stall = max(stall, _PATIENCE_WITH_THE_NEWBORN)
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
            self._receive(self._stall, self._stall)
        except BrokenError as error:
            self.kill()
            raise StageError(
                f"The decoder's process could not start: {error} Its own words are above, or in the run's log."
            ) from None
        self._stall = stall

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def _stdout(self) -> int:
        return self._process.stdout.fileno()  # type: ignore[union-attr]

    def interrupt(self) -> None:
        """Kill the process, from any thread; whoever reads from it is told that it died."""
        self._process.kill()

    def kill(self) -> None:
        """End it, and give back what it was reached by; again does nothing."""
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

    def ask(self, path: Path, request: dict[str, Any], patience: Patience) -> Iterator[tuple[str, Any]]:
        """Send a request, and give its answers.

        Raises:
            VideoError: what the child raised.
            BrokenError: the child died, hung, or was waited for longer than it may take.
        """
        self._waited = 0.0
        self._send({**request, "path": os.fspath(path)})
        number, limit, more = 0, patience.limit, 0.0
        while True:
            kind, value = self._receive(limit, self._stall + more)
            more = 0.0
            if kind == "end":
                self._slots = None
                return
            if kind in _ERRORS:
                self._slots = None
                raise _ERRORS[kind](value)
            if kind == "log":
                _LOG.log(*value)
            elif kind == "opened":
                limit += patience.factor * value["duration"]
                more = patience.indexing
                shape = (value["slots"], value["height"], value["width"], 3)
                self._slots = _view(self._memory, shape)
                yield kind, value
            elif kind == "frame":
                if self._slots is None:
                    raise BrokenError("the decoder's process sent a frame before its shape.")
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

    def _receive(self, limit: float, stall: float) -> tuple[str, Any]:
        """Wait for the next line; only this waiting counts, not what the caller does between two of them."""
        while not self._lines:
            left = min(stall, limit - self._waited)
            before = time.monotonic()
            ready = self._poll.poll(max(0.0, left) * 1000)
            self._waited += time.monotonic() - before
            if not ready:
                raise BrokenError(self._overdue(limit, stall))
            read = os.read(self._stdout, 1 << 16)
            if not read:
                raise BrokenError(self._last_words())
            *self._lines, self._held = (self._held + read).split(b"\n")
        kind, value = json.loads(self._lines.pop(0))
        return kind, value

    def _overdue(self, limit: float, stall: float) -> str:
        if self._waited >= limit:
            return (
                f"was waited for {self._waited:.0f} s, longer than a video of its length may take, and its decoder was "
                "killed. Is the disk very slow? Raise runtime.decode_limit_seconds or runtime.decode_limit_factor."
            )
        silent = f"{round(stall, 1):g} s"
        return (
            f"the decoder hung: no frame for {silent}, and it was killed. The file is damaged, or its disk or "
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
