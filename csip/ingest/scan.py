"""What a video's container says of its frames: how many, when each is shown, and whether decord can be trusted.

Packets are read, not decoded.

Shapes: F frames. Times are seconds from the container, pts its own ticks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import av
import av.error
import numpy as np

from csip.errors import VideoError
from csip.ingest.container import Alive, check_file, nothing, open_container, picture_stream, pyav_frames, spell
from csip.types import IntArray

_INDEXED = frozenset({"mov", "matroska", "avi"})

# A container's own duration is rounded, and some writers count in a pause at the end.
_CUT_SECONDS, _CUT_SHARE = 2.0, 0.02

# 8192 x 8192: what a few bytes of a header may claim, and decoders then reserve memory for.
_MOST_PIXELS = 1 << 26


@dataclass(frozen=True, slots=True)
class Scan:
    """The container's own account of the video stream.

    Attributes:
        codec: as FFmpeg names it ("h264").
        width: of a frame as it is shown (rotation applied), pixels.
        height: of a frame as it is shown, pixels.
        fps: mean frames a second.
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


def scan_video(path: Path, alive: Alive = nothing) -> Scan:
    """Read every packet of the file, and decode one frame for its shape.

    Args:
        path: the video file.
        alive: called again and again meanwhile.

    Raises:
        VideoError: the file is missing, empty, unreadable, no video, or has no video stream.
    """
    size, *_ = check_file(path)
    try:
        with open_container(path) as container:
            return _read_packets(container, path, alive)
    except av.error.ArgumentError as error:
        raise VideoError(
            f"{spell(path)}: FFmpeg takes its {size} bytes for something that is no video file, such as a playlist or "
            "a picture; expected a video that holds its own frames. Leave the file out of the source, or convert it."
        ) from error
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(
            f"{spell(path)}: {size} bytes that cannot be read as a video ({error.strerror}); expected a complete file "
            "in a format that FFmpeg knows. Play the file elsewhere, or copy it again."
        ) from error


class LastScan:
    """Scans files, and knows the last one again while it does not change: asked twice, it reads the packets once."""

    def __init__(self) -> None:
        self._known: tuple[object, Scan] | None = None

    def __call__(self, path: Path, alive: Alive = nothing) -> Scan:
        """Do as `scan_video`."""
        what = (path, check_file(path))
        if self._known is None or self._known[0] != what:
            self._known = (what, scan_video(path, alive))
        return self._known[1]


def _read_packets(container: av.container.InputContainer, path: Path, alive: Alive) -> Scan:
    stream = _stream(container, path)
    codec = stream.codec_context.codec.canonical_name
    # In other containers decord loses the first group of pictures and repeats the last frame as often.
    indexed = not _INDEXED.isdisjoint(container.format.name.split(","))
    packets = _shown_packets(container, stream, indexed, alive)
    frame = next(pyav_frames(path, 1, alive), None)
    if not packets.count or frame is None:
        raise VideoError(
            f"{spell(path)}: found a {codec} stream of {packets.count} packets, none of which decodes; expected at "
            "least one frame. Copy or record the video again."
        )
    timed = len(packets.pts) == packets.count and packets.dts == sorted(packets.dts)
    ticks = np.sort(np.array(packets.pts if timed else range(packets.count), dtype=np.int64))
    rate = float(stream.guessed_rate or stream.average_rate or 25)
    tick = float(stream.time_base) if timed and stream.time_base else 1 / rate
    span = float(ticks[-1] - ticks[0]) * tick
    fps = round((len(ticks) - 1) / span, 6) if span > 0 else rate
    # Of an edit list's hidden packets the demuxer gives some only.
    held = _count_packets(path, alive) if indexed and stream.frames > packets.count else packets.count
    missing = max(stream.frames - held, 0) if indexed else 0
    if indexed and not stream.frames and container.duration:
        left = container.duration / av.time_base - packets.end
        missing = round(left * rate) if left > max(_CUT_SECONDS, _CUT_SHARE * packets.end) else 0
    distrust = {
        f"decord misreads {container.format.name} files": not indexed,
        "decord cannot read AV1": codec == "av1",
        "it has several video streams": len(container.streams.video) > 1,
        "its packets have no times, or times that run backwards": not timed,
        "its frames start before time zero or share a time": bool(ticks[0] < 0 or (np.diff(ticks) == 0).any()),
        # Where the first frames do not decode it numbers the others from 0 on.
        "it does not start with a key frame": not packets.key_first,
        "an edit list hides frames": held > packets.count,
        "its container is damaged": not packets.whole,
        # It reserves memory for all of them, and the process dies where there is not so much.
        "more frames are announced than there are": missing > packets.count,
    }
    turned = round(frame.rotation / 90) % 2 == 1
    width, height = (frame.height, frame.width) if turned else (frame.width, frame.height)
    why = "; ".join(reason for reason, holds in distrust.items() if holds)
    return Scan(codec, width, height, fps, ticks, timed, tick, missing if packets.whole else max(missing, 1), why)


def _stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    """Find the video stream, and refuse one whose header claims too much.

    Raises:
        VideoError: there is none that could be read.
    """
    stream = picture_stream(container)
    if stream is None:
        kinds = ", ".join(sorted({one.type for one in container.streams})) or "no streams"
        what = "a cover picture or an unknown codec" if container.streams.video else kinds
        raise VideoError(f"{spell(path)}: found {what}, expected a video stream. Leave the file out of the source.")
    pixels = stream.codec_context.width * stream.codec_context.height
    if pixels > _MOST_PIXELS:
        raise VideoError(
            f"{spell(path)}: its header claims frames of {stream.codec_context.width} x {stream.codec_context.height} "
            f"pixels; expected {_MOST_PIXELS} pixels at most. If that is true, scale the video down."
        )
    return stream


@dataclass(slots=True)
class _Packets:
    """What reading the packets showed.

    Attributes:
        pts: of those whose frames are shown, ticks, as far as they have any.
        dts: the same.
        count: of them.
        end: when the last packet of any stream ends, seconds.
        key_first: the first of them is a key frame, and none is shown before it.
        whole: reading came to the file's end.
    """

    pts: list[int] = field(default_factory=list)
    dts: list[int] = field(default_factory=list)
    count: int = 0
    end: float = 0.0
    key_first: bool = True
    whole: bool = True


def _shown_packets(
    container: av.container.InputContainer, stream: av.VideoStream, indexed: bool, alive: Alive
) -> _Packets:
    found = _Packets()
    joined, first = indexed, None
    try:
        for packet in container.demux():
            alive()
            if packet.pts is not None and packet.time_base:
                found.end = max(found.end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream != stream or not packet.size or packet.is_discard:
                continue
            if not joined:
                # What comes before its first key frame, or is shown before it, never decodes: it was joined midway.
                if not packet.is_keyframe:
                    continue
                joined, first = True, packet.pts
            if first is None or packet.pts is None or packet.pts >= first:
                found.key_first &= packet.is_keyframe or found.count > 0
                found.count += 1
                found.pts += [] if packet.pts is None else [packet.pts]
                found.dts += [] if packet.dts is None else [packet.dts]
    except av.error.InvalidDataError:
        found.whole = False
    found.key_first &= not found.pts or found.pts[0] == min(found.pts)
    return found


def _count_packets(path: Path, alive: Alive) -> int:
    """Count the packets in the file, those that an edit list hides among them."""
    with open_container(path, ignore_editlist="1") as container:
        count = 0
        for packet in container.demux(picture_stream(container)):
            alive()
            count += packet.size > 0
        return count
