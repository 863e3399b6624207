"""Data sets of one's own, in each form, against one whose every role, frame and pixel can be worked out by hand."""

import csv
import io
import os
import random
import shutil
import time
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from csip import tables
from csip.config import BenchmarkConfig, ExtractConfig, RuntimeConfig, TrackConfig
from csip.errors import DecoderLostError, SourceError, VideoError
from csip.ingest import decoder_process
from csip.ingest.benchmarks import importing
from csip.ingest.benchmarks.crops import NoSkeletons, SidecarSkeletons, Skeletons
from csip.ingest.benchmarks.importing import import_benchmark, open_benchmark
from csip.ingest.benchmarks.labelled import labelled
from csip.ingest.benchmarks.labelled_cutting import Cutter, Track
from csip.ingest.decoder import Decoder
from csip.ingest.video import probe
from csip.joints import COCO17
from csip.protocols import LABELLED, PROTOCOLS
from csip.types import TableRef

SIDECARS = ExtractConfig().benchmark.skeleton_folder
FORMS = ("folder", "videos", "manifest", "pictures")
INDEX = {"folder": "", "videos": "identities.csv", "manifest": "manifest.csv", "pictures": "manifest.csv"}
# What the maker's data set comes to: role, pid, camid (camera 10 behind 2), camera, frames, number of the walk.
EXPECTED = {
    *{("train", 1, 0, "2", 3, 0), ("train", 1, 1, "10", 2, 1), ("train", 4, 0, "2", 4, 2)},
    *{("query", 7, 0, "2", 4, 3), ("query", 9, 1, "10", 3, 4)},
    *{("gallery", 0, 0, "2", 2, 5), ("gallery", 7, 1, "10", 3, 6)},
    *{("gallery", 9, 0, "2", 12, 7), ("gallery", 9, 1, "10", 4, 8)},
}


class CornersOfCrops:
    """Stands in for a pose model: the first joint lies in a crop's left upper corner, the second in the other one."""

    layout, digest, extractor = COCO17.name, "corners", {"name": "corners"}
    reads_sidecars = False

    def __call__(self, files, images):
        keypoints = np.zeros((len(files), 17, 3), np.float32)
        found = np.array([i != 1 for i in range(len(files))])
        for i in np.flatnonzero(found):
            keypoints[i, 1, :2] = Image.open(io.BytesIO(images[i])).size
            keypoints[i, :, 2] = 1
        return Skeletons(keypoints, found, 1.0)


def look(path, skeletons=None, config=None):
    return labelled(path, "labelled:here", skeletons or NoSkeletons(), config or ExtractConfig(), RuntimeConfig())


def named(root, form, suffix=".csv"):
    """What the user names: the folder, or the manifest in it."""
    return root / f"manifest{suffix}" if form in ("manifest", "pictures") else root


def shown(tracklet):
    """Walk and position that each crop shows, read back from its colour (see the maker)."""
    seen = []
    for image in tracklet.images:
        pixels = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))[4:-4, 3:-3].reshape(-1, 3).mean(axis=0)
        seen.append((round((pixels[0] - 30) / 24), round((pixels[1] - 20) / 16)))
    return seen


