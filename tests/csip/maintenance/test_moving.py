"""Snapshots that are kept leave versions that hold what was given back; their rows and what was made of them stay."""

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from csip import tables
from csip.maintenance import collect as collecting
from csip.maintenance.collect import collect
from csip.maintenance.moving import move
from csip.maintenance.verify import verify
from csip.plain import digest
from tests.csip.maintenance.stores import (
    FIRST,
    LONG_AGO,
    MOMENT,
    NEW,
    NOW,
    OLD,
    SECOND,
    change,
    extract,
    film,
    names,
    put,
    rows_of,
    run_record,
    settle,
    show,
    texts,
    there,
    trained,
)


@pytest.fixture
def store(filmed):
    return filmed


def test_runs_follow_a_snapshot_that_moves_so_that_nothing_is_trained_again(store):
    before = trained(store, "new")
    other = trained(store, "old")
    tables.record_run(store, run_record("odd", "other", {}, before.inputs, key="of its own", started=LONG_AGO))
    pinned = tables.open_snapshot(store, "new")
    collect(store, dry_run=False, drop=["old"], force=True)
    show(store, "long", [SECOND], NEW, created=LONG_AGO)
    told = collect(store, dry_run=False, older_than=MOMENT)
    assert told.moved == ("long", "new")
    moved = tables.open_snapshot(store, "new")
    assert (moved.digest, moved.tables["splits"]) == (pinned.digest, pinned.tables["splits"])
    assert all(moved.tables[name] > pinned.tables[name] for name in ("tracklets", "crops", "skeletons"))
    assert tables.exists(tables.pinned(pinned, "crops")), "somebody may have it open"
    (after,) = tables.find_runs(store, f"run_id = '{before.run_id}'")
    assert after.inputs["snapshot"]["tables"] == moved.tables
    assert after.key == digest("stage2", {**after.inputs, **before.config}, "source")
    assert tables.find_runs(store, "run_id = 'odd'")[0].key == "of its own"
    assert tables.find_runs(store, f"run_id = '{other.run_id}'") == [other]
    assert texts(verify(store)) == []
    assert collect(store, dry_run=False, older_than=MOMENT).moved == ()


@pytest.mark.parametrize("use", ["published", "trained on", "being trained on"])
def test_a_snapshot_that_is_in_use_does_not_move(store, use):
    collect(store, dry_run=False, drop=["old"])
    row = {one["name"]: one for one in rows_of(store, "snapshots")}["new"]
    aged = row | {"created": LONG_AGO}
    tables.upsert(store, "snapshots", tables.from_rows("snapshots", [aged]))
    since = datetime.now(UTC) + timedelta(days=1)
    newest = collecting.Remaining({(SECOND, NEW)}, set())
    find = lambda at: collecting.find_moves(  # noqa: E731
        store, {"new": collecting.published(store)["new"]}, tables.find_runs(store, "true"), newest, at
    )
    assert find(since) == (["new"], [])
    since = datetime.now(UTC) - timedelta(hours=1)
    if use == "published":
        tables.upsert(store, "snapshots", tables.from_rows("snapshots", [row]))
    elif use == "trained on":
        tables.record_run(store, dataclasses.replace(trained(store, "new"), started=tables.now()))
    else:
        (Path(store) / "checkpoints").mkdir()
        (Path(store) / "checkpoints" / "stage2.state").write_bytes(b"x")
    moves, left = find(since)
    assert (moves, left) == (
        [],
        ["1 snapshots pin versions that may have rows which no snapshot uses, and were in use lately: new."],
    )
    assert find(None)[0] == ["new"], "while nobody else uses the store"


def test_a_snapshot_moves_to_versions_that_fit_together_and_know_where_its_videos_lie_now(store):
    # Another film came since: its tracklets are in the new version of theirs, and so must its own row be.
    extract(store, film(3), NEW)
    show(store, "more", [film(3)], NEW)
    change(store, "videos", f"video_sha = '{SECOND}'", path="/elsewhere/second.mp4")
    assert set(settle(store, drop=["old"])[0].moved) == {"new", "more"}
    assert texts(verify(store)) == []
    videos = tables.read(tables.pinned(tables.open_snapshot(store, "new"), "videos")).to_pylist()
    assert {row["path"] for row in videos if row["video_sha"] == SECOND} == {"/elsewhere/second.mp4"}


