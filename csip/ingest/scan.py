"""What a video's container says of its frames: how many, when each is shown, and whether decord can be trusted.

Packets are read, not decoded.

Shapes: F frames. Times are seconds from the container, pts its own ticks.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import av.error
import numpy as np

from csip.errors import VideoError
from csip.ingest.container import Alive, VideoFrame, check_file, nothing, other_colours, pyav_frames, spell
from csip.ingest.packets import Packets, count_packets, read_packets
from csip.types import IntArray

# A packet has one time there: of decoding, where frames are shown in another order.
_ONE_TIME = frozenset({"avi", "asf"})
_AVI = frozenset({"avi"})

# A container's own duration is rounded, and some writers count in a pause at the end.
_CUT_SECONDS, _CUT_SHARE = 2.0, 0.02

# How far from its place in the file a frame may be shown; codecs reorder 16 at most, and two fields may be two packets.
_REORDERED = 32

# Frames that are decoded to see in which order they come, where their packets cannot tell.
_LOOKED_AT = 64


@dataclass(frozen=True, slots=True)
class Scan:
    """The container's own account of the video stream.

    Attributes:
        codec: as FFmpeg names it ("h264").
        width: of a frame as it is shown (rotation applied), pixels.
        height: of a frame as it is shown, pixels.
        fps: mean frames a second.
        pts: (F,) the shown packets' times in display order, ticks.
        known_by: what tells which of them a decoded frame is: "pts", its own time; "dts", the time of the packet that
            let it out; or "", nothing, so that frames are counted and a tick is one frame at the nominal rate.
        lag: how much later than the frame's own that time is, ticks.
        tick: seconds a tick.
        packets: of video in the file, those that are not shown among them.
        missing: frames that the container announces and the file no longer holds.
        distrust: why decord cannot be used, or empty.
    """

    codec: str
    width: int
    height: int
    fps: float
    pts: IntArray
    known_by: str
    lag: int
    tick: float
    packets: int
    missing: int
    distrust: str

    @property
    def duration(self) -> float:
        """Seconds from the first frame's start to the last one's end."""
        return float((self.pts[-1] - self.pts[0]) * self.tick + 1 / self.fps)

    def place(self, pts: int | None, dts: int | None, before: int) -> int | None:
        """Give the index of a decoded frame.

        Args:
            pts: its time, ticks.
            dts: that of the packet that let it out.
            before: index of the frame that was decoded before it; -1: none was.

        Returns:
            None where the container does not show it. Of frames that share a time, all have the index of the first.
        """
        mark = {"pts": pts, "dts": dts}.get(self.known_by)
        if mark is None:
            return before + 1
        index = int(np.searchsorted(self.pts, mark - self.lag))
        if self.known_by == "dts":
            return max(index, before + 1)
        return index if index < len(self.pts) and self.pts[index] == mark else None

    def shares_time(self, index: int) -> bool:
        """Tell whether a frame has the same time as the next one."""
        return index + 1 < len(self.pts) and bool(self.pts[index] == self.pts[index + 1])

    def seconds(self, index: int) -> float:
        """Give the time of a frame; there may be more than the packets promise."""
        beyond = max(index - len(self.pts) + 1, 0)
        return float(self.pts[index - beyond] * self.tick + beyond / self.fps)


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
        packets = read_packets(path, alive)
        frame = next(pyav_frames(path, alive), None)
        if not packets.count or frame is None:
            raise VideoError(
                f"{spell(path)}: found a {packets.codec} stream of {packets.count} packets, none of which decodes; "
                "expected at least one frame. Copy or record the video again."
            )
        return _judge(packets, frame, path, alive)
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


def _judge(packets: Packets, frame: VideoFrame, path: Path, alive: Alive) -> Scan:
    """Make an account of the packets and of the first frame that decodes."""
    ticks, known_by, lag = _times(packets, frame, path, alive)
    tick = packets.tick if known_by else 1 / packets.rate
    span = float(ticks[-1] - ticks[0]) * tick
    fps = round((len(ticks) - 1) / span, 6) if span > 0 else packets.rate
    missing, hidden = _missing(packets, path, alive)
    colours = other_colours(frame)
    distrust = {
        # It loses the first group of pictures there, and repeats the last frame as often.
        f"decord misreads {packets.form} files": not packets.indexed,
        "decord cannot read AV1": packets.codec == "av1",
        # Its referee sees no damage there.
        "decord's pictures of damaged VP8 hang on its threads": packets.codec == "vp8",
        "it has several video streams": packets.streams > 1,
        "its packets have no times, or times that run backwards": not known_by,
        "its packets have the times of decoding alone": known_by == "dts",
        "its frames start before time zero or share a time": bool(ticks[0] < 0 or (np.diff(ticks) == 0).any()),
        # Where the first frames do not decode it numbers the others from 0 on.
        "it does not start with a key frame": not packets.key_first,
        "an edit list hides frames": hidden,
        "its container is damaged": not packets.whole,
        colours: bool(colours),
        # It reserves memory for all of them, and the process dies where there is not so much.
        "more frames are announced than there are": missing > packets.count,
    }
    turned = round(frame.rotation / 90) % 2 == 1
    width, height = (frame.height, frame.width) if turned else (frame.width, frame.height)
    why = "; ".join(reason for reason, holds in distrust.items() if holds)
    return Scan(packets.codec, width, height, fps, ticks, known_by, lag, tick, packets.held, missing, why)


def _missing(packets: Packets, path: Path, alive: Alive) -> tuple[int, bool]:
    """Count the frames that the container announces and no longer holds, and tell whether it hides some."""
    missing, hidden = 0, False
    if packets.is_of(_AVI) and packets.dts and round(packets.rate * packets.tick, 6) == 1:
        # Its count has the times at which nothing was stored, and so have the times of what was.
        missing = max(packets.announced - max(packets.dts) - 1, 0)
    elif packets.indexed:
        # Of an edit list's hidden packets the demuxer gives some only.
        held = count_packets(path, alive) if packets.announced > packets.count else packets.count
        missing, hidden = max(packets.announced - held, 0), held > packets.count
    if packets.indexed and not packets.announced and packets.length:
        left = packets.length - packets.end
        missing = round(left * packets.rate) if left > max(_CUT_SECONDS, _CUT_SHARE * packets.end) else 0
    return missing if packets.whole else max(missing, 1), hidden


def _times(packets: Packets, first: VideoFrame, path: Path, alive: Alive) -> tuple[IntArray, str, int]:
    """Give the shown frames' times, what a decoded frame is known by, and how much later that is, all in ticks."""
    counted = np.arange(packets.count), "", 0
    if len(packets.pts) < packets.count or not packets.tick:
        return counted
    pts = np.array(packets.pts, np.int64)
    if (pts[_REORDERED:] < np.maximum.accumulate(pts)[:-_REORDERED]).any():
        return counted
    decoding = packets.reorders and packets.is_of(_ONE_TIME) and not (np.diff(pts) < 0).any()
    pts.sort(kind="stable")
    if not decoding or not _out_of_order(path, alive):
        return pts, "pts", 0
    dts = np.array(packets.dts, np.int64)
    if len(dts) < packets.count or first.dts is None or (np.diff(dts) < 0).any():
        return counted
    # A frame is shown when its decoder lets it out; how many packets later that is than it was stored, the first says.
    behind = int(np.searchsorted(dts, first.dts))
    step = max(round(1 / (packets.rate * packets.tick)), 1)
    out = np.concatenate([dts[behind:], dts[-1] + step * np.arange(1, behind + 1)])
    lag = int(out[0] - dts[0])
    return out - lag, "dts", lag


def _out_of_order(path: Path, alive: Alive) -> bool:
    """Tell whether decoded frames come in another order than their own times, which then are no times of theirs."""
    times = (frame.pts or 0 for frame in itertools.islice(pyav_frames(path, alive), _LOOKED_AT))
    return any(one > other for one, other in itertools.pairwise(times))
