"""Checkpoints of the published implementation, read into our network (method.md section 7).

Strictly: every tensor is placed or named as unused, and every tensor of ours is filled, but for `KEPT`. Shapes decide
the network; heads, dropouts and the joint layout leave no trace in them and are taken as published.

Two things can be seen in no shape and were not confirmed by method.md: the rows of the skeleton encoder's `qkv_proj`
are read as blocks of C rows, all queries, then all keys, then all values, with the heads inside a block; and the rows
of `TMM.token_type_embed` as visual tokens, visual message, joints, joint message.

Shapes: D token width, C shared width, N visual tokens a frame, P pixels a patch, K identities, k graph positions.
"""

from __future__ import annotations

import contextlib
import pickle
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from csip import tables
from csip.config import ClipConfig, ModelConfig, PrototypeChoice
from csip.errors import CheckpointError
from csip.files import digest_file
from csip.models import published_names as theirs
from csip.models.checkpoints import CheckpointHeader, ModelSpec, build, save_checkpoint
from csip.models.reid import CsipReID
from csip.plain import digest, to_plain
from csip.source import git_commit, source_digest
from csip.tables import RunRecord
from csip.types import CheckpointRef

STAGE = "import_checkpoint"
LAYOUT = "h36m17"
HEADS = 8
"""Attention heads of SGT, PFU and SGTM, as published."""

KEPT = ("visual_prototypes", "skeleton_prototypes", "prototypes_ready", "skeleton_encoder.positions")
"""What no published file holds: the prototypes, which only training needs, and the joint graph, which is ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """A CLIP image tower, told by D, its depth and P; its heads and image size cannot be read from shapes alone.

    Attributes:
        name: timm's.
        token_width: D.
        depth: transformer blocks.
        patch: P.
        heads: attention heads.
        height: of a crop, pixels.
        width: of a crop, pixels.
    """

    name: str
    token_width: int
    depth: int
    patch: int
    heads: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        """N: the class token and the patches."""
        return 1 + (self.height // self.patch) * (self.width // self.patch)

    def __str__(self) -> str:
        return (
            f"width {self.token_width}, {self.depth} blocks, patches {self.patch}x{self.patch}, {self.tokens} tokens "
            f"({self.height}x{self.width} pixels)"
        )


TOWERS = (
    Tower(
        name="vit_base_patch16_clip_quickgelu_224.openai",
        token_width=768,
        depth=12,
        patch=16,
        heads=12,
        height=256,
        width=128,
    ),
)
"""The image towers that can be imported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What became of a published file.

    Attributes:
        sha256: of the file.
        placed: tensors that found their place.
        unused: tensors of the file that no layer reads, by their published names.
        kept: tensors of ours that the file lacks, as initialised.
        parameters: of the network.
    """

    sha256: str
    placed: int
    unused: tuple[str, ...]
    kept: tuple[str, ...]
    parameters: int


def import_published(
    path: Path, towers: tuple[Tower, ...] | None = None, *, dataset: str = ""
) -> tuple[CsipReID, ModelSpec, ImportReport]:
    """Read a checkpoint of the published implementation; nothing in it is run.

    The people get the numbers 0 to K-1, for the file does not name them, nor the cameras: without `dataset` they are
    camera-0, camera-1, ..., and no data set's own.
    Prototypes are not in it either: the network embeds and classifies, and must be given some before it is trained on.

    Args:
        path: a .pth or .pt file that torch.save wrote: tensors by name, as they are or under "state_dict" or "model",
            all names with or without the prefix "module.".
        towers: the image towers known; None for `TOWERS`.
        dataset: the benchmark it was trained on, whose cameras are called DATASET-1 and so on; empty for none.

    Returns:
        The network in evaluation mode, how to build it, and what became of the file's tensors.

    Raises:
        CheckpointError: no such file, no file of tensors alone, an unknown size, or a tensor that is missing, left
            over, or of a wrong shape; the message lists them.
    """
    sha256 = _sha256_of(path)
    state = _read_state(path)
    spec = _read_spec(path, state, TOWERS if towers is None else towers)
    if dataset:
        spec = replace(spec, cameras=tuple(f"{dataset}-{n + 1}" for n in range(len(spec.cameras))))
    names = theirs.names(spec)
    try:
        network = build(spec)
    except ValueError as error:
        raise CheckpointError(
            f"Checkpoint {path}: its shapes tell of a network that cannot be built: {error}"
        ) from error
    own = network.state_dict()
    unused = tuple(sorted(name for name in state if name not in names and _is_under(name, theirs.UNUSED)))
    placed = {
        names[name]: theirs.to_ours(name, value).to(own[names[name]].dtype)
        for name, value in state.items()
        if name in names
    }
    _require_exact(path, state, names, unused, placed, own)
    network.load_state_dict(own | placed, strict=True)
    kept = tuple(sorted(own.keys() - placed.keys()))
    parameters = sum(p.numel() for p in network.parameters())
    report = ImportReport(sha256=sha256, placed=len(placed), unused=unused, kept=kept, parameters=parameters)
    return network.eval(), spec, report


def _is_under(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _sha256_of(path: Path) -> str:
    """SHA-256 of the file, or what is wrong with it."""
    if not path.is_file():
        raise CheckpointError(
            f"Checkpoint {path}: found no such file. Name a .pth or .pt file of the published implementation."
        )
    try:
        return digest_file(path)
    except OSError as error:
        raise CheckpointError(f"Checkpoint {path}: cannot be read ({error}). Mend the permissions.") from error


@contextlib.contextmanager
def _plain_tensors_only() -> Iterator[None]:
    """Forget for a while what else torch may build from a file: ultralytics adds its layers, for the whole process."""
    added = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        yield
    finally:
        torch.serialization.add_safe_globals(added)


def _read_state(path: Path) -> dict[str, Tensor]:
    """Read tensors by name, without running what a pickle may hold."""
    try:
        with _plain_tensors_only():
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (
        *(OSError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, EOFError),
        pickle.UnpicklingError,
    ) as error:
        raise CheckpointError(
            f"Checkpoint {path}: found {path.stat().st_size} bytes that hold something else than plain tensors, and "
            f"ran none of it ({_cause(error)}). Expected a .pth or .pt file that torch.save wrote of a state dict; of "
            "a whole pickled model, save its state_dict() with the code that made it, if you trust the file."
        ) from error
    if isinstance(found, Mapping):
        found = next((found[key] for key in ("state_dict", "model") if isinstance(found.get(key), Mapping)), found)
    if not isinstance(found, Mapping) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        what = f"the entries {_listed(map(str, found))}" if isinstance(found, Mapping) else f"a {type(found).__name__}"
        raise CheckpointError(
            f"Checkpoint {path}: found {what}, expected tensors by name, as they are or under 'state_dict' or 'model'."
        )
    state = {str(name): value for name, value in found.items()}
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    broken = [name for name, v in state.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if broken:
        raise CheckpointError(
            f"Checkpoint {path}: found NaN or infinite values in {len(broken)} tensors: {_listed(broken)}. "
            "Expected finite ones; take an earlier checkpoint of that training."
        )
    return state


def _cause(error: Exception) -> str:
    """Give torch's reason without its advice to read the file again with its code."""
    text = str(error)
    wanted = re.search(r"GLOBAL (\S+)", text)
    if wanted is not None:
        return f"it asks for {wanted[1]}"
    reason = text.partition("WeightsUnpickler error: ")[2] or text
    return f"{type(error).__name__}: {reason.strip().partition(chr(10))[0][:200]}".rstrip(" .:")


