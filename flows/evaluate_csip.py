"""Flow "evaluate-csip": a checkpoint and a snapshot to scores."""

from __future__ import annotations

from prefect import flow

from csip.config import EmbedConfig, EvaluateConfig, RuntimeConfig
from csip.tables import open_snapshot
from csip.types import CheckpointRef, ResultsRef
from flows.train_csip import embed_histogram_task, embed_task, evaluate_task


@flow(name="evaluate-csip")
def evaluate_csip(
    checkpoint: CheckpointRef,
    snapshot: str,
    store: str,
    embed: EmbedConfig = EmbedConfig(),  # noqa: B008 (frozen)
    evaluate: EvaluateConfig = EvaluateConfig(),  # noqa: B008 (frozen)
    runtime: RuntimeConfig = RuntimeConfig(),  # noqa: B008 (frozen)
) -> ResultsRef:
    """Embed a snapshot's queries and gallery with a checkpoint and score it beside the colour histogram.

    Args:
        checkpoint: a file that `train-csip` wrote.
        snapshot: name of a published snapshot.
        store: the folder of the store's tables.
        embed: how a part becomes one embedding.
        evaluate: what counts, and which ranks are reported.
        runtime: what only changes how fast the scores come.
    """
    data = open_snapshot(store, snapshot)
    after = embed_task(store, checkpoint, data, embed, "", runtime)
    colour = embed_histogram_task(store, data, embed)
    return evaluate_task(store, (after, colour), data, evaluate)
