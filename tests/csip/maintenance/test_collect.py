"""A store that is cleaned up: nothing that is named is lost, all else comes back, and a dry run tells it all."""

import dataclasses
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import lance
import numpy as np
import pytest

from csip import tables
from csip.config import ExtractConfig, RuntimeConfig, WalkersConfig
from csip.errors import StoreError
from csip.ingest.benchmarks.importing import import_benchmark
from csip.maintenance.collect import collect
from csip.maintenance.verify import verify
from csip.tables import table_uri
from csip.types import Output
from tests.csip.maintenance.stores import (
    NOW,
    PINS,
    change,
    everything,
    publish,
    put,
    rows_of,
    run_record,
    texts,
)


def busy_store(store):
    """Give a store what years do: generations, leftovers, runs that name versions, a user's tag, many small files."""
    put(store, "splits", [r | {"dataset": "second"} for r in rows_of(store, "splits")])
    for frame in range(4):
        change(store, "crops", f"tracklet_id = 'b' AND frame_index = {frame}", score=0.1 * (frame + 1))
    publish(store, "second")
    score = {"protocol": "p", "split": "0", "encoder": "e", "name": "mean_ap", "value": 1.0, "described": ""}
    for i in range(4):
        put(store, "results", [score | {"run_id": f"r{i}", "encoder_digest": "", "checkpoint_sha": ""}])
        ref = dataclasses.asdict(tables.current(store, "results"))
        if i % 2:
            tables.record_run(store, run_record(f"r{i}", "evaluate", [ref]))
        metric = {"run_id": f"r{i}", "step": 1, "name": "loss", "stage": "s", "value": 0.5}
        put(store, "metrics", [metric])
    lance.dataset(table_uri(store, "crops")).tags.create("mine", 3)
    (crop,) = rows_of(store, "crops", "tracklet_id = 'a' AND frame_index = 12")
    put(store, "crops", [crop | {"tracklet_id": "unfinished", "frame_index": f} for f in range(3)])
    put(store, "splits", [rows_of(store, "splits")[0] | {"dataset": "unpublished"}])
    folder = Path(store) / "checkpoints"
    folder.mkdir()
    (folder / ".stage2.safetensors-1.part").write_bytes(b"x" * 100)
    (folder / "stage2-0123456789abcdef.state").write_bytes(b"y" * 10)
    (folder / "stage2-0123456789ab.safetensors").write_bytes(b"z")


def fragments(store, table):
    return len(lance.dataset(table_uri(store, table)).get_fragments())


def disk(store):
    return sum(path.stat().st_size for path in Path(store).rglob("*") if path.is_file())


def test_nothing_that_is_named_is_ever_lost_and_a_dry_run_tells_exactly_what_happens(store):
    busy_store(store)
    before, faults, newest = everything(store), texts(verify(store)), {}
    for table in ("metrics", "results", "runs"):
        newest[table] = rows_of(store, table)
    worked = []
    for _ in range(4):
        bytes_before = disk(store)
        told = collect(store, dry_run=True, older_than=NOW)
        assert disk(store) == bytes_before
        done = collect(store, dry_run=False, older_than=NOW)
        assert done == told
        assert everything(store) == before
        assert texts(verify(store)) == faults == []
        worked.append(done)
    first, second = worked[:2]
    assert first.tables["crops"].rows == 3
    assert first.tables["splits"].rows == 1
    assert first.tables["metrics"].fragments == 4
    assert first.files == {
        "checkpoints/.stage2.safetensors-1.part": 100,
        "checkpoints/stage2-0123456789abcdef.state": 10,
    }
    assert second.bytes > 0  # what the first one's own commits have superseded
    assert worked[3].tables == worked[3].files == {}
    assert fragments(store, "metrics") == 1
    assert fragments(store, "results") == 4  # runs name them: merging would store them twice
    assert {table: rows_of(store, table) for table in newest} == newest
    assert rows_of(store, "crops", "tracklet_id = 'unfinished'") == []
    assert (Path(store) / "checkpoints" / "stage2-0123456789ab.safetensors").exists()
    assert any("files that no run names" in sentence for sentence in worked[3].left)


def test_a_snapshot_protects_its_versions_without_tags_too(store):
    change(store, "crops", "tracklet_id = 'b'", score=0.5)
    before = everything(store)["whole", "crops"]
    for table in PINS:
        tables.untag(store, table, "snapshot-whole")
    for _ in range(2):
        collect(store, dry_run=False, older_than=NOW)
    assert everything(store)["whole", "crops"] == before


def test_the_tags_of_a_snapshot_that_is_being_published_stay(store):
    # `publish` sets the tags first; the same name may have been dropped a moment ago.
    collect(store, dry_run=False, drop=["whole"])
    time.sleep(1.1)
    for name in ("new", "whole"):
        lance.dataset(table_uri(store, "crops")).tags.create(f"snapshot-{name}", 3)
    assert collect(store, dry_run=False).tables == {}
    assert set(tables.list_tags(store, "crops")) == {"snapshot-new", "snapshot-whole"}
    assert collect(store, dry_run=False, older_than=NOW).tables["crops"].tags == 2


