"""Small stores that tests of `csip.maintenance` change by hand, and what is to be seen of them."""

import json
from datetime import timedelta

import lance

from csip import tables
from csip.tables import RunRecord, TableRef, table_uri
from csip.types import Snapshot

NOW = timedelta(0)
PINS = ("videos", "tracklets", "crops", "skeletons", "splits")


def rows_of(store, table, where=None):
    return tables.read(tables.current(store, table), where=where).to_pylist()


def put(store, table, rows):
    tables.upsert(store, table, tables.from_rows(table, rows))


def change(store, table, where, **values):
    put(store, table, [row | values for row in rows_of(store, table, where)])


def publish(store, name="whole", counts=None, pins=PINS, config=None, **versions):
    """Publish what the tables hold now."""
    now = {table: tables.current(store, table).version for table in pins} | versions
    snapshot = Snapshot(name, store, now, digest="5" * 64)
    videos = ["0" * 64] if "videos" in now else []
    tables.publish(snapshot, config=config or {}, counts=counts or {}, videos=videos)
    return snapshot


def run_record(run_id="r1", stage="stage2", outputs=None, inputs=None, **changes):
    values = {"key": run_id, "inputs": inputs or {}, "outputs": outputs, "config": {}, "counts": {}, "weights": {}}
    rest = {"source_digest": "s", "git_commit": "", "device": "cpu", "seconds": 1.0, "started": tables.now()}
    return RunRecord(run_id=run_id, stage=stage, **(values | rest | changes))


def texts(found, kind="fault"):
    return [f"{one.snapshot} {one.where}: {one.text}" for one in found if one.kind == kind]


def everything(store):
    """All that snapshots, tags and runs name, row for row."""
    out = {}
    for row in rows_of(store, "snapshots"):
        for table, version in json.loads(row["tables"]).items():
            out[row["name"], table] = tables.read(TableRef(table_uri(store, table), version)).to_pylist()
    for table in ("results", "crops"):
        for tag, (version, _) in tables.list_tags(store, table).items():
            out[tag, table] = tables.read(TableRef(table_uri(store, table), version)).to_pylist()
    for run in tables.find_runs(store, "true"):
        for ref in run.outputs if isinstance(run.outputs, list) else []:
            out[run.run_id] = tables.read(TableRef(**ref)).to_pylist()
    return out


def repeat_a_row(store, table):
    """Append a row that is there already; `upsert` would not."""
    dataset = lance.dataset(table_uri(store, table))
    lance.write_dataset(dataset.to_table(limit=1).cast(dataset.schema), dataset, mode="append")
