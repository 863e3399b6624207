"""Initial weights, and stage `pretrain_visual` for image encoders trained from scratch (method.md section 4).

Shapes: B = P*K clips, T frames, D token width, C shared width.
"""

from __future__ import annotations

from pathlib import Path

from torch.nn.functional import cross_entropy

from csip.config import ClipConfig, ModelConfig, PretrainConfig, RuntimeConfig, to_plain
from csip.data.clips import identity_requests, joint_layout, label_of_pid, load_batches, read_cameras, read_parts
from csip.device import resolve_device
from csip.errors import TooLittleDataError
from csip.models.checkpoints import CheckpointHeader, ModelSpec, initial, load_checkpoint, save_checkpoint
from csip.training import loop, optim
from csip.training.losses import batch_hard_triplet
from csip.types import CheckpointRef, Outcome, Output, Progress, Snapshot, Stage


def initialise(
    out: Output, snapshot: Snapshot, clip: ClipConfig, model: ModelConfig, seed: int
) -> Stage[CheckpointRef]:
    """Stage `initialise`: the network for a snapshot's training people and cameras, before any training.

    Raises:
        TooLittleDataError: the snapshot has fewer than two people to train on.
        WeightsError: the image encoder's weights cannot be had.
    """
    yield Progress("initialise", 0, 1, "networks")
    parts = read_parts(snapshot, "train")
    pids = tuple(label_of_pid(parts))
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
    )
    network, weights = initial(spec, loop.stream(seed, "initialise"))
    header = CheckpointHeader(spec, "initialise", parent="", config=to_plain([clip, model]))
    ref = save_checkpoint(network, header, Path(out.store) / "checkpoints")
    yield Progress("initialise", 1, 1, "networks")
    parameters = sum(p.numel() for p in network.parameters())
    return Outcome(ref, {"parameters": parameters, "train_people": len(pids), "cameras": len(spec.cameras)}, weights)


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
        TooLittleDataError: fewer people than a batch joins.
    """
    network, header = load_checkpoint(checkpoint)
    device = resolve_device(runtime.device)
    network.to(device).train()
    dataset = loop.training_data(snapshot, header)
    trained = [network.image_encoder, network.head_g, network.head_v]
    parameters = [p for module in trained for p in module.parameters() if p.requires_grad]
    optimizer = optim.adam(parameters, weight_decay=config.weight_decay)
    stream = loop.stream(seed, "pretrain_visual")
    clips = 0
    for epoch in range(1, config.epochs + 1):
        loop.seed_torch(stream, epoch)
        means = loop.Means()
        plan = identity_requests(dataset, config.identities, config.clips_per_identity, seed=stream, epoch=epoch)
        for i, batch in enumerate(load_batches(dataset, plan, runtime.workers)):
            moved = loop.to_device(batch, device)
            g, v_bar, logits_g, logits_v = network.forward_visual(moved.crops, None)
            smoothing = config.label_smoothing
            identity = cross_entropy(logits_g, moved.label, label_smoothing=smoothing)
            identity = identity + cross_entropy(logits_v, moved.label, label_smoothing=smoothing)
            triplet = batch_hard_triplet(g, moved.label, margin=config.margin)
            triplet = triplet + batch_hard_triplet(v_bar, moved.label, margin=config.margin)
            loss = identity + config.triplet_weight * triplet
            loop.require_finite(loss, "pretrain_visual", epoch, dataset, batch.part)
            optim.set_rate(optimizer, optim.pretrain_rate((epoch - 1 + i / len(plan)) / config.epochs, config))
            optim.step(optimizer, loss)
            means.add(len(batch.label), loss=loss, identity=identity, triplet=triplet)
            clips += len(batch.label)
            yield loop.heartbeat("pretrain_visual", epoch, config.epochs)
        rate = optimizer.param_groups[0]["lr"]
        yield Progress("pretrain_visual", epoch, config.epochs, "epochs", {**means.read(), "learning_rate": rate})
    child = CheckpointHeader(header.spec, "pretrain_visual", checkpoint.sha256, to_plain(config))
    ref = save_checkpoint(network, child, Path(out.store) / "checkpoints")
    return Outcome(ref, {"parts": len(dataset), "clips": clips})
