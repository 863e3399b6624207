"""iLIDS-VID against a tiny copy of it, where every half and frame can be worked out by hand."""

import shutil

import numpy as np
import pytest
import scipy.io

from csip import protocols
from csip.config import BenchmarkConfig
from csip.data.clips import label_of_pid
from csip.errors import SourceError
from csip.ingest.benchmarks.crops import NoSkeletons, SidecarSkeletons
from csip.ingest.benchmarks.ilids import ilids, sidecar_folder
from csip.types import TrackletPart

SIDECARS = BenchmarkConfig().skeleton_folder
SPLITS = "train-test people splits/train_test_splits_ilidsvid.mat"
FRAMES = {1: [317, 318, 320, 321], 2: [9, 10, 11]}  # as the maker has them


@pytest.fixture
def make(make_folder):
    return make_folder("ilids")


@pytest.fixture
def root(make, tmp_path):
    make(tmp_path / "ilids", skeletons=SIDECARS)
    return tmp_path / "ilids"


def look(root, skeletons=None):
    return ilids(root, "ilids:here", skeletons or SidecarSkeletons(), BenchmarkConfig())


def load(benchmark, name):
    """Load a tracklet by camera and person: cam1-person001."""
    return benchmark.load(f"{benchmark.digest[:12]}-{name}")


def half(benchmark, protocol, split, role):
    """The people of a role, each with the camera."""
    rows = [row for row in benchmark.splits if (row.protocol, row.split, row.role) == (protocol, split, role)]
    return sorted((row.pid, row.camid) for row in rows)


def test_places_in_the_splits_are_those_of_sorted_folders_and_no_numbers_of_people(root):
    # The first row is 2 4 1 3: the second and fourth folder, people 2 and 319, then people 1 and 5.
    benchmark = look(root)
    first = protocols.ILIDS_TEST_FIRST
    assert half(benchmark, first, "0", "query") == [(2, 0), (319, 0)]
    assert half(benchmark, first, "0", "gallery") == [(2, 1), (319, 1)]
    assert half(benchmark, first, "0", "train") == [(1, 0), (1, 1), (5, 0), (5, 1)]
    # The sixth is 4 1 3 2: people 319 and 1, then 5 and 2.
    assert half(benchmark, first, "5", "query") == [(1, 0), (319, 0)]
    assert half(benchmark, first, "5", "train") == [(2, 0), (2, 1), (5, 0), (5, 1)]


def test_both_readings_of_a_split_become_rows_and_swap_the_halves(root):
    benchmark = look(root)
    first, other = protocols.ILIDS_TEST_FIRST, protocols.ILIDS_TRAIN_FIRST
    assert half(benchmark, other, "0", "train") == [(2, 0), (2, 1), (319, 0), (319, 1)]
    assert half(benchmark, other, "0", "query") == [(1, 0), (5, 0)]
    assert half(benchmark, other, "0", "gallery") == [(1, 1), (5, 1)]
    for split in map(str, range(10)):
        for one, two in ((first, other), (other, first)):
            tested = half(benchmark, one, split, "query") + half(benchmark, one, split, "gallery")
            assert sorted(tested) == half(benchmark, two, split, "train")
    assert list(dict.fromkeys((row.protocol, row.split) for row in benchmark.splits)) == [
        (protocol, str(split)) for protocol in (first, other) for split in range(10)
    ]


def test_camera_1_asks_and_camera_2_answers_each_person_once(root):
    rows = [row for row in look(root).splits if row.protocol == protocols.ILIDS_TEST_FIRST]
    assert {(row.role, row.camid, row.camera) for row in rows} == {
        *{("query", 0, "ilids-1"), ("gallery", 1, "ilids-2")},
        *{("train", 0, "ilids-1"), ("train", 1, "ilids-2")},
    }
    assert len(rows) == 10 * 4 * 2
    assert all(row.tracklet_id[13:] == f"cam{row.camid + 1}-person{row.pid:03d}" for row in rows)
    assert {(row.frames, row.group) for row in rows} == {(None, "")}


def test_the_published_number_of_splits_is_ten():
    for name in (protocols.ILIDS_TEST_FIRST, protocols.ILIDS_TRAIN_FIRST):
        assert protocols.PROTOCOLS[name].splits == 10


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.float64])
def test_splits_of_any_number_type_are_the_same(make, tmp_path, kind):
    make(tmp_path / "usual", skeletons="")
    make(tmp_path / "other", kind=kind)
    usual, other = (look(tmp_path / name, NoSkeletons()) for name in ("usual", "other"))
    assert (other.digest, other.splits) == (usual.digest, usual.splits)


