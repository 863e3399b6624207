"""A published snapshot as clips: parts, their crops and skeletons, and batches of them.

Shapes: B clips, T frames a clip, n frames of a part, J joints, C feature width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from csip.config import ClipConfig
from csip.data import sampling, transforms
from csip.errors import StoreError, TooLittleDataError
from csip.joints import LAYOUTS, JointLayout, normalise
from csip.tables import Rows, boxes_array, keypoints_array, pinned, quote, read
from csip.types import ClipBatch, FloatArray, IntArray, Snapshot, TrackletPart

Role = Literal["train", "query", "gallery"]


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


@dataclass(frozen=True, slots=True)
class ClipRequest:
    """Asks a `ClipDataset` for one clip; everything random in it follows from `seed`.

    Attributes:
        part: position of the part in the data set.
        positions: T frames of the part; None draws them from `seed`, one a chunk.
        augment: flip and erase, as `ClipConfig` says.
        seed: of the draw and the augmentation.
    """

    part: int
    positions: tuple[int, ...] | None
    augment: bool
    seed: int


def read_parts(snapshot: Snapshot, role: Role) -> tuple[TrackletPart, ...]:
    """List a snapshot's parts of one role, sorted by tracklet and first frame."""
    where = f"dataset = {quote(snapshot.name)} AND role = {quote(role)}"
    rows = read(pinned(snapshot, "splits"), where=where).to_pylist()
    fields = ("tracklet_id", "first_frame", "last_frame", "pid", "camid")
    return tuple(TrackletPart(**{name: row[name] for name in fields}) for row in rows)


def read_protocol(snapshot: Snapshot) -> tuple[str, str]:
    """Tell which protocol and split a snapshot has.

    Raises:
        TooLittleDataError: none, or more than one.
    """
    where = f"dataset = {quote(snapshot.name)}"
    found = read(pinned(snapshot, "splits"), ["protocol", "split"], where)
    names = sorted(set(zip(found["protocol"].to_pylist(), found["split"].to_pylist(), strict=True)))
    if len(names) != 1:
        raise TooLittleDataError(
            f"Snapshot {snapshot.name}: found the protocols and splits {names}, expected exactly one. "
            "Build it again from more video."
        )
    return names[0]


def read_cameras(snapshot: Snapshot) -> tuple[str, ...]:
    """Name a snapshot's cameras in the order of their camids."""
    rows = read(pinned(snapshot, "splits"), ["camid", "camera"], f"dataset = {quote(snapshot.name)}")
    name = dict(zip(rows["camid"].to_pylist(), rows["camera"].to_pylist(), strict=True))
    return tuple(name.get(camid, "") for camid in range(1 + max(name, default=-1)))


def label_of_pid(parts: Sequence[TrackletPart]) -> dict[int, int]:
    """Number the people 0..K-1 by ascending pid (datasets.md section 0, item 12)."""
    return {pid: label for label, pid in enumerate(sorted({part.pid for part in parts}))}


def joint_layout(snapshot: Snapshot) -> JointLayout:
    """Tell which joint layout a snapshot's skeletons have.

    Raises:
        StoreError: it holds none, more than one, or one that this version does not know.
    """
    own = read(pinned(snapshot, "splits"), where=f"dataset = {quote(snapshot.name)}")["tracklet_id"]
    table = read(pinned(snapshot, "skeletons"), ["layout"])
    names = sorted(set(table.filter(pc.is_in(table["tracklet_id"], value_set=own))["layout"].to_pylist()))
    if len(names) != 1 or names[0] not in LAYOUTS:
        raise StoreError(
            f"Snapshot {snapshot.name}: found skeletons of layouts {names}, expected one of {sorted(LAYOUTS)}. "
            "Extract its videos again with one pose model."
        )
    return LAYOUTS[names[0]]


