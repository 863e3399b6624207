"""Windows of skeletons to embeddings: the features that skeleton-only re-identification ranks, as they are.

Shapes: W windows, F frames a window, J joints, E embedding width, Q queries, G gallery windows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from csip import shares
from csip.config import RuntimeConfig, SkeletonConfig
from csip.data.windows import Windows, read_windows
from csip.device import resolve_device
from csip.errors import CheckpointError, TooLittleDataError
from csip.evaluation.distances import euclidean_distance
from csip.evaluation.embed import chosen_on_test, fill_embeddings
from csip.evaluation.metrics import score_ranking
from csip.models.checkpoints import SkeletonSpec
from csip.models.skeleton_checkpoints import load_skeleton_checkpoint
from csip.models.skeleton_reid import SkeletonReID
from csip.plain import digest
from csip.source import source_digest
from csip.types import (
    CheckpointRef,
    EmbeddingsRef,
    FloatArray,
    IntArray,
    Outcome,
    Output,
    Snapshot,
    Stage,
)


def embed_skeletons(
    out: Output,
    checkpoint: CheckpointRef,
    snapshot: Snapshot,
    config: SkeletonConfig,
    encoder: str,
    runtime: RuntimeConfig,
) -> Stage[EmbeddingsRef]:
    """Stage `embed_skeletons`: every query and gallery window through a checkpoint; what is there is not redone.

    Embeddings are not brought to length 1. A window's row names its tracklet, its first and its last frame.

    Args:
        out: the store.
        checkpoint: of a skeleton-only network.
        snapshot: whose query and gallery windows are embedded.
        config: frames a window, and whether the last partial batch of either side is left out.
        encoder: what results call it, for example "trained".
        runtime: device and batch.

    Raises:
        CheckpointError: the checkpoint is damaged, of another kind, or made for other windows.
        TooLittleDataError: the snapshot has no window to search for.
    """
    network, header = load_skeleton_checkpoint(checkpoint)
    device = resolve_device(runtime.device)
    network.to(device)
    query, gallery = scored_windows(snapshot, config)
    require_fit(network, config, query)
    skeleton = np.concatenate([query.skeleton, gallery.skeleton])
    left_out = f", without the last partial {config.batch_windows} of either side" if config.drop_last_eval else ""
    # What is scored is what has a row under this digest: it names all that decides which windows there are.
    how = [snapshot.digest, config.frames, config.batch_windows if config.drop_last_eval else 0]
    ref = EmbeddingsRef(
        shares.newest(out.store, "embeddings"),
        digest("embed_skeletons", checkpoint.sha256, how, source_digest(__name__)),
        encoder,
        checkpoint.sha256,
        unit="clips",
        words=f"windows of {config.frames} consecutive skeletons, each ranked by itself{left_out}"
        + _trained_elsewhere(header.spec, snapshot)
        + chosen_on_test(header.metrics),
    )

    def features(windows: list[int]) -> Iterator[FloatArray]:
        yield from embed_windows(network, skeleton[windows], runtime.encode_batch, device)

    done = yield from fill_embeddings(out, ref, (*query.parts, *gallery.parts), features)
    sides = {"query_windows": len(query), "gallery_windows": len(gallery)}
    short = {"parts_too_short_for_a_window": query.short_parts + gallery.short_parts}
    return Outcome(done.value, {**sides, **short, **done.counts})


def _trained_elsewhere(spec: SkeletonSpec, snapshot: Snapshot) -> str:
    """Say that a network was not trained on this data set, a clause behind others; else nothing."""
    known = spec.snapshot in ("", snapshot.digest)
    return "" if known else "; the network was trained on another snapshot, not on this one's people"


def scored_windows(snapshot: Snapshot, config: SkeletonConfig) -> tuple[Windows, Windows]:
    """Read a snapshot's query and gallery windows, as many as are scored.

    Raises:
        TooLittleDataError: a side has none.
    """
    sides = [_whole_batches(read_windows(snapshot, role, config.frames), config) for role in ("query", "gallery")]
    if not all(len(side) for side in sides):
        raise TooLittleDataError(
            f"Snapshot {snapshot.name}: found {len(sides[0])} query and {len(sides[1])} gallery windows of "
            f"{config.frames} skeletons to score, expected some of each. Lower skeleton.frames"
            + (", or leave skeleton.drop_last_eval off." if config.drop_last_eval else ".")
        )
    return sides[0], sides[1]


def _whole_batches(windows: Windows, config: SkeletonConfig) -> Windows:
    """Leave the last partial batch out, where the recipe asks for what was published."""
    if not config.drop_last_eval:
        return windows
    return windows.first(len(windows) // config.batch_windows * config.batch_windows)


def require_fit(network: SkeletonReID, config: SkeletonConfig, windows: Windows) -> None:
    """Refuse a network that was made for other windows.

    Raises:
        CheckpointError: frames or joints differ.
    """
    found, expected = windows.skeleton.shape[1:3], (network.frames, network.joints)
    if found != expected:
        raise CheckpointError(
            f"Skeleton-only network: found windows of {found[0]} frames and {found[1]} joints, expected {expected[0]} "
            f"and {expected[1]} as in its training. Set skeleton.frames={expected[0]} (it is {config.frames}), or "
            "train on this snapshot."
        )


@torch.inference_mode()
def embed_windows(network: SkeletonReID, skeleton: FloatArray, windows_a_call: int, device: str) -> FloatArray:
    """Embed windows (W, F, J, 3) in evaluation mode, in which the network is left: (W, E) float32, as they are."""
    network.eval()
    pieces = torch.split(torch.from_numpy(skeleton), windows_a_call)
    return torch.cat([network.embed(piece.to(device)).float().cpu() for piece in pieces]).numpy()


def probe_rank1(query: FloatArray, query_pid: IntArray, gallery: FloatArray, gallery_pid: IntArray) -> float:
    """Share of the queries whose nearest gallery window is of the same person, among those that have one.

    Args:
        query: (Q, E) features as they are.
        query_pid: (Q,).
        gallery: (G, E).
        gallery_pid: (G,).
    """
    distance = euclidean_distance(query, gallery)
    nobody = [np.zeros(len(pid), np.int64) for pid in (query_pid, gallery_pid)]
    scores = score_ranking(distance, query_pid, nobody[0], gallery_pid, nobody[1], exclude_same_camera=False)
    return scores.rank(1)
