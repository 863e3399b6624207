"""People walk through hand-made detections; the expected tracklets are read off the drawing."""

import numpy as np
import pytest

from csip.ingest.track import TOO_SHORT, TOO_UNSURE, build_tracklets
from csip.types import People

SETTINGS = {
    "fps": 10.0,
    "tracker": "bytetrack",
    "high_confidence": 0.25,
    "low_confidence": 0.1,
    "new_confidence": 0.25,
    "match_cost": 0.8,
    "buffer_seconds": 1.0,
    "min_frames": 5,
    "min_keypoint_confidence": 0.3,
    "make_id": "track-{}".format,
}

both_trackers = pytest.mark.parametrize("tracker", ["bytetrack", "botsort"])


def person(x, y=100.0, score=0.9, keypoint_confidence=0.8):
    """A box of 40 x 100 pixels at (x, y), its keypoints marked with its own corner."""
    keypoints = np.zeros((17, 3), np.float32)
    keypoints[:, :2], keypoints[:, 2] = (x, y), keypoint_confidence
    return np.array([x, y, x + 40, y + 100], np.float32), score, keypoints


def frame(*people):
    boxes = np.array([box for box, _, _ in people], np.float32).reshape(-1, 4)
    score = np.array([score for _, score, _ in people], np.float32)
    return People(boxes, score, np.array([points for _, _, points in people], np.float32).reshape(-1, 17, 3))


def track(frames, **changes):
    return build_tracklets(enumerate(frames), **{**SETTINGS, **changes})


@both_trackers
def test_two_people_far_apart_are_two_tracklets_with_their_own_keypoints(tracker):
    # They cross: one walks right on y 100, one left on y 400. The order of the rows changes from frame to frame.
    right = [person(100 + 5 * t, 100) for t in range(30)]
    left = [person(500 - 5 * t, 400) for t in range(30)]
    frames = [frame(*([a, b] if t % 3 else [b, a])) for t, (a, b) in enumerate(zip(right, left, strict=True))]
    result = track(frames, tracker=tracker)
    assert [len(tracklet) for tracklet in result.tracklets] == [30, 30]
    assert result.dropped == {TOO_SHORT: 0, TOO_UNSURE: 0}
    upper, lower = sorted(result.tracklets, key=lambda found: found.boxes[0, 1])
    for tracklet, expected in ((upper, right), (lower, left)):
        assert tracklet.frame_index.tolist() == list(range(30))
        # The detections' own boxes, not the tracker's smoothed ones.
        np.testing.assert_array_equal(tracklet.boxes, [box for box, _, _ in expected])
        np.testing.assert_array_equal(tracklet.keypoints, [points for _, _, points in expected])
        np.testing.assert_array_equal(tracklet.score, np.full(30, 0.9, np.float32))


@both_trackers
def test_a_gap_within_the_buffer_is_bridged_and_one_beyond_it_is_not(tracker):
    def walk(gap):
        seen = [frame(person(100 + 2 * t)) for t in range(20)]
        again = [frame(person(100 + 2 * t)) for t in range(20 + gap, 40 + gap)]
        return seen + [frame()] * gap + again

    # The buffer is 1 second, 10 frames.
    bridged = track(walk(8), tracker=tracker)
    assert [tracklet.frame_index.tolist() for tracklet in bridged.tracklets] == [[*range(20), *range(28, 48)]]
    broken = track(walk(14), tracker=tracker)
    assert [tracklet.frame_index[0] for tracklet in broken.tracklets] == [0, 35]
    assert [tracklet.tracklet_id for tracklet in broken.tracklets] == ["track-0", "track-1"]


def test_the_buffer_is_in_seconds():
    frames = [frame(person(100))] * 20 + [frame()] * 14 + [frame(person(100))] * 20
    assert len(track(frames, fps=10.0).tracklets) == 2
    assert len(track(frames, fps=20.0).tracklets) == 1


def test_frames_that_were_lost_let_time_pass():
    there = [(t, frame(person(100))) for t in range(20)]
    later = [(t, frame(person(100))) for t in range(60, 80)]
    assert len(build_tracklets(there + later, **SETTINGS).tracklets) == 2
    soon = [(t, frame(person(100))) for t in range(24, 44)]
    assert len(build_tracklets(there + soon, **SETTINGS).tracklets) == 1


