"""MARS against a tiny copy of it, where every role, frame and score can be worked out by hand."""

import shutil

import numpy as np
import pytest
import scipy.io

from csip import protocols
from csip.config import BenchmarkConfig
from csip.data.clips import label_of_pid
from csip.errors import SourceError
from csip.evaluation.metrics import score_ranking
from csip.ingest.benchmarks.checking import Findings
from csip.ingest.benchmarks.crops import NoSkeletons, SidecarSkeletons
from csip.ingest.benchmarks.mars import mars
from csip.ingest.benchmarks.mars_index import read_index
from csip.types import TrackletPart

SIDECARS = BenchmarkConfig().skeleton_folder


@pytest.fixture
def make(make_folder):
    return make_folder("mars")


@pytest.fixture
def root(make, tmp_path):
    make(tmp_path / "mars", skeletons=SIDECARS)
    return tmp_path / "mars"


def look(root, skeletons=None):
    return mars(root, "mars:here", skeletons or SidecarSkeletons(), BenchmarkConfig())


def numbers(benchmark, half):
    """The rows of a half by their number in the index file: role, pid, camid."""
    rows = [row for row in benchmark.splits if f"-{half}-" in row.tracklet_id]
    return {int(row.tracklet_id[-5:]): (row.role, row.pid, row.camid) for row in rows}


def rewrite(root, half, change):
    """Let `change` edit the rows of a half in place."""
    path = root / "info" / f"tracks_{half}_info.mat"
    rows = scipy.io.loadmat(path)[f"track_{half}_info"]
    scipy.io.savemat(path, {f"track_{half}_info": change(rows)})


def put(row, column, value):
    def change(rows):
        rows[row - 1, column] = value
        return rows

    return lambda root: rewrite(root, "test", change)


def ask(*queries):
    return lambda root: scipy.io.savemat(root / "info" / "query_IDX.mat", {"query_IDX": np.array([queries], np.uint16)})


def edit_names(root, edit, half="test"):
    path = root / "info" / f"{half}_name.txt"
    path.write_bytes(b"\r\n".join(edit(path.read_bytes().split())) + b"\r\n")


def test_junk_is_left_out_distractors_answer_and_queries_ask(root):
    benchmark = look(root)
    assert numbers(benchmark, "train") == {
        **{1: ("train", 1, 0), 2: ("train", 1, 0), 3: ("train", 1, 1), 4: ("train", 3, 0)},
        **{5: ("train", 3, 1), 6: ("train", 5, 0), 7: ("train", 5, 1), 8: ("train", 5, 1)},
    }
    assert numbers(benchmark, "test") == {
        **{3: ("gallery", 0, 0), 4: ("gallery", 0, 1)},
        **{5: ("query", 2, 0), 6: ("gallery", 2, 0), 7: ("query", 2, 1), 8: ("gallery", 2, 1)},
        **{9: ("query", 4, 0), 10: ("query", 4, 1)},
        **{11: ("query", 6, 0), 12: ("gallery", 6, 1), 13: ("gallery", 6, 1)},
    }
    assert benchmark.name == "mars"
    assert {(row.protocol, row.split, row.frames, row.group) for row in benchmark.splits} == {("mars", "0", None, "")}
    assert protocols.PROTOCOLS[protocols.MARS].query_in_gallery
    assert protocols.PROTOCOLS[protocols.MARS].exclude_same_camera


def test_what_was_found_and_left_out_is_counted(root):
    assert look(root).counts == {
        **{"training people": 3, "training tracklets": 8, "training pictures": 26},
        **{"query people": 3, "query tracklets": 5, "gallery tracklets besides the queries": 6},
        **{"distractor tracklets among them": 2, "test pictures": 38},
        **{"junk tracklets left out": 2, "junk pictures left out": 5, "files that no row names": 0},
        **{"frames without a side-car file": 1, "side-car files of no picture": 0},
    }


