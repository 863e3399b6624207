"""Extractions that no snapshot shows give everything back, and a build does them again; no other one loses a row."""

import dataclasses
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from csip import tables
from csip.lineage import History, flatten
from csip.maintenance import collect as collecting
from csip.maintenance import forget as forgetting
from csip.maintenance import rows as searching
from csip.maintenance import unused
from csip.maintenance.collect import collect
from csip.maintenance.verify import verify
from csip.references import GIVEN_BACK
from csip.store import records
from tests.csip.maintenance.stores import (
    FIRST,
    MOMENT,
    NEW,
    NOW,
    OLD,
    SECOND,
    change,
    done,
    everything,
    extract,
    film,
    names,
    rows_of,
    run_record,
    settings,
    settle,
    show,
    texts,
    there,
    trained,
)


@pytest.fixture
def store(filmed):
    return filmed


def bytes_of(store, name):
    """How many bytes of a tracklet's crops lie anywhere below the store."""
    (image,) = {row["image"] for row in rows_of(store, "crops", f"tracklet_id = '{name}'")}
    return lambda: sum(path.read_bytes().count(image[:500]) for path in Path(store).rglob("*.lance") if path.is_file())


def test_a_dropped_snapshot_gives_back_rows_bytes_and_the_claim_that_they_are_there(store):
    mine, others = bytes_of(store, names(FIRST, OLD)[0]), bytes_of(store, names(SECOND, NEW)[0])
    kept = {key: rows for key, rows in everything(store).items() if key[0] == "new" and key[1] != "runs"}
    own = set(names(SECOND, NEW, 3))
    assert mine() > 0
    told = settle(store, drop=["old"])
    assert told[0].extractions == 2
    assert {name: work.rows for name, work in told[0].tables.items() if work.rows} == {
        "tracklets": 4,
        "crops": 8,
        "skeletons": 8,
    }
    assert done(store) == there(store) == {(SECOND, NEW)}
    assert (mine(), others() > 0) == (0, True)
    assert {row["tracklet_id"] for row in rows_of(store, "crops")} == own
    after = everything(store)
    for (_, table), rows in kept.items():
        if table in ("crops", "skeletons", "tracklets"):
            assert after["new", table] == [row for row in rows if row["tracklet_id"] in own]
        else:
            assert after["new", table] == rows
    assert texts(verify(store, deep=False)) == []
    assert len(rows_of(store, "detections")) == 6 + 6, "they are the pose model's time, and stay"


def test_a_build_after_that_finds_it_to_be_done_again(store):
    before = everything(store)["old", "crops"]
    settle(store, drop=["old"])
    # `make_plan` looks for the key, `list_videos` and `publish` for the stage: neither finds it.
    assert [run.stage for run in tables.find_runs(store, f"run_id = 't{FIRST[:6]}{OLD[:4]}0'")] == [
        "track_video" + GIVEN_BACK
    ]
    for sha in (FIRST, SECOND):
        extract(store, sha, OLD, started=tables.now())
    show(store, "old", [FIRST, SECOND], OLD)
    assert done(store) == there(store) == {(FIRST, OLD), (SECOND, OLD), (SECOND, NEW)}
    own = {name for sha in (FIRST, SECOND) for name in names(sha, OLD)}
    found = everything(store)["old", "crops"]
    assert [row for row in found if row["tracklet_id"] in own] == before
    assert texts(verify(store)) == []
    assert settle(store)[0].extractions == 0


def test_an_extraction_that_any_snapshot_shows_stays_whole(store):
    show(store, "part", [FIRST], OLD)
    told = settle(store, drop=["old"])
    assert told[0].extractions == 1
    assert done(store) == there(store) == {(FIRST, OLD), (SECOND, NEW)}
    assert texts(verify(store)) == []


def test_of_a_snapshot_that_does_not_say_what_it_shows_all_that_it_may_be_stays(store):
    row = {r["name"]: r for r in rows_of(store, "snapshots")}["old"]
    tables.upsert(store, "snapshots", tables.from_rows("snapshots", [row | {"config": "{}"}]))
    settle(store)
    assert done(store) == there(store) == {(FIRST, OLD), (SECOND, OLD), (SECOND, NEW)}
    # Its settings leave one of them: the other one nobody shows.
    for run in tables.find_runs(store, "stage = 'track_video'"):
        old = run.outputs["track_digest"] == OLD
        tables.record_run(store, dataclasses.replace(run, config={"track": {"old": old}}))
    tables.upsert(store, "snapshots", tables.from_rows("snapshots", [row | {"config": '{"track": {"old": true}}'}]))
    settle(store, drop=["new"])
    assert done(store) == there(store) == {(FIRST, OLD), (SECOND, OLD)}


