"""Who is kept, by hand-worked cases and against the even-odd rule in exact arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csip.config import DetectConfig
from csip.ingest.keep import keep_people
from csip.types import People

SMALL, OUTSIDE = "smaller than min_box_height", "outside region"


def crowd(*boxes):
    """People in these boxes, each with a score and keypoints of its own."""
    n = len(boxes)
    keypoints = np.arange(n, dtype=np.float32)[:, None, None] * np.ones((n, 17, 3), np.float32)
    return People(np.array(boxes, np.float32).reshape(n, 4), np.arange(n, dtype=np.float32) / 10, keypoints)


def test_without_rules_everybody_stays():
    people = crowd((0, 0, 5, 1), (90, 90, 100, 100))
    kept, counts = keep_people(people, (100, 100), DetectConfig())
    assert kept is people
    assert counts == {SMALL: 0, OUTSIDE: 0}


def test_a_box_of_just_the_least_height_stays():
    kept, counts = keep_people(
        crowd((0, 0, 5, 39), (0, 0, 5, 40), (0, 10, 5, 51)), (100, 100), DetectConfig(min_box_height=40)
    )
    np.testing.assert_array_equal(kept.boxes, [(0, 0, 5, 40), (0, 10, 5, 51)])
    np.testing.assert_allclose(kept.score, [0.1, 0.2])
    np.testing.assert_array_equal(kept.keypoints[:, 0, 0], [1, 2])
    assert counts == {SMALL: 1, OUTSIDE: 0}


def test_where_somebody_stands_is_the_middle_of_the_lower_edge():
    # The right half of a frame 200 wide and 100 high. Feet at x = 99, 100 (on the border), 150, and 40 with a box that
    # reaches far into the region.
    people = crowd((89, 0, 109, 50), (90, 0, 110, 50), (140, 20, 160, 60), (0, 0, 80, 50))
    config = DetectConfig(region=((0.5, 0), (1, 0), (1, 1), (0.5, 1)))
    kept, counts = keep_people(people, (100, 200), config)
    np.testing.assert_array_equal(kept.boxes[:, 0], [90, 140])
    assert counts == {SMALL: 0, OUTSIDE: 2}


def test_shares_are_of_width_then_height():
    # A triangle over the lower left half: (0, 0), (0, 1), (1, 1) of a frame 400 wide and 100 high.
    config = DetectConfig(region=((0, 0), (0, 1), (1, 1)))
    kept, _ = keep_people(crowd((90, 0, 110, 60), (290, 0, 310, 60)), (100, 400), config)
    np.testing.assert_array_equal(kept.boxes[:, 0], [90])


def test_whose_feet_are_cut_off_by_the_frame_stands_in_it():
    whole = DetectConfig(region=((0, 0), (1, 0), (1, 1), (0, 1)))
    people = crowd((10, 50, 30, 100), (0, 20, 0, 100), (100, 0, 100, 100))
    assert len(keep_people(people, (100, 100), whole)[0]) == 3


def test_who_breaks_both_rules_counts_once():
    config = DetectConfig(min_box_height=40, region=((0.5, 0), (1, 0), (1, 1)))
    kept, counts = keep_people(crowd((0, 0, 5, 10), (0, 0, 5, 50)), (100, 100), config)
    assert len(kept) == 0
    assert counts == {SMALL: 1, OUTSIDE: 1}
    assert kept.keypoints.shape == (0, 17, 3)


def test_nobody_is_nobody():
    config = DetectConfig(min_box_height=40, region=((0.5, 0), (1, 0), (1, 1)))
    kept, counts = keep_people(crowd(), (100, 100), config)
    assert (len(kept), dict(counts)) == (0, {SMALL: 0, OUTSIDE: 0})


def test_a_region_may_have_a_notch():
    # A U: the notch between x = .4 and .6 is open upwards down to y = .8.
    u = ((0, 0), (0.4, 0), (0.4, 0.8), (0.6, 0.8), (0.6, 0), (1, 0), (1, 1), (0, 1))
    feet = [(0.2, 0.5), (0.5, 0.5), (0.8, 0.5), (0.5, 0.9)]
    people = crowd(*((1000 * x - 10, 1000 * y - 100, 1000 * x + 10, 1000 * y) for x, y in feet))
    kept, _ = keep_people(people, (1000, 1000), DetectConfig(region=u))
    np.testing.assert_array_equal(kept.boxes[:, 0], [190, 790, 490])


def stands_in(x, y, corners):
    """The even-odd rule by its own words, in fractions: count the edges that a ray to the right crosses."""
    crossings = 0
    for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1], strict=True):
        on_line = (x2 - x1) * (y - y1) == (y2 - y1) * (x - x1)
        if on_line and min(x1, x2) <= x <= max(x1, x2) and min(y1, y2) <= y <= max(y1, y2):
            return True
        if (y1 <= y < y2) or (y2 <= y < y1):
            crossings += x1 + (y - y1) * (x2 - x1) / (y2 - y1) > x
    return crossings % 2 == 1


# Sixteenths are exact in binary, so that a foot on an edge lies on it in both arithmetics.
SHARE = st.integers(0, 16).map(lambda n: Fraction(n, 16))
CORNERS = st.lists(st.tuples(SHARE, SHARE), min_size=3, max_size=8)


@given(CORNERS, st.lists(st.tuples(SHARE, SHARE), max_size=12))
def test_any_region_keeps_whom_the_even_odd_rule_keeps(corners, feet):
    try:
        config = DetectConfig(region=tuple((float(x), float(y)) for x, y in corners))
    except ValueError as error:
        assert "on one line" in str(error)  # noqa: PT017
        return
    boxes = [(float(640 * x) - 4, float(320 * y) - 50, float(640 * x) + 4, float(320 * y)) for x, y in feet]
    kept, counts = keep_people(crowd(*boxes), (320, 640), config)
    expected = [box for box, (x, y) in zip(boxes, feet, strict=True) if stands_in(x, y, corners)]
    np.testing.assert_array_equal(kept.boxes, np.array(expected, np.float32).reshape(-1, 4))
    assert counts == {SMALL: 0, OUTSIDE: len(boxes) - len(expected)}


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_region_lies_in_the_frame(share):
    with pytest.raises(ValueError, match=r"DetectConfig\.region: got .* expected shares of width and height, 0 to 1"):
        DetectConfig(region=((0, 0), (1, 0), (1, share)))


@pytest.mark.parametrize("corners", [((0, 0),), ((0, 0), (1, 1)), ((0, 0), (0.5, 0.5), (1, 1)), ((0, 0),) * 4])
def test_a_region_has_an_area(corners):
    with pytest.raises(ValueError, match="at least three corners that are not on one line"):
        DetectConfig(region=corners)
