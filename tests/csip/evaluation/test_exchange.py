"""An evaluation to a file and back: the file's scores are the evaluation's, and anybody's file can be scored."""

import uuid
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from csip import tables
from csip.config import EvaluateConfig, RuntimeConfig
from csip.errors import StoreError, TooLittleDataError
from csip.evaluation.exchange import export_matrix, score_matrix
from csip.evaluation.matrix import Matrix, read_matrix, write_matrix
from csip.evaluation.score import evaluate
from csip.plain import to_plain
from csip.protocols import BIWI_S, MARS
from csip.tables import RunRecord
from csip.types import EmbeddingsRef, Output
from storage_schemas import TABLES

CONFIG = EvaluateConfig(ranks=(1, 2), bootstrap=50, query_in_gallery=True)
CONFIG_OF_A_FILE = replace(CONFIG, query_in_gallery=None)
# Person 55 is found at once; person 2's other part comes after person 55's.
ANGLES = {"p55-a": 0, "p2-a": -60, "p55-b": 10, "p2-b": 30}


@pytest.fixture
def evaluated(run, tiny_store):
    """Score hand-written embeddings as the flow does, and record it; return store, run id and figures by name."""
    store = tiny_store.store
    vectors = np.array([[np.cos(a), np.sin(a)] for a in np.radians(list(ANGLES.values()))], np.float32)
    rows = pa.table(
        [
            pa.array(["digest"] * 4),
            pa.array(list(ANGLES)),
            pa.array([0] * 4, pa.int64()),
            pa.array([6 if name.startswith("p2-") else 5 for name in ANGLES], pa.int64()),
            pa.array(["c" * 64] * 4),
            pa.array(["trained"] * 4),
            tables.vectors_column(vectors),
        ],
        schema=TABLES["embeddings"],
    )
    ref = EmbeddingsRef(tables.upsert(store, "embeddings", rows), "digest", "trained", "c" * 64)

    def call(config=CONFIG):
        run_id = uuid.uuid4().hex[:12]
        outcome = run(evaluate(Output(store, run_id), (ref,), tiny_store, config, RuntimeConfig(device="cpu")))[1]
        inputs = {"embeddings": [to_plain(ref)], "snapshot": to_plain(tiny_store)}
        tables.record_run(
            store,
            RunRecord(run_id, "evaluate", run_id, inputs, to_plain(outcome.value), {"config": to_plain(config)}, {}, {},
                      "s", "", "cpu", tables.now(), 1.0),
        )  # fmt: skip
        rows = tables.read(outcome.value.table, where=f"run_id = '{run_id}'").to_pylist()
        return store, run_id, {row["name"]: row["value"] for row in rows}

    return call


@pytest.mark.parametrize("inside", [True, False])
def test_a_result_that_went_through_a_file_has_the_same_scores(evaluated, tmp_path, inside):
    store, run_id, figures = evaluated(replace(CONFIG, query_in_gallery=inside))
    write_matrix(tmp_path / "ours.npz", export_matrix(store, run_id, "trained"))
    scored = score_matrix(read_matrix(tmp_path / "ours.npz"), CONFIG_OF_A_FILE)
    own = {name: value for name, value in figures.items() if "cam" not in name}
    assert {name: scored.figures[name] for name in own} == own
    # The file knows cameras by their numbers.
    pairs = {name.replace("cam", "camera "): value for name, value in figures.items() if "cam" in name}
    assert {name: scored.figures[name] for name in pairs} == pairs
    assert scored.encoder == "trained"
    assert "of 2 queries are valid" in scored.described
    assert "whole tracklets" in scored.described


def test_only_what_there_is_can_be_exported(evaluated):
    store, run_id, _ = evaluated()
    with pytest.raises(StoreError, match="found no evaluation with the run id 'nobody'"):
        export_matrix(store, "nobody", "trained")
    with pytest.raises(StoreError, match="found no encoder 'other'; name one of trained"):
        export_matrix(store, run_id, "other")


