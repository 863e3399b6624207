"""What is left to do of a video: its segments, those whose detections are stored, and those that are cut out.

A long video is worked through in segments of some minutes, in order, a commit each, so that memory does not grow with
its length and a killed run loses minutes. `runs` says which are done; nothing else does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from csip import tables
from csip.config import DetectConfig
from csip.ingest.video import VideoInfo
from csip.plain import digest
from csip.tables import RunRecord, any_of
from csip.types import ExtractDigests, SourceVideo


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive frames of a video that are worked on together.

    Attributes:
        number: zero-based in the video.
        first: its first frame_index.
        end: the first frame_index behind it; None for the last segment, which goes on to where the video ends.
    """

    number: int
    first: int
    end: int | None


@dataclass(frozen=True, slots=True)
class VideoPlan:
    """A video, its segments, and the runs that have done some of the work.

    Attributes:
        video: which.
        info: what its file says.
        segments: in order.
        detected: segment number -> the run that filled its detections.
        tracked: segment number -> the run that filled its crops and skeletons; no gaps, from the first on.
    """

    video: SourceVideo
    info: VideoInfo
    segments: tuple[Segment, ...]
    detected: dict[int, RunRecord]
    tracked: dict[int, RunRecord]

    @property
    def finished(self) -> RunRecord | None:
        """The run that has finished the video, if one has."""
        return next((run for run in self.tracked.values() if run.stage == "track_video"), None)

    def decoded(self) -> tuple[int, str] | None:
        """Count the frames that decoded, and say why the video breaks off, if it does; None before it is read to there.

        Where only every so many frames were looked at, those as far as it was read.
        """
        frames = 0
        for segment in self.segments:
            run = self.detected.get(segment.number)
            if run is None:
                return None
            frames += int(run.counts["frames"])
            reason = str(run.counts["reason"])
            if run.config["stride"] > 1:
                frames = int(run.counts["end_frame"]) if reason else self.info.num_frames
            if reason:
                return frames, reason
        return frames, ""


def cut_into_segments(num_frames: int, fps: float, seconds: float, stride: int) -> tuple[Segment, ...]:
    """Cut a video's frames into segments of `seconds`; the last may be shorter, and there is always one.

    Every segment begins with a frame that the stride hits.
    """
    each = max(math.ceil(seconds * fps / stride), 1) * stride
    count = max(math.ceil(num_frames / each), 1)
    return tuple(Segment(i, i * each, None if i == count - 1 else (i + 1) * each) for i in range(count))


def make_plan(
    store: str, video: SourceVideo, info: VideoInfo, digests: ExtractDigests, config: DetectConfig
) -> VideoPlan:
    """Cut a video into segments and look up in `runs` what is done of them."""
    segments = cut_into_segments(info.num_frames, info.fps, config.segment_seconds, config.stride)
    keys = {detect_key(video, digests, s): s.number for s in segments}
    keys |= {track_key(video, digests, s): s.number for s in segments}
    runs = tables.find_runs(store, any_of("key", keys))
    detected = {keys[run.key]: run for run in runs if run.stage == "detect_video"}
    tracked = {keys[run.key]: run for run in runs if run.stage in ("track_segment", "track_video")}
    whole = next((n for n in range(len(segments)) if n not in tracked), len(segments))
    return VideoPlan(video, info, segments, detected, {n: tracked[n] for n in range(whole)})


def in_frames(first: int, end: int | None) -> str:
    """Write the condition that a row's frame lies from `first` on, and before `end` where that is not None."""
    return f"frame_index >= {first}" + ("" if end is None else f" AND frame_index < {end}")


def detect_key(video: SourceVideo, digests: ExtractDigests, segment: Segment) -> str:
    """Key of the run that fills a segment's detections: equal keys mean equal rows."""
    return digest("detect_video", video.video_sha, digests.detect, segment.first, segment.end)


def track_key(video: SourceVideo, digests: ExtractDigests, segment: Segment) -> str:
    """Key of the run that fills a segment's crops and skeletons, and with the last segment the video's tracklets."""
    return digest("track_video", video.video_sha, digests.track, segment.first, segment.end)
