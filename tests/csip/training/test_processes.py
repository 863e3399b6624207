"""Trainings in two processes against the same ones in a single process, on the same global batches."""

import dataclasses
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from csip import tables
from csip.config import EmbedConfig, PretrainConfig, Stage1Config, Stage2Config, ValidateConfig
from csip.evaluation.embed import embed
from csip.models.checkpoints import load_checkpoint
from csip.plain import from_plain, to_plain
from csip.training.features import cache_features
from csip.training.pretrain import initialise, pretrain_visual
from csip.training.stage1 import stage1
from csip.training.stage2 import stage2
from csip.types import CheckpointRef, EmbeddingsRef, Outcome, Output, TableRef

SCRIPT = Path(__file__).with_name("two_processes.py")
PRETRAIN = PretrainConfig(epochs=2, learning_rate=1e-3, identities=4, clips_per_identity=2)
STAGE1 = Stage1Config(epochs=3, batch_clips=5, learning_rate=1e-3, warmup_epochs=0)
STAGE2 = Stage2Config(
    epochs=2, identities=2, clips_per_identity=2, learning_rate=1e-4, warmup_epochs=0, milestones=(2,)
)
PLAIN = dataclasses.replace(STAGE2, temporal=False, prototypes="fixed")
TWICE = dataclasses.replace(STAGE2, accumulate=2)
# What is trained: a name, its stage and section; "left" after so many records and taken up again.
JOBS = {
    "pretrain_visual": (pretrain_visual, PRETRAIN, 0),
    "stage1": (stage1, STAGE1, 0),
    "stage2": (stage2, STAGE2, 0),
    "stage2 without its modules": (stage2, PLAIN, 0),
    "stage2, two batches a step": (stage2, TWICE, 0),
    "stage2, two batches a step, left between them": (stage2, TWICE, 1),
}
ODD = dataclasses.replace(STAGE2, identities=3)
# What makes rows: a stage, what it gives, its rows' keys; and in two processes that commit after 20 frames or 3 parts
# (of 58 and 4), how many commits there are, and files: of the last part's commit one process has no row.
ROWS = {
    "cache_features": (cache_features, TableRef, ("tracklet_id", "frame_index"), 3, 6),
    "embed": (embed, EmbeddingsRef, ("tracklet_id", "first_frame"), 2, 3),
}


@pytest.fixture(scope="module")
def inputs(tiny, tiny_snapshot, tmp_path_factory, run):
    """The tiny snapshot under a network without any dropout, which would be drawn for each process apart."""
    store = str(tmp_path_factory.mktemp("still") / "store")
    tables.prepare_store(store)
    model = dataclasses.replace(tiny.model, joint_dropout=0, prototype_dropout=0, temporal_dropout=0)
    out = Output(store, "run-0")
    checkpoint = run(initialise(out, tiny_snapshot, tiny.clip, model, ValidateConfig(), tiny.seed))[1].value
    features = run(cache_features(out, checkpoint, tiny_snapshot, tiny.runtime))[1].value
    return {
        "checkpoint": checkpoint,
        "features": features,
        "snapshot": tiny_snapshot,
        "validate": ValidateConfig(),
        "seed": tiny.seed,
        "runtime": tiny.runtime,
        "encoder": "trained",
    }


def arguments(function, config, inputs, store):
    tables.prepare_store(str(store))
    given = inputs | {"config": config, "out": Output(str(store), "run-1")}
    return {name: given[name] for name in inspect.signature(function).parameters}


@pytest.fixture(scope="module")
def apart(inputs, tmp_path_factory):
    """What two processes make of every job, and of one that they cannot share: as each of them tells it."""
    folder = tmp_path_factory.mktemp("apart")
    jobs = []
    rows = [(function, EmbedConfig(), 0) for function, *_ in ROWS.values()]
    for number, (function, config, left) in enumerate([*JOBS.values(), (stage2, ODD, 0), *rows]):
        given = arguments(function, config, inputs, folder / f"{number}")
        plain = {name: to_plain(value) for name, value in given.items()}
        jobs.append({"module": function.__module__, "name": function.__name__, "arguments": plain, "left": left})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"),
            *("--nproc-per-node=2", str(SCRIPT), str(folder)),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[3])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    told = [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(2)]
    return [dict(zip([*JOBS, "odd", *ROWS], one, strict=True)) for one in told]


