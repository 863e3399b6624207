"""BIWI RGBD-ID against a tiny copy of it made by hand."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from csip import protocols
from csip.config import ExtractConfig, RuntimeConfig
from csip.data.windows import read_windows
from csip.errors import SourceError
from csip.ingest.benchmarks.biwi import biwi
from csip.ingest.benchmarks.importing import import_benchmark


@pytest.fixture
def make(make_folder):
    return make_folder("biwi")


@pytest.fixture
def root(make, tmp_path):
    make(tmp_path / "biwi")
    return tmp_path / "biwi"


def look(root):
    return biwi(root, "biwi:here")


def skeleton_file(root, folder, frame):
    (path,) = (root / folder).glob(f"*_{frame:06d}-d_*_skel.txt")
    return path


def edit(root, folder, frame, change):
    """Let `change` make other lines (lists of texts) of a skeleton file's."""
    path = skeleton_file(root, folder, frame)
    lines = [line.split(",") for line in path.read_text().splitlines()]
    path.write_text("".join(",".join(line) + "\n" for line in change(lines)))


def put(line, column, value):
    def change(lines):
        lines[line][column] = value
        return lines

    return change


def tracklets(benchmark, protocol=protocols.BIWI_S):
    """Word and person of each tracklet -> what it is for, and which of its frames."""
    rows = [row for row in benchmark.splits if row.protocol == protocol]
    return {row.tracklet_id.partition("-")[2]: (row.role, row.pid, row.frames) for row in rows}


def load(benchmark, name):
    return benchmark.load(f"{benchmark.digest[:12]}-{name}")


def test_people_are_numbered_by_their_folders_and_the_ends_of_sequences_are_cut(root):
    assert tracklets(look(root)) == {
        # Of 60 frames, 0..9 and 50..59 go.
        "train-000": ("train", 0, (10, 49)),
        "train-001": ("train", 1, (10, 49)),
        # Frame 4 has no skeleton: the first ten that have one end with frame 10.
        "train-002": ("train", 2, (11, 49)),
        # Frame 59 has none: the last ten that have one begin with frame 49.
        "train-003": ("train", 3, (10, 48)),
        "train-007": ("train", 7, (10, 21)),
        "still-000": ("query", 0, (10, 33)),
        "still-001": ("query", 1, (10, 39)),
        # 6, 5 and 1 are left of 26, 25 and 21.
        "still-003": ("query", 3, (10, 15)),
        "still-007": ("query", 7, (10, 14)),
        "walking-000": ("gallery", 0, (10, 30)),
        "walking-001": ("gallery", 1, (10, 34)),
        "walking-003": ("gallery", 3, (10, 39)),
        "walking-007": ("gallery", 7, (10, 10)),
    }


def test_the_protocols_train_on_the_same_and_swap_who_asks(root):
    benchmark = look(root)
    still, walking = (tracklets(benchmark, protocol) for protocol in (protocols.BIWI_S, protocols.BIWI_W))
    other = {"train": "train", "query": "gallery", "gallery": "query"}
    assert walking == {name: (other[role], pid, frames) for name, (role, pid, frames) in still.items()}
    assert {row.split for row in benchmark.splits} == {"0"}
    assert {(row.camid, row.camera, row.group) for row in benchmark.splits} == {(0, "biwi-kinect", "")}
    assert protocols.PROTOCOLS[protocols.BIWI_S].closed_set
    assert not protocols.PROTOCOLS[protocols.BIWI_S].exclude_same_camera


def test_what_was_found_and_left_out_is_counted(root):
    assert look(root).counts == {
        **{"train sequences": 5, "still sequences": 4, "walking sequences": 4},
        # 4 * 60 + 32, 44 + 50 + 26 + 25, 41 + 45 + 50 + 21
        **{"skeleton files": 272 + 145 + 157, "skeletons": 574 - 3},
        **{"frames left out: a file without lines": 0, "frames left out: fewer than 20 lines": 1},
        **{"frames left out: person id 0": 1, "frames left out: a joint of tracking state 0": 1},
        **{"frames left out: a position that is not finite": 0},
        **{"frames of more than 20 lines, of which the first 20 count": 1},
        **{"frames cut off at the ends of sequences": 13 * 20, "sequences of which nothing is left": 0},
        **{"frames of other streams without a skeleton file": 0},
    }


