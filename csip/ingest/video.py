"""The door to decord: a video file to its pictures, with PyAV as referee and fallback.

decord decodes, but only what the container's own account (`csip.ingest.scan`) says of the frames is believed, and no
picture before PyAV has decoded the same frame without a complaint: decord shows what it could not decode, and lets
later frames move up where it lost one. Where it is known to go wrong (edit lists, negative or repeated times, AV1, the
colours of 10 bits and of interlaced frames), where its count, its times or the size of its pictures are not the
container's, where its referee complains, and where it gives up, PyAV decodes. It is read with `next()` only: its random
access gives other pictures than its sequential reading.

While nobody takes its pictures, decord decodes on into memory, to the end of the file. So only videos of which all
pictures together are small are decord's; the longer ones are PyAV's.

Shapes: F frames, H and W pixels.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from csip.errors import DecoderLostError, VideoError
from csip.ingest.container import AHEAD, Alive, FileLook, Image, check_file, nothing, sound_times, spell
from csip.ingest.content import digest_file
from csip.ingest.fallback import pyav_images
from csip.ingest.scan import Scan, scan_video

# isort: split
# Last, as decord brings a zlib and codecs of its own: loaded after it, OpenCV can no longer decode any PNG, and PyAV
# calls decord's older libvpx.
import cv2  # noqa: F401
import decord

_log = logging.getLogger(__name__)

_EVERY = range(sys.maxsize)
_COMPARED = 1 << 14  # frames at once: a day has millions

# Bytes of a video's pictures. While nobody takes them decord decodes on to the file's end, and cannot be held back.
_MOST_AHEAD = 256_000_000

# Not one picture is to be made up by decord in the place of frames that it could not decode. It takes 0 for "any
# number", and a share of all frames for the number that it comes to.
_NONE = 1e-9


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a video file says about itself.

    Attributes:
        path: of the file.
        sha256: of the file's bytes, 64 hexadecimal digits.
        bytes: the file's size.
        codec: as FFmpeg names it ("h264").
        width: of a frame as it is shown (rotation applied), pixels.
        height: of a frame as it is shown, pixels.
        fps: mean frames a second.
        num_frames: frames that the packets in the file hold and the container shows.
        announced_frames: frames that the container says there are; more than `num_frames` where the file breaks off.
        duration: seconds from the first frame's start to the last one's end.
        look: what the file looked like from outside; see `check_file`.
    """

    path: Path
    sha256: str
    bytes: int
    codec: str
    width: int
    height: int
    fps: float
    num_frames: int
    announced_frames: int
    duration: float
    look: FileLook


def probe(path: Path, alive: Alive = nothing, scan_file: Callable[[Path, Alive], Scan] = scan_video) -> VideoInfo:
    """Read a file's packets, without decoding more than one frame, and digest its bytes.

    Args:
        path: the video file.
        alive: called again and again while the file is read.
        scan_file: `scan_video`, or a `LastScan`.

    Raises:
        VideoError: the file is missing, empty, unreadable, no video, has no video stream, or changes meanwhile.
    """
    look = check_file(path)
    scan = scan_file(path, alive)
    sha256 = digest_file(path, look, alive)
    return VideoInfo(
        path,
        sha256,
        look[0],
        scan.codec,
        scan.width,
        scan.height,
        scan.fps,
        num_frames=len(scan.pts),
        announced_frames=len(scan.pts) + scan.missing,
        duration=scan.duration,
        look=look,
    )


def read_images(
    path: Path, scan: Scan, threads: int, wanted: range = _EVERY, alive: Alive = nothing
) -> Iterator[tuple[int, float, Image]]:
    """Give (frame index, seconds, (H, W, 3) RGB) of every wanted frame that decodes.

    The others before it are decoded too: a decoder that starts in the middle may give other pictures.

    Args:
        path: the video file.
        scan: of the same file.
        threads: decoding threads.
        wanted: indices of frames, numbered as in the whole video.
        alive: called again and again while no frames are given.

    Raises:
        VideoError: the video was read to its end, and fewer frames decoded than the container announces.
    """
    read = 0
    for index, image in _decode(path, scan, threads, wanted, alive):
        if index >= wanted.stop:
            return
        read += 1
        if image is None:
            alive()
            continue
        yield index, scan.seconds(index), image
    expected = len(scan.pts) + scan.missing
    if read < expected:
        raise VideoError(
            f"{spell(path)}: read {read} of {expected} frames; the file is damaged or was cut off. "
            "What was read is kept; copy or record the video again to get the rest."
        )