def edit(path, change):
    """Let `change` edit the rows of a CSV file in place."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows = change(rows) or rows
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def put(**cells):
    """Change cells of the first row, which is on line 2."""
    return lambda rows: rows[0].update(cells)


def cut_off(path):
    """Leave a video without its last bytes, its index before them."""
    whole = path.rename(path.with_suffix(".whole.mp4"))
    with av.open(str(whole)) as source, av.open(str(path), "w", options={"movflags": "+faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    whole.unlink()
    path.write_bytes(path.read_bytes()[:-600])


@pytest.fixture
def make(make_folder):
    return make_folder("labelled")


@pytest.fixture(scope="session")
def made(make_folder, tmp_path_factory):
    """Each form, written once; read-only."""
    roots = {form: tmp_path_factory.mktemp(form) / "own" for form in FORMS}
    for form, root in roots.items():
        make_folder("labelled")(root, form, skeletons=SIDECARS)
    return roots


@pytest.fixture
def own(made, tmp_path):
    """A copy of a form that may be changed."""

    def copy(form):
        shutil.copytree(made[form], tmp_path / form)
        return tmp_path / form

    return copy


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_people_cameras_and_crops(made, form):
    benchmark = look(named(made[form], form))
    found = set()
    for row in benchmark.splits:
        tracklet = benchmark.load(row.tracklet_id)
        assert (tracklet.tracklet_id, tracklet.pid, tracklet.camid) == (row.tracklet_id, row.pid, row.camid)
        walks, positions = zip(*shown(tracklet), strict=True)
        assert len(set(walks)) == 1
        assert positions == tuple(range(len(tracklet)))
        found.add((row.role, row.pid, row.camid, row.camera, len(tracklet), walks[0]))
    assert found == EXPECTED
    assert len(benchmark.splits) == len(EXPECTED)
    assert {(row.protocol, row.split, row.frames, row.group) for row in benchmark.splits} == {(LABELLED, "0", None, "")}
    assert benchmark.name in PROTOCOLS
    assert (benchmark.name, benchmark.layout, dict(benchmark.extractor)) == ("labelled", "", {})


@pytest.mark.parametrize("form", FORMS)
def test_what_was_found_and_left_out_is_counted(made, form):
    counts = dict(look(named(made[form], form)).counts)
    of_form = {"files that are no pictures": 0, "junk tracklets left out": 0}
    if form == "videos":
        of_form = {"videos": 2, "junk tracklets left out": 0, "junk boxes left out": 0, "boxes cut off by the frame": 0}
    assert counts == {
        **{"training people": 2, "training tracklets": 3, "training pictures": 9},
        **{"query people": 2, "query tracklets": 2, "queries that cannot match": 0},
        **{"gallery tracklets": 4, "distractor tracklets among them": 1, "test pictures": 28},
        **of_form,
    }


def test_tracklets_are_numbered_within_their_split_by_person_camera_and_name(made):
    benchmark = look(made["folder"])
    assert [(row.tracklet_id.removeprefix(benchmark.digest[:12]), row.pid, row.camera) for row in benchmark.splits] == [
        *[("-gallery-000001", 0, "2"), ("-gallery-000002", 7, "10"), ("-gallery-000003", 9, "2")],
        *[("-gallery-000004", 9, "10"), ("-query-000001", 7, "2"), ("-query-000002", 9, "10")],
        *[("-train-000001", 1, "2"), ("-train-000002", 1, "10"), ("-train-000003", 4, "2")],
    ]


@pytest.mark.parametrize("form", ["videos", "manifest", "pictures"])
def test_csv_and_parquet_say_the_same(make, made, tmp_path, form):
    make(tmp_path / "own", form, suffix=".parquet")
    if form == "videos":  # the encoder may write other bytes another time
        for video in made[form].glob("*.mp4"):
            shutil.copy(video, tmp_path / "own")
    as_csv, as_parquet = (
        look(named(root, form, end)) for root, end in ((made[form], ".csv"), (tmp_path / "own", ".parquet"))
    )
    assert (as_csv.digest, as_csv.splits) == (as_parquet.digest, as_parquet.splits)


@pytest.mark.parametrize(
    ("form", "first", "step"), [("folder", 0, 1), ("manifest", 0, 1), ("pictures", 5, 1), ("videos", 5, 1)]
)
def test_frames_have_the_source_s_numbers_where_it_has_any(made, form, first, step):
    # The walk of person 9 under camera 10 that answers begins in frame 5.
    benchmark = look(named(made[form], form))
    row = next(row for row in benchmark.splits if (row.role, row.pid, row.camera) == ("gallery", 9, "10"))
    assert benchmark.load(row.tracklet_id).frame_index.tolist() == list(range(first, first + 4, step))


def test_pictures_are_stored_as_they_are_and_in_the_order_of_their_numbers(made):
    benchmark = look(made["folder"])
    row = next(row for row in benchmark.splits if (row.role, row.pid, row.camera) == ("gallery", 9, "2"))
    folder = made["folder"] / "gallery/0009/2/a"
    assert benchmark.load(row.tracklet_id).images == tuple((folder / f"{n}.jpg").read_bytes() for n in range(1, 13))


def test_crops_of_videos_have_boxes_in_the_frame_and_its_time(own):
    # The first row of camera 10 is the first frame of person 1, walk 1: x from 16 + 2. Its box now sticks out.
    root = own("videos")
    edit(root / "identities.csv", put(x1="-3.5", y1="7.2", x2="29.01", y2="60"))
    benchmark = look(root)
    row = next(row for row in benchmark.splits if (row.role, row.pid, row.camera) == ("train", 1, "10"))
    tracklet = benchmark.load(row.tracklet_id)
    assert tracklet.boxes.tolist() == [[0, 7, 30, 48], [18, 8, 30, 40]]
    assert [Image.open(io.BytesIO(image)).size for image in tracklet.images] == [(30, 41), (12, 32)]
    assert tracklet.time.tolist() == pytest.approx([0, 0.1])  # ten frames a second
    assert set(tracklet.media_types) == {"image/jpeg"}
    assert benchmark.counts["boxes cut off by the frame"] == 1


@pytest.mark.parametrize("form", ["videos", "folder"])
def test_flat_skeletons_lie_in_the_pixels_of_the_box(made, form):
    benchmark = look(made[form], CornersOfCrops())
    assert benchmark.layout == "coco17"
    for row in benchmark.splits:
        tracklet = benchmark.load(row.tracklet_id)
        seen = tracklet.has_skeleton
        assert tracklet.keypoints[seen, 0, :2].tolist() == tracklet.boxes[seen, :2].tolist()
        assert tracklet.keypoints[seen, 1, :2].tolist() == tracklet.boxes[seen, 2:].tolist()
        assert not tracklet.keypoints[~seen].any()


@pytest.mark.parametrize("form", FORMS)
def test_side_car_files_pair_with_their_own_frames_and_missing_ones_shift_nothing(made, form):
    benchmark = look(named(made[form], form), SidecarSkeletons())
    assert benchmark.layout == "h36m17"
    assert benchmark.counts["frames without a side-car file"] == 9  # one a walk
    for row in benchmark.splits:
        tracklet = benchmark.load(row.tracklet_id)
        positions = [i for i in range(len(tracklet)) if i != 1]
        assert np.flatnonzero(tracklet.has_skeleton).tolist() == positions
        # The maker writes position and walk into joint 16; 3D joints are not moved.
        assert tracklet.keypoints[positions, 16, 0].tolist() == positions
        assert {tuple(pair) for pair in tracklet.keypoints[positions, 16, 1:].tolist()} == {
            (shown(tracklet)[0][0], 0.5)
        }


def test_side_car_files_that_nothing_needs_are_counted(own):
    root = own("folder")
    (root / SIDECARS / "train/0001/2/a/99.json").write_text("{}")
    assert look(root, SidecarSkeletons()).counts["side-car files of no picture"] == 1


@pytest.mark.parametrize("form", FORMS)
def test_junk_is_left_out_and_counted(make, tmp_path, form):
    walks = (
        *(("train", 1, "2", "a", 0, 2), ("query", 7, "2", "a", 0, 2), ("gallery", 7, "10", "a", 0, 2)),
        *(("gallery", -1, "2", "j", 0, 3), ("gallery", -1, "77", "j", 0, 2)),
    )
    make(tmp_path / "own", form, walks=walks)
    if form == "folder":
        (tmp_path / "own/gallery/-001").rename(tmp_path / "own/gallery/-1")
    if form == "videos":
        (tmp_path / "own/cam77.mp4").unlink()  # nobody needs it
    benchmark = look(named(tmp_path / "own", form))
    assert {row.pid for row in benchmark.splits} == {1, 7}
    assert {row.camera for row in benchmark.splits} == {"2", "10"}
    assert benchmark.counts["junk tracklets left out"] == 2
    if form == "videos":
        assert benchmark.counts["junk boxes left out"] == 5


def test_a_data_set_that_is_only_evaluated_needs_no_training_people(own):
    root = own("folder")
    shutil.rmtree(root / "train")
    assert look(root).counts["training tracklets"] == 0


def test_queries_that_cannot_match_are_counted(own):
    root = own("folder")
    shutil.rmtree(root / "gallery/0007")  # asked for under camera 2, now nowhere else
    assert look(root).counts["queries that cannot match"] == 1


def test_cameras_are_numbered_by_name_where_one_is_no_number(own):
    root = own("folder")
    for camera in root.glob("*/*/2"):
        camera.rename(camera.with_name("gate"))
    assert {(row.camera, row.camid) for row in look(root).splits} == {("10", 0), ("gate", 1)}


def test_other_files_are_counted_and_hidden_ones_are_not(own):
    root = own("folder")
    (root / "train/0001/2/a/notes.txt").write_text("x")
    (root / "train/0001/2/a/.hidden.jpg").write_text("x")
    (root / "readme.txt").write_text("x")
    assert look(root).counts["files that are no pictures"] == 1


def test_a_manifest_may_do_without_names_of_tracklets(own):
    root = own("manifest")
    edit(root / "manifest.csv", lambda rows: [{k: v for k, v in row.items() if k != "tracklet"} for row in rows])
    assert len(look(root / "manifest.csv").splits) == len(EXPECTED)


def test_a_manifest_may_have_other_columns_spaces_empty_lines_and_a_byte_order_mark(own):
    root = own("manifest")
    before = look(root / "manifest.csv")
    edit(root / "manifest.csv", lambda rows: [{"note": "a, b", **row, "pid": f" {row['pid']}"} for row in rows])
    text = (root / "manifest.csv").read_text().replace("\n", "\n\n")
    (root / "manifest.csv").write_text("\ufeff" + text)
    assert look(root / "manifest.csv").digest == before.digest


def overwrite(path, content=b""):
    path.write_bytes(content)


def in_folder(action):
    return ("folder", action)


def in_index(form, change):
    return (form, lambda root: edit(root / INDEX[form], change))


def append(form, line):
    def change(root):
        with (root / INDEX[form]).open("a") as file:
            file.write(line + "\n")

    return (form, change)


def add(path, like="train/0001/2/a"):
    return in_folder(lambda root: shutil.copytree(root / like, root / path))


WRONG = {
    # Folders.
    "an unknown split": (
        add("val/0001/2/a"),
        r"splits of an unknown name: found folder 'val', expected train, query",
    ),
    "a person without a number": (add("train/bob/2/a"), r"people without a number: train/bob/2/a: found 'bob'"),
    "a person below junk": (add("gallery/-2/2/a"), r"people without a number: gallery/-2/2/a: found '-2'"),
    "a distractor that trains": (add("train/0/2/a"), r"distractors outside of the gallery: train/0/2/a: found pid 0"),
    "a person on both sides": (
        add("train/07/2/a"),
        r"(?s)people in both train and query: pid 7: found at train/07/2/a and at query/0007/2/a.*and gallery: pid",
    ),
    "one person spelt twice": (
        add("train/1/2/a"),
        r"tracklets that stand there twice: train/1/2/a: found again what tra",
    ),
    "one camera spelt twice": (add("train/0001/02/a"), r"cameras of the same number: found '0?2' and '0?2'"),
    "an empty tracklet": (
        in_folder(lambda root: (root / "train/0001/2/b").mkdir()),
        r"tracklets without a picture: train/0001/2/b: expected .jpg",
    ),
    "an empty camera": (
        in_folder(lambda root: (root / "train/0001/5").mkdir()),
        r"empty folders: train/0001/5: expected folders <tracklet> in it",
    ),
    "a picture too high": (
        in_folder(lambda root: shutil.copy(root / "train/0001/2/a/1.jpg", root / "train/0001/2")),
        r"pictures outside of a tracklet's folder: train/0001/2/1.jpg",
    ),
    "a folder too low": (add("train/0001/2/a/more"), r"folders inside of tracklets: train/0001/2/a/more"),
    "an empty picture": (
        in_folder(lambda root: (root / "train/0001/2/a/2.jpg").write_bytes(b"")),
        r"empty pictures: train/0001/2/a/2.jpg: found 0 bytes",
    ),
    "two pictures of a name": (
        in_folder(lambda root: shutil.copy(root / "train/0001/2/a/2.jpg", root / "train/0001/2/a/2.png")),
        r"pictures of the same name: train/0001/2/a/2.png: found train/0001/2/a/2.jpg beside it",
    ),
    "no queries": (
        in_folder(lambda root: shutil.rmtree(root / "query")),
        r"splits without a tracklet: query: found none",
    ),
    "no gallery": (
        in_folder(lambda root: shutil.rmtree(root / "gallery")),
        r"splits without a tracklet: gallery: found none",
    ),
    "no query that can match": (
        in_folder(lambda root: [shutil.rmtree(root / "gallery" / name) for name in ("0007", "0009")]),
        r"query splits in which no query can match: found none among 2",
    ),
    # Manifests: the first row is on line 2.
    "a folder that is not there": (
        in_index("manifest", put(path="pictures/99")),
        r"missing folders: manifest.csv line 2: found no folder 'pictures/99'",
    ),
    "a folder named twice": (
        in_index("manifest", lambda rows: rows[1].update(path="./pictures//0")),
        r"paths that stand there twice: manifest.csv line 3: found 'pictures/0' as manifest.csv line 2",
    ),
    "a tracklet named twice": (
        in_index("manifest", lambda rows: rows[1].update(camera="2")),
        r"tracklets that stand there twice: manifest.csv line 3: found again what manifest.csv line 2 has",
    ),
    "a way out of the folder": (
        in_index("manifest", put(path="../elsewhere")),
        r"paths that leave the folder: manifest.csv line 2: found '../elsewhere'",
    ),
    "an absolute path": (
        in_index("manifest", put(path="/etc")),
        r"paths that leave the folder: .*line 2: found '/etc'",
    ),
    "no path": (in_index("manifest", put(path="")), r"paths that leave the folder: manifest.csv line 2: found ''"),
    "a pid that is no number": (
        in_index("manifest", put(pid="1.5")),
        r"cells of another kind: manifest.csv line 2: found pid '1.5', expected a whole number",
    ),
    "a pid that is too low": (
        in_index("manifest", put(pid="-2")),
        r"people without a number: manifest.csv line 2: found pid -2",
    ),
    "a split that is unknown": (
        in_index("manifest", put(split="test")),
        r"splits of an unknown name: manifest.csv line 2: found 'test', expected train, query, gallery",
    ),
    "no camera": (in_index("manifest", put(camera=" ")), r"cameras without a name: manifest.csv line 2: found ''"),
    "a line of too few cells": (
        append("manifest", "pictures/9,3"),
        r"lines that cannot be read: manifest.csv line 11: found 2 cells, expected 5",
    ),
    "a column that is missing": (
        in_index("manifest", lambda rows: [{k: v for k, v in row.items() if k != "pid"} for row in rows]),
        r"index files without all columns: .*found path, camera, split, tracklet, expected path, pid, camera, split",
    ),
    "no rows": (
        ("manifest", lambda root: overwrite(root / "manifest.csv", b"path,pid,camera,split\n")),
        r"index files without rows: .*manifest.csv: found columns path, pid, camera, split and nothing below",
    ),
    "no bytes": (
        ("manifest", lambda root: overwrite(root / "manifest.csv")),
        r"index files without all columns: .*manifest.csv: found none",
    ),
    "other bytes": (
        ("manifest", lambda root: overwrite(root / "manifest.csv", b"path,pid,camera,split\n\xff\xfe,1,2,train\n")),
        r"index files that cannot be read: .*manifest.csv: ",
    ),
    "a column named twice": (
        ("manifest", lambda root: overwrite(root / "manifest.csv", b"path,pid,pid,camera,split\na,1,1,2,train\n")),
        r"columns that stand there twice: .*manifest.csv: found pid more than once",
    ),
    "a picture that is not there": (
        in_index("pictures", put(path="pictures/0/99.jpg")),
        r"missing pictures: pictures/0/99.jpg",
    ),
    "a file that is no picture": (
        in_index("pictures", put(path="manifest.csv")),
        r"names of no picture: manifest.csv: expected .jpg",
    ),
    "a picture named twice": (
        in_index("pictures", put(path="pictures/0/2.jpg")),
        r"paths that stand there twice: manifest.csv line 3: found 'pictures/0/2.jpg' as manifest.csv line 2",
    ),
    "a frame named twice": (
        in_index("pictures", put(frame="1")),
        r"frames that a tracklet has twice: manifest.csv line 3: found frame 1 as manifest.csv line 2",
    ),
    "a frame below 0": (
        in_index("pictures", put(frame="-1")),
        r"frames below 0: manifest.csv line 2: found frame -1",
    ),
    "pictures of no tracklet": (
        in_index("pictures", lambda rows: [{k: v for k, v in row.items() if k != "tracklet"} for row in rows]),
        r"found frame without tracklet, expected both",
    ),
    # Videos: the first row is of camera 10, frame 0, person 1.
    "a video that is not there": (
        in_index("videos", put(video="cam3.mp4")),
        r"missing videos: identities.csv line 2: found no file 'cam3.mp4'",
    ),
    "a video elsewhere": (
        in_index("videos", put(video="/tmp/cam3.mp4")),
        r"paths that leave the folder: identities.csv line 2: found '/tmp/cam3.mp4'",
    ),
    "a video that is none": (
        ("videos", lambda root: overwrite(root / "cam10.mp4", b"no video")),
        r"videos that cannot be read: .*cam10.mp4: 8 bytes",
    ),
    "a frame behind the end": (
        in_index("videos", put(frame="14")),
        r"frames outside of their video: identities.csv line 2: found frame 14, expected 0 to 13 of cam10.mp4",
    ),
    "a frame before the begin": (
        in_index("videos", put(frame="-1")),
        r"frames outside of their video: identities.csv line 2: found frame -1",
    ),
    "a box without area": (
        in_index("videos", put(x1="30", x2="30")),
        r"boxes without area: identities.csv line 2: found \[30.0, 8.0, 30.0, 40.0\]",
    ),
    "a box outside": (
        in_index("videos", put(y1="48", y2="60")),
        r"boxes outside of the frame: identities.csv line 2: .* in a frame of 144 x 48 pixels",
    ),
    "a box of no numbers": (
        in_index("videos", put(x1="nan")),
        r"cells of another kind: identities.csv line 2: found x1 'nan', expected a number",
    ),
    "a tracklet of two cameras": (
        in_index("videos", put(camera="3")),
        r"tracklets of more than one camera: identities.csv line \d+: found camera '10', and '3' in identities",
    ),
    "a tracklet of two splits": (
        in_index("videos", put(split="gallery")),
        r"tracklets of more than one split: identities.csv line \d+: found split 'train', and 'gallery' in identities",
    ),
    "a frame twice": (
        in_index("videos", lambda rows: [*rows, rows[0]]),
        r"frames that a tracklet has twice: identities.csv line 39: found frame 0 as identities.csv line 2",
    ),
    "a tracklet without a name": (
        in_index("videos", put(tracklet="")),
        r"tracklets without a name: identities.csv line 2: found ''",
    ),
    "an incomplete video": (
        ("videos", lambda root: cut_off(root / "cam2.mp4")),
        r"videos that are not complete: identities.csv line \d+: found \d+ frames in cam2.mp4, expected the 14 that",
    ),
    "two identity files": (
        ("videos", lambda root: (root / "identities.parquet").write_bytes(b"")),
        r"found identities.csv and identities.parquet, expected one of them",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_refused_by_name_and_place(own, what):
    (form, change), message = WRONG[what]
    root = own(form)
    change(root)
    with pytest.raises(SourceError, match=message):
        look(named(root, form))


def test_one_message_lists_everything_that_is_wrong(own):
    root = own("folder")
    (root / "train/0001/2/a/1.jpg").write_bytes(b"")
    (root / "gallery/0009/2/a/3.jpg").write_bytes(b"")
    (root / "train/bob").mkdir()
    with pytest.raises(
        SourceError,
        match=r"found 3 things that are wrong \(2 empty pictures, 1 empty folders\)|1 empty folders, 2 empty pictures",
    ):
        look(root)


@pytest.mark.parametrize("form", FORMS)
def test_side_car_files_are_checked_too(own, form):
    root = own(form)
    victim = min((root / SIDECARS).rglob("*.json"))
    victim.write_bytes(b"")
    with pytest.raises(SourceError, match=rf"empty side-car files: {SIDECARS}/.*json: found 0 bytes"):
        look(named(root, form), SidecarSkeletons())
    shutil.rmtree(root / SIDECARS)
    with pytest.raises(SourceError, match=r"skeleton folders without a file of any (picture|frame)"):
        look(named(root, form), SidecarSkeletons())


@pytest.mark.parametrize("name", ["nothing", "a file.txt"])
def test_what_has_none_of_the_forms_is_refused(tmp_path, name):
    path = tmp_path / name
    path.write_text("x") if path.suffix else path.mkdir()
    with pytest.raises(SourceError, match=r"found none of the three forms there, expected a folder with train, query"):
        look(path)


def test_damaged_parquet_and_nested_columns_are_refused(make, tmp_path):
    make(tmp_path / "own", "manifest", suffix=".parquet")
    path = tmp_path / "own/manifest.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, "pid", pa.array([[1]] * len(table))), path)
    with pytest.raises(
        SourceError, match=r"columns of another kind: .*found pid as list<.*>, expected text or numbers"
    ):
        look(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(SourceError, match=r"index files that cannot be read: .*manifest.parquet: Arrow"):
        look(path)


def test_text_in_parquet_is_utf_8(make, tmp_path):
    make(tmp_path / "own", "manifest", suffix=".parquet")
    path = tmp_path / "own/manifest.parquet"
    table = pq.read_table(path)
    cameras = pa.array([b"\xff"] * len(table), pa.binary()).view(pa.string())
    pq.write_table(table.set_column(table.schema.names.index("camera"), "camera", cameras), path)
    with pytest.raises(SourceError, match=r"index files that cannot be read: .*Invalid UTF8"):
        look(path)


def test_empty_cells_of_parquet_are_named_by_their_row(make, tmp_path):
    make(tmp_path / "own", "manifest", suffix=".parquet")
    path = tmp_path / "own/manifest.parquet"
    table = pq.read_table(path)
    pids = [None, *table["pid"].to_pylist()[1:]]
    pq.write_table(table.set_column(table.schema.names.index("pid"), "pid", pa.array(pids, pa.int64())), path)
    with pytest.raises(
        SourceError, match=r"cells of another kind: manifest.parquet row 1: found pid '', expected a whole"
    ):
        look(path)


def counted_readings(patch):
    """Count how often each video is decoded."""
    readings = []

    def read(decoder, video, *, give=Decoder.frames, **options):
        readings.append(video.path.name)
        yield from give(decoder, video, **options)

    patch.setattr(Decoder, "frames", read)
    return readings


def test_a_video_is_decoded_once_for_each_role_in_it(made, monkeypatch):
    readings = counted_readings(monkeypatch)
    benchmark = look(made["videos"])
    for name in sorted(row.tracklet_id for row in benchmark.splits):
        benchmark.load(name)
    assert readings == ["cam10.mp4", "cam2.mp4"] * 3


def test_an_interrupted_import_reads_the_rest_in_one_go_too(made, monkeypatch):
    benchmark = look(made["videos"])
    names = sorted(row.tracklet_id for row in benchmark.splits if row.role == "gallery")
    whole = [benchmark.load(name) for name in names]
    readings = counted_readings(monkeypatch)
    again = look(made["videos"])
    assert again.load(names[1]).images == whole[1].images
    assert again.load(names[3]).images == whole[3].images
    assert readings == ["cam10.mp4", "cam2.mp4"]


def test_any_order_gives_the_same_crops(made):
    names = sorted(row.tracklet_id for row in look(made["videos"]).splits)
    forwards, anyhow = look(made["videos"]), look(made["videos"])
    images = {name: forwards.load(name).images for name in names}
    random.Random(3).shuffle(names)
    assert {name: anyhow.load(name).images for name in names} == images


def replace_child(patch, tmp_path, code):
    """Let the decoder's process run `code` first, which may change what it finds."""
    script = tmp_path / "child.py"
    script.write_text(f"import os, time\nfrom csip.ingest import decoder_child\n{code}\ndecoder_child.main()\n")
    patch.setattr(decoder_process, "CHILD", (str(script),))


