"""Rows written by many workers and committed in one: what readers see, which keys give way, and who may die when."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from csip import tables
from csip.errors import SchemaMismatchError, StoreError
from csip.store import fragments as rooms
from csip.tables import Fragments, FragmentWriter, commit_fragments

WORKER = """
import json, sys
from dataclasses import asdict
import pyarrow as pa
from csip import tables
store, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with tables.FragmentWriter(store, "frame_features") as writer:
    for frame in range(first, first + count):
        row = {"tracklet_id": "t", "frame_index": frame, "encoder_digest": "d", "feature": [float(first)]}
        writer.write(tables.from_rows("frame_features", [row]))
print(json.dumps(asdict(writer.fragments)))
"""

# Both commit the same keys, again and again; the last of them may win, but each key is there once.
COORDINATOR = """
import sys
from csip import tables
store, number = sys.argv[1:]
def rows(batch):
    row = {"tracklet_id": "t", "encoder_digest": "d", "feature": [float(number)]}
    return tables.from_rows("frame_features", [row | {"frame_index": 10 * batch + i} for i in range(10)])
print("ready", flush=True)
sys.stdin.readline()
for batch in range(6):
    if number == "9":
        tables.upsert(store, "frame_features", rows(batch))
    else:
        with tables.FragmentWriter(store, "frame_features") as writer:
            writer.write(rows(batch))
        tables.commit_fragments(store, "frame_features", [writer.fragments])
"""

KILLED = """
import os, signal, sys
from csip import tables
from csip.store import fragments
store, at = sys.argv[1:]
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if at == "before the commits":
    fragments.commit = die
if at == "between the commits":
    fragments.commit_fragments_as = die
def rows(frames):
    row = {"tracklet_id": "t", "encoder_digest": "d", "feature": [7.0]}
    return tables.from_rows("frame_features", [row | {"frame_index": frame} for frame in frames])
with tables.FragmentWriter(store, "frame_features") as writer:
    writer.write(rows(range(3, 8)))
    if at == "while it writes":
        writer._flush()
        die()
tables.commit_fragments(store, "frame_features", [writer.fragments], replace="frame_index < 2")
"""


def features(frames, *, value=0.0, tracklet="t"):
    rows = [
        {"tracklet_id": tracklet, "frame_index": f, "encoder_digest": "d", "feature": [float(f), value]} for f in frames
    ]
    return tables.from_rows("frame_features", rows)


def written(store, *batches):
    with FragmentWriter(store, "frame_features") as writer:
        for rows in batches:
            writer.write(rows)
    return writer.fragments


def found(store):
    """frame_index -> the feature's last number, of every row; a key that is there twice fails."""
    rows = tables.read(tables.current(store, "frame_features")).to_pylist()
    assert len({row["frame_index"] for row in rows}) == len(rows)
    return {row["frame_index"]: row["feature"][-1] for row in rows}


def run(code, *args):
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def store(tmp_path):
    path = str(tmp_path / "store")
    tables.prepare_store(path)
    return path


def test_what_workers_wrote_becomes_visible_in_one_commit(store):
    before = tables.current(store, "frame_features")
    workers = [run(WORKER, store, str(100 * i), "20") for i in range(3)]
    parts = [json.loads(worker.stdout) for worker in workers]
    assert tables.current(store, "frame_features") == before
    assert found(store) == {}
    # As JSON hands them over: a list where there was a tuple.
    ref = commit_fragments(store, "frame_features", [Fragments(**part) for part in parts])
    assert ref.version == before.version + 1
    assert found(store) == {100 * i + j: 100.0 * i for i in range(3) for j in range(20)}
    lance.dataset(ref.uri).validate()


def test_known_keys_give_way_as_with_an_upsert_and_so_does_what_is_replaced(store):
    for frames in (range(5), range(5, 10), [20]):
        tables.upsert(store, "frame_features", features(frames))
    part = written(store, features([3, 4, 12], value=9))
    ref = commit_fragments(store, "frame_features", [part], replace="frame_index IN (0, 3, 20)")
    assert found(store) == {1: 0, 2: 0, 3: 9, 4: 9, **dict.fromkeys(range(5, 10), 0), 12: 9}
    reader = tables.Rows(ref)
    keys = reader.keys()
    row = dict(zip(keys["frame_index"].to_pylist(), keys["row"].to_pylist(), strict=True))
    assert reader.take(np.array([row[12], row[1]]), ["feature"])["feature"].to_pylist() == [[12, 9], [1, 0]]
    lance.dataset(ref.uri).validate()


def test_a_commit_of_the_same_fragments_again_changes_no_row(store):
    part = written(store, features(range(4)))
    first = commit_fragments(store, "frame_features", [part])
    rows = tables.read(first)
    assert tables.read(commit_fragments(store, "frame_features", [part])).equals(rows)
    assert found(store) == dict.fromkeys(range(4), 0)


