"""People walk through hand-made detections; the expected track numbers are read off the drawing."""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from csip.config import TrackConfig
from csip.ingest.track import Association

_SPEC = importlib.util.spec_from_file_location("walks", Path(__file__).resolve().parents[2] / "makers" / "walks.py")
walks = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(walks)
frame, person = walks.frame, walks.person

# At 10 frames a second the buffer is 10 frames.
CONFIG = TrackConfig(buffer_seconds=1.0)

both_trackers = pytest.mark.parametrize("tracker", ["bytetrack", "botsort"])


def track(frames, rate=10.0, stride=1, **changes):
    """Associate; give track number -> [(frame_index, left edge)]. `frames` are a list, or frame_index -> people."""
    association = Association(dataclasses.replace(CONFIG, **changes), rate=rate, stride=stride)
    found = {}
    for index, people in frames.items() if isinstance(frames, dict) else enumerate(frames):
        for number, row in association.update(index, people):
            found.setdefault(number, []).append((index, float(people.boxes[row, 0])))
    return found


def frames_of(tracks):
    return [[index for index, _ in rows] for rows in tracks.values()]


@both_trackers
def test_two_people_far_apart_keep_their_numbers_whatever_the_order_of_the_rows(tracker):
    # They cross: one walks right on y 100, one left on y 400. The order of the rows changes from frame to frame.
    right = [person(100 + 5 * t, 100) for t in range(30)]
    left = [person(500 - 5 * t, 400) for t in range(30)]
    frames = [frame(*([a, b] if t % 3 else [b, a])) for t, (a, b) in enumerate(zip(right, left, strict=True))]
    tracks = track(frames, tracker=tracker)
    assert sorted(tracks.values()) == [
        [(t, 100.0 + 5 * t) for t in range(30)],
        [(t, 500.0 - 5 * t) for t in range(30)],
    ]


@both_trackers
def test_a_gap_within_the_buffer_is_bridged_and_one_beyond_it_is_not(tracker):
    def walk(gap):
        seen = [frame(person(100 + 2 * t)) for t in range(20)]
        return [*seen, *[frame()] * gap, *(frame(person(100 + 2 * t)) for t in range(20 + gap, 40 + gap))]

    assert frames_of(track(walk(8), tracker=tracker)) == [[*range(20), *range(28, 48)]]
    # The first detection of the second track only counts once a second one confirms it.
    assert frames_of(track(walk(14), tracker=tracker)) == [[*range(20)], [*range(35, 54)]]


@pytest.mark.parametrize(("gap", "tracks"), [(10, 1), (11, 2)])
def test_who_stands_still_may_be_unseen_for_exactly_the_buffer(gap, tracks):
    frames = [*[frame(person(100))] * 20, *[frame()] * gap, *[frame(person(100))] * 20]
    assert len(track(frames)) == tracks


@pytest.mark.parametrize(
    ("seconds", "rate", "frames"), [(1.0, 10.0, 10), (1.0, 29.97, 30), (3.0, 60.0, 180), (3.0, 1.0, 3), (0.0, 10.0, 1)]
)
def test_the_buffer_is_in_seconds_of_the_frames_that_are_looked_at(seconds, rate, frames):
    assert Association(TrackConfig(buffer_seconds=seconds), rate=rate, stride=1).buffer == frames


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize(("lost", "tracks"), [(4, 1), (10, 1), (11, 2), (40, 2), (1_000_000_000, 2)])
def test_frames_that_were_lost_let_time_pass(stride, lost, tracks):
    there = {t * stride: frame(person(100)) for t in range(20)}
    later = {(20 + lost + t) * stride: frame(person(100)) for t in range(20)}
    assert len(track(there | later, stride=stride)) == tracks


@both_trackers
def test_lost_frames_are_as_frames_without_people(tracker):
    walk = {t: frame(person(100 + 3 * t), person(600 - 2 * t, 300)) for t in range(40) if t not in (11, 12, 25)}
    holes = {t: walk.get(t, frame()) for t in range(40)}
    assert track(walk, tracker=tracker) == track(holes, tracker=tracker)