def test_a_tracklet_is_a_whole_sequence_as_it_stands_in_the_files(root):
    benchmark = look(root)
    tracklet = load(benchmark, "train-002")
    assert tracklet.frame_index.tolist() == list(range(60))
    assert (tracklet.pid, tracklet.camid, tracklet.layout) == (2, 0, "kinect20")
    assert (tracklet.images, tracklet.media_types) == ((), ())
    assert not tracklet.time.any()
    assert tracklet.keypoint_confidence == pytest.approx(59 / 60)
    lines = skeleton_file(root, "Training/002", 31).read_text().splitlines()
    written = np.array([[float(number) for number in line.split(",")[1:4]] for line in lines])
    assert tracklet.keypoints[31] == pytest.approx(written)
    assert np.abs(tracklet.keypoints[31, 0]).max() > 3  # raw: the root is where the camera saw it


@pytest.mark.parametrize(
    ("name", "frame"), [("train-001", 20), ("train-002", 4), ("train-003", 59)], ids=["nobody", "untracked", "19 lines"]
)
def test_a_frame_without_a_skeleton_keeps_its_place(root, name, frame):
    tracklet = load(look(root), name)
    assert np.flatnonzero(~tracklet.has_skeleton).tolist() == [frame]
    assert not tracklet.keypoints[frame].any()
    assert len(tracklet) == 60


def test_of_several_people_in_a_file_the_first_counts(root):
    # The second is not tracked, and stands a metre further off.
    tracklet = load(look(root), "train-000")
    assert tracklet.has_skeleton.all()
    steps = np.abs(np.diff(tracklet.keypoints[14:17, 0, 2]))
    assert steps.max() < 0.5


def test_any_of_twenty_joints_that_is_not_tracked_leaves_the_frame_out(root):
    for joint in range(20):
        edit(root, "Training/000", 20 + joint, put(joint, 6, "0"))
    edit(root, "Training/000", 45, put(7, 6, "1"))  # inferred is good enough
    assert np.flatnonzero(~load(look(root), "train-000").has_skeleton).tolist() == list(range(20, 40))


def test_only_the_first_line_says_whether_there_is_somebody(root):
    edit(root, "Training/000", 20, put(5, 0, "0"))
    edit(root, "Training/000", 21, put(0, 0, "0"))
    assert np.flatnonzero(~load(look(root), "train-000").has_skeleton).tolist() == [21]


@pytest.mark.parametrize("value", ["nan", "inf", "-1e300"])
def test_a_position_that_is_no_number_leaves_the_frame_out(root, value):
    edit(root, "Training/000", 20, put(3, 2, value))
    edit(root, "Training/000", 21, put(3, 12, value))  # an orientation; nobody reads it
    benchmark = look(root)
    assert benchmark.counts["frames left out: a position that is not finite"] == 1
    tracklet = load(benchmark, "train-000")
    assert np.flatnonzero(~tracklet.has_skeleton).tolist() == [20]
    assert np.isfinite(tracklet.keypoints).all()


def test_blank_lines_line_ends_and_a_comma_at_the_end_are_nothing(root):
    before = load(look(root), "train-000")
    path = skeleton_file(root, "Training/000", 30)
    lines = path.read_text().splitlines()
    path.write_bytes(b"\r\n \r\n" + b",\r\n\r\n".join(line.encode() for line in lines) + b"\r\n\r\n")
    after = load(look(root), "train-000")
    assert np.array_equal(after.keypoints, before.keypoints)
    assert after.has_skeleton.all()


def test_an_empty_file_is_a_frame_without_a_skeleton(root):
    skeleton_file(root, "Training/000", 33).write_bytes(b"")
    benchmark = look(root)
    assert benchmark.counts["frames left out: a file without lines"] == 1
    assert np.flatnonzero(~load(benchmark, "train-000").has_skeleton).tolist() == [33]


def test_frames_are_joined_by_their_number_never_by_the_times_of_streams(root, make, tmp_path):
    # No two streams of a frame share a time; whoever joined on the stem would have no frame left.
    stems = {path.name.partition("-")[0] for path in (root / "Training/000").iterdir()}
    times = {path.name.split("_")[2] for path in (root / "Training/000").glob("*_000020-*")}
    assert (len(stems), len(times)) == (60, 5)
    make(tmp_path / "bare", streams=False)
    assert look(tmp_path / "bare").digest == look(root).digest


def test_frames_are_in_the_order_of_their_numbers_not_of_their_times(root):
    before = load(look(root), "train-000")
    path = skeleton_file(root, "Training/000", 40)
    path.rename(path.with_name("000_000040-d_1_skel.txt"))
    after = load(look(root), "train-000")
    assert np.array_equal(after.keypoints, before.keypoints)


def test_a_missing_skeleton_file_is_counted_where_other_streams_tell_of_it(root):
    skeleton_file(root, "Training/000", 30).unlink()
    benchmark = look(root)
    assert benchmark.counts["frames of other streams without a skeleton file"] == 1
    assert load(benchmark, "train-000").frame_index.tolist() == [*range(30), *range(31, 60)]


