"""LS-VID against a tiny copy of it, where every role, frame and camera can be worked out by hand."""

import shutil

import h5py
import numpy as np
import pytest
import scipy.io

from csip import protocols
from csip.config import BenchmarkConfig
from csip.data.clips import label_of_pid
from csip.errors import SourceError
from csip.ingest.benchmarks.checking import Findings
from csip.ingest.benchmarks.crops import NoSkeletons, SidecarSkeletons
from csip.ingest.benchmarks.lsvid import lsvid, sidecar_folder
from csip.ingest.benchmarks.lsvid_index import read_index
from csip.types import TrackletPart

SIDECARS = BenchmarkConfig().skeleton_folder
MATRICES = "test/data/info_test.mat"


@pytest.fixture
def make(make_folder):
    return make_folder("lsvid")


@pytest.fixture
def root(make, tmp_path):
    make(tmp_path / "LS-VID", skeletons=SIDECARS)
    return tmp_path / "LS-VID"


def look(root, skeletons=None):
    return lsvid(root, "lsvid:here", skeletons or SidecarSkeletons(), BenchmarkConfig())


def load(benchmark, name):
    """Load a tracklet by list and line: train-00003."""
    return benchmark.load(f"{benchmark.digest[:12]}-{name}")


def numbers(benchmark, half):
    """The rows of a list by their line: role, pid, camid."""
    rows = [row for row in benchmark.splits if f"-{half}-" in row.tracklet_id]
    return {int(row.tracklet_id[-5:]): (row.role, row.pid, row.camid) for row in rows}


def write_hdf5(path, **matrices):
    """As MATLAB 7.3 does: transposed."""
    with h5py.File(path, "w") as file:
        for name, matrix in matrices.items():
            file[name] = np.asarray(matrix).T


def read_hdf5(path):
    with h5py.File(path) as file:
        return {name: file[name][()].T for name in file}


def change_matrix(name, change):
    def spoil(root):
        content = read_hdf5(root / MATRICES)
        content[name] = change(content[name])
        write_hdf5(root / MATRICES, **content)

    return spoil


def put(row, column, value):
    def change(info):
        info[row - 1, column] = value
        return info

    return change_matrix("info_test", change)


def ask(*queries):
    return change_matrix("query", lambda _: np.array(queries, np.float64)[:, None])


def edit_list(half, edit):
    def spoil(root):
        path = root / "list_sequence" / f"list_seq_{half}.txt"
        path.write_text("".join(f"{line}\n" for line in edit(path.read_text().splitlines())))

    return spoil


def replace_line(half, number, text):
    return edit_list(half, lambda lines: [*lines[: number - 1], text, *lines[number:]])


def rename(root, folder, edit):
    """Rename a folder's pictures, and their side-car files with them."""
    for top in (root, root / SIDECARS):
        for path in sorted((top / folder).iterdir()):
            path.rename(path.with_name(edit(path.name)))


def test_the_training_list_trains_queries_ask_and_all_others_answer(root):
    benchmark = look(root)
    assert numbers(benchmark, "train") == {
        **{1: ("train", 11, 4), 2: ("train", 11, 14), 3: ("train", 2, 4), 4: ("train", 2, 2), 5: ("train", 2, 2)},
        **{6: ("train", 101, 2), 7: ("train", 101, 14), 8: ("train", 3, 2), 9: ("train", 3, 4)},
    }
    assert numbers(benchmark, "test") == {
        **{1: ("query", 120, 0), 2: ("gallery", 120, 1)},
        **{3: ("query", 6, 0), 4: ("query", 6, 1), 5: ("gallery", 6, 0)},
        **{6: ("query", 5, 14), 7: ("query", 5, 0)},
    }
    assert benchmark.name == "lsvid"
    assert {(row.protocol, row.split, row.frames, row.group) for row in benchmark.splits} == {("lsvid", "0", None, "")}
    assert {(row.camid, row.camera) for row in benchmark.splits} == {
        (camera - 1, f"lsvid-{camera}") for camera in (1, 2, 3, 5, 15)
    }
    assert protocols.PROTOCOLS[protocols.LSVID].query_in_gallery
    assert protocols.PROTOCOLS[protocols.LSVID].exclude_same_camera


