import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import lance
import numpy as np
import pyarrow as pa
import pytest

from csip import tables
from csip.errors import SchemaMismatchError, StoreError
from csip.store.upkeep import MANY_SMALL, extent
from csip.store.versions import table_uri
from csip.tables import Rows, RunRecord, TableRef
from csip.types import Snapshot
from storage_schemas import TABLES

# What a child process does after it has said that it is ready and was told to start.
CHILD = """
import sys
from csip import tables
print("ready", flush=True)
sys.stdin.readline()
tables.prepare_store(sys.argv[1])
"""


def features(frames, *, tracklet="t", value=0.0):
    rows = [
        {"tracklet_id": tracklet, "frame_index": f, "encoder_digest": "d", "feature": [float(f), value]} for f in frames
    ]
    return tables.from_rows("frame_features", rows)


def frames_of(table):
    return table["frame_index"].to_pylist()


def run_record(run_id, key, started, **changes):
    values = {"inputs": {}, "outputs": None, "config": {}, "counts": {}, "weights": {}, "source_digest": "s"}
    rest = {"git_commit": "", "device": "cpu", "seconds": 1.0, "stage": "embed"}
    return RunRecord(run_id=run_id, key=key, started=started, **(values | rest | changes))


def two_processes(store):
    """Start two processes, let both load their libraries, then set them off together."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, store],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )
        for _ in range(2)
    ]
    for child in started:
        assert child.stdout.readline() == "ready\n"
    for child in started:
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in started:
        _, problems = child.communicate(timeout=60)
        assert child.returncode == 0, problems


@pytest.fixture
def store(tmp_path):
    path = str(tmp_path / "store")
    tables.prepare_store(path)
    return path


def test_a_store_has_every_table_empty(store):
    for name in TABLES:
        ref = tables.current(store, name)
        assert tables.count(ref) == 0
        assert tables.read(ref).schema.names == TABLES[name].names
        assert ref.uri == f"{store}/{name}.lance"


def test_a_stores_tables_carry_their_keys_to_lance(store):
    for name, schema in TABLES.items():
        found = lance.dataset(tables.table_uri(store, name)).schema
        for field in schema:
            assert (found.field(field.name).metadata or {}) == (field.metadata or {}), f"{name}.{field.name}"
            assert found.field(field.name).nullable == field.nullable


def test_preparing_a_store_again_changes_nothing(store):
    tables.upsert(store, "frame_features", features([1, 2]))
    before = {name: tables.current(store, name) for name in TABLES}
    tables.prepare_store(store)
    assert {name: tables.current(store, name) for name in TABLES} == before
    assert tables.count(before["frame_features"]) == 2


def test_two_processes_may_prepare_a_store_at_once(tmp_path):
    store = str(tmp_path / "store")
    two_processes(store)
    for name in TABLES:
        assert tables.current(store, name).version == 1


def test_an_upsert_adds_new_keys_and_overwrites_known_ones(store):
    first = tables.upsert(store, "frame_features", features([1, 2]))
    second = tables.upsert(store, "frame_features", features([2, 3], value=9))
    assert second.version > first.version
    got = tables.read(second)
    assert dict(zip(frames_of(got), got["feature"].to_pylist(), strict=True)) == {1: [1, 0], 2: [2, 9], 3: [3, 9]}


def test_an_upsert_of_the_same_rows_leaves_the_same_rows(store):
    first = tables.upsert(store, "frame_features", features([1, 2]))
    again = tables.upsert(store, "frame_features", features([1, 2]))
    assert tables.read(again) == tables.read(first)


def fragments(store):
    return [fragment.count_rows() for fragment in lance.dataset(table_uri(store, "frame_features")).get_fragments()]


def test_many_small_commits_do_not_leave_as_many_pieces_behind_and_change_no_row(store):
    pinned = None
    for frame in range(2 * MANY_SMALL + 5):
        ref = tables.upsert(store, "frame_features", features([frame]))
        pinned = ref if frame == MANY_SMALL - 2 else pinned
        assert len(fragments(store)) < MANY_SMALL
    assert sum(fragments(store)) == 2 * MANY_SMALL + 5
    # The commit's own version, and one from before all merging, still read as they did.
    assert frames_of(tables.read(ref)) == list(range(2 * MANY_SMALL + 5))
    assert frames_of(tables.read(pinned)) == list(range(MANY_SMALL - 1))
    assert frames_of(tables.read(tables.current(store, "frame_features"))) == list(range(2 * MANY_SMALL + 5))


def test_large_pieces_are_not_written_again_with_the_small_ones(store, monkeypatch):
    tables.upsert(store, "frame_features", features(range(1000)))
    (size,) = extent(tables.current(store, "frame_features")).fragments.values()
    monkeypatch.setattr("csip.store.upkeep.SMALL_BYTES", size)
    for frame in range(MANY_SMALL):
        tables.upsert(store, "frame_features", features([1000 + frame]))
    assert fragments(store) == [1000, MANY_SMALL]


def test_two_writers_of_many_small_commits_lose_no_row(store):
    def write(first):
        for frame in range(first, first + 2 * MANY_SMALL):
            tables.upsert(store, "frame_features", features([frame]))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, (0, 1000)))
    expected = [*range(2 * MANY_SMALL), *range(1000, 1000 + 2 * MANY_SMALL)]
    assert frames_of(tables.read(tables.current(store, "frame_features"))) == expected


def test_replace_removes_what_is_not_among_the_new_rows(store):
    tables.upsert(store, "frame_features", features(range(6)))
    tables.upsert(store, "frame_features", features([1], tracklet="other"))
    ref = tables.upsert(store, "frame_features", features([1, 7], value=9), replace="tracklet_id = 't'")
    got = tables.read(ref)
    assert list(zip(got["tracklet_id"].to_pylist(), frames_of(got), strict=True)) == [
        ("other", 1),
        ("t", 1),
        ("t", 7),
    ]


def test_a_row_that_is_to_be_kept_gives_way_to_no_other(store):
    tables.upsert(store, "frame_features", features([1], tracklet="kept"))
    tables.upsert(store, "frame_features", features([1, 2], tracklet="t"))
    both = pa.concat_tables([features([1, 3], tracklet="kept", value=9), features([2], tracklet="t", value=9)])
    got = tables.read(tables.upsert(store, "frame_features", both, keep="target.tracklet_id = 'kept'")).to_pylist()
    assert [(row["tracklet_id"], row["frame_index"], row["feature"][1]) for row in got] == [
        *(("kept", 1, 0), ("kept", 3, 9)),
        *(("t", 1, 0), ("t", 2, 9)),
    ]


def test_two_rows_of_one_key_in_one_write_are_refused(store):
    # Lance itself would insert both: the primary key is unenforced.
    with pytest.raises(ValueError, match=r"upsert into frame_features: got 3 rows with 2 different keys"):
        tables.upsert(store, "frame_features", features([1, 1, 2]))
    assert tables.count(tables.current(store, "frame_features")) == 0


def test_writing_no_rows_is_no_error(store):
    assert tables.count(tables.upsert(store, "frame_features", features([]))) == 0


def test_rows_of_other_columns_are_refused_before_anything_is_written(store):
    wrong = features([1]).drop_columns(["feature"])
    with pytest.raises(SchemaMismatchError, match=r"upsert into frame_features: got columns \['tracklet_id'.*expected"):
        tables.upsert(store, "frame_features", wrong)
    narrow = features([1]).set_column(1, "frame_index", pa.array([1], pa.int32()))
    with pytest.raises(SchemaMismatchError, match=r"of types \['string', 'int32'.*expected .*'int64'"):
        tables.upsert(store, "frame_features", narrow)


def test_a_key_is_never_null(store):
    row = {"tracklet_id": None, "frame_index": 1, "encoder_digest": "d", "feature": [1.0]}
    with pytest.raises(ValueError, match=r"tracklet_id.* non-nullable"):
        tables.upsert(store, "frame_features", tables.from_rows("frame_features", [row]))


def test_delete_removes_rows_in_one_commit_or_makes_none(store):
    ref = tables.upsert(store, "frame_features", features(range(4)))
    tables.delete(store, "frame_features", "frame_index > 10")
    assert tables.current(store, "frame_features") == ref
    tables.delete(store, "frame_features", "frame_index > 1")
    assert frames_of(tables.read(tables.current(store, "frame_features"))) == [0, 1]


def test_reading_sorts_by_key_however_rows_were_written(store):
    tables.upsert(store, "frame_features", features([5, 3], tracklet="b"))
    tables.upsert(store, "frame_features", features([9, 1], tracklet="a"))
    ref = tables.upsert(store, "frame_features", features([3], tracklet="b", value=1))
    got = tables.read(ref, ["feature"])
    assert list(zip(got["tracklet_id"].to_pylist(), frames_of(got), strict=True)) == [
        ("a", 1),
        ("a", 9),
        ("b", 3),
        ("b", 5),
    ]
    assert got.schema.names == ["tracklet_id", "frame_index", "encoder_digest", "feature"]
    assert frames_of(tables.read(ref, [], "tracklet_id = 'b' AND frame_index < 5")) == [3]


def test_a_pinned_version_keeps_its_rows_whatever_is_written_later(store):
    old = tables.upsert(store, "frame_features", features([1, 2]))
    reader = Rows(old)
    tables.upsert(store, "frame_features", features([2, 3], value=9))
    tables.delete(store, "frame_features", "frame_index = 1")
    assert frames_of(tables.read(old)) == [1, 2]
    assert tables.read(old)["feature"].to_pylist() == [[1, 0], [2, 0]]
    assert reader.keys()["frame_index"].to_pylist() == [1, 2]
    assert frames_of(tables.read(tables.current(store, "frame_features"))) == [2, 3]


def test_row_numbers_and_rows_agree_after_upserts_and_deletes_moved_them(store):
    tables.upsert(store, "frame_features", features(range(10)))
    tables.upsert(store, "frame_features", features(range(29, 9, -1)))
    tables.delete(store, "frame_features", "frame_index IN (0, 4, 11)")
    tables.upsert(store, "frame_features", features([3, 5, 40], value=9))
    tables.delete(store, "frame_features", "frame_index = 7")
    rows = Rows(tables.current(store, "frame_features"))
    keys = rows.keys(["feature"])
    wanted = sorted((set(range(30)) | {40}) - {0, 4, 7, 11})
    assert frames_of(keys) == wanted
    row_of = dict(zip(frames_of(keys), keys["row"].to_pylist(), strict=True))
    for frame in wanted:
        one = rows.take(np.array([row_of[frame]]), ["frame_index", "feature"])
        assert frames_of(one) == [frame]
        assert one["feature"].to_pylist() == [[frame, 9 if frame in (3, 5, 40) else 0]]
    # In the order asked for, and as often as asked for.
    some = [29, 1, 40, 29]
    assert frames_of(rows.take(np.array([row_of[f] for f in some]), ["frame_index"])) == some


def test_a_reader_drops_its_handle_when_it_is_sent_to_a_worker(store):
    rows = Rows(tables.upsert(store, "frame_features", features([1, 2])))
    rows.keys()
    assert rows._view is not None
    sent = pickle.loads(pickle.dumps(rows))
    assert sent._view is None
    assert sent.ref == rows.ref
    assert frames_of(sent.keys()) == [1, 2]


def test_a_table_of_other_columns_is_refused_where_it_is_opened(store):
    other = pa.table({"tracklet_id": ["t"], "frame": [1]})
    lance.write_dataset(other, tables.table_uri(store, "frame_features"), mode="overwrite")
    with pytest.raises(SchemaMismatchError, match=r"frame_features\.lance version 2: found schema \? with .*'frame'\]"):
        tables.current(store, "frame_features")
    with pytest.raises(SchemaMismatchError, match=r"build into a new store"):
        tables.prepare_store(store)
    with pytest.raises(SchemaMismatchError, match=r"found schema \?"):
        tables.upsert(store, "frame_features", features([1]))


def test_a_table_of_a_newer_schema_version_is_refused(store):
    schema = TABLES["frame_features"].with_metadata({"csip.schema_version": "9"})
    lance.write_dataset(schema.empty_table(), tables.table_uri(store, "frame_features"), mode="overwrite")
    with pytest.raises(
        SchemaMismatchError, match=r"written by a newer CSIP \(schema 9\), this one knows up to 3: upgrade"
    ):
        tables.current(store, "frame_features")


def test_a_version_that_is_gone_is_named(store):
    ref = tables.current(store, "frame_features")
    gone = TableRef(ref.uri, 99)
    assert tables.exists(ref)
    assert not tables.exists(gone)
    with pytest.raises(StoreError, match=r"frame_features\.lance: version 99 cannot be opened .*build the snapshot"):
        tables.read(gone)
    with pytest.raises(StoreError, match="version 99"):
        Rows(gone).keys()


def test_a_store_without_the_table_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"empty: found no table 'crops' there.*check --store"):
        tables.current(str(tmp_path / "empty"), "crops")


def test_a_damaged_table_is_named(store, tmp_path):
    for manifest in (tmp_path / "store" / "runs.lance" / "_versions").iterdir():
        manifest.write_bytes(b"nonsense")
    with pytest.raises(StoreError, match=r"runs\.lance: cannot be opened .*Restore it"):
        tables.current(str(tmp_path / "store"), "runs")


def test_a_store_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(StoreError, match=rf"Store {path}: cannot be written .*name another with --store"):
            tables.prepare_store(str(path))


def test_a_snapshot_opens_by_name_with_what_was_published(store):
    versions = {"crops": tables.current(store, "crops").version, "splits": tables.current(store, "splits").version}
    snapshot = Snapshot("street", store, versions, "d" * 64)
    tables.publish(snapshot, config={"a": 1}, counts={"people": 3}, videos=["b", "a"])
    assert tables.open_snapshot(store, "street") == snapshot
    row = tables.snapshot_row(store, "street")
    assert (row["config"], row["counts"], row["videos"]) == ({"a": 1}, {"people": 3}, ["a", "b"])
    assert tables.pinned(snapshot, "crops") == tables.current(store, "crops")
    with pytest.raises(StoreError, match=r"Snapshot street: names no version of runs, only of \['crops', 'splits'\]"):
        tables.pinned(snapshot, "runs")


def test_publishing_tags_the_versions_against_clean_up_and_moves_the_tags_when_it_is_done_again(store):
    for frames in ([1], [2]):
        ref = tables.upsert(store, "frame_features", features(frames))
        snapshot = Snapshot("street", store, {"frame_features": ref.version}, str(ref.version))
        tables.publish(snapshot, config={}, counts={}, videos=[])
        tags = lance.dataset(ref.uri).tags.list()
        assert tags["snapshot-street"]["version"] == ref.version
    assert tables.open_snapshot(store, "street") == snapshot
    assert tables.count(tables.current(store, "snapshots")) == 1


def test_an_unknown_snapshot_is_answered_with_those_there_are(store):
    with pytest.raises(StoreError, match=r"found no snapshot 'street'; there are: none"):
        tables.open_snapshot(store, "street")
    for name in ("b", "a"):
        tables.publish(Snapshot(name, store, {}, "d"), config={}, counts={}, videos=[])
    with pytest.raises(StoreError, match=r"found no snapshot 'street'; there are: a, b\."):
        tables.open_snapshot(store, "street")


def test_the_newest_run_of_a_key_is_found(store):
    for run_id, key, started in (("c", "k", "2026-01-02"), ("a", "k", "2026-01-03"), ("b", "k", "2026-01-01")):
        tables.record_run(store, run_record(run_id, key, started))
    tables.record_run(store, run_record("d", "other", "2026-01-09"))
    assert tables.find_run(store, "k").run_id == "a"
    assert tables.find_run(store, "none") is None
    assert [run.run_id for run in tables.find_runs(store, "true")] == ["b", "c", "a", "d"]


def test_a_run_comes_back_as_it_was_recorded(store):
    nested = {"reference": {"uri": "x", "version": 3}, "list": [1, 2.5, None, "o'clock"]}
    run = run_record("r", "k'ey", "2026-01-01", inputs=nested, outputs=[nested], counts={"frames": 3})
    tables.record_run(store, run)
    assert tables.find_run(store, "k'ey") == run
    # JSON in the table, for readers that are not ours.
    row = tables.read(tables.current(store, "runs")).to_pylist()[0]
    assert json.loads(row["inputs"]) == nested


@pytest.mark.parametrize("name", ["o'clock", "''", 'say "x"', "50%", "a\\b", "x; --", "ünï"])
def test_a_name_with_quotes_finds_its_own_rows_only(store, name):
    tables.upsert(store, "frame_features", features([1], tracklet=name))
    ref = tables.upsert(store, "frame_features", features([2], tracklet="other"))
    got = tables.read(ref, [], f"tracklet_id = {tables.quote(name)}")
    assert got["tracklet_id"].to_pylist() == [name]


def cut(column):
    """The same values as several chunks whose arrays begin and end inside larger ones."""
    padded = pa.concat_arrays([column[:1], column, column[-1:]])
    inner = padded.slice(1, len(column))
    return pa.chunked_array([inner.slice(0, 1), inner.slice(1, 0), inner.slice(1)])


@pytest.mark.parametrize("arrange", [lambda c: pa.chunked_array([c]), cut], ids=["whole", "cut"])
def test_keypoints_boxes_and_vectors_come_back_as_they_went_in(arrange):
    rng = np.random.default_rng(0)
    keypoints, boxes, vectors = (rng.normal(size=s).astype(np.float32) for s in ((5, 17, 3), (5, 4), (5, 6)))
    np.testing.assert_array_equal(tables.keypoints_array(arrange(tables.keypoints_column(keypoints)), 17), keypoints)
    np.testing.assert_array_equal(tables.boxes_array(arrange(tables.boxes_column(boxes))), boxes)
    np.testing.assert_array_equal(tables.vectors_array(arrange(tables.vectors_column(vectors))), vectors)


def test_columns_have_the_types_of_the_schemas():
    assert tables.keypoints_column(np.zeros((2, 17, 3), np.float32)).type == TABLES["skeletons"].field("keypoints").type
    assert tables.boxes_column(np.zeros((2, 4), np.float32)).type == TABLES["crops"].field("box").type
    assert tables.vectors_column(np.zeros((2, 5), np.float32)).type == TABLES["embeddings"].field("feature").type
    assert tables.keypoints_column(np.zeros((2, 17, 3), np.float32)).to_pylist()[1][16] == [0, 0, 0]


@pytest.mark.parametrize("chunks", [0, 1])
def test_empty_columns_come_back_empty(chunks):
    def empty(column):
        return pa.chunked_array([column[:0]] * chunks, column.type)

    keypoints = empty(tables.keypoints_column(np.zeros((1, 17, 3), np.float32)))
    assert tables.keypoints_array(keypoints, 17).shape == (0, 17, 3)
    assert tables.boxes_array(empty(tables.boxes_column(np.zeros((1, 4), np.float32)))).shape == (0, 4)
    assert len(tables.vectors_array(empty(tables.vectors_column(np.zeros((1, 4), np.float32))))) == 0
    for column in (tables.keypoints_column(np.zeros((0, 17, 3), np.float32)),):
        assert len(column) == 0


def test_rows_of_other_lengths_are_refused_not_reshaped():
    two = [tables.keypoints_column(np.zeros((1, j, 3), np.float32)) for j in (17, 20)]
    with pytest.raises(SchemaMismatchError, match=r"keypoints: found rows of \[17, 20\] joints, expected 17"):
        tables.keypoints_array(pa.chunked_array(two), 17)
    with pytest.raises(SchemaMismatchError, match=r"found rows of \[20\] joints, expected 17"):
        tables.keypoints_array(pa.chunked_array(two[1:]), 17)
    # Two and four numbers are six, which two rows of three would swallow.
    ragged = pa.array([[1.0, 2.0], [3.0, 4.0, 5.0, 6.0]], pa.list_(pa.float32()))
    with pytest.raises(SchemaMismatchError, match=r"vectors: found lists of \[2, 4\] numbers, expected one length"):
        tables.vectors_array(pa.chunked_array([ragged]))


def test_views_of_a_binary_column_are_its_values():
    values = [b"one", b"", b"three", b"\xff\x00"]
    column = pa.chunked_array([pa.array(values, pa.binary())[1:], pa.array(values[:2], pa.binary())])
    assert tables.binary_views(column) == [b"", b"three", b"\xff\x00", b"one", b""]
    assert tables.binary_views(pa.chunked_array([], pa.binary())) == []


def test_what_is_said_of_a_table_stands_in_its_metadata_at_that_version(store):
    before = tables.current(store, "skeletons")
    tables.describe(store, "skeletons", {"csip.extractor.a": "one"})
    tables.describe(store, "skeletons", {"csip.extractor.b": "two"})
    after = tables.current(store, "skeletons")
    assert tables.described(after) == {"csip.extractor.a": "one", "csip.extractor.b": "two"}
    assert tables.described(before) == {}
    # Said again, it makes no version.
    tables.describe(store, "skeletons", {"csip.extractor.a": "one"})
    assert tables.current(store, "skeletons") == after


def test_several_writers_may_say_things_of_one_table(store):
    # Lance refuses the second of two such commits that began from one version.
    def say(number):
        for i in range(4):
            tables.describe(store, "skeletons", {f"csip.{number}.{i}": "x"})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(say, range(4)))
    assert len(tables.described(tables.current(store, "skeletons"))) == 16