def test_a_ghost_is_dropped_and_counted():
    frames = [frame(person(100 + t), *([person(600, 300)] if 10 <= t < 14 else [])) for t in range(30)]
    result = track(frames)
    assert [tracklet.tracklet_id for tracklet in result.tracklets] == ["track-0"]
    assert result.dropped == {TOO_SHORT: 1, TOO_UNSURE: 0}


def test_a_tracklet_of_unsure_keypoints_is_dropped_and_counted():
    frames = [frame(person(100, keypoint_confidence=0.2), person(500)) for _ in range(20)]
    result = track(frames)
    assert [tracklet.boxes[0, 0] for tracklet in result.tracklets] == [500]
    assert result.dropped == {TOO_SHORT: 0, TOO_UNSURE: 1}


@both_trackers
def test_a_weak_detection_prolongs_a_track_and_starts_none(tracker):
    # Half hidden from frame 10 to 19: only the second association takes scores between low and high.
    frames = [
        frame(person(100 + 2 * t, score=0.15 if 10 <= t < 20 else 0.9), person(600, score=0.2)) for t in range(30)
    ]
    result = track(frames, tracker=tracker)
    assert [tracklet.frame_index.tolist() for tracklet in result.tracklets] == [list(range(30))]
    # Without them the track is lost for 10 frames and comes back.
    result = track(frames, tracker=tracker, low_confidence=0.16)
    assert [tracklet.frame_index.tolist() for tracklet in result.tracklets] == [[*range(10), *range(20, 30)]]


def test_tracklets_are_numbered_in_order_of_appearance_and_the_dropped_keep_their_number():
    starts = {0: 100, 5: 900, 10: 500}
    frames = [
        frame(*(person(x) for start, x in starts.items() if start <= t < (8 if start == 5 else 40))) for t in range(40)
    ]
    result = track(frames)
    assert [(tracklet.tracklet_id, tracklet.boxes[0, 0]) for tracklet in result.tracklets] == [
        ("track-0", 100),
        ("track-2", 500),
    ]
    assert result.dropped[TOO_SHORT] == 1


@both_trackers
def test_the_same_detections_give_the_same_tracklets_and_videos_do_not_see_each_other(tracker):
    rng = np.random.default_rng(0)
    frames = [
        frame(*(person(200 * k + 3 * t + rng.normal(), 50 * k, score=rng.uniform(0.1, 1)) for k in range(4)))
        for t in range(60)
    ]
    first = track(frames, tracker=tracker)
    other = track([frame(person(700 - t), person(100)) for t in range(20)], tracker=tracker)
    again = track(frames, tracker=tracker)
    assert len(first.tracklets) >= 4
    assert [tracklet.tracklet_id for tracklet in other.tracklets] == ["track-0", "track-1"]
    assert first.dropped == again.dropped
    for a, b in zip(first.tracklets, again.tracklets, strict=True):
        assert a.tracklet_id == b.tracklet_id
        for name in ("frame_index", "boxes", "score", "keypoints"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


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


def test_a_box_without_area_does_not_upset_the_tracker():
    flat = (np.array([300, 100, 300, 100], np.float32), 0.9, np.zeros((17, 3), np.float32))
    result = track([frame(person(100), flat) for _ in range(20)])
    assert [len(tracklet) for tracklet in result.tracklets] == [20]


@pytest.mark.parametrize("frames", [[], [frame()] * 30])
def test_a_video_without_people_has_no_tracklets(frames):
    result = track(frames)
    assert result.tracklets == ()
    assert result.dropped == {TOO_SHORT: 0, TOO_UNSURE: 0}


def test_frames_come_in_order():
    with pytest.raises(ValueError, match="frame_index 3 comes after 4"):
        build_tracklets([(4, frame()), (3, frame())], **SETTINGS)


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan")])
def test_the_frame_rate_is_positive(fps):
    with pytest.raises(ValueError, match="expected more than 0"):
        track([frame()], fps=fps)
