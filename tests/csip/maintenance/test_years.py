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
    SEEN,
    change,
    done,
    extract,
    film,
    names,
    put,
    rows_of,
    run_record,
    settings,
    show,
    texts,
    there,
)


class Years:
    """A store's life as a seed has it, and in plain rows what each snapshot, tag and run must still show."""

    def __init__(self, store, seed):
        self.store, self.dice, self.count = store, np.random.default_rng(seed), 0
        self.snapshots, self.tags, self.runs = {}, {}, {}
        tables.prepare_store(store)
        self.build()
        self.publish()

    def next(self):
        self.count += 1
        return self.count

    def build(self):
        """A film under some settings, unless the store says that it has it: then it must have it all."""
        number = int(self.dice.integers(4))
        pair = film(number), settings(1 + int(self.dice.integers(2)))
        if pair in done(self.store):
            assert pair in there(self.store)
        else:
            extract(self.store, *pair, people=1 + int(self.dice.integers(3)), segments=1 + number % 2)

    def begin(self):
        """A film that nobody finishes, and a crop of which nobody says anything."""
        extract(self.store, film(100 + self.next()), settings(1), whole=False)
        (crop, *_) = rows_of(self.store, "crops")
        put(self.store, "crops", [crop | {"tracklet_id": f"unfinished-{self.next()}"}])

    def write_again(self):
        rows = rows_of(self.store, "tracklets")
        name = rows[self.dice.integers(len(rows))]["tracklet_id"]
        change(self.store, "crops", f"tracklet_id = '{name}'", score=float(0.1 + self.dice.random()))

    def publish(self):
        pairs = sorted(done(self.store))
        track = pairs[self.dice.integers(len(pairs))][1]
        shas = [sha for sha, one in pairs if one == track and self.dice.random() < 0.7]
        shas = shas or [next(sha for sha, one in pairs if one == track)]
        name = f"s{self.dice.integers(4)}"
        show(self.store, name, shas, track)
        self.snapshots[name] = {(sha, track) for sha in shas}, {}
        self.snapshots[name][1].update(self.shown(name))

    def shown(self, name):
        """A snapshot's own rows, as its versions have them."""
        pairs, _ = self.snapshots[name]
        own = {one for sha, track in pairs for one in names(sha, track, 3)}
        snapshot = tables.open_snapshot(self.store, name)
        found = {table: tables.read(tables.pinned(snapshot, table)).to_pylist() for table in SEEN}
        shas = {sha for sha, _ in pairs}
        return {
            table: [row for row in rows if row.get("tracklet_id") in own or row.get("video_sha") in shas]
            for table, rows in found.items()
            if table != "tracklets"
        } | {"tracklets": [row for row in found["tracklets"] if row["tracklet_id"] in own]}

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
        assert {row["name"] for row in rows_of(self.store, "snapshots")} == self.snapshots.keys()
        for name, (_, expected) in self.snapshots.items():
            assert self.shown(name) == expected, name
        for name, expected in self.tags.items():
            version = tables.list_tags(self.store, "crops")[name][0]
            assert tables.read(TableRef(table_uri(self.store, "crops"), version)).to_pylist() == expected
        for ref, expected in self.runs.values():
            assert tables.read(ref).to_pylist() == expected
        assert done(self.store) <= there(self.store)
        assert texts(verify(self.store)) == []


@pytest.mark.parametrize("seed", [0, *(pytest.param(one, marks=pytest.mark.slow) for one in range(1, 16))])
def test_whatever_a_store_lives_through_a_gc_keeps_what_is_named_and_gives_back_the_rest(tmp_path, seed):
    store = str(tmp_path / "store")
    life = Years(store, seed)
    steps = [life.build, life.write_again, life.begin, life.publish, life.tag, life.evaluate, life.drop, life.collect]
    share = np.array([4, 2, 2, 4, 1, 1, 2, 2]) / 18
    for number in life.dice.choice(len(steps), 30, p=share):
        steps[number]()
        if steps[number] in (life.drop, life.collect):
            life.check()
    # Rows go, snapshots leave the versions that had them, then these go, and the small files are merged.
    told = [collect(store, dry_run=False, older_than=NOW) for _ in range(6)]
    assert (told[-1].tables, told[-1].bytes, told[-1].moved) == ({}, 0, ())
    life.check()
    # Nothing is left that nothing names: no unfinished tracklet, no extraction that no snapshot shows, and no version
    # but those that are named.
    shown = set().union(*(pairs for pairs, _ in life.snapshots.values()))
    assert done(store) == there(store) == shown
    assert {row["tracklet_id"] for row in rows_of(store, "crops")} <= {n for pair in shown for n in names(*pair, 3)}
    assert done(store, "track_segment") <= shown
    pinned = {json.loads(row["tables"])["crops"] for row in rows_of(store, "snapshots")}
    tagged = {version for version, _ in tables.list_tags(store, "crops").values()}
    assert set(tables.list_versions(store, "crops")) == pinned | tagged | {tables.current(store, "crops").version}
