"""Windows of skeletons: how they are cut, read from a snapshot, and balanced between people."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from csip import tables
from csip.data.windows import Windows, balanced_windows, ranking_starts, read_windows, training_starts
from csip.errors import StoreError
from csip.types import Snapshot, TrackletPart

ROOT = 0  # hip centre


def slow_starts(n, frames):
    """The published rule, a window at a time: frames // 2 further on, from each offset while a whole window is left."""
    starts = []
    for offset in range(frames):
        start = offset
        while start + frames <= n:
            starts.append(start)
            start += frames // 2
    return starts


@pytest.mark.parametrize("frames", [2, 3, 4, 5, 6, 8, 10, 12])
@pytest.mark.parametrize("n", [0, 1, 5, 6, 7, 11, 12, 13, 40])
def test_training_windows_begin_where_the_published_rule_has_them(n, frames):
    assert training_starts(n, frames).tolist() == slow_starts(n, frames)


@pytest.mark.parametrize(
    ("n", "starts"),
    [
        *((0, []), (1, []), (5, []), (6, [0]), (7, [0, 1]), (8, [0, 1, 2])),
        (9, [0, 1, 2, 3, 3]),
        (12, [0, 1, 2, 3, 3, 4, 4, 5, 5, 6, 6]),
    ],
)
def test_of_training_windows_of_six_each_is_there_and_the_later_ones_twice(n, starts):
    assert sorted(training_starts(n, 6).tolist()) == starts


@pytest.mark.parametrize(
    ("n", "starts"), [(0, []), (1, []), (5, []), (6, [0]), (7, [0]), (11, [0]), (12, [0, 6]), (20, [0, 6, 12])]
)
def test_ranked_windows_do_not_overlap_and_the_tail_is_left_out(n, starts):
    assert ranking_starts(n, 6).tolist() == starts


@pytest.mark.parametrize("starts", [training_starts, ranking_starts])
def test_a_window_has_two_frames_at_least(starts):
    with pytest.raises(ValueError, match=r"got frames=1, expected 2 or more"):
        starts(10, 1)


# Name, role, pid, frames, part (None: all), frames without a skeleton.
SEQUENCES = (
    ("t-1", "train", 3, 30, (2, 13), (5, 9)),  # 10 of the part's 12 frames are left
    ("t-0", "train", 8, 7, None, ()),
    ("q-0", "query", 8, 15, (0, 14), (1,)),  # 14 are left
    ("q-1", "query", 3, 5, None, ()),  # too short
    ("q-2", "query", 3, 9, None, tuple(range(9))),  # nothing left
    ("g-0", "gallery", 3, 13, (1, 12), ()),
)


def joints(number, frame):
    """Joint j of a frame: at x = j + 100 * (number of the sequence), y = frame, z = frame * j; all a step from 1."""
    j = np.arange(20, dtype=np.float32)
    return 1 + np.stack([j + 100 * number, np.full(20, frame), frame * j], axis=1)


def publish(store, sequences=SEQUENCES, layout="kinect20", name="closed", facts=None):
    tables.prepare_store(store)
    poses, splits = [], []
    for number, (tracklet, role, pid, frames, part, without) in enumerate(sequences):
        for frame in range(frames):
            has = frame not in without
            keypoints = joints(number, frame)[: 17 if layout == "coco17" else 20]
            poses.append(
                {
                    "tracklet_id": tracklet,
                    "frame_index": frame,
                    "extractor_digest": "e" * 64,
                    "has_skeleton": has,
                    "layout": layout,
                    "keypoints": (keypoints if has else 0 * keypoints).tolist(),
                }
            )
        first, last = part or (0, frames - 1)
        row = {"dataset": name, "protocol": "biwi-s", "split": "0", "tracklet_id": tracklet, "group": ""}
        row |= {"first_frame": first, "last_frame": last, "role": role, "pid": pid, "camid": 0, "camera": "kinect"}
        splits.append(row)
    tables.upsert(store, "skeletons", tables.from_rows("skeletons", poses[::-1]))
    tables.upsert(store, "splits", tables.from_rows("splits", splits))
    if facts:
        tables.describe(store, "skeletons", facts)
    versions = {table: tables.current(store, table).version for table in ("skeletons", "splits")}
    snapshot = Snapshot(name, store, versions, digest="5" * 64)
    tables.publish(snapshot, config={}, counts={}, videos=[])
    return snapshot


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    return publish(str(tmp_path_factory.mktemp("windows") / "store"))


