"""Flow "ablate-csip": what each part of the method adds, over several seeds, and what skeletons know of pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from prefect import flow

from csip.config import Experiment, PrototypeChoice, RuntimeConfig
from csip.data.clips import choose_splits
from csip.device import resolve_device
from csip.evaluation.retrieval import retrieve
from csip.tables import open_snapshot
from csip.types import ResultsRef, Snapshot
from flows.lost import coming_back
from flows.stage import stage
from flows.train_csip import (
    cache_features_task,
    embed_histogram_task,
    embed_task,
    evaluate_task,
    initialise_task,
    pretrain_visual_task,
    stage1_task,
    stage2_task,
)

retrieve_task = stage(retrieve, work="training", cached=True)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the ablation table (method.md section 4).

    Attributes:
        text: what it is, in words.
        prototypes: stage 2's prototypes.
        temporal: Skeleton Guided Temporal Modelling on or off.
        aligned: the skeleton encoder comes from stage 1, else it starts random.
    """

    text: str
    prototypes: PrototypeChoice
    temporal: bool
    aligned: bool


ROWS: Mapping[str, Row] = {
    "a": Row("g and v_bar heads alone", "none", temporal=False, aligned=False),
    "b": Row("a + fixed prototypes, S random", "fixed", temporal=False, aligned=False),
    "c": Row("b with S from stage 1", "fixed", temporal=False, aligned=True),
    "d": Row("c + PFU", "pfu", temporal=False, aligned=True),
    "e": Row("d + SGTM: the whole method", "pfu", temporal=True, aligned=True),
    "f": Row("e with S random", "pfu", temporal=True, aligned=False),
}
"""Letter -> row, as the paper's account of its parts goes."""


@dataclass(frozen=True, slots=True)
class Ablated:
    """What one seed of an ablation leaves behind.

    Attributes:
        seed: of initial weights, sampling and augmentation.
        scores: one encoder a row, named by its letter, and the two baselines.
        retrieval: stage 1's skeletons against pictures of people held out.
        before: the same before stage 1.
    """

    seed: int
    scores: ResultsRef
    retrieval: ResultsRef
    before: ResultsRef


def side_by_side(runtime: RuntimeConfig, trainings: int) -> tuple[RuntimeConfig, int]:
    """Share this machine among trainings that run at the same time.

    Args:
        runtime: as the recipe has it.
        trainings: how many at once; 0: one a CPU core, or one where there is a GPU.

    Returns:
        The runtime of each of them, and how many there are.
    """
    on_cpu = resolve_device(runtime.device) == "cpu"
    cores = (os.process_cpu_count() if hasattr(os, "process_cpu_count") else len(os.sched_getaffinity(0))) or 1
    trainings = trainings or (cores if on_cpu else 1)
    # Side by side is what was asked for, whatever the number of devices.
    runtime = replace(runtime, per_device=max(runtime.per_device, trainings))
    if on_cpu and not runtime.threads:
        runtime = replace(runtime, threads=max(1, cores // trainings))
    return runtime, trainings


@flow(name="ablate-csip")
def ablate_csip(
    snapshot: str, store: str, experiment: Experiment, seeds: tuple[int, ...], rows: tuple[str, ...]
) -> tuple[Ablated, ...]:
    """Train every row of the table from every seed, on what the rows of a seed share, and score all of them alike.

    Args:
        snapshot: name of a published snapshot.
        store: the folder of the store's tables.
        experiment: the recipe that the rows change.
        seeds: one training of every row each.
        rows: letters of `ROWS`.
    """
    with coming_back():
        (data,) = choose_splits(open_snapshot(store, snapshot), experiment.data)
        return _finish(_submit([_Shared(store, data, replace(experiment, seed=seed)) for seed in seeds], rows))


def _submit(shared: list[_Shared], rows: tuple[str, ...]) -> list[_Shared]:
    """Submit everything, level by level: a task that waits for another holds a place that the other must not need."""
    for one in shared:
        one.see()
    for one in shared:
        one.align()
    for one in shared:
        one.train(rows)
    for one in shared:
        one.embed()
    return shared


def _finish(shared: list[_Shared]) -> tuple[Ablated, ...]:
    return tuple(one.finish() for one in shared)


class _Shared:
    """What the rows of one seed share, and what becomes of them, as futures in the order of their submission."""

    def __init__(self, store: str, data: Snapshot, e: Experiment) -> None:
        self.store, self.data, self.e = store, data, e
        self.untrained = initialise_task(store, data, e.clip, e.model, e.validate, e.seed)
        self.submitted: list[Any] = []
        self.seeing: Any = self.untrained
        self.trained: dict[str, Any] = {"untrained": self.untrained}

    def see(self) -> None:
        """Submit what makes an image encoder that sees something."""
        e = self.e
        if e.pretrain.epochs:
            self.seeing = self._submit(
                pretrain_visual_task, "", self.untrained, self.data, e.pretrain, e.seed, e.runtime
            )

    def align(self) -> None:
        """Submit the feature cache and stage 1."""
        e, data = self.e, self.data
        self.features = self._submit(cache_features_task, "", self.seeing, data, e.runtime)
        self.aligned = self._submit(stage1_task, "", self.seeing, self.features, data, e.stage1, e.seed, e.runtime)

    def train(self, rows: tuple[str, ...]) -> None:
        """Submit every row's stage 2."""
        e = self.e
        for letter in rows:
            row = ROWS[letter]
            config = replace(e.stage2, prototypes=row.prototypes, temporal=row.temporal)
            parent = self.aligned if row.aligned else self.seeing
            given = (parent, self.features, self.data, config, e.validate, e.seed, e.runtime)
            self.trained[letter] = self._submit(stage2_task, letter, *given)

    def embed(self) -> None:
        """Submit the embeddings of all of them and of the baselines, and the skeletons' search for pictures."""
        e, data = self.e, self.data
        self.embedded = [
            self._submit(embed_task, name, checkpoint, data, e.embed, name, e.runtime)
            for name, checkpoint in self.trained.items()
        ]
        self.embedded.append(self._submit(embed_histogram_task, "", data, e.embed))
        self.before = self._submit(retrieve_task, "before", self.seeing, data, e.runtime)
        self.after = self._submit(retrieve_task, "after", self.aligned, data, e.runtime)

    def finish(self) -> Ablated:
        """Wait for all of it and score it; what failed first says why."""
        for future in self.submitted:
            future.result()
        scores = evaluate_task(
            self.store, tuple(f.result() for f in self.embedded), self.data, self.e.evaluate, self.e.runtime
        )
        return Ablated(self.e.seed, scores, self.after.result(), self.before.result())

    def _submit(self, task: Any, label: str, *given: Any) -> Any:
        name = " ".join(filter(None, (task.name, label, f"seed {self.e.seed}")))
        self.submitted.append(task.with_options(task_run_name=name).submit(self.store, *given))
        return self.submitted[-1]