def test_a_snapshot_whose_rows_were_written_again_does_not_move(store):
    pinned = tables.open_snapshot(store, "new")
    change(store, "crops", f"tracklet_id = '{names(SECOND, NEW)[0]}'", score=0.5)
    told = settle(store, drop=["old"])
    assert any("and have rows that were written again since: new." in sentence for sentence in told[0].left)
    assert tables.open_snapshot(store, "new") == pinned
    assert texts(verify(store)) == []


@pytest.mark.parametrize("held", [None, b""], ids=["gone", "empty"])
def test_a_snapshot_that_cannot_be_read_keeps_no_gc_from_what_it_can_do(store, held):
    pinned = [tables.pinned(tables.open_snapshot(store, name), "tracklets") for name in ("old", "new")]
    files = {Path(ref.uri, "data", name) for ref in pinned for name in tables.extent(ref).files}
    extract(store, film(3), OLD)
    change(store, "tracklets", "true", keypoint_confidence=0.5)  # into a file of their own
    for file in files:
        file.unlink()
        if held is not None:
            file.write_bytes(held)
    told = collect(store, dry_run=False, older_than=NOW)
    assert (told.extractions, told.moved) == (1, ())
    assert any(
        "2 snapshots pin" in text and "cannot be read, see `csip verify`: old, new." in text for text in told.left
    )


@pytest.mark.parametrize("held", [None, b""], ids=["gone", "empty"])
def test_protocols_that_cannot_be_read_keep_what_they_may_name_and_no_gc_from_the_rest(store, held):
    part = {"protocol": "self-labelled", "split": "0", "tracklet_id": names(FIRST, OLD)[0], "first_frame": 0}
    part |= {"last_frame": 1, "role": "train", "group": "", "pid": 0, "camid": 0, "camera": "door"}
    put(store, "splits", [part | {"dataset": "parted"}])
    show(store, "parted", [FIRST], OLD)
    files = tables.extent(tables.current(store, "splits")).files
    put(store, "splits", [part | {"dataset": "parted", "camid": 1}])  # into a file of their own
    extract(store, film(3), OLD)
    for name in files:
        path = Path(tables.table_uri(store, "splits"), "data", name)
        path.unlink()
        if held is not None:
            path.write_bytes(held)
    told = collect(store, dry_run=False, older_than=NOW)
    assert told.extractions == 1
    assert any("those of 1 snapshots cannot be read, see `csip verify`" in text for text in told.left), told.left
    assert (FIRST, OLD) in there(store)
    assert (film(3), OLD) not in there(store)


@pytest.mark.parametrize("moment", ["before", "while its runs follow"])
def test_a_snapshot_that_was_dropped_meanwhile_does_not_come_back(store, monkeypatch, moment):
    trained(store, "new")
    row = collecting.published(store)["new"]
    extract(store, film(3), NEW)
    drop = lambda: collect(store, dry_run=False, drop=["new"], force=True)  # noqa: E731
    if moment == "before":
        drop()
    else:
        real = tables.record_runs
        monkeypatch.setattr(tables, "record_runs", lambda *a: (real(*a), monkeypatch.undo(), drop()))
    assert not move(store, row)
    assert list(collecting.published(store)) == ["old"]
    collect(store, dry_run=False)
    assert texts(verify(store)) == []


def test_a_gc_tells_which_snapshots_others_dropped_before_it_could_move_them(store, monkeypatch):
    real = collecting.move
    monkeypatch.setattr(
        collecting, "move", lambda s, row: (tables.delete(s, "snapshots", "name = 'new'"), real(s, row))[1]
    )
    told = collect(store, dry_run=False, drop=["old"], older_than=NOW)
    assert told.moved == ()
    assert "1 snapshots were dropped or published again meanwhile: new." in told.left
    assert list(collecting.published(store)) == []
