"""Joint layouts as data, and what follows from them: graph positions, mirror, centring and scale.

Shapes: T frames, J joints, K graph positions. A skeleton's last axis is x, y, confidence (2D) or x, y, z (3D).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from csip.types import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class JointLayout:
    """Names the joints of a skeleton and how they hang together.

    Attributes:
        name: of the layout, as tables store it.
        joints: names in the order of the J axis.
        bones: pairs of joint indices, the edges of the graph.
        mirror: left/right pairs that a horizontal flip swaps.
        root: joints whose middle is the origin.
        third: what the last channel holds.
    """

    name: str
    joints: tuple[str, ...]
    bones: tuple[tuple[int, int], ...]
    mirror: tuple[tuple[int, int], ...]
    root: tuple[int, ...]
    third: Literal["confidence", "z"]

    def __post_init__(self) -> None:
        for pair in (*self.bones, *self.mirror):
            if not all(0 <= j < len(self.joints) for j in pair):
                raise ValueError(f"JointLayout {self.name}: {pair} names a joint outside 0..{len(self.joints) - 1}.")
        touched = {j for pair in self.bones for j in pair}
        if len(touched) < len(self.joints) or int((np.linalg.eigvalsh(self._laplacian()) < 1e-9).sum()) != 1:
            raise ValueError(f"JointLayout {self.name}: the bones do not connect all joints into one graph.")

    def _laplacian(self) -> npt.NDArray[np.float64]:
        adjacency = np.zeros((len(self.joints), len(self.joints)))
        for a, b in self.bones:
            adjacency[a, b] = adjacency[b, a] = 1.0
        scale = 1.0 / np.sqrt(adjacency.sum(axis=1))
        return np.asarray(np.eye(len(adjacency)) - scale[:, None] * adjacency * scale[None, :])

    def graph_positions(self, count: int) -> FloatArray:
        """Laplacian positional encoding (method.md section 2): eigenvectors 1..count by ascending eigenvalue.

        Eigenvectors have no sign of their own; here the entry of largest magnitude (the first such) is positive.

        Returns:
            (J, count) float32.

        Raises:
            ValueError: the graph has fewer than `count` eigenvectors after the first.
        """
        if not 1 <= count < len(self.joints):
            raise ValueError(f"graph_positions: got {count}, expected 1 to {len(self.joints) - 1} for {self.name}.")
        _, vectors = np.linalg.eigh(self._laplacian())
        chosen = vectors[:, 1 : count + 1]
        # Rounded, so that two entries of equal magnitude do not decide the sign differently from machine to machine.
        peak = np.abs(chosen).round(6).argmax(axis=0)
        return np.asarray(chosen * np.sign(chosen[peak, np.arange(count)]), dtype=np.float32)

    def swap(self) -> npt.NDArray[np.int64]:
        """List, for each joint, the one that stands in its place after a horizontal flip, (J,)."""
        order = np.arange(len(self.joints))
        for left, right in self.mirror:
            order[left], order[right] = right, left
        return order


COCO17 = JointLayout(
    name="coco17",
    joints=(
        *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder"),
        *("left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip"),
        *("left_knee", "right_knee", "left_ankle", "right_ankle"),
    ),
    bones=(
        *((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8)),
        *((7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
    ),
    mirror=((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
    root=(11, 12),
    third="confidence",
)

H36M17 = JointLayout(
    name="h36m17",
    joints=(
        *("pelvis", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle"),
        *("spine", "thorax", "neck", "head", "left_shoulder", "left_elbow", "left_wrist"),
        *("right_shoulder", "right_elbow", "right_wrist"),
    ),
    bones=(
        *((10, 9), (9, 8), (8, 11), (11, 12), (12, 13), (8, 14), (14, 15), (15, 16), (8, 7), (7, 0)),
        *((0, 1), (1, 2), (2, 3), (0, 4), (4, 5), (5, 6)),
    ),
    mirror=((1, 4), (2, 5), (3, 6), (11, 14), (12, 15), (13, 16)),
    root=(0,),
    third="z",
)

KINECT20 = JointLayout(
    name="kinect20",
    joints=(
        *("hip_centre", "spine", "shoulder_centre", "head"),
        *("left_shoulder", "left_elbow", "left_wrist", "left_hand"),
        *("right_shoulder", "right_elbow", "right_wrist", "right_hand"),
        *("left_hip", "left_knee", "left_ankle", "left_foot"),
        *("right_hip", "right_knee", "right_ankle", "right_foot"),
    ),
    bones=(
        *((3, 2), (2, 8), (8, 9), (9, 10), (10, 11), (2, 4), (4, 5), (5, 6), (6, 7), (2, 1)),
        *((1, 0), (0, 16), (0, 12), (16, 17), (17, 18), (18, 19), (12, 13), (13, 14), (14, 15)),
    ),
    mirror=((4, 8), (5, 9), (6, 10), (7, 11), (12, 16), (13, 17), (14, 18), (15, 19)),
    root=(0,),
    third="z",
)

LAYOUTS = {layout.name: layout for layout in (COCO17, H36M17, KINECT20)}


def normalise(
    skeleton: FloatArray,
    boxes: FloatArray,
    frame_index: IntArray,
    layout: JointLayout,
    *,
    joint_confidence: float,
    max_gap: int,
    min_joints: int,
) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Bring a tracklet's raw skeletons to the form the encoder reads (method.md section 5).

    Args:
        skeleton: (T, J, 3) raw: frame pixels and confidence, or the source's own 3D units.
        boxes: (T, 4) x1 y1 x2 y2, frame pixels; read for 2D layouts only.
        frame_index: (T,) strictly increasing; gaps in it count as frames in which nothing was seen.
        layout: of the J axis.
        joint_confidence: 2D joints under it count as unseen.
        max_gap: unseen 2D joints are interpolated over at most this many frames.
        min_joints: a 2D frame with fewer seen joints is masked.

    Returns:
        (T, J, 3) float32 root-centred, and (T,) bool, True where the frame's skeleton is valid. Masked frames are zero.

    Raises:
        ValueError: the arrays do not fit each other or the layout.
    """
    t, j = len(skeleton), len(layout.joints)
    if skeleton.shape != (t, j, 3) or boxes.shape != (t, 4) or frame_index.shape != (t,):
        raise ValueError(
            f"normalise: got skeleton {skeleton.shape}, boxes {boxes.shape} and frame_index {frame_index.shape}, "
            f"expected ({t}, {j}, 3) for layout {layout.name}, ({t}, 4) and ({t},)."
        )
    if not np.isfinite(skeleton).all():
        raise ValueError("normalise: the skeleton holds NaN or infinite coordinates; expected finite numbers.")
    if layout.third == "z":
        mask = np.any(skeleton != 0, axis=(1, 2))
        centred = skeleton - skeleton[:, list(layout.root)].mean(axis=1, keepdims=True)
        return np.where(mask[:, None, None], centred, 0).astype(np.float32), mask
    seen = skeleton[:, :, 2] >= joint_confidence
    mask = seen.sum(axis=1) >= min_joints
    points, known = _interpolate(skeleton[:, :, :2].astype(np.float64), seen, frame_index, max_gap)
    root = _root(points, known, boxes, layout)
    centred2d = np.where(known[:, :, None], points - root[:, None], 0) / _scale(points, known, boxes, layout)
    out = np.concatenate([centred2d, skeleton[:, :, 2:]], axis=2)
    return np.where(mask[:, None, None], out, 0).astype(np.float32), mask