BREAKS = {"crashes": ("os.kill(os.getpid(), 11)", "died of SIGSEGV"), "hangs": ("time.sleep(60)", "hung")}


@pytest.mark.parametrize("how", BREAKS)
def test_a_video_over_which_the_decoder_breaks_is_named_and_costs_no_more(made, tmp_path, monkeypatch, how):
    does, told = BREAKS[how]
    code = f"""
probe = decoder_child.probe
def broken(path, *rest):
    if path.name == "cam2.mp4":
        {does}
    return probe(path, *rest)
decoder_child.probe = broken
"""
    replace_child(monkeypatch, tmp_path, code)
    runtime = RuntimeConfig(decode_stall_seconds=2)
    with pytest.raises(SourceError, match=rf"1 videos that cannot be read[\s\S]*cam2\.mp4: the decoder.*{told}"):
        labelled(made["videos"], "labelled:here", NoSkeletons(), ExtractConfig(), runtime)


@pytest.mark.parametrize("how", BREAKS)
def test_an_import_that_a_decoder_breaks_names_the_video_and_goes_on_the_next_time(
    made, out, run, tmp_path, monkeypatch, how
):
    does, told = BREAKS[how]
    code = f"""
read = decoder_child.read_images
def broken(path, *rest):
    for one in read(path, *rest):
        if path.name == "cam2.mp4" and one[0] == 5:
            {does}
        yield one
decoder_child.read_images = broken
"""
    source, config = f"labelled:{made['videos']}", ExtractConfig(benchmark=BenchmarkConfig(skeletons="none"))
    with monkeypatch.context() as patch:
        replace_child(patch, tmp_path, code)
        with pytest.raises(DecoderLostError, match=rf"cam2\.mp4: the decoder.*{told}"):
            run(import_benchmark(out, source, config, RuntimeConfig(decode_stall_seconds=2)))
    assert run(import_benchmark(out, source, config, RuntimeConfig()))[1].value.name.startswith("labelled-")


