"""Parts to embeddings: by a checkpoint, or by a plain colour histogram as the baseline anybody could build.

Shapes: N parts, W windows of a part, T frames a clip, E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch

from csip import tables
from csip.config import ClipConfig, EmbedConfig, RuntimeConfig, digest
from csip.data import sampling
from csip.data.clips import ClipDataset, ClipRequest, read_cameras, read_parts, read_protocol
from csip.device import resolve_device
from csip.errors import TooLittleDataError
from csip.evaluation.histogram import color_histogram
from csip.evaluation.protocol import SELF_LABELLED
from csip.lineage import source_digest
from csip.models.checkpoints import ModelSpec, load_checkpoint
from csip.models.reid import CsipReID
from csip.types import (
    CheckpointRef,
    ClipBatch,
    EmbeddingsRef,
    FloatArray,
    Outcome,
    Output,
    Progress,
    Snapshot,
    Stage,
    TrackletPart,
)
from storage_schemas import TABLES

_COMMIT_PARTS = 2_000


def embed(
    out: Output,
    checkpoint: CheckpointRef,
    snapshot: Snapshot,
    config: EmbedConfig,
    encoder: str,
    runtime: RuntimeConfig,
) -> Stage[EmbeddingsRef]:
    """Stage `embed`: every query and gallery part through a checkpoint; parts that are there already are not redone.

    Args:
        out: the store.
        checkpoint: of any stage.
        snapshot: whose query and gallery parts are embedded.
        config: how a part becomes clips.
        encoder: what results call it, for example "trained"; empty: after the stage that wrote the checkpoint.
        runtime: device and batch.

    Raises:
        CheckpointError: the checkpoint is damaged or of another format.
        TooLittleDataError: the snapshot has nobody to search for.
    """
    network, header = load_checkpoint(checkpoint)
    clip = header.spec.clip
    device = resolve_device(runtime.device)
    network.to(device).eval()
    dataset = ClipDataset(snapshot, _test_parts(snapshot), clip)
    encoder = encoder or {"initialise": "untrained", "stage2": "trained"}.get(header.stage, header.stage)
    cameras = known_cameras(snapshot, header.spec)
    encoder_digest = digest("embed", checkpoint.sha256, config.sampling, cameras, source_digest(__name__))
    ref = EmbeddingsRef(tables.current(out.store, "embeddings"), encoder_digest, encoder, checkpoint.sha256)

    def features(parts: list[int]) -> Iterator[FloatArray]:
        return embed_parts(network, dataset, parts, config, cameras, runtime.encode_batch, device)

    return (yield from _fill(out, ref, dataset.parts, features))


def embed_histogram(out: Output, snapshot: Snapshot, config: EmbedConfig) -> Stage[EmbeddingsRef]:
    """Stage `embed_histogram`: the HSV colour histogram of every query and gallery part's crops, all frames."""
    dataset = ClipDataset(snapshot, _test_parts(snapshot), ClipConfig())
    encoder_digest = digest("hsv-histogram", config.histogram_bins, source_digest(__name__))
    ref = EmbeddingsRef(tables.current(out.store, "embeddings"), encoder_digest, "hsv-histogram", "")

    def features(parts: list[int]) -> Iterator[FloatArray]:
        for index in parts:
            crops = [crop.permute(1, 2, 0).numpy() for crop in dataset.read_crops(dataset.frames[index].row)]
            yield color_histogram(crops, bins=config.histogram_bins)

    return (yield from _fill(out, ref, dataset.parts, features))


def _test_parts(snapshot: Snapshot) -> tuple[TrackletPart, ...]:
    query, gallery = read_parts(snapshot, "query"), read_parts(snapshot, "gallery")
    if not query or not gallery:
        raise TooLittleDataError(
            f"Snapshot {snapshot.name}: found {len(query)} query and {len(gallery)} gallery parts, expected some of "
            "each. `csip build-skeletons` says why a video gives no protocol; add video."
        )
    # On some benchmarks the queries stand in the gallery too; each part is embedded once.
    return tuple({part.unit: part for part in (*query, *gallery)}.values())


def known_cameras(snapshot: Snapshot, spec: ModelSpec) -> tuple[int, ...]:
    """Give, for each of the snapshot's cameras, the checkpoint's number of the camera of that name, or -1.

    Under the self-labelled protocol every camera counts as unknown: a query's matches are always under its own camera,
    so that its camera vector would give the answer away.
    """
    if read_protocol(snapshot)[0] == SELF_LABELLED:
        return (-1,) * len(read_cameras(snapshot))
    known = {name: i for i, name in enumerate(spec.cameras)}
    return tuple(known.get(name, -1) for name in read_cameras(snapshot))


