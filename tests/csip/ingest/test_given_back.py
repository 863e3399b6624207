"""An extraction that a gc has given back is done again by the next build, whole, and without the pose model."""

import shutil
from dataclasses import replace

import pytest

from csip import tables
from csip.config import TrackConfig
from csip.errors import StoreError
from csip.evaluation.publish import publish
from csip.ingest.extract import extract_videos
from csip.ingest.sources import list_videos
from csip.maintenance.collect import collect
from csip.maintenance.verify import verify
from csip.types import Output
from tests.csip.maintenance.stores import NOW, done, there
from tests.kill_builds import run

ROWS = ("videos", "detections", "tracklets", "crops", "skeletons")


@pytest.fixture
def build(extracted, replayed, street, steps, tmp_path):
    """Build the street into a store that has it, under other tracking settings or its own."""
    store = str(shutil.copytree(extracted.store, tmp_path / "store"))
    out = Output(store, "run-1")

    def call(before_publishing=lambda: None, **track):
        config = replace(steps.config, track=TrackConfig(**track))
        listed = run(list_videos(out, (street.path,), street.camera, config, steps.runtime))
        made = [run(extract_videos(out, batch, listed.digests, config, steps.runtime)) for batch in listed.batches]
        before_publishing()
        return run(publish(out, listed, tuple(made), config)).name

    call.store = store
    return call


def settle(store, **words):
    for _ in range(4):
        collect(store, dry_run=False, older_than=NOW, **words)
        words.pop("drop", None)


def test_what_was_given_back_is_built_again_row_for_row_without_the_pose_model(build, replayed, steps):
    store, first = build.store, build()
    pinned = tables.open_snapshot(store, first)
    before = {name: tables.read(tables.pinned(pinned, name)).to_pylist() for name in (*ROWS, "splits")}
    second = build(min_seconds=3.0)
    settle(store, drop=[first])
    ours = {row["tracklet_id"] for row in steps.rows(store, "tracklets")["tracklets"]}
    assert {row["tracklet_id"] for row in steps.rows(store, "crops")["crops"]} == ours
    assert len(done(store)) == 1
    assert verify(store, deep=True) == []
    again = tables.open_snapshot(store, build())
    assert (again.name, again.digest) == (pinned.name, pinned.digest)
    assert replayed.calls == 0
    for name, rows in before.items():
        found = tables.read(tables.pinned(again, name)).to_pylist()
        others = [row for row in found if row.get("tracklet_id") in ours or row.get("dataset") == second]
        assert [row for row in found if row not in others] == rows, name
    assert done(store) == there(store)
    assert verify(store, deep=True) == []


@pytest.mark.slow
def test_a_build_that_counts_on_what_a_gc_takes_says_so_and_the_next_one_makes_it(build, replayed):
    store, first = build.store, build()
    build(min_seconds=3.0)
    collect(store, dry_run=False, drop=[first], older_than=NOW)
    name = build(min_seconds=2.0)  # done, and shown by no snapshot from now on
    tables.delete(store, "snapshots", f"name = '{name}'")
    told = r"1 videos that this build has extracted, or found extracted, are not there any more: .*run the same command"
    with pytest.raises(StoreError, match=told):
        build(lambda: collect(store, dry_run=False, older_than=NOW), min_seconds=2.0)
    assert build(min_seconds=2.0) == name
    assert done(store) == there(store)
    assert verify(store, [name]) == []


@pytest.mark.slow
def test_raw_detections_that_were_given_back_are_looked_for_again(build, replayed, steps):
    store, first = build.store, build()
    before = steps.rows(store, *ROWS)
    settle(store, drop=[first], detections=True)
    assert steps.rows(store, "detections", "crops") == {"detections": [], "crops": []}
    assert build() == first
    assert replayed.calls > 0
    assert steps.rows(store, *ROWS) == before
    assert verify(store, deep=True) == []
