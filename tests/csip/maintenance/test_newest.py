"""The newest versions, pinned or not: their files are there, and their keys are keys, none of them twice."""

import shutil
from pathlib import Path

import lance
import pyarrow as pa
import pytest

from csip import tables
from csip.errors import SchemaMismatchError
from csip.maintenance.verify import verify
from csip.tables import table_uri
from storage_schemas import TABLES
from storage_schemas.fields import key_names
from tests.csip.maintenance.stores import put, repeat_a_row, rows_of, run_record, texts

JSON = ("tables", "config", "counts", "inputs", "outputs", "weights")


def value(name, kind):
    if pa.types.is_string(kind):
        return "{}" if name in JSON else "[]" if name == "videos" else "x"
    if pa.types.is_fixed_size_list(kind):
        return [0.0] * kind.list_size
    if pa.types.is_boolean(kind):
        return False
    return [] if pa.types.is_list(kind) else b"" if pa.types.is_binary(kind) else 0


def add_a_row(store, table, **values):
    """Write a row of a key that nobody has, in a file of its own, and give that file."""
    data = Path(table_uri(store, table), "data")
    before = set(data.glob("*")) if data.exists() else set()
    put(store, table, [{field.name: value(field.name, field.type) for field in TABLES[table]} | values])
    (file,) = set(data.glob("*")) - before
    return file


def of(table, found):
    return [one.text for one in found if (one.kind, one.snapshot, one.where) == ("fault", "", table)]


@pytest.mark.parametrize("table", TABLES)
def test_a_file_that_the_newest_version_of_any_table_has_lost_is_found(store, table):
    file = add_a_row(store, table)
    assert [text for text in of(table, verify(store)) if "data file" in text] == []
    whole = file.read_bytes()
    for held, told in (
        (whole[:-100], f"found {len(whole) - 100} bytes, expected {len(whole)}"),
        (b"", f"found 0 bytes, expected {len(whole)}"),
        (bytes(len(whole)), "does not appear to be a Lance file"),
        (None, "No such file"),
    ):
        file.unlink()
        if held is not None:
            file.write_bytes(held)
        (text,) = of(table, verify(store))
        assert text.startswith(f"1 data files cannot be read: {file.name} (")
        assert told in text
    if table not in ("snapshots", "runs"):
        assert verify(store, ["whole"]) == [], "a snapshot does not need what came later"


@pytest.mark.parametrize("table", TABLES)
def test_a_key_that_stands_twice_in_the_newest_version_of_any_table_is_found(store, table):
    add_a_row(store, table)
    assert [text for text in of(table, verify(store)) if "keys" in text] == []
    for _ in range(2):
        repeat_a_row(store, table)
    assert "1 keys stand in several rows: " in " ".join(of(table, verify(store)))


def test_a_key_is_named_by_all_its_columns(store):
    for last in (3, 2**40):
        add_a_row(store, "embeddings", encoder_digest="e" * 64, first_frame=7, last_frame=last)
    assert of("embeddings", verify(store)) == ["1 tracklets that are not there have embeddings: x of eeeeeeeeeeee."]
    dataset = lance.dataset(table_uri(store, "embeddings"))
    lance.write_dataset(dataset.to_table(filter="last_frame = 3").cast(dataset.schema), dataset, mode="append")
    assert "1 keys stand in several rows: eeeeeeeeeeee x 3 first_frame 7." in of("embeddings", verify(store))


@pytest.mark.parametrize(
    ("table", "values", "told"),
    [
        ("videos", {"video_sha": "9" * 64}, "999999999999"),
        ("results", {"protocol": "p", "split": "7"}, "x p 7 x x"),
        ("detections", {"frame_index": 5, "n": 2, "detect_digest": "8" * 64}, "x 888888888888 2 frame_index 5"),
    ],
)
def test_a_key_is_named_whatever_it_is_made_of(store, table, values, told):
    add_a_row(store, table, **values)
    before = rows_of(store, table)
    dataset = lance.dataset(table_uri(store, table))
    where = " AND ".join(f"{name} = {v!r}" for name, v in values.items())
    again = dataset.to_table(filter=where)
    assert len(again) == 1 <= len(before)
    lance.write_dataset(again.cast(dataset.schema), dataset, mode="append")
    assert f"1 keys stand in several rows: {told}." in of(table, verify(store))