def test_rows_count_lines_from_one_and_have_both_ends(root):
    benchmark = look(root)
    prefix = benchmark.digest[:12]
    first = benchmark.load(f"{prefix}-train-00001")
    folder = root / "bbox_train" / "0001"
    assert first.images == tuple((folder / f"0001C1T0001F00{n}.jpg").read_bytes() for n in (1, 2, 3))
    last = benchmark.load(f"{prefix}-test-00013")
    folder = root / "bbox_test" / "0006"
    assert last.images == tuple((folder / f"0006C2T0003F00{n}.jpg").read_bytes() for n in (1, 2))
    assert (last.pid, last.camid, last.frame_index.tolist()) == (6, 1, [1, 2])
    assert last.boxes.tolist() == [[0, 0, 16, 32]] * 2


def test_frames_are_numbered_as_their_names_are(root):
    benchmark = look(root)
    assert benchmark.load(f"{benchmark.digest[:12]}-train-00002").frame_index.tolist() == [1, 2, 4, 5]


def test_every_tracklet_can_be_loaded_the_shortest_too(root):
    benchmark = look(root)
    loaded = [benchmark.load(row.tracklet_id) for row in benchmark.splits]
    assert [(one.pid, one.camid) for one in loaded] == [(row.pid, row.camid) for row in benchmark.splits]
    assert sum(map(len, loaded)) == 26 + 38
    assert min(map(len, loaded)) == 2


def test_names_sort_as_rows_do(root):
    for half in ("train", "test"):
        names = [row.tracklet_id for row in look(root).splits if f"-{half}-" in row.tracklet_id]
        assert names == sorted(names)


def test_the_first_row_can_ask(make, tmp_path):
    # In uint16, as the file has it, 1 - 1 is fine and 0 - 1 is 65535.
    make(tmp_path / "mars", test=((2, 1, (1, 2)), (2, 2, (1, 2))), queries=(1,))
    assert numbers(look(tmp_path / "mars", NoSkeletons()), "test") == {1: ("query", 2, 0), 2: ("gallery", 2, 1)}
    ask(0)(tmp_path / "mars")
    with pytest.raises(SourceError, match=r"found row 0, expected 1 to 2"):
        look(tmp_path / "mars", NoSkeletons())


def test_positions_of_queries_are_fit_to_calculate_with(root):
    queries = read_index(root / "info", Findings("mars:here")).queries
    assert (queries.dtype, queries.tolist()) == (np.int64, [4, 6, 8, 9, 10])


def test_labels_follow_the_people_as_numbers(make, tmp_path):
    # As strings 101 comes before 11; as a set of integers 1024 comes before 3.
    people = (3, 11, 101, 1024)
    make(tmp_path / "mars", train=tuple((pid, camera, (1, 2)) for pid in people for camera in (1, 2)))
    rows = [row for row in look(tmp_path / "mars", NoSkeletons()).splits if row.role == "train"]
    parts = [TrackletPart(row.tracklet_id, 1, 2, row.pid, row.camid) for row in rows]
    assert label_of_pid(parts) == {3: 0, 11: 1, 101: 2, 1024: 3}


def test_a_camera_keeps_its_number_where_others_are_absent_and_junk_adds_none(make, tmp_path):
    test = ((-1, 3, (1, 2)), (2, 2, (1, 2)), (2, 6, (1, 2)))
    make(tmp_path / "mars", train=((1, 2, (1,)), (1, 5, (1,))), test=test, queries=(2,))
    benchmark = look(tmp_path / "mars", NoSkeletons())
    cameras = {(row.role, row.camid, row.camera) for row in benchmark.splits}
    assert cameras == {
        *{("train", 1, "mars-2"), ("train", 4, "mars-5")},
        *{("query", 1, "mars-2"), ("gallery", 5, "mars-6")},
    }


def test_skeletons_pair_with_their_own_pictures_and_missing_ones_shift_nothing(root):
    benchmark = look(root)
    assert benchmark.layout == "h36m17"
    for row in benchmark.splits:
        tracklet = benchmark.load(row.tracklet_id)
        seen = tracklet.has_skeleton
        # The maker writes frame and person into joint 16.
        assert tracklet.keypoints[seen, 16, 0].tolist() == tracklet.frame_index[seen].tolist()
        assert set(tracklet.keypoints[seen, 16, 1].tolist()) == {row.pid}
        unseen = {"test-00006": [2], "train-00004": [1]}.get(row.tracklet_id[13:], [])
        assert tracklet.frame_index[~seen].tolist() == unseen


