"""Embeddings that cannot be are found and named."""

import dataclasses

import pytest

from csip import tables
from csip.maintenance.verify import verify
from tests.csip.maintenance.stores import (
    put,
    rows_of,
    run_record,
    texts,
)

NAN, INF = float("nan"), float("inf")


def embedding(store, tracklet="a", encoder="e", feature=(0.6, 0.8), run="embed"):
    """Store an embedding, and the run that made it of the snapshot."""
    row = {"encoder_digest": encoder * 64, "tracklet_id": tracklet, "first_frame": 0, "last_frame": 4, "encoder": "x"}
    put(store, "embeddings", [row | {"checkpoint_sha": "c" * 64, "feature": list(feature)}])
    ref = {"table": dataclasses.asdict(tables.current(store, "embeddings")), "encoder_digest": encoder * 64}
    outputs = ref | {"encoder": "x", "checkpoint_sha": "c" * 64}
    inputs = {"snapshot": dataclasses.asdict(tables.open_snapshot(store, "whole"))}
    tables.record_run(store, run_record(f"{run}-{encoder}", run, outputs, inputs))


EMBEDDINGS = {
    "of a tracklet that is nowhere": (
        {"tracklet": "z"},
        "1 tracklets that are not there have embeddings: z of eeeeeeee",
    ),
    "of another width": (
        {"tracklet": "b", "feature": (1.0,)},
        "1 rows have another width than most of their encoder: b",
    ),
    "not of length 1": ({"tracklet": "b", "feature": (0.6, 0.9)}, "1 rows are not of length 1: b of eeeeeeeeeeee."),
    "zero": ({"tracklet": "b", "feature": (0.0, 0.0)}, "1 rows are not of length 1: b of eeeeeeeeeeee."),
    "no number": ({"tracklet": "b", "feature": (NAN, 1.0)}, "1 rows have numbers that are not finite: b of eeeeeeee"),
    "infinite": ({"tracklet": "b", "feature": (INF, 1.0)}, "1 rows have numbers that are not finite: b of eeeeeeee"),
}


@pytest.mark.parametrize("fault", EMBEDDINGS)
def test_a_planted_embedding_that_cannot_be_is_found_and_named(store, fault):
    for tracklet, first in (("a", (0.6, 0.8)), ("b", (0.0, 1.0))):
        embedding(store, tracklet, feature=first)
        embedding(store, tracklet, "f", feature=(1.0, 0.0, 0.0))  # another encoder has its own width
    put(store, "embeddings", [r | {"first_frame": 1} for r in rows_of(store, "embeddings", "tracklet_id = 'a'")])
    assert texts(verify(store)) == []
    planted, told = EMBEDDINGS[fault]
    embedding(store, **planted)
    (text,) = texts(verify(store))
    assert f" embeddings: {told}" in text
    assert verify(store, ["whole"]) == [], "embeddings are no snapshot's"


def test_embeddings_of_skeletons_are_of_any_length(store):
    embedding(store, feature=(3.0, 4.0), run="embed_skeletons")
    assert texts(verify(store)) == []


def test_embeddings_of_a_snapshot_that_was_dropped_are_left_over(store):
    embedding(store, "z")
    assert len(texts(verify(store))) == 1
    tables.delete(store, "snapshots", "true")
    found = verify(store)
    assert texts(found) == []
    assert any("1 tracklets that are not there have embeddings: z" in t for t in texts(found, "leftover"))