def without_speed(figures):
    return [{name: value for name, value in one.items() if name != "clips_per_second"} for one in figures]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", [name for name, (_, _, left) in JOBS.items() if not left])
def test_two_processes_train_as_one_does_on_the_same_batches(name, inputs, apart, run, tmp_path):
    function, config, _ = JOBS[name]
    records, alone = run(function(**arguments(function, config, inputs, tmp_path)))
    one = without_speed([record.values for record in records])
    both = [without_speed(told[name]["figures"]) for told in apart]
    assert len(one) == config.epochs
    for told in both:
        for found, want in zip(told, one, strict=True):
            assert found == pytest.approx(want, rel=1e-5, abs=1e-5)
    outcomes = [from_plain(Outcome[CheckpointRef], told[name]["outcome"]) for told in apart]
    assert outcomes[0] == outcomes[1]
    # Every clip is counted once, wherever it was.
    counts = {key: value for key, value in alone.counts.items() if key != "kept"}
    assert {key: outcomes[0].counts[key] for key in counts} == counts
    want, found = (load_checkpoint(ref)[0].state_dict() for ref in (alone.value, outcomes[0].value))
    # A step is the rate, whatever the gradient's size, so a weight whose gradient is nothing but rounding may go either
    # way: many a bias (it moves all of a softmax's or a norm's inputs alike), and hardly any other.
    far = {True: 0, False: 0}
    for tensor, value in want.items():
        near = torch.isclose(found[tensor], value, atol=config.learning_rate / 10, rtol=1e-3)
        far[tensor.endswith("bias")] += int((~near).sum())
    weights = sum(value.numel() for tensor, value in want.items() if not tensor.endswith("bias"))
    assert far[False] < weights / 1000


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ROWS)
def test_two_processes_make_the_rows_of_one_and_one_of_them_commits(name, inputs, apart, run, tmp_path):
    function, kind, keys, commits, files = ROWS[name]
    alone = run(function(**arguments(function, EmbedConfig(), inputs, tmp_path)))[1]
    both = [from_plain(Outcome[kind], told[name]["outcome"]) for told in apart]
    assert both[0] == both[1]
    assert both[0].counts == alone.counts
    pinned = [getattr(outcome.value, "table", outcome.value) for outcome in (alone, both[0])]
    want, found = (tables.read(ref).sort_by([(key, "ascending") for key in keys]) for ref in pinned)
    assert found.drop_columns("feature").equals(want.drop_columns("feature"))
    torch.testing.assert_close(*(torch.from_numpy(tables.vectors_array(t["feature"]).copy()) for t in (found, want)))
    # Each process has written files of its own, and there are as many versions as one process alone would have made.
    assert pinned[1].version - pinned[0].version == commits - 1
    assert len(tables.extent(pinned[1]).files) == files


def test_two_processes_go_on_from_where_they_were_left(apart):
    undisturbed = "stage2, two batches a step"
    name = f"{undisturbed}, left between them"
    for told in apart:
        assert without_speed(told[name]["figures"]) == without_speed(told[undisturbed]["figures"])
        shas = [told[key]["outcome"]["value"]["sha256"] for key in (name, undisturbed)]
        assert shas[0] == shas[1]


def test_identities_that_cannot_be_shared_are_said_before_any_batch(apart):
    for told in apart:
        assert told["odd"]["error"] == (
            "stage2.identities=3 cannot be shared by 2 processes: expected a multiple of 2."
        )
        assert told["odd"]["figures"] == []


def test_a_state_of_another_number_of_processes_is_refused(inputs, apart, tmp_path):
    # The two processes' finished trainings left their states there.
    store = Path(apart[0]["stage2"]["outcome"]["leftovers"][0]).parents[1]
    with pytest.raises(Exception, match=r"stage2: .*processes: found 2, expected 1\).*Remove the file") as caught:
        next(stage2(**arguments(stage2, STAGE2, inputs, store)))
    assert type(caught.value).__name__ == "CheckpointError"