def test_an_import_shows_that_it_works_while_a_video_is_read_to_its_first_labelled_frame(
    made, out, tmp_path, monkeypatch
):
    # Neither looking at the videos nor decoding them may outlast the patience with a silent stage.
    monkeypatch.setattr(importing, "_SECONDS_BETWEEN_RECORDS", 0.2)
    code = """
probe, read = decoder_child.probe, decoder_child.read_images
def slow_probe(path, alive, *rest):
    time.sleep(1)
    return probe(path, alive, *rest)
def slow_read(*args):
    time.sleep(3)
    yield from read(*args)
decoder_child.probe, decoder_child.read_images = slow_probe, slow_read
"""
    replace_child(monkeypatch, tmp_path, code)
    config = ExtractConfig(benchmark=BenchmarkConfig(skeletons="none"))
    stage = import_benchmark(out, f"labelled:{made['videos']}", config, RuntimeConfig())
    records, silences, before = [], [], time.monotonic()
    for record in stage:
        now = time.monotonic()
        silences.append(now - before)
        records.append(record.done)
        before = now
        if record.done:
            break
    stage.close()
    assert sum(silences) > 5  # two videos looked at, one read
    assert max(silences) < 2.5
    assert len(records) >= 8


def test_who_stops_an_import_does_not_wait_for_its_decoder(made, out, tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "_SECONDS_BETWEEN_RECORDS", 0.2)
    code = """
read = decoder_child.read_images
def stuck(*args):
    time.sleep(60)
    yield from read(*args)
decoder_child.read_images = stuck
"""
    replace_child(monkeypatch, tmp_path, code)
    config = ExtractConfig(benchmark=BenchmarkConfig(skeletons="none"))
    stage = import_benchmark(out, f"labelled:{made['videos']}", config, RuntimeConfig())
    while next(stage).total == 0:
        pass
    begun = time.monotonic()
    stage.close()
    assert time.monotonic() - begun < 20


