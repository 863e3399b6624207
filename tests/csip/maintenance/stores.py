"""Small stores that tests of `csip.maintenance` change by hand, and what is to be seen of them."""

import dataclasses
import hashlib
import json
from datetime import timedelta
from pathlib import Path

import lance
import numpy as np

from csip import tables
from csip.ingest.records import tracklet_id
from csip.maintenance.collect import Collected, collect
from csip.plain import digest
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


# ------------------------------------------------------------------------------------------------ extracted by hand

LONG_AGO = "2020-01-01T00:00:00.000+00:00"
SEEN = ("videos", "detections", "tracklets", "crops", "skeletons", "splits")


def film(number):
    """SHA-256 of a video, as far as anybody can tell."""
    return hashlib.sha256(f"film {number}".encode()).hexdigest()


def settings(number):
    """Digest of settings."""
    return hashlib.sha256(f"settings {number}".encode()).hexdigest()


def names(sha, track, people=2):
    """What a build calls the tracklets of a video."""
    return [tracklet_id(sha, track, number) for number in range(1, people + 1)]


DETECT = settings(0)


def extract(store, sha, track, detect=DETECT, *, people=2, segments=1, whole=True, started=LONG_AGO):
    """Leave what a build leaves of a video, two frames a segment with everybody in them."""
    frames = range(2 * segments)
    key = [{"tracklet_id": name, "frame_index": frame} for name in names(sha, track, people) for frame in frames]
    crop = {"time": 0.0, "box": [0.0, 0.0, 4.0, 9.0], "score": 1.0, "media_type": "image/jpeg"}
    bytes_of = {name: np.random.default_rng(list(name.encode())).bytes(2000) for name in names(sha, track, people)}
    put(store, "crops", [one | crop | {"image": bytes_of[one["tracklet_id"]]} for one in key])
    pose = {"extractor_digest": detect, "has_skeleton": True, "layout": "coco17", "keypoints": [[1.0, 2.0, 0.9]] * 17}
    put(store, "skeletons", [one | pose for one in key])
    seen = {"video_sha": sha, "detect_digest": detect, "time": 0.0, "box": [0.0, 0.0, 4.0, 9.0], "score": 1.0}
    seen |= {"keypoints": [[1.0, 2.0, 0.9]] * 17}
    put(store, "detections", [seen | {"frame_index": frame, "n": n} for frame in frames for n in range(3)])
    video = {"path": f"/films/{sha[:8]}.mp4", "bytes": 9, "codec": "h264", "width": 4, "height": 9, "fps": 25.0}
    video |= {"expected_frames": 9, "num_frames": 9, "duration": 1.0, "status": "ok", "reason": ""}
    put(store, "videos", [video | {"video_sha": sha}])
    if whole:
        row = {"video_sha": sha, "track_digest": track, "first_frame": 0, "last_frame": frames[-1], "first_time": 0.0}
        row |= {"last_time": 0.0, "num_frames": len(frames), "keypoint_confidence": 0.9, "pid": None}
        row |= {"begins": "unknown", "ends": "unknown", "interpolated_frames": 0}
        put(store, "tracklets", [row | {"tracklet_id": name} for name in names(sha, track, people)])
    made = {"video_sha": sha, "detect_digest": detect}
    runs, where = [], {"video": {"video_sha": sha, "path": video["path"], "camera": "door", "duration": 1.0}}
    for i in range(segments):
        stage = "track_video" if whole and i == segments - 1 else "track_segment"
        counts = {"detections": 2 * 3, "frames": 2, "end_frame": 2 * (i + 1)}
        runs.append(run_record(f"d{sha[:6]}{detect[:4]}{i}", "detect_video", made, where, counts=counts))
        far = 2 * (i + 1)  # frames
        counts = {"detections": 3 * far, "tracklets": people, "crops": people * far, "frames": far}
        run_id = f"t{sha[:6]}{track[:4]}{i}"
        runs.append(run_record(run_id, stage, made | {"track_digest": track}, where, counts=counts))
    tables.record_runs(store, [dataclasses.replace(run, started=started) for run in runs])


def show(store, name, shas, track, detect=DETECT, **told):
    """Publish videos as a build does, without a protocol."""
    pins = {table: tables.current(store, table).version for table in SEEN}
    config = {"digests": {"detect": detect, "track": track}}
    snapshot = Snapshot(name, store, pins, hashlib.sha256(repr((sorted(shas), track)).encode()).hexdigest())
    tables.publish(snapshot, config=config, counts={}, videos=shas, **told)
    return snapshot


def done(store, stage="track_video"):
    """The extractions that the store says it has: video, track digest."""
    runs = tables.find_runs(store, f"stage = '{stage}'")
    return {(run.outputs["video_sha"], run.outputs["track_digest"]) for run in runs}


def there(store):
    """The extractions whose tracklets all are there, with all of their crops and skeletons."""
    frames = {}
    for table in ("crops", "skeletons"):
        for row in tables.read(tables.current(store, table), []).to_pylist():
            frames.setdefault(row["tracklet_id"], {}).setdefault(table, set()).add(row["frame_index"])
    found = {}
    for row in rows_of(store, "tracklets"):
        whole = all(
            len(frames.get(row["tracklet_id"], {}).get(t, ())) == row["num_frames"] for t in ("crops", "skeletons")
        )
        found.setdefault((row["video_sha"], row["track_digest"]), []).append(whole)
    return {pair for pair, whole in found.items() if all(whole)}


FIRST, SECOND, OLD, NEW = film(1), film(2), settings(1), settings(2)
MOMENT = timedelta(microseconds=1)
"""Everybody else may be at work, and whatever is done is long ago."""


def settle(store, **words):
    """Clean up until nothing is left to do, each time after a dry run that must tell the same; all that was done."""
    told = []
    while not told or told[-1] != Collected(left=told[-1].left):
        before = {p: p.stat().st_mtime_ns for p in Path(store).rglob("*") if p.is_file()}
        dry = collect(store, dry_run=True, older_than=NOW, **words)
        assert {p: p.stat().st_mtime_ns for p in Path(store).rglob("*") if p.is_file()} == before
        told.append(collect(store, dry_run=False, older_than=NOW, **words))
        assert told[-1] == dry
        words.pop("drop", None)
        assert len(told) < 8
    return told


def trained(store, name, key=None):
    """Record a training on a snapshot as `flows.stage` does."""
    inputs = {"snapshot": dataclasses.asdict(tables.open_snapshot(store, name))}
    config = {"config": {"epochs": 3}, "seed": 0}
    made = digest("stage2", inputs | config, "source") if key is None else key
    facts = {"config": config, "source_digest": "source", "started": LONG_AGO, "key": made}
    run = run_record(f"run-{name}", "stage2", {}, inputs, **facts)
    tables.record_run(store, run)
    return run