def test_what_was_found_and_left_out_is_counted(root):
    assert look(root).counts == {
        **{"training people": 4, "training tracklets": 9, "training pictures": 52},
        **{"query people": 3, "query tracklets": 5, "gallery tracklets besides the queries": 2, "test pictures": 22},
        **{"junk tracklets left out": 0, "junk pictures left out": 0, "validation tracklets not imported": 2},
        **{"files that no line names": 0, "frames without a side-car file": 1, "side-car files of no picture": 0},
    }


def test_a_missing_validation_list_is_no_fault(root):
    (root / "list_sequence/list_seq_val.txt").unlink()
    assert "validation tracklets not imported" not in look(root).counts


def test_positions_of_queries_are_whole_numbers_from_zero(root):
    queries = read_index(root, Findings("lsvid:here")).queries
    # The file has 1, 3, 4, 6, 7 as floating point.
    assert (queries.dtype, queries.tolist()) == (np.int64, [0, 2, 3, 5, 6])


def test_a_name_that_begins_another_gets_its_own_pictures_only(root):
    benchmark = look(root)
    folder = root / "tracklet_train/0002"
    tenth = tuple((folder / f"0002_10_03_000{n}.jpg").read_bytes() for n in (1, 2, 3))
    assert load(benchmark, "train-00004").images == tenth
    first = load(benchmark, "train-00003")
    assert first.images == tuple((folder / f"0002_1_05_{n:04d}.jpg").read_bytes() for n in range(1, 21))
    assert not set(first.images) & set(tenth)


def test_frames_are_counted_from_zero_and_boxes_are_the_whole_picture(root):
    tracklet = load(look(root), "test-00002")
    assert (tracklet.pid, tracklet.camid, tracklet.frame_index.tolist()) == (120, 1, [0, 1, 2, 3])
    assert tracklet.boxes.tolist() == [[0, 0, 16, 32]] * 4


def test_every_tracklet_can_be_loaded_and_short_ones_train(root):
    benchmark = look(root)
    loaded = [benchmark.load(row.tracklet_id) for row in benchmark.splits]
    assert [(one.pid, one.camid) for one in loaded] == [(row.pid, row.camid) for row in benchmark.splits]
    assert [len(one) for one in loaded[:9]] == [4, 5, 20, 3, 4, 4, 5, 4, 3]
    pictures = [image for one in loaded for image in one.images]
    assert len(pictures) == len(set(pictures)) == 52 + 22


def test_labels_follow_the_people_as_numbers(root):
    # As strings 101 and 11 come before 2.
    rows = [row for row in look(root).splits if row.role == "train"]
    parts = [TrackletPart(row.tracklet_id, 0, 1, row.pid, row.camid) for row in rows]
    assert label_of_pid(parts) == {2: 0, 3: 1, 11: 2, 101: 3}
    assert {type(row.pid) for row in rows} == {int}


def test_names_sort_as_lines_do(make, tmp_path):
    make(tmp_path / "LS-VID", test=[(7, n, 1 + n % 2, 1) for n in range(1, 13)], queries=(1,))
    names = [row.tracklet_id for row in look(tmp_path / "LS-VID", NoSkeletons()).splits if "-test-" in row.tracklet_id]
    assert names == sorted(names)
    assert [name[-5:] for name in names] == [f"{n:05d}" for n in range(1, 13)]