def test_only_the_whole_key_makes_rows_one(store):
    tables.upsert(store, "frame_features", features([1, 2], tracklet="a"))
    other = features([2], tracklet="a").set_column(2, "encoder_digest", pa.array(["other"]))
    other = other.cast(tables.TABLES["frame_features"])
    part = written(store, features([1], tracklet="b"), other)
    assert tables.count(commit_fragments(store, "frame_features", [part])) == 4


def test_a_key_that_comes_twice_among_the_parts_is_refused(store):
    parts = [written(store, features([1, 2])), written(store, features([2, 3]))]
    with pytest.raises(ValueError, match=r"frame_features: got 4 rows with 3 different keys"):
        commit_fragments(store, "frame_features", parts)
    assert found(store) == {}


def test_fragments_of_another_table_or_schema_are_refused(store):
    part = written(store, features([1]))
    with pytest.raises(ValueError, match=r"into crops, schema 3: got fragments written for \[\('frame_features', 3\)"):
        commit_fragments(store, "crops", [part])
    old = Fragments(**{**asdict(part), "schema": 2})
    with pytest.raises(ValueError, match=r"\('frame_features', 2\).*the coordinator's own CSIP version"):
        commit_fragments(store, "frame_features", [old])


def test_rows_of_other_columns_are_refused_before_anything_is_written(store):
    with pytest.raises(SchemaMismatchError, match=r"got columns \['tracklet_id'\]"):
        written(store, features([1]).select(["tracklet_id"]))


def test_nothing_written_is_nothing_committed_but_leftovers_go(store):
    tables.upsert(store, "frame_features", features([1, 2]))
    before = tables.current(store, "frame_features")
    assert commit_fragments(store, "frame_features", []) == before
    assert commit_fragments(store, "frame_features", [written(store)]) == before
    commit_fragments(store, "frame_features", [], replace="frame_index = 2")
    assert found(store) == {1: 0}


def test_a_writer_that_failed_has_no_fragments(store):
    def fail():
        with FragmentWriter(store, "frame_features") as writer:
            writers.append(writer)
            writer.write(features([1]))
            raise KeyError("the worker's own")

    writers = []
    with pytest.raises(KeyError, match="the worker's own"):
        fail()
    with pytest.raises(ValueError, match=r"FragmentWriter of frame_features: .*ended well"):
        _ = writers[0].fragments


def test_a_writer_holds_a_bounded_number_of_bytes(store, monkeypatch):
    monkeypatch.setattr(rooms, "_AT_ONCE", 1000)
    with FragmentWriter(store, "frame_features") as writer:
        for frame in range(200):
            writer.write(features([frame]))
            assert sum(rows.nbytes for rows in writer._waiting) < 1000
    assert writer.fragments.rows == 200
    assert len(writer.fragments.parts) > 5
    assert tables.count(commit_fragments(store, "frame_features", [writer.fragments])) == 200


def test_a_fragment_that_was_cleaned_up_is_named(store):
    part = written(store, features([1]))
    (file,) = Path(store, "frame_features.lance", "data").glob("*")
    file.unlink()
    with pytest.raises(StoreError, match=rf"the fragment {file.name} cannot be read .*7 days .*from its beginning"):
        commit_fragments(store, "frame_features", [part])


def test_coordinators_and_upserts_of_the_same_keys_at_once_make_no_row_twice_and_lose_none(store):
    crowd = [
        subprocess.Popen(
            [sys.executable, "-c", COORDINATOR, store, number],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ},
        )
        for number in "129"
    ]
    for child in crowd:
        assert child.stdout.readline() == "ready\n"
    for child in crowd:
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in crowd:
        _, problems = child.communicate(timeout=90)
        assert child.returncode == 0, problems
    assert sorted(found(store)) == list(range(60))


def test_fragments_appended_lances_own_way_do_duplicate(store):
    # What the test above would see, and why `commit_fragments` is not a plain append.
    part = written(store, features([1]))
    uri = tables.table_uri(store, "frame_features")
    one = lance.FragmentMetadata.from_json(part.parts[0])
    version = lance.dataset(uri).version
    for _ in range(2):
        lance.LanceDataset.commit(uri, lance.LanceOperation.Append([one]), read_version=version)
    with pytest.raises(AssertionError, match="1 == 2"):
        found(store)


@pytest.mark.parametrize("at", ["while it writes", "before the commits", "between the commits"])
def test_a_killed_worker_leaves_no_row_and_the_work_done_again_completes(store, at):
    tables.upsert(store, "frame_features", features(range(5)))
    before = tables.current(store, "frame_features")
    assert run(KILLED, store, at).returncode == -signal.SIGKILL
    # Between the two commits the old rows are gone and the new ones are not there; what was pinned is as it was.
    rest = {2: 0} if at == "between the commits" else dict.fromkeys(range(5), 0)
    assert found(store) == rest
    assert tables.count(before) == 5
    assert run(KILLED, store, "never").returncode == 0
    assert found(store) == {2: 0, **dict.fromkeys(range(3, 8), 7)}
    lance.dataset(before.uri).validate()
