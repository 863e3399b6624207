"""Videos to a stream of frames for the pose model: what it has not seen yet, and where a segment or a video ends.

A video is read from its first open segment to its end in one go; what `runs` knows as detected is not read again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from csip.errors import DecoderLostError, VideoError
from csip.ingest.decoder import Decoder
from csip.ingest.plan import Segment, VideoPlan
from csip.types import Frames, SourceVideo


@dataclass(frozen=True, slots=True)
class Opened:
    """A video that is about to be worked on."""

    plan: VideoPlan


@dataclass(frozen=True, slots=True)
class Piece:
    """Some frames of one segment."""

    plan: VideoPlan
    segment: Segment
    frames: Frames


@dataclass(frozen=True, slots=True)
class Ended:
    """A segment that is complete.

    Attributes:
        plan: of the video.
        segment: which.
        seen: whether its frames came; else its detections are stored.
        reason: why the video breaks off in it; empty where it does not.
    """

    plan: VideoPlan
    segment: Segment
    seen: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A video that cannot be read, or whose decoder hung or died; nothing more comes of it."""

    video: SourceVideo
    reason: str


Step = Opened | Piece | Ended | Rejected


def read_videos(
    videos: Iterable[SourceVideo],
    plan: Callable[[SourceVideo], VideoPlan],
    decoder: Decoder,
    *,
    stride: int,
    batch: int,
) -> Generator[Step, None, None]:
    """Give the frames of videos that the pose model has not seen yet, and say what is complete.

    Args:
        videos: in the order to work in.
        plan: looks at a video and at what is done of it; may raise VideoError.
        decoder: decodes.
        stride: every so many frames are given.
        batch: frames a piece, at most.
    """
    for video in videos:
        try:
            planned = plan(video)
            yield Opened(planned)
            yield from _read(planned, decoder, stride, batch)
        except VideoError as error:
            yield Rejected(video, str(error))


def _read(plan: VideoPlan, decoder: Decoder, stride: int, batch: int) -> Iterator[Step]:
    if plan.finished is not None:
        return
    known = list(itertools.takewhile(lambda segment: segment.number in plan.detected, plan.segments))
    for segment in known:
        reason = str(plan.detected[segment.number].counts["reason"])
        yield Ended(plan, segment, seen=False, reason=reason)
        if reason:
            return
    todo = plan.segments[len(known) :]
    if todo:
        with closing(decoder.frames(plan.info, batch=batch, start=todo[0].first, stride=stride)) as frames:
            yield from _divide(plan, todo, frames)


def _divide(plan: VideoPlan, segments: tuple[Segment, ...], frames: Iterator[Frames]) -> Iterator[Step]:
    """Give a video's frames segment by segment; no piece reaches over a border."""
    at, read, reason = 0, 0, ""
    try:
        for some in frames:
            begun = 0
            while begun < len(some):
                end = segments[at].end
                stop = len(some) if end is None else int(np.searchsorted(some.frame_index, end))
                if stop > begun:
                    yield Piece(plan, segments[at], some[begun:stop])
                    read, begun = read + stop - begun, stop
                if begun < len(some):
                    yield Ended(plan, segments[at], seen=True)
                    at += 1
    except DecoderLostError:
        raise
    except VideoError as error:
        # It breaks off: what was read is kept.
        if not read and not segments[0].first:
            raise
        reason = str(error)
    if segments[at].end is not None and not reason:
        reason = f"{plan.info.path}: ended before frame {segments[at].end} of {plan.info.num_frames}."
    yield Ended(plan, segments[at], seen=True, reason=reason)