def _decode(path: Path, scan: Scan, threads: int, wanted: range, alive: Alive) -> Iterator[tuple[int, Image | None]]:
    """Give (frame index, (H, W, 3) RGB or nothing) of every frame, from decord as far as it can be trusted."""
    if 3 * scan.height * scan.width * len(scan.pts) > _MOST_AHEAD:
        yield from pyav_images(path, scan, threads, wanted, 0, alive)
        return
    done, why = 0, scan.distrust
    if not why:
        done, why = yield from _decord_images(path, scan, threads, wanted, alive)
    if why:
        _log.warning("%s: from frame %d on PyAV decodes, because %s.", spell(path), done, why)
        yield from pyav_images(path, scan, threads, wanted, done, alive)


def _decord_images(
    path: Path, scan: Scan, threads: int, wanted: range, alive: Alive
) -> Generator[tuple[int, Image | None], None, tuple[int, str]]:
    """As `_decode`; return how many it gave, and why not all of them.

    Raises:
        DecoderLostError: nobody knows which frames it gave.
    """
    done = 0
    decord.logging.set_level(decord.logging.QUIET)
    try:
        # It takes 0 for "as many as there are", and then fails on healthy VP9: the count is always given.
        reader = decord.VideoReader(os.path.abspath(path), num_threads=threads, fault_tol=_NONE)
        if why := _disagreement(reader, scan):
            return done, why
        for image in _refereed(reader, path, scan, threads, alive):
            # Of few pixels a row it takes the room between rows for more of them.
            if tuple(image.shape) != (scan.height, scan.width, 3):
                return done, f"decord gives a picture of {' x '.join(map(str, image.shape))} numbers"
            yield done, np.asarray(np.from_dlpack(_Lent(image)), np.uint8) if done in wanted else None
            done += 1
    except decord.DECORDLimitReachedError as error:
        raise DecoderLostError(
            f"{spell(path)}: decord lost frames of it that PyAV decodes, so that those it gave may be others than they "
            "seem. Convert the video, for instance with ffmpeg, or copy it anew."
        ) from error
    except (decord.DECORDError, RuntimeError) as error:
        return done, f"decord failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    return done, "" if done == len(scan.pts) else "the file is damaged there, or goes on with frames of another kind"


class _Lent:
    """A picture of decord's as NumPy borrows it, since a copy more costs a tenth of the decoding."""

    def __init__(self, image: Any) -> None:
        self._image = image

    def __dlpack__(self, *, stream: None = None) -> Any:
        return self._image.to_dlpack()

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # a CPU's memory


def _disagreement(reader: decord.VideoReader, scan: Scan) -> str:
    """Say where decord's own account of the frames is not the container's, or nothing."""
    count = len(scan.pts)
    if len(reader) != count:
        return f"decord counts {len(reader)} frames, the container {count}"
    patience = 0.5 * scan.duration / count + 1e-6 * scan.duration
    begun = 0.0
    for first in range(0, count, _COMPARED):
        some = range(first, min(first + _COMPARED, count))
        times = reader.get_frame_timestamp(some)[:, 0].astype(np.float64)
        begun = begun if first else times[0]
        # Some of its versions count from the first frame on; and its times are of 32 bits.
        shift = np.abs((times - begun) - (scan.pts[some.start : some.stop] - scan.pts[0]) * scan.tick)
        if shift.max() > patience:
            return f"decord shows frame {first + shift.argmax()} {shift.max():.3f} s off"
    return ""


def _refereed(reader: Any, path: Path, scan: Scan, threads: int, alive: Alive) -> Iterator[Any]:
    """Give decord's pictures, each after PyAV has decoded its frame, and all before it, without a complaint.

    decord says neither which frame a picture is, nor that it is damaged, nor that one before it was lost.
    """
    with closing(sound_times(path, threads, alive)) as sound:
        seen = 0
        for expected, at in zip(scan.pts.tolist(), sound, strict=False):
            if at != expected:
                return
            seen += 1
            if seen > AHEAD and (image := _next(reader)) is not None:
                yield image
    for _ in range(min(seen, AHEAD) if seen == len(scan.pts) else 0):
        if (image := _next(reader)) is not None:
            yield image


def _next(reader: Any) -> Any:
    try:
        return reader.next()
    except StopIteration:
        return None
