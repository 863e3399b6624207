"""Whatever a store lives through, a gc keeps what is named and gives back the rest."""

import dataclasses
import json

import lance
import numpy as np
import pytest

from csip import tables
from csip.maintenance.collect import collect
from csip.maintenance.verify import verify
from csip.tables import TableRef, table_uri
from tests.csip.maintenance.stores import (
    NOW,
    PINS,
    change,
    publish,
    put,
    rows_of,
    run_record,
    texts,
)


class Years:
    """A store's life as a seed has it, and in plain rows what each snapshot, tag and run must still show."""

    def __init__(self, store, seed):
        self.store, self.dice, self.count = store, np.random.default_rng(seed), 0
        self.snapshots = {"whole": self.now()}
        self.tags, self.runs = {}, {}

    def now(self):
        return {table: rows_of(self.store, table) for table in PINS}

    def next(self):
        self.count += 1
        return self.count

    def somebody(self):
        rows = rows_of(self.store, "tracklets")
        return rows[self.dice.integers(len(rows))]["tracklet_id"]

    def add(self):
        """A third tracklet and more, of as many frames as the dice say."""
        name, frames = f"t{self.next()}", int(self.dice.integers(1, 9))
        old = {table: rows_of(self.store, table, "tracklet_id = 'b'") for table in ("tracklets", "crops", "skeletons")}
        for table in ("crops", "skeletons"):
            put(self.store, table, [old[table][0] | {"tracklet_id": name, "frame_index": f} for f in range(frames)])
        part = {"first_frame": 0, "last_frame": frames - 1, "num_frames": frames}
        put(self.store, "tracklets", [old["tracklets"][0] | part | {"tracklet_id": name}])

    def write_again(self):
        change(self.store, "crops", f"tracklet_id = '{self.somebody()}'", score=float(self.dice.random()))

    def begin(self):
        """Rows of a tracklet that nobody finishes."""
        (crop,) = rows_of(self.store, "crops", "tracklet_id = 'b' AND frame_index = 0")
        put(self.store, "crops", [crop | {"tracklet_id": f"unfinished-{self.next()}"}])

    def publish(self):
        name = f"s{self.dice.integers(4)}"
        publish(self.store, name)
        self.snapshots[name] = self.now()

    def tag(self):
        ref = tables.current(self.store, "crops")
        name = f"mine-{self.next()}"
        lance.dataset(ref.uri).tags.create(name, ref.version)
        self.tags[name] = tables.read(ref).to_pylist()

    def evaluate(self):
        run_id = f"r{self.next()}"
        score = {"protocol": "p", "split": "0", "encoder": "e", "name": "mean_ap", "value": 1.0, "described": ""}
        put(self.store, "results", [score | {"run_id": run_id, "encoder_digest": "", "checkpoint_sha": ""}])
        ref = tables.current(self.store, "results")
        tables.record_run(self.store, run_record(run_id, "evaluate", [dataclasses.asdict(ref)]))
        self.runs[run_id] = (ref, tables.read(ref).to_pylist())

    def drop(self):
        name = str(self.dice.choice(sorted(self.snapshots)))
        if len(self.snapshots) > 1:
            del self.snapshots[name]
            collect(self.store, dry_run=False, drop=[name], older_than=NOW)

    def collect(self):
        collect(self.store, dry_run=False, older_than=NOW)

    def check(self):
        rows = {row["name"]: json.loads(row["tables"]) for row in rows_of(self.store, "snapshots")}
        assert rows.keys() == self.snapshots.keys()
        for name, pins in rows.items():
            for table, version in pins.items():
                found = tables.read(TableRef(table_uri(self.store, table), version)).to_pylist()
                assert found == self.snapshots[name][table], (name, table)
        for name, expected in self.tags.items():
            version = tables.list_tags(self.store, "crops")[name][0]
            assert tables.read(TableRef(table_uri(self.store, "crops"), version)).to_pylist() == expected
        for ref, expected in self.runs.values():
            assert tables.read(ref).to_pylist() == expected


@pytest.mark.parametrize("seed", [0, *(pytest.param(one, marks=pytest.mark.slow) for one in range(1, 16))])
def test_whatever_a_store_lives_through_a_gc_keeps_what_is_named_and_gives_back_the_rest(store, seed):
    life = Years(store, seed)
    steps = [life.add, life.write_again, life.begin, life.publish, life.tag, life.evaluate, life.drop, life.collect]
    share = np.array([4, 4, 2, 3, 1, 1, 1, 2]) / 18
    for number in life.dice.choice(len(steps), 40, p=share):
        steps[number]()
        if steps[number] in (life.drop, life.collect):
            life.check()
    # Rows go, then the versions that had them, then the small files are merged, then the versions before that.
    done = [collect(store, dry_run=False, older_than=NOW) for _ in range(5)]
    assert (done[-1].tables, done[-1].bytes) == ({}, 0)
    life.check()
    assert texts(verify(store)) == []
    # Nothing is left that nothing names: no row of an unfinished tracklet, and no version but those that are named.
    assert [r for r in rows_of(store, "crops") if r["tracklet_id"].startswith("unfinished")] == []
    pinned = {json.loads(row["tables"])["crops"] for row in rows_of(store, "snapshots")}
    tagged = {version for version, _ in tables.list_tags(store, "crops").values()}
    assert set(tables.list_versions(store, "crops")) == pinned | tagged | {tables.current(store, "crops").version}