def _interpolate(
    points: npt.NDArray[np.float64], seen: npt.NDArray[np.bool_], frame_index: IntArray, max_gap: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Fill gaps of at most `max_gap` frames between two sightings of a joint, linearly."""
    points, known = points.copy(), seen.copy()
    for j in range(points.shape[1]):
        at = np.flatnonzero(seen[:, j])
        for a, b in itertools.pairwise(at):
            span = frame_index[b] - frame_index[a]
            if b - a > 1 and span <= max_gap + 1:
                weight = (frame_index[a + 1 : b] - frame_index[a])[:, None] / span
                points[a + 1 : b, j] = (1 - weight) * points[a, j] + weight * points[b, j]
                known[a + 1 : b, j] = True
    return points, known


def _root(
    points: npt.NDArray[np.float64], known: npt.NDArray[np.bool_], boxes: FloatArray, layout: JointLayout
) -> npt.NDArray[np.float64]:
    """(T, 2): the middle of the known root joints, else the middle of the box."""
    have = known[:, list(layout.root)]
    count = have.sum(axis=1)
    middle = (points[:, list(layout.root)] * have[:, :, None]).sum(axis=1) / np.maximum(count, 1)[:, None]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    return np.asarray(np.where(count[:, None] > 0, middle, centre))


def _scale(
    points: npt.NDArray[np.float64], known: npt.NDArray[np.bool_], boxes: FloatArray, layout: JointLayout
) -> float:
    """The tracklet's median torso length in pixels, else .3 of its median box height, so that distance drops out."""
    joints = [layout.joints.index(n) for n in ("left_shoulder", "right_shoulder", "left_hip", "right_hip")]
    whole = known[:, joints].all(axis=1)
    shoulders, hips = points[:, joints[:2]].mean(axis=1), points[:, joints[2:]].mean(axis=1)
    torso = np.linalg.norm(shoulders - hips, axis=1)[whole]
    if len(torso) and np.median(torso) > 0:
        return float(np.median(torso))
    return max(0.3 * float(np.median(boxes[:, 3] - boxes[:, 1])), 1e-6)