def test_only_tracklets_that_have_begun_are_held(made):
    # 0..1, 1..3 and 8..9: when the second is given, the third has not begun.
    video = probe(made["videos"] / "cam2.mp4")
    boxes = np.array([[0, 0, 8, 8]])
    spans = [np.arange(0, 2), np.arange(1, 4), np.arange(8, 10)]
    tracks = [Track("train", video, span, boxes.repeat(len(span), 0)) for span in spans]
    with Decoder(RuntimeConfig()) as decoder:
        cutter = Cutter(tracks, quality=95, decoder=decoder)
        cutter.cut(0)
        cutter.cut(1)
    assert {number: len(crops) for number, crops in cutter._pass._held.items()} == {2: 0}


def test_a_frame_that_does_not_decode_is_an_error(made, monkeypatch):
    def without_frame_two(decoder, video, *, give=Decoder.frames, **options):
        for frames in give(decoder, video, **options | {"batch": 1}):
            if frames.frame_index[0] != 2:
                yield frames

    monkeypatch.setattr(Decoder, "frames", without_frame_two)
    benchmark = look(made["videos"])
    row = next(row for row in benchmark.splits if row.role == "query" and row.camera == "10")  # frames 0 to 2
    with pytest.raises(VideoError, match=r"cam10.mp4: found no picture for 1 frames of a tracklet"):
        benchmark.load(row.tracklet_id)


