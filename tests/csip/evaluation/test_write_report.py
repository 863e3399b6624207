"""The report of a hand-made evaluation: its figures, its caveat, its curves and the command that shows its lineage."""

import hashlib
import html
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from csip import tables
from csip.config import EvaluateConfig, Experiment, ReportConfig, RuntimeConfig
from csip.evaluation.protocol import CAVEAT, LABEL
from csip.evaluation.score import evaluate
from csip.evaluation.write_report import write_report
from csip.plain import to_plain
from csip.protocols import SELF_LABELLED
from csip.tables import RunRecord
from csip.types import CheckpointRef, EmbeddingsRef, Output, Snapshot
from storage_schemas import TABLES

SHA = "ab" * 32
RUNTIME = RuntimeConfig(device="cpu")
EXPERIMENT = Experiment(
    name="tiny",
    dataset="tinyset",
    evaluate=EvaluateConfig(ranks=(1, 2)),
    report=ReportConfig(contact_tracklets=3, contact_frames=2, queries=2, gallery=2),
)


def record(store, stage, run_id, inputs, outputs, started, config=None):
    tables.record_run(
        store,
        RunRecord(
            run_id=run_id,
            stage=stage,
            key=run_id,
            inputs=inputs,
            outputs=outputs,
            config=config or {},
            counts={},
            weights={},
            source_digest="s",
            git_commit="f3" * 20,
            device="cpu",
            started=f"2026-01-01T00:00:{started:02d}.000+00:00",
            seconds=83.4,
        ),
    )


def embeddings(store, angles, encoder):
    n = len(angles)
    rows = pa.table(
        [
            pa.array([f"{encoder}-digest"] * n),
            pa.array(list(angles)),
            pa.array([0] * n, pa.int64()),
            pa.array([6 if name.startswith("p2-") else 5 for name in angles], pa.int64()),
            pa.array([SHA] * n),
            pa.array([encoder] * n),
            tables.vectors_column(
                np.array([[np.cos(a), np.sin(a)] for a in np.radians(list(angles.values()))], np.float32)
            ),
        ],
        schema=TABLES["embeddings"],
    )
    ranked = "first frames of chunks" if encoder == "trained" else "all frames"
    return EmbeddingsRef(tables.upsert(store, "embeddings", rows), f"{encoder}-digest", encoder, SHA, words=ranked)


@pytest.fixture
def snapshot(tiny_store):
    """The tiny store under the protocol of unlabelled video, published with counts."""
    rows = tables.read(tables.current(tiny_store.store, "splits")).to_pylist()
    tables.delete(tiny_store.store, "splits", "true")
    rows = [row | {"protocol": SELF_LABELLED} for row in rows]
    version = tables.upsert(tiny_store.store, "splits", tables.from_rows("splits", rows)).version
    made = Snapshot("tiny", tiny_store.store, dict(tiny_store.tables) | {"splits": version}, "5" * 64)
    counts = {"videos_forgotten": 1, "frames": 1234, "videos_left_out": 2}
    counts["left_out_of_protocol"] = {"tracklets too short for two parts": 17}
    tables.publish(made, config={}, counts=counts, videos=[])
    return made


@pytest.fixture
def reported(snapshot, run):
    """Stage 1, stage 2, embeddings and scores as their runs leave them; then the report."""
    store = snapshot.store
    # Person 55 is found at once, person 2 second: mAP 3/4, rank-1 1/2.
    trained = embeddings(store, {"p55-a": 0, "p2-a": -60, "p55-b": 10, "p2-b": 30}, "trained")
    # Nobody is found first: mAP 1/2.
    colour = embeddings(store, {"p55-a": 0, "p2-a": 90, "p55-b": 91, "p2-b": 1}, "hsv-histogram")
    first, second = CheckpointRef("/one.safetensors", "1" * 64), CheckpointRef("/two.safetensors", SHA)
    where = {"snapshot": to_plain(snapshot)}
    video = {"video_sha": "9" * 64, "path": "/videos/street.mp4", "camera": "gate", "duration": 8.0}
    record(store, "publish", "run-publish", {"videos": {"videos": [video]}}, to_plain(snapshot), 0)
    record(store, "stage1", "run-one", where, to_plain(first), 1)
    record(store, "stage1", "run-elsewhere", where, to_plain(CheckpointRef("/x.safetensors", "7" * 64)), 2)
    record(store, "stage2", "run-two", where | {"checkpoint": to_plain(first)}, to_plain(second), 3)
    record(store, "embed", "run-embed", where | {"checkpoint": to_plain(second)}, to_plain(trained), 4)
    record(store, "embed_histogram", "run-colour", where, to_plain(colour), 5)
    losses = {"run-one": (3.25, 2.125), "run-two": (1.75, 1.0625), "run-elsewhere": (987.0, 986.0)}
    rows = [
        {"run_id": name, "step": step, "name": "loss", "stage": "s", "value": value}
        for name, values in losses.items()
        for step, value in enumerate(values, 1)
    ]
    tables.upsert(store, "metrics", tables.from_rows("metrics", rows))
    outcome = run(evaluate(Output(store, "run-score"), (trained, colour), snapshot, EXPERIMENT.evaluate, RUNTIME))[1]
    asked = {"embeddings": [to_plain(trained), to_plain(colour)]}
    record(store, "evaluate", "run-score", where | asked, to_plain(outcome.value), 6)
    progress, told = run(write_report(Output(store, "run-report"), outcome.value, snapshot, EXPERIMENT))
    page = Path(told.value.path).read_text(encoding="utf-8")
    return page, told, progress


