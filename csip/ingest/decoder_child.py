"""The process behind `csip.ingest.decoder.Decoder`: reads requests, writes frames into shared memory.

It knows neither torch nor the store: it starts in a fraction of a second, and what crashes it takes nothing along.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import mmap
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from csip.errors import DecoderLostError, VideoError
from csip.ingest.content import SameContent
from csip.ingest.scan import LastScan, Scan
from csip.ingest.video import probe, read_images

_SECONDS_BETWEEN_SIGNS = 1.0
_MOST_MEMORY = 256_000_000  # bytes of the ring, where two frames leave a choice
_BATCHES_AHEAD = 2


class Parent:
    """The two pipes to the process that asks."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._requests, self._held = sys.stdin.fileno(), b""
        # Libraries that print must not break the stream of answers.
        self._answers = os.dup(sys.stdout.fileno())
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self._poll = select.poll()
        self._poll.register(self._requests, select.POLLIN)
        self._last_sign = 0.0

    def receive(self) -> Any:
        """Wait for the next line; end the process when there will be none."""
        while b"\n" not in self._held:
            while not self._poll.poll(_SECONDS_BETWEEN_SIGNS * 1000):
                # A process forked from the parent may hold its end of the pipe open.
                if os.getppid() != self._pid:
                    raise SystemExit(0)
            read = os.read(self._requests, 1 << 16)
            if not read:
                raise SystemExit(0)
            self._held += read
        line, _, self._held = self._held.partition(b"\n")
        return json.loads(line)

    def send(self, kind: str, value: Any = None) -> None:
        """Write one line; end the process when nobody reads it."""
        try:
            os.write(self._answers, json.dumps([kind, value]).encode() + b"\n")
        except BrokenPipeError:
            raise SystemExit(0) from None

    def alive(self) -> None:
        """Say now and then that work goes on which gives no frames."""
        now = time.monotonic()
        if now - self._last_sign > _SECONDS_BETWEEN_SIGNS:
            self._last_sign = now
            self.send("alive")


class _LogToParent(logging.Handler):
    def __init__(self, parent: Parent) -> None:
        super().__init__()
        self._parent = parent

    def emit(self, record: logging.LogRecord) -> None:
        self._parent.send("log", [record.levelno, record.getMessage()])


def serve(parent: Parent, memory: int) -> None:
    """Answer requests until the parent is gone."""
    parent.send("ready")
    scan_file = LastScan()  # to be looked at and then read is what happens to a file
    while True:
        request = parent.receive()
        path = Path(request["path"])
        try:
            if request["do"] == "probe":
                info = dataclasses.asdict(probe(path, parent.alive, scan_file))
                parent.send("info", {name: value for name, value in info.items() if name != "path"})
            else:
                same = SameContent(path, request["sha256"], tuple(request["look"]), parent.alive)
                same.require()
                _give_frames(parent, memory, path, request, scan_file(path, parent.alive), same)
        except DecoderLostError as error:
            parent.send("lost", str(error))
        except VideoError as error:
            parent.send("error", str(error))
        else:
            parent.send("end")


def _give_frames(
    parent: Parent, memory: int, path: Path, request: dict[str, Any], scan: Scan, same: SameContent
) -> None:
    """Decode, and put every wanted frame into the ring's next slot as soon as that is free.

    The last frame of a batch is held back until it is known that none of them is of another content.
    """
    stop = sys.maxsize if request["stop"] is None else request["stop"]
    wanted = range(request["start"], stop, request["stride"])
    shape = (scan.height, scan.width, 3)
    size = int(np.prod(shape))
    slots = max(2, min(_BATCHES_AHEAD * request["batch"], _MOST_MEMORY // size))
    os.ftruncate(memory, slots * size)
    ring = np.frombuffer(mmap.mmap(memory, slots * size), np.uint8).reshape(slots, *shape)
    opened = {"height": scan.height, "width": scan.width, "slots": slots, "duration": scan.duration}
    parent.send("opened", opened)
    sent, free = 0, slots
    try:
        for index, at, picture in read_images(path, scan, request["threads"], wanted, parent.alive):
            while not free:
                parent.receive()
                free += 1
            ring[sent % slots] = picture
            if (sent + 1) % request["batch"] == 0:
                same.require()
            parent.send("frame", [index, at])
            sent, free = sent + 1, free - 1
    except VideoError:
        # Or it is not damaged, but another one's end.
        same.require()
        raise
    else:
        same.require()
    finally:
        # What the parent says of slots it empties later must not be read as requests.
        while free < slots:
            parent.receive()
            free += 1
        del ring
        os.ftruncate(memory, 0)


def main() -> None:
    """Serve the parent whose id, memory and lifeline are on the command line."""
    memory, lifeline, pid = map(int, sys.argv[1:4])
    # The group may be told to stop; the parent then saves what it has, which may take frames, and ends us.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # When the parent is gone the kernel kills us, however deep in native code: no thread of Python's is needed.
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    parent = Parent(pid)
    logging.getLogger().addHandler(_LogToParent(parent))
    serve(parent, memory)


if __name__ == "__main__":
    main()
