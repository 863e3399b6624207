"""PyAV's frames in the container's order: what is read where decord cannot be trusted or held back.

Several threads decode as far as there is no complaint, and one from there on: what is filled in for damage depends on
their number, and on which of them is first.

Shapes: H and W pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from csip.ingest.container import AHEAD, Alive, Image, VideoFrame, pyav_frames, sound_frames, upright
from csip.ingest.scan import Scan

# Bytes of frames that wait: for one that belongs before them, or until they are known to be sound.
_HELD_BYTES = 256_000_000

# Some damage is never complained of; these show it alike with any number of threads, unlike MPEG-4 or VP8.
_THREADED = frozenset({"av1", "h264", "hevc", "mjpeg", "vp9"})


def pyav_images(
    path: Path, scan: Scan, threads: int, wanted: range, first: int, alive: Alive
) -> Iterator[tuple[int, Image | None]]:
    """Give (frame index, (H, W, 3) RGB or nothing) of every frame from `first` on. A lost one shifts no other.

    Args:
        path: the video file.
        scan: of the same file.
        threads: decoding threads.
        wanted: indices of the frames whose pictures are wanted.
        first: index of the first frame to give.
        alive: called again and again.

    Raises:
        DecoderLostError: the file does not read as it did when it was scanned.
    """
    at = -1
    waiting = AHEAD * 1.5 * scan.height * scan.width  # bytes, of 8 bits and with a colour for four pixels
    if scan.known_by == "pts" and waiting <= _HELD_BYTES:
        for frame in _sound(path, scan, threads if scan.codec in _THREADED else 1, alive):
            index = scan.place(frame.pts, frame.dts, at)
            if index is None:
                continue  # Before an edit list's start: the container does not show it.
            if index != at + 1:
                break
            at = index
            if at >= first:
                yield at, upright(frame, scan.height, scan.width) if at in wanted else None
    if at + 1 < len(scan.pts):
        yield from _careful(path, scan, wanted, max(first, at + 1), alive)


def _sound(path: Path, scan: Scan, threads: int, alive: Alive) -> Iterator[VideoFrame]:
    """Give the frames that nothing can have hurt."""
    waiting: deque[VideoFrame] = deque()
    seen = 0
    with closing(sound_frames(path, threads, alive, scan.packets)) as frames:
        for frame in frames:
            seen += scan.place(frame.pts, frame.dts, -1) is not None
            waiting.append(frame)
            if len(waiting) > AHEAD:
                yield waiting.popleft()
    if seen == len(scan.pts):
        yield from waiting


def _careful(path: Path, scan: Scan, wanted: range, first: int, alive: Alive) -> Iterator[tuple[int, Image | None]]:
    """As `pyav_images`, past everything that does not decode."""
    held: dict[int, Image | None] = {}
    most = min(AHEAD, _HELD_BYTES // (3 * scan.height * scan.width))
    at, named = first - 1, -1
    for frame in pyav_frames(path, alive, scan.packets):
        index = scan.place(frame.pts, frame.dts, named)
        if index is None:
            continue  # Before an edit list's start, or without its references: the container does not show it.
        named = index
        while (index <= at or index in held) and scan.shares_time(index):
            index += 1
        if index > at:
            # Some decoders first make up one in its place. PyAV's own frame is let go at once: what damage is filled in
            # with are its buffers.
            held[index] = upright(frame, scan.height, scan.width) if index in wanted else None
        # Beside damage frames come out of their order; where none is missing before it, none is held back.
        while at + 1 in held or len(held) > most:
            at = min(held)
            yield at, held.pop(at)
    for index in sorted(held):
        yield index, held[index]
