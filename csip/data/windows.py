"""A published snapshot as windows of skeletons: what skeleton-only re-identification trains on and ranks.

datasets.md sections 7 and 10. Frames without a skeleton do not count: those before and after them are joined as if
nothing were missing.

Shapes: W windows, f frames a window, J joints, n skeletons of a part, N skeletons.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from csip.data.clips import Role, joint_layout, read_parts
from csip.errors import StoreError
from csip.extractors import read_extractors
from csip.joints import JointLayout, normalise
from csip.tables import keypoints_array, pinned, quote, read
from csip.types import FloatArray, IntArray, Snapshot, TrackletPart


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Windows in the order of their parts, and in a part in the order they were cut.

    Attributes:
        skeleton: (W, f, J, 3) float32, root-centred.
        pid: (W,) int64, the person.
        parts: W, the run of frames of each: from its first skeleton to its last. Training windows overlap, and some
            are there twice.
        short_parts: parts of too few skeletons for a window.
    """

    skeleton: FloatArray
    pid: IntArray
    parts: tuple[TrackletPart, ...]
    short_parts: int = 0

    def __post_init__(self) -> None:
        w = len(self.parts)
        if self.skeleton.ndim != 4 or self.skeleton.shape[0] != w or self.pid.shape != (w,):
            raise ValueError(
                f"Windows: got skeleton {self.skeleton.shape} and pid {self.pid.shape} for {w} windows, expected "
                f"({w}, f, J, 3) and ({w},)."
            )

    def __len__(self) -> int:
        """Count the windows."""
        return len(self.parts)

    def first(self, count: int) -> Windows:
        """Keep the first `count` of them."""
        return Windows(self.skeleton[:count], self.pid[:count], self.parts[:count], self.short_parts)


