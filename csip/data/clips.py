"""A published snapshot as clips: parts, their crops and skeletons, and batches of them.

Shapes: B clips, T frames a clip, n frames of a part, J joints.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import Dataset

from csip.config import ClipConfig, DataConfig
from csip.data import sampling, transforms
from csip.data.index import cut_part, index_tracklets, training_units
from csip.errors import StoreError, TooLittleDataError
from csip.joints import LAYOUTS, JointLayout
from csip.tables import Rows, binary_views, count, pinned, quote, read, snapshot_row
from csip.types import ClipBatch, IntArray, Snapshot, TrackletPart

Role = Literal["train", "query", "gallery"]


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


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """A batch that is read, but not decoded and augmented yet.

    Attributes:
        clips: for each clip its request, the (T,) positions of its frames, and the randomness that drew them (None
            where the request named them).
        images: encoded crops by row number; those of all batches that were read with this one.
    """

    clips: list[tuple[ClipRequest, IntArray, np.random.Generator | None]]
    images: dict[int, memoryview]


def read_parts(snapshot: Snapshot, role: Role) -> tuple[TrackletPart, ...]:
    """List a snapshot's parts of one role, sorted by tracklet and first frame."""
    rows = read(pinned(snapshot, "splits"), where=f"{_chosen(snapshot)} AND role = {quote(role)}").to_pylist()
    fields = ("tracklet_id", "first_frame", "last_frame", "pid", "camid")
    return tuple(TrackletPart(**{name: row[name] for name in fields}) for row in rows)


def read_splits(snapshot: Snapshot) -> dict[str, tuple[str, ...]]:
    """List every protocol of a snapshot with its splits, both sorted, numbers by their size."""
    found = read(pinned(snapshot, "splits"), ["protocol", "split"], f"dataset = {quote(snapshot.name)}")
    pairs = set(zip(found["protocol"].to_pylist(), found["split"].to_pylist(), strict=True))
    return {
        protocol: tuple(sorted((split for name, split in pairs if name == protocol), key=lambda s: (len(s), s)))
        for protocol in sorted({protocol for protocol, _ in pairs})
    }


def choose_splits(snapshot: Snapshot, config: DataConfig) -> tuple[Snapshot, ...]:
    """Settle what of a snapshot is meant: one view of it for each split that the configuration names.

    Raises:
        TooLittleDataError: the snapshot has no protocol at all.
        ValueError: it has no such protocol or split, or several of which none is named; the message lists them.
    """
    there = read_splits(snapshot)
    if not there:
        counts = snapshot_row(snapshot.store, snapshot.name)["counts"]
        why = counts.get("no_protocol", "Build it again from more video.")
        raise TooLittleDataError(f"Snapshot {snapshot.name}: found no protocol in it, expected one. {why}")
    protocols = _pick("protocol", config.protocol, tuple(there), snapshot)
    return tuple(
        replace(snapshot, protocol=protocol, split=split)
        for protocol in protocols
        for split in _pick("split", config.split, there[protocol], snapshot)
    )


def _pick(field: str, wanted: str, there: tuple[str, ...], snapshot: Snapshot) -> tuple[str, ...]:
    chosen = there if wanted == "all" or (not wanted and len(there) == 1) else (wanted,)
    if not set(chosen) <= set(there):
        raise ValueError(
            f"data.{field}={wanted}: snapshot {snapshot.name} has {', '.join(there)}. Name one of those, "
            f"--set data.{field}={there[0]}, or all."
        )
    return chosen


def read_protocol(snapshot: Snapshot) -> tuple[str, str]:
    """Tell which protocol and split of a snapshot is meant.

    Raises:
        TooLittleDataError: it has none.
        ValueError: it has several, and none was chosen.
    """
    if snapshot.protocol:
        return snapshot.protocol, snapshot.split
    (view,) = choose_splits(snapshot, DataConfig())
    return view.protocol, view.split


def _chosen(snapshot: Snapshot) -> str:
    """Write the condition on `splits` that a snapshot's protocol and split make."""
    where = f"dataset = {quote(snapshot.name)}"
    if not snapshot.protocol and not read_splits(snapshot):
        return where
    protocol, split = read_protocol(snapshot)
    return f"{where} AND protocol = {quote(protocol)} AND split = {quote(split)}"


