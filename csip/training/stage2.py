"""Stage 2: prototype-guided fine-tuning with PFU and SGTM (method.md section 4).

Shapes: B = P*K clips, T frames, J joints, K identities, C shared width, M training parts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from csip import ranks, tables
from csip.config import RuntimeConfig, Stage2Config, ValidateConfig
from csip.data import sampling
from csip.data.clips import ClipDataset, identity_requests
from csip.data.loader import ClipLoader
from csip.device import resolve_device
from csip.models.checkpoints import add_heads, encoder_digest, load_checkpoint, save_checkpoint
from csip.models.prototypes import mean_by_label
from csip.models.reid import CsipReID
from csip.source import source_digest
from csip.training import loop, optim
from csip.training.features import read_features
from csip.training.losses import stage2_loss
from csip.training.state import Training, keep_checkpoint, seed_batch
from csip.training.validate import Validation
from csip.types import CheckpointRef, ClipBatch, IntArray, Outcome, Output, Snapshot, Stage, TableRef

_TERMS = ("identity", "triplet", "prototype", "frame")


def stage2(
    out: Output,
    checkpoint: CheckpointRef,
    features: TableRef,
    snapshot: Snapshot,
    config: Stage2Config,
    validate: ValidateConfig,
    seed: int,
    runtime: RuntimeConfig,
) -> Stage[CheckpointRef]:
    """Compute the prototypes once, then fine-tune everything that the recipe does not freeze.

    Raises:
        CheckpointError: the checkpoint is of another stage or another data set, or the state of a training that was
            left does not fit.
        TooLittleDataError: fewer people than a batch joins.
        CsipError: a loss is no number.
    """
    parent, header = load_checkpoint(checkpoint)
    loop.require_stage(header, "stage2", ("initialise", "pretrain_visual", "stage1"))
    device = resolve_device(runtime.device)
    dataset = loop.training_data(snapshot, header)
    stream = loop.stream(seed, "stage2")
    network, spec = add_heads(
        parent, header.spec, prototypes=config.prototypes, temporal=config.temporal, seed=loop.stream(stream, "heads")
    )
    network.to(device)
    if config.freeze_skeleton_encoder:
        network.skeleton_encoder.requires_grad_(False)
    optimizer = optim.Adam(
        optim.stage2_groups(network, config),
        weight_decay=config.weight_decay,
        device=device,
        precision=config.precision,
        accumulate=config.accumulate,
    )
    training = Training(
        out,
        "stage2",
        config.epochs,
        network,
        optimizer,
        decides=[checkpoint.sha256, snapshot.name, config, validate, seed],
        snapshot=snapshot,
        pins={"features": features.version},
        source=source_digest(__name__),
        save_seconds=runtime.save_seconds,
    )
    yield from training.resume()
    if not training.resumed and network.prototype_updater is not None:
        cached = read_features(features, network, dataset, encoder_digest(network, spec))
        draws = loop.stream(stream, "prototypes")
        every = config.prototype_frames == "all"
        visual, skeleton, absent = make_prototypes(network, dataset, cached, draws, device, all_frames=every)
        network.set_prototypes(visual, skeleton)
        training.at.counts["people_without_skeleton"] = absent
    validation = Validation(snapshot, spec, validate, runtime, device)
    folder = tables.folder(out.store, "checkpoints")
    compiled = loop.compiled(network, runtime)
    with training, ClipLoader(dataset, runtime.workers) as loader:
        while (epoch := training.at.epoch) <= config.epochs:
            _train_mode(network, config)
            factor = optim.stage2_factor(epoch, config)
            optimizer.scale_rates(factor)
            plan = identity_requests(dataset, config.identities, config.clips_per_identity, seed=stream, epoch=epoch)
            left = plan[training.at.batch :]
            for requests, batch in zip(left, loader.load(loop.share(left, config, "stage2.identities")), strict=True):
                seed_batch(stream, epoch, training.at.batch)
                moved = loop.to_device(batch, device)
                with optimizer.forward_precision():
                    output = compiled(moved.crops, moved.skeleton, moved.frame_mask, moved.camid)
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
                values = loop.total_losses(loss=losses.total, **{name: getattr(losses, name) for name in _TERMS})
                parts = np.array([request.part for request in requests])
                loop.require_finite(values, "stage2", epoch, dataset, parts)
                optimizer.step(losses.total, last=training.at.batch + 1 == len(plan))
                without = {"clips_without_skeleton": _count_without(batch)}
                training.advance(len(parts), values, {"clips": len(parts)} | without)
                yield training.heartbeat(len(plan))
            looked = validation.look(network, epoch, config.epochs)
            told = training.finish_epoch(learning_rate=config.learning_rate * factor, **looked)
            child = training.header(spec, checkpoint, [config, validate])
            best = validation.best_epoch(training.at.history)
            keep_checkpoint(training, network, child, folder, every=config.keep_every, best=best)
            yield told
    training.save()  # what comes after the last step need not be done again, nor the steps before
    ref = save_checkpoint(network, training.header(spec, checkpoint, [config, validate]), folder)
    chosen = validation.best_epoch(training.at.history)
    kept = {str(epoch): one["sha256"] for epoch, one in training.at.kept.items()}
    counts: dict[str, Any] = {
        "parts": len(dataset),
        **training.at.counts,
        "epoch": chosen or config.epochs,
        "kept": kept,
    }
    reported = CheckpointRef(**training.at.kept[chosen]) if chosen else ref
    return Outcome(reported, counts, leftovers=(str(training.path),))


def _count_without(batch: ClipBatch) -> int:
    """Count the clips without any valid skeleton, in all processes."""
    return ranks.total_count(int((~batch.frame_mask.any(dim=1)).sum()))


def _train_mode(network: CsipReID, config: Stage2Config) -> None:
    network.train()
    if config.freeze_skeleton_encoder:
        network.skeleton_encoder.eval()


@torch.inference_mode()
def make_prototypes(
    network: CsipReID, dataset: ClipDataset, cached: list[Tensor], seed: int, device: str, *, all_frames: bool = False
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
        all_frames: average over all frames of a part instead of one clip.

    Returns:
        P_v (K, C), P_s (K, C), and how many people have no valid skeleton.
    """
    network.eval()
    label = torch.tensor(dataset.labels)
    rng = np.random.default_rng(seed)
    v_bar, s_bar, present = [], [], []
    for features, frames in zip(cached, dataset.frames, strict=True):
        at: IntArray = np.arange(len(features))
        if not all_frames:
            at = sampling.restricted_random(len(features), dataset.clip.frames, rng, dataset.clip.chunks)
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