@both_trackers
def test_a_weak_detection_prolongs_a_track_and_starts_none(tracker):
    # Half hidden from frame 10 to 19: only the second association takes scores between low and high.
    frames = [
        frame(person(100 + 2 * t, score=0.15 if 10 <= t < 20 else 0.9), person(600, score=0.2)) for t in range(30)
    ]
    assert frames_of(track(frames, tracker=tracker)) == [[*range(30)]]
    # Without them the track is lost for 10 frames and comes back.
    assert frames_of(track(frames, tracker=tracker, low_confidence=0.16)) == [[*range(10), *range(20, 30)]]


def test_in_the_first_frame_alone_a_detection_belongs_at_once():
    assert frames_of(track([frame(person(100))] * 3)) == [[0, 1, 2]]
    assert frames_of(track([frame(), *[frame(person(100))] * 3])) == [[2, 3]]


@both_trackers
def test_a_row_belongs_to_one_track_and_a_track_has_one_row_a_frame(tracker):
    rng = np.random.default_rng(1)
    association = Association(dataclasses.replace(CONFIG, tracker=tracker), rate=10.0, stride=1)
    for t in range(80):
        crowd = [person(rng.uniform(0, 200), rng.uniform(0, 80), score=rng.uniform(0.05, 1)) for _ in range(12)]
        pairs = association.update(t, frame(*crowd))
        numbers, rows = [number for number, _ in pairs], [row for _, row in pairs]
        assert numbers == sorted(set(numbers))
        assert len(set(rows)) == len(rows)
        assert set(rows) <= set(range(12))


@both_trackers
def test_the_same_detections_give_the_same_numbers_and_videos_do_not_see_each_other(tracker):
    rng = np.random.default_rng(0)
    frames = [
        frame(*(person(200 * k + 3 * t + rng.normal(), 50 * k, score=rng.uniform(0.1, 1)) for k in range(4)))
        for t in range(60)
    ]
    first = track(frames, tracker=tracker)
    assert list(track([frame(person(700 - t), person(100)) for t in range(20)], tracker=tracker)) == [1, 2]
    assert len(first) >= 4
    assert track(frames, tracker=tracker) == first


@both_trackers
def test_detections_are_left_as_they_are(tracker):
    frames = [frame(person(100 + 5 * t), person(500, score=0.15)) for t in range(20)]
    before = [(people.boxes.copy(), people.score.copy(), people.keypoints.copy()) for people in frames]
    for people in frames:
        for array in (people.boxes, people.score, people.keypoints):
            array.flags.writeable = False
    track(frames, tracker=tracker)
    for people, (boxes, score, keypoints) in zip(frames, before, strict=True):
        np.testing.assert_array_equal(people.boxes, boxes)
        np.testing.assert_array_equal(people.score, score)
        np.testing.assert_array_equal(people.keypoints, keypoints)


@both_trackers
@pytest.mark.parametrize(
    "box",
    [
        (300, 100, 300, 100),
        (300, 100, 340, 100),
        (340, 100, 300, 200),
        (np.nan, 100, 340, 200),
        (300, 100, 340, np.nan),
    ],
)
def test_a_box_without_area_or_number_upsets_nobody(tracker, box):
    odd = (np.array(box, np.float32), 0.9, np.zeros((17, 3), np.float32))
    assert frames_of(track([frame(odd, person(100)) for _ in range(20)], tracker=tracker)) == [[*range(20)]]


def test_a_score_that_is_no_number_starts_nothing():
    assert track([frame(person(100, score=np.nan))] * 20) == {}


@pytest.mark.parametrize("frames", [[], [frame()] * 30])
def test_a_video_without_people_has_no_tracks(frames):
    assert track(frames) == {}


@pytest.mark.parametrize("second", [3, 4])
def test_frames_come_in_order(second):
    association = Association(CONFIG, rate=10.0, stride=1)
    association.update(4, frame())
    with pytest.raises(ValueError, match=f"frame_index {second} comes after 4"):
        association.update(second, frame())


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_the_frame_rate_is_positive(rate):
    with pytest.raises(ValueError, match="expected more than 0"):
        Association(CONFIG, rate=rate, stride=1)