def test_any_number_of_splits_is_taken(make, tmp_path):
    make(tmp_path / "ilids", ls_set=((4, 3, 2, 1), (1, 2, 3, 4)))
    benchmark = look(tmp_path / "ilids", NoSkeletons())
    assert {row.split for row in benchmark.splits} == {"0", "1"}
    assert half(benchmark, protocols.ILIDS_TEST_FIRST, "0", "query") == [(5, 0), (319, 0)]
    assert benchmark.counts["splits of the people"] == 2


def test_of_an_odd_number_of_people_the_first_half_is_the_smaller_one(make, tmp_path):
    make(tmp_path / "ilids", people=(1, 2, 5, 7, 319), ls_set=((5, 1, 2, 3, 4),))
    benchmark = look(tmp_path / "ilids", NoSkeletons())
    assert half(benchmark, protocols.ILIDS_TEST_FIRST, "0", "query") == [(1, 0), (319, 0)]
    assert half(benchmark, protocols.ILIDS_TRAIN_FIRST, "0", "query") == [(2, 0), (5, 0), (7, 0)]
    assert benchmark.counts["people in the first half of each"] == 2


def test_frames_have_their_numbers_in_the_source_video_with_its_gaps(root):
    tracklet = load(look(root), "cam1-person319")
    assert (tracklet.pid, tracklet.camid, tracklet.frame_index.tolist()) == (319, 0, [317, 318, 320, 321])
    folder = root / "i-LIDS-VID/sequences/cam1/person319"
    names = [f"cam1_person319_00{n}.png" for n in (317, 318, 320, 321)]
    assert tracklet.images == tuple((folder / name).read_bytes() for name in names)
    assert tracklet.media_types == ("image/png",) * 4
    assert tracklet.boxes.tolist() == [[0, 0, 16, 32]] * 4


def test_every_tracklet_can_be_loaded_and_no_picture_is_another(root):
    benchmark = look(root)
    about = {row.tracklet_id: (row.pid, row.camid) for row in benchmark.splits}
    loaded = {name: benchmark.load(name) for name in about}
    assert {name: (one.pid, one.camid) for name, one in loaded.items()} == about
    assert sorted(about) == list(dict.fromkeys(row.tracklet_id for row in benchmark.splits))
    pictures = [image for one in loaded.values() for image in one.images]
    assert len(pictures) == len(set(pictures)) == 4 * 7


def test_what_was_found_and_left_out_is_counted(root):
    folder = root / "i-LIDS-VID/sequences/cam1"
    (folder / "person001/notes.txt").write_text("x")
    (folder / "other").mkdir()
    (root / f"i-LIDS-VID/sequences_{SIDECARS}/cam1/person001/cam1_person001_00319.json").write_text("{}")
    assert look(root).counts == {
        **{"people": 4, "pictures": 28, "splits of the people": 10, "people in the first half of each": 2},
        **{"folders that are nobody's": 1, "files that are no pictures": 1},
        **{"frames without a side-car file": 1, "side-car files of no picture": 1},
    }


def test_labels_follow_the_people_as_numbers(make, tmp_path):
    # As text 10 comes before 2, and sets of integers have an order of their own.
    make(tmp_path / "ilids", people=(2, 10, 99, 100), ls_set=((1, 2, 3, 4),))
    rows = look(tmp_path / "ilids", NoSkeletons()).splits
    for protocol, people in ((protocols.ILIDS_TEST_FIRST, (99, 100)), (protocols.ILIDS_TRAIN_FIRST, (2, 10))):
        train = [row for row in rows if (row.protocol, row.role) == (protocol, "train")]
        parts = [TrackletPart(row.tracklet_id, 1, 2, row.pid, row.camid) for row in train]
        assert label_of_pid(parts) == {people[0]: 0, people[1]: 1}


def test_skeletons_pair_with_their_own_pictures_and_missing_ones_shift_nothing(root):
    benchmark = look(root)
    assert benchmark.layout == "h36m17"
    for name, (pid, camid) in {row.tracklet_id: (row.pid, row.camid) for row in benchmark.splits}.items():
        tracklet = benchmark.load(name)
        seen = tracklet.has_skeleton
        # The maker writes frame, person and camera into joint 16.
        assert tracklet.keypoints[seen, 16, 0].tolist() == tracklet.frame_index[seen].tolist()
        assert set(map(tuple, tracklet.keypoints[seen, 16, 1:].tolist())) == {(pid, camid + 1)}
        unseen = {"cam1-person005": [318], "cam2-person001": [9]}.get(name[13:], [])
        assert tracklet.frame_index[~seen].tolist() == unseen


