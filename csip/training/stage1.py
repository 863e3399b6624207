"""Stage 1: contrastive skeleton-image pretraining (method.md section 3), from cached frame features.

Shapes: B clips, T frames, J joints, C shared width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from csip import ranks, tables
from csip.config import RuntimeConfig, Stage1Config
from csip.data import sampling
from csip.data.clips import ClipDataset
from csip.device import resolve_device
from csip.errors import TooLittleDataError
from csip.models.checkpoints import encoder_digest, load_checkpoint, save_checkpoint
from csip.source import source_digest
from csip.training import loop, optim
from csip.training.features import read_features
from csip.training.losses import contrastive_pair
from csip.training.state import Training, seed_batch
from csip.types import CheckpointRef, IntArray, Outcome, Output, Snapshot, Stage, TableRef


def stage1(
    out: Output,
    checkpoint: CheckpointRef,
    features: TableRef,
    snapshot: Snapshot,
    config: Stage1Config,
    seed: int,
    runtime: RuntimeConfig,
) -> Stage[CheckpointRef]:
    """Train S and its projection so that a clip's motion finds its pictures; V stays as it is.

    A part without any valid skeleton is left out, and so is a clip whose drawn frames have none; both are counted.

    Raises:
        CheckpointError: the checkpoint is of another stage or another data set, or the state of a training that was
            left does not fit.
        TooLittleDataError: fewer than two parts, or than make one whole batch, have a skeleton.
        CsipError: a loss is no number.
    """
    network, header = load_checkpoint(checkpoint)
    loop.require_stage(header, "stage1", ("initialise", "pretrain_visual"))
    device = resolve_device(runtime.device)
    network.to(device).eval()
    dataset = loop.training_data(snapshot, header)
    cached = read_features(features, network, dataset, encoder_digest(network, header.spec))
    usable = np.array([i for i, frames in enumerate(dataset.frames) if frames.frame_mask.any()], dtype=np.int64)
    least = config.batch_clips if config.drop_last else 2
    if len(usable) < least:
        raise TooLittleDataError(
            f"Stage 1 pairs skeletons with pictures; found {len(usable)} of {len(dataset)} training parts with a valid "
            f"skeleton, expected at least {least}. Lower clip.joint_confidence or clip.min_joints, or add video."
        )
    if config.batch_clips < ranks.size():
        raise ValueError(
            f"stage1.batch_clips={config.batch_clips} cannot be shared by {ranks.size()} processes: expected a clip "
            "for each at least. Lower runtime.processes."
        )
    encoder = network.skeleton_encoder.train()
    optimizer = optim.Adam(
        list(encoder.parameters()),
        weight_decay=config.weight_decay,
        device=device,
        precision=config.precision,
        accumulate=config.accumulate,
    )
    training = Training(
        out,
        "stage1",
        config.epochs,
        encoder,
        optimizer,
        decides=[checkpoint.sha256, snapshot.name, config, seed],
        snapshot=snapshot,
        pins={"features": features.version},
        source=source_digest(__name__),
        save_seconds=runtime.save_seconds,
    )
    yield from training.resume()
    stream = loop.stream(seed, "stage1")
    with training:
        while (epoch := training.at.epoch) <= config.epochs:
            rate = optim.stage1_rate(epoch, config)
            optimizer.set_rate(rate)
            rng = np.random.default_rng([stream, epoch])
            plan = sampling.plain_batches(len(usable), config.batch_clips, rng, drop_last=config.drop_last)
            for batch in plan[training.at.batch :]:
                at = training.at.batch
                clips = draw_clips(dataset, cached, usable[batch], np.random.default_rng([stream, epoch, at]))
                drawn = 0 if clips is None else len(clips.part)
                counts = {"clips_without_skeleton": len(batch) - drawn}
                # One clip has nothing to be compared with, and every process needs one.
                if clips is None or drawn < max(2, ranks.size()):
                    if at + 1 == len(plan):
                        optimizer.flush()
                    training.advance(0, {}, counts | {"clips_alone_in_batch": drawn})
                    continue
                seed_batch(stream, epoch, at)
                mine = np.array_split(np.arange(drawn), ranks.size())[ranks.rank()]
                with optimizer.forward_precision():
                    _, s_bar = encoder(clips.skeleton[mine].to(device), clips.frame_mask[mine].to(device))
                loss = contrastive_pair(
                    clips.v_bar[mine].to(device),
                    s_bar,
                    clips.label[mine].to(device),
                    temperature=config.temperature,
                    normalize=config.normalize,
                )
                values = loop.total_losses(loss=loss)
                loop.require_finite(values, "stage1", epoch, dataset, clips.part)
                optimizer.step(loss, last=at + 1 == len(plan))
                training.advance(drawn, values, counts | {"clips": drawn})
                yield training.heartbeat(len(plan))
            yield training.finish_epoch(learning_rate=rate)
    training.save()  # what comes after the last step need not be done again, nor the steps before
    child = training.header(header.spec, checkpoint, config)
    ref = save_checkpoint(network, child, tables.folder(out.store, "checkpoints"))
    missing = {"parts": len(usable), "parts_without_skeleton": len(dataset) - len(usable)}
    return Outcome(ref, missing | training.at.counts, leftovers=(str(training.path),))


@dataclass(frozen=True, slots=True, eq=False)
class FeatureClips:
    """Clips of cached frame features and skeletons.

    Attributes:
        part: (B,) int64, positions in the data set.
        v_bar: (B, C) float32, the mean over a clip's frames.
        skeleton: (B, T, J, 3) float32, root-centred.
        frame_mask: (B, T) bool, True where the frame has a valid skeleton.
        label: (B,) int64.
    """

    part: IntArray
    v_bar: Tensor
    skeleton: Tensor
    frame_mask: Tensor
    label: Tensor


def draw_clips(
    dataset: ClipDataset, cached: list[Tensor], parts: IntArray, rng: np.random.Generator
) -> FeatureClips | None:
    """Draw one restricted-random clip a part; clips without any valid skeleton are left out, None if that is all.

    Args:
        dataset: the training parts.
        cached: for each of them, (n, C) features of its frames.
        parts: which to draw from.
        rng: the only source of chance.
    """
    part, v_bar, skeleton, mask = [], [], [], []
    for i in parts.tolist():
        at = sampling.restricted_random(len(cached[i]), dataset.clip.frames, rng, dataset.clip.chunks)
        if dataset.frames[i].frame_mask[at].any():
            part.append(i)
            v_bar.append(cached[i][at].mean(dim=0))
            skeleton.append(dataset.frames[i].skeleton[at])
            mask.append(dataset.frames[i].frame_mask[at])
    if not part:
        return None
    return FeatureClips(
        part=np.array(part, dtype=np.int64),
        v_bar=torch.stack(v_bar),
        skeleton=torch.from_numpy(np.array(skeleton, dtype=np.float32)),
        frame_mask=torch.from_numpy(np.array(mask, dtype=np.bool_)),
        label=torch.tensor([dataset.labels[i] for i in part], dtype=torch.int64),
    )
