"""Extractions that no snapshot shows give everything back, and a build does them again; no other one loses a row."""

import dataclasses
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from csip import tables
from csip.ingest.records import tracklet_prefix
from csip.lineage import History, flatten
from csip.maintenance import collect as collecting
from csip.maintenance import unused
from csip.maintenance.collect import collect
from csip.maintenance.verify import verify
from csip.plain import digest
from csip.references import GIVEN_BACK
from csip.store import records
from tests.csip.maintenance.stores import (
    LONG_AGO,
    NOW,
    change,
    done,
    everything,
    extract,
    film,
    names,
    rows_of,
    run_record,
    settings,
    show,
    texts,
    there,
)

FIRST, SECOND, OLD, NEW = film(1), film(2), settings(1), settings(2)
MOMENT = timedelta(microseconds=1)
"""Everybody else may be at work, and whatever is done is long ago."""


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Two films under old settings, and one of them under new ones: the snapshots `old` and `new`; read-only."""
    path = str(tmp_path_factory.mktemp("films") / "films")
    tables.prepare_store(path)
    for sha in (FIRST, SECOND):
        extract(path, sha, OLD)
    show(path, "old", [FIRST, SECOND], OLD)
    extract(path, SECOND, NEW, people=3)
    show(path, "new", [SECOND], NEW)
    return path


@pytest.fixture
def store(films, tmp_path):
    return str(shutil.copytree(films, tmp_path / "films"))


def bytes_of(store, name):
    """How many bytes of a tracklet's crops lie anywhere below the store."""
    (image,) = {row["image"] for row in rows_of(store, "crops", f"tracklet_id = '{name}'")}
    return lambda: sum(path.read_bytes().count(image[:500]) for path in Path(store).rglob("*.lance") if path.is_file())


def settle(store, **words):
    """Clean up until nothing is left to do, each time after a dry run that must tell the same; all that was done."""
    told = []
    while not told or told[-1] != collecting.Collected(left=told[-1].left):
        before = {p: p.stat().st_mtime_ns for p in Path(store).rglob("*") if p.is_file()}
        dry = collect(store, dry_run=True, older_than=NOW, **words)
        assert {p: p.stat().st_mtime_ns for p in Path(store).rglob("*") if p.is_file()} == before
        told.append(collect(store, dry_run=False, older_than=NOW, **words))
        assert told[-1] == dry
        words.pop("drop", None)
        assert len(told) < 8
    return told


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


def test_the_names_of_an_extractions_tracklets_begin_as_those_who_make_them_say():
    assert unused.prefix((FIRST, OLD)) + "-" == tracklet_prefix(FIRST, OLD)


# ---------------------------------------------------------------------------------------- snapshots that are kept move


def trained(store, name, key=None):
    """Record a training on a snapshot as `flows.stage` does."""
    inputs = {"snapshot": dataclasses.asdict(tables.open_snapshot(store, name))}
    config = {"config": {"epochs": 3}, "seed": 0}
    made = digest("stage2", inputs | config, "source") if key is None else key
    facts = {"config": config, "source_digest": "source", "started": LONG_AGO, "key": made}
    run = run_record(f"run-{name}", "stage2", {}, inputs, **facts)
    tables.record_run(store, run)
    return run


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
    newest = collecting.Newest({(SECOND, NEW)}, set())
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
        ["1 snapshots pin versions with rows that no snapshot uses, and were in use lately: new."],
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


class StoppedError(RuntimeError):
    """The gc ends here, as by a kill."""


STEPS = [
    *(("delete", 1), ("record_runs", 1), ("delete_as_read", 1), ("delete_as_read", 2), ("delete_as_read", 3)),
    *(("delete_as_read", 4), ("record_runs", 2), ("upsert", 0), ("publish", 1)),
    *(pytest.param(*one, marks=pytest.mark.slow) for one in (("untag", 1), ("untag", 5), ("clean_up", 1))),
    *(pytest.param("clean_up", number, marks=pytest.mark.slow) for number in (4, 12, 13, 20, 36)),
]


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
