"""One video's tracks: cut, linked, filled in and chosen, segment by segment, into tracklets.

The association (`csip.ingest.track`) says who is who from frame to frame; the rules (`csip.ingest.tracklet_rules`) say
where it was wrong. Both know the past only as far as their own horizon, so that memory does not grow with a video's
length; and what they know is made anew by giving the same detections again, so that no state need be kept on disk.

Shapes: T frames of a tracklet, N people in a frame, J joints.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from csip.config import TrackConfig
from csip.ingest.track import Association
from csip.ingest.tracklet_rules import Seen, drop_doubles, fill_gap, is_jump, link, remember, touches_border
from csip.types import People, Tracklet
from storage_schemas.tracklets import APPEARED, ENDED, JUMPED, LEFT

AWAY_SECONDS = 2.0
"""How long somebody at the border of the frame must be unseen to have been out of it."""

TOO_SHORT, GHOST = "too short", "ghost"
CUTS, LINKS, FILLED, DOUBLES = "identity jumps cut", "tracks linked", "boxes interpolated", "double detections left out"


@dataclass(frozen=True, slots=True)
class TrackSummary:
    """What a tracklet is, from its beginning to where the tracker is now.

    Attributes:
        first_frame: frame_index.
        last_frame: frame_index, inclusive.
        num_frames: frames with a box.
        interpolated_frames: those of them whose box was interpolated.
        keypoint_confidence: mean over the joints of the frames in which the person was seen, 0..1.
        begins: why it begins.
        ends: why it ends; a track that may go on has "left".
    """

    first_frame: int
    last_frame: int
    num_frames: int
    interpolated_frames: int
    keypoint_confidence: float
    begins: str
    ends: str


@dataclass(frozen=True, slots=True)
class SegmentTracks:
    """What a segment gave.

    Attributes:
        tracklets: the rows of this segment, of every track that is kept or not decided upon yet.
        summaries: tracklet_id -> what it is so far, of every track that is in `tracklets`, or was before and may go on.
        withdrawn: tracks whose rows an earlier segment gave and that turned out not to be worth keeping.
        dropped: reason -> tracks that were dropped for it, decided in this segment; every reason is there.
        rules: what each rule did, in this segment, to dropped tracks as well; every rule is there.
    """

    tracklets: tuple[Tracklet, ...]
    summaries: Mapping[str, TrackSummary]
    withdrawn: tuple[str, ...]
    dropped: Mapping[str, int]
    rules: Mapping[str, int]


@dataclass(slots=True)
class _Track:
    number: int
    association: int
    begins: str
    first: int
    ends: str = LEFT
    rows: list[Seen] = field(default_factory=list)  # of this segment
    recent: list[Seen] = field(default_factory=list)  # seen, not interpolated; the last ones of earlier segments too
    frames: int = 0
    interpolated: int = 0
    unsure: int = 0
    confidence: float = 0.0
    given: bool = False

    @property
    def last(self) -> int:
        return self.recent[-1].frame_index

    def add(self, seen: Seen, least: float) -> None:
        mean = float(seen.keypoints[:, 2].mean())
        self.rows.append(seen)
        self.recent.append(seen)
        self.frames += 1
        self.confidence += mean
        self.unsure += mean < least

    def summary(self) -> TrackSummary:
        seen = self.frames - self.interpolated
        return TrackSummary(
            first_frame=self.first,
            last_frame=self.last,
            num_frames=self.frames,
            interpolated_frames=self.interpolated,
            keypoint_confidence=self.confidence / seen,
            begins=self.begins,
            ends=self.ends,
        )


class VideoTracker:
    """Tracks one video."""

    def __init__(
        self,
        config: TrackConfig,
        *,
        fps: float,
        frame_size: tuple[int, int],
        stride: int,
        make_id: Callable[[int], str],
    ) -> None:
        """Begin a video.

        Args:
            config: the tracker's and the rules' numbers.
            fps: of the video.
            frame_size: (H, W) of it.
            stride: distance of two frames that are looked at, in frame_index.
            make_id: gives the tracklet_id of a track number; these count from 0 in the order of appearance.

        Raises:
            ValueError: fps is not positive.
        """
        self._config, self._fps, self._stride, self._make_id = config, fps, stride, make_id
        self._frame_size = frame_size
        self._association = Association(config, rate=fps / stride, stride=stride)
        self._live: dict[int, _Track] = {}  # by the association's number
        self._open: list[_Track] = []  # not decided upon, in order of appearance
        self._numbers = 0
        self._rules: Counter[str] = Counter()
        self._now = 0
        self._looked_at: set[int] = set()  # frames of this segment
        # A track that was not seen for longer neither comes back nor is linked to.
        self._horizon = max(self._association.buffer * stride, config.link_seconds * fps)

    def add(self, frame_index: int, people: People) -> None:
        """Take the people of the next frame that was looked at, those without people among them.

        Raises:
            ValueError: frame_index does not increase.
        """
        config = self._config
        single, doubles = drop_doubles(people, config.double_distance)
        self._rules[DOUBLES] += doubles
        self._now = frame_index
        self._looked_at.add(frame_index)
        for association, row in self._association.update(frame_index, single):
            seen = Seen(frame_index, single.boxes[row], float(single.score[row]), single.keypoints[row])
            track = self._live.get(association)
            if track is not None and is_jump(track.recent, seen, self._fps, config):
                track.ends = JUMPED
                self._rules[CUTS] += 1
                track = self._begin(association, frame_index, JUMPED)
            elif track is None or self._was_away(track, seen):
                track = self._begin(association, frame_index, APPEARED)
            else:
                self._fill(track, seen)
            track.add(seen, config.min_keypoint_confidence)

    def end_segment(self, *, final: bool) -> SegmentTracks:
        """Give what this segment's frames came to; with `final`, decide upon every track.

        The next frame belongs to the next segment.
        """
        self._link()
        dropped = {TOO_SHORT: 0, GHOST: 0}
        tracklets, summaries, withdrawn, still_open = [], {}, [], []
        for track in self._open:
            name = self._make_id(track.number)
            decided = final or track.ends == JUMPED or self._now - track.last > self._horizon
            if final and track.last == self._now:
                track.ends = ENDED
            why = self._fault(track) if decided else ""
            if why:
                dropped[why] += 1
                withdrawn += [name] if track.given else []
                continue
            summaries[name] = track.summary()
            if track.rows:
                tracklets.append(_tracklet(name, track.rows))
                track.rows, track.given = [], True
            if not decided:
                still_open.append(track)
        self._open = still_open
        kept = {id(track) for track in still_open}
        self._live = {number: track for number, track in self._live.items() if id(track) in kept}
        for track in still_open:
            track.recent = remember(track.recent, self._fps)
        rules = {name: self._rules[name] for name in (DOUBLES, CUTS, LINKS, FILLED)}
        self._rules.clear()
        self._looked_at.clear()
        return SegmentTracks(tuple(tracklets), summaries, tuple(withdrawn), dropped, rules)

    def _begin(self, association: int, frame_index: int, why: str) -> _Track:
        track = _Track(self._numbers, association, why, frame_index)
        self._numbers += 1
        self._live[association] = track
        self._open.append(track)
        return track

    def _was_away(self, track: _Track, seen: Seen) -> bool:
        """Tell whether a track that comes back may have been out of view, so that it may be somebody else."""
        unseen = (seen.frame_index - track.last) / self._fps
        ends = (track.recent[-1].box, seen.box)
        return unseen > AWAY_SECONDS and all(touches_border(box, self._frame_size) for box in ends)

    def _fill(self, track: _Track, seen: Seen) -> None:
        """Interpolate the boxes of a short gap, in those of its frames that were looked at in this segment."""
        gap = fill_gap(
            track.recent[-1],
            seen,
            stride=self._stride,
            frames=self._config.interpolate_seconds * self._fps,
            frame_size=self._frame_size,
        )
        filled = [one for one in gap if one.frame_index in self._looked_at]
        track.rows += filled
        track.frames += len(filled)
        track.interpolated += len(filled)
        self._rules[FILLED] += len(filled)

    def _link(self) -> None:
        """Join tracks that begin in this segment to tracks that ended shortly before where they begin."""
        earlier = [track for track in self._open if track.ends == LEFT]
        later = [track for track in self._open if track.begins == APPEARED and not track.given]
        pairs = [
            (a, b)
            for a, b in link([t.recent for t in earlier], [t.recent for t in later], self._fps, self._config)
            if not self._was_away(earlier[a], later[b].recent[0])
        ]
        into: dict[int, _Track] = {}
        for a, b in sorted(pairs, key=lambda pair: later[pair[1]].first):
            before, after = earlier[a], later[b]
            before = into.get(before.number, before)
            self._join(before, after)
            into[after.number] = before
        self._open = [track for track in self._open if track.number not in into]
        self._rules[LINKS] += len(into)

    def _join(self, before: _Track, after: _Track) -> None:
        self._fill(before, after.recent[0])
        before.rows += after.rows
        before.recent += after.recent
        before.ends = after.ends
        for name in ("frames", "interpolated", "unsure", "confidence"):
            setattr(before, name, getattr(before, name) + getattr(after, name))
        # The association may still have the earlier one in mind; were it to come back, it would be somebody else.
        if self._live.get(before.association) is before:
            del self._live[before.association]
        before.association = after.association
        if self._live.get(after.association) is after:
            self._live[after.association] = before

    def _fault(self, track: _Track) -> str:
        config, seen = self._config, track.frames - track.interpolated
        least = max(config.min_frames, round(config.min_seconds * self._fps / self._stride))
        if seen < least:
            return TOO_SHORT
        return GHOST if track.unsure > config.ghost_share * seen else ""


def _tracklet(name: str, rows: list[Seen]) -> Tracklet:
    return Tracklet(
        tracklet_id=name,
        frame_index=np.array([seen.frame_index for seen in rows], dtype=np.int64),
        boxes=np.stack([seen.box for seen in rows]).astype(np.float32),
        score=np.array([seen.score for seen in rows], dtype=np.float32),
        keypoints=np.stack([seen.keypoints for seen in rows]).astype(np.float32),
        interpolated=np.array([seen.interpolated for seen in rows], dtype=np.bool_),
    )
