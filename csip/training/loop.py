"""What the training loops share: where chance comes from, their data, and a look at every loss."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor

from csip import ranks
from csip.config import PretrainConfig, RuntimeConfig, Stage2Config
from csip.data import sampling
from csip.data.clips import (
    ClipDataset,
    ClipRequest,
    joint_layout,
    label_of_pid,
    read_cameras,
    read_parts,
    single_tracklet_people,
)
from csip.errors import CheckpointError, CsipError
from csip.models.checkpoints import CheckpointHeader, ModelSpec, SpecT
from csip.models.reid import CsipReID
from csip.plain import digest
from csip.types import ClipBatch, IntArray, Snapshot, TrackletPart

_LOG = logging.getLogger(__name__)


def stream(seed: int, *names: object) -> int:
    """Derive an independent seed for a purpose, for example ``stream(seed, "stage2", epoch)``."""
    return int(digest(seed, *[str(name) for name in names])[:15], 16)


def require_stage(header: CheckpointHeader[SpecT], stage: str, parents: tuple[str, ...]) -> None:
    """Refuse to train from a checkpoint that is none of a stage's usual parents.

    Raises:
        CheckpointError: another stage wrote it.
    """
    if header.stage not in parents:
        raise CheckpointError(
            f"{stage}: found a checkpoint of the stage {header.stage!r}, expected one of {', '.join(parents)}. "
            "Train from the start, or name the checkpoint that this one was trained from."
        )


def training_data(snapshot: Snapshot, header: CheckpointHeader[ModelSpec]) -> ClipDataset:
    """Open a snapshot's training parts, labelled and cut into units as the checkpoint was built for them.

    Raises:
        CheckpointError: the checkpoint was built for other people, other cameras or another joint layout.
    """
    parts = read_parts(snapshot, "train")
    spec, people = header.spec, label_of_pid(parts)
    layout, cameras = joint_layout(snapshot).name, read_cameras(snapshot)
    expected = {*spec.pids, *spec.held_out}
    if (set(people), layout, cameras) != (expected, spec.layout, spec.cameras):
        strangers, missing = sorted(set(people) - expected), sorted(expected - set(people))
        raise CheckpointError(
            f"Snapshot {snapshot.name}: found {len(people)} people to train on with {layout} skeletons and cameras "
            f"{cameras}, expected the {len(expected)} people, {spec.layout} skeletons and cameras {spec.cameras} that "
            f"the checkpoint was built for. {len(strangers)} people are new (pid {_some(strangers)}), {len(missing)} "
            f"are missing (pid {_some(missing)}). Train from the start on this snapshot."
        )
    label = {pid: i for i, pid in enumerate(spec.pids)}
    dataset = ClipDataset(snapshot, [part for part in parts if part.pid in label], spec.clip, label, units=True)
    single = single_tracklet_people(dataset)
    if single:
        _LOG.warning(
            "%d of %d people have one training tracklet only, which gives them no match across tracklets: pid %s.",
            len(single),
            len(label),
            _some(single),
        )
    return dataset


def _some(names: Sequence[object]) -> str:
    """Write the first twenty of a list, or that there are none."""
    return ", ".join(map(str, names[:20])) + (", ..." if len(names) > 20 else "") or "none"


def share(
    plan: Sequence[list[ClipRequest]], config: PretrainConfig | Stage2Config, field: str
) -> list[list[ClipRequest]]:
    """Give this process's share of every P x K batch of a plan: whole identities.

    Raises:
        ValueError: P, which `field` names, cannot be shared by that many processes.
    """
    rank, size = ranks.rank(), ranks.size()
    return [sampling.share(batch, rank, size, config.clips_per_identity, field=field) for batch in plan]


class HasParts(Protocol):
    """A data set whose items are parts of tracklets."""

    @property
    def parts(self) -> Sequence[TrackletPart]:
        """Name every item."""
        ...


def require_finite(values: Mapping[str, Tensor], stage: str, epoch: int, dataset: HasParts, parts: IntArray) -> None:
    """Stop before a loss that is no number reaches the weights.

    Args:
        values: the losses of the whole batch.
        stage: the stage's name.
        epoch: in which it happens.
        dataset: what `parts` are positions in.
        parts: of the whole batch's clips or windows.

    Raises:
        CsipError: a loss is NaN or infinite; names the batch's tracklets.
    """
    wrong = [f"{name} {float(value)}" for name, value in values.items() if not bool(torch.isfinite(value))]
    if wrong:
        names = sorted({dataset.parts[int(i)].tracklet_id for i in parts})
        raise CsipError(
            f"{stage}, epoch {epoch}: found {', '.join(wrong)}, expected numbers, on a batch of {len(names)} "
            f"tracklets: {_some(names)}. "
            "Look at their crops and skeletons, or lower the learning rate."
        )


def total_losses(**losses: Tensor | None) -> dict[str, Tensor]:
    """Sum every process's shares of the named losses, in one message; absent ones are left out."""
    present = {name: value for name, value in losses.items() if value is not None}
    summed = ranks.total(torch.stack([value.detach().float() for value in present.values()])).cpu()
    return dict(zip(present, summed.unbind(), strict=True))


def compiled(network: CsipReID, runtime: RuntimeConfig) -> CsipReID:
    """Let torch.compile translate the network, where the user asked for it; the weights stay shared."""
    return cast("CsipReID", torch.compile(network)) if runtime.compile else network


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