def anybodys(**change):
    """Two queries; the first's nearest is its own person under its own camera, the second finds nothing."""
    fields = {
        "distance": np.array([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]], np.float32),
        "query_pid": np.array([7, 8]),
        "query_camid": np.array([0, 0]),
        "gallery_pid": np.array([7, 9, 7]),
        "gallery_camid": np.array([0, 1, 1]),
        "own": np.array([-1, -1]),
    }
    return Matrix(**fields | change)


def test_anybodys_file_is_scored_by_the_rule_that_is_asked_for():
    # Under MARS's rule the one under its own camera does not count: wrong, then right.
    assert score_matrix(anybodys(), CONFIG_OF_A_FILE, MARS).figures["mean_ap"] == pytest.approx(1 / 2)
    assert score_matrix(anybodys(), CONFIG_OF_A_FILE).figures["mean_ap"] == pytest.approx(1 / 2)
    # Under BIWI's it does: right, wrong, right.
    assert score_matrix(anybodys(), CONFIG_OF_A_FILE, BIWI_S).figures["mean_ap"] == pytest.approx((1 + 2 / 3) / 2)
    # The file's own rule, and over both the one that is set.
    loose = anybodys(exclude_same_camera=False)
    assert score_matrix(loose, CONFIG_OF_A_FILE).figures["mean_ap"] == pytest.approx((1 + 2 / 3) / 2)
    assert score_matrix(loose, replace(CONFIG_OF_A_FILE, exclude_same_camera=True)).figures["mean_ap"] == pytest.approx(
        1 / 2
    )
    scored = score_matrix(loose, CONFIG_OF_A_FILE)
    assert (scored.figures["num_queries"], scored.figures["num_valid_queries"]) == (2, 1)
    assert "1 of 2 queries are valid" in scored.described


def test_an_exported_file_says_that_its_distances_were_reranked(evaluated):
    config = replace(CONFIG, rerank=True, rerank_k1=2, rerank_k2=1)
    store, run_id, figures = evaluated(config)
    matrix = export_matrix(store, run_id, "trained")
    assert "re-ranked (k1 2, k2 1, lambda 0.3)" in matrix.described
    assert score_matrix(matrix, CONFIG_OF_A_FILE).figures["mean_ap"] == figures["mean_ap"]
    store, run_id, _ = evaluated()
    assert "re-ranked" not in export_matrix(store, run_id, "trained").described


def test_words_of_a_file_do_not_hide_that_another_rule_was_asked_for():
    told = anybodys(described="ours: gallery items of the query's own person under its own camera do not count.")
    assert "another rule" not in score_matrix(told, CONFIG_OF_A_FILE, MARS).described
    loose = score_matrix(told, CONFIG_OF_A_FILE, BIWI_S).described
    assert loose.startswith("ours: ")
    assert "another rule than the file's: gallery items of the query's own person under its own camera count." in loose
    # A file without words gets those of the rule.
    assert "own camera do not count." in score_matrix(anybodys(), CONFIG_OF_A_FILE).described
    assert "own camera count." in score_matrix(anybodys(), CONFIG_OF_A_FILE, BIWI_S).described


def test_what_a_file_cannot_give_is_refused():
    with pytest.raises(ValueError, match=r"evaluate\.query_in_gallery: got False for a file of distances"):
        score_matrix(anybodys(), replace(CONFIG_OF_A_FILE, query_in_gallery=False))
    with pytest.raises(ValueError, match=r"evaluate\.rerank: got true for a file of distances"):
        score_matrix(anybodys(), replace(CONFIG_OF_A_FILE, rerank=True))
    with pytest.raises(ValueError, match=r"protocol 'duke': expected one of self-labelled, .*mars"):
        score_matrix(anybodys(), CONFIG_OF_A_FILE, "duke")
    with pytest.raises(TooLittleDataError, match="none of 2 queries has a match"):
        score_matrix(anybodys(query_pid=np.array([1, 2])), CONFIG_OF_A_FILE)
