"""Stores that an older CSIP wrote: they open, read, are brought up and written, and no kill or crowd harms them."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import lance
import numpy as np
import pyarrow as pa
import pytest

from csip import tables
from csip.errors import SchemaMismatchError
from csip.lineage import History, flatten
from csip.maintenance.diff import diff
from csip.maintenance.verify import verify
from csip.store import committing, versions
from csip.types import Snapshot, TableRef
from storage_schemas import TABLES, fields
from storage_schemas.fields import FIRST_VERSION, SCHEMA_VERSION, at_version, column, key, key_names, table

LATER = ("begins", "ends", "interpolated_frames")
BRING_UP = """
import sys
from csip import tables
print("ready", flush=True)
sys.stdin.readline()
tables.prepare_store(sys.argv[1])
"""


def as_version_2(source, store):
    """Copy a store as CSIP wrote it before schema 3: its tables without the later columns, published under one name."""
    versions = {}
    for name, now in TABLES.items():
        schema = at_version(now, 2)
        uri = tables.table_uri(store, name)
        nothing = lance.LanceOperation.Overwrite(schema, [])
        lance.LanceDataset.commit(uri, nothing, read_version=0, enable_stable_row_ids=True)
        old = lance.dataset(tables.table_uri(source, name))
        rows = old.to_table(columns=schema.names)
        if name == "snapshots" and len(rows):
            (row,) = rows.to_pylist()
            row["tables"] = json.dumps({one: versions[one] for one in json.loads(row["tables"])})
            rows = pa.Table.from_pylist([row], schema=schema)
        dataset = lance.dataset(uri)
        # Two commits, so that there are several fragments, and rows deleted in one of them.
        for part in (rows, rows.slice(0, len(rows) // 2)):
            if len(part):
                merge = dataset.merge_insert(key_names(schema)).when_matched_update_all()
                merge.when_not_matched_insert_all().execute(part.cast(schema))
        if old.metadata:
            dataset.update_metadata(dict(old.metadata))
        versions[name] = lance.dataset(uri).version
    for name, version in versions.items():
        if name in ("videos", "tracklets", "crops", "skeletons", "splits"):
            lance.dataset(tables.table_uri(store, name)).tags.create("snapshot-tiny", version)
    return store


@pytest.fixture
def old(tiny_snapshot, tmp_path):
    return as_version_2(tiny_snapshot.store, str(tmp_path / "old"))


@pytest.fixture
def store(tmp_path):
    path = str(tmp_path / "store")
    tables.prepare_store(path)
    return path


def tracklet(name, **changes):
    row = dict.fromkeys(TABLES["tracklets"].names, 0)
    row |= {"tracklet_id": name, "video_sha": "v", "track_digest": "t", "pid": None, "begins": "appeared"}
    return tables.from_rows("tracklets", [row | {"ends": "lost", "interpolated_frames": 4} | changes])


def start(code, *args):
    child = subprocess.Popen(
        [sys.executable, "-c", code, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ},
    )
    assert child.stdout.readline() == "ready\n"
    return child


def go(child):
    child.stdin.write("go\n")
    child.stdin.flush()


def texts(findings):
    # Of those they name, the first come in the order of rows, which is nobody's promise.
    return [(finding.kind, finding.where, finding.text.partition(":")[0]) for finding in findings]


def files_in(store):
    return sorted(
        os.path.join(folder, name) for folder, _, names in os.walk(store) for name in names if not name.endswith(".tmp")
    )


def test_the_maker_of_old_stores_makes_what_it_says(old):
    found = lance.dataset(tables.table_uri(old, "tracklets"))
    assert found.schema.metadata[b"csip.schema_version"] == b"2"
    assert not set(LATER) & set(found.schema.names)
    assert found.schema.names == TABLES["tracklets"].names[:-3]


def test_an_old_store_reads_as_if_its_rows_had_the_defaults_and_nothing_is_written(old):
    before = files_in(old)
    snapshot = tables.open_snapshot(old, "tiny")
    ref = tables.pinned(snapshot, "tracklets")
    everything = tables.read(ref)
    assert everything.schema.names == TABLES["tracklets"].names
    assert everything.schema.types == TABLES["tracklets"].types
    assert set(everything["begins"].to_pylist()) == {"unknown"}
    assert set(everything["interpolated_frames"].to_pylist()) == {0}
    # In the order asked for, and alone.
    some = tables.read(ref, ["ends", "pid", "begins"], where="pid = 30")
    assert some.to_pylist() == [
        {"tracklet_id": f"p30-{x}", "ends": "unknown", "pid": 30, "begins": "unknown"} for x in "ab"
    ]
    streamed = [batch.to_pylist() for batch in tables.stream(ref, ["interpolated_frames"])]
    assert [row for rows in streamed for row in rows] == [{"interpolated_frames": 0}] * 12
    both = [row for batch in tables.stream(ref, ["ends", "num_frames"]) for row in batch.to_pylist()]
    assert [set(row) for row in both] == [{"ends", "num_frames"}] * 12
    rows = tables.Rows(ref)
    keys = rows.keys(["begins"])
    assert keys.schema.names == ["tracklet_id", "begins", "row"]
    assert set(keys["begins"].to_pylist()) == {"unknown"}
    taken = rows.take(np.asarray(keys["row"])[[3, 1]], ["ends", "tracklet_id"])
    assert taken.to_pylist() == [
        {"ends": "unknown", "tracklet_id": name} for name in np.asarray(keys["tracklet_id"])[[3, 1]]
    ]
    assert files_in(old) == before


def test_a_condition_on_a_later_column_is_refused_not_answered_wrongly(old):
    ref = tables.current(old, "tracklets")
    for ask in (tables.read, tables.count):
        with pytest.raises(SchemaMismatchError, match=r"asks for \['begins'\], which schema 2 has not.*written since"):
            ask(ref, where="begins = 'unknown'")
    # A value that happens to be called so is none of it.
    assert tables.count(ref, where="tracklet_id = 'begins' OR pid = 30") == 2


def test_a_whole_old_store_is_verified_traced_and_compared(old, tiny_snapshot):
    assert texts(verify(old, deep=True)) == texts(verify(tiny_snapshot.store, deep=True))
    facts = dict.fromkeys(("source_digest", "git_commit", "device", "config", "counts", "weights"), "")
    made = asdict(tables.open_snapshot(old, "tiny")) | {"tables": dict(tiny_snapshot.tables)}
    run = {
        "run_id": "r",
        "stage": "publish",
        "key": "k",
        "inputs": {},
        "outputs": made,
        "started": "2026",
        "seconds": 1,
    }
    tables.record_run(old, tables.RunRecord(**facts, **run))
    assert [(node.kind, node.name) for node in flatten(History(old).find("p30-a"))] == [
        ("tracklet", "p30-a"),
        ("snapshot", "tiny"),
    ]
    # The same rows, as they lie and brought up, are the same rows.
    tables.prepare_store(old)
    parts = [row | {"dataset": "two"} for row in tables.read(tables.current(old, "splits")).to_pylist()]
    tables.upsert(old, "splits", tables.from_rows("splits", parts))
    snapshot = tables.open_snapshot(old, "tiny")
    versions = {name: tables.current(old, name).version for name in snapshot.tables}
    tables.publish(replace(snapshot, name="two", tables=versions), config={}, counts={}, videos=[])
    told = diff(old, "tiny", "two").tables["tracklets"]
    assert set(LATER) < set(told.compared)
    assert (told.rows, told.only_a, told.only_b, told.changed) == ((12, 12), 0, 0, 0)


def test_a_writer_brings_an_old_store_up_and_what_was_published_stays_as_it_was(old):
    snapshot = tables.open_snapshot(old, "tiny")
    pinned = {name: tables.read(tables.pinned(snapshot, name)) for name in snapshot.tables}
    before = {name: tables.current(old, name) for name in TABLES}
    tables.prepare_store(old)
    for name, ref in before.items():
        now = tables.current(old, name)
        assert now.version == ref.version + 1, "one commit a table"
        found = lance.dataset(now.uri).schema
        assert found.equals(TABLES[name], check_metadata=True), name
        assert tables.read(now).equals(tables.read(ref))
        assert tables.described(now) == tables.described(ref)
        lance.dataset(now.uri).validate()
    # Again, it changes nothing.
    now = {name: tables.current(old, name) for name in TABLES}
    tables.prepare_store(old)
    assert {name: tables.current(old, name) for name in TABLES} == now
    ref = tables.upsert(old, "tracklets", pa.concat_tables([tracklet("new"), tracklet("p4-a")]))
    rows = {row["tracklet_id"]: row for row in tables.read(ref).to_pylist()}
    assert len(rows) == 13
    assert [(rows[n]["begins"], rows[n]["interpolated_frames"]) for n in ("new", "p4-a", "p4-b")] == [
        ("appeared", 4),
        ("appeared", 4),
        ("unknown", 0),
    ]
    assert tables.count(ref, where="begins = 'appeared'") == 2
    assert tables.open_snapshot(old, "tiny") == snapshot
    assert {name: tables.read(tables.pinned(snapshot, name)) for name in snapshot.tables} == pinned
    # Row numbers and compaction know the new columns.
    tables.compact(ref, [])
    assert len(tables.read(tables.current(old, "tracklets"), ["begins"])) == 13


@pytest.mark.parametrize("write", ["upsert", "delete", "describe", "fragments", "publish"])
def test_whoever_writes_first_brings_the_table_up(old, write):
    if write == "upsert":
        tables.upsert(old, "tracklets", tracklet("new"))
    elif write == "delete":
        tables.delete(old, "tracklets", "begins = 'unknown' AND pid = 4")
        assert tables.count(tables.current(old, "tracklets")) == 10
    elif write == "describe":
        tables.describe(old, "tracklets", {"a": "b"})
    elif write == "fragments":
        with tables.FragmentWriter(old, "tracklets") as writer:
            writer.write(tracklet("p4-a"))
        tables.commit_fragments(old, "tracklets", [writer.fragments])
        assert tables.count(tables.current(old, "tracklets"), "begins = 'appeared'") == 1
    else:
        ref = tables.current(old, "tracklets")
        tables.publish(Snapshot("two", old, {"tracklets": ref.version}, "d"), config={}, counts={}, videos=[])
        assert set(tables.read(tables.pinned(tables.open_snapshot(old, "two"), "tracklets"))["ends"].to_pylist()) == {
            "unknown"
        }
        return
    found = lance.dataset(tables.table_uri(old, "tracklets")).schema
    assert found.equals(TABLES["tracklets"], check_metadata=True)


def test_processes_that_bring_a_store_up_together_do_it_once(old):
    before = {name: tables.current(old, name) for name in TABLES}
    crowd = [start(BRING_UP, old) for _ in range(3)]
    for child in crowd:
        go(child)
    assert [child.wait(60) for child in crowd] == [0, 0, 0]
    assert {name: tables.current(old, name).version - ref.version for name, ref in before.items()} == dict.fromkeys(
        TABLES, 1
    )
    assert tables.count(tables.current(old, "tracklets")) == 12


def test_an_upgrade_and_writers_at_once_lose_nothing(old):
    # The first to write brings the table up; the others' rows must not vanish with what it made of the old ones.
    code = BRING_UP.replace(
        "tables.prepare_store(sys.argv[1])",
        """
