"""Flow "evaluate-csip": a checkpoint and a snapshot to scores."""

from __future__ import annotations

from prefect import flow

from csip.config import DataConfig, EmbedConfig, EvaluateConfig, RuntimeConfig, SkeletonConfig
from csip.data.clips import choose_splits
from csip.evaluation.embed import encoder_name
from csip.protocols import is_skeleton_only
from csip.tables import open_snapshot
from csip.types import CheckpointRef, EmbeddingsRef, ResultsRef, Snapshot
from flows.train_csip import embed_histogram_task, embed_modes, embed_skeletons_task, evaluate_task, take_newest


@flow(name="evaluate-csip")
def evaluate_csip(
    checkpoint: CheckpointRef,
    snapshot: str,
    store: str,
    data: DataConfig = DataConfig(),  # noqa: B008 (frozen)
    embed: EmbedConfig = EmbedConfig(),  # noqa: B008 (frozen)
    evaluate: EvaluateConfig = EvaluateConfig(),  # noqa: B008 (frozen)
    skeleton: SkeletonConfig = SkeletonConfig(),  # noqa: B008 (frozen)
    runtime: RuntimeConfig = RuntimeConfig(),  # noqa: B008 (frozen)
) -> tuple[ResultsRef, ...]:
    """Embed a snapshot's queries and gallery with a checkpoint and score it, pictures beside the colour histogram.

    Args:
        checkpoint: a file that `train-csip` wrote.
        snapshot: name of a published snapshot; empty: the newest.
        store: the folder of the store's tables.
        data: which of its protocols and splits.
        embed: how a part becomes one embedding.
        evaluate: what counts, and which ranks are reported.
        skeleton: of a skeleton-only data set, how windows are scored.
        runtime: what only changes how fast the scores come.
    """

    def embedded(view: Snapshot) -> tuple[EmbeddingsRef, ...]:
        if is_skeleton_only(view.protocol):
            return (embed_skeletons_task(store, checkpoint, view, skeleton, encoder, runtime),)
        return (
            *embed_modes(store, checkpoint, view, embed, encoder, runtime),
            embed_histogram_task(store, view, embed),
        )

    encoder = encoder_name(checkpoint)
    snapshot = snapshot or take_newest(store)
    views = choose_splits(open_snapshot(store, snapshot), data)
    return tuple(evaluate_task(store, embedded(view), view, evaluate, runtime) for view in views)