class ClipDataset(Dataset[ClipBatch]):
    """Draws clips of the given parts from a pinned snapshot.

    It keeps row numbers and skeletons in memory (some 250 bytes a crop) and reads crops from Lance by row.
    """

    def __init__(
        self, snapshot: Snapshot, parts: Sequence[TrackletPart], clip: ClipConfig, label: dict[int, int] | None = None
    ) -> None:
        """Index the parts.

        Args:
            snapshot: what to read.
            parts: of the snapshot, in the order that `ClipRequest.part` counts.
            clip: sampling, size and augmentation.
            label: pid -> class index; without it, clips carry label -1.

        Raises:
            StoreError: a part has no crops, or crops and skeletons do not pair.
        """
        self.parts = tuple(parts)
        self.clip = clip
        self.layout = joint_layout(snapshot)
        self._crops = Rows(pinned(snapshot, "crops"))
        self.labels = tuple(-1 if label is None else label[part.pid] for part in self.parts)
        wanted = {part.tracklet_id for part in self.parts}
        tracklets = _index_tracklets(self._crops, Rows(pinned(snapshot, "skeletons")), wanted, self.layout, clip)
        self.frames = tuple(_cut(part, tracklets) for part in self.parts)

    def __len__(self) -> int:
        """Count the parts."""
        return len(self.parts)

    def read_crops(self, rows: IntArray) -> list[Tensor]:
        """Decode crops by row number, each (3, h, w) uint8 RGB in its own size."""
        unique, back = np.unique(rows, return_inverse=True)
        table = self._crops.take(unique, ["image", "tracklet_id", "frame_index"])
        images = [
            transforms.decode_crop(image, f"{tracklet}/{frame}")
            for image, tracklet, frame in zip(*(table[c].to_pylist() for c in table.column_names), strict=True)
        ]
        return [images[i] for i in back]

    def __getitem__(self, request: ClipRequest) -> ClipBatch:
        """Make one clip, as a batch of one."""
        return self.make_batch([request])

    def __getitems__(self, requests: list[ClipRequest]) -> ClipBatch:
        """Make a batch, reading its crops from Lance in one call."""
        return self.make_batch(requests)

    def make_batch(self, requests: Sequence[ClipRequest]) -> ClipBatch:
        """Draw, read and augment the clips asked for."""
        rngs = [np.random.default_rng(request.seed) for request in requests]
        chosen = [self._positions(r, rng) for r, rng in zip(requests, rngs, strict=True)]
        rows = np.concatenate([self.frames[r.part].row[p] for r, p in zip(requests, chosen, strict=True)])
        pixels = [transforms.resize_crop(image, self.clip) for image in self.read_crops(rows)]
        crops, skeletons, masks = [], [], []
        for i, (request, rng, at) in enumerate(zip(requests, rngs, chosen, strict=True)):
            frames = self.frames[request.part]
            clip = torch.stack(pixels[i * len(at) : (i + 1) * len(at)])
            skeleton = torch.from_numpy(frames.skeleton[at])
            if request.augment:
                clip, skeleton = self._augment(clip, skeleton, rng)
            crops.append(clip)
            skeletons.append(skeleton)
            masks.append(torch.from_numpy(frames.frame_mask[at]))
        return ClipBatch(
            crops=transforms.normalise_crops(torch.stack(crops), self.clip),
            skeleton=torch.stack(skeletons),
            frame_mask=torch.stack(masks),
            label=torch.tensor([self.labels[request.part] for request in requests]),
            camid=torch.tensor([self.parts[request.part].camid for request in requests]),
            part=torch.tensor([request.part for request in requests]),
        )

    def _positions(self, request: ClipRequest, rng: np.random.Generator) -> IntArray:
        if request.positions is not None:
            return np.asarray(request.positions, dtype=np.int64)
        return sampling.restricted_random(len(self.frames[request.part].row), self.clip.frames, rng)

    def _augment(self, clip: Tensor, skeleton: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Flip with one coin a clip, erase with one coin a frame (method.md section 1)."""
        if rng.random() < self.clip.flip:
            clip, skeleton = transforms.flip_clip(clip, skeleton, self.layout)
        frames = [transforms.erase(f, rng) if rng.random() < self.clip.erase else f for f in clip]
        return torch.stack(frames), skeleton


def load_batches(dataset: ClipDataset, batches: Sequence[Sequence[ClipRequest]], workers: int) -> Iterator[ClipBatch]:
    """Make batches in order, in `workers` processes beside this one (0: in this one).

    What comes out does not depend on `workers`: everything random follows from the requests' seeds. Workers are
    spawned, since Lance is not fork-safe.
    """
    yield from DataLoader(
        dataset,
        batch_sampler=[list(batch) for batch in batches],
        num_workers=workers,
        collate_fn=_as_it_is,
        multiprocessing_context="spawn" if workers else None,
    )


def _as_it_is(batch: Any) -> ClipBatch:
    """Collate nothing: `ClipDataset.__getitems__` makes whole batches."""
    return cast("ClipBatch", batch)


def _index_tracklets(
    crops: Rows, skeletons: Rows, wanted: set[str], layout: JointLayout, clip: ClipConfig
) -> dict[str, PartFrames]:
    """Join crops and skeletons on (tracklet_id, frame_index), and normalise each wanted tracklet's skeletons.

    A crop without a skeleton keeps its place with a mask.
    """
    names = pa.array(sorted(wanted), pa.string())
    crop_table = _only(crops.keys(["box"]), names)
    pose_table = _only(skeletons.keys(["keypoints"]), names)
    poses = keypoints_array(pose_table["keypoints"], len(layout.joints))
    pose_of = {
        key: i
        for i, key in enumerate(
            zip(pose_table["tracklet_id"].to_pylist(), pose_table["frame_index"].to_pylist(), strict=True)
        )
    }
    if len(pose_of) != len(pose_table):
        raise StoreError(
            f"{skeletons.ref.uri} version {skeletons.ref.version}: found crops with skeletons of several extractors; "
            "expected one. Build the snapshot from videos of one extraction."
        )
    ids = np.asarray(crop_table["tracklet_id"].to_pylist(), dtype=object)
    frame_index = np.asarray(crop_table["frame_index"], dtype=np.int64)
    row = np.asarray(crop_table["row"], dtype=np.int64)
    box = boxes_array(crop_table["box"])
    at = np.array([pose_of.get(key, -1) for key in zip(ids, frame_index.tolist(), strict=True)], dtype=np.int64)
    starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]])) if len(ids) else np.zeros(0, np.int64)
    out = {}
    for begin, end in zip(starts, np.append(starts, len(ids))[1:], strict=True):
        span = slice(int(begin), int(end))
        raw = np.zeros((end - begin, len(layout.joints), 3), np.float32)
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


def _only(table: pa.Table, tracklets: pa.Array) -> pa.Table:
    return table.filter(pc.is_in(table["tracklet_id"], value_set=tracklets))


def _cut(part: TrackletPart, tracklets: dict[str, PartFrames]) -> PartFrames:
    whole = tracklets.get(part.tracklet_id)
    if whole is not None:
        keep = (whole.frame_index >= part.first_frame) & (whole.frame_index <= part.last_frame)
        if keep.any():
            return PartFrames(whole.row[keep], whole.frame_index[keep], whole.skeleton[keep], whole.frame_mask[keep])
    raise StoreError(
        f"Part {part.tracklet_id} frames {part.first_frame}..{part.last_frame}: found no crops. "
        "The snapshot names rows that its version of `crops` does not have; build it again."
    )


def identity_requests(
    dataset: ClipDataset, identities: int, clips_per_identity: int, *, seed: int, epoch: int
) -> list[list[ClipRequest]]:
    """Plan an epoch of P x K training batches: a pure function of the parts, the seed and the epoch."""
    if -1 in dataset.labels:
        raise ValueError("identity_requests: got a data set without labels, expected one made with `label`.")
    rng = np.random.default_rng([seed, epoch])
    return [
        [ClipRequest(int(part), None, augment=True, seed=int(rng.integers(2**62))) for part in batch]
        for batch in sampling.identity_batches(dataset.labels, identities, clips_per_identity, rng)
    ]
