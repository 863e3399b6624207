"""What a store publishes, and which rows are a snapshot's own."""

import dataclasses
import shutil
from pathlib import Path

import lance

from csip import tables
from csip.maintenance.diff import diff
from csip.maintenance.snapshots import extractions, generations, list_snapshots, published
from csip.maintenance.verify import verify
from csip.tables import table_uri
from tests.csip.maintenance.stores import PINS, publish, put, rows_of, run_record, texts


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


TRACK, OTHER = "d" * 64, "e" * 64  # the tiny store's tracklets are of the first


def track(store, track_digest, detect_digest, **changes):
    """Record a finished extraction of the snapshot's video; all have the same settings."""
    outputs = {"video_sha": "0" * 64, "detect_digest": detect_digest, "track_digest": track_digest}
    counts = {"tracklets": 1, "crops": 7, "detections": 0}
    record = run_record(f"run-{track_digest[0]}", "track_video", outputs, config={"track": {"x": 1}}, counts=counts)
    tables.record_run(store, dataclasses.replace(record, **changes))


def test_an_extraction_is_the_snapshots_by_its_digests_and_not_by_its_settings(store):
    # Other weights came to lie at the same path, or another EXTRACT_VERSION ran: the same settings, later, other rows.
    track(store, TRACK, "1" * 64)
    track(store, OTHER, "2" * 64, counts={"tracklets": 9, "crops": 99, "detections": 999})
    settings = {"track": {"x": 1}}
    recorded = settings | {"digests": {"detect": "1" * 64, "track": TRACK}}
    publish(store, "mine", {"tracklets": 1, "crops": 7}, (*PINS, "detections"), recorded)
    row, runs = published(store)["mine"], tables.find_runs(store, "true")
    assert {sha: run.run_id for sha, run in extractions(row, runs).items()} == {"0" * 64: "run-d"}
    assert generations(row, runs) == {row["digest"], TRACK}
    assert generations(row, []) == {row["digest"], TRACK}, "whatever runs say"
    assert texts(verify(store, ["mine"])) == []
    put(store, "splits", [part | {"dataset": "mine"} for part in rows_of(store, "splits")])
    publish(store, "older", pins=(*PINS, "detections"), config=settings)
    assert extractions(published(store)["older"], runs)["0" * 64].run_id == "run-e", "settings are all there is"
    assert diff(store, "older", "mine").settings == {}, "what one of them did not record tells nothing"
    publish(store, "other", config=settings | {"digests": {"detect": "2" * 64, "track": TRACK}})
    assert diff(store, "mine", "other").settings == {"digests.detect": ("1" * 64, "2" * 64)}


def test_an_extraction_under_a_clock_that_is_ahead_is_found_by_its_digests(store):
    track(store, TRACK, "1" * 64, started="2999-01-01T00:00:00.000+00:00")
    publish(store, "mine", config={"digests": {"detect": "1" * 64, "track": TRACK}})
    (run,) = tables.find_runs(store, "true")
    assert extractions(published(store)["mine"], [run]) == {"0" * 64: run}
