"""What a store publishes, and which rows are a snapshot's own."""

import shutil
from pathlib import Path

import lance

from csip import tables
from csip.maintenance.snapshots import list_snapshots
from csip.tables import table_uri
from tests.csip.maintenance.stores import publish, put, rows_of


def test_the_list_of_snapshots_says_what_each_one_is(store, imported):
    (crop,) = rows_of(store, "crops", "tracklet_id = 'a' AND frame_index = 12")
    put(store, "crops", [crop | {"tracklet_id": "c"}])
    publish(store, "late", counts={"tracklets": 2})
    tables.clean_up(store, "videos", [], dry_run=False)
    (one, two), together = list_snapshots(store)
    assert (one.name, two.name) == ("whole", "late")
    assert one.protocols == {"tiny": 1}
    assert two.counts == {"tracklets": 2}
    files = {
        snapshot.name: {
            file.path
            for name, version in snapshot.tables.items()
            for fragment in lance.dataset(table_uri(store, name), version).get_fragments()
            for file in fragment.data_files()
        }
        for snapshot in (one, two)
    }
    on_disk = lambda names: sum(path.stat().st_size for path in Path(store).rglob("*.lance") if path.name in names)  # noqa: E731
    assert one.bytes == on_disk(files["whole"])
    assert two.bytes == on_disk(files["late"])
    # The late one has one more crop, in a file of its own; all else is shared.
    assert (one.own_bytes, two.own_bytes) == (0, on_disk(files["late"] - files["whole"]))
    assert 0 < two.own_bytes < two.bytes == together
    ((walkers,), alone) = list_snapshots(imported.store)
    assert walkers.bytes == walkers.own_bytes == alone
    assert walkers.protocols == {"walkers": 1}
    shutil.rmtree(Path(store) / "splits.lance" / "_versions")
    assert all("splits" in one.problem for one in list_snapshots(store)[0])
