"""Parts to embeddings: by a checkpoint, or by a plain colour histogram as the baseline anybody could build.

Shapes: N parts, W windows of a part, T frames a clip, E embedding width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from csip import ranks, shares, tables
from csip.config import ClipConfig, EmbedConfig, RuntimeConfig
from csip.data import sampling
from csip.data.clips import ClipDataset, ClipRequest, read_cameras, read_parts, read_protocol
from csip.device import resolve_device
from csip.errors import CheckpointError, TooLittleDataError
from csip.evaluation.histogram import color_histogram
from csip.models.checkpoints import ModelSpec, load_checkpoint, read_header
from csip.models.reid import CsipReID
from csip.plain import digest
from csip.protocols import PROTOCOLS, SELF_LABELLED
from csip.source import source_digest
from csip.types import (
    CheckpointRef,
    ClipBatch,
    EmbeddingsRef,
    FloatArray,
    IntArray,
    Outcome,
    Output,
    Progress,
    Snapshot,
    Stage,
    TrackletPart,
)
from storage_schemas import TABLES

_COMMIT_PARTS = 2_000
_NAMES = {
    **{"initialise": "untrained", "initialise_skeletons": "untrained"},
    **{"stage2": "trained", "train_skeletons": "trained"},
}


def embed(
    out: Output,
    checkpoint: CheckpointRef,
    snapshot: Snapshot,
    config: EmbedConfig,
    encoder: str,
    runtime: RuntimeConfig,
) -> Stage[EmbeddingsRef]:
    """Stage `embed`: every query and gallery part through a checkpoint; what is there already is not redone.

    Of several processes each embeds its share of the parts.

    Args:
        out: the store.
        checkpoint: of any stage.
        snapshot: whose query and gallery parts are embedded.
        config: how a part becomes clips; one of `modes`.
        encoder: what results call it, for example "trained".
        runtime: device and batch.

    Raises:
        CheckpointError: the checkpoint is damaged or of another format, or was trained on the people to be found.
        TooLittleDataError: the snapshot has nobody to search for.
    """
    network, header = load_checkpoint(checkpoint)
    parts = _test_parts(snapshot)
    _refuse_known_people(header.spec, snapshot, parts)
    device = resolve_device(runtime.device)
    network.to(device).eval()
    clips = config.unit == "clip"
    t = header.spec.clip.frames
    clip = replace(header.spec.clip, unit="window", unit_frames=t, unit_stride=config.clip_stride)
    dataset = ClipDataset(snapshot, parts, clip, units=clips, skeletons=False)
    cameras = known_cameras(snapshot, header.spec)
    how: list[str] = [config.sampling, config.unit]
    if clips:
        # All clips inside a part are ranked: those of another data set's parts must not be among them.
        how += [str(config.clip_stride), snapshot.digest]
    ref = EmbeddingsRef(
        shares.newest(out.store, "embeddings"),
        digest("embed", checkpoint.sha256, how, cameras, source_digest(__name__)),
        encoder,
        checkpoint.sha256,
        unit="clips" if clips else "part",
        words=_words(config, t) + chosen_on_test(header.metrics),
    )

    def features(parts: list[int]) -> Iterator[FloatArray]:
        return embed_parts(network, dataset, parts, config, cameras, runtime.encode_batch, device)

    return (yield from fill_embeddings(out, ref, dataset.parts, features))


def embed_histogram(out: Output, snapshot: Snapshot, config: EmbedConfig) -> Stage[EmbeddingsRef]:
    """Stage `embed_histogram`: the HSV colour histogram of every query and gallery part's crops, all frames."""
    dataset = ClipDataset(snapshot, _test_parts(snapshot), ClipConfig(), skeletons=False)
    encoder_digest = digest("hsv-histogram", config.histogram_bins, source_digest(__name__))
    words = "whole tracklets, all frames"
    table = shares.newest(out.store, "embeddings")
    ref = EmbeddingsRef(table, encoder_digest, "hsv-histogram", "", words=words)

    def features(parts: list[int]) -> Iterator[FloatArray]:
        for index in parts:
            crops = [crop.permute(1, 2, 0).numpy() for crop in dataset.read_crops(dataset.frames[index].row)]
            yield color_histogram(crops, bins=config.histogram_bins)

    return (yield from fill_embeddings(out, ref, dataset.parts, features))


def encoder_name(checkpoint: CheckpointRef) -> str:
    """Name a checkpoint, as results do, after the stage that wrote it."""
    stage = read_header(Path(checkpoint.path)).stage
    return _NAMES.get(stage, stage)


def modes(config: EmbedConfig) -> tuple[tuple[str, EmbedConfig], ...]:
    """List what a configuration asks for, each with what an encoder's name gets behind it."""
    if config.sampling != "both":
        return (("", config),)
    return ("", replace(config, sampling="restricted")), (" dense", replace(config, sampling="dense"))


def chosen_on_test(metrics: Mapping[str, float]) -> str:
    """Say of a checkpoint's figures that its epoch was chosen on the test set, which flatters them; else nothing.

    Args:
        metrics: as its header has them.
    """
    looked = {"test_mean_ap", "probe_rank1"} & set(metrics)
    return "; the training's epoch was chosen by its scores on the test set" if looked else ""


def _words(config: EmbedConfig, frames: int) -> str:
    if config.unit == "clip":
        return f"clips of {frames} consecutive frames, one every {config.clip_stride}, each ranked by itself"
    if config.sampling == "dense":
        return f"whole tracklets, the mean over all consecutive clips of {frames} frames"
    return f"whole tracklets, by the first frame of each of {frames} chunks"


