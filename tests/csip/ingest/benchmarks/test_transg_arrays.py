"""TranSG's arrays against tiny ones of the same kind."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from csip import protocols
from csip.errors import SourceError
from csip.ingest.benchmarks.biwi import biwi
from csip.ingest.benchmarks.ias import ias

PROGRAM = (
    "import sys; from pathlib import Path; from csip.ingest.benchmarks.biwi import biwi\n"
    "b = biwi(Path(sys.argv[1]), 'biwi:here'); print(b.digest, b.splits, sorted(b.counts.items()))"
)


@pytest.fixture
def make(make_folder):
    return make_folder("transg")


@pytest.fixture
def root(make, tmp_path):
    make(tmp_path / "arrays")
    return tmp_path / "arrays"


def look(root):
    return biwi(root, "biwi:here")


def load(benchmark, name):
    return benchmark.load(f"{benchmark.digest[:12]}-{name}")


def test_every_window_is_a_tracklet_of_its_own(root):
    benchmark = look(root)
    rows = [row for row in benchmark.splits if row.protocol == protocols.BIWI_S]
    names = [row.tracklet_id.partition("-")[2] for row in rows]
    # 30 + 24 + 20 + 22, 5 + 4 + 6, 6 + 7 + 4
    assert names == [
        *(f"train-{number:06d}" for number in range(96)),
        *(f"still-{number:06d}" for number in range(15)),
        *(f"walking-{number:06d}" for number in range(17)),
    ]
    assert [row.pid for row in rows] == [
        *([0] * 30 + [1] * 24 + [2] * 20 + [5] * 22),
        *([0] * 5 + [1] * 4 + [5] * 6),
        *([0] * 6 + [1] * 7 + [5] * 4),
    ]
    assert [row.role for row in rows] == ["train"] * 96 + ["query"] * 15 + ["gallery"] * 17
    reverse = [row for row in benchmark.splits if row.protocol == protocols.BIWI_W]
    assert [row.role for row in reverse] == ["train"] * 96 + ["query"] * 17 + ["gallery"] * 15
    assert {(row.frames, row.split, row.camera) for row in benchmark.splits} == {(None, "0", "biwi-kinect")}
    assert benchmark.counts == {
        **{"frames a window": 6, "train windows": 96, "still windows": 15, "walking windows": 17}
    }


def test_a_window_is_six_consecutive_lines_of_the_three_arrays(root):
    folder = root / "test_npy_data" / "Walking"
    axes = [np.load(folder / f"t_source_{axis}_BIWI_6.npy") for axis in "xyz"]
    tracklet = load(look(root), "walking-000008")
    assert tracklet.pid == 1
    assert tracklet.frame_index.tolist() == list(range(6))
    assert tracklet.keypoints.shape == (6, 20, 3)
    for axis in range(3):
        assert tracklet.keypoints[:, :, axis] == pytest.approx(axes[axis][48:54])
    assert np.abs(tracklet.keypoints[:, 0, 2]).min() > 1  # raw: nobody has taken the root away
    assert tracklet.has_skeleton.all()


def test_windows_that_are_there_twice_stay_there_twice(root):
    benchmark = look(root)
    second, third = (load(benchmark, f"train-{number:06d}") for number in (2, 3))
    assert np.array_equal(second.keypoints, third.keypoints)
    assert second.tracklet_id != third.tracklet_id


def test_a_pickle_is_never_read(make, tmp_path):
    traces = tmp_path / "traces"
    make(tmp_path / "arrays", poison=traces)
    benchmark = look(tmp_path / "arrays")
    load(benchmark, "train-000000")
    assert not traces.exists()
    # The poison works: whoever unpickles the file runs it.
    np.load(tmp_path / "arrays/train_npy_data/ids_BIWI_6.npy", allow_pickle=True)
    assert traces.exists()


@pytest.mark.parametrize("name", ["source_y_BIWI_6.npy", "frame_id_BIWI_6.npy"])
def test_a_pickle_in_the_place_of_numbers_is_refused_and_not_read(make, tmp_path, name):
    traces = tmp_path / "traces"
    make(tmp_path / "arrays", poison=traces)
    folder = tmp_path / "arrays" / "train_npy_data"
    shutil.copy(folder / "ids_BIWI_6.npy", folder / name)
    with pytest.raises(
        SourceError, match=rf"files that are no arrays of numbers: train_npy_data/{name}: Object arrays"
    ):
        look(tmp_path / "arrays")
    bare = (folder / "ids_BIWI_6.npy").read_bytes()
    (folder / name).write_bytes(bare[bare.index(b"\x80") :])
    with pytest.raises(SourceError, match=rf"files that are no arrays of numbers: train_npy_data/{name}"):
        look(tmp_path / "arrays")
    assert not traces.exists()


@pytest.mark.parametrize("place", ["6", "BIWI/6", "Datasets/BIWI/6"])
def test_arrays_are_found_by_the_folder_of_their_length(make, tmp_path, place):
    make(tmp_path / "bare")
    make(tmp_path / "deep" / place)
    assert look(tmp_path / "deep").digest == look(tmp_path / "bare").digest
    assert look(tmp_path / "deep" / place).digest == look(tmp_path / "bare").digest


def test_of_several_lengths_one_must_be_named(make, tmp_path):
    for frames in (4, 6, 10):
        make(tmp_path / "BIWI" / str(frames), frames=frames)
    with pytest.raises(
        SourceError, match=r"several lengths of window \(10, 4, 6\), .* Name its folder: biwi:/.*BIWI/10"
    ):
        look(tmp_path / "BIWI")
    benchmark = look(tmp_path / "BIWI" / "4")
    assert benchmark.extractor["window_frames"] == 4
    assert load(benchmark, "train-000000").keypoints.shape == (4, 20, 3)


def test_the_other_data_set_has_its_own_names(make, tmp_path):
    make(tmp_path / "ias", dataset="IAS")
    benchmark = ias(tmp_path / "ias", "ias:here")
    rows = {(row.protocol, row.role, row.tracklet_id.split("-")[1]) for row in benchmark.splits}
    assert rows == {
        *((protocol, "train", "train") for protocol in (protocols.IAS_A, protocols.IAS_B)),
        *((protocols.IAS_A, "query", "a"), (protocols.IAS_A, "gallery", "b")),
        *((protocols.IAS_B, "query", "b"), (protocols.IAS_B, "gallery", "a")),
    }
    with pytest.raises(SourceError, match=r"found 0 files source_x_BIWI_<f>.npy, expected one"):
        look(tmp_path / "ias")


def test_an_older_release_is_refused_by_its_name(root):
    (root / "train_npy_data").rename(root / "BIWI_train_npy_data")
    (root / "test_npy_data").rename(root / "BIWI_test_npy_data")
    with pytest.raises(SourceError, match=r"BIWI_test_npy_data, BIWI_train_npy_data in .*, arrays of an older release"):
        look(root)


def test_arrays_beside_the_data_set_itself_are_refused(make_folder, root):
    make_folder("biwi")(root)
    with pytest.raises(SourceError, match=r"found both Training and TranSG's arrays in .*, expected one of them"):
        look(root)


def replace(name, change):
    def spoil(root):
        array = np.load(root / name)
        np.save(root / name, change(array))

    return spoil


def put(array, at, value):
    array[at] = value
    return array


TEST = "test_npy_data/Still"
FAULTS = {
    "no test arrays": (
        lambda root: shutil.rmtree(root / "test_npy_data"),
        r"missing arrays: test_npy_data/Still/t_source_x_BIWI_6.npy.*test_npy_data/Walking/frame_id_BIWI_6.npy",
    ),
    "an axis": (
        lambda root: (root / TEST / "t_source_z_BIWI_6.npy").unlink(),
        r"1 missing arrays.*missing arrays: test_npy_data/Still/t_source_z_BIWI_6.npy",
    ),
    "names of another length": (
        lambda root: shutil.copy(
            root / "train_npy_data/source_x_BIWI_6.npy", root / "train_npy_data/source_x_BIWI_8.npy"
        ),
        r"without the arrays of one length of window: .*found 2 files source_x_BIWI_<f>.npy, expected one",
    ),
    "an axis too short": (
        replace("train_npy_data/source_y_BIWI_6.npy", lambda array: array[:-6]),
        r"do not fit .*found float64 \(576, 20\), float64 \(570, 20\), .* expected 3 of \(576, 20\): 96 windows of 6",
    ),
    "other joints": (
        replace("train_npy_data/source_y_BIWI_6.npy", lambda array: array[:, :17]),
        r"do not fit .*found float64 \(576, 20\), float64 \(576, 17\)",
    ),
    "a person too few": (
        replace(f"{TEST}/frame_id_BIWI_6.npy", lambda array: array[:-1]),
        r"do not fit .*test_npy_data/Still: found float64 \(90, 20\).* expected 3 of \(84, 20\): 14 windows of 6",
    ),
    "people of no number": (
        replace(f"{TEST}/frame_id_BIWI_6.npy", lambda array: array.astype(str)),
        r"lists of people that are none: test_npy_data/Still: found <U21 \(15,\) in frame_id",
    ),
    "a negative person": (
        replace(f"{TEST}/frame_id_BIWI_6.npy", lambda array: array - 1),
        r"lists of people that are none: test_npy_data/Still: found int64 \(15,\)",
    ),
    "nobody": (
        replace(f"{TEST}/frame_id_BIWI_6.npy", lambda array: array[:0]),
        r"lists of people that are none: test_npy_data/Still: found int64 \(0,\)",
    ),
    "a position that is no number": (
        replace("train_npy_data/source_y_BIWI_6.npy", lambda array: put(array, (3, 4), np.nan)),
        r"positions that are not finite: train_npy_data: found 1 of them",
    ),
    "a position that is too large": (
        replace("train_npy_data/source_y_BIWI_6.npy", lambda array: put(array, (3, 4), 1e300)),
        r"positions that are not finite: train_npy_data: found 1 of them",
    ),
    "a file cut short": (
        lambda root: (root / TEST / "frame_id_BIWI_6.npy").write_bytes(b"\x93NUMPY"),
        r"files that are no arrays of numbers: test_npy_data/Still/frame_id_BIWI_6.npy",
    ),
    "an empty file": (
        lambda root: (root / TEST / "frame_id_BIWI_6.npy").write_bytes(b""),
        r"files that are no arrays of numbers: test_npy_data/Still/frame_id_BIWI_6.npy",
    ),
    "a stranger is tested": (
        replace("train_npy_data/frame_id_BIWI_6.npy", lambda array: np.where(array == 5, 4, array)),
        r"people tested but not trained on: 005",
    ),
    "a person in one test": (
        replace(f"{TEST}/frame_id_BIWI_6.npy", lambda array: np.where(array == 5, 2, array)),
        r"people in one test only: 002: found in Testing/Still, expected them in Testing/Walking too",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_arrays_that_are_not_whole_are_refused_with_the_place(root, fault):
    spoil, message = FAULTS[fault]
    spoil(root)
    with pytest.raises(SourceError, match=rf"(?s)^Source biwi:here: found \d+ things.*{message}"):
        look(root)


def test_a_folder_named_by_another_length_is_refused(make, tmp_path):
    make(tmp_path / "8", frames=6)
    with pytest.raises(SourceError, match=r"of another length of window: .*of f=6; expected f=8"):
        look(tmp_path / "8")


def test_neither_place_nor_hash_seed_decides_anything_and_numbers_do(root, tmp_path):
    before = look(root)
    shutil.copytree(root, tmp_path / "elsewhere/data")
    shutil.rmtree(root)
    root = tmp_path / "elsewhere/data"
    told = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(root)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    ]
    assert told[0] == told[1]
    after = look(root)
    assert (after.digest, after.splits, after.counts) == (before.digest, before.splits, before.counts)
    assert before.digest in told[0]
    (root / "train_npy_data/ids_BIWI_6.npy").unlink()
    assert look(root).digest == before.digest
    replace("train_npy_data/source_y_BIWI_6.npy", lambda array: put(array, (3, 4), 0.5))(root)
    assert look(root).digest != before.digest
