"""A store that is looked over: what is wrong in it is found and named, and nothing else."""

import dataclasses
import io
import json
from pathlib import Path

import lance
import numpy as np
import pytest
from PIL import Image

from csip import tables
from csip.errors import StoreError
from csip.maintenance.collect import collect
from csip.maintenance.snapshots import list_snapshots
from csip.maintenance.verify import verify
from tests.csip.maintenance.stores import (
    PINS,
    change,
    publish,
    put,
    repeat_a_row,
    rows_of,
    run_record,
    texts,
)


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
    "a video was forgotten": (
        lambda s: change(s, "videos", f"video_sha = '{1:064d}'", status="forgotten"),
        ["videos: 1 videos were forgotten, and were built from again; run `csip forget --video` on each once more: 0"],
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
    put(store, "snapshots", [row | {"tables": json.dumps(json.loads(row["tables"]) | {"videos": 99})}])
    found = "\n".join(texts(verify(store)))
    assert "whole splits: found no tag, expected one that protects version" in found
    assert "videos.lance: version 99 cannot be opened" in found
    assert "whole videos: " in found


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


def test_one_snapshot_can_be_looked_at_alone(store):
    tables.delete(store, "crops", "tracklet_id = 'a'")
    publish(store, "broken")
    assert verify(store, ["whole"]) == []
    assert {one.snapshot for one in verify(store, ["broken"])} == {"broken"}
    with pytest.raises(StoreError, match="found no snapshot 'nobody'; there are: broken, whole"):
        verify(store, ["nobody"])


def test_a_store_that_is_none_is_named(tmp_path):
    for look in (verify, list_snapshots, lambda s: collect(s, dry_run=True)):
        with pytest.raises(StoreError, match="found no table 'snapshots' there"):
            look(str(tmp_path / "nowhere"))
