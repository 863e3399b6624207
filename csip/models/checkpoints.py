"""Checkpoints: one safetensors file that says in its own header how to build the network it fills.

A checkpoint is named by the SHA-256 of its bytes and holds no clock and no path: on a CPU, the same training run again
gives the same checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from pydantic import ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from csip import ranks, tables
from csip.config import ClipConfig, ModelConfig, PrototypeChoice
from csip.errors import CheckpointError, CsipError, StorageFaultError
from csip.files import digest_file
from csip.joints import LAYOUTS
from csip.models.image_encoder import ImageEncoder, load_image_weights
from csip.models.reid import CsipReID
from csip.models.skeleton_encoder import SkeletonEncoder
from csip.plain import digest, from_plain, to_plain
from csip.source import source_digest
from csip.types import CheckpointRef

_FORMAT = "csip-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """All it takes to build the network again.

    Attributes:
        model: its section.
        clip: how clips are sampled, sized and normalised; training and test read it from here.
        layout: name of the joint layout.
        cameras: names of the data set's cameras; the position is the row of the camera table.
        pids: the people it is trained on, in label order.
        held_out: training people of the data set that it is not trained on, to choose an epoch by.
        prototypes: how stage 2 compares clips with prototypes; "none" before it.
        temporal: whether it has Skeleton Guided Temporal Modelling, which stage 2 adds.
        snapshot: digest of the data set whose people these are; empty where nobody knows.
        split: which protocol and split of it, for people.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    model: ModelConfig
    clip: ClipConfig
    layout: str
    cameras: tuple[str, ...]
    pids: tuple[int, ...]
    held_out: tuple[int, ...] = ()
    prototypes: PrototypeChoice = "none"
    temporal: bool = False
    snapshot: str = ""
    split: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkeletonSpec:
    """All it takes to build a skeleton-only network again (`csip.models.skeleton_checkpoints`).

    Attributes:
        encoder: "csip" is the skeleton encoder of this method; "transg" is TranSG's.
        width: of its features.
        layers: of its attention.
        heads: of its attention.
        dropout: of the encoder.
        graph_positions: Laplacian eigenvectors of the joint graph.
        bn_frozen_stats: TranSG's batch norm never updates its statistics.
        layout: name of the joint layout.
        frames: skeletons a window.
        pids: the people it is trained on, in label order.
        snapshot: digest of the data set whose people these are.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    encoder: Literal["csip", "transg"]
    width: int
    layers: int
    heads: int
    dropout: float
    graph_positions: int
    bn_frozen_stats: bool = False
    layout: str
    frames: int
    pids: tuple[int, ...]
    snapshot: str = ""


SpecT = TypeVar("SpecT", ModelSpec, SkeletonSpec)
NetworkT = TypeVar("NetworkT", bound=nn.Module)

_KINDS = {ModelSpec: "a network of pictures and skeletons", SkeletonSpec: "a skeleton-only network"}


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("csip", "torch", "timm")}


@dataclass(frozen=True, slots=True)
class CheckpointHeader(Generic[SpecT]):
    """What a checkpoint says of itself.

    Attributes:
        spec: how to build the network.
        stage: the stage that wrote it.
        parent: SHA-256 of the checkpoint it was trained from; empty for initial weights.
        config: the sections the stage read.
        epoch: the last one that its weights have seen; 0 for initial weights.
        metrics: figures of that epoch.
        versions: of the libraries that computed them.
    """

    spec: SpecT
    stage: str
    parent: str
    config: Any
    epoch: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=_versions)


def build(spec: ModelSpec) -> CsipReID:
    """Build the network with initial weights drawn from torch's generator."""
    m, layout = spec.model, LAYOUTS[spec.layout]
    return CsipReID(
        image_encoder=ImageEncoder(
            name=m.image_encoder,
            image_size=(spec.clip.height, spec.clip.width),
            width=m.width,
            depth=m.image_depth,
            token_width=m.image_width,
            heads=m.image_heads,
            num_cameras=len(spec.cameras) if m.camera_embedding else 0,
            camera_scale=m.camera_scale,
        ),
        skeleton_encoder=SkeletonEncoder(
            positions=torch.from_numpy(layout.graph_positions(m.graph_positions)),
            width=m.width,
            layers=m.joint_layers,
            heads=m.joint_heads,
            dropout=m.joint_dropout,
        ),
        num_labels=len(spec.pids),
        prototypes=spec.prototypes,
        prototype_layers=m.prototype_layers,
        prototype_heads=m.prototype_heads,
        prototype_dropout=m.prototype_dropout,
        temporal=spec.temporal,
        temporal_heads=m.temporal_heads,
        temporal_dropout=m.temporal_dropout,
    )


