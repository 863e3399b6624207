"""Several processes at one store: nothing twice, nothing lost, and nobody fails for having met another."""

import os
import subprocess
import sys

import lance
import pyarrow as pa
import pytest

from csip import tables
from csip.errors import StoreError
from csip.store import committing
from csip.types import Snapshot

CHILD = """
import sys
from csip import tables
from csip.types import Snapshot
store, job, number = sys.argv[1:]

def rows(frames, value=0.0):
    row = {"tracklet_id": "t", "encoder_digest": "d", "feature": [value]}
    return tables.from_rows("frame_features", [row | {"frame_index": f} for f in frames])

def upsert_the_same():
    for i in range(20):
        tables.upsert(store, "frame_features", rows(range(5 * i, 5 * i + 5), float(number)))

def do_everything():
    for i in range(8):
        own = 1000 * int(number)
        tables.upsert(store, "frame_features", rows([own + i, own + 500 + i]))
        tables.describe(store, "frame_features", {f"csip.{number}.{i}": "x"})
        tables.delete(store, "frame_features", f"frame_index = {own + 500 + i}")
        tables.compact(tables.current(store, "frame_features"), [])

def publish():
    for i in range(6):
        version = tables.upsert(store, "frame_features", rows([i], float(number))).version
        snapshot = Snapshot("street", store, {"frame_features": version}, number)
        tables.publish(snapshot, config={}, counts={}, videos=[])

def tag():
    version = tables.current(store, "frame_features").version
    snapshot = Snapshot("street", store, {"frame_features": version}, "d")
    for i in range(40):
        if number == "0":
            tables.untag(store, "frame_features", "snapshot-street")
        else:
            tables.publish(snapshot, config={}, counts={}, videos=[])

print("ready", flush=True)
sys.stdin.readline()
globals()[job]()
"""


def together(store, job, count):
    """Let processes load their libraries, then set them off at once; each must end well."""
    crowd = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, store, job, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ},
        )
        for number in range(count)
    ]
    for child in crowd:
        assert child.stdout.readline() == "ready\n"
    for child in crowd:
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in crowd:
        _, problems = child.communicate(timeout=120)
        assert child.returncode == 0, problems


def frames(store):
    return tables.read(tables.current(store, "frame_features"), [])["frame_index"].to_pylist()


@pytest.fixture
def store(tmp_path):
    path = str(tmp_path / "store")
    tables.prepare_store(path)
    return path


def test_processes_that_write_the_same_new_keys_make_no_row_twice_and_lose_none(store):
    together(store, "upsert_the_same", 3)
    assert sorted(frames(store)) == list(range(100))


@pytest.mark.parametrize("keyed", [True, False])
def test_it_is_the_keys_metadata_that_keeps_rows_from_coming_twice(tmp_path, keyed):
    # Two writers that looked at the table before the other one wrote, as two processes do now and then.
    schema = tables.TABLES["frame_features"]
    if not keyed:
        schema = pa.schema([field.remove_metadata() for field in schema])
    uri = str(tmp_path / "one.lance")
    nothing = lance.LanceOperation.Overwrite(schema, [])
    lance.LanceDataset.commit(uri, nothing, read_version=0, enable_stable_row_ids=True)
    row = {"tracklet_id": "t", "frame_index": 1, "encoder_digest": "d", "feature": [1.0]}
    both = [lance.dataset(uri), lance.dataset(uri)]
    for dataset in both:
        merge = dataset.merge_insert(["tracklet_id", "frame_index", "encoder_digest"])
        merge = merge.when_matched_update_all().when_not_matched_insert_all()
        merge.execute(pa.Table.from_pylist([row], schema=schema))
    assert lance.dataset(uri).count_rows() == (1 if keyed else 2)


def test_all_kinds_of_writing_at_once_neither_fail_nor_lose(store):
    together(store, "do_everything", 3)
    assert sorted(frames(store)) == [1000 * number + i for number in range(3) for i in range(8)]
    said = tables.described(tables.current(store, "frame_features"))
    assert said == {f"csip.{number}.{i}": "x" for number in range(3) for i in range(8)}
    lance.dataset(tables.table_uri(store, "frame_features")).validate()


def test_the_tags_are_on_what_the_row_says_whoever_published_last(store):
    together(store, "publish", 3)
    (row,) = tables.read_snapshots(tables.current(store, "snapshots")).values()
    assert tables.list_tags(store, "frame_features")["snapshot-street"][0] == row["tables"]["frame_features"]


def test_processes_that_set_and_take_off_one_tag_do_not_fail_each_other(store):
    together(store, "tag", 3)
    assert set(tables.list_tags(store, "frame_features")) <= {"snapshot-street"}


def test_a_writer_that_is_always_too_late_gives_up_and_says_so(store, monkeypatch):
    monkeypatch.setattr(committing, "_LONGEST_WAIT", 0.001)
    tries = []

    def late():
        tries.append(1)
        raise OSError("Retryable commit conflict for version 2: preempted by concurrent transaction Append")

    with pytest.raises(
        StoreError, match=r"t\.lance: 3 rows could not be written: other processes' commits came before"
    ):
        committing.commit("t.lance", "3 rows", late)
    assert len(tries) == 20


def test_what_is_no_conflict_is_not_tried_again():
    tries = []

    def full():
        tries.append(1)
        raise OSError("/data/conflict-of-concurrent-stores: No space left on device (os error 28)")

    with pytest.raises(StoreError, match=r"3 rows could not be written \(.*No space left .*free space or mend"):
        committing.commit("t.lance", "3 rows", full)
    assert len(tries) == 1


def test_waiting_for_others_moves_no_number_that_a_training_draws(monkeypatch):
    import random

    random.seed(1)
    before = random.getstate()
    calls = iter([True, False])

    def once():
        if next(calls):
            raise OSError("commit conflict")
        return 5

    assert committing.commit("t.lance", "rows", once) == 5
    assert random.getstate() == before


def test_a_version_that_is_gone_is_not_published(store):
    with pytest.raises(StoreError, match=r"Snapshot street: .*crops\.lance has no version 99; build it again"):
        tables.publish(Snapshot("street", store, {"crops": 99}, "d"), config={}, counts={}, videos=[])
    assert tables.count(tables.current(store, "snapshots")) == 0
