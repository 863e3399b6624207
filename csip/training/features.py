"""Stage `cache_features`: every training frame through the frozen image encoder, once (method.md section 3).

Stage 1 augments nothing and trains no image weight, so a frame's projected CLS token never changes: 120 epochs of ViT
work become one pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from csip import ranks, shares, tables
from csip.config import RuntimeConfig
from csip.data import transforms
from csip.data.clips import ClipDataset, read_parts
from csip.device import resolve_device
from csip.errors import CheckpointError
from csip.models.checkpoints import encoder_digest, load_checkpoint
from csip.models.reid import CsipReID
from csip.types import CheckpointRef, FloatArray, Outcome, Output, Progress, Snapshot, Stage, TableRef
from storage_schemas import TABLES

_COMMIT_FRAMES = 20_000


def cache_features(
    out: Output, checkpoint: CheckpointRef, snapshot: Snapshot, runtime: RuntimeConfig
) -> Stage[TableRef]:
    """Fill `frame_features` for the frames of the training parts; frames that it has already are not done again.

    Of several processes each encodes its share of the frames.
    """
    network, header = load_checkpoint(checkpoint)
    device = resolve_device(runtime.device)
    network.to(device).eval()
    digest = encoder_digest(network, header.spec)
    dataset = ClipDataset(snapshot, read_parts(snapshot, "train"), header.spec.clip, skeletons=False)
    have = _known(shares.newest(out.store, "frame_features"), digest)
    wanted = {
        (part.tracklet_id, int(frame)): int(row)  # parts of one tracklet may overlap
        for part, frames in zip(dataset.parts, dataset.frames, strict=True)
        for frame, row in zip(frames.frame_index, frames.row, strict=True)
    }
    todo = [(*key, row) for key, row in wanted.items() if key not in have]
    step = runtime.encode_batch * ranks.size()
    for begin in range(0, len(todo), _COMMIT_FRAMES):
        some = todo[begin : begin + _COMMIT_FRAMES]
        done: list[FloatArray] = []
        for at in range(0, len(some), step):
            rows = np.array([row for _, _, row in shares.own(some[at : at + step])], np.int64)
            if len(rows):
                done.append(_encode(network, dataset, rows, device))
            yield Progress("cache_features", begin + min(at + step, len(some)), len(todo), "frames")
        shares.commit(out.store, "frame_features", _rows(shares.own(some), digest, done))
    return Outcome(
        shares.newest(out.store, "frame_features"),
        {"encoded": len(todo), "already_there": len(wanted) - len(todo)},
    )


def _rows(frames: Sequence[tuple[str, int, int]], digest: str, features: Sequence[FloatArray]) -> pa.Table:
    """Lay features (n, C), one behind another, out beside the frames (tracklet_id, frame_index, _) they are of."""
    schema = TABLES["frame_features"]
    if not frames:
        return schema.empty_table()
    columns = [
        pa.array([tracklet for tracklet, _, _ in frames]),
        pa.array([frame for _, frame, _ in frames]),
        pa.array([digest] * len(frames)),
        tables.vectors_column(np.concatenate(features)),
    ]
    return pa.table(columns, schema=schema)


def _known(ref: TableRef, digest: str) -> set[tuple[str, int]]:
    table = tables.read(ref, ["tracklet_id", "frame_index"], where=f"encoder_digest = {tables.quote(digest)}")
    return set(zip(table["tracklet_id"].to_pylist(), table["frame_index"].to_pylist(), strict=True))


@torch.inference_mode()
def _encode(network: CsipReID, dataset: ClipDataset, rows: np.ndarray, device: str) -> FloatArray:
    """Read and encode the numbered crops: (N, C) float32."""
    crops = torch.stack([transforms.resize_crop(image, dataset.clip) for image in dataset.read_crops(rows)])
    return network.frame_features(transforms.normalise_crops(crops, dataset.clip).to(device)).cpu().numpy()


def read_features(features: TableRef, network: CsipReID, dataset: ClipDataset, digest: str) -> list[torch.Tensor]:
    """Read the cached features of every part of a data set.

    Args:
        features: the pinned table.
        network: tells the feature width.
        dataset: whose parts are wanted.
        digest: of the encoder that must have made them.

    Returns:
        For each part, (n, C) float32.

    Raises:
        CheckpointError: a frame has no feature of this encoder.
    """
    table = tables.read(features, ["feature"], where=f"encoder_digest = {tables.quote(digest)}")
    vectors = torch.from_numpy(tables.vectors_array(table["feature"]).copy())
    keys = zip(table["tracklet_id"].to_pylist(), table["frame_index"].to_pylist(), strict=True)
    row_of = {key: i for i, key in enumerate(keys)}
    out = []
    for part, frames in zip(dataset.parts, dataset.frames, strict=True):
        rows = [row_of.get((part.tracklet_id, int(frame)), -1) for frame in frames.frame_index]
        if -1 in rows:
            raise CheckpointError(
                f"{features.uri} version {features.version}: found no feature of encoder {digest[:12]} for frame "
                f"{frames.frame_index[rows.index(-1)]} of {part.tracklet_id}. Run the stage cache_features for "
                "this checkpoint and snapshot first."
            )
        out.append(vectors[rows])
    return out