def test_what_was_done_listed_or_dropped_lately_stays(store):
    everybody = there(store)
    collect(store, dry_run=False, drop=["old"])  # the snapshot was there a moment ago
    assert collect(store, dry_run=False).left == []
    assert there(store) == everybody
    collect(store, dry_run=False, older_than=timedelta(days=1))
    assert done(store) == there(store) == everybody
    # Nobody can have it open any more; but one of the two was done lately, and the other one is listed by a build.
    listed = {"videos": [{"video_sha": FIRST}], "batches": [], "digests": {"detect": settings(0), "track": OLD}}
    tables.record_run(store, run_record("list", "list_videos", listed, started=tables.now()))
    (run,) = tables.find_runs(store, f"run_id = 't{SECOND[:6]}{OLD[:4]}0'")
    tables.record_run(store, dataclasses.replace(run, started=tables.now()))
    runs = tables.find_runs(store, "true")
    lately = unused.used_lately(runs, datetime.now(UTC) - timedelta(days=1))
    assert lately.tracked == {(FIRST, OLD), (SECOND, OLD)}
    assert lately.detected == {(FIRST, settings(0)), (SECOND, settings(0))}
    assert unused.used_lately(runs, datetime.now(UTC) + timedelta(days=1)) == unused.Used()


def test_what_a_long_build_did_first_stays_while_it_goes_on():
    track, detect = settings(1), settings(0)
    days = {"list": 1, "first": 2, "second": 12}
    listed = {"videos": [{"video_sha": film(n)} for n in (1, 2, 3)], "batches": []}
    listed |= {"digests": {"detect": detect, "track": track}}
    at = {name: f"2026-01-{day:02d}T00:00:00.000+00:00" for name, day in days.items()}
    runs = [run_record("l", "list_videos", listed, started=at["list"])]
    for number, name in ((1, "first"), (2, "second")):
        outputs = {"video_sha": film(number), "detect_digest": detect, "track_digest": track}
        runs.append(run_record(name, "track_video", outputs, started=at[name]))
    # Another build, of another film, long ago.
    other = {**listed, "videos": [{"video_sha": film(9)}]}
    runs.append(run_record("m", "list_videos", other, started=at["list"]))
    found = unused.used_lately(runs, datetime(2026, 1, 11, tzinfo=UTC))
    assert found.tracked == {(film(n), track) for n in (1, 2, 3)}
    assert found.detected == {(film(n), detect) for n in (1, 2, 3)}
    assert unused.used_lately(runs, datetime(2026, 1, 13, tzinfo=UTC)) == unused.Used()


def test_beside_others_an_extraction_that_was_out_of_use_for_long_goes(store):
    collect(store, dry_run=False, drop=["old"])
    freed = collect(store, dry_run=False, older_than=MOMENT)
    assert (freed.extractions, done(store), there(store)) == (2, {(SECOND, NEW)}, {(SECOND, NEW)})


def test_what_comes_into_use_while_a_gc_looks_stays(store, monkeypatch):
    everybody = there(store)
    collect(store, dry_run=False, drop=["old"])
    look = collecting.find_moves

    def meanwhile(*args):
        show(store, "again", [FIRST], OLD)
        return look(*args)

    monkeypatch.setattr(collecting, "find_moves", meanwhile)
    told = collect(store, dry_run=False, older_than=MOMENT)
    assert any("another process has come to use some of it meanwhile" in sentence for sentence in told.left)
    assert (told.extractions, told.moved) == (0, ())
    assert done(store) == there(store) == everybody
    assert texts(verify(store)) == []