def read_cameras(snapshot: Snapshot) -> tuple[str, ...]:
    """Name a snapshot's cameras in the order of their camids."""
    rows = read(pinned(snapshot, "splits"), ["camid", "camera"], f"dataset = {quote(snapshot.name)}")
    name = dict(zip(rows["camid"].to_pylist(), rows["camera"].to_pylist(), strict=True))
    return tuple(name.get(camid, "") for camid in range(1 + max(name, default=-1)))


def read_groups(snapshot: Snapshot) -> dict[str, frozenset[int]]:
    """Name the subsets of people that scores are also reported for: group -> pids, in the order of the names."""
    rows = read(pinned(snapshot, "splits"), ["pid", "group"], _chosen(snapshot))
    pairs = set(zip(rows["group"].to_pylist(), rows["pid"].to_pylist(), strict=True))
    names = sorted({group for group, _ in pairs if group})
    return {name: frozenset(pid for group, pid in pairs if group == name) for name in names}


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
            "Training needs skeletons: extract its videos again with one pose model, or import the benchmark with "
            "benchmark.skeletons=files or pose."
        )
    return LAYOUTS[names[0]]


def has_skeletons(snapshot: Snapshot) -> bool:
    """Tell whether a snapshot's tracklets have skeletons: some of their rows, or none at all."""
    own = read(pinned(snapshot, "splits"), [], f"dataset = {quote(snapshot.name)}")["tracklet_id"]
    some = own[0].as_py() if len(own) else ""
    return count(pinned(snapshot, "skeletons"), f"tracklet_id = {quote(some)}") > 0


