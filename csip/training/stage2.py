"""Stage 2: prototype-guided fine-tuning with PFU and SGTM (method.md section 4).

Shapes: B = P*K clips, T frames, J joints, K identities, C shared width, M training parts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from csip.config import RuntimeConfig, Stage2Config, to_plain
from csip.data import sampling
from csip.data.clips import ClipDataset, identity_requests, load_batches
from csip.device import resolve_device
from csip.models.checkpoints import CheckpointHeader, encoder_digest, load_checkpoint, save_checkpoint
from csip.models.prototypes import mean_by_label
from csip.models.reid import CsipReID
from csip.training import loop, optim
from csip.training.features import read_features
from csip.training.losses import stage2_loss
from csip.types import CheckpointRef, Outcome, Output, Progress, Snapshot, Stage, TableRef


def stage2(
    out: Output,
    checkpoint: CheckpointRef,
    features: TableRef,
    snapshot: Snapshot,
    config: Stage2Config,
    seed: int,
    runtime: RuntimeConfig,
) -> Stage[CheckpointRef]:
    """Compute the prototypes once, then fine-tune everything that the recipe does not freeze.

    Raises:
        TooLittleDataError: fewer people than a batch joins.
    """
    network, header = load_checkpoint(checkpoint)
    device = resolve_device(runtime.device)
    network.to(device)
    dataset = loop.training_data(snapshot, header)
    digest = encoder_digest(network, header.spec)
    stream = loop.stream(seed, "stage2")
    counts: dict[str, int | float | str] = {"parts": len(dataset)}
    if network.prototype_updater is not None:
        cached = read_features(features, network, dataset, digest)
        visual, skeleton, without = make_prototypes(network, dataset, cached, loop.stream(stream, "prototypes"), device)
        network.set_prototypes(visual, skeleton)
        counts["people_without_skeleton"] = without
    network.train()
    if config.freeze_skeleton_encoder:
        network.skeleton_encoder.requires_grad_(False).eval()
    optimizer = optim.adam(optim.stage2_groups(network, config), weight_decay=config.weight_decay)
    clips, without_skeleton = 0, 0
    for epoch in range(1, config.epochs + 1):
        loop.seed_torch(stream, epoch)
        factor = optim.stage2_factor(epoch, config)
        optim.scale_rates(optimizer, factor)
        means = loop.Means()
        plan = identity_requests(dataset, config.identities, config.clips_per_identity, seed=stream, epoch=epoch)
        for batch in load_batches(dataset, plan, runtime.workers):
            moved = loop.to_device(batch, device)
            output = network(moved.crops, moved.skeleton, moved.frame_mask, moved.camid)
            losses = stage2_loss(
                output,
                moved.label,
                label_smoothing=config.label_smoothing,
                margin=config.margin,
                identity_weight=config.identity_weight,
                triplet_weight=config.triplet_weight,
                prototype_weight=config.prototype_weight,
                frame_weight=config.frame_weight,
            )
            loop.require_finite(losses.total, "stage2", epoch, dataset, batch.part)
            optim.step(optimizer, losses.total)
            terms = {name: getattr(losses, name) for name in ("identity", "triplet", "prototype", "frame")}
            means.add(len(batch.label), loss=losses.total, **{k: v for k, v in terms.items() if v is not None})
            clips += len(batch.label)
            without_skeleton += int((~batch.frame_mask.any(dim=1)).sum())
            yield loop.heartbeat("stage2", epoch, config.epochs)
        values = {**means.read(), "learning_rate": config.learning_rate * factor}
        yield Progress("stage2", epoch, config.epochs, "epochs", values)
    child = CheckpointHeader(header.spec, "stage2", checkpoint.sha256, to_plain(config))
    ref = save_checkpoint(network, child, Path(out.store) / "checkpoints")
    return Outcome(ref, counts | {"clips": clips, "clips_without_skeleton": without_skeleton})


@torch.inference_mode()
def make_prototypes(
    network: CsipReID, dataset: ClipDataset, cached: list[Tensor], seed: int, device: str
) -> tuple[Tensor, Tensor, int]:
    """Average each identity's visual and skeleton features, everything in eval mode and without augmentation.

    One restricted-random clip a part, drawn from `seed`. Where the drawn frames hold no valid skeleton, the part's
    valid frames stand in; a person without any valid skeleton gets the visual prototype as skeleton prototype.

    Args:
        network: on `device`.
        dataset: the M training parts, labelled.
        cached: for each part, (n, C) features of its frames.
        seed: of the draws.
        device: where the network is.

    Returns:
        P_v (K, C), P_s (K, C), and how many people have no valid skeleton.
    """
    network.eval()
    label = torch.tensor(dataset.labels)
    rng = np.random.default_rng(seed)
    v_bar, s_bar, present = [], [], []
    for features, frames in zip(cached, dataset.frames, strict=True):
        at = sampling.restricted_random(len(features), dataset.clip.frames, rng)
        v_bar.append(features[at].mean(dim=0))
        if not frames.frame_mask[at].any() and frames.frame_mask.any():
            at = np.resize(np.flatnonzero(frames.frame_mask), dataset.clip.frames)
        skeleton = torch.from_numpy(frames.skeleton[at])[None].to(device)
        mask = torch.from_numpy(frames.frame_mask[at])[None].to(device)
        s_bar.append(network.skeleton_encoder(skeleton, mask)[1][0].cpu())
        present.append(bool(mask.any()))
    seen = torch.tensor(present)
    count = int(label.max()) + 1
    visual = mean_by_label(torch.stack(v_bar), label, count)
    absent = sorted(set(range(count)) - set(label[seen].tolist()))
    # The absent people's visual prototypes are appended as if they were their skeletons' features.
    motion = torch.cat([torch.stack(s_bar)[seen], visual[absent]])
    skeleton_prototypes = mean_by_label(motion, torch.cat([label[seen], torch.tensor(absent, dtype=torch.long)]), count)
    return visual.to(device), skeleton_prototypes.to(device), len(absent)
