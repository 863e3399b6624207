"""What betrays a tracker's mistakes: one person detected twice, a track that jumps, one that ends behind a post.

Everything is measured in the height of a person's box, so that it holds near the camera and far from it.

Shapes: N people in a frame, J joints.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from csip.config import TrackConfig
from csip.types import FloatArray, People

LOOK_BACK_SECONDS = 1.0
"""How far back a rule looks for a track's speed."""

_SURE = 0.5  # keypoint confidence from which a joint's place is believed
_FEWEST_JOINTS = 4
_HEIGHTS = 5  # detections whose median height stands for a track's end
_BORDER = 2.0  # pixels


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """One person in one frame of a track.

    Attributes:
        frame_index: of the frame.
        box: (4,) x1 y1 x2 y2, frame pixels.
        score: of the detection; 0 where the box was interpolated.
        keypoints: (J, 3) x, y in frame pixels, confidence; zero where the box was interpolated.
        interpolated: nobody was detected there.
    """

    frame_index: int
    box: FloatArray
    score: float
    keypoints: FloatArray
    interpolated: bool = False

    @property
    def height(self) -> float:
        """Of the box, pixels, at least 1."""
        return max(float(self.box[3] - self.box[1]), 1.0)

    @property
    def head(self) -> FloatArray:
        """(2,) middle of the box's upper edge: the part of a person that things in the street hide last."""
        return np.array([(self.box[0] + self.box[2]) / 2, self.box[1]], dtype=np.float32)


def remember(track: Sequence[Seen], fps: float) -> list[Seen]:
    """Leave of a track's detections those at its end that the rules here look back at."""
    since = track[-1].frame_index - LOOK_BACK_SECONDS * fps
    return [seen for seen in track[:-_HEIGHTS] if seen.frame_index >= since] + list(track[-_HEIGHTS:])


def drop_doubles(people: People, distance: float) -> tuple[People, int]:
    """Leave out the weaker of two detections of one person, which non-maximum suppression has let pass.

    Two people may share a box, but not all their joints.

    Args:
        people: of one frame, best score first.
        distance: mean distance of the joints that both show surely, in heights of the smaller box, up to which two are
            one; 0 leaves everybody.

    Returns:
        Those that are left, in their order, and how many are not.
    """
    if not distance or len(people) < 2:
        return people, 0
    sure = people.keypoints[:, :, 2] >= _SURE  # (N, J)
    both = sure[:, None] & sure[None]  # (N, N, J)
    place = people.keypoints[:, :, :2].astype(np.float64)
    apart = np.linalg.norm(place[:, None] - place[None], axis=3)  # (N, N, J)
    count = both.sum(axis=2)
    mean = (apart * both).sum(axis=2) / np.maximum(count, 1)
    height = np.maximum(people.boxes[:, 3] - people.boxes[:, 1], 1)
    same = (count >= _FEWEST_JOINTS) & (mean <= distance * np.minimum(height[:, None], height[None]))
    kept: list[int] = []
    for i in np.argsort(-people.score, kind="stable").tolist():
        if not same[i, kept].any():
            kept.append(i)
    kept.sort()
    if len(kept) == len(people):
        return people, 0
    return People(people.boxes[kept], people.score[kept], people.keypoints[kept]), len(people) - len(kept)


def is_jump(track: Sequence[Seen], seen: Seen, fps: float, config: TrackConfig) -> bool:
    """Tell whether a track's next detection cannot be the same person: too far off, or of another size.

    The joints' places within the box are no cue: on the demo's street two people's poses differ by .10 of a box height
    in the middle and .20 at most, one person's from a tenth of a second to the next by up to .35.

    Args:
        track: its detections, the last ones at least; one or more.
        seen: the next one.
        fps: frames a second of the video.
        config: `jump_distance`, where 0 turns the rule off, and `jump_ratio`.
    """
    if not config.jump_distance:
        return False
    last = track[-1]
    seconds = (seen.frame_index - last.frame_index) / fps
    height = min(last.height, seen.height)
    there = last.head + _velocity(reversed(track), fps) * seconds
    # Whether it went on or stood still: the better guess counts.
    off = min(float(np.linalg.norm(seen.head - guess)) for guess in (there, last.head)) / height
    ratio = max(last.height, seen.height) / height
    far = config.jump_distance * (1 + seconds)
    return off > far or bool(config.jump_ratio and ratio > config.jump_ratio and off > far / 2)


