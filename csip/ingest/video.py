"""The door to decord, and to PyAV as its referee and fallback: a video file to `Frames`.

decord decodes; PyAV first reads the container's packets (without decoding) and so knows how many frames there are and
when each is shown. Where decord is known to go wrong (edit lists, negative or repeated times, AV1, a frame count
other than the container's) and where it gives up, PyAV decodes. decord is read with `next()` only: its random access
gives other pictures than its sequential reading on such files.

Shapes: F frames, H and W pixels. Times are seconds from the container, pts its own ticks.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import av.error

# Before decord, which brings a zlib of its own: loaded after it, OpenCV can no longer decode any PNG.
import cv2  # noqa: F401
import decord
import numpy as np
import numpy.typing as npt

from csip.errors import SourceError, VideoError
from csip.types import Frames, IntArray

_log = logging.getLogger(__name__)

Image = npt.NDArray[np.uint8]

VIDEO_SUFFIXES = (
    *(".264", ".3gp", ".asf", ".avi", ".flv", ".h264", ".h265", ".hevc", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"),
)


_INDEXED = frozenset({"mov", "matroska", "avi"})

# A container's own duration is rounded, and some writers count in a pause at the end.
_CUT_SECONDS, _CUT_SHARE = 2.0, 0.02

# Titles and comments are in whatever code the recorder had; nobody reads them here, and PyAV would fail on them.
_METADATA = "replace"

_BLOCK = 1 << 20


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


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Scan:
    """The container's own account of the video stream.

    Attributes:
        pts: (F,) the shown packets' times in display order, ticks.
        timed: whether pts are the container's; else they count frames, and a tick is one frame at the nominal rate.
        tick: seconds a tick.
        missing: frames that the container announces and the file no longer holds.
        distrust: why decord cannot be used, or empty.
    """

    codec: str
    width: int
    height: int
    fps: float
    pts: IntArray
    timed: bool
    tick: float
    missing: int
    distrust: str

    @property
    def duration(self) -> float:
        """Seconds from the first frame's start to the last one's end."""
        return float((self.pts[-1] - self.pts[0]) * self.tick + 1 / self.fps)


def find_videos(source: Path) -> list[Path]:
    """List the videos a source names: the file itself, or every video in a folder and the folders below it.

    Hidden files and folders are passed over; a folder reached twice through links counts once.

    Args:
        source: a file or a folder.

    Returns:
        Paths in POSIX order, at least one.

    Raises:
        SourceError: there is no such path, or no video in the folder.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise SourceError(f"{source}: no such file or folder. Name a video, or a folder that holds videos.")
    found: list[Path] = []
    others, seen = 0, set()
    for folder, inner, names in os.walk(source, followlinks=True, onerror=_warn_unreadable):
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in seen:
            inner.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in names:
            path = Path(folder, name)
            if name.startswith(".") or path.suffix.lower() not in VIDEO_SUFFIXES or not path.is_file():
                others += 1
            else:
                found.append(path)
    if not found:
        raise SourceError(
            f"{source}: found no videos and {others} other files; looked for names that end in "
            f"{' '.join(VIDEO_SUFFIXES)}. Name a folder with videos, or a video by its own path."
        )
    return sorted(found, key=Path.as_posix)


def _warn_unreadable(error: OSError) -> None:
    _log.warning("A folder cannot be read and is passed over: %s", error)


def probe(path: Path, alive: Callable[[], None] = _nothing) -> VideoInfo:
    """Read a file's packets, without decoding more than one frame, and digest its bytes.

    Args:
        path: the video file.
        alive: called again and again while the file is read.

    Raises:
        VideoError: the file is missing, empty, unreadable, no video, or has no video stream.
    """
    scan = open_video(path, alive)
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
            alive()
    return VideoInfo(
        path,
        digest.hexdigest(),
        size,
        scan.codec,
        scan.width,
        scan.height,
        scan.fps,
        num_frames=len(scan.pts),
        announced_frames=len(scan.pts) + scan.missing,
        duration=scan.duration,
    )


def read_frames(path: Path, *, batch: int, threads: int) -> Iterator[Frames]:
    """Decode a video from its first frame to its last.

    Args:
        path: the video file.
        batch: frames a `Frames`; the last one may hold fewer.
        threads: decoding threads.

    Yields:
        Consecutive frames. Every frame that decodes comes before an error is raised.

    Raises:
        ValueError: batch or threads is less than 1.
        VideoError: the file cannot be opened, or fewer frames decoded than the container announces.
    """
    if batch < 1 or threads < 1:
        raise ValueError(f"read_frames: got batch {batch} and threads {threads}, expected 1 or more of each.")
    images = read_images(path, open_video(path), threads)
    held: list[tuple[int, float, Image]] = []
    try:
        for item in images:
            held.append(item)
            if len(held) == batch:
                yield _stack(held)
                held.clear()
    except VideoError:
        if held:
            yield _stack(held)
        raise
    if held:
        yield _stack(held)


