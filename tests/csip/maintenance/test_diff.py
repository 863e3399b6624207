"""What tells two snapshots apart."""

import json

from csip import tables
from csip.maintenance.diff import diff
from csip.tables import TableRef, table_uri
from tests.csip.maintenance.stores import change, publish, put, rows_of


def test_two_snapshots_are_told_apart_row_by_row(store):
    tables.delete(store, "crops", "tracklet_id = 'a' AND frame_index = 12")
    change(store, "crops", "tracklet_id = 'b' AND frame_index = 3", score=0.5)
    change(store, "crops", "tracklet_id = 'b' AND frame_index = 4", box=[1.0, 2.0, 3.0, 4.0])
    change(store, "crops", "tracklet_id = 'b' AND frame_index = 0", image=b"other")  # pictures are not read
    change(store, "tracklets", "tracklet_id = 'b'", pid=None)
    change(store, "splits", "tracklet_id = 'a'", role="query")
    (row,) = rows_of(store, "splits", "first_frame = 3")
    put(store, "splits", [row | {"split": "1"}])
    put(store, "splits", [r | {"dataset": "other"} for r in rows_of(store, "splits")])
    publish(store, "other", counts={"crops": 11, "dropped": {"ghost": 1}})
    found = diff(store, "whole", "other")
    crops = found.tables["crops"]
    assert (crops.rows, crops.only_a, crops.only_b, crops.changed) == ((12, 11), 1, 0, 2)
    assert crops.names == {"only_a": ("a 12",), "only_b": (), "changed": ("b 3", "b 4")}
    assert "image" not in crops.compared
    assert (found.tables["tracklets"].changed, found.tables["tracklets"].names["changed"]) == (1, ("b",))
    splits = found.tables["splits"]
    assert (splits.rows, splits.only_a, splits.only_b, splits.changed) == ((3, 4), 0, 1, 1)
    assert splits.names["only_b"] == ("tiny 1 b 3",)
    assert found.roles == {"tiny, 0, query": (0, 1), "tiny, 0, train": (1, 0), "tiny, 1, gallery": (0, 1)}
    assert found.counts == {"crops": (None, 11), "dropped.ghost": (None, 1)}
    back = diff(store, "other", "whole")
    assert back.tables["crops"].names["only_b"] == ("a 12",)
    same = diff(store, "whole", "whole")
    assert [same.settings, same.counts, same.roles] == [{}, {}, {}]
    assert all(t.only_a + t.only_b + t.changed == 0 and t.rows[0] == t.rows[1] for t in same.tables.values())


def test_a_diff_names_the_settings_and_the_first_five_rows(store):
    row = rows_of(store, "snapshots")[0]
    put(store, "snapshots", [row | {"config": json.dumps({"track": {"min_frames": 5}, "dataset": "x"})}])
    tables.delete(store, "crops", "true")
    (old,) = (TableRef(table_uri(store, "crops"), json.loads(row["tables"])["crops"]),)
    many = [r | {"frame_index": f} for r in tables.read(old).to_pylist()[:1] for f in range(100, 130)]
    put(store, "crops", many)
    put(store, "splits", [r | {"dataset": "other"} for r in rows_of(store, "splits")])
    publish(store, "other")
    found = diff(store, "whole", "other")
    assert found.settings == {"dataset": ("x", None), "track.min_frames": (5, None)}
    assert found.tables["crops"].only_b == 30
    assert found.tables["crops"].names["only_b"] == tuple(f"a {frame}" for frame in range(100, 105))


def test_rows_of_other_data_sets_in_the_same_tables_do_not_count(store, tiny):
    before = diff(store, "whole", "whole").tables
    tiny.publish(store, (tiny.Walk("z", 9, 0, "train", (0, 1)),), "more")
    found = diff(store, "whole", "more")
    assert found.tables["crops"].rows == (before["crops"].rows[0], 2)
    assert found.tables["crops"].names["only_b"] == ("z 0", "z 1")
