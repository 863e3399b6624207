"""Flow "train-csip": a snapshot to a trained network, its scores beside two baselines, and a report."""

from __future__ import annotations

from dataclasses import dataclass

from prefect import flow

from csip.config import Experiment
from csip.evaluation.embed import embed, embed_histogram
from csip.evaluation.score import evaluate
from csip.evaluation.write_report import write_report
from csip.tables import open_snapshot
from csip.training.features import cache_features
from csip.training.pretrain import initialise, pretrain_visual
from csip.training.stage1 import stage1
from csip.training.stage2 import stage2
from csip.types import CheckpointRef, FileRef, ResultsRef
from flows.stage import stage

# Content decides what later stages reuse: a weights file may change under its name, a template is no Python.
initialise_task = stage(initialise, process=False, cached=False)
pretrain_visual_task = stage(pretrain_visual, process=True, cached=True, shared=True)
cache_features_task = stage(cache_features, process=True, cached=True)
stage1_task = stage(stage1, process=True, cached=True, shared=True)
stage2_task = stage(stage2, process=True, cached=True, shared=True)
embed_task = stage(embed, process=True, cached=True)
embed_histogram_task = stage(embed_histogram, process=False, cached=True)
evaluate_task = stage(evaluate, process=False, cached=True)
write_report_task = stage(write_report, process=False, cached=False)


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training leaves behind."""

    checkpoint: CheckpointRef
    results: ResultsRef
    report: FileRef


@flow(name="train-csip")
def train_csip(snapshot: str, store: str, experiment: Experiment) -> Trained:
    """Pretrain where the recipe asks for it, run stage 1 and stage 2, embed, score, and write the report.

    Args:
        snapshot: name of a published snapshot.
        store: the folder of the store's tables.
        experiment: the recipe.
    """
    e, data = experiment, open_snapshot(store, snapshot)
    untrained = seeing = initialise_task(store, data, e.clip, e.model, e.validate, e.seed)
    if e.pretrain.epochs:
        seeing = pretrain_visual_task(store, untrained, data, e.pretrain, e.seed, e.runtime)
    features = cache_features_task(store, seeing, data, e.runtime)
    aligned = seeing
    if e.stage1.epochs:
        aligned = stage1_task(store, seeing, features, data, e.stage1, e.seed, e.runtime)
    trained = stage2_task(store, aligned, features, data, e.stage2, e.validate, e.seed, e.runtime)
    before = embed_task(store, untrained, data, e.embed, "untrained", e.runtime)
    after = embed_task(store, trained, data, e.embed, "trained", e.runtime)
    colour = embed_histogram_task(store, data, e.embed)
    results = evaluate_task(store, (after, before, colour), data, e.evaluate)
    return Trained(trained, results, write_report_task(store, results, data, e))
