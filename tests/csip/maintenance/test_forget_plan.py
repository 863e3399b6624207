"""What a plan of `csip forget` finds where builds were killed, go on, or have ended since it was made."""

from pathlib import Path

import pytest

from csip import tables
from csip.errors import StoreError
from csip.maintenance import forget as forgetting
from csip.maintenance.forget import Selector, forget, forgotten, look_up
from csip.maintenance.forget_traces import files_of
from csip.maintenance.verify import verify
from tests.csip.maintenance.stores import (
    DETECT,
    FIRST,
    NEW,
    OLD,
    SECOND,
    extract,
    film,
    names,
    rows_of,
    run_record,
    show,
    texts,
)

THIRD = film(3)
OTHERS = {*names(SECOND, OLD), *names(SECOND, NEW, 3)}


@pytest.fixture
def store(filmed, monkeypatch):
    monkeypatch.setattr(forgetting, "YOUNG_SECONDS", 0)
    return filmed


def do(store, selector):
    plan = look_up(store, selector)
    forget(store, selector, plan)
    return plan


def owners(store):
    return {row["tracklet_id"] for table in ("crops", "skeletons") for row in rows_of(store, table)}


def test_what_a_killed_build_left_of_a_video_goes_with_the_video(store):
    extract(store, FIRST, NEW, people=3, segments=2, whole=False)
    extract(store, THIRD, NEW, whole=False)
    plan = do(store, Selector.of_video(store, FIRST))
    assert set(plan.tracklets) == {*names(FIRST, OLD), *names(FIRST, NEW, 3)}
    assert plan.rows["crops"] == plan.rows["skeletons"] == 2 * 2 + 3 * 4
    assert owners(store) == OTHERS | {*names(THIRD, NEW)}, "another film's build may go on"
    left = [
        run.counts for run in tables.find_runs(store, "stage = 'track_segment'") if run.outputs["video_sha"] == FIRST
    ]
    assert [(one["tracklets"], one["crops"], one["detections"]) for one in left] == [(0, 0, 0)] * 2
    assert texts(verify(store)) == []
    assert look_up(store, Selector.of_video(store, FIRST)) is None


@pytest.mark.parametrize("name", [THIRD, THIRD[:8], f"/films/{THIRD[:8]}.mp4"])
def test_a_video_that_a_killed_build_has_listed_is_known_before_it_has_a_row(store, name):
    extract(store, THIRD, NEW, whole=False)
    (run,) = tables.find_runs(store, f"run_id = 't{THIRD[:6]}{NEW[:4]}0'")
    # It was killed in its first segment: there are crops, and no run but that of the list names their settings.
    for table, where in (("videos", f"video_sha = '{THIRD}'"), ("runs", f"run_id = '{run.run_id}'")):
        tables.delete(store, table, where)
    listed = {"videos": [run.inputs["video"]], "batches": [], "digests": {"detect": DETECT, "track": NEW}}
    tables.record_run(store, run_record("list", "list_videos", listed))
    assert set(names(THIRD, NEW)) < owners(store)
    do(store, Selector.of_video(store, name))
    assert owners(store) == OTHERS | {*names(FIRST, OLD)}
    assert forgotten(store) == {THIRD}
    assert tables.find_runs(store, "run_id = 'list'")[0].outputs["videos"][0]["path"] == ""
    assert texts(verify(store)) == []


def test_what_has_come_since_the_question_is_not_passed_over(store):
    selector = Selector.of_video(store, FIRST)
    plan = look_up(store, selector)
    extract(store, FIRST, NEW, people=3)
    show(store, "newest", [FIRST, SECOND], NEW)
    before = {path: path.read_bytes() for path in Path(store).rglob("*") if path.is_file()}
    told = r"has changed since you were asked \(then \d+ rows and 0 files, now \d+ rows and 0 files\)\. Nothing was"
    with pytest.raises(StoreError, match=told):
        forget(store, selector, plan)
    lock = {Path(store, "lock"): b""}
    assert {path: path.read_bytes() for path in Path(store).rglob("*") if path.is_file()} == before | lock
    do(store, selector)
    assert owners(store) == OTHERS
    assert texts(verify(store)) == []


def test_what_somebody_else_has_forgotten_since_the_question_is_said(store):
    selector = Selector.of_tracklets([names(FIRST, OLD)[0]])
    plan = look_up(store, selector)
    do(store, selector)
    with pytest.raises(StoreError, match=r"has changed since you were asked .*, now nothing"):
        forget(store, selector, plan)


def test_files_that_lie_nobody_knows_where_are_not_passed_over(monkeypatch, tmp_path):
    monkeypatch.delenv("CSIP_FILES", raising=False)
    address, page = "s3://bucket/store", {"path": "/files/bucket/store/reports/old-r.html", "sha256": "0" * 64}
    runs = [run_record("r", "write_report", page, {"snapshot": {"name": "old", "tables": {}, "digest": "5"}})]
    with pytest.raises(StoreError, match=r"1 files that runs have written .*old-r\.html.*CSIP_FILES is not set"):
        files_of(address, runs, ["old"])
    assert files_of(address, runs, ["other"]) == ((), (), ())
    monkeypatch.setenv("CSIP_FILES", str(tmp_path))
    (tmp_path / "bucket/store/reports").mkdir(parents=True)
    (tmp_path / "bucket/store/reports/old-r.html").write_text("page")
    assert files_of(address, runs, ["old"]) == (("reports/old-r.html",), (), ())
