"""Each rule on both sides of its threshold; boxes are 100 pixels high, so that pixels are hundredths of a height."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csip.config import TrackConfig
from csip.ingest.tracklet_rules import Seen, drop_doubles, fill_gap, is_jump, link, remember
from csip.types import People

CONFIG = TrackConfig()
FPS = 10.0
SIZE = (480, 640)


def seen(frame_index, x, y=100.0, height=100.0):
    """Somebody whose head is at (x + 20, y)."""
    return Seen(frame_index, np.array([x, y, x + 40, y + height], np.float32), 0.9, np.ones((17, 3), np.float32))


def walk(frames, x=100.0, speed=0.0, height=100.0):
    """Somebody at x in the first frame, who walks so many pixels a frame."""
    frames = list(frames)
    return [seen(t, x + speed * (t - frames[0]), height=height) for t in frames]


def changed(**values):
    return dataclasses.replace(CONFIG, **values)


# ------------------------------------------------------------------------------------------------------------ doubles


def people(*ones):
    """People of (score, height, x, indices of the joints that are sure); all joints lie at (x, 50)."""
    keypoints = np.zeros((len(ones), 17, 3), np.float32)
    for row, (_, _, x, sure) in enumerate(ones):
        keypoints[row, :, :2] = (x, 50)
        keypoints[row, list(sure), 2] = 0.5
    boxes = np.array([[x, 0, x + 40, height] for _, height, x, _ in ones], np.float32).reshape(-1, 4)
    return People(boxes, np.array([one[0] for one in ones], np.float32), keypoints)


@pytest.mark.parametrize(("apart", "left"), [(9.9, 1), (10.0, 1), (10.1, 2)])
def test_two_detections_whose_joints_lie_together_are_one_person(apart, left):
    """A tenth of the smaller box, which is 100 pixels high."""
    single, doubles = drop_doubles(people((0.9, 200, 0, range(17)), (0.8, 100, apart, range(17))), 0.1)
    assert (len(single), doubles) == (left, 2 - left)
    assert single.score[0] == np.float32(0.9)


@pytest.mark.parametrize(("common", "left"), [(3, 2), (4, 1)])
def test_four_joints_must_be_sure_in_both(common, left):
    both = people((0.9, 100, 0, range(8)), (0.8, 100, 1, range(8 - common, 17)))
    assert len(drop_doubles(both, 0.1)[0]) == left


def test_the_weaker_one_goes_and_the_order_stays():
    crowd = people((0.5, 100, 300, range(17)), (0.7, 100, 0, range(17)), (0.9, 100, 301, range(17)))
    single, doubles = drop_doubles(crowd, 0.1)
    assert doubles == 1
    np.testing.assert_array_equal(single.score, np.array([0.7, 0.9], np.float32))
    np.testing.assert_array_equal(single.boxes, crowd.boxes[1:])
    np.testing.assert_array_equal(single.keypoints, crowd.keypoints[1:])


def test_of_equal_scores_the_first_stays():
    single, _ = drop_doubles(people((0.9, 100, 0, range(17)), (0.9, 100, 1, range(17))), 0.1)
    assert single.boxes[0, 0] == 0


def test_who_is_near_to_a_dropped_one_only_stays():
    """In a row 8 pixels apart each: the second is the first's double, the third is nobody's that is left."""
    single, doubles = drop_doubles(people(*((0.9 - 0.1 * k, 100, 8 * k, range(17)) for k in range(3))), 0.1)
    assert (single.boxes[:, 0].tolist(), doubles) == ([0, 16], 1)


def test_a_distance_of_zero_leaves_everybody():
    same = people((0.9, 100, 0, range(17)), (0.8, 100, 0, range(17)))
    assert drop_doubles(same, 0) == (same, 0)


@pytest.mark.parametrize("n", [0, 1])
def test_one_person_and_none_are_no_doubles(n):
    few = people(*[(0.9, 100, 0, range(17))] * n)
    assert drop_doubles(few, 0.1) == (few, 0)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(20, 200), st.integers(0, 60), st.integers(0, 17)), max_size=8))
def test_doubles_are_those_of_a_slow_reference(ones):
    crowd = people(*((score / 10, height, x, range(count)) for score, height, x, count in ones))
    kept = []
    for i in sorted(range(len(ones)), key=lambda i: (-ones[i][0], i)):
        near = [
            j
            for j in kept
            if min(ones[i][3], ones[j][3]) >= 4 and abs(ones[i][2] - ones[j][2]) <= 0.1 * min(ones[i][1], ones[j][1])
        ]
        if not near:
            kept.append(i)
    single, doubles = drop_doubles(crowd, 0.1)
    assert doubles == len(ones) - len(kept)
    np.testing.assert_array_equal(single.boxes, crowd.boxes[sorted(kept)])


# -------------------------------------------------------------------------------------------------------------- jumps


@pytest.mark.parametrize(("x", "jump"), [(154.9, False), (155.1, True), (45.1, False), (44.9, True)])
def test_a_detection_too_far_from_where_somebody_stands_is_a_jump(x, jump):
    """Half a height, and a tenth more for the tenth of a second: 55 pixels."""
    assert is_jump(walk(range(10)), seen(10, x), FPS, CONFIG) is jump


@pytest.mark.parametrize(("x", "jump"), [(244.9, False), (245.1, True), (125.1, False), (124.9, True)])
def test_who_walks_may_go_on_or_stand_still(x, jump):
    """Ten pixels a frame: in frame 9 at 190 - 10 = 180; then anywhere from 180 - 55 to 190 + 55."""
    assert is_jump(walk(range(10), x=90, speed=10), seen(10, x), FPS, CONFIG) is jump


@pytest.mark.parametrize(("x", "jump"), [(249.9, False), (250.1, True)])
def test_time_unseen_widens_the_reach(x, jump):
    """Two seconds: three times half a height."""
    assert is_jump(walk(range(10)), seen(29, x), FPS, CONFIG) is jump


def test_the_smaller_box_is_the_measure():
    """30 pixels are more than .55 heights of 50, and less than half of .55 heights of 150."""
    assert is_jump(walk(range(10)), seen(10, 130, height=50), FPS, CONFIG)
    assert not is_jump(walk(range(10)), seen(10, 130, height=145), FPS, CONFIG)


@pytest.mark.parametrize(("height", "x", "jump"), [(149, 128, False), (151, 128, True), (151, 127, False)])
def test_another_size_is_a_jump_at_half_the_distance(height, x, jump):
    """Half of 55 pixels is 27.5."""
    assert is_jump(walk(range(10)), seen(10, x, height=height), FPS, CONFIG) is jump


def test_the_jump_rules_can_be_turned_off():
    far, other = seen(10, 500), seen(10, 128, height=200)
    assert not is_jump(walk(range(10)), far, FPS, changed(jump_distance=0))
    assert not is_jump(walk(range(10)), other, FPS, changed(jump_distance=0))
    assert not is_jump(walk(range(10)), other, FPS, changed(jump_ratio=0))
    assert is_jump(walk(range(10)), far, FPS, changed(jump_ratio=0))


@pytest.mark.parametrize("fps", [1.0, 10.0, 60.0])
def test_speed_is_that_of_the_last_second_whatever_the_frame_rate(fps):
    """Long there and still, then a second at 80 pixels a second: on to 180 + 80 t, and .5 (1 + t) heights off."""
    second = round(fps)
    track = walk(range(5 * second)) + [seen(5 * second + t, 100 + 80 * t / fps) for t in range(second + 1)]
    t = 1 / fps
    far = 180 + 80 * t + 50 * (1 + t)
    assert not is_jump(track, seen(6 * second + 1, far - 0.5), fps, CONFIG)
    assert is_jump(track, seen(6 * second + 1, far + 0.5), fps, CONFIG)


def test_what_is_remembered_judges_as_the_whole_track_does():
    rng = np.random.default_rng(0)
    for fps in (1.0, 4.0, 25.0):
        times = np.cumsum(rng.integers(1, 4, 60)).tolist()
        track = [seen(t, 100 + 3 * rng.normal(), height=100 + 5 * rng.normal()) for t in times]
        for long in (1, 3, 30, 60):
            part = remember(track[:long], fps)
            assert part == track[:long][-len(part) :]
            assert len(part) >= min(long, 5)
            for x, later in itertools.product((60, 100, 160, 300), (1, 7)):
                after = seen(times[long - 1] + later, x)
                assert is_jump(part, after, fps, CONFIG) == is_jump(track[:long], after, fps, CONFIG)
                pair = [walk(range(times[long - 1] + later, times[long - 1] + later + 9), x=x)]
                assert link([part], pair, fps, CONFIG) == link([track[:long]], pair, fps, CONFIG)
    assert len(remember(walk(range(1000)), 25.0)) == 26


# -------------------------------------------------------------------------------------------------------------- links


@pytest.mark.parametrize(("begin", "linked"), [(39, True), (40, False)])
def test_a_link_bridges_the_seconds_it_may(begin, linked):
    """The last one is seen in frame 9; three seconds are 30 frames."""
    assert bool(link([walk(range(10))], [walk(range(begin, begin + 10))], FPS, CONFIG)) is linked


@pytest.mark.parametrize(("x", "linked"), [(149, True), (151, False)])
def test_a_link_goes_no_further_than_half_a_height(x, linked):
    """Both stand still, so that forwards and backwards are equally far off."""
    assert bool(link([walk(range(10))], [walk(range(20, 30), x=x)], FPS, CONFIG)) is linked


@pytest.mark.parametrize(("height", "linked"), [(129, True), (131, False)])
def test_a_link_joins_one_size(height, linked):
    assert bool(link([walk(range(10))], [walk(range(20, 30), height=height)], FPS, CONFIG)) is linked
    assert bool(link([walk(range(10), height=height)], [walk(range(20, 30))], FPS, CONFIG)) is linked


def test_a_link_follows_the_way_somebody_goes():
    """Six pixels a frame: in frame 9 at 154, and 20 frames later at 274, where the second walker begins."""
    there = walk(range(10), speed=6)
    assert link([there], [walk(range(29, 40), x=274, speed=6)], FPS, CONFIG) == [(0, 0)]
    # Who comes from there is somebody else: forwards 0, backwards 240 pixels off.
    assert link([there], [walk(range(29, 40), x=274, speed=-6)], FPS, CONFIG) == []
    # And so is who begins where the first one was last seen, if he walks on at the same pace.
    assert link([there], [walk(range(29, 40), x=154, speed=6)], FPS, CONFIG) == []


def test_tracks_that_overlap_are_not_linked():
    assert link([walk(range(10))], [walk(range(9, 20))], FPS, CONFIG) == []
    assert link([walk(range(10))], [walk(range(10, 20))], FPS, CONFIG) == [(0, 0)]


def test_the_surest_link_comes_first_and_each_track_is_linked_once():
    earlier = [walk(range(10), x=100), walk(range(10), x=130)]
    later = [walk(range(20, 30), x=128), walk(range(20, 30), x=120)]
    # Distances: 28 and 20 from the first, 2 and 10 from the second.
    assert link(earlier, later, FPS, CONFIG) == [(1, 0), (0, 1)]


def test_zero_seconds_link_nothing():
    assert link([walk(range(10))], [walk(range(10, 20))], FPS, changed(link_seconds=0)) == []


# --------------------------------------------------------------------------------------------------------------- gaps


def fill(last, then, **changes):
    return fill_gap(last, then, **{"stride": 1, "frames": 10.0, "frame_size": SIZE, **changes})


def test_a_gap_is_filled_by_hand():
    filled = fill(seen(10, 100, 50, 100), seen(14, 140, 90, 120))
    assert [one.frame_index for one in filled] == [11, 12, 13]
    boxes = np.stack([one.box for one in filled])
    np.testing.assert_allclose(boxes, [[110, 60, 150, 165], [120, 70, 160, 180], [130, 80, 170, 195]])
    for one in filled:
        assert (one.score, one.interpolated) == (0, True)
        assert one.keypoints.shape == (17, 3)
        assert not one.keypoints.any()


@pytest.mark.parametrize(("frames", "count"), [(10, 9), (9.9, 0), (0, 0)])
def test_a_gap_is_filled_up_to_its_length(frames, count):
    assert len(fill(seen(0, 100), seen(10, 120), frames=frames)) == count


def test_neighbours_have_no_gap():
    assert fill(seen(0, 100), seen(1, 100)) == []
    assert fill(seen(0, 100), seen(5, 100), stride=5) == []


def test_only_frames_that_are_looked_at_are_filled():
    assert [one.frame_index for one in fill(seen(5, 100), seen(20, 100), stride=5, frames=30)] == [10, 15]


@pytest.mark.parametrize(
    ("box", "filled"),
    [
        ((2, 100, 42, 200), True),
        ((1.9, 100, 42, 200), False),
        ((100, 1.9, 140, 100), False),
        ((598, 100, 638, 200), True),
        ((600, 100, 638.1, 200), False),
        ((100, 378, 140, 478), True),
        ((100, 380, 140, 478.1), False),
    ],
)
def test_who_touches_the_border_may_have_been_out_of_view(box, filled):
    edge, inside = Seen(0, np.array(box, np.float32), 0.9, np.ones((17, 3))), seen(3, 100)
    assert bool(fill(edge, inside)) is filled
    assert bool(fill(dataclasses.replace(inside, frame_index=0), dataclasses.replace(edge, frame_index=3))) is filled


@given(st.integers(1, 60), st.integers(1, 4), st.data())
def test_filled_boxes_are_exactly_linear(count, stride, data):
    numbers = st.floats(10, 400, width=32)
    a, b = (np.array(data.draw(st.tuples(*[numbers] * 4)), np.float32) for _ in range(2))
    end = (count + 1) * stride
    filled = fill_gap(
        Seen(0, a, 0.9, np.ones((17, 3))),
        Seen(end, b, 0.9, np.ones((17, 3))),
        stride=stride,
        frames=end,
        frame_size=SIZE,
    )
    assert [one.frame_index for one in filled] == list(range(stride, end, stride))
    for one in filled:
        at = one.frame_index / end
        np.testing.assert_allclose(one.box, (1 - at) * a.astype(float) + at * b.astype(float), rtol=0, atol=1e-3)
