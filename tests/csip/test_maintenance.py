"""A store that is looked after: faults are found, nothing that is named is lost, and a dry run tells it all."""

import dataclasses
import hashlib
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from csip import tables
from csip.config import ExtractConfig, RuntimeConfig, WalkersConfig
from csip.errors import StoreError
from csip.ingest.benchmarks.importing import import_benchmark
from csip.maintenance.collect import collect
from csip.maintenance.diff import diff
from csip.maintenance.keys import Numbers, pack
from csip.maintenance.named import current_since
from csip.maintenance.snapshots import list_snapshots
from csip.maintenance.verify import verify
from csip.tables import RunRecord, TableRef, table_uri
from csip.types import Output, Snapshot

NOW = timedelta(0)
PINS = ("videos", "tracklets", "crops", "skeletons", "splits")


@pytest.fixture
def store(tiny, tmp_path):
    """A store with one faultless snapshot, `whole`, of two tracklets: frames 10 11 12 15 16 17 18, and 0 to 4."""
    walks = (
        tiny.Walk("a", 4, 0, "train", (10, 11, 12, 15, 16, 17, 18)),
        tiny.Walk("b", 7, 1, "gallery", tuple(range(5)), parts=((0, 1), (3, 4))),
    )
    tiny.publish(str(tmp_path / "store"), walks, "whole")
    return str(tmp_path / "store")


@pytest.fixture(scope="session")
def imported(tmp_path_factory, run):
    """The walkers, imported; read-only."""
    store = str(tmp_path_factory.mktemp("imported") / "store")
    config = ExtractConfig(walkers=WalkersConfig(people=4, twins=1, cameras=2, frames=3, missing_frames=0.2))
    return run(import_benchmark(Output(store, "run-1"), "walkers:", config, RuntimeConfig()))[1].value


def rows_of(store, table, where=None):
    return tables.read(tables.current(store, table), where=where).to_pylist()


def put(store, table, rows):
    tables.upsert(store, table, tables.from_rows(table, rows))


def change(store, table, where, **values):
    put(store, table, [row | values for row in rows_of(store, table, where)])


def publish(store, name="whole", counts=None, pins=PINS, **versions):
    """Publish what the tables hold now."""
    now = {table: tables.current(store, table).version for table in pins} | versions
    snapshot = Snapshot(name, store, now, digest="5" * 64)
    tables.publish(snapshot, config={}, counts=counts or {}, videos=["0" * 64] if "videos" in now else [])
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


# ----------------------------------------------------------------------------------------------------------- verify


def test_a_whole_store_has_no_faults_and_no_leftovers(store, imported):
    assert verify(store, deep=True) == []
    assert verify(imported.store, deep=True) == []


def lose_a_data_file(store):
    ref = tables.current(store, "crops")
    file = lance.dataset(ref.uri).get_fragments()[0].data_files()[0]
    Path(ref.uri, "data", file.path).unlink()


def damage_a_data_file(store):
    ref = tables.current(store, "skeletons")
    (path,) = Path(ref.uri, "data").glob("*.lance")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def repeat_a_row(store, table):
    """Append a row that is there already; `upsert` would not."""
    dataset = lance.dataset(table_uri(store, table))
    lance.write_dataset(dataset.to_table(limit=1).cast(dataset.schema), dataset, mode="append")


def other_skeleton(store, **values):
    (row,) = rows_of(store, "skeletons", "tracklet_id = 'a' AND frame_index = 12")
    put(store, "skeletons", [row | values])


def an_outside_crop(store):
    (row,) = rows_of(store, "crops", "tracklet_id = 'a' AND frame_index = 12")
    put(store, "crops", [row | {"frame_index": 19}])


def see(store, **values):
    """Store a detection of the snapshot's video, which needs no run."""
    row = {"video_sha": f"{0:064d}", "detect_digest": "1" * 64, "frame_index": 3, "n": 0, "time": 0.0, "score": 1.0}
    put(store, "detections", [row | {"box": [0.0, 0.0, 4.0, 9.0], "keypoints": [[0.0, 0.0, 1.0]] * 17} | values])