def test_what_was_in_use_lately_is_left_alone(store):
    busy_store(store)
    before = disk(store), everything(store)
    done = collect(store, dry_run=False, older_than=timedelta(hours=1))
    assert (done.tables, done.files, done.bytes) == ({}, {}, 0)
    assert any("rows that nothing vouches for were written too lately" in sentence for sentence in done.left)
    assert (disk(store), everything(store)) == before


def test_files_go_only_when_nobody_has_written_them_for_long(store):
    folder = Path(store) / "checkpoints"
    folder.mkdir()
    kept = folder / "stage2-0123456789ab.safetensors"
    kept.write_bytes(b"z")
    state = {"at": {"kept": {"3": {"path": str(kept), "sha256": "0123456789ab" + "0" * 52}}}}
    header = json.dumps({"__metadata__": {"csip-training-1": json.dumps(state)}}).encode()
    for name in ("old.state", "young.state", ".old.part", ".young.part"):
        (folder / name).write_bytes(struct.pack("<Q", len(header)) + header)
    (folder / "linked.part").symlink_to(kept)
    long_ago = time.time() - 8 * 86_400
    for name in ("old.state", ".old.part"):
        os.utime(folder / name, (long_ago, long_ago))
    assert [one.where for one in verify(store)] == [
        f"checkpoints/{n}" for n in sorted(p.name for p in folder.iterdir()) if n not in (kept.name, "linked.part")
    ]
    done = collect(store, dry_run=False)
    assert set(done.files) == {"checkpoints/old.state", "checkpoints/.old.part"}
    assert {path.name for path in folder.iterdir()} == {"young.state", ".young.part", "linked.part", kept.name}


def test_a_snapshot_is_dropped_at_once_and_freed_when_nobody_can_read_it_any_more(store):
    busy_store(store)
    whole = tables.open_snapshot(store, "whole")
    second = {key: rows for key, rows in everything(store).items() if "second" in key or key[0].startswith("r")}
    told = collect(store, dry_run=True, drop=["whole"], older_than=NOW)
    assert tables.open_snapshot(store, "whole") == whole
    done = collect(store, dry_run=False, drop=["whole"], older_than=NOW)
    assert done == told
    assert [row["name"] for row in rows_of(store, "snapshots")] == ["second"]
    assert tables.exists(tables.pinned(whole, "skeletons"))  # somebody may be reading it
    collect(store, dry_run=False, older_than=timedelta(hours=1))
    assert tables.exists(tables.pinned(whole, "crops"))
    freed = collect(store, dry_run=False, older_than=NOW)
    assert freed.bytes > 0
    assert not tables.exists(tables.pinned(whole, "crops"))
    after = everything(store)
    assert {key: after[key] for key in second} == second
    assert texts(verify(store)) == []


def test_a_snapshot_that_runs_were_made_from_is_dropped_only_by_force(store):
    snapshot = tables.open_snapshot(store, "whole")
    used = {"snapshot": dataclasses.asdict(snapshot)}
    tables.record_run(store, run_record("made", "import_benchmark", dataclasses.asdict(snapshot)))
    tables.record_run(store, run_record("trained", "stage2", {}, used))
    with pytest.raises(StoreError, match=r"cannot be dropped; 1 runs were made from it: trained \(stage2\)"):
        collect(store, dry_run=False, drop=["whole"])
    with pytest.raises(StoreError, match="found no snapshot 'nobody'"):
        collect(store, dry_run=True, drop=["nobody"])
    assert [row["name"] for row in rows_of(store, "snapshots")] == ["whole"]
    assert collect(store, dry_run=False, drop=["whole"], force=True).dropped == ("whole",)
    found = verify(store)
    assert texts(found) == []
    assert any("snapshot whole that it published is not there any more" in t for t in texts(found, "leftover"))


def test_rows_of_a_dropped_import_go_only_while_nobody_else_uses_the_store(imported, tmp_path, run):
    store = str(shutil.copytree(imported.store, tmp_path / "own"))
    before = len(rows_of(store, "crops"))
    collect(store, dry_run=False, drop=[imported.name])
    assert collect(store, dry_run=False).left == []  # somebody may be reading it
    done = collect(store, dry_run=False, older_than=timedelta(microseconds=1))
    assert any("imports that are not published" in sentence for sentence in done.left)
    assert len(rows_of(store, "crops")) == before
    told = collect(store, dry_run=True, older_than=NOW)
    done = collect(store, dry_run=False, older_than=NOW)
    assert done == told
    assert done.tables["crops"].rows == before
    assert all(rows_of(store, table) == [] for table in ("tracklets", "crops", "skeletons", "splits"))
    collect(store, dry_run=False, older_than=NOW)
    assert disk(store) < disk(imported.store) / 3
    config = ExtractConfig(walkers=WalkersConfig(people=4, twins=1, cameras=2, frames=3, missing_frames=0.2))
    again = run(import_benchmark(Output(store, "run-2"), "walkers:", config, RuntimeConfig()))[1].value
    assert again.name == imported.name
    assert verify(store, deep=True) == []