def test_skeletons_pair_with_their_own_pictures_and_missing_ones_shift_nothing(root):
    benchmark = look(root)
    assert benchmark.layout == "h36m17"
    for row in benchmark.splits:
        tracklet = benchmark.load(row.tracklet_id)
        seen = tracklet.has_skeleton
        # The maker writes the frame, from 1, and the person into joint 16.
        assert tracklet.keypoints[seen, 16, 0].tolist() == (tracklet.frame_index[seen] + 1).tolist()
        assert set(tracklet.keypoints[seen, 16, 1].tolist()) == {row.pid}
        unseen = {"train-00003": [9], "train-00008": [0]}.get(row.tracklet_id[13:], [])
        assert tracklet.frame_index[~seen].tolist() == unseen


def test_without_skeletons_the_side_car_files_are_not_looked_at(root):
    before = look(root, NoSkeletons())
    shutil.rmtree(root / SIDECARS)
    after = look(root, NoSkeletons())
    assert before.digest == after.digest
    assert (after.layout, dict(after.extractor)) == ("", {})
    assert "frames without a side-car file" not in after.counts


def test_side_car_files_lie_below_the_root(tmp_path):
    assert sidecar_folder(tmp_path, BenchmarkConfig(skeleton_folder="skeleton_3d")) == tmp_path / "skeleton_3d"


@pytest.mark.parametrize("index", ["info", "arrays", "old"])
def test_index_files_of_every_form_and_place_say_the_same(make, tmp_path, index):
    make(tmp_path / "release")
    make(tmp_path / "other", index=index, line_end="\r\n")
    release, other = (look(tmp_path / name, NoSkeletons()) for name in ("release", "other"))
    assert (other.digest, other.splits, other.counts) == (release.digest, release.splits, release.counts)


def test_junk_is_left_out_and_counted(make, tmp_path):
    test = ((-1, 1, 3, 2), (6, 1, 1, 3), (6, 2, 2, 3))
    make(tmp_path / "LS-VID", test=test, queries=(2,))
    benchmark = look(tmp_path / "LS-VID", NoSkeletons())
    assert numbers(benchmark, "test") == {2: ("query", 6, 0), 3: ("gallery", 6, 1)}
    assert benchmark.counts["junk tracklets left out"] == 1
    assert benchmark.counts["junk pictures left out"] == 2
    assert benchmark.counts["files that no line names"] == 0
    shutil.rmtree(tmp_path / "LS-VID/tracklet_test/junk")
    assert look(tmp_path / "LS-VID", NoSkeletons()).counts["junk pictures left out"] == 0


def test_files_that_nothing_names_are_counted_and_no_fault(root):
    shutil.copy(root / "tracklet_test/0006/0006_1_01_0001.jpg", root / "tracklet_test/0006/0006_9_01_0001.jpg")
    (root / "tracklet_test/0006/notes.txt").write_text("x")
    (root / "tracklet_train/0099").mkdir()
    (root / "tracklet_train/0099/0099_1_01_0001.jpg").write_bytes(b"x")
    (root / "tracklet_train/readme.txt").write_bytes(b"x")
    (root / SIDECARS / "tracklet_test/0006/0006_9_01_0001.json").write_text("{}")
    counts = look(root).counts
    assert counts["files that no line names"] == 4
    assert counts["side-car files of no picture"] == 1


def test_a_name_may_go_on_without_an_underscore_where_it_is_plain(root):
    # A line that names the beginning of the last part, and one that names a whole picture.
    rename(root, "tracklet_test/0005", lambda name: name.replace("_00", "_F00"))
    replace_line("test", 6, "tracklet_test/0005/0005_1_15_F 5")(root)
    before = look(root, NoSkeletons())
    images = [(root / f"tracklet_test/0005/0005_1_15_F000{n}.jpg").read_bytes() for n in (1, 2)]
    assert list(load(before, "test-00006").images) == images
    replace_line("test", 6, "tracklet_test/0005/0005_1_15_F0001.jpg 5")(root)
    after = look(root, NoSkeletons())
    assert list(load(after, "test-00006").images) == images[:1]
    assert after.counts["files that no line names"] == 1