def _stack(items: list[tuple[int, float, Image]]) -> Frames:
    index, time, pixels = zip(*items, strict=True)
    return Frames(np.stack(pixels), np.array(index, dtype=np.int64), np.array(time, dtype=np.float64))


def read_images(
    path: Path, scan: Scan, threads: int, alive: Callable[[], None] = _nothing
) -> Iterator[tuple[int, float, Image]]:
    """Give (frame index, seconds, (H, W, 3) RGB) of every frame that decodes.

    Args:
        path: the video file.
        scan: of the same file.
        threads: decoding threads.
        alive: called again and again while frames are decoded that nobody gets.

    Raises:
        VideoError: fewer frames decoded than the container announces.
    """
    read = 0
    for item in _decode(path, scan, threads, alive):
        read += 1
        yield item
    expected = len(scan.pts) + scan.missing
    if read < expected:
        raise VideoError(
            f"{path}: read {read} of {expected} frames; the file is damaged or was cut off. "
            "What was read is kept; copy or record the video again to get the rest."
        )


def _decode(path: Path, scan: Scan, threads: int, alive: Callable[[], None]) -> Iterator[tuple[int, float, Image]]:
    """Give (frame index, seconds, (H, W, 3) RGB) of every frame, from decord as far as it can be trusted."""
    why, done = scan.distrust, 0
    if not why:
        decord.logging.set_level(decord.logging.QUIET)
        try:
            # It takes 0 for "as many as there are", and then fails on healthy VP9: the count is always given.
            reader = decord.VideoReader(str(path), num_threads=threads)
            if len(reader) == len(scan.pts):
                for image in _without_padding(_decord_images(reader), path, alive):
                    yield done, float(scan.pts[done] * scan.tick), image
                    done += 1
            else:
                why = f"decord counts {len(reader)} frames, the container {len(scan.pts)}"
        except (decord.DECORDError, RuntimeError) as error:
            why = f"decord failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    if not why and done < len(scan.pts):
        why = "decord ended early"
    if why:
        _log.warning("%s: from frame %d on PyAV decodes, because %s.", path, done, why)
        yield from _pyav_images(path, scan, threads, done, alive)


def _decord_images(reader: decord.VideoReader) -> Iterator[Image]:
    while True:
        try:
            image = reader.next()
        except StopIteration:
            return
        yield image.asnumpy()


def _without_padding(images: Iterator[Image], path: Path, alive: Callable[[], None]) -> Iterator[Image]:
    """Drop the copies of the last picture that decord puts in the place of frames it could not decode.

    Identical pictures are normal in still scenes. Only where a video ends on some are its frames counted with PyAV.
    """
    last: Image | None = None
    given = copies = 0
    for image in images:
        if last is not None and np.array_equal(image[::16], last[::16]) and np.array_equal(image, last):
            copies += 1
            continue
        if last is not None:
            yield from (last for _ in range(copies))
            given += copies
        yield image
        given, copies, last = given + 1, 0, image
    if last is not None and copies:
        real = sum(1 for _ in _pyav_frames(path, 1, alive))
        for _ in range(min(copies, real - given)):
            yield last


def _pyav_frames(path: Path, threads: int, alive: Callable[[], None]) -> Iterator[av.VideoFrame]:
    """Decode with PyAV, past packets that do not decode."""
    with av.open(str(path), metadata_errors=_METADATA) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = threads
        # Threads share a frame's slices: threads that share out frames would lose whole ones beside a damaged one.
        stream.codec_context.thread_type = "SLICE"
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                alive()
                yield from packet.decode()
            except av.error.InvalidDataError:
                continue
            except (av.error.FFmpegError, OSError) as error:
                _log.warning("%s: decoding stopped: %s", path, error)
                return


def _pyav_images(
    path: Path, scan: Scan, threads: int, first: int, alive: Callable[[], None]
) -> Iterator[tuple[int, float, Image]]:
    """As `_decode`, from frame index `first` on. A frame is named by its time, so a lost one shifts no other."""
    index = -1
    for frame in _pyav_frames(path, threads, alive):
        after = index + 1
        if scan.timed and frame.pts is not None:
            after = max(after, int(np.searchsorted(scan.pts, frame.pts)))
            if after >= len(scan.pts) or scan.pts[after] != frame.pts:
                continue  # Before an edit list's start, or without its references: the container does not show it.
        index = after
        if index >= first:
            time = scan.pts[index] if index < len(scan.pts) else index
            yield index, float(time * scan.tick), _upright(frame, scan)