def _read_spec(path: Path, state: Mapping[str, Tensor], towers: tuple[Tower, ...]) -> ModelSpec:
    """Read the network off the shapes of a few tensors."""

    def shape(name: str, axes: int) -> tuple[int, ...]:
        if name not in state or state[name].dim() != axes:
            found = f"one of shape {tuple(state[name].shape)}" if name in state else "none"
            raise CheckpointError(
                f"Checkpoint {path}: found {found} among {len(state)} tensors ({_listed(state)}), expected "
                f"{name!r} with {axes} axes. Name a stage-2 checkpoint of the published implementation."
            )
        return tuple(state[name].shape)

    token_width, _, patch, _ = shape("image_encoder.conv1.weight", 4)
    tokens = shape("image_encoder.positional_embedding", 2)[0]
    depth = _count(state, theirs.RESBLOCKS)
    tower = next((t for t in towers if (t.token_width, t.depth, t.patch) == (token_width, depth, patch)), None)
    if tower is None or tokens != tower.tokens:
        raise CheckpointError(
            f"Checkpoint {path}: found an image encoder of width {token_width}, {depth} blocks, patches "
            f"{patch}x{patch} and {tokens} tokens; expected {' or '.join(map(str, towers))}. Only the published sizes "
            "can be imported: heads and image size do not follow from the shapes of others."
        )
    people, cameras = shape("classifier.weight", 2)[0], 0
    if "cv_embed" in state:
        cameras = shape("cv_embed", 2)[0]
    prototypes: PrototypeChoice = "none"
    if _is_there(state, "PF"):
        prototypes = "pfu" if _is_there(state, "VTU") else "gate"
    elif _is_there(state, "VTU"):
        prototypes = "pfu"  # whose gate will be reported as missing
    try:
        model = ModelConfig(
            image_encoder=tower.name,
            image_weights="none",
            image_depth=tower.depth,
            image_width=tower.token_width,
            image_heads=tower.heads,
            width=shape("image_encoder.proj", 2)[1],
            camera_embedding=cameras > 0,
            joint_layers=_count(state, theirs.JOINT_BLOCKS),
            joint_heads=HEADS,
            graph_positions=shape(f"{theirs.GRAPH}.pos_fc.weight", 2)[1],
            prototype_layers=max(1, _count(state, theirs.DECODER_LAYERS)),
            prototype_heads=HEADS,
            temporal_heads=HEADS,
        )
    except ValueError as error:
        raise CheckpointError(
            f"Checkpoint {path}: its shapes tell of a network that cannot be built: {error}"
        ) from error
    return ModelSpec(
        model=model,
        clip=ClipConfig(height=tower.height, width=tower.width),
        layout=LAYOUT,
        cameras=tuple(f"camera-{n}" for n in range(cameras)),
        pids=tuple(range(people)),
        prototypes=prototypes,
        temporal=_is_there(state, "TMM"),
    )


