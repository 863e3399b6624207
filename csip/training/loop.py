"""What the training loops share: where chance comes from, running means, and a look at every loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from csip.config import digest
from csip.data.clips import ClipDataset, label_of_pid, read_cameras, read_parts
from csip.errors import CheckpointError, CsipError
from csip.models.checkpoints import CheckpointHeader
from csip.types import ClipBatch, Progress, Snapshot


def stream(seed: int, *names: object) -> int:
    """Derive an independent seed for a purpose, for example ``stream(seed, "stage2", epoch)``."""
    return int(digest(seed, *[str(name) for name in names])[:15], 16)


def seed_torch(seed: int, *names: object) -> None:
    """Set torch's generators (initial weights, dropout, sign flips) for a purpose, so that an epoch can be redone."""
    torch.manual_seed(stream(seed, *names))


def training_data(snapshot: Snapshot, header: CheckpointHeader) -> ClipDataset:
    """Open a snapshot's training parts, labelled as the checkpoint was built for them.

    Raises:
        CheckpointError: the checkpoint was built for other people, other cameras or another joint layout.
    """
    parts = read_parts(snapshot, "train")
    label = label_of_pid(parts)
    dataset = ClipDataset(snapshot, parts, header.spec.clip, label)
    spec = header.spec
    if (tuple(label), dataset.layout.name, read_cameras(snapshot)) != (spec.pids, spec.layout, spec.cameras):
        raise CheckpointError(
            f"Snapshot {snapshot.name}: found {len(label)} people to train on with {dataset.layout.name} skeletons, "
            f"expected the {len(spec.pids)} people, {spec.layout} skeletons and cameras {spec.cameras} that the "
            "checkpoint was built for. Train from the start on this snapshot."
        )
    return dataset


def heartbeat(stage: str, epoch: int, epochs: int) -> Progress:
    """Say after a batch that the stage is alive: no epoch more is done, and there is no figure to keep."""
    return Progress(stage, epoch - 1, epochs, "epochs")


class Means:
    """Means over an epoch of named figures, weighted by how many clips each batch had."""

    def __init__(self) -> None:
        self._sum: dict[str, float] = {}
        self._clips = 0

    def add(self, clips: int, **values: float | Tensor) -> None:
        """Add a batch's figures."""
        self._clips += clips
        for name, value in values.items():
            number = float(value.detach()) if isinstance(value, Tensor) else float(value)
            self._sum[name] = self._sum.get(name, 0.0) + clips * number

    def read(self) -> Mapping[str, float]:
        """Give the means so far; empty before the first batch."""
        return {name: total / self._clips for name, total in self._sum.items()}


def require_finite(loss: Tensor, stage: str, epoch: int, dataset: ClipDataset, parts: Tensor) -> None:
    """Stop before a loss that is no number reaches the weights.

    Raises:
        CsipError: the loss is NaN or infinite; names the batch's tracklets.
    """
    if not bool(torch.isfinite(loss)):
        names = sorted({dataset.parts[int(i)].tracklet_id for i in parts})
        raise CsipError(
            f"{stage}, epoch {epoch}: the loss is {float(loss)} on a batch of tracklets {', '.join(names[:20])}. "
            "Look at their crops and skeletons, or lower the learning rate."
        )


def to_device(batch: ClipBatch, device: str) -> ClipBatch:
    """Copy a batch to where the model is."""
    return ClipBatch(
        crops=batch.crops.to(device),
        skeleton=batch.skeleton.to(device),
        frame_mask=batch.frame_mask.to(device),
        label=batch.label.to(device),
        camid=batch.camid.to(device),
        part=batch.part,
    )