def _refuse_known_people(spec: ModelSpec, snapshot: Snapshot, parts: Sequence[TrackletPart]) -> None:
    """Refuse to score a network on people that it was trained on, which would flatter it beyond measure."""
    protocol, split = read_protocol(snapshot)
    if spec.snapshot != snapshot.digest or (protocol in PROTOCOLS and PROTOCOLS[protocol].closed_set):
        return
    known = {part.pid for part in parts} & set(spec.pids)
    if known:
        raise CheckpointError(
            f"Snapshot {snapshot.name}, {protocol}, split {split}: found {len(known)} test people that the checkpoint "
            f"was trained on (under {spec.split}), expected none. Name the protocol and split that it was trained "
            "under, with --set data.protocol=NAME and --set data.split=NUMBER."
        )


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
        chunked = sampling.restricted_first(n, frames, dataset.clip.chunks)[None]
        windows = sampling.dense_windows(n, frames) if dense else chunked
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


def fill_embeddings(
    out: Output,
    ref: EmbeddingsRef,
    parts: tuple[TrackletPart, ...],
    features: Callable[[list[int]], Iterator[FloatArray]],
) -> Stage[EmbeddingsRef]:
    """Compute and commit the embeddings that the table lacks; of several processes each computes its share.

    Args:
        out: the store.
        ref: of the encoder; its table is any version, the same for all processes.
        parts: what there must be an embedding of.
        features: gives, for positions in `parts`, (E,) float32 each in turn.
    """
    where = f"encoder_digest = {tables.quote(ref.encoder_digest)}"
    keys = ("tracklet_id", "first_frame", "last_frame")
    table = tables.read(ref.table, keys, where)
    have = set(zip(*(table[k].to_pylist() for k in keys), strict=True))
    todo = [i for i, part in enumerate(parts) if part.unit not in have]
    for begin in range(0, len(todo), _COMMIT_PARTS):
        some = todo[begin : begin + _COMMIT_PARTS]
        mine = list(shares.own(some))
        vectors: list[FloatArray] = []
        made = features(mine)
        for at in range(0, len(some), ranks.size()):
            vectors += itertools.islice(made, 1)
            yield Progress(f"embed {ref.encoder}", begin + min(at + ranks.size(), len(some)), len(todo), "parts")
        shares.commit(out.store, "embeddings", _rows(ref, [parts[i] for i in mine], vectors))
    table_ref = shares.newest(out.store, "embeddings")
    counts = {"embedded": len(todo), "already_there": len(parts) - len(todo)}
    return Outcome(replace(ref, table=table_ref), counts)


def _rows(ref: EmbeddingsRef, parts: Sequence[TrackletPart], vectors: Sequence[FloatArray]) -> pa.Table:
    n = len(parts)
    if not n:
        return TABLES["embeddings"].empty_table()
    return pa.table(
        [
            pa.array([ref.encoder_digest] * n),
            pa.array([part.tracklet_id for part in parts]),
            pa.array([part.first_frame for part in parts], pa.int64()),
            pa.array([part.last_frame for part in parts], pa.int64()),
            pa.array([ref.checkpoint_sha] * n),
            pa.array([ref.encoder] * n),
            tables.vectors_column(np.stack(vectors).astype(np.float32)),
        ],
        schema=TABLES["embeddings"],
    )


def read_embeddings(
    ref: EmbeddingsRef, parts: Sequence[TrackletPart]
) -> tuple[tuple[TrackletPart, ...], IntArray, FloatArray]:
    """Read the embeddings of the given parts: one each, or, of clips, all that lie inside them, which may be none.

    Returns:
        What N embeddings are of, in the order of `parts`; (N,) positions in `parts`; and (N, E) float32.

    Raises:
        TooLittleDataError: a whole part has none, or no clip lies inside any of them.
    """
    columns = ["tracklet_id", "first_frame", "last_frame", "feature"]
    # In no order: to sort a table with its features in it takes longer than all else of the reading.
    table = pa.Table.from_batches(
        tables.stream(ref.table, columns, f"encoder_digest = {tables.quote(ref.encoder_digest)}"),
        pa.schema([TABLES["embeddings"].field(name) for name in columns]),
    )
    rows: dict[str, list[tuple[int, int, int]]] = {}
    names = (table[name].to_pylist() for name in columns[:3])
    for i, (tracklet, first, last) in enumerate(zip(*names, strict=True)):
        rows.setdefault(tracklet, []).append((first, last, i))
    units: list[TrackletPart] = []
    of_part, at, missing = [], [], []
    for i, part in enumerate(parts):
        own = sorted(rows.get(part.tracklet_id, []))
        if ref.unit == "part":
            inside = [row for row in own if row[:2] == (part.first_frame, part.last_frame)]
        else:
            inside = [row for row in own if part.first_frame <= row[0] and row[1] <= part.last_frame]
        if not inside and ref.unit == "part":
            missing.append(part.unit)
        for first, last, row in inside:
            units.append(replace(part, first_frame=first, last_frame=last))
            of_part.append(i)
            at.append(row)
    if missing or not units:
        first = f", the first {missing[0]}" if missing else ""
        raise TooLittleDataError(
            f"{ref.table.uri} version {ref.table.version}: found no embedding by {ref.encoder} of "
            f"{len(missing) or len(parts)} of {len(parts)} parts{first}. Run the stage `embed` for this snapshot first."
        )
    return tuple(units), np.array(of_part, np.int64), tables.vectors_array(table["feature"])[at]
