"""Hand-written embeddings to scores worked out by hand.

Every embedding is a direction in the plane, in degrees; the nearer the angle, the nearer the people.
"""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from csip import tables
from csip.config import EvaluateConfig, RuntimeConfig
from csip.data.clips import read_groups, read_protocol
from csip.errors import TooLittleDataError
from csip.evaluation.protocol import describe, rules
from csip.evaluation.ranking import rank
from csip.evaluation.score import evaluate
from csip.protocols import SELF_LABELLED
from csip.types import EmbeddingsRef, Snapshot
from storage_schemas import TABLES

RANKS = EvaluateConfig(ranks=(1, 2), bootstrap=0, breakdown=False)
RUNTIME = RuntimeConfig(device="cpu")
# Person 55 is found at once; person 2's other part comes after person 55's.
ANGLES = {"p55-a": 0, "p2-a": -60, "p55-b": 10, "p2-b": 30}


def write(store, angles, encoder="trained", last=None):
    """Write an encoder's embeddings of whole tracklets; `last` is each one's last frame."""
    vectors = np.array([[np.cos(a), np.sin(a)] for a in np.radians(list(angles.values()))], np.float32)
    n = len(angles)
    rows = pa.table(
        [
            pa.array([f"digest of {encoder}"] * n),
            pa.array(list(angles)),
            pa.array([0] * n, pa.int64()),
            pa.array([(last or {}).get(name, 6 if name.startswith("p2-") else 5) for name in angles], pa.int64()),
            pa.array(["c" * 64] * n),
            pa.array([encoder] * n),
            tables.vectors_column(vectors),
        ],
        schema=TABLES["embeddings"],
    )
    return EmbeddingsRef(tables.upsert(store, "embeddings", rows), f"digest of {encoder}", encoder, "c" * 64)


@pytest.fixture
def scored(out, run):
    """Evaluate; return encoder -> name -> value, and the outcome."""

    def call(refs, snapshot, config=RANKS):
        outcome = run(evaluate(out, refs, snapshot, config, RUNTIME))[1]
        values = {}
        for row in tables.read(outcome.value.table, where=f"run_id = '{outcome.value.run_id}'").to_pylist():
            values.setdefault(row["encoder"], {})[row["name"]] = row["value"]
        return values, outcome

    return call


def test_scores_are_those_of_the_ranking_worked_out_by_hand(out, scored, tiny_snapshot):
    values, outcome = scored((write(out.store, ANGLES),), tiny_snapshot)
    # Person 55 at rank 1 (precision 1), person 2 at rank 2 (precision 1/2).
    assert values == {
        "trained": {
            "mean_ap": pytest.approx(0.75),
            # Person 2: of its one match's rank 2, precision 1/2, and 0 one rank before.
            "mean_ap_trapezoidal": pytest.approx((1 + 1 / 4) / 2),
            "mean_inp": pytest.approx(0.75),
            "rank-1": 0.5,
            "rank-2": 1.0,
            "cmc-001": 0.5,
            "cmc-002": 1.0,
            "num_queries": 2,
            "num_valid_queries": 2,
            "num_gallery": 2,
        }
    }
    assert outcome.value.run_id == out.run_id
    assert outcome.counts["trained mean_ap"] == 0.75
    assert outcome.counts["trained num_gallery"] == 2


def test_queries_may_stand_in_the_gallery_but_never_find_themselves(out, scored, tiny_snapshot):
    config = replace(RANKS, ranks=(1, 3), query_in_gallery=True)
    values, _ = scored((write(out.store, ANGLES),), tiny_snapshot, config)
    # Person 2 asks: its neighbours lie 60, 70 and 90 degrees off, and the last is right.
    figures = values["trained"]
    assert figures["mean_ap"] == pytest.approx((1 + 1 / 3) / 2)
    assert (figures["rank-1"], figures["cmc-002"], figures["rank-3"]) == (0.5, 0.5, 1.0)
    assert figures["num_gallery"] == 4