def initial(spec: ModelSpec, seed: int) -> tuple[CsipReID, dict[str, str]]:
    """Build the network, its initial weights from `seed`, its image encoder's from where the section says.

    Returns:
        The network, and the SHA-256 of the image weights by the name of where they came from; empty for none.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(spec)
    return model, load_image_weights(model.image_encoder, spec.model.image_weights)


def add_heads(
    model: CsipReID, spec: ModelSpec, *, prototypes: PrototypeChoice, temporal: bool, seed: int
) -> tuple[CsipReID, ModelSpec]:
    """Add what stage 2 trains beside the encoders, its initial weights from `seed`; all else is kept as it is.

    Raises:
        ValueError: the network has these parts already.
    """
    if spec.prototypes != "none" or spec.temporal:
        raise ValueError(
            f"add_heads: got a network with prototypes {spec.prototypes!r} and temporal {spec.temporal}, expected one "
            "of a stage before stage 2, which has neither."
        )
    wanted = replace(spec, prototypes=prototypes, temporal=temporal)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        grown = build(wanted)
    grown.load_state_dict(grown.state_dict() | model.state_dict(), strict=True)
    return grown, wanted


def save_checkpoint(model: nn.Module, header: CheckpointHeader[SpecT], folder: Path) -> CheckpointRef:
    """Write a checkpoint into `folder`, whole or not at all, under the name of its stage and content.

    Of several processes, which all have the same weights, the first one writes.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    text = json.dumps(to_plain(header), sort_keys=True)
    # One entry only: safetensors writes several in an order that changes from call to call, and with it the bytes.
    content = save(tensors, metadata={_FORMAT: text})
    sha = hashlib.sha256(content).hexdigest()
    path = folder / f"{header.stage}-{sha[:12]}.safetensors"
    if ranks.rank() == 0:
        write_whole(path, content)
    return CheckpointRef(str(path), sha)