def _velocity(track: Iterable[Seen], fps: float) -> FloatArray:
    """Give the mean velocity of the head over a second, pixels a second of the video.

    Args:
        track: detections from the edge of interest inwards, so backwards in time for a track's end; read no further
            than the second.
        fps: frames a second of the video.
    """
    inwards = iter(track)
    edge = other = next(inwards)
    for seen in inwards:
        if abs(seen.frame_index - edge.frame_index) > LOOK_BACK_SECONDS * fps:
            break
        other = seen
    frames = edge.frame_index - other.frame_index
    if not frames:
        return np.zeros(2, np.float32)
    return np.asarray((edge.head - other.head) * (fps / frames), dtype=np.float32)


def link(
    earlier: Sequence[Sequence[Seen]], later: Sequence[Sequence[Seen]], fps: float, config: TrackConfig
) -> list[tuple[int, int]]:
    """Pair tracks that end with tracks that begin where the first would have gone on to.

    Args:
        earlier: detections of tracks that ended, the last ones at least.
        later: detections of tracks that begin.
        fps: frames a second of the video.
        config: `link_seconds`, `link_distance` and `link_ratio`; 0 seconds link nothing.

    Returns:
        Pairs (index in earlier, index in later), the surest first; each index occurs once on its side.
    """
    costs = [
        (cost, a, b)
        for a, before in enumerate(earlier)
        for b, after in enumerate(later)
        if (cost := _link_cost(before, after, fps, config)) is not None
    ]
    used_a: set[int] = set()
    used_b: set[int] = set()
    pairs = []
    for _, a, b in sorted(costs):
        if a not in used_a and b not in used_b:
            used_a.add(a)
            used_b.add(b)
            pairs.append((a, b))
    return pairs


def _link_cost(before: Sequence[Seen], after: Sequence[Seen], fps: float, config: TrackConfig) -> float | None:
    """How badly one track goes on as the other, in heights; None where it cannot be."""
    end, begin = before[-1], after[0]
    seconds = (begin.frame_index - end.frame_index) / fps
    if not 0 < seconds <= config.link_seconds:
        return None
    heights = [float(np.median([one.height for one in part])) for part in (before[-_HEIGHTS:], after[:_HEIGHTS])]
    if max(heights) > config.link_ratio * min(heights):
        return None
    forward = begin.head - (end.head + _velocity(reversed(before), fps) * seconds)
    backward = end.head - (begin.head - _velocity(after, fps) * seconds)
    cost = float(np.linalg.norm(forward) + np.linalg.norm(backward)) / 2 / float(np.mean(heights))
    return cost if cost <= config.link_distance else None


def fill_gap(last: Seen, seen: Seen, *, stride: int, frames: float, frame_size: tuple[int, int]) -> list[Seen]:
    """Interpolate the boxes between two detections of a track.

    Args:
        last: the one before the gap.
        seen: the one behind it.
        stride: distance of two frames that are looked at, in frame_index.
        frames: how far apart the two may be, in frame_index; 0 fills nothing.
        frame_size: (H, W) of the video. Who touches its border may have been out of view: nothing is filled there.

    Returns:
        What lies between the two, a `Seen` a frame.
    """
    apart = seen.frame_index - last.frame_index
    if not stride < apart <= frames or any(touches_border(one.box, frame_size) for one in (last, seen)):
        return []
    joints = np.zeros_like(seen.keypoints)
    between = range(last.frame_index + stride, seen.frame_index, stride)
    shares = ((i, (i - last.frame_index) / apart) for i in between)
    return [
        Seen(i, np.asarray(last.box + (seen.box - last.box) * share, np.float32), 0.0, joints, interpolated=True)
        for i, share in shares
    ]


def touches_border(box: FloatArray, frame_size: tuple[int, int]) -> bool:
    """Tell whether somebody may be about to leave the frame of this size (H, W), or may just have entered it."""
    height, width = frame_size
    x1, y1, x2, y2 = box.tolist()
    return bool(min(x1, y1, width - x2, height - y2) < _BORDER)