def test_tracklets_that_are_written_meanwhile_keep_their_crops(store, monkeypatch):
    collect(store, dry_run=False, drop=["old"])
    real = tables.record_runs

    def meanwhile(*args):
        change(store, "tracklets", f"video_sha = '{FIRST}'", keypoint_confidence=0.5)
        return real(*args)

    monkeypatch.setattr(collecting.tables, "record_runs", meanwhile)
    told = collect(store, dry_run=False, older_than=MOMENT)
    assert "tracklets: another process was writing; rows that nothing needs are left for the next gc." in told.left
    assert told.moved == ()
    assert there(store) == {(FIRST, OLD), (SECOND, OLD), (SECOND, NEW)}
    assert done(store) == {(SECOND, NEW)}
    monkeypatch.undo()
    collect(store, dry_run=False, older_than=MOMENT)
    assert there(store) == {(SECOND, NEW)}


def test_an_unfinished_extraction_keeps_crops_and_claims_or_loses_both(store):
    third = film(3)
    extract(store, third, OLD, segments=3, whole=False)
    crops = f"tracklet_id = '{names(third, OLD)[0]}'"
    assert done(store, "track_segment") == {(third, OLD)}
    # A segment was done lately: the build goes on, and counts on the crops of all of them.
    (run,) = tables.find_runs(store, f"run_id = 't{third[:6]}{OLD[:4]}2'")
    tables.record_run(store, dataclasses.replace(run, started=tables.now(), seconds=3600.0))
    collect(store, dry_run=False, older_than=MOMENT)
    assert done(store, "track_segment") == {(third, OLD)}
    assert len(rows_of(store, "crops", crops)) == len(rows_of(store, "skeletons", crops)) == 6
    tables.record_run(store, run)
    collect(store, dry_run=False, older_than=MOMENT)
    assert done(store, "track_segment") == set()
    assert rows_of(store, "crops", crops) == rows_of(store, "skeletons", crops) == []
    assert done(store) == there(store) == {(FIRST, OLD), (SECOND, OLD), (SECOND, NEW)}


def test_a_forgotten_video_is_no_work_that_a_build_does_again(store, monkeypatch):
    monkeypatch.setattr(forgetting, "YOUNG_SECONDS", 0)
    selector = forgetting.Selector.of_video(store, FIRST)
    forgetting.forget(store, selector, forgetting.look_up(store, selector))
    claims = done(store)
    told = collect(store, dry_run=False, older_than=NOW, detections=True)
    assert told.extractions == 0
    assert "runs" not in {name for name, work in told.tables.items() if work.rows}
    assert done(store) == claims
    # What a build has left of it all the same goes, and comes back to nobody.
    extract(store, FIRST, settings(3))
    change(store, "videos", f"video_sha = '{FIRST}'", status="forgotten")
    told = collect(store, dry_run=False, older_than=NOW)
    assert (told.extractions, told.tables["tracklets"].rows) == (0, 2)
    assert {video for video, _ in there(store)} == {SECOND}


def test_what_one_gc_cannot_name_is_told_and_left_for_the_next(store, monkeypatch):
    more = "{}: rows of {} more extractions that nothing needs are left for the next gc."
    with monkeypatch.context() as patch:
        patch.setattr(searching, "_AT_ONCE", 1)
        told = collect(store, dry_run=False, older_than=NOW, drop=["old", "new"])
        assert (told.extractions, more.format("tracklets", 2) in told.left) == (1, True)
    assert collect(store, dry_run=False, older_than=NOW).extractions == 2
    monkeypatch.setattr(searching, "_AT_ONCE", 1)
    told = collect(store, dry_run=False, older_than=NOW, detections=True)
    assert (told.tables["detections"].rows, more.format("detections", 1) in told.left) == (6, True)
    told = collect(store, dry_run=False, older_than=NOW, detections=True)
    assert (told.tables["detections"].rows, rows_of(store, "detections")) == (6, [])


def test_raw_detections_are_given_back_when_that_is_asked_and_nothing_stands_on_them(store):
    other = settings(9)
    extract(store, FIRST, settings(3), other)
    extract(store, SECOND, settings(3), other)
    show(store, "third", [SECOND], settings(3), other)
    told = settle(store, drop=["old"])
    left = "detections: 12 of 2 extractions that no snapshot uses; from them a build makes tracklets"
    assert [any(left in sentence for sentence in one.left) for one in told] == [True] * len(told)
    assert len(rows_of(store, "detections")) == 4 * 6
    told = settle(store, detections=True)
    assert told[0].tables["detections"].rows == 12
    have = {(row["video_sha"], row["detect_digest"]) for row in rows_of(store, "detections")}
    # Of the second film there are `new` under one digest, `third` under the other.
    assert have == {(SECOND, settings(0)), (SECOND, other)}
    claims = tables.find_runs(store, "stage = 'detect_video'")
    assert {(run.outputs["video_sha"], run.outputs["detect_digest"]) for run in claims} == have
    assert texts(verify(store)) == []
    for name in ("new", "third"):
        pinned = tables.read(tables.pinned(tables.open_snapshot(store, name), "detections")).to_pylist()
        assert {row["video_sha"] for row in pinned} == {SECOND}, "what it pins has no more than it shows"