def test_a_sequence_of_which_nothing_is_left_is_no_tracklet_and_is_counted(make, tmp_path):
    make(tmp_path / "biwi", train={0: 40, 1: 40}, still={0: 40, 1: 20}, walking={0: 40, 1: 12})
    benchmark = look(tmp_path / "biwi")
    assert benchmark.counts["sequences of which nothing is left"] == 2
    assert benchmark.counts["frames cut off at the ends of sequences"] == 4 * 20 + 20 + 12
    assert set(tracklets(benchmark)) == {"train-000", "train-001", "still-000", "walking-000"}


def rename(root, folder, frame, name):
    path = skeleton_file(root, folder, frame)
    path.rename(path.with_name(name))


def empty_sequence(root):
    for path in (root / "Testing/Still/003").glob("*_skel.txt"):
        path.write_bytes(b"")


def untracked(root):
    for path in (root / "Testing/Still").glob("*/*_skel.txt"):
        path.write_text(path.read_text().replace(",2,0,", ",0,0,"))


def without_skeletons(root):
    for path in (root / "Training/002").glob("*_skel.txt"):
        path.unlink()


FAULTS = {
    "no session": (
        lambda root: shutil.rmtree(root / "Testing/Still"),
        r"missing or empty folders: Testing/Still: expected it in .*biwi\n",
    ),
    "one folder too high": (
        lambda root: (shutil.move(root, root.parent / "BIWI"), root.mkdir(), shutil.move(root.parent / "BIWI", root)),
        r"missing or empty folders: Training: expected it in .*biwi; it is in .*biwi/BIWI",
    ),
    "a folder that is no person's": (
        lambda root: (root / "Training/Training").mkdir(),
        r"folders that are no person's: Training/Training: expected three digits",
    ),
    "a stranger is tested": (
        lambda root: shutil.rmtree(root / "Training/003"),
        r"people tested but not trained on: 003: expected them in Training too",
    ),
    "a person in one test": (
        lambda root: shutil.rmtree(root / "Testing/Walking/003"),
        r"people in one test only: 003: found in Testing/Still, expected them in Testing/Walking too",
    ),
    "no skeleton files": (without_skeletons, r"sequences without a skeleton: Training/002: found 0 skeleton files"),
    "empty skeleton files": (
        empty_sequence,
        r"sequences without a skeleton: Testing/Still/003: found 26 skeleton files, none with a line",
    ),
    "nobody tracked": (
        untracked,
        r"sessions of which nothing is left: Testing/Still: .* 146 frames left out: a joint of tracking state 0",
    ),
    "a name": (
        lambda root: rename(root, "Training/001", 7, "frame7_skel.txt"),
        r"names of skeleton files that cannot be read: Training/001/frame7_skel.txt: expected one like 001_000000-d_",
    ),
    "another stream's name": (
        lambda root: rename(root, "Training/001", 7, "001_000007-c_12_skel.txt"),
        r"names of skeleton files that cannot be read: Training/001/001_000007-c_12_skel.txt",
    ),
    "another person's file": (
        lambda root: rename(root, "Training/001", 7, "002_000007-d_12_skel.txt"),
        r"skeleton files of another person: Training/001/002_000007-d_12_skel.txt: expected one like 001_",
    ),
    "two files of a frame": (
        lambda root: rename(root, "Training/001", 7, "001_000008-d_12_skel.txt"),
        r"frames with two skeleton files: Training/001: 001_000008-d_12_skel.txt and 001_000008-d_8349992_skel.txt",
    ),
    "two sequences": (
        lambda root: rename(root, "Testing/Still/001", 7, "001c_000007-d_12_skel.txt"),
        r"folders of several sequences: Testing/Still/001: found 001a, 001c, expected one",
    ),
    "a header": (
        lambda root: edit(root, "Training/001", 7, lambda lines: [["id", "x"], *lines]),
        r"lines that are not 14 numbers: Training/001/001_000007-d_\d+_skel.txt, line 1: found 'id,x'",
    ),
    "a line cut short": (
        lambda root: edit(root, "Training/001", 7, lambda lines: [*lines[:-1], lines[-1][:5]]),
        r"lines that are not 14 numbers: Training/001/001_000007-d_\d+_skel.txt, line 20: found '1,",
    ),
    "a line beyond the first person": (
        lambda root: edit(root, "Training/000", 15, lambda lines: [*lines[:-1], lines[-1][:5]]),
        r"lines that are not 14 numbers: Training/000/000_000015-d_\d+_skel.txt, line 40: found '2,",
    ),
    "zero bytes": (
        lambda root: skeleton_file(root, "Training/001", 7).write_bytes(bytes(400)),
        r"lines that are not 14 numbers: Training/001/001_000007-d_\d+_skel.txt, line 1: found '\\x00",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_not_biwi_is_refused_with_the_place(root, fault):
    spoil, message = FAULTS[fault]
    spoil(root)
    with pytest.raises(SourceError, match=rf"(?s)^Source biwi:here: found \d+ things.*{message}"):
        look(root)


def test_everything_that_is_wrong_is_told_at_once(root):
    rename(root, "Training/001", 7, "frame7_skel.txt")
    edit(root, "Training/002", 9, lambda lines: [["x"], *lines])
    edit(root, "Training/003", 9, lambda lines: [["x"], *lines])
    with pytest.raises(SourceError, match=r"found 3 things that are wrong \(1 names .*, 2 lines that are not 14"):
        look(root)


def test_what_is_read_decides_the_digest_and_nothing_else_does(root):
    before = look(root)
    (root / "Training/000/000_000020-a_8351199_rgb.jpg").write_bytes(b"another picture")
    assert look(root).digest == before.digest
    edit(root, "Training/000", 20, put(3, 2, "0.123456"))  # of the same length
    after = look(root)
    assert after.digest != before.digest
    assert {row.tracklet_id[:12] for row in after.splits} == {after.digest[:12]}


@pytest.fixture
def imported(run, out):
    def stage(path):
        snapshot = run(import_benchmark(out, f"biwi:{path}", ExtractConfig(), RuntimeConfig(device="cpu")))[1].value
        return [replace(snapshot, protocol=name, split="0") for name in (protocols.BIWI_S, protocols.BIWI_W)]

    return stage


def test_an_import_gives_the_windows_of_the_published_protocol(root, imported):
    still, walking = imported(root)
    query, gallery = (read_windows(still, role, 6) for role in ("query", "gallery"))
    # 24, 30, 6 and 5 skeletons are left of those who stand, 21, 25, 30 and 1 of those who walk.
    assert query.pid.tolist() == [0] * 4 + [1] * 5 + [3]
    assert gallery.pid.tolist() == [0] * 3 + [1] * 4 + [3] * 5
    assert (query.short_parts, gallery.short_parts) == (1, 1)
    assert (query.parts[-1].first_frame, query.parts[-1].last_frame) == (10, 15)
    train = [read_windows(snapshot, "train", 6) for snapshot in (still, walking)]
    # Of 40, 39 (twice each) and 12 skeletons: n - 5 positions, all but the first three of them twice.
    assert [int((train[0].pid == pid).sum()) for pid in (0, 1, 2, 3, 7)] == [67, 65, 65, 65, 11]
    assert np.array_equal(train[0].skeleton, train[1].skeleton)
    assert np.array_equal(read_windows(walking, "query", 6).skeleton, gallery.skeleton)
    # Person 1 has no skeleton in frame 20: no window holds it, and some go across it.
    own = [part for part in train[0].parts if part.pid == 1]
    assert sum(part.last_frame - part.first_frame == 6 for part in own) > 0
    assert all(20 not in (part.first_frame, part.last_frame) for part in own)


def test_the_same_windows_come_from_arrays_that_were_cut_beforehand(root, imported, tmp_path):
    benchmark = look(root)
    for word, folder in (("train", "train_npy_data"), ("still", "test_npy_data/Still")):
        write_arrays(tmp_path / "arrays" / folder, benchmark, word)
    write_arrays(tmp_path / "arrays/test_npy_data/Walking", benchmark, "walking")
    (whole, _), (cut, _) = imported(root), imported(tmp_path / "arrays")
    for role in ("train", "query", "gallery"):
        expected, found = (read_windows(snapshot, role, 6) for snapshot in (whole, cut))
        assert np.array_equal(found.skeleton, expected.skeleton)
        assert found.pid.tolist() == expected.pid.tolist()


def write_arrays(folder, benchmark, word):
    """Cut a session into windows as the published preprocessing does, and write them as its authors do."""
    windows, people = [], []
    for row in benchmark.splits:
        if row.protocol == protocols.BIWI_S and row.tracklet_id.split("-")[1] == word:
            tracklet = benchmark.load(row.tracklet_id)
            left = tracklet.keypoints[tracklet.has_skeleton][10:-10]
            offsets, stride = (range(6), 3) if word == "train" else ((0,), 6)
            for offset in offsets:
                for start in range(offset, len(left) - 5, stride):
                    windows.append(left[start : start + 6])
                    people.append(row.pid)
    folder.mkdir(parents=True)
    before = "" if word == "train" else "t_"
    for axis, name in enumerate("xyz"):
        np.save(folder / f"{before}source_{name}_BIWI_6.npy", np.array(windows, float)[..., axis].reshape(-1, 20))
    np.save(folder / "frame_id_BIWI_6.npy", np.array(people))