def _upright(frame: av.VideoFrame, scan: Scan) -> Image:
    """(H, W, 3) RGB, turned by the rotation the container asks for, as decord does by itself."""
    turns = round(frame.rotation / 90) % 4
    width, height = (scan.height, scan.width) if turns % 2 else (scan.width, scan.height)
    image = frame.to_ndarray(format="rgb24", width=width, height=height)
    return np.ascontiguousarray(np.rot90(image, turns), dtype=np.uint8)


def open_video(path: Path, alive: Callable[[], None] = _nothing) -> Scan:
    """Read every packet of the first video stream, and decode one frame for its shape.

    Raises:
        VideoError: see `probe`.
    """
    if not path.is_file():
        raise VideoError(f"{path}: no such file. Name a video file that exists.")
    size = path.stat().st_size
    if size == 0:
        raise VideoError(f"{path}: the file is empty (0 bytes), expected a video. Copy or record it again.")
    try:
        with av.open(str(path), metadata_errors=_METADATA) as container:
            if not container.streams.video:
                kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "no streams"
                raise VideoError(f"{path}: found {kinds}, expected a video stream. Leave the file out of the source.")
            scan = _read_packets(container, path, alive)
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(
            f"{path}: {size} bytes that cannot be read as a video ({error.strerror}); expected a complete file in a "
            "format that FFmpeg knows. Play the file elsewhere, or copy it again."
        ) from error
    return scan


def _read_packets(container: av.container.InputContainer, path: Path, alive: Callable[[], None]) -> Scan:
    stream = container.streams.video[0]
    codec = stream.codec_context.codec.canonical_name
    # In other containers decord loses the first group of pictures and repeats the last frame as often.
    indexed = not _INDEXED.isdisjoint(container.format.name.split(","))
    packets, end = _shown_packets(container, indexed, alive)
    frame = next(_pyav_frames(path, 1, alive), None)
    if not packets or frame is None:
        raise VideoError(
            f"{path}: found a {codec} stream of {len(packets)} packets, none of which decodes; expected at "
            "least one frame. Copy or record the video again."
        )
    pts, dts = ([time for time in column if time is not None] for column in zip(*packets, strict=True))
    timed = len(pts) == len(packets) and dts == sorted(dts)
    ticks = np.sort(np.array(pts if timed else range(len(packets)), dtype=np.int64))
    rate = float(stream.guessed_rate or stream.average_rate or 25)
    tick = float(stream.time_base) if timed and stream.time_base else 1 / rate
    span = float(ticks[-1] - ticks[0]) * tick
    fps = round((len(ticks) - 1) / span, 6) if span > 0 else rate
    # Of an edit list's hidden packets the demuxer gives some only.
    held = _count_packets(path, alive) if indexed and stream.frames > len(packets) else len(packets)
    missing = max(stream.frames - held, 0) if indexed else 0
    if indexed and not stream.frames and container.duration:
        left = container.duration / av.time_base - end
        missing = round(left * rate) if left > max(_CUT_SECONDS, _CUT_SHARE * end) else 0
    distrust = {
        f"decord misreads {container.format.name} files": not indexed,
        "decord cannot read AV1": codec == "av1",
        "its packets have no times, or times that run backwards": not timed,
        "its frames start before time zero or share a time": bool(ticks[0] < 0 or (np.diff(ticks) == 0).any()),
        "an edit list hides frames": held > len(packets),
    }
    turned = round(frame.rotation / 90) % 2 == 1
    width, height = (frame.height, frame.width) if turned else (frame.width, frame.height)
    why = "; ".join(reason for reason, holds in distrust.items() if holds)
    return Scan(codec, width, height, fps, ticks, timed, tick, missing, why)


def _shown_packets(
    container: av.container.InputContainer, indexed: bool, alive: Callable[[], None]
) -> tuple[list[tuple[int | None, int | None]], float]:
    """List (pts, dts) of the packets whose frames are shown, and when the last packet of any stream ends, seconds."""
    packets: list[tuple[int | None, int | None]] = []
    end, joined, first = 0.0, indexed, None
    for packet in container.demux():
        alive()
        if packet.pts is not None and packet.time_base:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream != container.streams.video[0] or not packet.size or packet.is_discard:
            continue
        if not joined:
            # A stream may start midway: what comes before its first key frame, or is shown before it, never decodes.
            if not packet.is_keyframe:
                continue
            joined, first = True, packet.pts
        if first is None or packet.pts is None or packet.pts >= first:
            packets.append((packet.pts, packet.dts))
    return packets, end


def _count_packets(path: Path, alive: Callable[[], None]) -> int:
    """Count the packets in the file, those that an edit list hides among them."""
    with av.open(str(path), metadata_errors=_METADATA, options={"ignore_editlist": "1"}) as container:
        count = 0
        for packet in container.demux(video=0):
            alive()
            count += packet.size > 0
        return count
