"""A store that `csip forget` has for itself: who may not write meanwhile, and what of writers comes to nothing."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from lance.optimize import Compaction

from csip import tables
from csip.errors import StoreBusyError, StoreError
from csip.maintenance import forget as forgetting
from csip.maintenance.collect import collect
from csip.maintenance.forget import Selector, finish, forget, look_up
from csip.maintenance.verify import verify
from csip.store import writing
from csip.types import Snapshot
from storage_schemas import TABLES

TABLE, KEYS = "frame_features", ["tracklet_id", "frame_index", "encoder_digest"]
CLOSED = (
    r"is closed while somebody is forgotten in this store \(`csip forget`, run 1, begun 2026\); nothing was written"
)

AT_WORK = """
import sys
from csip import tables
with tables.at_work(sys.argv[1]):
    print("ready", flush=True)
    sys.stdin.readline()
"""

# A library's user, whom no lock shows: one that writes, over and over, until told to stop.
WRITER = """
import sys, threading
from csip import tables
from csip.errors import StoreBusyError, StoreError
store, way = sys.argv[1:]
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
print("ready", flush=True)
done = refused = 0
while not stop.is_set():
    row = {"tracklet_id": way, "frame_index": done % 50, "encoder_digest": "d", "feature": [1.0] * 2000}
    rows = tables.from_rows("frame_features", [row])
    try:
        if way == "fragments":
            with tables.FragmentWriter(store, "frame_features") as writer:
                writer.write(rows)
            tables.commit_fragments(store, "frame_features", [writer.fragments])
        elif way == "compact":
            tables.upsert(store, "frame_features", rows)
            tables.compact(tables.current(store, "frame_features"), [])
        else:
            tables.upsert(store, "frame_features", rows)
        done += 1
    except StoreBusyError:
        refused += 1
    except StoreError as error:
        if "somebody was forgotten" not in str(error) and "cannot be read" not in str(error):
            raise
        refused += 1
