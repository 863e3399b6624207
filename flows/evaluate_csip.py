"""Flow "evaluate-csip": a checkpoint and a snapshot to scores."""

from __future__ import annotations

from prefect import flow

from csip.config import Experiment
from csip.tables import open_snapshot
from csip.types import CheckpointRef, ResultsRef
from flows.train_csip import embed_histogram_task, embed_task, evaluate_task


@flow(name="evaluate-csip")
def evaluate_csip(checkpoint: CheckpointRef, snapshot: str, store: str, experiment: Experiment) -> ResultsRef:
    """Embed a snapshot's queries and gallery with a checkpoint and score it beside the colour histogram.

    Args:
        checkpoint: a file that `train-csip` wrote.
        snapshot: name of a published snapshot.
        store: the folder of the store's tables.
        experiment: the recipe whose clip, embed and evaluate sections hold.
    """
    e, data = experiment, open_snapshot(store, snapshot)
    after = embed_task(store, checkpoint, data, e.clip, e.embed, "trained", e.runtime)
    colour = embed_histogram_task(store, data, e.clip, e.embed)
    return evaluate_task(store, (after, colour), data, e.evaluate)