class ClipDataset(Dataset[ClipBatch]):
    """Draws clips of the given parts from a pinned snapshot.

    It keeps row numbers and skeletons in memory (some 250 bytes a crop) and reads crops from Lance by row.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        parts: Sequence[TrackletPart],
        clip: ClipConfig,
        label: dict[int, int] | None = None,
        *,
        units: bool = False,
        skeletons: bool = True,
    ) -> None:
        """Index the parts.

        Args:
            snapshot: what to read.
            parts: of the snapshot, in the order that `ClipRequest.part` counts.
            clip: sampling, size and augmentation.
            label: pid -> class index; without it, clips carry label -1.
            units: cut the parts into training units, as `clip` says; these are then what `ClipRequest.part` counts.
            skeletons: read them; without, clips have no joints (J is 0), and a snapshot needs no skeletons.

        Raises:
            StoreError: a part has no crops, or crops and skeletons do not pair.
        """
        self.clip = clip
        self.layout = joint_layout(snapshot) if skeletons else None
        self._crops = Rows(pinned(snapshot, "crops"))
        wanted = {part.tracklet_id for part in parts}
        poses = Rows(pinned(snapshot, "skeletons"))
        tracklets = index_tracklets(self._crops, wanted, poses, self.layout, clip)
        found = [(part, cut_part(part, tracklets)) for part in parts]
        if units:
            found = [unit for part, frames in found for unit in training_units(part, frames, clip)]
        self.parts = tuple(part for part, _ in found)
        self.frames = tuple(frames for _, frames in found)
        self.labels = tuple(-1 if label is None else label[part.pid] for part in self.parts)

    def __len__(self) -> int:
        """Count the parts."""
        return len(self.parts)

    def read_crops(self, rows: IntArray) -> list[Tensor]:
        """Decode crops by row number, each (3, h, w) uint8 RGB in its own size.

        Raises:
            StoreError: a crop is no picture.
        """
        images = self._read_images(rows)
        pixels = {row: self._decode(image, row) for row, image in images.items()}
        return [pixels[row] for row in rows.tolist()]

    def _read_images(self, rows: IntArray) -> dict[int, memoryview]:
        """Read encoded crops by row number, each once, in one call to the store."""
        unique = np.unique(rows)
        images = binary_views(self._crops.take(unique, ["image"])["image"])
        return dict(zip(unique.tolist(), images, strict=True))

    def _decode(self, image: memoryview, row: int) -> Tensor:
        try:
            return transforms.decode_crop(image, f"in row {row} of {self._crops.ref.uri}")
        except StoreError:
            # Names are read only now: a column costs as much to read as the pictures do.
            key = self._crops.take(np.array([row]), ["tracklet_id", "frame_index"]).to_pylist()[0]
            return transforms.decode_crop(image, f"{key['tracklet_id']}/{key['frame_index']}")

    def __getitem__(self, request: ClipRequest) -> ClipBatch:
        """Make one clip, as a batch of one."""
        return self.make_batch([request])

    def __getitems__(self, requests: list[ClipRequest]) -> ClipBatch:
        """Make a batch, reading its crops from Lance in one call."""
        return self.make_batch(requests)

    def make_batch(self, requests: Sequence[ClipRequest]) -> ClipBatch:
        """Draw, read and augment the clips asked for."""
        (batch,) = self.read_batches([requests])
        return self.decode_batch(batch)

    def read_batches(self, plan: Sequence[Sequence[ClipRequest]]) -> list[EncodedBatch]:
        """Draw and read the clips of some batches in one call to the store: half the time of a call for each.

        What a batch becomes does not depend on those it is read with.
        """
        drawn = [[(request, *self._draw(request)) for request in requests] for requests in plan]
        images = self._read_images(np.concatenate([self.frames[r.part].row[at] for one in drawn for r, at, _ in one]))
        return [EncodedBatch(clips, images) for clips in drawn]

    def decode_batch(self, batch: EncodedBatch) -> ClipBatch:
        """Decode and augment a batch that was read; once only, since that uses up its randomness.

        Raises:
            StoreError: a crop is no picture.
        """
        part = [request.part for request, _, _ in batch.clips]
        rows = [self.frames[request.part].row[at] for request, at, _ in batch.clips]
        resized = {
            row: transforms.resize_crop(self._decode(batch.images[row], row), self.clip)
            for row in np.unique(np.concatenate(rows)).tolist()
        }
        crops, skeletons, masks = [], [], []
        for row, (request, at, rng) in zip(rows, batch.clips, strict=True):
            frames = self.frames[request.part]
            clip = torch.stack([resized[i] for i in row.tolist()])
            skeleton = torch.from_numpy(frames.skeleton[at])
            if request.augment:
                clip, skeleton = self._augment(clip, skeleton, rng or np.random.default_rng(request.seed))
            crops.append(clip)
            skeletons.append(skeleton)
            masks.append(torch.from_numpy(frames.frame_mask[at]))
        return ClipBatch(
            crops=transforms.normalise_crops(torch.stack(crops), self.clip),
            skeleton=torch.stack(skeletons),
            frame_mask=torch.stack(masks),
            label=torch.tensor([self.labels[i] for i in part]),
            camid=torch.tensor([self.parts[i].camid for i in part]),
            part=torch.tensor(part),
        )

    def _draw(self, request: ClipRequest) -> tuple[IntArray, np.random.Generator | None]:
        if request.positions is not None:
            return np.asarray(request.positions, dtype=np.int64), None
        rng = np.random.default_rng(request.seed)
        n = len(self.frames[request.part].row)
        return sampling.restricted_random(n, self.clip.frames, rng, self.clip.chunks), rng

    def _augment(self, clip: Tensor, skeleton: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Flip with one coin a clip, erase with one coin a frame (method.md section 1)."""
        if self.layout is None:
            raise ValueError("ClipDataset: asked to augment clips without skeletons; make it with skeletons=True.")
        if rng.random() < self.clip.flip:
            clip, skeleton = transforms.flip_clip(clip, skeleton, self.layout)
        frames = [transforms.erase(f, self.clip, rng) if rng.random() < self.clip.erase else f for f in clip]
        return torch.stack(frames), skeleton


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


def single_tracklet_people(dataset: ClipDataset) -> list[int]:
    """List, ascending, the pids that have one part (or unit) only: the sampler draws it K times for their group.

    Such a group's positives are clips of the same tracklet under the same camera; the triplet loss learns little from
    them.
    """
    count = Counter(part.pid for part in dataset.parts)
    return sorted(pid for pid, parts in count.items() if parts == 1)