def test_without_skeletons_the_side_car_files_are_not_looked_at(root):
    benchmark = look(root, NoSkeletons())
    (root / SIDECARS / "bbox_train" / "0001" / "0001C1T0001F001.json").write_bytes(b"")
    again = look(root, NoSkeletons())
    assert benchmark.digest == again.digest
    assert (benchmark.layout, dict(benchmark.extractor)) == ("", {})
    assert "frames without a side-car file" not in benchmark.counts
    assert not benchmark.load(benchmark.splits[0].tracklet_id).has_skeleton.any()


def test_files_that_nothing_names_are_counted_and_no_error(root):
    shutil.copy(root / "bbox_test/0002/0002C1T0001F001.jpg", root / "bbox_test/0002/0002C1T0001F099.jpg")
    (root / "bbox_train/0099").mkdir()
    (root / "bbox_train/0099/0099C1T0001F001.jpg").write_bytes(b"x")
    (root / "bbox_train/readme.txt").write_bytes(b"x")
    (root / SIDECARS / "bbox_test/0002/0002C1T0001F099.json").write_text("{}")
    counts = look(root).counts
    assert counts["files that no row names"] == 3
    assert counts["side-car files of no picture"] == 1


@pytest.mark.parametrize(("line_end", "tail"), [("\n", ""), ("\r\n", "\r\n\r\n"), ("\n", "\n")])
def test_line_ends_mean_nothing(make, tmp_path, line_end, tail):
    make(tmp_path / "usual")
    make(tmp_path / "other", line_end=line_end)
    for name in ("train", "test"):
        with (tmp_path / "other" / "info" / f"{name}_name.txt").open("ab") as file:
            file.write(tail.encode())
    usual, other = (look(tmp_path / name, NoSkeletons()) for name in ("usual", "other"))
    assert usual.splits == other.splits
    assert usual.digest == other.digest


def empty_picture(root):
    (root / "bbox_test/0000/0000C1T0001F002.jpg").write_bytes(b"")


def empty_sidecar(root):
    (root / SIDECARS / "bbox_test/0004/0004C1T0001F001.json").write_bytes(b"")


def no_sidecars(root):
    shutil.rmtree(root / SIDECARS / "bbox_train")
    shutil.rmtree(root / SIDECARS / "bbox_test")


def nest(root):
    (root / "outer").mkdir()
    (root / "bbox_train").rename(root / "outer" / "bbox_train")
    (root / "outer").rename(root / "bbox_train")


def wrong_key(root):
    path = root / "info" / "tracks_train_info.mat"
    scipy.io.savemat(path, {"tracks_train_info": scipy.io.loadmat(path)["track_train_info"]})


def xmars_key(root):
    path = root / "info" / "query_IDX.mat"
    scipy.io.savemat(path, {"xmars_query_IDX": scipy.io.loadmat(path)["query_IDX"]})


def damaged(root):
    path = root / "info" / "tracks_test_info.mat"
    path.write_bytes(path.read_bytes()[:150])


def train_row(column, value):
    def change(rows):
        rows[0, column] = value
        return rows

    return lambda root: rewrite(root, "train", change)


def swap(lines):
    lines[5], lines[6] = lines[6], lines[5]
    return lines