@pytest.mark.parametrize("form", FORMS)
def test_the_folder_s_place_its_order_and_its_times_decide_nothing(own, monkeypatch, tmp_path, form):
    root = own(form)
    before = look(named(root, form), SidecarSkeletons())
    images = before.load(before.splits[0].tracklet_id).images
    root = root.rename(tmp_path / "moved")
    if INDEX[form]:
        edit(root / INDEX[form], lambda rows: random.Random(1).shuffle(rows))
    for path in root.rglob("*"):
        os.utime(path, (1, 1))
    scandir = os.scandir

    class Shuffled:
        def __init__(self, path):
            with scandir(path) as entries:
                self.entries = list(entries)
            random.Random(str(path)).shuffle(self.entries)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", Shuffled)
    monkeypatch.chdir(tmp_path)
    after = look(named(Path("moved"), form), SidecarSkeletons())
    assert (after.digest, after.splits, after.counts) == (before.digest, before.splits, before.counts)
    monkeypatch.chdir("/")
    assert after.load(after.splits[0].tracklet_id).images == images


def longer(root, path):
    with (root / path).open("ab") as file:
        file.write(b"\0")


@pytest.mark.parametrize(
    ("form", "change"),
    [
        ("folder", lambda root: longer(root, "train/0001/2/a/1.jpg")),
        ("folder", lambda root: (root / SIDECARS / "train/0001/2/a/1.json").unlink()),
        ("folder", lambda root: (root / "train/0001/2/a").rename(root / "train/0001/2/b")),
        ("videos", lambda root: longer(root, "cam2.mp4")),
        ("videos", lambda root: edit(root / "identities.csv", put(x2="27"))),
        ("manifest", lambda root: edit(root / "manifest.csv", put(pid="2"))),
        ("pictures", lambda root: edit(root / "manifest.csv", put(frame="77"))),
    ],
)
def test_what_decides_rows_decides_the_digest(own, form, change):
    root = own(form)
    before = look(named(root, form), SidecarSkeletons())
    change(root)
    after = look(named(root, form), SidecarSkeletons())
    assert after.digest != before.digest
    assert {row.tracklet_id[:12] for row in after.splits} == {after.digest[:12]}


