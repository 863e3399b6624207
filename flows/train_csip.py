"""Flow "train-csip": a snapshot to trained networks, their scores beside baselines, and reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Literal, TypeVar

from prefect import flow, get_run_logger

from csip.config import EmbedConfig, Experiment, RuntimeConfig
from csip.data.clips import choose_splits
from csip.evaluation.average import average
from csip.evaluation.embed import embed, embed_histogram, modes
from csip.evaluation.embed_skeletons import embed_skeletons
from csip.evaluation.score import evaluate
from csip.evaluation.write_report import write_report
from csip.models.checkpoints import checkpoint_ref
from csip.protocols import is_skeleton_only
from csip.tables import newest_snapshot, open_snapshot
from csip.training.features import cache_features
from csip.training.pretrain import initialise, pretrain_visual
from csip.training.skeletons import initialise_skeletons, train_skeletons
from csip.training.stage1 import stage1
from csip.training.stage2 import stage2
from csip.types import CheckpointRef, EmbeddingsRef, FileRef, ResultsRef, Snapshot
from flows.lost import coming_back
from flows.parameters import Section, Store
from flows.stage import part_of_many, stage

T = TypeVar("T")

# Content decides what later stages reuse: a weights file may change under its name, a template is no Python.
initialise_task = stage(initialise, work=None, cached=False)
pretrain_visual_task = stage(pretrain_visual, work="training", cached=True, shared=True)
cache_features_task = stage(cache_features, work="training", cached=True, shared=True)
stage1_task = stage(stage1, work="training", cached=True, shared=True)
stage2_task = stage(stage2, work="training", cached=True, shared=True)
initialise_skeletons_task = stage(initialise_skeletons, work=None, cached=False)
train_skeletons_task = stage(train_skeletons, work="training", cached=True)
embed_task = stage(embed, work="training", cached=True, shared=True, named="embed: {encoder}")
embed_histogram_task = stage(embed_histogram, work=None, cached=True)
embed_skeletons_task = stage(embed_skeletons, work="training", cached=True, named="embed_skeletons: {encoder}")
evaluate_task = stage(evaluate, work=None, cached=True)
average_task = stage(average, work=None, cached=True)
write_report_task = stage(write_report, work=None, cached=False)


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training leaves behind.

    Attributes:
        checkpoint: the network.
        results: its scores.
        report: the page about them.
    """

    checkpoint: CheckpointRef
    results: ResultsRef
    report: FileRef


@dataclass(frozen=True, slots=True)
class TrainedAll:
    """What all trainings of a flow leave behind.

    Attributes:
        trained: one for each split and seed, and of a skeleton-only data set for each protocol too.
        mean: mean and standard deviation over splits or seeds, where there are several.
    """

    trained: tuple[Trained, ...]
    mean: ResultsRef | None


@flow(name="train-csip")
def train_csip(snapshot: str, store: Store, experiment: Section[Experiment]) -> TrainedAll:
    """Train as the recipe says, embed, score, and write the reports.

    Pictures with skeletons go through pretraining (where the recipe asks for it), stage 1 and stage 2, once for each
    split that `data.split` names; skeletons alone through their own training, once for each seed.

    Args:
        snapshot: name of a published snapshot; empty: the newest.
        store: the absolute folder of the store's tables, or s3://BUCKET/PREFIX.
        experiment: the recipe.
    """
    with coming_back():
        snapshot = snapshot or take_newest(store)
        views = choose_splits(open_snapshot(store, snapshot), experiment.data)
        if is_skeleton_only(views[0].protocol):
            return _sum_up(store, _each_seed(store, views, experiment), "seeds", experiment.skeleton.seeds)
        trained = one_by_one(views, lambda view: _video(store, view, experiment))
        return _sum_up(store, trained, "splits", len({view.split for view in views}))


def take_newest(store: str) -> str:
    """Name the snapshot that was published last, and say in the run's log that it was taken."""
    name = newest_snapshot(store)
    get_run_logger().info("No snapshot was named: taking the newest of %s, %s.", store, name)
    return name