def test_a_person_without_side_car_files_shifts_nobody_else(root):
    shutil.rmtree(root / f"i-LIDS-VID/sequences_{SIDECARS}/cam1/person002")
    benchmark = look(root)
    assert benchmark.counts["frames without a side-car file"] == 1 + 4
    assert not load(benchmark, "cam1-person002").has_skeleton.any()
    assert load(benchmark, "cam1-person319").keypoints[:, 16, 1].tolist() == [319] * 4


def test_without_skeletons_the_side_car_files_are_not_looked_at(root):
    before = look(root, NoSkeletons())
    shutil.rmtree(root / f"i-LIDS-VID/sequences_{SIDECARS}")
    after = look(root, NoSkeletons())
    assert before.digest == after.digest
    assert (after.layout, dict(after.extractor)) == ("", {})
    assert "frames without a side-car file" not in after.counts


@pytest.mark.parametrize("below", ["raw/iLIDS-VID", "iLIDS-VID"])
def test_wherever_the_pictures_lie_the_rows_are_the_same(make, tmp_path, root, below):
    make(tmp_path / "deep", below=below, skeletons=SIDECARS)
    deep, plain = look(tmp_path / "deep"), look(root)
    assert (deep.digest, deep.splits, deep.counts) == (plain.digest, plain.splits, plain.counts)
    assert load(deep, "cam1-person002").has_skeleton.all()
    inside = look(root / "i-LIDS-VID")
    assert (inside.digest, inside.splits) == (plain.digest, plain.splits)
    assert load(inside, "cam2-person319").frame_index.tolist() == FRAMES[2]


def test_side_car_files_may_lie_beside_sequences_or_right_below_the_root(root, tmp_path):
    config = BenchmarkConfig()
    usual = root / "i-LIDS-VID" / f"sequences_{SIDECARS}"
    assert sidecar_folder(root, config) == usual
    assert sidecar_folder(root / "i-LIDS-VID", config) == usual
    before = look(root)
    usual.rename(root / SIDECARS)
    assert sidecar_folder(root, config) == root / SIDECARS
    after = look(root)
    assert (after.digest, after.splits, after.counts) == (before.digest, before.splits, before.counts)
    assert load(after, "cam1-person002").keypoints[:, 16, 0].tolist() == FRAMES[1]
    shutil.rmtree(root / SIDECARS)
    # Where there are none, the message names the place that CSIP-ReID uses.
    assert sidecar_folder(root, config) == usual


def sequences(root):
    return root / "i-LIDS-VID/sequences"


def splits(ls_set, **others):
    return lambda root: scipy.io.savemat(root / SPLITS, {"ls_set": np.array(ls_set), **others})


def rename_picture(old, new):
    def spoil(root):
        path = sequences(root) / old
        path.rename(path.with_name(new))

    return spoil


def nobody(root):
    for path in (sequences(root) / "cam2/person005").iterdir():
        path.unlink()


def one_person(root):
    for camera in (1, 2):
        for pid in (2, 5, 319):
            shutil.rmtree(sequences(root) / f"cam{camera}/person{pid:03d}")
    splits([[1]])(root)


def no_sidecars(root):
    for camera in (1, 2):
        shutil.rmtree(root / f"i-LIDS-VID/sequences_{SIDECARS}/cam{camera}")


