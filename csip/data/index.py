"""Where a part's frames lie in the tables: crops and skeletons joined on their keys, once, when a version is opened.

Shapes: n frames of a tracklet, part or unit, J joints.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from csip.config import ClipConfig
from csip.data import sampling
from csip.errors import StoreError
from csip.joints import JointLayout, normalise
from csip.tables import Rows, boxes_array, keypoints_array
from csip.types import FloatArray, IntArray, TrackletPart


@dataclass(frozen=True, slots=True, eq=False)
class PartFrames:
    """What a part's n frames are: where their crops lie, and their skeletons.

    Attributes:
        row: (n,) row numbers in the pinned version of `crops`.
        frame_index: (n,) frame numbers in the source.
        skeleton: (n, J, 3) float32, normalised.
        frame_mask: (n,) bool, True where the skeleton is valid.
    """

    row: IntArray
    frame_index: IntArray
    skeleton: FloatArray
    frame_mask: npt.NDArray[np.bool_]

    def at(self, which: slice | npt.NDArray[np.bool_]) -> PartFrames:
        """Choose some of the frames."""
        return PartFrames(self.row[which], self.frame_index[which], self.skeleton[which], self.frame_mask[which])


def index_tracklets(
    crops: Rows, wanted: set[str], skeletons: Rows, layout: JointLayout | None, clip: ClipConfig
) -> dict[str, PartFrames]:
    """Join crops and skeletons on (tracklet_id, frame_index), and normalise each wanted tracklet's skeletons.

    A crop without a skeleton keeps its place with a mask.

    Args:
        crops: rows of a pinned version.
        wanted: tracklets to index.
        skeletons: rows of a pinned version.
        layout: of the skeletons; None reads none, and every frame has (0, 3) joints and a mask.
        clip: how skeletons are normalised.

    Raises:
        StoreError: a crop has skeletons of several extractors.
    """
    names = pa.array(sorted(wanted), pa.string())
    crop_table = _only(crops.keys(["box"]), names)
    joints = 0 if layout is None else len(layout.joints)
    poses: FloatArray = np.zeros((0, joints, 3), np.float32)
    pose_of: dict[tuple[str, int], int] = {}
    if layout is not None:
        poses, pose_of = _read_poses(skeletons, names, layout)
    ids = np.asarray(crop_table["tracklet_id"].to_pylist(), dtype=object)
    frame_index = np.asarray(crop_table["frame_index"], dtype=np.int64)
    row = np.asarray(crop_table["row"], dtype=np.int64)
    box = boxes_array(crop_table["box"])
    at = np.array([pose_of.get(key, -1) for key in zip(ids, frame_index.tolist(), strict=True)], dtype=np.int64)
    starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]])) if len(ids) else np.zeros(0, np.int64)
    out = {}
    for begin, end in zip(starts, np.append(starts, len(ids))[1:], strict=True):
        span = slice(int(begin), int(end))
        raw = np.zeros((end - begin, joints, 3), np.float32)
        if layout is None:
            out[str(ids[begin])] = PartFrames(row[span], frame_index[span], raw, np.zeros(len(raw), np.bool_))
            continue
        raw[at[span] >= 0] = poses[at[span][at[span] >= 0]]
        skeleton, mask = normalise(
            raw,
            box[span],
            frame_index[span],
            layout,
            joint_confidence=clip.joint_confidence,
            max_gap=clip.max_gap,
            min_joints=clip.min_joints,
        )
        out[str(ids[begin])] = PartFrames(row[span], frame_index[span], skeleton, mask)
    return out


def _read_poses(
    skeletons: Rows, tracklets: pa.Array, layout: JointLayout
) -> tuple[FloatArray, dict[tuple[str, int], int]]:
    """Read the skeletons there are: (N, J, 3) raw, and the position of each by (tracklet_id, frame_index)."""
    table = _only(skeletons.keys(["keypoints", "has_skeleton"]), tracklets)
    keys = list(zip(table["tracklet_id"].to_pylist(), table["frame_index"].to_pylist(), strict=True))
    if len(set(keys)) != len(keys):
        raise StoreError(
            f"{skeletons.ref.uri} version {skeletons.ref.version}: found crops with skeletons of several extractors; "
            "expected one. Build the snapshot from videos of one extraction."
        )
    has = table["has_skeleton"].to_pylist()
    pose_of = {key: i for i, key in enumerate(keys) if has[i]}
    return keypoints_array(table["keypoints"], len(layout.joints)), pose_of


def _only(table: pa.Table, tracklets: pa.Array) -> pa.Table:
    return table.filter(pc.is_in(table["tracklet_id"], value_set=tracklets))


def cut_part(part: TrackletPart, tracklets: dict[str, PartFrames]) -> PartFrames:
    """Cut a part's frames out of its tracklet's.

    Raises:
        StoreError: the part has no crops.
    """
    whole = tracklets.get(part.tracklet_id)
    if whole is not None:
        keep = (whole.frame_index >= part.first_frame) & (whole.frame_index <= part.last_frame)
        if keep.any():
            return whole.at(keep)
    raise StoreError(
        f"Part {part.tracklet_id} frames {part.first_frame}..{part.last_frame}: found no crops. "
        "The snapshot names rows that its version of `crops` does not have; build it again."
    )


def training_units(
    part: TrackletPart, frames: PartFrames, clip: ClipConfig
) -> Iterator[tuple[TrackletPart, PartFrames]]:
    """Cut a part into the units that training samples, each a part of its own (method.md section 4).

    Args:
        part: to cut.
        frames: its n frames.
        clip: `unit`, `unit_frames` and `unit_stride`.
    """
    for begin, end in sampling.cut_units(len(frames.row), clip.unit, clip.unit_frames, clip.unit_stride):
        first, last = int(frames.frame_index[begin]), int(frames.frame_index[end - 1])
        unit = TrackletPart(part.tracklet_id, first, last, part.pid, part.camid)
        yield unit, frames.at(slice(begin, end))