def one_by_one(views: tuple[Snapshot, ...], do: Callable[[Snapshot], T]) -> tuple[T, ...]:
    """Do the same with each view; tasks are named after the protocol and the split where there are several."""
    several = [len({view.protocol for view in views}) > 1, len({view.split for view in views}) > 1]
    done = []
    for view in views:
        with part_of_many(*compress((view.protocol, f"split {view.split}"), several)):
            done.append(do(view))
    return tuple(done)


def _each_seed(store: str, views: tuple[Snapshot, ...], e: Experiment) -> tuple[Trained, ...]:
    """Train from each seed; tasks are named after it where there are several."""
    trained: list[Trained] = []
    for seed in range(e.seed, e.seed + e.skeleton.seeds):
        with part_of_many(*([f"seed {seed}"] if e.skeleton.seeds > 1 else [])):
            trained += _skeletons(store, views, replace(e, seed=seed))
    return tuple(trained)


def _video(store: str, data: Snapshot, e: Experiment) -> Trained:
    """Run every stage of the method on one split."""
    untrained = seeing = initialise_task(store, data, e.clip, e.model, e.validate, e.seed)
    if e.pretrain.epochs:
        seeing = pretrain_visual_task(store, untrained, data, e.pretrain, e.seed, e.runtime)
    features = cache_features_task(store, seeing, data, e.runtime)
    aligned = seeing
    if e.stage1.epochs:
        aligned = stage1_task(store, seeing, features, data, e.stage1, e.seed, e.runtime)
    trained = stage2_task(store, aligned, features, data, e.stage2, e.validate, e.seed, e.runtime)
    embeddings = (
        *embed_modes(store, trained, data, e.embed, "trained", e.runtime),
        *embed_modes(store, untrained, data, e.embed, "untrained", e.runtime),
        embed_histogram_task(store, data, e.embed),
    )
    results = evaluate_task(store, embeddings, data, e.evaluate, e.runtime)
    return Trained(trained, results, write_report_task(store, results, data, e))


def embed_modes(
    store: str, checkpoint: CheckpointRef, data: Snapshot, config: EmbedConfig, encoder: str, runtime: RuntimeConfig
) -> tuple[EmbeddingsRef, ...]:
    """Embed in every way that the configuration asks for, side by side."""
    return tuple(
        embed_task(store, checkpoint, data, one, f"{encoder}{suffix}", runtime) for suffix, one in modes(config)
    )


def _skeletons(store: str, views: tuple[Snapshot, ...], e: Experiment) -> tuple[Trained, ...]:
    """Train one seed on skeletons alone, and score it under every protocol: they share the training set."""
    given = checkpoint_ref(Path(e.skeleton.initial)) if e.skeleton.initial else None
    # Neither a path nor how many trainings there are decides what one of them gives.
    e = replace(e, skeleton=replace(e.skeleton, initial="", seeds=1))
    untrained = initialise_skeletons_task(store, views[0], e.skeleton, e.model, given, e.seed)
    # An epoch that is chosen by the probes is chosen by each protocol's own: one training a protocol, as published.
    chosen = views if e.skeleton.select_on_probe else views[:1]
    trained = one_by_one(
        chosen, lambda view: train_skeletons_task(store, untrained, view, e.skeleton, e.seed, e.runtime)
    )
    return one_by_one(
        views, lambda view: _score_skeletons(store, untrained, trained[views.index(view) % len(trained)], view, e)
    )


def _score_skeletons(
    store: str, untrained: CheckpointRef, trained: CheckpointRef, data: Snapshot, e: Experiment
) -> Trained:
    after = embed_skeletons_task(store, trained, data, e.skeleton, "trained", e.runtime)
    before = embed_skeletons_task(store, untrained, data, e.skeleton, "untrained", e.runtime)
    results = evaluate_task(store, (after, before), data, e.evaluate, e.runtime)
    return Trained(trained, results, write_report_task(store, results, data, e))


def _sum_up(store: str, trained: tuple[Trained, ...], over: Literal["splits", "seeds"], count: int) -> TrainedAll:
    """Sum up what several trainings scored; of one alone there is nothing to sum up."""
    mean = average_task(store, tuple(one.results for one in trained), over) if count > 1 else None
    return TrainedAll(trained, mean)