FAULTS = {
    "no folder": (lambda root: shutil.rmtree(root / "bbox_test"), r"1 missing folders.*bbox_test: expected bbox_train"),
    "a nested folder": (nest, r"1 folders inside their like.*bbox_train/bbox_train"),
    "no index file": (lambda root: (root / "info/query_IDX.mat").unlink(), r"missing index files: \S+query_IDX.mat"),
    "no list": (lambda root: (root / "info/test_name.txt").unlink(), r"missing index files: \S*.*test_name.txt"),
    "an empty list": (lambda root: (root / "info/test_name.txt").write_bytes(b""), r"found 0 lines, expected 43"),
    "a damaged file": (damaged, r"index files that cannot be read: \S+tracks_test_info.mat"),
    "the key as the file is called": (wrong_key, r"found tracks_train_info, expected track_train_info"),
    "X-MARS by its key": (xmars_key, r"index files of X-MARS: .*found xmars_query_IDX, expected MARS's own query_IDX"),
    "a file without variables": (
        lambda root: scipy.io.savemat(root / "info/query_IDX.mat", {}),
        r"index files without their matrix: .*found nothing, expected query_IDX",
    ),
    "five columns": (
        lambda root: rewrite(root, "test", lambda rows: np.hstack([rows, rows[:, :1]])),
        r"matrices of another kind: .*shape \(13, 5\), expected whole numbers of shape \(tracklets, 4\)",
    ),
    "fractions": (lambda root: rewrite(root, "test", lambda rows: rows + 0.5), r"found track_test_info as float64"),
    "infinity": (
        lambda root: rewrite(root, "test", lambda rows: np.full(rows.shape, np.inf)),
        r"found track_test_info as float64",
    ),
    "a name of something else": (
        lambda root: edit_names(root, lambda lines: [*lines[:4], b"0002C7T0001F001.jpg", *lines[5:]]),
        r"lines that name no picture: .*test_name.txt line 5: found b'0002C7T0001F001.jpg', expected a name such as",
    ),
    "a line less": (
        lambda root: edit_names(root, lambda lines: lines[:-1]),
        r"lists of another length than their rows: test_name.txt: found 42 lines, expected 43",
    ),
    # Half-open rows, as a Python programmer would write them.
    "rows from zero": (
        lambda root: rewrite(root, "train", lambda rows: rows - np.array([1, 0, 0, 0])),
        r"rows that do not begin behind the one before: tracks_train_info.mat row 1: found 0, expected line 1",
    ),
    "a gap": (put(4, 0, 10), r"do not begin behind the one before: tracks_test_info.mat row 4: found 10, .* line 9"),
    "an overlap": (put(4, 0, 8), r"do not begin behind the one before: tracks_test_info.mat row 4: found 8, .* line 9"),
    "a row backwards": (put(4, 1, 3), r"rows that end before they begin: .* row 4: found 3, expected at least line 9"),
    "people out of order": (put(9, 2, 1), r"rows out of the people's order: .* row 9: found 1, expected at least pid"),
    "a training distractor": (train_row(2, 0), r"rows of no person: tracks_train_info.mat row 1: found 0, expected"),
    "pid -2": (put(1, 2, -2), r"rows of no person: tracks_test_info.mat row 1: found -2, expected at least pid -1"),
    "camera 0": (put(3, 3, 0), r"rows of no camera: tracks_test_info.mat row 3: found 0, expected camera 1 to 6"),
    "camera 7": (put(3, 3, 7), r"rows of no camera: tracks_test_info.mat row 3: found 7, expected camera 1 to 6"),
    "another person": (
        put(13, 2, 8),
        r"rows of several people or cameras: .* row 13 \(lines 42 to 43\): found 0006C2T0003F001.jpg, .*person 8",
    ),
    "another camera": (put(13, 3, 1), r"rows of several people or cameras: .* row 13 .*expected person 6, camera 1"),
    "frames in disorder": (
        lambda root: edit_names(root, swap),
        r"do not ascend: .* row 3 \(lines 6 to 8\): found 0000C1T0001F001.jpg behind 0000C1T0001F002.jpg",
    ),
    "a query past the end": (ask(5, 14), r"queries that name no row: .* number 2: found row 14, expected 1 to 13"),
    "a query twice": (ask(5, 7, 7), r"queries that do not ascend: .* number 3: found row 7 behind row 7"),
    "a query for junk": (ask(1, 5), r"queries for nobody: .* number 1: found row 1 of pid -1, expected pid 1 or more"),
    "a query for distractors": (ask(3, 5), r"queries for nobody: .* number 1: found row 3 of pid 0, expected pid 1"),
    "no picture": (
        lambda root: (root / "bbox_test/0002/0002C1T0001F002.jpg").unlink(),
        r"1 missing pictures.*bbox_test/0002/0002C1T0001F002.jpg",
    ),
    "no person": (
        lambda root: shutil.rmtree(root / "bbox_train/0003"),
        r"7 missing pictures.*bbox_train/0003/0003C1T0001F001.jpg",
    ),
    "an empty picture": (empty_picture, r"1 empty pictures.*bbox_test/0000/0000C1T0001F002.jpg: found 0 bytes"),
    "a picture named twice": (
        lambda root: edit_names(root, lambda lines: [*lines[:-2], b"0006C2T0002F001.jpg", b"0006C2T0002F002.jpg"]),
        r"2 pictures that two lines name.*bbox_test/0006/0006C2T0002F001.jpg",
    ),
    "an empty side-car file": (empty_sidecar, r"1 empty side-car files.*bbox_test/0004/0004C1T0001F001.json"),
    "no side-car file at all": (no_sidecars, r"any picture: .*such as bbox_train/.*skeletons=pose, or none"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_not_mars_is_refused_with_the_place(root, fault):
    spoil, message = FAULTS[fault]
    spoil(root)
    with pytest.raises(SourceError, match=rf"(?s)^Source mars:here: found \d+ things.*{message}"):
        look(root)


def test_somebody_who_trains_and_is_tested_is_refused(make, tmp_path):
    make(tmp_path / "mars", train=((2, 1, (1, 2)), (3, 1, (1, 2))))
    with pytest.raises(SourceError, match=r"people in both halves: pid 2: found in training and in test"):
        look(tmp_path / "mars", NoSkeletons())


def test_everything_that_is_wrong_is_told_at_once(root):
    for name in ("0002/0002C1T0001F001.jpg", "0002/0002C1T0001F002.jpg"):
        (root / "bbox_test" / name).unlink()
    empty_picture(root)
    with pytest.raises(SourceError, match=r"found 3 things that are wrong \(1 empty pictures, 2 missing pictures\)"):
        look(root)


# A place on a line for each test row, so that rankings can be read off: distances are those between places.
PLACES = {3: 1, 4: 3, 5: 0, 6: -3, 7: 2, 8: 4, 9: 20, 10: 21, 11: 30, 12: 42, 13: 35}


def score(rows, gallery_roles):
    queries = [row for row in rows if row.role == "query"]
    gallery = [row for row in rows if row.role in gallery_roles]
    at = [np.array([PLACES[int(row.tracklet_id[-5:])] for row in some]) for some in (queries, gallery)]
    pid = [np.array([row.pid for row in some]) for some in (queries, gallery)]
    camid = [np.array([row.camid for row in some]) for some in (queries, gallery)]
    distance = np.abs(at[0][:, None] - at[1]).astype(np.float32)
    return score_ranking(distance, pid[0], camid[0], pid[1], camid[1])


def test_both_galleries_score_as_worked_out_by_hand(root):
    rows = look(root).splits
    # Queries in the gallery (+ a match, rows in order of distance):
    #   5: 3 7+ 4 8+ .. (6 shares its camera)    1/2 * (1/2 + 2/4) = 1/2
    #   7: 3 4 5+ 6+ ..                          1/2 * (1/3 + 2/4) = 5/12
    #   9: 10+                                   1
    #  10: 9+                                    1
    #  11: 13+ 10 9 12+                          1/2 * (1/1 + 2/4) = 3/4
    official = score(rows, {"query", "gallery"})
    assert (official.num_queries, official.num_valid_queries) == (5, 5)
    assert official.mean_ap == pytest.approx((1 / 2 + 5 / 12 + 1 + 1 + 3 / 4) / 5)
    assert official.cmc[[0, 1, 2]] == pytest.approx([3 / 5, 4 / 5, 1])
    # Without them person 4 has nobody to find:
    #   5: 3 4 8+        1/3
    #   7: 3 4 6+        1/3
    #  11: 13+ 12+       1
    narrow = score(rows, {"gallery"})
    assert (narrow.num_queries, narrow.num_valid_queries) == (5, 3)
    assert narrow.mean_ap == pytest.approx((1 / 3 + 1 / 3 + 1) / 3)
    assert narrow.cmc[[0, 1, 2]] == pytest.approx([1 / 3, 1 / 3, 1])


def longer_picture(root):
    with (root / "bbox_train/0001/0001C1T0001F001.jpg").open("ab") as file:
        file.write(b"\0")


@pytest.mark.parametrize(
    "change",
    [
        longer_picture,
        ask(5, 7, 9, 10),
        lambda root: (root / SIDECARS / "bbox_train/0001/0001C1T0001F001.json").unlink(),
    ],
    ids=["a picture", "the queries", "a side-car file"],
)
def test_what_decides_rows_decides_the_digest(root, change):
    before = look(root)
    change(root)
    after = look(root)
    assert after.digest != before.digest
    assert {row.tracklet_id[:12] for row in after.splits} == {after.digest[:12]}
