"""Segments: every frame in one of them, beginning where the stride hits, the last one open."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csip.ingest.plan import Segment, cut_into_segments


def test_ten_minutes_at_ten_frames_a_second_are_six_thousand_frames():
    assert cut_into_segments(15_000, 10.0, 600, 1) == (
        Segment(0, 0, 6000),
        Segment(1, 6000, 12_000),
        Segment(2, 12_000, None),
    )


@pytest.mark.parametrize("frames", [0, 1, 5999, 6000])
def test_a_video_no_longer_than_a_segment_is_one(frames):
    assert cut_into_segments(frames, 10.0, 600, 1) == (Segment(0, 0, None),)


def test_a_segment_begins_with_a_frame_that_is_looked_at():
    # 25 frames a segment, of which every fourth is looked at: 28 is the next that the stride hits.
    assert [one.first for one in cut_into_segments(100, 25.0, 1, 4)] == [0, 28, 56, 84]


@given(st.integers(0, 5000), st.floats(0.1, 120, allow_nan=False), st.floats(0.01, 1000), st.integers(1, 30))
def test_every_frame_lies_in_one_segment(frames, fps, seconds, stride):
    segments = cut_into_segments(frames, fps, seconds, stride)
    assert [one.number for one in segments] == list(range(len(segments)))
    assert segments[0].first == 0
    assert all(a.end == b.first for a, b in itertools.pairwise(segments))
    assert segments[-1].end is None
    assert segments[-1].first < max(frames, 1)
    assert all(one.first % stride == 0 for one in segments)
