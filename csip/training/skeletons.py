"""Skeleton-only re-identification: initial weights and training (datasets.md section 10).

Shapes: B windows a batch, W windows, F frames a window, J joints, C channels, K people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from csip import ranks, tables
from csip.config import ModelConfig, RuntimeConfig, SkeletonConfig
from csip.data import sampling
from csip.data.clips import joint_layout
from csip.data.windows import Windows, balanced_windows, read_windows
from csip.device import resolve_device
from csip.errors import CheckpointError, TooLittleDataError
from csip.evaluation.embed_skeletons import embed_windows, probe_rank1, scored_windows
from csip.models.checkpoints import CheckpointHeader, SkeletonSpec, save_checkpoint
from csip.models.prototypes import mean_by_label
from csip.models.skeleton_checkpoints import (
    grow_from,
    initial_skeleton_network,
    load_skeleton_checkpoint,
    skeleton_spec,
)
from csip.models.skeleton_reid import SkeletonReID
from csip.plain import to_plain
from csip.source import source_digest
from csip.training import loop, optim
from csip.training.skeleton_losses import draw_masks, prompted_reconstruction, prototype_contrast
from csip.training.state import Training, keep_checkpoint, seed_batch
from csip.types import CheckpointRef, IntArray, Outcome, Output, Progress, Snapshot, Stage

_RANK1 = "probe_rank1"


def initialise_skeletons(
    out: Output,
    snapshot: Snapshot,
    config: SkeletonConfig,
    model: ModelConfig,
    initial: CheckpointRef | None,
    seed: int,
) -> Stage[CheckpointRef]:
    """Stage `initialise_skeletons`: the network for a snapshot's training people, before any training.

    From a checkpoint the skeleton encoder's size and weights are taken as they are, but for layers that read something
    else here (`csip.models.skeleton_checkpoints.transfer`); what was taken and what was not is told and counted.

    Args:
        out: the store.
        snapshot: with skeletons.
        config: which encoder, and its numbers where it is TranSG's.
        model: the numbers of our encoder.
        initial: a network of pictures and skeletons, such as stage 1's; None starts from scratch.
        seed: of all weights that are not taken.

    Raises:
        CheckpointError: the checkpoint is damaged or of another kind, or the encoder is not the one that it holds.
        TooLittleDataError: the snapshot has windows of fewer than two people to train on.
    """
    stage = "initialise_skeletons"
    yield Progress(stage, 0, 1, "networks")
    windows = read_windows(snapshot, "train", config.frames)
    pids = tuple(sorted(set(windows.pid.tolist())))
    if len(pids) < 2:
        raise TooLittleDataError(
            f"Snapshot {snapshot.name}: found windows of {config.frames} skeletons of {len(pids)} people to train on, "
            "expected at least 2. Lower skeleton.frames, or add sequences."
        )
    spec = skeleton_spec(config, model, joint_layout(snapshot).name, pids, snapshot.digest)
    draws = loop.stream(seed, stage)
    network = initial_skeleton_network(spec, draws)
    notes = [f"Skeleton encoder ({config.encoder}): all its weights are drawn anew."]
    counts: dict[str, Any] = {}
    if initial is not None:
        network, spec, notes, counts = grow_from(initial, spec, draws)
    header = CheckpointHeader(
        spec, stage, parent=initial.sha256 if initial else "", config=to_plain([_own(config), model])
    )
    ref = save_checkpoint(network, header, tables.folder(out.store, "checkpoints"))
    for note in notes:
        yield Progress(stage, 1, 1, "networks", note=note)
    yield Progress(stage, 1, 1, "networks")
    parameters = sum(p.numel() for p in network.parameters())
    people = {"train_people": len(pids), "train_windows": len(windows)}
    short = {"parts_too_short_for_a_window": windows.short_parts}
    return Outcome(ref, {"parameters": parameters, **people, **short, **counts})


def _own(config: SkeletonConfig) -> SkeletonConfig:
    """Leave out what decides no weight: a path (the parent is in the header), and how many trainings there are."""
    return replace(config, initial="", seeds=1)


class _Trained(nn.Module):
    """The network, and the prototypes of the epoch: what it takes to go on in the middle of one."""

    prototypes: Tensor

    def __init__(self, network: SkeletonReID, people: int, width: int) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("prototypes", torch.zeros(people, width))


def train_skeletons(
    out: Output,
    checkpoint: CheckpointRef,
    snapshot: Snapshot,
    config: SkeletonConfig,
    seed: int,
    runtime: RuntimeConfig,
) -> Stage[CheckpointRef]:
    """Stage `train_skeletons`: prototype contrast and prompted reconstruction over class-balanced windows.

    The people tested are those trained on, so nobody is held out: the last epoch is reported, unless the recipe asks
    for the one that is best on the probes, as published.

    Raises:
        CheckpointError: the checkpoint is of another stage, data set or recipe, or the state of a training that was
            left does not fit.
        TooLittleDataError: there are fewer windows than make one batch.
        ValueError: several processes.
        CsipError: a loss is no number.
    """
    if ranks.size() > 1:
        raise ValueError(f"train_skeletons: got {ranks.size()} processes, expected one: set runtime.processes=1.")
    network, header = load_skeleton_checkpoint(checkpoint)
    loop.require_stage(header, "train_skeletons", ("initialise_skeletons",))
    windows = _training_windows(snapshot, header.spec, config)
    device = resolve_device(runtime.device)
    trained = _Trained(network, len(header.spec.pids), header.spec.width).to(device)
    optimizer = optim.Adam(
        list(network.parameters()), weight_decay=config.weight_decay, device=device, precision="float32"
    )
    optimizer.set_rate(config.learning_rate)
    training = Training(
        out,
        "train_skeletons",
        config.epochs,
        trained,
        optimizer,
        decides=[checkpoint.sha256, snapshot.name, snapshot.protocol, snapshot.split, _own(config), seed],
        snapshot=snapshot,
        pins={},
        source=source_digest(__name__),
        save_seconds=runtime.save_seconds,
    )
    yield from training.resume()
    stream = loop.stream(seed, "train_skeletons")
    label = torch.from_numpy(np.searchsorted(header.spec.pids, windows.pid)).to(device)
    skeleton = torch.from_numpy(windows.skeleton).to(device)
    probes = scored_windows(snapshot, config) if config.select_on_probe else None
    folder = tables.folder(out.store, "checkpoints")
    with training:
        while (epoch := training.at.epoch) <= config.epochs and not _patience_is_over(training.at.history, config):
            plan = _plan(windows.pid, config, stream, epoch)
            if training.at.batch == 0:
                trained.prototypes.copy_(_prototypes(network, windows, label, config, device))
            network.train()
            for batch in plan[training.at.batch :]:
                seed_batch(stream, epoch, training.at.batch)
                at = torch.from_numpy(batch).to(device)
                rng = np.random.default_rng([stream, epoch, training.at.batch])
                losses = _losses(trained, skeleton[at], label[at], config, rng)
                values = loop.total_losses(**losses)
                loop.require_finite(values, "train_skeletons", epoch, windows, batch)
                optimizer.step(losses["loss"])
                training.advance(len(batch), values, {"windows": len(batch)})
                yield training.heartbeat(len(plan))
            looked = {} if probes is None else {_RANK1: _look(network, *probes, config, device)}
            told = training.finish_epoch(learning_rate=config.learning_rate, **looked)
            child = training.header(header.spec, checkpoint, _own(config))
            keep_checkpoint(training, network, child, folder, every=0, best=_best_epoch(training.at.history))
            yield told
    training.save()  # what comes after the last step need not be done again, nor the steps before
    best = _best_epoch(training.at.history)
    if best:
        ref = CheckpointRef(**training.at.kept[best])
    else:
        ref = save_checkpoint(network, training.header(header.spec, checkpoint, _own(config)), folder)
    counts = {"train_windows": len(windows), **training.at.counts, "epoch": best or training.at.epoch - 1}
    return Outcome(ref, counts, leftovers=(str(training.path),))


def _training_windows(snapshot: Snapshot, spec: SkeletonSpec, config: SkeletonConfig) -> Windows:
    """Read the windows of the people that the network was made for, all of its joints and frames."""
    windows, layout = read_windows(snapshot, "train", config.frames), joint_layout(snapshot).name
    made = (spec.pids, spec.layout, spec.frames, spec.encoder, spec.bn_frozen_stats)
    frozen = config.bn_frozen_stats and config.encoder == "transg"
    given = (tuple(sorted(set(windows.pid.tolist()))), layout, config.frames, config.encoder, frozen)
    if made != given:
        names = ("people", "skeletons", "frames a window", "encoder", "bn_frozen_stats")
        told = [
            f"{name}: found {_short(have)}, expected {_short(want)}"
            for name, have, want in zip(names, given, made, strict=True)
            if have != want
        ]
        raise CheckpointError(
            f"Snapshot {snapshot.name}: does not fit the network ({'; '.join(told)}). "
            "Initialise one for this snapshot and recipe: train from the start."
        )
    if not _plan(windows.pid, config, 0, 1):
        raise TooLittleDataError(
            f"Snapshot {snapshot.name}: found {len(windows)} windows of {len(spec.pids)} people, expected at least "
            f"one batch of {config.batch_windows} and no more people than that. Lower skeleton.batch_windows."
        )
    return windows


def _short(value: object) -> str:
    return f"{len(value)} ({value[:5]}...)" if isinstance(value, tuple) and len(value) > 5 else str(value)


def _plan(pid: IntArray, config: SkeletonConfig, stream: int, epoch: int) -> list[IntArray]:
    """Draw an epoch's batches: class-balanced, shuffled; a pure function of the windows, the seed and the epoch."""
    rng = np.random.default_rng([stream, 0 if config.shuffle_once else epoch])
    drawn = balanced_windows(pid, config.batch_windows, rng)
    batches = sampling.plain_batches(len(drawn), config.batch_windows, rng, drop_last=config.drop_last)
    return [drawn[batch] for batch in batches]