def remake(store, table, change):
    """Make a table anew, with its rows, under a schema whose fields `change` has changed."""
    uri, rows = table_uri(store, table), rows_of(store, table)
    fields = [change(field) for field in TABLES[table]]
    shutil.rmtree(uri)
    schema = pa.schema(fields, metadata=TABLES[table].metadata)
    lance.write_dataset(pa.Table.from_pylist(rows, schema=schema), uri, enable_stable_row_ids=True)


CHANGES = {
    "no keys": (
        lambda field: field.remove_metadata(),
        r"found tracklet_id \(no key, expected key 1\), frame_index \(no key, expected key 2\), encoder_digest \(no ke",
    ),
    "may be null": (
        lambda field: field.with_nullable(field.name == "feature"),
        r"found feature \(no key, may be null, expected no key\)\. Two writers at once could write one key twice",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_table_whose_keys_are_none_to_lance_is_read_and_found_and_never_written(store, change):
    add_a_row(store, "frame_features", tracklet_id="a", frame_index=1)
    add_a_row(store, "frame_features", tracklet_id="a", frame_index=0)
    before = rows_of(store, "frame_features")
    made, told = CHANGES[change]
    remake(store, "frame_features", made)
    assert rows_of(store, "frame_features") == before
    assert tables.read(tables.current(store, "frame_features"), [])["frame_index"].to_pylist() == [0, 1]
    (text,) = of("frame_features", verify(store))
    with pytest.raises(SchemaMismatchError, match=told) as caught:
        put(store, "frame_features", before)
    assert text == str(caught.value)
    for write in (
        lambda: tables.prepare_store(store),
        lambda: tables.delete(store, "frame_features", "true"),
        lambda: tables.describe(store, "frame_features", {"a": "b"}),
        lambda: tables.FragmentWriter(store, "frame_features"),
    ):
        with pytest.raises(SchemaMismatchError, match=told):
            write()


def test_rows_without_a_key_are_counted(store):
    add_a_row(store, "metrics", run_id="r", step=1)
    remake(store, "metrics", lambda field: field.remove_metadata().with_nullable(True))
    uri = table_uri(store, "metrics")
    keyless = dict.fromkeys(TABLES["metrics"].names) | {"run_id": "r"}
    schema = lance.dataset(uri).schema
    lance.write_dataset(pa.Table.from_pylist([keyless] * 2, schema=schema), uri, mode="append")
    found = of("metrics", verify(store))
    assert key_names(TABLES["metrics"]) == ["run_id", "step", "name"]
    assert found[1:] == ["2 rows have no key: expected run_id, step, name in all of them."]


def test_a_version_that_a_run_left_is_found_to_lack_a_file(store):
    file = add_a_row(store, "frame_features", tracklet_id="a")
    ref = tables.current(store, "frame_features")
    left = {"uri": ref.uri, "version": ref.version}
    tables.record_run(store, run_record("f1", "cache_features", left))
    tables.delete(store, "frame_features", "true")
    assert texts(verify(store)) == []
    file.unlink()
    (text,) = texts(verify(store))
    assert f" run f1 (cache_features): frame_features@{ref.version}, which it left: 1 data files cannot be" in text


def test_features_of_tracklets_that_are_not_there_are_a_fault_unless_a_snapshot_of_theirs_was_dropped(store):
    add_a_row(store, "frame_features", tracklet_id="a", frame_index=12)
    assert texts(verify(store)) == []
    for frame in (0, 1):
        add_a_row(store, "frame_features", tracklet_id="nobody", frame_index=frame)
    tables.delete(store, "tracklets", "tracklet_id = 'a'")  # the snapshot has it still
    assert texts(verify(store)) == [" frame_features: 1 tracklets that are not there have 2 rows: nobody."]
    snapshot = {"name": "gone", "tables": {}, "digest": "d"}
    tables.record_run(store, run_record("f1", "cache_features", {}, {"snapshot": snapshot}))
    found = verify(store)
    assert texts(found) == []
    assert any("frame_features: 1 tracklets that are not there have 2 rows" in t for t in texts(found, "leftover"))