print(done, refused)
"""


def features(frames, tracklet="t", value=0.0):
    row = {"tracklet_id": tracklet, "encoder_digest": "d", "feature": [value]}
    return tables.from_rows(TABLE, [row | {"frame_index": frame} for frame in frames])


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("closing") / "store")
    tables.prepare_store(path)
    for frame in range(3):
        tables.upsert(path, TABLE, features([frame]))
    return path


@pytest.fixture
def store(made, tmp_path):
    return str(shutil.copytree(made, tmp_path / "store"))


def uri(store):
    return tables.table_uri(store, TABLE)


def faults(store):
    return [finding.text for finding in verify(store) if finding.kind == "fault"]


def close(store):
    for name in TABLES:
        tables.close_table(store, name)


def forget_everything_unnamed(store, *, sealed=True):
    """What `csip forget` does to a table, without anybody to forget."""
    with tables.alone(store, "run 1, begun 2026"):
        tables.close_table(store, TABLE)
        tables.delete_rows(store, TABLE, pa.table({"tracklet_id": ["t"], "frame_index": pa.array([1], pa.int64())}))
        tables.compact(tables.current(store, TABLE), (), deleted_share=0.0)
        newest = tables.seal(store, TABLE) if sealed else tables.current(store, TABLE).version
        old = [version for version in tables.list_versions(store, TABLE) if version != newest]
        tables.clean_up(store, TABLE, old, dry_run=False, alone=True)
        tables.open_table(store, TABLE)


WAYS = {
    "upsert": lambda s: tables.upsert(s, TABLE, features([9])),
    "delete": lambda s: tables.delete(s, TABLE, "frame_index = 0"),
    "delete rows": lambda s: tables.delete_rows(s, TABLE, features([0]).select(KEYS)),
    "describe": lambda s: tables.describe(s, TABLE, {"a": "b"}),
    "prepare": tables.prepare_store,
    "begin fragments": lambda s: tables.FragmentWriter(s, TABLE),
    "compact": lambda s: tables.compact(tables.current(s, TABLE), ()),
    "delete as read": lambda s: tables.delete_as_read(tables.current(s, TABLE), "true"),
    "clean up": lambda s: tables.clean_up(s, TABLE, [], dry_run=False),
    "untag": lambda s: tables.untag(s, TABLE, "snapshot-x"),
    "publish": lambda s: tables.publish(Snapshot("x", s, {TABLE: 1}, "d"), config={}, counts={}, videos=[]),
    "gc": lambda s: collect(s, dry_run=False, older_than=timedelta(0)),
    "close": lambda s: tables.close_table(s, TABLE),
}


@pytest.mark.parametrize("way", WAYS)
def test_while_somebody_is_forgotten_nobody_else_writes_and_then_all_may(store, way):
    with tables.alone(store, "run 1, begun 2026"):
        close(store)
    before = {path: path.read_bytes() for path in Path(store).rglob("*") if path.is_file()}
    with pytest.raises(StoreBusyError, match=CLOSED):
        WAYS[way](store)
    assert {path: path.read_bytes() for path in Path(store).rglob("*") if path.is_file()} == before
    assert len(tables.read(tables.current(store, TABLE))) == 3
    with tables.alone(store, "run 2, begun 2027"), pytest.raises(StoreBusyError, match=CLOSED):
        WAYS[way](store)
    assert tables.closed_by(store) == "run 1, begun 2026"
    with tables.alone(store, "run 1, begun 2026"):
        if way != "close":
            WAYS[way](store)
        for name in TABLES:
            tables.open_table(store, name)
    assert tables.closed_by(store) == ""
    if way != "close":
        WAYS[way](store)


def prepare(kind, dataset):
    """Let a writer write its files, and stop short of its commit; return that."""
    if kind == "compaction":
        options = {"target_rows_per_fragment": 1000}
        done = [task.execute(dataset) for task in Compaction.plan(dataset, options).tasks]
        return lambda: Compaction.commit(dataset, done, options)
    if kind == "deletion":
        (fragment, *_) = dataset.get_fragments()
        operation = lance.LanceOperation.Delete([], [fragment.fragment_id], "true")
    elif kind == "fragments":
        part = lance.fragment.write_fragments(features([7]), dataset, mode="append")
        old = [fragment.metadata for fragment in dataset.get_fragments()]
        operation = lance.LanceOperation.Merge(old + part, dataset.lance_schema, preserves_nullability=True)
    else:
        merge = dataset.merge_insert(KEYS).when_matched_update_all().when_not_matched_insert_all()
        operation, _ = merge.execute_uncommitted(features([0 if kind == "changed rows" else 7]))
    # By the dataset itself, as it is while a process is between the two; a version's number alone is found missing.
    return lambda: lance.LanceDataset.commit(dataset, operation, read_version=dataset.version)


@pytest.mark.parametrize("kind", ["new rows", "changed rows", "deletion", "fragments", "compaction"])
def test_what_was_prepared_before_is_not_committed_after(store, kind):
    commit = prepare(kind, lance.dataset(uri(store)))
    forget_everything_unnamed(store)
    with pytest.raises(OSError, match=r"[Cc]ommit conflict.*preempted by concurrent transaction Merge"):
        commit()
    assert tables.read(tables.current(store, TABLE))["frame_index"].to_pylist() == [0, 2]


def test_without_a_seal_at_the_end_a_late_commit_would_name_files_that_are_gone(store):
    # Why `seal` is there: the test above would see it.
    commit = prepare("new rows", lance.dataset(uri(store)))
    forget_everything_unnamed(store, sealed=False)
    commit()
    with pytest.raises(StoreError, match="cannot be read"):
        tables.read(tables.current(store, TABLE))


def test_a_seal_changes_no_row_and_neither_when_it_was_written(store):
    columns = ["frame_index", "feature", "_rowid", "_row_last_updated_at_version", "_row_created_at_version"]
    tables.upsert(store, TABLE, features([1, 8], value=5.0))
    tables.delete(store, TABLE, "frame_index = 2")
    before = lance.dataset(uri(store)).to_table(columns=columns)
    version = tables.seal(store, TABLE)
    after = lance.dataset(uri(store))
    after.validate()
    assert after.version == version
    assert after.to_table(columns=columns).equals(before)


def test_fragments_that_were_written_before_are_refused_with_a_reason(store):
    with tables.FragmentWriter(store, TABLE) as writer:
        writer.write(features([7]))
    written = {path: path.read_bytes() for path in Path(uri(store), "data").iterdir()}
    forget_everything_unnamed(store)
    with pytest.raises(StoreError, match=r"the fragment \S+ cannot be read .*from its beginning"):
        tables.commit_fragments(store, TABLE, [writer.fragments])
    for path, content in written.items():
        path.write_bytes(content)  # as if they had been overlooked
    with pytest.raises(StoreError, match=r"somebody was forgotten in this store after 1 rows had been prepared"):
        tables.commit_fragments(store, TABLE, [writer.fragments])
    with tables.FragmentWriter(store, TABLE) as writer:
        writer.write(features([7]))
    tables.commit_fragments(store, TABLE, [writer.fragments])
    assert tables.read(tables.current(store, TABLE))["frame_index"].to_pylist() == [0, 2, 7]


@pytest.mark.parametrize("way", ["upsert", "delete"])
def test_a_writer_who_had_opened_the_table_looks_again_before_it_commits(store, monkeypatch, way):
    opened = []

    def open_early(store, name):
        dataset = real(store, name)
        if not opened:
            opened.append(dataset.version)
            with tables.alone(store, "run 1, begun 2026"):
                tables.close_table(store, TABLE)
        return dataset

    real = writing.open_for_writing
    monkeypatch.setattr(writing, "open_for_writing", open_early)
    with pytest.raises(StoreBusyError, match=CLOSED):
        WAYS[way](store)
    assert tables.read(tables.current(store, TABLE))["frame_index"].to_pylist() == [0, 1, 2]


def test_stages_share_a_store_and_forgetting_has_it_alone(store):
    with tables.at_work(store), tables.at_work(store), pytest.raises(
        StoreBusyError, match=rf"is at work on it, process {os.getpid()}, and `csip forget` needs it alone; nothing"
    ):  # fmt: skip
        tables.alone(store, "run 1").__enter__()
    with tables.alone(store, "run 1"):
        with pytest.raises(StoreBusyError, match="somebody is being forgotten in it"):
            tables.at_work(store).__enter__()
        with pytest.raises(StoreBusyError, match="needs it alone"):
            tables.alone(store, "run 2").__enter__()
    with tables.at_work(store):
        pass


def test_a_lock_ends_with_its_process_however_that_ends(tiny_store):
    selector = Selector.of_tracklets(["p2-a"])
    plan = look_up(tiny_store.store, selector)
    child = subprocess.Popen(
        [sys.executable, "-c", AT_WORK, tiny_store.store], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "ready\n"
    try:
        before = tables.current(tiny_store.store, "runs")
        with pytest.raises(StoreBusyError, match=rf"at work on it, process {child.pid}, and"):
            forget(tiny_store.store, selector, plan)
        assert tables.current(tiny_store.store, "runs") == before
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    forget(tiny_store.store, selector, plan)
    assert look_up(tiny_store.store, selector) is None


def test_a_disk_without_locks_is_said_and_keeps_nobody_from_work(store, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with tables.at_work(store), tables.alone(store, "run 1"):
        assert "this disk has no locks" in caplog.text


def test_a_lock_is_no_link_to_somewhere_else(store, tmp_path):
    Path(store, "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"lock: cannot be opened .*mend the permissions"):
        tables.at_work(store).__enter__()
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("hold", [tables.at_work, lambda store: tables.alone(store, "run 1")])
def test_a_folder_that_is_no_store_is_said_to_be_none_and_gets_no_lock(tmp_path, hold):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(StoreError, match=f"Store {folder}: found no table 'runs' there"):
            hold(str(folder)).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_a_young_file_that_no_version_names_is_a_writers_and_an_old_one_is_not(tiny_store):
    store = tiny_store.store
    known = faults(store)
    selector = Selector.of_tracklets(["p2-a"])
    plan = look_up(store, selector)
    dataset = lance.dataset(tables.table_uri(store, TABLE))
    before = set(Path(dataset.uri, "data").glob("*"))
    merge = dataset.merge_insert(KEYS).when_matched_update_all().when_not_matched_insert_all()
    operation, _ = merge.execute_uncommitted(features([7]))
    (file,) = set(Path(dataset.uri, "data").glob("*")) - before
    runs = tables.current(store, "runs")
    with pytest.raises(
        StoreBusyError, match=rf"{file.name}: was written \d+ s ago, and no version .* again in 1[12]\d s"
    ):
        forget(store, selector, plan)
    assert tables.current(store, "runs") == runs
    assert file.exists()
    old = time.time() - forgetting.YOUNG_SECONDS - 1
    os.utime(file, (old, old))
    forget(store, selector, plan)
    assert not file.exists()
    with pytest.raises(OSError, match=r"[Cc]ommit conflict"):
        lance.LanceDataset.commit(dataset, operation, read_version=dataset.version)
    assert faults(store) == known


def test_files_of_a_store_that_was_copied_just_now_are_no_writers(tiny_store, tmp_path):
    copied = str(shutil.copytree(tiny_store.store, tmp_path / "copied", copy_function=shutil.copyfile))
    assert tables.young_file(copied, 120) is None
    selector = Selector.of_tracklets(["p2-a"])
    forget(copied, selector, look_up(copied, selector))


def test_a_store_stays_closed_after_a_kill_until_the_next_finishes(tiny_store, monkeypatch):
    store = tiny_store.store

    def die(*_):
        raise KeyboardInterrupt("killed")

    for step in ("delete_rows", "open_table"):
        selector = Selector.of_tracklets(["p2-a" if step == "delete_rows" else "p2-b"])
        plan = look_up(store, selector)
        with monkeypatch.context() as patch:
            patch.setattr(tables, step, die)
            with pytest.raises(KeyboardInterrupt, match="killed"):
                forget(store, selector, plan)
        with pytest.raises(StoreBusyError, match=r"run any `csip forget` on this store"):
            tables.upsert(store, TABLE, features([1]))
        with pytest.raises(StoreError, match="was not finished"):
            look_up(store, Selector.of_tracklets(["p4-a"]))
        assert len(finish(store)) == (step == "delete_rows")
        tables.upsert(store, TABLE, features([1]))
        assert (
            tables.read(tables.current(store, "tracklets"), where=f"tracklet_id = '{plan.tracklets[0]}'").num_rows == 0
        )


@pytest.mark.slow
def test_writers_whom_no_lock_shows_leave_no_table_that_cannot_be_read(tiny_store, monkeypatch):
    # Nothing stops them but what a table says and Lance's conflicts: young files are not waited for.
    store = tiny_store.store
    known = {one.where for one in verify(store) if one.kind == "fault"}
    monkeypatch.setattr(forgetting, "YOUNG_SECONDS", -1.0)
    crowd = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, store, way],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for way in ("upsert", "fragments", "compact")
    ]
    for child in crowd:
        assert child.stdout.readline() == "ready\n"
    names = ["p2-a", "p2-b", "p4-a", "p4-b", "p30-a", "p30-b"]
    for name in names:
        time.sleep(0.5)
        selector = Selector.of_tracklets([name])
        forget(store, selector, look_up(store, selector))
        for table in TABLES:
            tables.read(tables.current(store, table))
    told = []
    for child in crowd:
        answer, problems = child.communicate("stop\n", timeout=60)
        assert child.returncode == 0, problems
        told.append([int(number) for number in answer.split()])
    assert all(done > 5 for done, _ in told), told
    assert sum(refused for _, refused in told) > 5, told
    rows = tables.read(tables.current(store, TABLE))
    assert set(rows["tracklet_id"].to_pylist()) == {"upsert", "fragments", "compact"}
    left = set(tables.read(tables.current(store, "tracklets"))["tracklet_id"].to_pylist())
    assert not left & set(names)
    found = [one for one in verify(store) if one.kind == "fault"]
    # What the writers made up is told of, and nothing else that was not there before.
    assert [one.where for one in found if one.text.endswith(": compact, fragments, upsert.")] == [TABLE]
    assert {one.where for one in found if "compact, fragments, upsert" not in one.text} <= known


def test_another_thread_is_somebody_else(store):
    told = []

    def write():
        try:
            tables.upsert(store, TABLE, features([9]))
        except StoreBusyError as error:
            told.append(str(error))

    with tables.alone(store, "run 1, begun 2026"):
        tables.close_table(store, TABLE)
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    assert len(told) == 1