def _is_there(state: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(f"{prefix}.") for name in state)


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Count the numbered modules below a name; a gap between them shows as missing tensors."""
    numbers = [name[len(prefix) + 1 :].partition(".")[0] for name in state if name.startswith(f"{prefix}.")]
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)


def _require_exact(
    path: Path,
    state: Mapping[str, Tensor],
    names: Mapping[str, str],
    unused: tuple[str, ...],
    placed: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
) -> None:
    missing = sorted(name for name in names.keys() - state.keys() if not name.endswith(theirs.OPTIONAL))
    left_over = sorted(state.keys() - names.keys() - set(unused))
    reshaped = [
        f"{name} {tuple(state[name].shape)} for {tuple(theirs.from_ours(name, own[names[name]]).shape)}"
        for name in sorted(state.keys() & names.keys())
        if placed[names[name]].shape != own[names[name]].shape
    ]
    problems = (("missing", missing), ("left over", left_over), ("of another shape", reshaped))
    text = "; ".join(f"{len(them)} {what}: {_listed(them)}" for what, them in problems if them)
    if text:
        raise CheckpointError(
            f"Checkpoint {path}: found {len(state)} tensors that are not those of the published network: {text}. "
            "Expected each of them once (method.md section 7); nothing was imported. Was the file written by other "
            "code, or by another stage?"
        )


def _listed(names: Any, most: int = 8) -> str:
    every = list(names)
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")


def import_checkpoint(path: Path, store: str, dataset: str = "") -> tuple[CheckpointRef, ModelSpec, ImportReport]:
    """Stage `import_checkpoint`: write a published file as a checkpoint of ours, and the run that made it.

    Nothing is written, and no store made, unless the whole file could be read.

    Raises:
        CheckpointError: as `import_published`; or the checkpoint cannot be written.
        StoreError: the store cannot be made or written.
    """
    started, begun = tables.now(), time.monotonic()
    network, spec, report = import_published(path, dataset=dataset)
    inputs = {"file": {"path": str(path), "sha256": report.sha256}}
    said = {"published_sha256": report.sha256, "dataset": dataset}
    header = CheckpointHeader(spec, "imported", parent="", config=said)
    tables.prepare_store(store)
    ref = save_checkpoint(network, header, tables.folder(store, "checkpoints"))
    source = source_digest(__name__)
    counts = {name: value for name, value in to_plain(report).items() if name != "sha256"}
    tables.record_run(
        store,
        RunRecord(
            run_id=uuid.uuid4().hex[:12],
            stage=STAGE,
            key=digest(STAGE, report.sha256, dataset, source),
            inputs=inputs,
            outputs=to_plain(ref),
            config={},
            counts=counts | {"people": len(spec.pids), "cameras": len(spec.cameras)},
            weights={path.name: report.sha256},
            source_digest=source,
            git_commit=git_commit(),
            device="cpu",
            started=started,
            seconds=round(time.monotonic() - begun, 3),
        ),
    )
    return ref, spec, report