def test_what_was_made_of_an_extraction_that_was_given_back_is_still_walked_back_to_it(store):
    snapshot = dataclasses.asdict(tables.open_snapshot(store, "old"))
    extracted = [{"video_sha": sha, "track_digest": OLD, "run_id": f"t{sha[:6]}{OLD[:4]}0"} for sha in (FIRST, SECOND)]
    tables.record_run(store, run_record("publish", "publish", snapshot, {"extracted": [extracted]}))
    trained = {"path": "/x.safetensors", "sha256": "c" * 64}
    tables.record_run(store, run_record("stage2", "stage2", trained, {"snapshot": snapshot}))
    before = [(n.kind, n.name, n.facts) for n in flatten(History(store).find("c" * 64))]
    assert ("video", FIRST) in {node[:2] for node in before}
    assert "detections" in {node[0] for node in before}
    settle(store, drop=["old"], force=True)
    after = flatten(History(store).find("c" * 64))
    assert [(n.kind, n.name, n.facts) for n in after] == before
    assert {n.made_by.run_id for n in after if n.kind == "video"} == {one["run_id"] for one in extracted}


class StoppedError(RuntimeError):
    """The gc ends here, as by a kill."""


STEPS = [
    *(("delete", 1), ("record_runs", 1), ("delete_as_read", 1), ("delete_as_read", 2), ("delete_as_read", 3)),
    *(("delete_as_read", 4), ("record_runs", 2), ("upsert", 0), ("publish", 1)),
    *(pytest.param(*one, marks=pytest.mark.slow) for one in (("untag", 1), ("untag", 5), ("clean_up", 1))),
    *(pytest.param("clean_up", number, marks=pytest.mark.slow) for number in (4, 12, 13, 20, 36)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("step", "number"), STEPS)
def test_wherever_a_gc_is_stopped_what_is_said_to_be_done_is_there_and_the_next_one_completes(
    store, monkeypatch, step, number
):
    trained(store, "new")
    owner = records if step == "upsert" else tables  # the rows of runs and snapshots are written inside the door
    real, calls = getattr(owner, step), []

    def stop(*args, **kwargs):
        calls.append(args)
        if step == "upsert" and args[1] == "snapshots":
            raise StoppedError
        given = real(*args, **kwargs)
        if len(calls) == number:
            raise StoppedError
        return given

    with monkeypatch.context() as patch, pytest.raises(StoppedError):  # noqa: PT012 (one of them raises)
        patch.setattr(owner, step, stop)
        for words in ({"drop": ["old"], "detections": True}, {}, {}):
            collect(store, dry_run=False, older_than=NOW, **words)
    assert done(store) <= there(store)
    # Its tags are set before its row is written: in between it is as safe as before, since the row names its versions.
    tags = [text for text in texts(verify(store)) if "found a tag on version" in text]
    assert [text for text in texts(verify(store)) if text not in tags] == []
    assert bool(tags) == (step == "upsert")
    again = str(shutil.copytree(store, Path(store).with_name("again")))
    for sha in (FIRST, SECOND):
        if (sha, OLD) not in done(again):
            extract(again, sha, OLD)
    show(again, "old", [FIRST, SECOND], OLD)
    assert done(again) == there(again) == {(FIRST, OLD), (SECOND, OLD), (SECOND, NEW)}
    collect(store, dry_run=False, drop=["old"] if "old" in collecting.published(store) else [], older_than=NOW)
    for _ in range(4):
        collect(store, dry_run=False, older_than=NOW, detections=True)
    assert collect(store, dry_run=True, older_than=NOW, detections=True) == collecting.Collected()
    assert done(store) == there(store) == {(SECOND, NEW)}
    assert texts(verify(store)) == []