def nothing_for_first(root):
    """Person 2's first tracklet has no pictures of its own; the tenth's name goes on where its name ends."""
    for path in (root / "tracklet_train/0002").glob("0002_1_*"):
        path.unlink()


def widen(root):
    """Numbers that outgrow their zeros: as text 10000 comes before 9999."""
    folder = root / "tracklet_train/0011"
    for old, new in (("0003", "9999"), ("0004", "10000")):
        (folder / f"0011_1_05_{old}.jpg").rename(folder / f"0011_1_05_{new}.jpg")


def same_number(root):
    folder = root / "tracklet_train/0011"
    shutil.copy(folder / "0011_1_05_0002.jpg", folder / "0011_1_05_0002.png")


def recamera(root):
    folder = root / "tracklet_test/0006"
    (folder / "0006_3_01_0002.jpg").rename(folder / "0006_3_02_0002.jpg")


def empty(name):
    return lambda root: (root / name).write_bytes(b"")


def remove(name):
    return lambda root: (root / name).unlink()


def pickled(root):
    (root / MATRICES).unlink()
    np.save(root / "test/query.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(root / "test/info_test.npy", np.zeros((7, 4)))


def one_array(root):
    (root / MATRICES).unlink()
    np.save(root / "test/query.npy", np.arange(1, 4))


def damaged(root):
    path = root / MATRICES
    path.write_bytes(path.read_bytes()[:700])


def old_and_transposed(root):
    content = read_hdf5(root / MATRICES)
    scipy.io.savemat(root / MATRICES, {"query": content["query"], "info_test": content["info_test"].T})


def no_sidecars(root):
    for half in ("train", "test"):
        shutil.rmtree(root / SIDECARS / f"tracklet_{half}")


FAULTS = {
    "no list": (
        remove("list_sequence/list_seq_test.txt"),
        r"missing index files: .*expected list_seq_test.txt in list_sequence or info/list_sequence",
    ),
    "an empty list": (
        empty("list_sequence/list_seq_train.txt"),
        r"lines that name no tracklet: .*train.txt line 1: found ''",
    ),
    "a list of bytes": (
        lambda root: (root / "list_sequence/list_seq_train.txt").write_bytes(b"\xff\xfe"),
        r"index files that cannot be read: .*list_seq_train.txt: UnicodeDecodeError",
    ),
    "a blank line": (
        edit_list("test", lambda lines: [lines[0], "", *lines[1:]]),
        r"lines that name no tracklet: .*list_seq_test.txt line 2: found '', expected a path and a pid",
    ),
    "two spaces": (
        replace_line("test", 3, "tracklet_test/0006/0006_1  6"),
        r"lines that name no tracklet: .*line 3: found 'tracklet_test/0006/0006_1  6'",
    ),
    "no pid": (replace_line("test", 3, "tracklet_test/0006/0006_1 x"), r"lines that name no tracklet: .*line 3"),
    "pid -2": (replace_line("test", 3, "tracklet_test/0006/0006_1 -2"), r"lines that name no tracklet: .*line 3"),
    "a path of another machine": (
        replace_line("test", 3, "/data/LS-VID/tracklet_test/0006/0006_1 6"),
        r"lines that name no tracklet: .*line 3: found '/data",
    ),
    "a path out of the root": (
        replace_line("test", 3, "../tracklet_test/0006/0006_1 6"),
        r"lines that name no tracklet: .*line 3: found '\.\./",
    ),
    "backslashes": (
        replace_line("test", 3, r"tracklet_test\0006\0006_1 6"),
        r"lines that name no tracklet: .*line 3: found 'tracklet_test",
    ),
    "another person's folder": (
        replace_line("train", 8, "tracklet_train/0003/0003_1 4"),
        r"lines whose folder is another person's: .*train.txt line 8: found folder 0003, expected one .* with 0004",
    ),
    "a folder of no person": (
        replace_line("train", 8, "tracklet_train/p3/0003_1 3"),
        r"lines whose folder is another person's: .*line 8: found folder p3, expected one that begins with 0003",
    ),
    "somebody in both lists": (
        replace_line("test", 3, "tracklet_train/0003/0003_1 3"),
        r"people in both lists: pid 3: found in training and in test",
    ),
    "no matrices": (
        remove(MATRICES),
        r"missing index files: .*expected info_test.mat in test/data or info/data \(or query.npy and info_test.npy",
    ),
    "one array of two": (one_array, r"missing index files: .*\(or query.npy and info_test.npy in test or"),
    "a pickle": (pickled, r"index files that cannot be read: .*query.npy: ValueError: .*allow_pickle=False"),
    "a damaged file": (damaged, r"index files that cannot be read: .*info_test.mat: OSError"),
    "a file without queries": (
        lambda root: write_hdf5(root / MATRICES, info_test=np.zeros((7, 4))),
        r"index files without their matrix: .*found info_test, expected query",
    ),
    "a file without variables": (
        lambda root: write_hdf5(root / MATRICES),
        r"index files without their matrix: .*found nothing, expected query",
    ),
    # As a Python programmer would save it again: HDF5 reads it as MATLAB would read (4, 7).
    "HDF5 as numpy shows it": (
        change_matrix("info_test", lambda info: info.T),
        r"matrices of another kind: .*found info_test as float64 of shape \(4, 7\), expected .*\(tracklets, 4\)",
    ),
    "version 5 as HDF5 shows it": (
        old_and_transposed,
        r"matrices of another kind: .*found info_test as float64 of shape \(4, 7\), expected .*\(tracklets, 4\)",
    ),
    "fractions": (
        change_matrix("query", lambda query: query + 0.5),
        r"matrices of another kind: .*found query as float64 of shape \(5, 1\), expected whole numbers of shape \(quer",
    ),
    "no query": (
        change_matrix("query", lambda query: query[:0]),
        r"matrices of another kind: .*found query as float64 of shape \(0, 1\)",
    ),
    "a row less": (
        change_matrix("info_test", lambda info: info[:-1]),
        r"matrices of another length than their list: info_test: found 6 rows, expected 7",
    ),
    "another pid": (
        put(3, 2, 5),
        r"rows of another person than their line: info_test row 3: found pid 5, expected 6 as in list_seq_test.txt lin",
    ),
    "camera 16": (put(3, 3, 16), r"rows of no camera: info_test row 3: found 16, expected camera 1 to 15"),
    "camera 0": (put(3, 3, 0), r"rows of no camera: info_test row 3: found 0, expected camera 1 to 15"),
    "another camera": (
        put(3, 3, 2),
        r"rows of another camera than their pictures: info_test row 3: found camera 2, expected 1 as in the names",
    ),
    "a query from zero": (ask(0, 2), r"queries that name no row: query number 1: found row 0, expected 1 to 7"),
    "a query past the end": (ask(1, 8), r"queries that name no row: query number 2: found row 8, expected 1 to 7"),
    "a query twice": (ask(3, 1, 3), r"rows that ask twice: query number 3: found row 3 a second time"),
    "no pictures": (
        lambda root: shutil.rmtree(root / "tracklet_train/0101"),
        r"2 lines without pictures.*list_seq_train.txt line 6: expected names in tracklet_train/0101 that .* 0101_1_",
    ),
    "pictures of a longer name": (
        nothing_for_first,
        r"1 lines whose pictures might be another line's.*line 3: expected .* with 0002_1_, found 0002_10_03_0001.jpg",
    ),
    "a number cut in two": (
        replace_line("train", 8, "tracklet_train/0003/0003_1_03_00 3"),
        r"1 lines whose pictures might be another line's.*line 8: .*with 0003_1_03_00_, found 0003_1_03_0001.jpg",
    ),
    "a tracklet on two lines": (
        replace_line("train", 9, "tracklet_train/0003/0003_1 3"),
        r"4 pictures that two lines name.*tracklet_train/0003/0003_1_03_0001.jpg",
    ),
    "an empty picture": (
        empty("tracklet_test/0006/0006_1_01_0002.jpg"),
        r"1 empty pictures.*tracklet_test/0006/0006_1_01_0002.jpg: found 0 bytes",
    ),
    "an empty side-car file": (
        empty(f"{SIDECARS}/tracklet_test/0006/0006_1_01_0002.json"),
        r"1 empty side-car files.*tracklet_test/0006/0006_1_01_0002.json: found 0 bytes",
    ),
    "no side-car file at all": (no_sidecars, r"1 skeleton folders without a file of any picture.*such as tracklet_tr"),
    "a letter before the camera": (
        lambda root: rename(root, "tracklet_train/0003", lambda name: name.replace("_03_", "_c3_")),
        r"4 names that tell no camera.*0003/0003_1_c3_0001.jpg: expected the third of at least 4 parts to be the cam",
    ),
    "camera 16 in names": (
        lambda root: rename(root, "tracklet_train/0003", lambda name: name.replace("_03_", "_16_")),
        r"4 names that tell no camera.*0003/0003_1_16_0001.jpg: expected .* 1 to 15",
    ),
    "three parts": (
        lambda root: rename(root, "tracklet_train/0003", lambda name: name.replace("_03_0", "_03x0")),
        r"4 names that tell no camera.*0003/0003_1_03x0001.jpg",
    ),
    "two cameras": (
        recamera,
        r"1 tracklets of several cameras.*list_seq_test.txt line 5 \(0006_3_01_0001.jpg, ...\): found cameras \[1, 2\]",
    ),
    "numbers wider than their zeros": (
        widen,
        r"1 tracklets whose frames have no plain order.*train.txt line 1: 0011_1_05_9999.jpg comes behind .*10000.jpg",
    ),
    "one number twice": (
        same_number,
        r"1 tracklets whose frames have no plain order.*0002.png comes behind .*0002.jpg",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_not_ls_vid_is_refused_with_the_place(root, fault):
    spoil, message = FAULTS[fault]
    spoil(root)
    with pytest.raises(SourceError, match=rf"(?s)^Source lsvid:here: found \d+ things.*{message}"):
        look(root)


def test_junk_may_not_ask(make, tmp_path):
    make(tmp_path / "LS-VID", test=((-1, 1, 3, 2), (6, 1, 1, 3)), queries=(1, 2))
    with pytest.raises(
        SourceError, match=r"queries for nobody: query number 1: found row 1 of pid -1, expected a pers"
    ):
        look(tmp_path / "LS-VID", NoSkeletons())


def test_everything_that_is_wrong_is_told_at_once(root):
    empty("tracklet_test/0006/0006_1_01_0002.jpg")(root)
    recamera(root)
    shutil.rmtree(root / "tracklet_train/0101")
    with pytest.raises(
        SourceError,
        match=r"found 4 things that are wrong \(1 empty pictures, 1 tracklets of several cameras, 2 lines without p",
    ):
        look(root, NoSkeletons())


def longer_picture(root):
    with (root / "tracklet_train/0002/0002_1_05_0001.jpg").open("ab") as file:
        file.write(b"\0")


@pytest.mark.parametrize(
    "change",
    [
        longer_picture,
        ask(1, 3, 4, 6),
        edit_list("train", lambda lines: lines[:-1]),
        remove(f"{SIDECARS}/tracklet_train/0002/0002_1_05_0001.json"),
    ],
    ids=["a picture", "the queries", "a line", "a side-car file"],
)
def test_what_decides_rows_decides_the_digest(root, change):
    before = look(root)
    change(root)
    after = look(root)
    assert after.digest != before.digest
    assert {row.tracklet_id[:12] for row in after.splits} == {after.digest[:12]}