def test_every_encoder_is_scored_on_the_same_queries(out, scored, tiny_snapshot):
    good = write(out.store, {"p55-a": 0, "p2-a": 90, "p55-b": 1, "p2-b": 91}, "good")
    bad = write(out.store, {"p55-a": 0, "p2-a": 90, "p55-b": 91, "p2-b": 1}, "bad")
    values, outcome = scored((good, bad), tiny_snapshot)
    assert {name: (v["mean_ap"], v["rank-1"]) for name, v in values.items()} == {"good": (1.0, 1.0), "bad": (0.5, 0.0)}
    rows = tables.read(outcome.value.table).to_pylist()
    assert {row["encoder_digest"] for row in rows if row["encoder"] == "bad"} == {"digest of bad"}
    assert {row["checkpoint_sha"] for row in rows} == {"c" * 64}
    assert {(row["protocol"], row["split"]) for row in rows} == {("tiny", "0")}


def test_every_score_carries_its_protocol_in_words(out, scored, tiny_snapshot):
    _, outcome = scored((write(out.store, ANGLES),), tiny_snapshot)
    (words,) = {row["described"] for row in tables.read(outcome.value.table).to_pylist()}
    assert words == outcome.counts["protocol"]
    assert words == f"{describe(rules(RANKS, 'tiny'), 'tiny')} 2 of 2 queries are valid."
    assert "its own camera do not count" in words


@pytest.fixture
def one_camera(tiny, tmp_path):
    """Two people; the first asks under camera 0 and stands in the gallery under cameras 0 and 1."""
    frames = (0, 1, 2)
    walks = (
        tiny.Walk("t", 9, 0, "train", frames),
        tiny.Walk("ask", 1, 0, "query", frames),
        tiny.Walk("same", 1, 0, "gallery", frames),
        tiny.Walk("other", 1, 1, "gallery", frames),
        tiny.Walk("stranger", 2, 1, "gallery", frames),
    )
    return tiny.publish(str(tmp_path / "one"), walks, "one")


ONE = {"ask": 0, "same": 5, "stranger": 10, "other": 20}
ONE_LAST = dict.fromkeys(ONE, 2)


@pytest.mark.parametrize(
    ("exclude", "mean_ap", "rank_1"),
    [
        # Without the one under its own camera: the stranger, then the right one.
        (True, 1 / 2, 0.0),
        (None, 1 / 2, 0.0),
        # With it: right, wrong, right.
        (False, (1 + 2 / 3) / 2, 1.0),
    ],
)
def test_a_match_under_the_querys_own_camera_counts_only_where_it_may(
    out, scored, one_camera, exclude, mean_ap, rank_1
):
    ref = write(out.store, ONE, last=ONE_LAST)
    values, _ = scored((ref,), one_camera, replace(RANKS, ranks=(1,), exclude_same_camera=exclude))
    assert values["trained"]["mean_ap"] == pytest.approx(mean_ap)
    assert values["trained"]["rank-1"] == rank_1


def with_protocol(snapshot, *protocols):
    """The same snapshot, its parts under other protocols."""
    rows = tables.read(tables.current(snapshot.store, "splits")).to_pylist()
    tables.delete(snapshot.store, "splits", "true")
    again = [row | {"protocol": name} for row in rows for name in protocols]
    version = tables.upsert(snapshot.store, "splits", tables.from_rows("splits", again)).version
    return Snapshot(snapshot.name, snapshot.store, dict(snapshot.tables) | {"splits": version}, snapshot.digest)


def test_self_labelled_video_counts_matches_under_one_camera(out, scored, one_camera):
    snapshot = with_protocol(one_camera, SELF_LABELLED)
    values, outcome = scored((write(out.store, ONE, last=ONE_LAST),), snapshot, replace(RANKS, ranks=(1,)))
    assert values["trained"]["mean_ap"] == pytest.approx((1 + 2 / 3) / 2)
    assert outcome.counts["protocol"].startswith("self-labelled, same camera: ")