def runs(windows):
    return [(part.tracklet_id, part.first_frame, part.last_frame) for part in windows.parts]


def frames_of(windows):
    """The frames of each window, read back from the difference of z between joints 1 and 0."""
    return np.rint(windows.skeleton[:, :, 1, 2]).astype(int).tolist()


def test_frames_without_a_skeleton_are_skipped_and_their_neighbours_joined(snapshot):
    windows = read_windows(snapshot, "train", 6)
    # t-0: 7 skeletons, windows from 0 and 1. t-1: offset 0 (0, 3), offset 1 (1, 4), offsets 2, 3 and 4.
    left = [2, 3, 4, 6, 7, 8, 10, 11, 12, 13]
    expected = [[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6]]
    expected += [left[start : start + 6] for start in (0, 3, 1, 4, 2, 3, 4)]
    assert frames_of(windows) == expected
    assert windows.pid.tolist() == [8, 8] + [3] * 7
    assert runs(windows) == [("t-0" if i < 2 else "t-1", run[0], run[-1]) for i, run in enumerate(expected)]
    assert windows.short_parts == 0


def test_ranked_windows_are_named_by_their_first_and_last_skeleton(snapshot):
    query, gallery = (read_windows(snapshot, role, 6) for role in ("query", "gallery"))
    # q-0: frames 0 2 3 .. 14; two windows of 6, and a tail of 2. The sequences of 5 and of none give no window.
    assert frames_of(query) == [[0, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]]
    assert query.parts == (TrackletPart("q-0", 0, 6, 8, 0), TrackletPart("q-0", 7, 12, 8, 0))
    assert query.short_parts == 2
    assert frames_of(gallery) == [[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]]
    assert gallery.pid.tolist() == [3, 3]


def test_skeletons_are_centred_on_their_root_frame_by_frame(snapshot):
    skeleton = read_windows(snapshot, "gallery", 4).skeleton
    assert skeleton.dtype == np.float32
    assert skeleton.shape == (3, 4, 20, 3)
    j = np.arange(20)
    for window, first in enumerate((1, 5, 9)):
        for at in range(4):
            wanted = np.stack([j, 0 * j, (first + at) * j], axis=1)
            assert skeleton[window, at] == pytest.approx(wanted)
    assert not skeleton[:, :, ROOT].any()


def test_a_role_without_a_window_gives_none(snapshot):
    windows = read_windows(snapshot, "train", 40)
    assert windows.skeleton.shape == (0, 40, 20, 3)
    assert (windows.pid.dtype, windows.pid.shape, windows.parts, windows.short_parts) == (np.int64, (0,), (), 2)


def test_the_first_windows_are_the_first(snapshot):
    windows = read_windows(snapshot, "train", 6)
    some = windows.first(3)
    assert (len(some), some.parts, some.pid.tolist()) == (3, windows.parts[:3], [8, 8, 3])
    assert np.array_equal(some.skeleton, windows.skeleton[:3])


def test_windows_cannot_be_cut_out_of_windows(tmp_path):
    told = json.dumps({"layout": "kinect20", "window_frames": 6})
    snapshot = publish(str(tmp_path / "store"), facts={f"csip.extractor.{'5' * 64}": told})
    assert len(read_windows(snapshot, "gallery", 6)) == 2
    with pytest.raises(ValueError, match=r"skeleton.frames=4: snapshot closed was made of windows of 6 .*frames=6"):
        read_windows(snapshot, "gallery", 4)


def test_skeletons_in_2d_are_refused(tmp_path):
    snapshot = publish(str(tmp_path / "store"), layout="coco17")
    with pytest.raises(StoreError, match=r"found 2D skeletons of layout coco17, expected 3D ones"):
        read_windows(snapshot, "train", 6)