FAULTS = {
    "no pictures at all": (
        lambda root: shutil.rmtree(sequences(root)),
        r"missing folders: .*expected sequences or i-LIDS-VID/sequences or",
    ),
    "no splits": (
        lambda root: (root / SPLITS).unlink(),
        r"missing index files: train-test people splits/train_test_splits_ilidsvid.mat: expected it in",
    ),
    "damaged splits": (
        lambda root: (root / SPLITS).write_bytes((root / SPLITS).read_bytes()[:150]),
        r"index files that cannot be read: .*train_test_splits_ilidsvid.mat",
    ),
    "other variables": (
        lambda root: scipy.io.savemat(root / SPLITS, {"inds": np.eye(2)}),
        r"index files without their matrix: .*found inds, expected ls_set",
    ),
    "fractions": (
        splits([[1.5, 2, 3, 4]]),
        r"matrices of another kind: .*found ls_set as float64 of shape \(1, 4\), expected whole numbers of shape",
    ),
    "three dimensions": (splits(np.ones((2, 2, 4))), r"matrices of another kind: .*of shape \(2, 2, 4\)"),
    "places from zero": (
        splits([[1, 2, 3, 4], [0, 1, 2, 3]]),
        r"1 splits that are no permutation.*row 2: found 0 1 times, expected each of 1 to 4 once",
    ),
    "numbers of people": (
        splits([[1, 2, 5, 319]]),
        r"splits that are no permutation.*row 1: found 5 1 times, expected",
    ),
    "a place twice": (splits([[1, 2, 2, 4]]), r"splits that are no permutation.*row 1: found 2 2 times, expected each"),
    "a split less people": (
        splits([[1, 2, 3]]),
        r"splits of another number of people: .*found 3 columns, expected 4, one for each person",
    ),
    "splits on their side": (
        splits([[1], [2], [3], [4]]),
        r"splits of another number of people: .*found 1 columns, expected 4",
    ),
    "one person alone": (one_person, r"data sets too small to halve: .*found 1 person, expected at least 2"),
    "somebody under camera 1 only": (
        lambda root: shutil.rmtree(sequences(root) / "cam2/person005"),
        r"1 people under one camera only.*found sequences/cam1/person005, expected cam2/person005 as well",
    ),
    "somebody under camera 2 only": (
        lambda root: shutil.rmtree(sequences(root) / "cam1/person005"),
        r"1 people under one camera only.*found sequences/cam2/person005, expected cam1/person005 as well",
    ),
    "an empty folder": (
        nobody,
        r"1 people without pictures.*sequences/cam2/person005: expected pictures like cam2_person005_00317.png",
    ),
    "a picture of another person": (
        rename_picture("cam1/person005/cam1_person005_00317.png", "cam1_person002_00317.png"),
        r"1 pictures with other names than their folder's.*5/cam1_person002_00317.png: expected .*cam1_person005",
    ),
    "a picture of another camera": (
        rename_picture("cam1/person005/cam1_person005_00317.png", "cam2_person005_00317.png"),
        r"1 pictures with other names than their folder's.*5/cam2_person005_00317.png: expected .*cam1_person005",
    ),
    "a number without zeros": (
        rename_picture("cam1/person005/cam1_person005_00317.png", "cam1_person005_317.png"),
        r"1 pictures with other names than their folder's.*cam1_person005_317.png: expected one like",
    ),
    "an empty picture": (
        lambda root: (sequences(root) / "cam1/person001/cam1_person001_00318.png").write_bytes(b""),
        r"1 empty pictures.*sequences/cam1/person001/cam1_person001_00318.png: found 0 bytes",
    ),
    "an empty side-car file": (
        lambda root: (root / f"i-LIDS-VID/sequences_{SIDECARS}/cam1/person001/cam1_person001_00318.json").write_bytes(
            b""
        ),
        r"1 empty side-car files.*cam1/person001/cam1_person001_00318.json: found 0 bytes",
    ),
    "no side-car file at all": (no_sidecars, r"1 skeleton folders without a file of any picture.*such as cam1/person"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_not_ilids_is_refused_with_the_place(root, fault):
    spoil, message = FAULTS[fault]
    spoil(root)
    with pytest.raises(SourceError, match=rf"(?s)^Source ilids:here: found \d+ things.*{message}"):
        look(root)


def test_everything_that_is_wrong_is_told_at_once(root):
    nobody(root)
    shutil.rmtree(sequences(root) / "cam2/person002")
    splits([[1, 1, 2, 3]])(root)
    with pytest.raises(
        SourceError,
        match=r"found 3 things that are wrong \(1 people without pictures, 1 people under one camera only, 1 splits",
    ):
        look(root)


def longer_picture(root):
    with (sequences(root) / "cam1/person001/cam1_person001_00318.png").open("ab") as file:
        file.write(b"\0")


@pytest.mark.parametrize(
    "change",
    [
        longer_picture,
        splits([[1, 2, 3, 4]]),
        lambda root: (root / f"i-LIDS-VID/sequences_{SIDECARS}/cam1/person001/cam1_person001_00318.json").unlink(),
    ],
    ids=["a picture", "the splits", "a side-car file"],
)
def test_what_decides_rows_decides_the_digest(root, change):
    before = look(root)
    change(root)
    after = look(root)
    assert after.digest != before.digest
    assert {row.tracklet_id[:12] for row in after.splits} == {after.digest[:12]}
