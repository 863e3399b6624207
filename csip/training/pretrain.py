"""Initial weights, and stage `pretrain_visual` for image encoders trained from scratch (method.md section 4).

Shapes: B = P*K clips, T frames, D token width, C shared width.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from csip import tables
from csip.config import ClipConfig, ModelConfig, PretrainConfig, RuntimeConfig, ValidateConfig
from csip.data.clips import (
    identity_requests,
    joint_layout,
    label_of_pid,
    read_cameras,
    read_parts,
    read_protocol,
)
from csip.data.loader import ClipLoader
from csip.device import resolve_device
from csip.errors import TooLittleDataError
from csip.models.checkpoints import CheckpointHeader, ModelSpec, initial, load_checkpoint, save_checkpoint
from csip.plain import to_plain
from csip.source import source_digest
from csip.training import loop, optim
from csip.training.losses import batch_hard_triplet, cross_entropy
from csip.training.state import Training, seed_batch
from csip.training.validate import hold_out
from csip.types import CheckpointRef, Outcome, Output, Progress, Snapshot, Stage


def initialise(
    out: Output, snapshot: Snapshot, clip: ClipConfig, model: ModelConfig, validate: ValidateConfig, seed: int
) -> Stage[CheckpointRef]:
    """Stage `initialise`: the network for a snapshot's training people and cameras, before any training.

    Raises:
        TooLittleDataError: the snapshot has fewer than two people to train on.
        WeightsError: the image encoder's weights cannot be had.
    """
    yield Progress("initialise", 0, 1, "networks")
    parts = read_parts(snapshot, "train")
    pids, held_out = hold_out(sorted(label_of_pid(parts)), validate, loop.stream(seed, "hold_out"))
    if len(pids) < 2:
        raise TooLittleDataError(
            f"Snapshot {snapshot.name}: found {len(pids)} people to train on, expected at least 2. "
            "Add video, or lower split.test_fraction."
        )
    spec = ModelSpec(
        model=model,
        clip=clip,
        layout=joint_layout(snapshot).name,
        cameras=read_cameras(snapshot),
        pids=pids,
        held_out=held_out,
        snapshot=snapshot.digest,
        split=", split ".join(read_protocol(snapshot)),
    )
    network, weights = initial(spec, loop.stream(seed, "initialise"))
    header = CheckpointHeader(spec, "initialise", parent="", config=to_plain([clip, model, validate]))
    ref = save_checkpoint(network, header, tables.folder(out.store, "checkpoints"))
    yield Progress("initialise", 1, 1, "networks")
    parameters = sum(p.numel() for p in network.parameters())
    counts = {"parameters": parameters, "train_people": len(pids), "held_out_people": len(held_out)}
    return Outcome(ref, counts | {"cameras": len(spec.cameras)}, weights)


def pretrain_visual(
    out: Output,
    checkpoint: CheckpointRef,
    snapshot: Snapshot,
    config: PretrainConfig,
    seed: int,
    runtime: RuntimeConfig,
) -> Stage[CheckpointRef]:
    """Stage `pretrain_visual`: identity and triplet loss on g and v_bar; trains V and these two heads.

    Raises:
        CheckpointError: the checkpoint is of another stage or another data set, or the state of a training that was
            left does not fit.
        TooLittleDataError: fewer people than a batch joins.
        CsipError: a loss is no number.
    """
    network, header = load_checkpoint(checkpoint)
    loop.require_stage(header, "pretrain_visual", ("initialise",))
    device = resolve_device(runtime.device)
    network.to(device)
    dataset = loop.training_data(snapshot, header)
    trained = nn.ModuleDict({name: getattr(network, name) for name in ("image_encoder", "head_g", "head_v")})
    optimizer = optim.Adam(
        [p for p in trained.parameters() if p.requires_grad],
        weight_decay=config.weight_decay,
        device=device,
        precision=config.precision,
    )
    training = Training(
        out,
        "pretrain_visual",
        config.epochs,
        trained,
        optimizer,
        decides=[checkpoint.sha256, snapshot.name, config, seed],
        snapshot=snapshot,
        pins={},
        source=source_digest(__name__),
        save_seconds=runtime.save_seconds,
    )
    yield from training.resume()
    stream = loop.stream(seed, "pretrain_visual")
    with training, ClipLoader(dataset, runtime.workers) as loader:
        while (epoch := training.at.epoch) <= config.epochs:
            network.train()
            plan = identity_requests(dataset, config.identities, config.clips_per_identity, seed=stream, epoch=epoch)
            left = plan[training.at.batch :]
            for requests, batch in zip(left, loader.load(loop.share(left, config, "pretrain.identities")), strict=True):
                at = training.at.batch
                seed_batch(stream, epoch, at)
                moved = loop.to_device(batch, device)
                with optimizer.forward_precision():
                    g, v_bar, logits_g, logits_v = network.forward_visual(moved.crops, None)
                identity = cross_entropy(logits_g, moved.label, label_smoothing=config.label_smoothing)
                identity = identity + cross_entropy(logits_v, moved.label, label_smoothing=config.label_smoothing)
                triplet = batch_hard_triplet(g, moved.label, margin=config.margin)
                triplet = triplet + batch_hard_triplet(v_bar, moved.label, margin=config.margin)
                loss = identity + config.triplet_weight * triplet
                values = loop.total_losses(loss=loss, identity=identity, triplet=triplet)
                parts = np.array([request.part for request in requests])
                loop.require_finite(values, "pretrain_visual", epoch, dataset, parts)
                optimizer.set_rate(optim.pretrain_rate((epoch - 1 + at / len(plan)) / config.epochs, config))
                optimizer.step(loss)
                training.advance(len(parts), values, {"clips": len(parts)})
                yield training.heartbeat(len(plan))
            last_rate = optim.pretrain_rate((epoch - 1 / len(plan)) / config.epochs, config)
            yield training.finish_epoch(learning_rate=last_rate)
    training.save()  # what comes after the last step need not be done again, nor the steps before
    child = training.header(header.spec, checkpoint, config)
    ref = save_checkpoint(network, child, tables.folder(out.store, "checkpoints"))
    return Outcome(ref, {"parts": len(dataset), **training.at.counts}, leftovers=(str(training.path),))
