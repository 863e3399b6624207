"""Forgetting: a person's rows and bytes leave every version and file; all else stays, and a kill does no harm."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from csip import tables
from csip.errors import StoreError
from csip.maintenance.collect import collect
from csip.maintenance.forget import forget, forgotten, plan
from csip.maintenance.verify import verify
from csip.tables import TableRef, table_uri

PAYLOAD = os.urandom(3000)
PINS = ("videos", "tracklets", "crops", "skeletons", "splits")


def put(store, table, rows):
    tables.upsert(store, table, tables.from_rows(table, rows))


def rows_of(store, table, where=None):
    return tables.read(tables.current(store, table), where=where).to_pylist()


@pytest.fixture
def store(tiny, tmp_path):
    """Two snapshots of several versions; the person 4 is `walker-gone`, whose crops are bytes that no other has."""
    store = str(tmp_path / "store")
    walks = (
        tiny.Walk("walker-gone", 4, 0, "train", (10, 11, 12)),
        tiny.Walk("walker-left", 7, 1, "gallery", tuple(range(5))),
    )
    tiny.publish(store, walks, "whole")
    put(store, "crops", [row | {"image": PAYLOAD} for row in rows_of(store, "crops", "tracklet_id = 'walker-gone'")])
    tiny.publish(store, walks, "middle")
    put(store, "crops", [row | {"image": PAYLOAD} for row in rows_of(store, "crops", "tracklet_id = 'walker-gone'")])
    put(store, "crops", [row | {"score": 0.25} for row in rows_of(store, "crops", "tracklet_id = 'walker-left'")])
    versions = {table: tables.current(store, table).version for table in PINS}
    shas = [f"{n:064d}" for n in range(2)]
    second = tables.open_snapshot(store, "whole")
    pinned = type(second)("second", store, versions, "5" * 64)
    tables.publish(pinned, config={}, counts={}, videos=shas)
    boxes = [(row["frame_index"], row["box"]) for row in rows_of(store, "crops", "tracklet_id = 'walker-gone'")]
    seen = {"video_sha": f"{0:064d}", "detect_digest": "1", "n": 0, "time": 0.0, "score": 1.0, "keypoints": []}
    put(store, "detections", [seen | {"frame_index": f, "box": box} for f, box in boxes])
    put(store, "detections", [seen | {"frame_index": 10, "n": 1, "box": [900.0] * 4}])
    reports = Path(store) / "reports"
    reports.mkdir()
    (reports / "whole-r1.html").write_bytes(b"<img>" + PAYLOAD)
    return store


def everything(store, left="walker-left"):
    """What each snapshot shows of those who stay."""
    out = {}
    for name, row in tables.read_snapshots(tables.current(store, "snapshots")).items():
        for table, version in row["tables"].items():
            found = tables.read(TableRef(table_uri(store, table), version)).to_pylist()
            out[name, table] = [one for one in found if one.get("tracklet_id", left) == left]
    return out


def files_with(store, needle):
    return [str(path) for path in Path(store).rglob("*") if path.is_file() and needle in path.read_bytes()]


def test_the_bytes_of_a_forgotten_person_are_in_no_file_and_all_else_is_as_it_was(store):
    before = everything(store)
    newest = rows_of(store, "crops", "tracklet_id = 'walker-left'")
    assert files_with(store, PAYLOAD[:64])
    work = plan(store, pid=4, snapshot="whole")
    assert work.tracklets == ["walker-gone"]
    assert work.files == ["reports/whole-r1.html"]
    assert forget(store, work) > 0
    assert files_with(store, PAYLOAD[:64]) == []
    assert files_with(store, PAYLOAD[-64:]) == []
    assert files_with(store, b"walker-gone") == []
    assert everything(store) == before
    assert rows_of(store, "crops") == newest
    assert [row["n"] for row in rows_of(store, "detections")] == [1]
    assert [one.text for one in verify(store) if one.kind == "fault"] == []
    counts = tables.snapshot_row(store, "whole")["counts"]
    assert [one["tracklets"] for one in counts["forgotten"]] == [1]
    (run,) = tables.find_runs(store, "stage = 'forget'")
    assert run.inputs["kind"] == "pid"
    assert not (Path(store) / "forget.json").exists()
    with pytest.raises(StoreError, match="has no person 4"):
        plan(store, pid=4, snapshot="whole")


def test_a_forgotten_video_leaves_its_digest_alone(store):
    sha = f"{0:064d}"
    path = rows_of(store, "videos", f"video_sha = '{sha}'")[0]["path"]
    forget(store, plan(store, videos=[sha]))
    assert forgotten(store) == {sha}
    (row,) = rows_of(store, "videos", f"video_sha = '{sha}'")
    assert {value for value in row.values()} == {sha, "forgotten", "", 0}
    assert files_with(store, b"walker-gone") == []
    assert path == "" or files_with(store, path.encode()) == []
    assert rows_of(store, "detections") == []
    assert tables.snapshot_row(store, "second")["videos"] == [f"{1:064d}"]
    assert [one.text for one in verify(store) if one.kind == "fault"] == []


KILLED = """
import os, signal, sys
from csip import tables
from csip.maintenance import forget as room
store, name, number = sys.argv[1:]
real, left = getattr(tables, name), [int(number)]
def killed(*args, **kwargs):
    done = real(*args, **kwargs)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return done
setattr(tables, name, killed)
room.forget(store, room.plan(store, pid=4, snapshot="whole"))
"""


@pytest.mark.parametrize(
    ("call", "number"),
    [
        *(("rewrite_without", 1), ("rewrite_without", 4), ("tag_snapshot", 1)),
        *(("upsert", 1), ("erase_versions", 1), ("erase_versions", 6), ("record_run", 1)),
    ],
)
def test_a_killed_forget_is_completed_by_the_next_one(store, call, number):
    before = everything(store)
    words = [sys.executable, "-c", KILLED, store, call, str(number)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert everything(store) == before
    work = plan(store, ids=["anything"])
    assert "did not end" in work.notes[0]
    forget(store, work)
    assert everything(store) == before
    assert files_with(store, PAYLOAD[:64]) == files_with(store, b"walker-gone") == []
    assert [one.text for one in verify(store) if one.kind == "fault"] == []
    assert len(tables.find_runs(store, "stage = 'forget'")) == 1


def test_a_dry_run_changes_nothing(store):
    before = {str(path): path.stat().st_mtime_ns for path in Path(store).rglob("*")}
    plan(store, ids=["walker-gone"])
    assert {str(path): path.stat().st_mtime_ns for path in Path(store).rglob("*")} == before
    with pytest.raises(StoreError, match="holds no row of this tracklet"):
        plan(store, ids=["nobody"])
    with pytest.raises(StoreError, match="names 0 videos"):
        plan(store, videos=["nowhere"])


def test_while_somebody_is_being_forgotten_nobody_else_writes(store):
    journal = Path(store, tables.FORGETTING)
    journal.write_text("{}", encoding="utf-8")
    for write in (lambda: tables.prepare_store(store), lambda: collect(store, dry_run=False)):
        with pytest.raises(StoreError, match="`csip forget` is running there, or was interrupted"):
            write()
    journal.unlink()
    tables.prepare_store(store)
    collect(store, dry_run=False)