def test_it_becomes_a_snapshot(made, out, run):
    config = ExtractConfig(benchmark=BenchmarkConfig(skeletons="none"))
    snapshot = run(import_benchmark(out, f"labelled:{made['videos']}", config, RuntimeConfig()))[1].value
    assert snapshot.name.startswith("labelled-")
    crops = tables.read(TableRef(tables.table_uri(out.store, "crops"), snapshot.tables["crops"]))
    assert len(crops) == 37  # all frames of all walks
    splits = tables.read(TableRef(tables.table_uri(out.store, "splits"), snapshot.tables["splits"])).to_pylist()
    assert {(row["role"], row["pid"], row["camid"], row["camera"]) for row in splits} == {one[:4] for one in EXPECTED}


def test_the_quality_of_crops_decides_the_digest_of_videos_only(made):
    other = ExtractConfig(track=TrackConfig(jpeg_quality=60))
    assert look(made["videos"], config=other).digest != look(made["videos"]).digest
    assert look(made["folder"], config=other).digest == look(made["folder"]).digest


def test_a_side_car_file_that_may_not_be_read_does_not_pass_for_a_missing_one(make, tmp_path, monkeypatch):
    make(tmp_path, "pictures", skeletons="skeleton_3d_hmr2.0")
    stat = Path.stat

    def guarded(path, **how):
        if path.suffix == ".json":
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **how)

    monkeypatch.setattr(Path, "stat", guarded)
    with pytest.raises(SourceError, match=r"Source labelled:\S+: \S+\.json cannot be read \(Permission denied\)"):
        open_benchmark(f"labelled:{tmp_path / 'manifest.csv'}", ExtractConfig(), RuntimeConfig(device="cpu"))