NAN, INF = float("nan"), float("inf")
FAULTS = {
    "a tracklet begins for no reason the tracker knows": (
        lambda s: change(s, "tracklets", "tracklet_id = 'b'", begins="lost"),
        ["tracklets: 1 rows have another word in `begins` than appeared, identity jump, unknown: b ('lost')."],
    ),
    "a tracklet ends for no reason the tracker knows": (
        lambda s: change(s, "tracklets", "tracklet_id = 'a'", ends="appeared"),
        ["in `ends` than left, identity jump, video ended, unknown: a ('appeared')."],
    ),
    "a tracklet ends before its time": (
        lambda s: change(s, "tracklets", "tracklet_id = 'a'", last_time=0.1),
        ["tracklets: 1 rows end before they begin, by their time: a."],
    ),
    "a tracklet has no time": (
        lambda s: change(s, "tracklets", "tracklet_id = 'a'", first_time=NAN),
        ["tracklets: 1 rows end before they begin, by their time: a."],
    ),
    "a crop's box is inverted": (
        lambda s: change(s, "crops", "tracklet_id = 'a' AND frame_index = 12", box=[9.0, 0.0, 8.0, 5.0]),
        ["crops: 1 rows have boxes that are inverted or not finite: a frame 12."],
    ),
    "a crop's box is upside down": (
        lambda s: change(s, "crops", "tracklet_id = 'a' AND frame_index = 12", box=[0.0, 6.0, 8.0, 5.0]),
        ["crops: 1 rows have boxes that are inverted or not finite: a frame 12."],
    ),
    "crops' boxes are no numbers": (
        lambda s: change(s, "crops", "tracklet_id = 'b' AND frame_index < 2", box=[0.0, 0.0, INF, NAN]),
        ["crops: 2 rows have boxes that are inverted or not finite: b frame 0, b frame 1."],
    ),
    "a keypoint is no number": (
        lambda s: other_skeleton(s, keypoints=[[0.0, 0.0, 1.0]] * 16 + [[0.0, NAN, 1.0]]),
        ["skeletons: 1 rows have keypoints that are not finite: a frame 12."],
    ),
    "a keypoint is infinite": (
        lambda s: other_skeleton(s, keypoints=[[-INF, 0.0, 1.0]] + [[0.0, 0.0, 1.0]] * 16),
        ["skeletons: 1 rows have keypoints that are not finite: a frame 12."],
    ),
    "a detection's box is inverted": (
        lambda s: see(s, box=[4.0, 0.0, 3.0, 9.0]),
        ["detections: 1 rows have boxes that are inverted or not finite: video 000000000000 frame 3."],
    ),
    "a detection's box is no number": (
        lambda s: see(s, box=[NAN, 0.0, 3.0, 9.0], n=7),
        ["detections: 1 rows have boxes that are inverted or not finite: video 000000000000 frame 3."],
    ),
    "a detection's keypoint is no number": (
        lambda s: see(s, keypoints=[[0.0, 0.0, INF]]),
        ["detections: 1 rows have keypoints that are not finite: video 000000000000 frame 3."],
    ),
    "detections of an unknown video": (
        lambda s: see(s, video_sha="9" * 64),
        ["detections: 1 videos that are not there have rows: 999999999999."],
    ),
    "a crop is gone": (
        lambda s: tables.delete(s, "crops", "tracklet_id = 'a' AND frame_index = 12"),
        [
            "crops: 1 tracklets have not one row a frame: a (found 6, expected 7).",
            "skeletons: 1 rows have no crop: a fr",
        ],
    ),
    "all crops are gone": (
        lambda s: tables.delete(s, "crops", "tracklet_id = 'b'"),
        ["crops: 1 tracklets have not one row a frame: b (found 0, expected 5)."],
    ),
    "a crop lies outside": (an_outside_crop, ["crops: 1 rows lie outside of their tracklet's frames: a frame 19."]),
    "a crop stands twice": (lambda s: repeat_a_row(s, "crops"), ["crops: 1 keys stand in several rows: "]),
    "a frame is negative": (
        lambda s: change(s, "crops", "tracklet_id = 'a' AND frame_index = 12", frame_index=-1),
        ["crops: frame_index: found -1, expected 0 to"],
    ),
    "a file is gone": (lose_a_data_file, ["crops: ", "cannot be read"]),
    "a file is cut": (damage_a_data_file, ["skeletons: ", "cannot be read"]),
    "a skeleton is gone": (
        lambda s: tables.delete(s, "skeletons", "tracklet_id = 'b' AND frame_index = 2"),
        ["skeletons: 1 frames with a crop have no row: b frame 2."],
    ),
    "all skeletons are gone": (
        lambda s: tables.delete(s, "skeletons", "true"),
        ["skeletons: 12 frames with a crop have no row"],
    ),
    "two extractors": (
        lambda s: other_skeleton(s, extractor_digest="f" * 64),
        ["skeletons: 1 frames have several rows, of several extractors: a frame 12."],
    ),
    "a skeleton stands twice": (
        lambda s: repeat_a_row(s, "skeletons"),
        ["skeletons: 1 frames have several rows: "],
    ),
    "an unknown layout": (
        lambda s: other_skeleton(s, layout="octopus"),
        ["skeletons: found rows of layout 'octopus' with 17 joints, expected a layout of ['coco17', 'h36m17', 'kine"],
    ),
    "too few joints": (
        lambda s: other_skeleton(s, keypoints=[[0.0, 0.0, 1.0]] * 3),
        ["skeletons: found rows of layout 'coco17' with 3 joints, expected 17 joints."],
    ),
    "a tracklet is gone": (
        lambda s: tables.delete(s, "tracklets", "tracklet_id = 'b'"),
        ["splits: 2 parts of tracklets that are not there: b frames 0..1 (tiny, split 0), b frames 3..4"],
    ),
    "a tracklet stands twice": (
        lambda s: repeat_a_row(s, "tracklets"),
        ["tracklets: 1 rows have the key of another one: "],
    ),
    "a tracklet counts wrongly": (
        lambda s: change(s, "tracklets", "tracklet_id = 'b'", num_frames=4),
        ["crops: 1 tracklets have not one row a frame: b (found 5, expected 4)."],
    ),
    "a tracklet ends before it begins": (
        lambda s: change(s, "tracklets", "tracklet_id = 'b'", last_frame=-1),
        ["tracklets: 1 rows have frames that do not add up: b."],
    ),
    "a tracklet has more interpolated frames than frames": (
        lambda s: change(s, "tracklets", "tracklet_id = 'b'", interpolated_frames=5),
        ["tracklets: 1 rows have more interpolated frames than frames, or less than none: b."],
    ),
    "a tracklet has less interpolated frames than none": (
        lambda s: change(s, "tracklets", "tracklet_id = 'b'", interpolated_frames=-1),
        ["tracklets: 1 rows have more interpolated frames than frames, or less than none: b."],
    ),
    "a tracklet has interpolated frames that no crop shows": (
        lambda s: change(s, "tracklets", "tracklet_id = 'b'", interpolated_frames=2),
        ["crops: 1 tracklets have not as many crops of score 0 as interpolated frames: b (found 0, expected 2)."],
    ),
    "a crop has no score, and its tracklet no interpolated frame": (
        lambda s: change(s, "crops", "tracklet_id = 'a' AND frame_index = 12", score=0.0),
        ["crops: 1 tracklets have not as many crops of score 0 as interpolated frames: a (found 1, expected 0)."],
    ),
    "a part reaches too far": (
        lambda s: change(s, "splits", "first_frame = 3", last_frame=5),
        ["splits: 1 parts lie outside of their tracklet: b frames 3..5 (tiny, split 0)."],
    ),
    "a part is empty": (
        lambda s: put(
            s, "splits", [rows_of(s, "splits", "tracklet_id = 'a'")[0] | {"first_frame": 13, "last_frame": 14}]
        ),
        ["splits: 1 parts have no frames: a frames 13..14 (tiny, split 0)."],
    ),
    "an unknown role": (
        lambda s: change(s, "splits", "first_frame = 3", role="judge"),
        ["splits: 1 parts have another role than train, query, gallery: b frames 3..4"],
    ),
    "a part stands twice": (lambda s: repeat_a_row(s, "splits"), ["splits: 1 rows have the key of another one."]),
    "a video is gone": (
        lambda s: tables.delete(s, "videos", f"video_sha = '{1:064d}'"),
        ["videos: 1 videos that tracklets name are not there: 000000000000."],
    ),
    "the snapshot's video is gone": (
        lambda s: tables.delete(s, "videos", f"video_sha = '{0:064d}'"),
        ["videos: 1 videos of the snapshot are not there: 000000000000."],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_named(store, fault):
    plant, told = FAULTS[fault]
    plant(store)
    publish(store, pins=(*PINS, "detections"))
    found = texts(verify(store))
    for words in told:
        assert any(words in text for text in found), found
    assert all(text.startswith("whole ") for text in found)


def test_faults_behind_a_snapshot_are_not_its_own(store):
    # What is written after it was published does not touch a snapshot.
    tables.delete(store, "crops", "tracklet_id = 'a'")
    tables.delete(store, "tracklets", "true")
    assert texts(verify(store)) == []


def test_a_pinned_version_that_is_gone_or_unprotected_is_found(store):
    tables.untag(store, "splits", "snapshot-whole")
    row = rows_of(store, "snapshots")[0]
    put(store, "snapshots", [row | {"tables": json.dumps(json.loads(row["tables"]) | {"videos": 99, "pigeons": 1})}])
    found = "\n".join(texts(verify(store)))
    assert "whole splits: found no tag, expected one that protects version" in found
    assert "videos.lance: version 99 cannot be opened" in found
    assert "whole videos: " in found
    assert "whole pigeons: the snapshot names a table that CSIP does not know" in found


def test_a_snapshot_that_counted_otherwise_is_found(store):
    change(store, "tracklets", "true", track_digest="5" * 64, video_sha="")
    tables.describe(store, "skeletons", {f"csip.extractor.{'5' * 64}": json.dumps({"layout": "coco17"})})
    publish(store, counts={"tracklets": 2, "frames": 12})
    assert texts(verify(store)) == []
    publish(store, counts={"tracklets": 3, "frames": 12})
    (text,) = texts(verify(store))
    assert "found 2 tracklets of 12 frames, expected 3 tracklets of 12 frames" in text
    publish(store, counts={"train_people": 4}, splits=1)
    assert "found no part, expected those of 4 people" in texts(verify(store))[0]


def test_skeletons_in_3d_need_no_crops_and_crops_need_no_skeletons_where_the_import_says_so(store):
    change(store, "tracklets", "true", track_digest="5" * 64, video_sha="")
    tables.delete(store, "skeletons", "true")
    publish(store)
    assert texts(verify(store)) == []  # an import that never told of any skeleton
    joints = [[0.0, 0.0, 1.0]] * 20
    row = {"extractor_digest": "e", "has_skeleton": True, "layout": "kinect20", "keypoints": joints}
    put(store, "skeletons", [row | {k: r[k] for k in ("tracklet_id", "frame_index")} for r in rows_of(store, "crops")])
    tables.delete(store, "crops", "true")
    tables.describe(store, "skeletons", {f"csip.extractor.{'5' * 64}": json.dumps({"layout": "kinect20"})})
    publish(store)
    assert texts(verify(store)) == []
    tables.delete(store, "skeletons", "tracklet_id = 'b' AND frame_index = 2")
    publish(store)
    assert "skeletons: 1 tracklets have not one row a frame: b (found 4, expected 5)" in texts(verify(store))[0]


def test_rows_are_compared_with_what_the_extraction_counted(store):
    sha, detect, track = f"{0:064d}", "1" * 64, "d" * 64
    seen = {"video_sha": sha, "detect_digest": detect, "time": 0.0, "box": [0.0] * 4, "score": 1.0, "keypoints": []}
    put(store, "detections", [seen | {"frame_index": f, "n": n} for f in range(3) for n in range(2)])
    outputs = {"video_sha": sha, "detect_digest": detect, "track_digest": track}
    counts = {"tracklets": 1, "crops": 7, "detections": 6}
    record = run_record("t1", "track_video", outputs, config={"detect": {"weights": "here"}}, counts=counts)
    tables.record_run(store, record)
    pins = (*PINS, "detections")
    publish(store, pins=pins)
    assert texts(verify(store)) == []
    tables.record_run(store, dataclasses.replace(record, counts={"tracklets": 2, "crops": 8, "detections": 9}))
    publish(store, pins=pins)
    found = texts(verify(store))
    assert "whole detections: video 000000000000: found 6 rows, expected 9 (run t1)." in found
    assert any("found 1 tracklets of 7 frames, expected 2 tracklets of 8 frames (run t1)" in text for text in found)
    repeat_a_row(store, "detections")
    publish(store, pins=pins)
    assert "whole detections: 1 keys stand in several rows." in texts(verify(store))


def test_only_a_deep_look_reads_pictures(store):
    broken = {("a", 12): b"no picture", ("b", 0): b""}
    for (tracklet, frame), image in broken.items():
        change(store, "crops", f"tracklet_id = '{tracklet}' AND frame_index = {frame}", image=image)
    change(store, "crops", "tracklet_id = 'b' AND frame_index = 1", media_type="image/png")
    publish(store)
    assert texts(verify(store)) == []
    (text,) = texts(verify(store, ["whole"], deep=True))
    assert "crops: 3 rows have no whole picture of their media type: a frame 12, b frame 0, b frame 1." in text


def test_a_deep_look_finds_a_picture_that_is_cut_behind_its_header(store):
    (row,) = rows_of(store, "crops", "tracklet_id = 'a' AND frame_index = 12")
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    whole = io.BytesIO()
    Image.fromarray(noise).save(whole, "JPEG")
    put(store, "crops", [row | {"image": whole.getvalue()}])
    publish(store)
    assert texts(verify(store, deep=True)) == []
    put(store, "crops", [row | {"image": whole.getvalue()[: len(whole.getvalue()) // 2]}])
    publish(store)
    assert texts(verify(store)) == []
    (text,) = texts(verify(store, deep=True))
    assert "crops: 1 rows have no whole picture of their media type: a frame 12." in text


def test_detections_of_a_video_that_is_being_built_are_no_fault(store):
    # They are written segment by segment; the video's own row comes with the last one.
    see(store, video_sha="9" * 64)
    listed = {"videos": [{"video_sha": "9" * 64, "path": "/videos/9.mp4", "camera": "9", "duration": 1.0}]}
    tables.record_run(store, run_record("l1", "list_videos", listed))
    publish(store, pins=(*PINS, "detections"))
    assert texts(verify(store)) == []


def embedding(store, tracklet="a", encoder="e", feature=(0.6, 0.8), run="embed"):
    """Store an embedding, and the run that made it of the snapshot."""
    row = {"encoder_digest": encoder * 64, "tracklet_id": tracklet, "first_frame": 0, "last_frame": 4, "encoder": "x"}
    put(store, "embeddings", [row | {"checkpoint_sha": "c" * 64, "feature": list(feature)}])
    ref = {"table": dataclasses.asdict(tables.current(store, "embeddings")), "encoder_digest": encoder * 64}
    outputs = ref | {"encoder": "x", "checkpoint_sha": "c" * 64}
    inputs = {"snapshot": dataclasses.asdict(tables.open_snapshot(store, "whole"))}
    tables.record_run(store, run_record(f"{run}-{encoder}", run, outputs, inputs))


EMBEDDINGS = {
    "of a tracklet that is nowhere": (
        {"tracklet": "z"},
        "1 tracklets that are not there have embeddings: z of eeeeeeee",
    ),
    "of another width": (
        {"tracklet": "b", "feature": (1.0,)},
        "1 rows have another width than most of their encoder: b",
    ),
    "not of length 1": ({"tracklet": "b", "feature": (0.6, 0.9)}, "1 rows are not of length 1: b of eeeeeeeeeeee."),
    "zero": ({"tracklet": "b", "feature": (0.0, 0.0)}, "1 rows are not of length 1: b of eeeeeeeeeeee."),
    "no number": ({"tracklet": "b", "feature": (NAN, 1.0)}, "1 rows have numbers that are not finite: b of eeeeeeee"),
    "infinite": ({"tracklet": "b", "feature": (INF, 1.0)}, "1 rows have numbers that are not finite: b of eeeeeeee"),
}


@pytest.mark.parametrize("fault", EMBEDDINGS)
def test_a_planted_embedding_that_cannot_be_is_found_and_named(store, fault):
    for tracklet, first in (("a", (0.6, 0.8)), ("b", (0.0, 1.0))):
        embedding(store, tracklet, feature=first)
        embedding(store, tracklet, "f", feature=(1.0, 0.0, 0.0))  # another encoder has its own width
    put(store, "embeddings", [r | {"first_frame": 1} for r in rows_of(store, "embeddings", "tracklet_id = 'a'")])
    assert texts(verify(store)) == []
    planted, told = EMBEDDINGS[fault]
    embedding(store, **planted)
    (text,) = texts(verify(store))
    assert f" embeddings: {told}" in text
    assert verify(store, ["whole"]) == [], "embeddings are no snapshot's"


def test_embeddings_of_skeletons_are_of_any_length(store):
    embedding(store, feature=(3.0, 4.0), run="embed_skeletons")
    assert texts(verify(store)) == []


def test_embeddings_of_a_snapshot_that_was_dropped_are_left_over(store):
    embedding(store, "z")
    assert len(texts(verify(store))) == 1
    tables.delete(store, "snapshots", "true")
    found = verify(store)
    assert texts(found) == []
    assert any("1 tracklets that are not there have embeddings: z" in t for t in texts(found, "leftover"))


def test_what_runs_left_is_checked_by_its_bytes_also_in_a_store_that_was_moved(store, tmp_path):
    folder = Path(store) / "checkpoints"
    folder.mkdir()
    files = {}
    for name in ("same", "changed", "gone"):
        files[name] = folder / f"stage2-{name}.safetensors"
        files[name].write_bytes(name.encode())
        outputs = {"path": str(files[name]), "sha256": hashlib.sha256(name.encode()).hexdigest()}
        tables.record_run(store, run_record(name, outputs=outputs))
    put(store, "metrics", [])
    results = tables.current(store, "results")
    tables.record_run(store, run_record("kept", outputs={"table": dataclasses.asdict(results), "run_id": "kept"}))
    assert verify(store) == []
    files["changed"].write_bytes(b"otherwise")
    files["gone"].unlink()
    ref = {"uri": results.uri, "version": 77}
    tables.record_run(store, run_record("lost", outputs=[{"table": ref, "run_id": "lost"}]))
    moved = str(shutil.move(store, tmp_path / "elsewhere"))
    found = sorted(text.strip() for text in texts(verify(moved)))
    assert len(found) == 3
    assert "run changed (stage2): " in found[0]
    assert "found SHA-256" in found[0]
    assert "found no such file" in found[1]
    assert "run lost (stage2): found no results@77, which it left." in found[2]


def test_what_nothing_names_is_told_and_is_no_fault(store):
    folder = Path(store) / "checkpoints"
    folder.mkdir()
    for name in (".stage2-x.safetensors-1.part", "stage2-0123.state", "stage2-0123456789ab.safetensors"):
        (folder / name).write_bytes(b"12345")
    (crop,) = rows_of(store, "crops", "tracklet_id = 'a' AND frame_index = 12")
    put(store, "crops", [crop | {"tracklet_id": "unfinished", "frame_index": f} for f in range(2)])
    put(store, "splits", [rows_of(store, "splits")[0] | {"dataset": "unpublished"}])
    score = {"protocol": "p", "split": "0", "encoder": "e", "name": "mean_ap", "value": 1.0, "described": ""}
    put(store, "results", [score | {"run_id": "never", "encoder_digest": "", "checkpoint_sha": ""}])
    publish(store)
    lance.dataset(table_uri(store, "crops")).tags.create("snapshot-gone", 2)
    found = verify(store)
    assert texts(found) == []
    told = "\n".join(texts(found, "leftover"))
    for words in (
        "whole crops: 2 rows of 1 tracklets that are not in `tracklets`",
        "checkpoints/.stage2-x.safetensors-1.part: a file that was not written to its end, 5 bytes.",
        "checkpoints/stage2-0123.state: the state of a training that was left, 5 bytes.",
        "checkpoints/stage2-0123456789ab.safetensors: a file that no run names, 5 bytes.",
        "splits: 1 rows of no published snapshot: unpublished.",
        "results: 1 rows of no recorded run: never.",
        "crops: 1 tags of snapshots that are not published: snapshot-gone.",
    ):
        assert words in told, told
    assert len(texts(found, "leftover")) == 7


def test_one_snapshot_can_be_looked_at_alone(store):
    tables.delete(store, "crops", "tracklet_id = 'a'")
    publish(store, "broken")
    assert verify(store, ["whole"]) == []
    assert {one.snapshot for one in verify(store, ["broken"])} == {"broken"}
    with pytest.raises(StoreError, match="found no snapshot 'nobody'; there are: broken, whole"):
        verify(store, ["nobody"])


def test_keys_become_numbers_that_sort_and_repeat_as_the_keys_do():
    numbers = Numbers()
    batches = [
        pa.RecordBatch.from_pydict({"tracklet_id": ["b", "a", "b"], "frame_index": [5, 0, 2]}),
        pa.RecordBatch.from_pydict({"tracklet_id": ["c", "b", ""], "frame_index": [2**34 - 1, 5, 0]}),
    ]
    keys = [int(k) for b in batches for k in pack(numbers, b, ["tracklet_id"], ["frame_index"])]
    assert numbers.names == [("b",), ("a",), ("c",), ("",)]
    assert keys == [5, 2**34, 2, 2 * 2**34 + 2**34 - 1, 5, 3 * 2**34]
    large = pa.RecordBatch.from_pydict({"tracklet_id": ["b"], "frame_index": [2**34]})
    with pytest.raises(StoreError, match=r"frame_index: found 17179869184, expected 0 to 17179869183"):
        pack(numbers, large, ["tracklet_id"], ["frame_index"])
    pair = pa.RecordBatch.from_pydict({"x": ["a", "a", "b"], "y": ["b", "c", "b"]})
    assert Numbers().of([pair.column("x"), pair.column("y")]).tolist() == [0, 1, 2]


# ------------------------------------------------------------------------------------------------- snapshots and diff


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


# --------------------------------------------------------------------------------------------------------------- gc


def busy_store(store):
    """Give a store what years do: generations, leftovers, runs that name versions, a user's tag, many small files."""
    put(store, "splits", [r | {"dataset": "second"} for r in rows_of(store, "splits")])
    for frame in range(4):
        change(store, "crops", f"tracklet_id = 'b' AND frame_index = {frame}", score=0.1 * (frame + 1))
    publish(store, "second")
    score = {"protocol": "p", "split": "0", "encoder": "e", "name": "mean_ap", "value": 1.0, "described": ""}
    for i in range(4):
        put(store, "results", [score | {"run_id": f"r{i}", "encoder_digest": "", "checkpoint_sha": ""}])
        ref = dataclasses.asdict(tables.current(store, "results"))
        if i % 2:
            tables.record_run(store, run_record(f"r{i}", "evaluate", [ref]))
        metric = {"run_id": f"r{i}", "step": 1, "name": "loss", "stage": "s", "value": 0.5}
        put(store, "metrics", [metric])
    lance.dataset(table_uri(store, "crops")).tags.create("mine", 3)
    (crop,) = rows_of(store, "crops", "tracklet_id = 'a' AND frame_index = 12")
    put(store, "crops", [crop | {"tracklet_id": "unfinished", "frame_index": f} for f in range(3)])
    put(store, "splits", [rows_of(store, "splits")[0] | {"dataset": "unpublished"}])
    folder = Path(store) / "checkpoints"
    folder.mkdir()
    (folder / ".stage2.safetensors-1.part").write_bytes(b"x" * 100)
    (folder / "stage2-0123456789abcdef.state").write_bytes(b"y" * 10)
    (folder / "stage2-0123456789ab.safetensors").write_bytes(b"z")


def fragments(store, table):
    return len(lance.dataset(table_uri(store, table)).get_fragments())


def disk(store):
    return sum(path.stat().st_size for path in Path(store).rglob("*") if path.is_file())


def test_nothing_that_is_named_is_ever_lost_and_a_dry_run_tells_exactly_what_happens(store):
    busy_store(store)
    before, faults, newest = everything(store), texts(verify(store)), {}
    for table in ("metrics", "results", "runs"):
        newest[table] = rows_of(store, table)
    worked = []
    for _ in range(4):
        bytes_before = disk(store)
        told = collect(store, dry_run=True, older_than=NOW)
        assert disk(store) == bytes_before
        done = collect(store, dry_run=False, older_than=NOW)
        assert done == told
        assert everything(store) == before
        assert texts(verify(store)) == faults == []
        worked.append(done)
    first, second = worked[:2]
    assert first.tables["crops"].rows == 3
    assert first.tables["splits"].rows == 1
    assert first.tables["metrics"].fragments == 4
    assert first.files == {
        "checkpoints/.stage2.safetensors-1.part": 100,
        "checkpoints/stage2-0123456789abcdef.state": 10,
    }
    assert second.bytes > 0  # what the first one's own commits have superseded
    assert worked[3].tables == worked[3].files == {}
    assert fragments(store, "metrics") == 1
    assert fragments(store, "results") == 4  # runs name them: merging would store them twice
    assert {table: rows_of(store, table) for table in newest} == newest
    assert rows_of(store, "crops", "tracklet_id = 'unfinished'") == []
    assert (Path(store) / "checkpoints" / "stage2-0123456789ab.safetensors").exists()
    assert any("files that no run names" in sentence for sentence in worked[3].left)


def test_a_snapshot_protects_its_versions_without_tags_too(store):
    change(store, "crops", "tracklet_id = 'b'", score=0.5)
    before = everything(store)["whole", "crops"]
    for table in PINS:
        tables.untag(store, table, "snapshot-whole")
    for _ in range(2):
        collect(store, dry_run=False, older_than=NOW)
    assert everything(store)["whole", "crops"] == before


def test_the_tags_of_a_snapshot_that_is_being_published_stay(store):
    # `publish` sets the tags first; the same name may have been dropped a moment ago.
    collect(store, dry_run=False, drop=["whole"])
    time.sleep(1.1)
    for name in ("new", "whole"):
        lance.dataset(table_uri(store, "crops")).tags.create(f"snapshot-{name}", 3)
    assert collect(store, dry_run=False).tables == {}
    assert set(tables.list_tags(store, "crops")) == {"snapshot-new", "snapshot-whole"}
    assert collect(store, dry_run=False, older_than=NOW).tables["crops"].tags == 2


def test_what_was_in_use_lately_is_left_alone(store):
    busy_store(store)
    before = disk(store), everything(store)
    done = collect(store, dry_run=False, older_than=timedelta(hours=1))
    assert (done.tables, done.files, done.bytes) == ({}, {}, 0)
    assert any("rows that nothing vouches for were written too lately" in sentence for sentence in done.left)
    assert (disk(store), everything(store)) == before


def test_a_version_is_old_from_when_another_one_took_its_place():
    # Written on day 1, 2 and 9: on day 10, a reader that opened the newest one on day 8 has that of day 2 open.
    days = {version: datetime(2026, 1, day, tzinfo=UTC) for version, day in {3: 1, 4: 2, 7: 9}.items()}
    assert current_since(days, datetime(2026, 1, 3, tzinfo=UTC)) == [4, 7]
    assert current_since(days, datetime(2026, 1, 1, 12, tzinfo=UTC)) == [3, 4, 7]
    assert current_since(days, datetime(2026, 1, 9, tzinfo=UTC)) == [7]


def test_files_go_only_when_nobody_has_written_them_for_long(store):
    folder = Path(store) / "checkpoints"
    folder.mkdir()
    kept = folder / "stage2-0123456789ab.safetensors"
    kept.write_bytes(b"z")
    state = {"at": {"kept": {"3": {"path": str(kept), "sha256": "0123456789ab" + "0" * 52}}}}
    header = json.dumps({"__metadata__": {"csip-training-1": json.dumps(state)}}).encode()
    for name in ("old.state", "young.state", ".old.part", ".young.part"):
        (folder / name).write_bytes(struct.pack("<Q", len(header)) + header)
    (folder / "linked.part").symlink_to(kept)
    long_ago = time.time() - 8 * 86_400
    for name in ("old.state", ".old.part"):
        os.utime(folder / name, (long_ago, long_ago))
    assert [one.where for one in verify(store)] == [
        f"checkpoints/{n}" for n in sorted(p.name for p in folder.iterdir()) if n not in (kept.name, "linked.part")
    ]
    done = collect(store, dry_run=False)
    assert set(done.files) == {"checkpoints/old.state", "checkpoints/.old.part"}
    assert {path.name for path in folder.iterdir()} == {"young.state", ".young.part", "linked.part", kept.name}


def test_a_snapshot_is_dropped_at_once_and_freed_when_nobody_can_read_it_any_more(store):
    busy_store(store)
    whole = tables.open_snapshot(store, "whole")
    second = {key: rows for key, rows in everything(store).items() if "second" in key or key[0].startswith("r")}
    told = collect(store, dry_run=True, drop=["whole"], older_than=NOW)
    assert tables.open_snapshot(store, "whole") == whole
    done = collect(store, dry_run=False, drop=["whole"], older_than=NOW)
    assert done == told
    assert [row["name"] for row in rows_of(store, "snapshots")] == ["second"]
    assert tables.exists(tables.pinned(whole, "skeletons"))  # somebody may be reading it
    collect(store, dry_run=False, older_than=timedelta(hours=1))
    assert tables.exists(tables.pinned(whole, "crops"))
    freed = collect(store, dry_run=False, older_than=NOW)
    assert freed.bytes > 0
    assert not tables.exists(tables.pinned(whole, "crops"))
    after = everything(store)
    assert {key: after[key] for key in second} == second
    assert texts(verify(store)) == []


def test_a_snapshot_that_runs_were_made_from_is_dropped_only_by_force(store):
    snapshot = tables.open_snapshot(store, "whole")
    used = {"snapshot": dataclasses.asdict(snapshot)}
    tables.record_run(store, run_record("made", "import_benchmark", dataclasses.asdict(snapshot)))
    tables.record_run(store, run_record("trained", "stage2", {}, used))
    with pytest.raises(StoreError, match=r"cannot be dropped; 1 runs were made from it: trained \(stage2\)"):
        collect(store, dry_run=False, drop=["whole"])
    with pytest.raises(StoreError, match="found no snapshot 'nobody'"):
        collect(store, dry_run=True, drop=["nobody"])
    assert [row["name"] for row in rows_of(store, "snapshots")] == ["whole"]
    assert collect(store, dry_run=False, drop=["whole"], force=True).dropped == ("whole",)
    found = verify(store)
    assert texts(found) == []
    assert any("snapshot whole that it published is not there any more" in t for t in texts(found, "leftover"))


def test_rows_of_a_dropped_import_go_only_while_nobody_else_uses_the_store(imported, tmp_path, run):
    store = str(shutil.copytree(imported.store, tmp_path / "own"))
    before = len(rows_of(store, "crops"))
    collect(store, dry_run=False, drop=[imported.name])
    assert collect(store, dry_run=False).left == []  # somebody may be reading it
    done = collect(store, dry_run=False, older_than=timedelta(microseconds=1))
    assert any("imports that are not published" in sentence for sentence in done.left)
    assert len(rows_of(store, "crops")) == before
    told = collect(store, dry_run=True, older_than=NOW)
    done = collect(store, dry_run=False, older_than=NOW)
    assert done == told
    assert done.tables["crops"].rows == before
    assert all(rows_of(store, table) == [] for table in ("tracklets", "crops", "skeletons", "splits"))
    collect(store, dry_run=False, older_than=NOW)
    assert disk(store) < disk(imported.store) / 3
    config = ExtractConfig(walkers=WalkersConfig(people=4, twins=1, cameras=2, frames=3, missing_frames=0.2))
    again = run(import_benchmark(Output(store, "run-2"), "walkers:", config, RuntimeConfig()))[1].value
    assert again.name == imported.name
    assert verify(store, deep=True) == []


def test_rows_of_a_finished_extraction_stay_since_a_build_would_not_make_them_again(store):
    collect(store, dry_run=False, drop=["whole"], older_than=NOW)
    done = collect(store, dry_run=False, older_than=NOW)
    assert any("2 of 1 extractions that no snapshot uses" in sentence for sentence in done.left)
    assert len(rows_of(store, "crops")) == 12


def test_rows_that_a_build_writes_meanwhile_are_not_deleted_with_older_ones(store):
    (crop,) = rows_of(store, "crops", "tracklet_id = 'a' AND frame_index = 12")
    put(store, "crops", [crop | {"tracklet_id": "late", "frame_index": 0}])
    seen = tables.current(store, "crops")
    put(store, "crops", [crop | {"tracklet_id": "late", "frame_index": 1}])
    assert tables.delete_as_read(seen, "tracklet_id = 'late'")
    assert [row["frame_index"] for row in rows_of(store, "crops", "tracklet_id = 'late'")] == [1]
    seen = tables.current(store, "crops")
    put(store, "crops", [crop | {"tracklet_id": "late", "frame_index": 1, "score": 0.3}])
    assert not tables.delete_as_read(seen, "tracklet_id = 'late'")
    assert len(rows_of(store, "crops", "tracklet_id = 'late'")) == 1


def test_merging_gives_way_to_a_build(store):
    for frame in range(4):
        change(store, "crops", f"tracklet_id = 'b' AND frame_index = {frame}", score=0.1 * frame)
    seen = tables.current(store, "crops")
    change(store, "crops", "tracklet_id = 'b' AND frame_index = 3", score=0.9)
    assert not tables.compact(seen, ())
    assert rows_of(store, "crops", "tracklet_id = 'b' AND frame_index = 3")[0]["score"] == np.float32(0.9)


def test_writers_and_a_gc_that_runs_all_the_time_lose_nothing(store):
    before = everything(store)
    stop, errors = threading.Event(), []

    def clean():
        while not stop.is_set():
            try:
                collect(store, dry_run=False, older_than=timedelta(seconds=0.3))
            except StoreError as error:  # pragma: no cover (a failure)
                errors.append(error)

    thread = threading.Thread(target=clean)
    thread.start()
    vector = {"tracklet_id": "a", "encoder_digest": "e", "feature": [1.0]}
    for i in range(30):
        put(store, "frame_features", [vector | {"frame_index": i}])
        put(store, "frame_features", [vector | {"frame_index": i // 2, "feature": [2.0]}])
    stop.set()
    thread.join()
    assert errors == []
    found = rows_of(store, "frame_features")
    assert [row["frame_index"] for row in found] == list(range(30))
    assert [row["feature"] for row in found] == [[2.0]] * 15 + [[1.0]] * 15
    assert everything(store) == before


KILLED = """
import os, signal, sys
from datetime import timedelta
import lance
from pathlib import Path
from csip import tables
from csip.maintenance.collect import collect
store, name, number, drop = sys.argv[1:]
owner = {"unlink": Path, "cleanup_old_versions": lance.LanceDataset}.get(name, tables)
real, left = getattr(owner, name), [int(number)]
def killed(*args, **kwargs):
    left[0] -= 1
    if name == "cleanup_old_versions":
        if left[0] == 0:  # in the middle of it: one file a second, and a second and a half to live
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            import threading
            threading.Timer(1.2, os.kill, (os.getpid(), signal.SIGKILL)).start()
            kwargs["delete_rate_limit"] = 1
        return real(*args, **kwargs)
    done = real(*args, **kwargs) if left[0] else None
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return done
setattr(owner, name, killed)
collect(store, dry_run=False, drop=[drop], older_than=timedelta(0))
"""


@pytest.mark.parametrize(
    ("call", "number"),
    [
        *(("delete", 1), ("delete_as_read", 1), ("cleanup_old_versions", 4)),
        *(
            pytest.param(*one, marks=pytest.mark.slow)
            for one in (("untag", 1), ("untag", 4), ("delete_as_read", 2), ("compact", 1), ("clean_up", 1))
        ),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (("clean_up", 5), ("unlink", 1), ("unlink", 2))),
    ],
)
def test_a_killed_gc_leaves_published_data_as_it_was_and_the_next_one_completes(store, call, number, tmp_path):
    busy_store(store)
    undisturbed = str(shutil.copytree(store, tmp_path / "undisturbed"))
    before = {key: rows for key, rows in everything(store).items() if "whole" not in key[0]}
    words = [sys.executable, "-c", KILLED, store, call, str(number), "whole"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    after = everything(store)
    assert {key: after[key] for key in before} == before
    assert texts(verify(store)) == []
    dropped = "whole" not in {row["name"] for row in rows_of(store, "snapshots")}
    for path in (store, undisturbed):
        drop = ["whole"] if path == undisturbed or not dropped else []
        collect(path, dry_run=False, drop=drop, older_than=NOW)
        for _ in range(3):
            collect(path, dry_run=False, older_than=NOW)
    assert collect(store, dry_run=True, older_than=NOW).tables == {}
    after = everything(store)
    assert {key: after[key] for key in before} == before
    assert verify(store) == verify(undisturbed)
    for table in tables.TABLES:
        assert rows_of(store, table) == rows_of(undisturbed, table) or table in ("snapshots", "runs")
    names = [{p.name for p in (Path(one) / "checkpoints").iterdir()} for one in (store, undisturbed)]
    assert names[0] == names[1]


def test_a_store_that_is_none_is_named(tmp_path):
    for look in (verify, list_snapshots, lambda s: collect(s, dry_run=True)):
        with pytest.raises(StoreError, match="found no table 'snapshots' there"):
            look(str(tmp_path / "nowhere"))


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