def _prototypes(network: SkeletonReID, windows: Windows, label: Tensor, config: SkeletonConfig, device: str) -> Tensor:
    """Average every person's sequence features over all windows, in evaluation mode: (K, C)."""
    # The recipe's batch, not the runtime's: sums of floats depend on how they are cut.
    features = torch.from_numpy(embed_windows(network, windows.skeleton, config.batch_windows, device))
    return mean_by_label(features, label.cpu(), int(label.max()) + 1)


def _losses(
    trained: _Trained, skeleton: Tensor, label: Tensor, config: SkeletonConfig, rng: np.random.Generator
) -> dict[str, Tensor]:
    """Encode a batch and lose: the weighted sum as `loss`, and its two terms before their weights."""
    network = trained.network
    joints, frames = draw_masks(network.joints, config.masked_joints, network.frames, config.masked_frames, rng)
    output = network(skeleton, joints.to(skeleton.device), frames.to(skeleton.device))
    contrast = prototype_contrast(
        output.sequence,
        trained.prototypes,
        network.compare(output.frame, trained.prototypes),
        label,
        sequence_temperature=config.sequence_temperature,
        frame_temperature=config.frame_temperature,
        sequence_share=config.sequence_share,
    )
    reconstruction = prompted_reconstruction(
        output.structure,
        output.trajectory,
        skeleton,
        structure_share=config.structure_share,
        over_batch=config.reconstruction_over_batch,
    )
    loss = config.prototype_share * contrast + (1 - config.prototype_share) * reconstruction
    return {"loss": loss, "contrast": contrast, "reconstruction": reconstruction}


def _look(network: SkeletonReID, query: Windows, gallery: Windows, config: SkeletonConfig, device: str) -> float:
    """Score the network on the probes; it is left in evaluation mode."""
    asked, there = (embed_windows(network, side.skeleton, config.batch_windows, device) for side in (query, gallery))
    return probe_rank1(asked, query.pid, there, gallery.pid)


def _best_epoch(history: Sequence[Mapping[str, float]]) -> int:
    """Give the epoch with the best rank-1 on the probes so far, the first of equals; 0 where nobody looked."""
    looked = [(values[_RANK1], -epoch) for epoch, values in enumerate(history, 1) if _RANK1 in values]
    return -max(looked)[1] if looked else 0


def _patience_is_over(history: Sequence[Mapping[str, float]], config: SkeletonConfig) -> bool:
    """Tell whether the probes have got no better for long enough; never, where nobody looks."""
    best = _best_epoch(history)
    return best > 0 and len(history) - best >= config.patience
