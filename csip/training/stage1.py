"""Stage 1: contrastive skeleton-image pretraining (method.md section 3), from cached frame features.

Shapes: B clips, T frames, J joints, C shared width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from csip.config import RuntimeConfig, Stage1Config, to_plain
from csip.data import sampling
from csip.data.clips import ClipDataset
from csip.device import resolve_device
from csip.errors import TooLittleDataError
from csip.models.checkpoints import CheckpointHeader, encoder_digest, load_checkpoint, save_checkpoint
from csip.training import loop, optim
from csip.training.features import read_features
from csip.training.losses import contrastive_pair
from csip.types import CheckpointRef, Outcome, Output, Progress, Snapshot, Stage, TableRef


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
        TooLittleDataError: fewer than two parts, or than make one whole batch, have a skeleton.
    """
    network, header = load_checkpoint(checkpoint)
    device = resolve_device(runtime.device)
    network.to(device).eval()
    dataset = loop.training_data(snapshot, header)
    cached = read_features(features, network, dataset, encoder_digest(network, header.spec))
    usable = [i for i, frames in enumerate(dataset.frames) if frames.frame_mask.any()]
    least = config.batch_clips if config.drop_last else 2
    if len(usable) < least:
        raise TooLittleDataError(
            f"Stage 1 pairs skeletons with pictures; found {len(usable)} of {len(dataset)} training parts with a valid "
            f"skeleton, expected at least {least}. Lower clip.joint_confidence or clip.min_joints, or add video."
        )
    encoder = network.skeleton_encoder.train()
    optimizer = optim.adam(list(encoder.parameters()), weight_decay=config.weight_decay)
    stream = loop.stream(seed, "stage1")
    clips, without, alone = 0, 0, 0
    for epoch in range(1, config.epochs + 1):
        loop.seed_torch(stream, epoch)
        rng = np.random.default_rng([stream, epoch])
        optim.set_rate(optimizer, optim.stage1_rate(epoch, config))
        means = loop.Means()
        for batch in sampling.plain_batches(len(usable), config.batch_clips, rng, drop_last=config.drop_last):
            drawn = [_draw(dataset, cached, usable[i], header.spec.clip.frames, rng) for i in batch]
            kept = [(part, *clip_) for part, clip_ in zip(batch, drawn, strict=True) if bool(clip_[2].any())]
            without += len(batch) - len(kept)
            if len(kept) < 2:  # nothing to compare it with
                alone += len(kept)
                continue
            part = torch.tensor([usable[int(i)] for i, *_ in kept])
            v_bar, skeleton, mask = (torch.stack(x).to(device) for x in list(zip(*kept, strict=True))[1:])
            labels = torch.tensor([dataset.labels[int(i)] for i in part], device=device)
            _, s_bar = encoder(skeleton, mask)
            loss = contrastive_pair(v_bar, s_bar, labels, temperature=config.temperature, normalize=config.normalize)
            loop.require_finite(loss, "stage1", epoch, dataset, part)
            optim.step(optimizer, loss)
            means.add(len(kept), loss=loss)
            clips += len(kept)
            yield loop.heartbeat("stage1", epoch, config.epochs)
        rate = optimizer.param_groups[0]["lr"]
        yield Progress("stage1", epoch, config.epochs, "epochs", {**means.read(), "learning_rate": rate})
    child = CheckpointHeader(header.spec, "stage1", checkpoint.sha256, to_plain(config))
    ref = save_checkpoint(network, child, Path(out.store) / "checkpoints")
    counts = {
        "parts": len(usable),
        "parts_without_skeleton": len(dataset) - len(usable),
        "clips": clips,
        "clips_without_skeleton": without,
        "clips_alone_in_batch": alone,
    }
    return Outcome(ref, counts)


def _draw(
    dataset: ClipDataset, cached: list[torch.Tensor], part: int, frames: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw one restricted-random clip of a part: v_bar (C,), skeleton (T, J, 3), mask (T,)."""
    at = sampling.restricted_random(len(cached[part]), frames, rng)
    source = dataset.frames[part]
    mask, skeleton = torch.from_numpy(source.frame_mask[at]), torch.from_numpy(source.skeleton[at])
    return cached[part][at].mean(dim=0), skeleton, mask
