"""A video file's packets, read and not decoded: how many, at which times, and what the container says beside."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from pathlib import Path

import av
import av.error

from csip.errors import VideoError
from csip.ingest.container import Alive, demux, open_container, picture_stream, spell

_INDEXED = frozenset({"mov", "matroska", "avi"})

# 8192 x 8192: what a few bytes of a header may claim, and decoders then reserve memory for.
_MOST_PIXELS = 1 << 26


@dataclass(slots=True)
class Packets:
    """What the container says of its video stream, and what reading the stream's packets showed.

    Attributes:
        form: the container's, as FFmpeg names it: one or more names with commas between them.
        codec: as FFmpeg names it ("h264").
        streams: of video in the container.
        rate: nominal, frames a second.
        tick: seconds a tick; 0 where the container has none.
        announced: frames that the container says there are; 0 where it does not say.
        length: seconds that the container says it has; 0 where it does not say.
        reorders: the codec says that frames may be shown in another order than they are stored in.
        pts: of the packets whose frames are shown, ticks, as far as they have any.
        dts: the same.
        count: of them.
        held: all packets of video.
        end: when the last packet of any stream ends, seconds.
        key_first: the first of them is a key frame, and none is shown before it.
        whole: reading came to the file's end.
    """

    form: str
    codec: str
    streams: int
    rate: float
    tick: float
    announced: int
    length: float
    reorders: bool
    # A day has millions: as objects they would fill memory.
    pts: array[int] = field(default_factory=lambda: array("q"))
    dts: array[int] = field(default_factory=lambda: array("q"))
    count: int = 0
    held: int = 0
    end: float = 0.0
    key_first: bool = True
    whole: bool = True

    def is_of(self, forms: frozenset[str]) -> bool:
        """Tell whether the container is of one of these forms."""
        return not forms.isdisjoint(self.form.split(","))

    @property
    def indexed(self) -> bool:
        """Whether the container is of a form that has an index, and begins with a key frame."""
        return self.is_of(_INDEXED)


def read_packets(path: Path, alive: Alive) -> Packets:
    """Read a file from its first packet to its last.

    Args:
        path: the video file.
        alive: called again and again meanwhile.

    Raises:
        VideoError: it has no video stream that could be read.
        av.error.FFmpegError: FFmpeg cannot open it, or its disk or network fails.
    """
    with open_container(path) as container:
        stream = _stream(container, path)
        context = stream.codec_context
        found = Packets(
            container.format.name,
            context.codec.canonical_name,
            len(container.streams.video),
            float(stream.guessed_rate or stream.average_rate or 25),
            float(stream.time_base or 0),
            stream.frames,
            (container.duration or 0) / av.time_base,
            context.has_b_frames,
        )
        try:
            _fill(found, container, stream, alive)
        except av.error.InvalidDataError:
            found.whole = False
    found.key_first &= not found.pts or found.pts[0] == min(found.pts)
    return found


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


def _fill(found: Packets, container: av.container.InputContainer, stream: av.VideoStream, alive: Alive) -> None:
    joined, first = found.indexed, None
    for packet in demux(container):
        alive()
        if packet.pts is not None and packet.time_base:
            found.end = max(found.end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream != stream or not packet.size:
            continue
        found.held += 1
        if packet.is_discard:
            continue
        if not joined:
            # What comes before its first key frame, or is shown before it, never decodes: it was joined midway.
            if not packet.is_keyframe:
                continue
            joined, first = True, packet.pts
        if first is None or packet.pts is None or packet.pts >= first:
            found.key_first &= packet.is_keyframe or found.count > 0
            found.count += 1
            if packet.pts is not None:
                found.pts.append(packet.pts)
            if packet.dts is not None:
                found.dts.append(packet.dts)


def count_packets(path: Path, alive: Alive) -> int:
    """Count a file's packets of video, those that an edit list hides among them."""
    with open_container(path, ignore_editlist="1") as container:
        count = 0
        for packet in demux(container, picture_stream(container)):
            alive()
            count += packet.size > 0
        return count