def test_a_part_without_rows_is_refused(tmp_path):
    snapshot = publish(str(tmp_path / "store"))
    tables.delete(snapshot.store, "skeletons", "tracklet_id = 't-0'")
    version = tables.current(snapshot.store, "skeletons").version
    broken = replace(snapshot, tables={**snapshot.tables, "skeletons": version})
    with pytest.raises(StoreError, match=r"Part t-0 frames 0..6: found no rows"):
        read_windows(broken, "train", 6)


def test_two_skeletons_of_one_frame_are_refused(tmp_path):
    snapshot = publish(str(tmp_path / "store"))
    rows = tables.read(tables.current(snapshot.store, "skeletons"), where="tracklet_id = 't-0'").to_pylist()
    again = [row | {"extractor_digest": "f" * 64} for row in rows if row["frame_index"] == 4]
    version = tables.upsert(snapshot.store, "skeletons", tables.from_rows("skeletons", again)).version
    broken = replace(snapshot, tables={**snapshot.tables, "skeletons": version})
    with pytest.raises(StoreError, match=r"found two skeletons of t-0, frame 4, expected one"):
        read_windows(broken, "train", 6)


def test_windows_that_do_not_fit_each_other_are_refused():
    with pytest.raises(ValueError, match=r"got skeleton \(2, 6, 20, 3\) and pid \(1,\) for 0 windows"):
        Windows(np.zeros((2, 6, 20, 3), np.float32), np.zeros(1, np.int64), ())


def people_of(counts):
    """(W,) pids, mixed, from the number of windows of each person."""
    pid = np.repeat(np.arange(len(counts)) * 3, counts)
    return np.random.default_rng(1).permutation(pid)


def spread(total, people):
    """Numbers of windows that add up to `total`, some small and some large."""
    share = np.linspace(0.3, 1.7, people)
    counts = (share / share.sum() * total).astype(int)
    counts[-1] += total - counts.sum()
    return counts


@pytest.mark.parametrize(
    ("total", "people", "rounds", "each", "drawn"), [(34_294, 50, 266, 5, 66_500), (14_831, 11, 114, 23, 28_842)]
)
def test_balanced_draws_have_the_published_size(total, people, rounds, each, drawn):
    pid = people_of(spread(total, people))
    assert len(pid) == total
    order = balanced_windows(pid, 256, np.random.default_rng(0))
    assert len(order) == drawn
    assert rounds * people * each == drawn
    # Every round takes as many of everybody, in turn.
    turns = pid[order].reshape(rounds, people, each)
    assert (turns == (np.arange(people) * 3)[None, :, None]).all()


def test_windows_are_drawn_again_only_when_a_persons_list_runs_out():
    # 2 * (40 // 16) = 4 rounds of 16 // 2 = 8 windows: 32 of each person.
    pid = people_of([10, 30])
    order = balanced_windows(pid, 16, np.random.default_rng(0))
    few, most = (order[pid[order] == one] for one in (0, 3))
    assert len(few) == len(most) == 32
    assert len(set(few[:10].tolist())) == 10
    assert len(set(most[:30].tolist())) == 30
    assert set(few.tolist()) == set(np.flatnonzero(pid == 0).tolist())
    # Of 22 draws with replacement from 10 windows not all can be different, and by chance they are not even.
    assert len(set(Counter(few.tolist()).values())) > 1


def test_a_persons_windows_come_in_random_order_the_first_time_too():
    pid = people_of([100, 100])
    order = balanced_windows(pid, 20, np.random.default_rng(0))
    first = order[pid[order] == 0][:100]
    assert sorted(first.tolist()) == np.flatnonzero(pid == 0).tolist()
    assert first.tolist() != sorted(first.tolist())


def test_balanced_draws_follow_from_the_generator():
    pid = people_of([10, 30, 5])
    first, again, other = (balanced_windows(pid, 16, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(("counts", "batch"), [([3, 4], 8), ([5, 5, 5], 2), ([], 4)])
def test_fewer_windows_than_a_batch_or_a_batch_smaller_than_the_people_draw_none(counts, batch):
    assert balanced_windows(people_of(counts), batch, np.random.default_rng(0)).tolist() == []