row = dict.fromkeys(tables.TABLES["tracklets"].names, 0)
row |= {"video_sha": "v", "track_digest": "t", "pid": None, "begins": "x", "ends": "y"}
for i in range(5):
    rows = tables.from_rows("tracklets", [row | {"tracklet_id": f"{sys.argv[2]}-{i}"}])
    tables.upsert(sys.argv[1], "tracklets", rows)
""",
    )
    crowd = [start(code, old, str(number)) for number in range(3)]
    for child in crowd:
        go(child)
    assert [child.wait(60) for child in crowd] == [0, 0, 0]
    ids = tables.read(tables.current(old, "tracklets"), [])["tracklet_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 12 + 15


@pytest.mark.slow
def test_a_kill_while_a_store_is_brought_up_leaves_one_that_opens_and_the_next_run_finishes_it(old, tmp_path):
    whole = as_version_2(old, str(tmp_path / "whole"))
    tables.prepare_store(whole)
    child = start(BRING_UP, whole)
    begun = time.monotonic()
    go(child)
    child.wait(60)
    # From at once to about when it is done.
    for number in range(6):
        store = as_version_2(old, str(tmp_path / f"killed-{number}"))
        child = start(BRING_UP, store)
        go(child)
        time.sleep(number * 0.04)
        child.send_signal(signal.SIGKILL)
        child.wait(60)
        for name in TABLES:
            assert tables.read(tables.current(store, name)).equals(tables.read(tables.current(whole, name))) or (
                name == "snapshots"
            )
        tables.prepare_store(store)
        for name in TABLES:
            found = lance.dataset(tables.table_uri(store, name)).schema
            assert found.equals(TABLES[name], check_metadata=True)
    assert time.monotonic() - begun < 120


def test_a_store_of_a_newer_csip_is_refused_at_every_door(store):
    newer = TABLES["tracklets"].with_metadata({"csip.schema_version": "9"})
    uri = tables.table_uri(store, "tracklets")
    lance.write_dataset(newer.empty_table(), uri, mode="overwrite")
    ref = TableRef(uri, lance.dataset(uri).version)
    text = r"written by a newer CSIP \(schema 9\), this one knows up to 3: upgrade"
    for ask in (
        lambda: tables.current(store, "tracklets"),
        lambda: tables.prepare_store(store),
        lambda: tables.upsert(store, "tracklets", tracklet("t")),
        lambda: tables.FragmentWriter(store, "tracklets"),
        lambda: tables.delete(store, "tracklets", "true"),
        lambda: tables.read(ref),
        lambda: list(tables.stream(ref, ["pid"])),
        lambda: tables.Rows(ref).keys(),
    ):
        with pytest.raises(SchemaMismatchError, match=text):
            ask()


def test_a_store_older_than_the_oldest_that_is_known_is_refused(store):
    older = at_version(TABLES["tracklets"], 1)
    lance.write_dataset(older.empty_table(), tables.table_uri(store, "tracklets"), mode="overwrite")
    with pytest.raises(SchemaMismatchError, match=r"found schema 1 with .*expected schema 2 to 3 with"):
        tables.prepare_store(store)


def test_a_column_of_any_kind_has_a_default_of_its_own_type(monkeypatch):
    monkeypatch.setattr(fields, "SCHEMA_VERSION", 5)
    for kind, value in (
        (pa.float32(), 0.5),
        (pa.int64(), None),
        (pa.list_(pa.float32()), [1.5, 2.0]),
        (pa.list_(pa.float32(), 4), [0, 0, 1, 1]),
        (pa.bool_(), False),
    ):
        made = column("x", kind, "of any kind", since=5, default=value, nullable=value is None)
        assert fields.default(made).type == kind
        assert fields.default(made).as_py() == value
        assert fields.since(made) == 5


def test_a_column_that_would_leave_old_rows_without_a_value_is_refused():
    with pytest.raises(ValueError, match=r"column x: expected a default"):
        column("x", pa.string(), "m", since=SCHEMA_VERSION)
    with pytest.raises(ValueError, match=r"got since=4, expected at most SCHEMA_VERSION = 3"):
        column("x", pa.string(), "m", since=SCHEMA_VERSION + 1, default="")
    late = column("x", pa.string(), "m", since=SCHEMA_VERSION, default="")
    with pytest.raises(ValueError, match=r"expected columns that came later behind the others"):
        table(key("k", pa.string(), 1, "m"), late, column("y", pa.string(), "m"), rows="one")


@pytest.mark.parametrize("name", TABLES)
def test_every_schema_is_one_that_old_stores_can_be_brought_up_to(name):
    schema = TABLES[name]
    assert schema.metadata[b"csip.schema_version"].decode() == str(SCHEMA_VERSION)
    assert at_version(schema, SCHEMA_VERSION).equals(schema, check_metadata=True)
    first = at_version(schema, FIRST_VERSION)
    assert first.names == schema.names[: len(first)]
    assert key_names(first) == key_names(schema), "a key never comes later"
    assert [fields.default(field).type for field in schema if fields.since(field) > 2] == [
        field.type for field in schema if fields.since(field) > 2
    ]


def test_a_table_with_nested_columns_is_brought_up_step_by_step_and_in_one(old, tmp_path, monkeypatch):
    # Lance numbers the columns, those inside others too: a wrong number would show another column's values.
    further = {}
    for version, extra in (
        (4, ("spots", pa.list_(pa.list_(pa.float32(), 3)), [[1, 2, 3]])),
        (5, ("seen", pa.int64(), 7)),
    ):
        monkeypatch.setattr(fields, "SCHEMA_VERSION", version)
        name, kind, value = extra
        made = column(name, kind, "made for the test", since=version, default=value)
        so_far = further.get(version - 1, TABLES["skeletons"])
        further[version] = table(*so_far, made, rows="one")
    before = tables.read(tables.current(old, "skeletons")).to_pylist()
    both = [old, as_version_2(old, str(tmp_path / "at-once"))]
    for store, steps in zip(both, ((4, 5), (5,)), strict=True):
        for version in steps:
            for room in (versions, committing):
                monkeypatch.setattr(room, "SCHEMA_VERSION", version)
            monkeypatch.setitem(TABLES, "skeletons", further[version])
            tables.describe(store, "skeletons", {"brought": f"to {version}"})
        ref = tables.current(store, "skeletons")
        assert lance.dataset(ref.uri).schema.equals(further[5], check_metadata=True)
        later = {"spots": [[1, 2, 3]], "seen": 7}
        assert tables.read(ref).to_pylist() == [row | later for row in before]
        one = tables.from_rows("skeletons", [before[0] | {"spots": [], "seen": 8}])
        rows = tables.read(tables.upsert(store, "skeletons", one)).to_pylist()
        assert rows == [before[0] | {"spots": [], "seen": 8}, *(row | later for row in before[1:])]
        lance.dataset(ref.uri).validate()
        monkeypatch.setitem(TABLES, "skeletons", further[4])
