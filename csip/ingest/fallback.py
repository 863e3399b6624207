"""PyAV's frames in the container's order: what is read where decord cannot be trusted.

Shapes: H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from csip.ingest.container import Alive, Image, pyav_frames, upright
from csip.ingest.scan import Scan

# Frames that wait for one that belongs before them, and bytes of them; codecs reorder 16 at most.
_HELD_BACK, _HELD_BYTES = 16, 256_000_000


def pyav_images(path: Path, scan: Scan, wanted: range, first: int, alive: Alive) -> Iterator[tuple[int, Image | None]]:
    """Give (frame index, (H, W, 3) RGB or nothing) of every frame from `first` on. A lost one shifts no other.

    Args:
        path: the video file.
        scan: of the same file.
        wanted: indices of the frames whose pictures are wanted.
        first: index of the first frame to give.
        alive: called again and again.

    Raises:
        DecoderLostError: the file does not read as it did when it was scanned.
    """
    held: dict[int, Image | None] = {}
    most = min(_HELD_BACK, _HELD_BYTES // (3 * scan.height * scan.width))
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