def test_a_ranking_knows_whose_part_is_whose(out, tiny_snapshot):
    rule = rules(EvaluateConfig(query_in_gallery=True), "tiny")
    ranking = rank(write(out.store, ANGLES), tiny_snapshot, rule)
    names = [part.tracklet_id for part in ranking.gallery]
    assert [[names[g] for g in np.flatnonzero(row)] for row in ranking.own(slice(None))] == [
        [part.tracklet_id] for part in ranking.query
    ]
    (distance,) = (block for _, block in ranking.blocks(RANKS, "cpu"))
    # The chord between two directions of the unit circle.
    for q, asked in enumerate(ranking.query):
        for g, there in enumerate(names):
            angle = np.radians(ANGLES[asked.tracklet_id] - ANGLES[there])
            assert distance[q, g] == pytest.approx(2 * abs(np.sin(angle / 2)), abs=1e-3)


def test_a_snapshot_without_a_protocol_or_with_two_is_refused(tiny_store, one_camera):
    assert read_protocol(tiny_store) == ("tiny", "0")
    two = with_protocol(one_camera, "tiny", "other")
    with pytest.raises(ValueError, match=r"data\.protocol=: snapshot one has other, tiny\. Name one of those"):
        read_protocol(two)
    with pytest.raises(TooLittleDataError, match="found no protocol in it, expected one"):
        read_protocol(with_protocol(tiny_store))


def test_embeddings_that_are_missing_are_said(out, run, tiny_snapshot):
    ref = write(out.store, {"p55-a": 0, "p2-a": 1, "p55-b": 2})
    with pytest.raises(TooLittleDataError, match=r"no embedding by trained of 1 of 4 parts, the first .'p2-b'"):
        run(evaluate(out, (ref,), tiny_snapshot, RANKS, RUNTIME))
    # Clips of the gallery alone.
    write(out.store, {"p2-b": 4})
    tables.delete(out.store, "embeddings", "tracklet_id in ('p55-a', 'p2-a')")
    clips = replace(ref, table=tables.current(out.store, "embeddings"), unit="clips")
    with pytest.raises(TooLittleDataError, match="found no clip by trained inside any of 2 query parts"):
        run(evaluate(out, (clips,), tiny_snapshot, RANKS, RUNTIME))
    assert tables.count(tables.current(out.store, "results")) == 0


def test_a_group_is_scored_by_its_own_queries_against_everybody(out, scored, tiny, tmp_path):
    # Persons 1 and 2 are twins: 1 finds 2 before itself; person 3 finds itself at once.
    frames = (0, 1, 2)
    walks = tuple(
        tiny.Walk(name, pid, camid, role, frames, group=group)
        for name, pid, camid, role, group in (
            ("a-ask", 1, 0, "query", "twins"),
            ("a-there", 1, 1, "gallery", "twins"),
            ("b-ask", 2, 0, "query", "twins"),
            ("b-there", 2, 1, "gallery", "twins"),
            ("c-ask", 3, 0, "query", ""),
            ("c-there", 3, 1, "gallery", ""),
            ("d", 4, 0, "train", "strangers"),
        )
    )
    angles = {"a-ask": 0, "a-there": 20, "b-ask": 10, "b-there": 5, "c-ask": 90, "c-there": 91}
    snapshot = tiny.publish(str(tmp_path / "groups"), walks, "groups")
    assert read_groups(snapshot) == {"strangers": {4}, "twins": {1, 2}}
    values, outcome = scored((write(out.store, angles, last=dict.fromkeys(angles, 2)),), snapshot)
    figures = values["trained"]
    assert figures["mean_ap"] == pytest.approx((1 / 2 + 1 + 1) / 3)
    assert figures["twins/mean_ap"] == pytest.approx((1 / 2 + 1) / 2)
    assert (figures["rank-1"], figures["twins/rank-1"], figures["twins/rank-2"]) == (pytest.approx(2 / 3), 0.5, 1.0)
    assert (figures["twins/num_queries"], figures["twins/num_valid_queries"]) == (2, 2)
    # A group without a query has no score, and says so.
    assert {n: v for n, v in figures.items() if n.startswith("strangers/")} == {
        "strangers/num_queries": 0,
        "strangers/num_valid_queries": 0,
    }
    assert (outcome.counts["trained twins/mean_ap"], outcome.counts["trained twins/rank-1"]) == (0.75, 0.5)
    assert "trained strangers/mean_ap" not in outcome.counts


