"""IAS-Lab RGBD-ID against a tiny copy of it made by hand."""

import shutil

import numpy as np
import pytest

from csip import protocols
from csip.errors import SourceError
from csip.ingest.benchmarks.ias import ias


@pytest.fixture
def make(make_folder):
    return make_folder("ias")


@pytest.fixture
def root(make, tmp_path):
    make(tmp_path / "ias")
    return tmp_path / "ias"


def look(root):
    return ias(root, "ias:here")


def tracklets(benchmark, protocol=protocols.IAS_A):
    rows = [row for row in benchmark.splits if row.protocol == protocol]
    return {row.tracklet_id.partition("-")[2]: (row.role, row.pid, row.frames) for row in rows}


def load(benchmark, name):
    return benchmark.load(f"{benchmark.digest[:12]}-{name}")


def test_training_is_cut_at_its_begin_only_and_people_are_numbered_by_their_folders(root):
    # Folders were made in reverse order: who numbers people as they are listed has them mixed up.
    assert tracklets(look(root)) == {
        "train-000": ("train", 0, (10, 39)),
        # Frame 2 has no skeleton: the first ten that have one end with frame 10.
        "train-001": ("train", 1, (11, 37)),
        "train-002": ("train", 2, (10, 35)),
        "train-003": ("train", 3, (10, 16)),
        "a-000": ("query", 0, (10, 29)),
        "a-001": ("query", 1, (10, 34)),
        "a-002": ("query", 2, (10, 15)),
        "a-003": ("query", 3, (10, 14)),
        "b-000": ("gallery", 0, (10, 31)),
        "b-001": ("gallery", 1, (10, 30)),
        "b-002": ("gallery", 2, (10, 27)),
        "b-003": ("gallery", 3, (10, 25)),
    }


def test_the_protocols_train_on_the_same_and_swap_who_asks(root):
    benchmark = look(root)
    a, b = (tracklets(benchmark, protocol) for protocol in (protocols.IAS_A, protocols.IAS_B))
    other = {"train": "train", "query": "gallery", "gallery": "query"}
    assert b == {name: (other[role], pid, frames) for name, (role, pid, frames) in a.items()}
    assert {(row.split, row.camid, row.camera) for row in benchmark.splits} == {("0", 0, "ias-kinect")}


def test_what_was_found_and_left_out_is_counted(root):
    counts = look(root).counts
    # 40 + 38 + 36 + 17, 40 + 45 + 26 + 25, 42 + 41 + 38 + 36
    assert counts["skeleton files"] == 131 + 136 + 157
    assert counts["skeletons"] == 424 - 1
    assert counts["frames left out: a joint of tracking state 0"] == 1
    assert counts["frames cut off at the ends of sequences"] == 4 * 10 + 8 * 20
    assert [counts[f"{word} sequences"] for word in ("train", "a", "b")] == [4, 4, 4]


def test_lines_that_copy_others_are_taken_as_they_are(root):
    tracklet = load(look(root), "b-002")
    for copy, of in ((6, 7), (10, 11), (14, 15), (18, 19), (0, 1)):
        assert np.array_equal(tracklet.keypoints[:, copy], tracklet.keypoints[:, of])
    lines = (root / "TestingB/002/002_000012_skel.txt").read_text().splitlines()
    written = np.array([[float(number) for number in line.split(",")[1:4]] for line in lines])
    assert tracklet.keypoints[12] == pytest.approx(written)
    assert (tracklet.pid, tracklet.layout, tracklet.images) == (2, "kinect20", ())


def test_the_second_person_in_a_file_decides_nothing(root):
    path = root / "TestingB/002/002_000012_skel.txt"
    path.write_text(path.read_text() + path.read_text().replace(",2,0,", ",0,0,"))
    benchmark = look(root)
    assert load(benchmark, "b-002").has_skeleton.all()
    assert benchmark.counts["frames of more than 20 lines, of which the first 20 count"] == 1


@pytest.mark.parametrize("stem", ["frame{frame}", "{pid:03d}-{frame}-{frame}77", "{frame:04d}"])
def test_frames_follow_the_numbers_in_their_names(make, root, tmp_path, stem):
    make(tmp_path / "other", stem=stem)
    expected, found = load(look(root), "train-000"), load(look(tmp_path / "other"), "train-000")
    assert found.frame_index.tolist() == list(range(40))
    assert np.array_equal(found.keypoints, expected.keypoints)


def test_a_missing_skeleton_file_is_counted_where_other_streams_tell_of_it(root):
    (root / "TestingA/001/001_000020_skel.txt").unlink()
    benchmark = look(root)
    assert benchmark.counts["frames of other streams without a skeleton file"] == 1
    assert len(load(benchmark, "a-001")) == 44


FAULTS = {
    "no session": (lambda root: shutil.rmtree(root / "TestingA"), r"missing or empty folders: TestingA: expected it"),
    "a stranger is tested": (
        lambda root: shutil.rmtree(root / "Training/002"),
        r"people tested but not trained on: 002: expected them in Training too",
    ),
    "a person in one test": (
        lambda root: shutil.rmtree(root / "TestingA/002"),
        r"people in one test only: 002: found in TestingB, expected them in TestingA too",
    ),
    "a header": (
        lambda root: (root / "Training/000/000_000003_skel.txt").write_text("x,y,z\n"),
        r"lines that are not 14 numbers: Training/000/000_000003_skel.txt, line 1: found 'x,y,z'",
    ),
    "no stem": (
        lambda root: (root / "Training/000/000_000003_skel.txt").rename(root / "Training/000/_skel.txt"),
        r"names of skeleton files that cannot be read: Training/000/_skel.txt: expected a stem",
    ),
    "a folder that is no person's": (
        lambda root: (root / "TestingB/extra").mkdir(),
        r"folders that are no person's: TestingB/extra: expected three digits",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_not_ias_is_refused_with_the_place(root, fault):
    spoil, message = FAULTS[fault]
    spoil(root)
    with pytest.raises(SourceError, match=rf"(?s)^Source ias:here: found \d+ things.*{message}"):
        look(root)