def kind_of(error: Exception) -> type[CsipError]:
    """Tell what it is that a checkpoint's file cannot be read or written: a fault that may pass, or not."""
    return StorageFaultError if tables.may_pass(error) else CheckpointError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, past a power cut too.

    Raises:
        CheckpointError: the folder or the file cannot be written.
        StorageFaultError: the same, and it may pass by itself.
    """
    # Not by the process's number: in another container, or on another machine, somebody may have the same.
    part = path.parent / f".{path.name}-{uuid.uuid4().hex}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        with part.open("xb") as file:  # never through a link that lies there
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # the folder itself may be what is wrong
            part.unlink(missing_ok=True)
        raise kind_of(error)(
            f"Checkpoint {path}: {len(content)} bytes could not be written ({error}). Free space or mend the "
            "permissions, and run the same command again."
        ) from error


def checkpoint_ref(path: Path) -> CheckpointRef:
    """Make a reference to a checkpoint file.

    Raises:
        CheckpointError: no such file, or none of ours.
    """
    if not path.is_file():
        raise CheckpointError(f"Checkpoint {path}: found no such file. Name a .safetensors file that `csip` wrote.")
    read_header(path)
    return CheckpointRef(str(path), digest_file(path))


def read_header(path: Path) -> CheckpointHeader[ModelSpec] | CheckpointHeader[SkeletonSpec]:
    """Read what a checkpoint says of itself.

    Raises:
        CheckpointError: it cannot be read, or is none of ours.
        StorageFaultError: it cannot be read, which may pass by itself.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise kind_of(error)(
            f"Checkpoint {path}: cannot be read ({error}). Expected a .safetensors file that `csip train-csip` wrote."
        ) from error
    if _FORMAT not in metadata:
        raise CheckpointError(
            f"Checkpoint {path}: found metadata {sorted(metadata)}, expected {_FORMAT!r}. "
            "Name a file that this version of `csip train-csip` wrote."
        )
    try:
        plain = json.loads(metadata[_FORMAT])
        told = plain.get("spec") if isinstance(plain, dict) else None
        kind = SkeletonSpec if isinstance(told, dict) and "encoder" in told else ModelSpec
        return from_plain(CheckpointHeader[kind], plain)  # type: ignore[valid-type]
    except ValueError as error:
        raise CheckpointError(
            f"Checkpoint {path}: its header does not say how to build a network ({error}). "
            "Use the CSIP version that wrote it, or train again."
        ) from error


def load_checkpoint(ref: CheckpointRef) -> tuple[CsipReID, CheckpointHeader[ModelSpec]]:
    """Load a network of pictures and skeletons, strictly, after checking its bytes.

    Raises:
        CheckpointError: the file is gone, was changed, is of another kind, or does not fill the network it names.
    """
    return load_as(ref, ModelSpec, build)


def load_as(
    ref: CheckpointRef, kind: type[SpecT], make: Callable[[SpecT], NetworkT]
) -> tuple[NetworkT, CheckpointHeader[SpecT]]:
    """Load a network of one kind, strictly, after checking its bytes.

    Args:
        ref: the file.
        kind: of the spec that its header must hold.
        make: builds the network that a spec describes.

    Raises:
        CheckpointError: the file is gone, was changed, is of another kind, or does not fill the network it names.
    """
    path = Path(ref.path)
    found = checkpoint_ref(path)
    if found.sha256 != ref.sha256:
        raise CheckpointError(
            f"Checkpoint {path}: found SHA-256 {found.sha256[:12]}, expected {ref.sha256[:12]}. "
            "The file was changed after it was written; train again or restore it."
        )
    header: CheckpointHeader[Any] = read_header(path)
    if not isinstance(header.spec, kind):
        raise CheckpointError(
            f"Checkpoint {path}: found {_KINDS[type(header.spec)]} (of the stage {header.stage!r}), expected "
            f"{_KINDS[kind]}. Name another checkpoint, or the recipe that this one belongs to."
        )
    with safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    try:
        model = make(header.spec)
        model.load_state_dict(tensors, strict=True)
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"Checkpoint {path}: does not fit the network in its own header ({error}).") from error
    return model, header


def encoder_digest(model: CsipReID, spec: ModelSpec) -> str:
    """Digest what decides a frame's feature: the image encoder's weights, the crop's size and normalisation.

    The camera table is none of it: frame features are taken without cameras (method.md section 3). The number of
    heads is: it changes what the same weights compute. So is the code that decodes, resizes and encodes a crop.
    """
    state = hashlib.sha256()
    for name, value in sorted(model.image_encoder.state_dict().items()):
        if name == "camera_table":
            continue
        state.update(name.encode())
        state.update(value.detach().cpu().contiguous().numpy().tobytes())
    m, clip = spec.model, spec.clip
    crop = [clip.height, clip.width, clip.mean, clip.std]
    code = [source_digest(name) for name in ("csip.models.image_encoder", "csip.data.transforms")]
    return digest(state.hexdigest(), m.image_encoder, m.image_heads, crop, code)