def training_starts(n: int, frames: int) -> IntArray:
    """Say where training windows begin in n skeletons: every `frames // 2`, once from each of 0..frames - 1.

    Those offsets coincide again after `frames // 2`: of windows of 6, each that can be cut is there, and those that
    begin at the third skeleton (counted from 0) or later twice.

    Returns:
        (W,) positions.

    Raises:
        ValueError: windows of fewer than two frames.
    """
    _require_frames(frames)
    return np.concatenate([np.arange(offset, n - frames + 1, frames // 2) for offset in range(frames)])


def ranking_starts(n: int, frames: int) -> IntArray:
    """Say where query and gallery windows begin in n skeletons: one after the other, the tail left out.

    Returns:
        (W,) positions.

    Raises:
        ValueError: windows of fewer than two frames.
    """
    _require_frames(frames)
    return np.arange(0, n - frames + 1, frames)


def _require_frames(frames: int) -> None:
    if frames < 2:
        raise ValueError(f"windows: got frames={frames}, expected 2 or more.")


def read_windows(snapshot: Snapshot, role: Role, frames: int) -> Windows:
    """Cut the parts of one role into windows.

    Args:
        snapshot: with 3D skeletons.
        role: "train" cuts overlapping windows, see `training_starts`; the others, see `ranking_starts`.
        frames: f.

    Raises:
        StoreError: the skeletons are 2D, of several extractors, or a part has no rows.
        ValueError: the snapshot's tracklets are windows of another length already.
    """
    _require_length(snapshot, frames)
    parts, layout = read_parts(snapshot, role), joint_layout(snapshot)
    if layout.third != "z":
        raise StoreError(
            f"Snapshot {snapshot.name}: found 2D skeletons of layout {layout.name}, expected 3D ones. Build it from a "
            "data set of those, such as biwi: or ias:."
        )
    rows = _read_skeletons(snapshot, parts, layout)
    chosen, named, short = [], [], 0
    for part in parts:
        there = rows.of(part, snapshot)
        starts = (training_starts if role == "train" else ranking_starts)(len(there), frames)
        short += len(starts) == 0
        windows = there[starts[:, None] + np.arange(frames)]
        chosen.append(windows)
        named += [
            TrackletPart(part.tracklet_id, first, last, part.pid, part.camid)
            for first, last in rows.frame_index[windows[:, [0, -1]]].tolist()
        ]
    at = np.concatenate([np.zeros((0, frames), np.int64), *chosen])
    return Windows(rows.skeleton[at], np.array([part.pid for part in named], np.int64), tuple(named), short)


def _require_length(snapshot: Snapshot, frames: int) -> None:
    """Refuse to cut windows out of windows: they would be others than those of whole sequences."""
    facts = read_extractors(pinned(snapshot, "skeletons")).get(snapshot.digest, {})
    made = facts.get("window_frames", frames)
    if made != frames:
        raise ValueError(
            f"skeleton.frames={frames}: snapshot {snapshot.name} was made of windows of {made} frames, which cannot be "
            f"cut into others. Set skeleton.frames={made}, or import the data set as it is distributed."
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """The rows of some tracklets, sorted by tracklet and frame.

    Attributes:
        span: tracklet_id -> its rows.
        frame_index: (N,) int64.
        has_skeleton: (N,) bool.
        skeleton: (N, J, 3) float32, root-centred.
    """

    span: dict[str, slice]
    frame_index: IntArray
    has_skeleton: npt.NDArray[np.bool_]
    skeleton: FloatArray

    def of(self, part: TrackletPart, snapshot: Snapshot) -> IntArray:
        """Give the places of a part's n skeletons, (n,)."""
        span = self.span.get(part.tracklet_id, slice(0, 0))
        first, end = np.searchsorted(self.frame_index[span], [part.first_frame, part.last_frame + 1]) + span.start
        if first == end:
            raise StoreError(
                f"Part {part.tracklet_id} frames {part.first_frame}..{part.last_frame}: found no rows. Snapshot "
                f"{snapshot.name} names rows that its version of `skeletons` does not have; build it again."
            )
        return np.arange(first, end)[self.has_skeleton[first:end]]


def _read_skeletons(snapshot: Snapshot, parts: tuple[TrackletPart, ...], layout: JointLayout) -> _Rows:
    """Read the parts' tracklets."""
    ref = pinned(snapshot, "skeletons")
    table = read(ref, ["layout", "keypoints", "has_skeleton"], f"layout = {quote(layout.name)}")
    wanted = pa.array(sorted({part.tracklet_id for part in parts}), pa.string())
    table = table.filter(pc.is_in(table["tracklet_id"], value_set=wanted))
    ids = np.asarray(table["tracklet_id"].to_pylist(), dtype=object)
    frame_index = np.asarray(table["frame_index"], dtype=np.int64)
    twice = np.flatnonzero((ids[1:] == ids[:-1]) & (frame_index[1:] == frame_index[:-1]))
    if len(twice):
        at = twice[0]
        raise StoreError(
            f"{ref.uri} version {ref.version}: found two skeletons of {ids[at]}, frame {frame_index[at]}, expected "
            "one. Build the snapshot from one extraction."
        )
    begins = np.concatenate([np.zeros(min(1, len(ids)), np.int64), np.flatnonzero(ids[1:] != ids[:-1]) + 1])
    ends = np.append(begins, len(ids))[1:]
    keypoints = keypoints_array(table["keypoints"], len(layout.joints))
    # 3D skeletons are centred frame by frame: boxes, frame numbers and confidences decide nothing.
    boxes, numbers = np.zeros((len(keypoints), 4), np.float32), np.arange(len(keypoints))
    skeleton, _ = normalise(keypoints, boxes, numbers, layout, joint_confidence=0, max_gap=0, min_joints=1)
    spans = zip(ids[begins].tolist(), begins.tolist(), ends.tolist(), strict=True)
    return _Rows(
        {name: slice(begin, end) for name, begin, end in spans},
        frame_index,
        np.asarray(table["has_skeleton"], dtype=np.bool_),
        skeleton,
    )


def balanced_windows(pid: IntArray, batch: int, rng: np.random.Generator) -> IntArray:
    """Draw as many windows of every person (datasets.md section 10, item 1).

    2 * floor(W / batch) rounds, each of floor(batch / K) windows of every one of K people in turn. A person's windows
    come in random order, each once; when there are no more, they are drawn with replacement.

    Args:
        pid: (W,) the person of each window.
        batch: windows a batch.
        rng: the only source of chance.

    Returns:
        Positions in `pid`, round after round, people by ascending pid; none where a batch is smaller than K, or there
        are fewer windows than a batch.
    """
    people = np.unique(pid)
    rounds, each = 2 * (len(pid) // batch), batch // max(1, len(people))
    drawn = np.zeros((len(people), rounds * each), np.int64)
    for row, person in zip(drawn, people, strict=True):
        own = rng.permutation(np.flatnonzero(pid == person))[: len(row)]
        row[: len(own)] = own
        row[len(own) :] = rng.choice(np.flatnonzero(pid == person), len(row) - len(own))
    return drawn.reshape(len(people), rounds, each).swapaxes(0, 1).reshape(-1)