def embed_parts(
    network: CsipReID,
    dataset: ClipDataset,
    parts: Sequence[int],
    config: EmbedConfig,
    cameras: tuple[int, ...],
    crops_a_call: int,
    device: str,
) -> Iterator[FloatArray]:
    """Embed parts, each by the mean over its clips, brought to length 1.

    Args:
        network: in evaluation mode, on `device`.
        dataset: which holds the parts.
        parts: positions in `dataset`.
        config: how a part becomes clips.
        cameras: camid of the data set -> camera of the network, -1 for none.
        crops_a_call: about how many crops go through the network at once.
        device: where the network is.

    Yields:
        (E,) float32, for each part in turn.
    """
    frames = dataset.clip.frames
    requests = []
    for part in parts:
        n = len(dataset.frames[part].row)
        dense = config.sampling == "dense"
        windows = sampling.dense_windows(n, frames) if dense else sampling.restricted_first(n, frames)[None]
        requests += [ClipRequest(part, tuple(map(int, window)), augment=False, seed=0) for window in windows]
    step = max(1, crops_a_call // frames)
    total: torch.Tensor | None = None
    for begin in range(0, len(requests), step):
        some = requests[begin : begin + step]
        clips = _embed_clips(network, dataset.make_batch(some), cameras, device)
        for i, (request, clip) in enumerate(zip(some, clips, strict=True), start=begin):
            total = clip if total is None else total + clip
            if i + 1 == len(requests) or requests[i + 1].part != request.part:
                yield torch.nn.functional.normalize(total, dim=0).numpy()
                total = None


@torch.inference_mode()
def _embed_clips(network: CsipReID, batch: ClipBatch, cameras: tuple[int, ...], device: str) -> torch.Tensor:
    camid = torch.tensor(cameras)[batch.camid].to(device)
    return network.embed(batch.crops.to(device), camid).float().cpu()


def _fill(
    out: Output,
    ref: EmbeddingsRef,
    parts: tuple[TrackletPart, ...],
    features: Callable[[list[int]], Iterator[FloatArray]],
) -> Stage[EmbeddingsRef]:
    """Compute and commit the embeddings that the table lacks."""
    where = f"encoder_digest = {tables.quote(ref.encoder_digest)}"
    keys = ("tracklet_id", "first_frame", "last_frame")
    table = tables.read(ref.table, keys, where)
    have = set(zip(*(table[k].to_pylist() for k in keys), strict=True))
    todo = [i for i, part in enumerate(parts) if part.unit not in have]
    for begin in range(0, len(todo), _COMMIT_PARTS):
        some = todo[begin : begin + _COMMIT_PARTS]
        vectors = []
        for vector in features(some):
            vectors.append(vector)
            yield Progress(f"embed {ref.encoder}", begin + len(vectors), len(todo), "parts")
        tables.upsert(out.store, "embeddings", _rows(ref, [parts[i] for i in some], np.stack(vectors)))
    table_ref = tables.current(out.store, "embeddings")
    done = EmbeddingsRef(table_ref, ref.encoder_digest, ref.encoder, ref.checkpoint_sha)
    return Outcome(done, {"embedded": len(todo), "already_there": len(parts) - len(todo)})


def _rows(ref: EmbeddingsRef, parts: list[TrackletPart], vectors: FloatArray) -> pa.Table:
    n = len(parts)
    return pa.table(
        [
            pa.array([ref.encoder_digest] * n),
            pa.array([part.tracklet_id for part in parts]),
            pa.array([part.first_frame for part in parts], pa.int64()),
            pa.array([part.last_frame for part in parts], pa.int64()),
            pa.array([ref.checkpoint_sha] * n),
            pa.array([ref.encoder] * n),
            tables.vectors_column(vectors.astype(np.float32)),
        ],
        schema=TABLES["embeddings"],
    )


def read_embeddings(ref: EmbeddingsRef, parts: tuple[TrackletPart, ...]) -> FloatArray:
    """Read the embeddings of the given parts, in their order: (N, E) float32.

    Raises:
        TooLittleDataError: a part has none.
    """
    table = tables.read(ref.table, ["feature"], f"encoder_digest = {tables.quote(ref.encoder_digest)}")
    units: Iterator[tuple[str, int, int]] = zip(
        *(table[k].to_pylist() for k in ("tracklet_id", "first_frame", "last_frame")), strict=True
    )
    row_of = {unit: i for i, unit in enumerate(units)}
    missing = [part.unit for part in parts if part.unit not in row_of]
    if missing:
        raise TooLittleDataError(
            f"{ref.table.uri} version {ref.table.version}: found no embedding by {ref.encoder} of {len(missing)} of "
            f"{len(parts)} parts, the first {missing[0]}. Run the stage `embed` for this snapshot first."
        )
    return tables.vectors_array(table["feature"])[[row_of[part.unit] for part in parts]]
