"""The door to PyAV: video files opened safely, and PyAV's own decoding of them.

Only files are opened, and only formats that hold their pictures themselves: a playlist, a list of files or a picture
sequence would have FFmpeg read or fetch what nobody offered.

Shapes: H and W pixels.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.stream import Disposition

from csip.errors import DecoderLostError, VideoError

_log = logging.getLogger(__name__)

Image = npt.NDArray[np.uint8]
VideoFrame = av.VideoFrame
Alive = Callable[[], None]
FileLook = tuple[int, ...]

# Two of them hold sound alone: it is said better than refused.
_FORMATS = (
    *("asf", "avi", "av1", "dhav", "dv", "flv", "gxf", "h263", "h264", "hevc", "ivf", "live_flv", "m4v", "matroska"),
    *(
        "mov",
        "mp3",
        "mpeg",
        "mpegts",
        "mpegvideo",
        "mxf",
        "nut",
        "obu",
        "ogg",
        "rm",
        "vc1",
        "vvc",
        "wav",
        "wtv",
        "yuv4mpegpipe",
    ),
)
# decord makes other colours than PyAV of all others that were tried: of 10 bits, 4:4:0, NV12.
_ALIKE = frozenset({"gray", "yuv420p", "yuv422p", "yuv444p", "yuvj420p", "yuvj422p", "yuvj444p"})
# Codecs reorder 16 frames at most.
AHEAD = 16
"""Frames that must have been decoded behind one, without a complaint, before that is known to be sound."""

_SAFE = {"protocol_whitelist": "file", "format_whitelist": ",".join(_FORMATS)}


def nothing() -> None:
    """Be called where nobody asks for signs of life."""


def spell(path: Path) -> str:
    """Write a path so that it fits into a line of text, whatever its name holds."""
    text = str(path)
    return text if text.isprintable() else repr(text)[1:-1]


def check_file(path: Path) -> FileLook:
    """Give what tells a file that may be opened from a changed one: its size in bytes, times of change, and number.

    Raises:
        VideoError: there is none, or nothing in it, or no reading it.
    """
    try:
        str(path).encode()
        found = os.stat(path)
        if stat.S_ISREG(found.st_mode):
            with path.open("rb"):
                pass
    except UnicodeEncodeError:
        raise VideoError(f"{spell(path)}: its name is no UTF-8 text, which tables need. Rename the file.") from None
    except (FileNotFoundError, ValueError):  # a zero byte in its name
        raise VideoError(f"{spell(path)}: no such file. Name a video file that exists.") from None
    except OSError as error:
        raise VideoError(
            f"{spell(path)}: cannot be opened ({error.strerror}). Expected a file that may be read; see to its rights "
            "and links."
        ) from error
    if not stat.S_ISREG(found.st_mode):
        raise VideoError(f"{spell(path)}: is not a plain file, expected a video file. Leave it out of the source.")
    if found.st_size == 0:
        raise VideoError(f"{spell(path)}: the file is empty (0 bytes), expected a video. Copy or record it again.")
    # Whoever copies the old time onto a changed file (cp -p, touch -r) cannot set the time of that very change.
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def open_container(path: Path, **options: str) -> av.container.InputContainer:
    """Open a file, and nothing that it refers to.

    Args:
        path: of the file.
        options: FFmpeg's, for the container.

    Raises:
        av.error.FFmpegError: FFmpeg cannot; an ArgumentError where it could, but the format is none of ours.
    """
    # Titles and comments are in whatever code the recorder had; nobody reads them here, and PyAV would fail on them.
    return av.open(f"file:{os.path.abspath(path)}", container_options=_SAFE | options, metadata_errors="replace")


def picture_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """Find the stream to read: the first that is no cover picture and has a decoder."""
    for one in container.streams.video:
        # PyAV has none for a codec that it does not know, whatever its annotations say.
        if one.codec_context is not None and not one.disposition & Disposition.attached_pic:
            return one
    return None


def demux(container: av.container.InputContainer, *streams: av.VideoStream | None) -> Iterator[av.Packet[Any]]:
    """Give the packets of these streams, or of all.

    Raises:
        av.error.FFmpegError: the file is damaged, or its disk or network fails.
    """
    # PyAV fails over streams that begin somewhere in the file: at its end, when all packets have been given.
    with contextlib.suppress(IndexError):
        yield from container.demux(*streams)


def pyav_frames(path: Path, alive: Alive, packets: int | None = None) -> Iterator[av.VideoFrame]:
    """Decode with PyAV, past packets that do not decode.

    Args:
        path: of the file.
        alive: called again and again.
        packets: that the file was seen to hold; None: nobody has looked yet.

    Raises:
        DecoderLostError: the disk or network failed, or does not give the packets that were there before.
    """
    given = 0
    with open_container(path) as container:
        stream = picture_stream(container)
        if stream is None:
            return
        # Several fill in otherwise what is damaged, and some otherwise each time: rows must not depend on that. Frames
        # of one slice, as most are, would be no faster.
        stream.codec_context.thread_count = 1
        for packet in _packets(container, stream, path):
            alive()
            given += packet.size > 0
            # Damaged packets are refused for reasons of many kinds; those after them may be whole.
            with contextlib.suppress(av.error.FFmpegError):
                yield from packet.decode()
    _require(path, given, packets)


def _require(path: Path, given: int, packets: int | None) -> None:
    """Tell a file that is read to its end from one that only seems so: many a demuxer takes a failing disk for an end.

    Raises:
        DecoderLostError: it does not give the packets that were there before.
    """
    if packets is not None and given != packets:
        raise DecoderLostError(
            f"{spell(path)}: gave {given} packets of video where it had {packets} a moment before. Its disk or network "
            "fails, or somebody writes to it; run the same command again when that is over."
        )


def _packets(
    container: av.container.InputContainer, stream: av.VideoStream, path: Path
) -> Iterator[av.Packet[av.VideoStream]]:
    packets = demux(container, stream)
    while True:
        try:
            packet = next(packets, None)
        except OSError as error:
            raise DecoderLostError(
                f"{spell(path)}: reading it failed ({error.strerror}). Run the same command again when its disk or "
                "network is back."
            ) from error
        except av.error.FFmpegError as error:
            _log.warning("%s: reading stopped: %s", spell(path), error)
            return
        if packet is None:
            return
        yield packet


def sound_frames(
    path: Path, threads: int, alive: Alive, packets: int | None = None, *, unseen: bool = False
) -> Generator[av.VideoFrame, None, None]:
    """Decode with PyAV as far as it decodes all before a frame without the least complaint.

    A damaged frame hurts some that are shown before it: those are sound behind which `AHEAD` more are given.

    Args:
        path: of the file.
        threads: decoding threads.
        alive: called again and again.
        packets: that the file was seen to hold; None: nobody asks.
        unseen: whether nobody will look at the pictures, which are then left unfinished: it is cheaper by half.

    Raises:
        DecoderLostError: there is no complaint, and not the packets that were there before.
    """
    given = 0
    # To hide frames takes a second index for a moment, and no such file is decoded unseen.
    options = {"advanced_editlist": "0"} if unseen else {}
    with contextlib.suppress(av.error.FFmpegError, OSError), open_container(path, **options) as container:
        stream = picture_stream(container)
        if stream is None:
            return
        stream.codec_context.thread_count = threads
        stream.codec_context.thread_type = "FRAME"
        skipped = {"skip_loop_filter": "all", "skip_idct": "all"} if unseen else {}
        stream.codec_context.options = {"err_detect": "explode", **skipped}
        for packet in demux(container, stream):
            alive()
            given += packet.size > 0
            for frame in packet.decode():
                if frame.is_corrupt:
                    return
                yield frame
        _require(path, given, packets)


def sound_times(path: Path, threads: int, alive: Alive) -> Generator[int | None, None, None]:
    """Give the times of the `sound_frames`, ticks, up to the first of which decord would make other colours.

    Args:
        path: of the file.
        threads: decoding threads.
        alive: called again and again.
    """
    with contextlib.closing(sound_frames(path, threads, alive, unseen=True)) as frames:
        for frame in frames:
            if other_colours(frame):
                return
            yield frame.pts


def other_colours(frame: av.VideoFrame) -> str:
    """Say why decord would make other colours of a frame than PyAV, up to 80 of 255 levels, or nothing."""
    if frame.format.name not in _ALIKE:
        return f"decord gives {frame.format.name} other colours"
    if frame.interlaced_frame:
        return "decord gives interlaced frames other colours"
    return "decord gives frames of odd sizes other colours" if frame.width % 2 or frame.height % 2 else ""


def upright(frame: av.VideoFrame, height: int, width: int) -> Image:
    """(H, W, 3) RGB, turned by the rotation the container asks for, as decord does by itself."""
    turns = round(frame.rotation / 90) % 4
    across, down = (height, width) if turns % 2 else (width, height)
    image = frame.to_ndarray(format="rgb24", width=across, height=down)
    return np.ascontiguousarray(np.rot90(image, turns), dtype=np.uint8)
