"""Checkpoints of skeleton-only networks: how one is built, and where its encoder's initial weights come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from csip.config import ModelConfig, SkeletonConfig
from csip.errors import CheckpointError
from csip.joints import LAYOUTS
from csip.models.checkpoints import CheckpointHeader, SkeletonSpec, load_as, load_checkpoint
from csip.models.skeleton_encoder import SkeletonEncoder
from csip.models.skeleton_reid import SkeletonReID
from csip.models.transg import TransgEncoder
from csip.types import CheckpointRef

_SIZE = ("width", "layers", "heads", "graph_positions")


@dataclass(frozen=True, slots=True)
class Transfer:
    """What became of a skeleton encoder's weights in a network for other skeletons.

    Attributes:
        kept: names of the encoder's tensors that were taken as they are.
        drawn: layer that was initialised anew -> why.
    """

    kept: tuple[str, ...]
    drawn: Mapping[str, str]


def build_skeleton_network(spec: SkeletonSpec) -> SkeletonReID:
    """Build the network with initial weights drawn from torch's generator."""
    positions = torch.from_numpy(LAYOUTS[spec.layout].graph_positions(spec.graph_positions))
    encoder: SkeletonEncoder | TransgEncoder
    if spec.encoder == "csip":
        encoder = SkeletonEncoder(
            positions=positions, width=spec.width, layers=spec.layers, heads=spec.heads, dropout=spec.dropout
        )
    else:
        encoder = TransgEncoder(
            positions=positions,
            width=spec.width,
            layers=spec.layers,
            heads=spec.heads,
            dropout=spec.dropout,
            frozen_statistics=spec.bn_frozen_stats,
        )
    return SkeletonReID(encoder=encoder, frames=spec.frames)


def initial_skeleton_network(spec: SkeletonSpec, seed: int) -> SkeletonReID:
    """Build the network, its initial weights from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_skeleton_network(spec)


def load_skeleton_checkpoint(ref: CheckpointRef) -> tuple[SkeletonReID, CheckpointHeader[SkeletonSpec]]:
    """Load a skeleton-only network, strictly, after checking its bytes.

    Raises:
        CheckpointError: the file is gone, was changed, is of another kind, or does not fill the network it names.
    """
    return load_as(ref, SkeletonSpec, build_skeleton_network)


def transfer(source: SkeletonEncoder, source_layout: str, target: nn.Module, target_layout: str) -> Transfer:
    """Copy an encoder's weights into one of the same size for another (or the same) joint layout.

    All weights are taken as they are but those that read something else now: the first linear layer where the third
    channel has another meaning, and that of the graph positions where the joints are others. These keep the initial
    weights of `target`.

    Args:
        source: where the weights come from.
        source_layout: name of its joint layout.
        target: filled in place.
        target_layout: name of its joint layout.

    Raises:
        RuntimeError: the encoders differ in size.
    """
    before, now = LAYOUTS[source_layout], LAYOUTS[target_layout]
    drawn = {}
    if before.third != now.third:
        drawn["embed_joint.0"] = f"the third channel is {now.third} here, and was {before.third}"
    if before != now:
        drawn["embed_position"] = f"the joints are those of {now.name}, and were {before.name}'s"
    own = target.state_dict()
    # With the joints go their positions in the graph, a buffer.
    mine = {name for name in own if name.rpartition(".")[0] in drawn or (name == "positions" and before != now)}
    taken = {name: value for name, value in source.state_dict().items() if name not in mine}
    target.load_state_dict(taken | {name: own[name] for name in mine}, strict=True)
    return Transfer(tuple(sorted(set(taken) & {name for name, _ in target.named_parameters()})), drawn)


def skeleton_spec(
    config: SkeletonConfig, model: ModelConfig, layout: str, pids: tuple[int, ...], snapshot: str = ""
) -> SkeletonSpec:
    """Describe the network that the recipe asks for.

    Args:
        config: which encoder, its numbers where it is TranSG's, and frames a window.
        model: the numbers of our encoder, and of graph positions.
        layout: name of the joint layout.
        pids: the people it is trained on, ascending.
        snapshot: digest of the data set whose people they are.
    """
    ours = config.encoder == "csip"
    return SkeletonSpec(
        encoder=config.encoder,
        width=model.width if ours else config.transg_width,
        layers=model.joint_layers if ours else config.transg_layers,
        heads=model.joint_heads if ours else config.transg_heads,
        dropout=model.joint_dropout if ours else config.transg_dropout,
        graph_positions=model.graph_positions,
        bn_frozen_stats=config.bn_frozen_stats and not ours,
        layout=layout,
        frames=config.frames,
        pids=pids,
        snapshot=snapshot,
    )


def grow_from(
    initial: CheckpointRef, wanted: SkeletonSpec, seed: int
) -> tuple[SkeletonReID, SkeletonSpec, list[str], dict[str, Any]]:
    """Build a network around the skeleton encoder of another one, whose size it takes over.

    Args:
        initial: a network of pictures and skeletons, such as stage 1's.
        wanted: what the recipe asks for.
        seed: of all weights that are not taken.

    Returns:
        The network, its spec, sentences that say what was taken and what was not, and the same as counts.

    Raises:
        CheckpointError: the checkpoint is damaged or of another kind, or the recipe asks for another encoder.
    """
    if wanted.encoder != "csip":
        raise CheckpointError(
            f"Checkpoint {initial.path}: found this method's skeleton encoder in it, expected {wanted.encoder}'s "
            "(skeleton.encoder). Set skeleton.encoder=csip, or leave skeleton.initial empty to train from scratch."
        )
    source, header = load_checkpoint(initial)
    given, size = header.spec, header.spec.model
    spec = replace(
        wanted,
        width=size.width,
        layers=size.joint_layers,
        heads=size.joint_heads,
        graph_positions=size.graph_positions,
    )
    network = initial_skeleton_network(spec, seed)
    moved = transfer(source.skeleton_encoder, given.layout, network.encoder, spec.layout)
    where = f"{Path(initial.path).name} (stage {header.stage}, {given.layout})"
    notes = [f"Skeleton encoder: {len(moved.kept)} tensors as they are in {where}."]
    notes += [f"Skeleton encoder: {layer} is drawn anew, since {why}." for layer, why in moved.drawn.items()]
    pairs = {name: (getattr(wanted, name), getattr(spec, name)) for name in _SIZE}
    changed = {name: f"{asked} -> {found}" for name, (asked, found) in pairs.items() if asked != found}
    if changed:
        told = ", ".join(f"{name} {text}" for name, text in changed.items())
        notes.append(f"Skeleton encoder: its size is the checkpoint's, not the recipe's: {told}.")
    counts: dict[str, Any] = {"tensors_transferred": len(moved.kept), "reinitialised": dict(moved.drawn)}
    return network, spec, notes, counts | {"resized": changed}