def words(page):
    """What a reader sees: no styles, no tags, single spaces."""
    text = re.sub(r"<(style|script)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def test_the_report_is_one_file_in_the_store_named_by_what_it_is_about(reported, snapshot):
    _, told, progress = reported
    path = Path(told.value.path)
    assert path == Path(snapshot.store) / "reports" / "tiny-run-score.html"
    assert told.value.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert told.counts["bytes"] == path.stat().st_size
    assert told.counts["tracklets_shown"] == 3
    assert (progress[-1].done, progress[-1].total) == (3, 3)


def test_the_figures_of_every_encoder_stand_in_it(reported):
    text = words(reported[0])
    # mAP and its interval, trapezoidal mAP, mINP, rank-1, rank-2 and valid queries, as worked out by hand: the network
    # finds its two matches at ranks 1 and 2, the histogram both at rank 2.
    assert "trained 75.0 50.0 to 100.0 62.5 75.0 50.0 100.0 2 of 2" in text
    assert "HSV colour histogram 50.0 50.0 to 50.0 25.0 50.0 0.0 100.0 2 of 2" in text
    assert "95 % interval" in text


def test_the_words_are_those_of_the_first_encoder_and_others_differences_are_told(reported):
    text = words(reported[0])
    # By name the histogram comes first.
    assert "ranked: first frames of chunks" in text
    assert "ranked: all frames" not in text
    assert "Of the row “HSV colour histogram” what is ranked is: all frames." in text


def test_it_says_what_kind_of_scores_these_are(reported):
    text = words(reported[0])
    assert LABEL in text
    assert CAVEAT in text
    assert "a person whose track broke counts as two" in text


def test_it_names_the_command_that_shows_its_lineage(reported, snapshot):
    text = words(reported[0])
    assert f"csip lineage run-score --store {snapshot.store}" in text
    for stage in ("publish", "stage1", "stage2", "embed", "embed_histogram", "evaluate"):
        assert stage in text
    assert "run-elsewhere" not in text
    assert "street.mp4" in text


def test_it_draws_the_losses_of_the_runs_behind_the_scores_and_of_no_others(reported):
    text = words(reported[0])
    assert "stage1 loss" in text
    assert "stage2 loss" in text
    for point in ("loss, 1: 3.25", "loss, 2: 2.125", "loss, 1: 1.75", "loss, 2: 1.062"):
        assert point in text
    assert "987" not in text


def test_it_shows_counts_and_what_was_left_out(reported, snapshot):
    text = words(reported[0])
    assert "frames 1,234" in text
    assert "tracklets too short for two parts (left out) left out of protocol 17" in text
    assert "videos left out (left out) 2 videos forgotten (left out) 1" in text
    for name, version in snapshot.tables.items():
        assert f"{name} {version} {tables.count(tables.pinned(snapshot, name))} " in text


def test_it_shows_tracklets_and_rankings_as_pictures_in_the_page(reported):
    page = reported[0]
    assert page.count("data:image/jpeg;base64,") >= 3 * 2 + 2 * (1 + 2)
    text = words(page)
    for name in ("person 55, frames 0-5", "person 2, frames 0-6"):
        assert name in text