def test_intervals_and_breakdown_stand_beside_the_figures(out, scored, tiny_snapshot):
    config = EvaluateConfig(ranks=(1,), lengths=(7,), bootstrap=200)
    values, _ = scored((write(out.store, ANGLES),), tiny_snapshot, config)
    figures = values["trained"]
    # Of two queries worth 1 and 1/2, draws of two are worth 1/2, 3/4 or 1.
    assert (figures["low/mean_ap"], figures["high/mean_ap"]) == (0.5, 1.0)
    assert figures["confidence"] == 0.95
    assert (figures["low/rank-1"], figures["high/rank-1"]) == (0.0, 1.0)
    # Person 55 has six frames and is found at once, person 2 has seven.
    assert (figures["1 to 6 frames/mean_ap"], figures["7 to more frames/mean_ap"]) == (1.0, 0.5)
    assert figures["1 to 6 frames/num_queries"] == 1
    # Both stand before camera 2, where each is the other's stranger.
    assert (figures["cam0 to cam2/mean_ap"], figures["cam1 to cam2/mean_ap"]) == (1.0, 0.5)


def test_clips_are_ranked_each_by_itself_and_never_find_their_own_part(out, scored, tiny_snapshot):
    # Two clips of each part; the queries stand in the gallery, under the camera that counts.
    rows = {"p55-a": (0, 2), "p2-a": (90, 92), "p55-b": (10, 100), "p2-b": (80, 95)}
    n = 2 * len(rows)
    angles = np.radians([angle for pair in rows.values() for angle in pair])
    table = pa.table(
        [
            pa.array(["clips"] * n),
            pa.array([name for name in rows for _ in range(2)]),
            pa.array([0, 1] * len(rows), pa.int64()),
            pa.array([4, 5] * len(rows), pa.int64()),
            pa.array(["c" * 64] * n),
            pa.array(["trained"] * n),
            tables.vectors_column(np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)),
        ],
        schema=TABLES["embeddings"],
    )
    ref = EmbeddingsRef(
        tables.upsert(out.store, "embeddings", table), "clips", "trained", "c" * 64, unit="clips", words="clips of 5"
    )
    config = replace(RANKS, ranks=(1,), query_in_gallery=True, exclude_same_camera=False)
    values, outcome = scored((ref,), tiny_snapshot, config)
    figures = values["trained"]
    assert (figures["num_queries"], figures["num_gallery"]) == (4, 8)
    # p55-a at 0: 10 right, then 80, 90, 92, 95 wrong, 100 right: (1 + 2/6) / 2; at 2 the same.
    # p2-a at 90: 95 right, 80 and 100 equally far, and p2-b's clip comes first by name: right.
    # p2-a at 92: 95 right, 100 wrong, 80 right.
    wanted = (2 * (1 + 2 / 6) / 2 + 1 + (1 + 2 / 3) / 2) / 4
    assert figures["mean_ap"] == pytest.approx(wanted)
    assert "ranked: clips of 5" in outcome.counts["protocol"]


def test_reranked_scores_say_so(out, scored, tiny_snapshot):
    config = replace(RANKS, rerank=True, rerank_k1=2, rerank_k2=1, rerank_weight=1.0)
    values, outcome = scored((write(out.store, ANGLES),), tiny_snapshot, config)
    # All weight on the original distances: the ranking is the plain one.
    assert values["trained"]["mean_ap"] == pytest.approx(0.75)
    assert "re-ranked (k1 2, k2 1, lambda 1)" in outcome.counts["protocol"]