def test_rows_that_a_build_writes_meanwhile_are_not_deleted_with_older_ones(store):
    (crop,) = rows_of(store, "crops", "tracklet_id = 'a' AND frame_index = 12")
    put(store, "crops", [crop | {"tracklet_id": "late", "frame_index": 0}])
    seen = tables.current(store, "crops")
    put(store, "crops", [crop | {"tracklet_id": "late", "frame_index": 1}])
    assert tables.delete_as_read(seen, "tracklet_id = 'late'")
    assert [row["frame_index"] for row in rows_of(store, "crops", "tracklet_id = 'late'")] == [1]
    seen = tables.current(store, "crops")
    put(store, "crops", [crop | {"tracklet_id": "late", "frame_index": 1, "score": 0.3}])
    assert not tables.delete_as_read(seen, "tracklet_id = 'late'")
    assert len(rows_of(store, "crops", "tracklet_id = 'late'")) == 1


def test_merging_gives_way_to_a_build(store):
    for frame in range(4):
        change(store, "crops", f"tracklet_id = 'b' AND frame_index = {frame}", score=0.1 * frame)
    seen = tables.current(store, "crops")
    change(store, "crops", "tracklet_id = 'b' AND frame_index = 3", score=0.9)
    assert not tables.compact(seen, ())
    assert rows_of(store, "crops", "tracklet_id = 'b' AND frame_index = 3")[0]["score"] == np.float32(0.9)


def test_writers_and_a_gc_that_runs_all_the_time_lose_nothing(store):
    before = everything(store)
    stop, errors = threading.Event(), []

    def clean():
        while not stop.is_set():
            try:
                collect(store, dry_run=False, older_than=timedelta(seconds=0.3))
            except StoreError as error:  # pragma: no cover (a failure)
                errors.append(error)

    thread = threading.Thread(target=clean)
    thread.start()
    vector = {"tracklet_id": "a", "encoder_digest": "e", "feature": [1.0]}
    for i in range(30):
        put(store, "frame_features", [vector | {"frame_index": i}])
        put(store, "frame_features", [vector | {"frame_index": i // 2, "feature": [2.0]}])
    stop.set()
    thread.join()
    assert errors == []
    found = rows_of(store, "frame_features")
    assert [row["frame_index"] for row in found] == list(range(30))
    assert [row["feature"] for row in found] == [[2.0]] * 15 + [[1.0]] * 15
    assert everything(store) == before


KILLED = """
import os, signal, sys
from datetime import timedelta
import lance
from pathlib import Path
from csip import tables
from csip.maintenance.collect import collect
store, name, number, drop = sys.argv[1:]
owner = {"unlink": Path, "cleanup_old_versions": lance.LanceDataset}.get(name, tables)
real, left = getattr(owner, name), [int(number)]
def killed(*args, **kwargs):
    left[0] -= 1
    if name == "cleanup_old_versions":
        if left[0] == 0:  # in the middle of it: one file a second, and a second and a half to live
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            import threading
            threading.Timer(1.2, os.kill, (os.getpid(), signal.SIGKILL)).start()
            kwargs["delete_rate_limit"] = 1
        return real(*args, **kwargs)
    done = real(*args, **kwargs) if left[0] else None
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return done
setattr(owner, name, killed)
collect(store, dry_run=False, drop=[drop], older_than=timedelta(0))
"""


@pytest.mark.parametrize(
    ("call", "number"),
    [
        *(("delete", 1), ("delete_as_read", 1), ("cleanup_old_versions", 4)),
        *(
            pytest.param(*one, marks=pytest.mark.slow)
            for one in (("untag", 1), ("untag", 4), ("delete_as_read", 2), ("compact", 1), ("clean_up", 1))
        ),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (("clean_up", 5), ("unlink", 1), ("unlink", 2))),
    ],
)
def test_a_killed_gc_leaves_published_data_as_it_was_and_the_next_one_completes(store, call, number, tmp_path):
    busy_store(store)
    undisturbed = str(shutil.copytree(store, tmp_path / "undisturbed"))
    before = {key: rows for key, rows in everything(store).items() if "whole" not in key[0]}
    words = [sys.executable, "-c", KILLED, store, call, str(number), "whole"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    after = everything(store)
    assert {key: after[key] for key in before} == before
    assert texts(verify(store)) == []
    dropped = "whole" not in {row["name"] for row in rows_of(store, "snapshots")}
    for path in (store, undisturbed):
        drop = ["whole"] if path == undisturbed or not dropped else []
        collect(path, dry_run=False, drop=drop, older_than=NOW)
        for _ in range(3):
            collect(path, dry_run=False, older_than=NOW)
    assert collect(store, dry_run=True, older_than=NOW).tables == {}
    after = everything(store)
    assert {key: after[key] for key in before} == before
    assert verify(store) == verify(undisturbed)
    for table in tables.TABLES:
        assert rows_of(store, table) == rows_of(undisturbed, table) or table in ("snapshots", "runs")
    names = [{p.name for p in (Path(one) / "checkpoints").iterdir()} for one in (store, undisturbed)]
    assert names[0] == names[1]
