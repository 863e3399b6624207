"""Hand-made walks through cut, link, fill and choice, segment by segment; and what holds for any detections at all."""

import dataclasses
import importlib.util
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csip.config import TrackConfig
from csip.ingest.detect_pass import Found, lost_frames
from csip.ingest.tracklets import (
    CUTS,
    DOUBLES,
    FILLED,
    GHOST,
    LINKS,
    TOO_SHORT,
    VideoTracker,
)
from storage_schemas.tracklets import APPEARED, BEGINS, ENDED, ENDS, JUMPED, LEFT
from storage_schemas.tracklets import SCHEMA as TRACKLETS

_SPEC = importlib.util.spec_from_file_location("walks", Path(__file__).resolve().parents[2] / "makers" / "walks.py")
walks = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(walks)
frame, person = walks.frame, walks.person

CONFIG = TrackConfig()
NOTHING = {DOUBLES: 0, CUTS: 0, LINKS: 0, FILLED: 0}
RANDOM = settings(max_examples=25, deadline=None)


def begin(fps=10.0, stride=1, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return VideoTracker(config, fps=fps, frame_size=(1000, 2000), stride=stride, make_id="track-{}".format)


def track(frames, borders=(), **changes):
    """Track a video whose segments begin at the borders; keep its books as the pass over a video does."""
    tracker = begin(**changes)
    frames = list(frames.items()) if isinstance(frames, dict) else list(enumerate(frames))
    kept = SimpleNamespace(rows={}, summaries={}, withdrawn=[], dropped=Counter(), rules=Counter(), parts=[])

    def take(part):
        kept.parts.append(part)
        for name in part.withdrawn:
            del kept.rows[name], kept.summaries[name]
        for one in part.tracklets:
            kept.rows.setdefault(one.tracklet_id, []).append(one)
        kept.summaries.update(part.summaries)
        kept.withdrawn += part.withdrawn
        kept.dropped.update(part.dropped)
        kept.rules.update(part.rules)

    for index, people in frames:
        if index in borders:
            take(tracker.end_segment(final=False))
        tracker.add(index, people)
    take(tracker.end_segment(final=True))
    return kept


def column(kept, name, field="frame_index"):
    return np.concatenate([getattr(part, field) for part in kept.rows[name]])


def frames_of(kept):
    return {name: column(kept, name).tolist() for name in kept.rows}


def same(a, b):
    """Whether two ways came to the same: rows, summaries, what was dropped and what the rules did."""
    assert list(a.rows) == list(b.rows)
    for name in a.rows:
        for field in ("frame_index", "boxes", "score", "keypoints", "interpolated"):
            np.testing.assert_array_equal(column(a, name, field), column(b, name, field))
    assert {name: tell(one) for name, one in a.summaries.items()} == {name: tell(s) for name, s in b.summaries.items()}
    assert (a.dropped, a.rules) == (b.dropped, b.rules)


def tell(summary):
    return dataclasses.replace(summary, keypoint_confidence=round(summary.keypoint_confidence, 6))


def crowd(seed, count=60, people=6):
    """People who come and go, are missed now and then, and are found twice now and then."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, count, people)
    stay = rng.integers(2, count, people)
    place, speed = rng.uniform(100, 1500, (people, 2)), rng.normal(0, 4, (people, 2))
    frames = []
    for t in range(count):
        seen = []
        for k in range(people):
            if first[k] <= t < first[k] + stay[k] and rng.random() < 0.85:
                x, y = (place[k] * (1, 0.4) + speed[k] * (t - first[k]) + rng.normal(0, 1, 2)).tolist()
                seen.append(person(x, y, score=rng.uniform(0.12, 0.95), confidence=rng.uniform(0.1, 0.9)))
                if rng.random() < 0.1:
                    seen.append(person(x + 2, y, score=0.2))
        frames.append(frame(*seen))
    return frames


# ------------------------------------------------------------------------------------------------- what becomes of whom


def test_two_people_are_two_tracklets_with_the_detections_own_rows():
    right, left = [person(100 + 5 * t, 100) for t in range(30)], [person(500 - 5 * t, 400) for t in range(30)]
    kept = track([frame(*([a, b] if t % 3 else [b, a])) for t, (a, b) in enumerate(zip(right, left, strict=True))])
    upper, lower = sorted(kept.rows, key=lambda name: column(kept, name, "boxes")[0, 1])
    for name, expected in ((upper, right), (lower, left)):
        assert column(kept, name).tolist() == list(range(30))
        np.testing.assert_array_equal(column(kept, name, "boxes"), [box for box, _, _ in expected])
        np.testing.assert_array_equal(column(kept, name, "keypoints"), [points for _, _, points in expected])
        np.testing.assert_array_equal(column(kept, name, "score"), np.full(30, 0.9, np.float32))
        assert kept.summaries[name].keypoint_confidence == pytest.approx(0.8)
    assert kept.dropped == {TOO_SHORT: 0, GHOST: 0}
    assert kept.rules == NOTHING


def test_people_are_numbered_as_they_appear_and_the_dropped_keep_their_number():
    starts = {0: 100, 5: 900, 10: 500}
    kept = track(
        frame(*(person(x) for start, x in starts.items() if start <= t < (8 if start == 5 else 40))) for t in range(40)
    )
    assert {name: column(kept, name, "boxes")[0, 0] for name in kept.rows} == {"track-0": 100, "track-2": 500}
    assert kept.dropped == {TOO_SHORT: 1, GHOST: 0}


def test_the_trackers_words_are_those_of_the_table():
    assert {APPEARED, JUMPED} < set(BEGINS)
    assert {LEFT, JUMPED, ENDED} < set(ENDS)
    meaning = {name: TRACKLETS.field(name).metadata[b"csip.meaning"].decode() for name in ("begins", "ends")}
    assert all(repr(word) in meaning["begins"] for word in BEGINS)
    assert all(repr(word) in meaning["ends"] for word in ENDS)


def test_why_a_tracklet_begins_and_ends():
    kept = track(frame(*([person(100)] if t < 20 else []), *([person(800)] if t >= 10 else [])) for t in range(60))
    first, second = kept.summaries["track-0"], kept.summaries["track-1"]
    assert (first.first_frame, first.last_frame, first.begins, first.ends) == (0, 19, APPEARED, LEFT)
    assert (second.first_frame, second.last_frame, second.begins, second.ends) == (11, 59, APPEARED, ENDED)


@pytest.mark.parametrize(
    ("fps", "stride", "least"),
    [(10.0, 1, 8), (60.0, 1, 48), (60.0, 3, 16), (1.0, 1, 4), (29.97, 1, 24)],
)
def test_a_tracklet_has_frames_for_its_seconds_and_never_under_the_fewest(fps, stride, least):
    """Four fifths of a second of the frames that are looked at; at least four frames."""
    for frames, kept in ((least - 1, 0), (least, 1)):
        walk = {t * stride: frame(*([person(100)] if t < frames else [])) for t in range(frames + 9)}
        found = track(walk, fps=fps, stride=stride)
        assert (len(found.rows), found.dropped) == (kept, {TOO_SHORT: 1 - kept, GHOST: 0})


def test_interpolated_boxes_do_not_make_a_tracklet_longer():
    """Seen in seven frames of eleven; eight are needed."""
    kept = track([frame(*([person(100)] if t in (0, 1, 2, 7, 8, 9, 10) else [])) for t in range(20)])
    assert (kept.rows, kept.dropped, kept.rules[FILLED]) == ({}, {TOO_SHORT: 1, GHOST: 0}, 4)


@pytest.mark.parametrize(("unsure", "ghosts"), [(10, 0), (11, 1)])
def test_a_track_that_is_unsure_for_more_than_half_its_frames_is_a_ghost(unsure, ghosts):
    kept = track([frame(person(100, confidence=0.29 if t < unsure else 0.31)) for t in range(20)])
    assert (len(kept.rows), kept.dropped) == (1 - ghosts, {TOO_SHORT: 0, GHOST: ghosts})


# ---------------------------------------------------------------------------------------------------------------- jumps


def splice(distance, height=100):
    """Two people, forced into one association: the first is seen up to frame 19, the second from frame 20 on."""
    return [
        frame(person(100 + 2 * t)) if t < 20 else frame(person(138 + distance, size=(40, height))) for t in range(40)
    ]


@pytest.mark.parametrize(("distance", "cut"), [(54, False), (58, True)])
def test_two_people_in_one_association_are_cut_apart(monkeypatch, distance, cut):
    """The first stands at 138 in frame 19 and would go on to 140: more than 55 pixels from both is a jump."""
    monkeypatch.setattr("csip.ingest.track.Association.update", lambda *_: [(1, 0)])
    kept = track(splice(distance), interpolate_seconds=0)
    if not cut:
        assert frames_of(kept) == {"track-0": [*range(40)]}
        assert kept.rules == NOTHING
        return
    assert frames_of(kept) == {"track-0": [*range(20)], "track-1": [*range(20, 40)]}
    assert kept.rules == {**NOTHING, CUTS: 1}
    first, second = kept.summaries["track-0"], kept.summaries["track-1"]
    assert (first.ends, second.begins, second.ends) == (JUMPED, JUMPED, ENDED)


@pytest.mark.parametrize("borders", [(), (20,), (21,), (10, 30)])
def test_a_cut_is_the_same_over_a_border(monkeypatch, borders):
    monkeypatch.setattr("csip.ingest.track.Association.update", lambda *_: [(1, 0)])
    same(track(splice(100), borders), track(splice(100)))


def test_a_track_that_was_cut_is_not_linked_again(monkeypatch):
    """It jumps off and at once back: three tracklets."""
    monkeypatch.setattr("csip.ingest.track.Association.update", lambda *_: [(1, 0)])
    kept = track([frame(person(300 if 15 <= t < 30 else 100)) for t in range(45)])
    assert list(frames_of(kept).values()) == [[*range(15)], [*range(15, 30)], [*range(30, 45)]]
    assert kept.rules == {**NOTHING, CUTS: 2}


# ------------------------------------------------------------------------------------------------------ links and gaps


def behind_a_post(first=20, gap=15, count=20):
    """Somebody who walks eight pixels a frame and is hidden for a time; too far for the association, which is slow."""
    return [frame(*([] if first <= t < first + gap else [person(100 + 8 * t)])) for t in range(first + gap + count)]


# The association forgets at once, so that only the rule can join.
FORGETFUL = {"buffer_seconds": 0.1, "interpolate_seconds": 0.5}


def test_a_walk_behind_a_post_is_linked_into_one_tracklet():
    kept = track(behind_a_post(), **FORGETFUL)
    # A track that begins later has its first detection only to confirm it.
    assert frames_of(kept) == {"track-0": [*range(20), *range(36, 55)]}
    assert kept.rules == {**NOTHING, LINKS: 1}
    assert (kept.summaries["track-0"].begins, kept.summaries["track-0"].ends) == (APPEARED, ENDED)
    apart = track(behind_a_post(), **FORGETFUL, link_seconds=0)
    assert frames_of(apart) == {"track-0": [*range(20)], "track-1": [*range(36, 55)]}
    assert apart.rules == NOTHING


def test_three_pieces_make_one_tracklet_and_two_links():
    seen = {*range(15), *range(25, 40), *range(50, 65)}
    kept = track([frame(*([person(100 + 8 * t)] if t in seen else [])) for t in range(65)], **FORGETFUL)
    assert frames_of(kept) == {"track-0": sorted(seen - {25, 50})}
    assert kept.rules == {**NOTHING, LINKS: 2}


def test_pieces_that_are_too_short_alone_are_long_enough_together():
    seen = {*range(5), *range(9, 15)}
    frames = [frame(*([person(100 + 8 * t)] if t in seen else [])) for t in range(15)]
    assert frames_of(track(frames, **FORGETFUL)) == {"track-0": [*range(5), *range(10, 15)]}
    assert track(frames, **FORGETFUL, link_seconds=0).dropped == {TOO_SHORT: 2, GHOST: 0}


@pytest.mark.parametrize("border", range(16, 36))
def test_a_link_finds_who_ended_in_the_segment_before(border):
    kept = track(behind_a_post(), (border,), **FORGETFUL)
    assert frames_of(kept) == {"track-0": [*range(20), *range(36, 55)]}
    assert kept.rules == {**NOTHING, LINKS: 1}


def test_a_linked_tracks_old_number_is_somebody_else(monkeypatch):
    """Number 1 ends in frame 9 and is linked to number 2; when number 1 comes back, number 2 is still in view."""

    def update(_, index, people):
        numbers = {1: range(10), 2: range(14, 80)} if index < 40 else {1: range(40, 80), 2: range(14, 80)}
        return [(number, row) for row, number in enumerate(n for n in numbers if index in numbers[n])]

    monkeypatch.setattr("csip.ingest.track.Association.update", update)
    frames = []
    for t in range(80):
        if t >= 40:
            frames.append(frame(person(100), person(100, 500)))
        else:
            frames.append(frame(*([person(100)] if t < 10 or t >= 14 else [])))
    # In frame 40 the people's rows are number 1, then number 2; number 2 goes on at (100, 100).
    swapped = [
        frame(*(person(100, y) for y in ([500, 100] if t >= 40 else [100]))) if len(f) else f
        for t, f in enumerate(frames)
    ]
    kept = track(swapped, (30,))
    assert frames_of(kept) == {"track-0": [*range(80)], "track-2": [*range(40, 80)]}
    assert kept.rules == {**NOTHING, LINKS: 1, FILLED: 4}
    assert column(kept, "track-2", "boxes")[:, 1].tolist() == [500] * 40


def test_a_short_gap_is_filled_and_marked():
    kept = track([frame(*([person(100 + 3 * t)] if t not in (20, 21, 22) else [])) for t in range(40)])
    assert frames_of(kept) == {"track-0": [*range(40)]}
    filled = column(kept, "track-0", "interpolated")
    assert np.flatnonzero(filled).tolist() == [20, 21, 22]
    np.testing.assert_allclose(column(kept, "track-0", "boxes")[:, 0], 100 + 3 * np.arange(40), atol=1e-4)
    assert column(kept, "track-0", "score")[filled].tolist() == [0, 0, 0]
    assert not column(kept, "track-0", "keypoints")[filled].any()
    summary = kept.summaries["track-0"]
    assert (summary.num_frames, summary.interpolated_frames) == (40, 3)
    assert summary.keypoint_confidence == pytest.approx(0.8)
    assert kept.rules == {**NOTHING, FILLED: 3}


def test_no_box_is_interpolated_where_the_video_has_no_picture():
    """Frames 20 and 21 were lost; in frame 22 nobody was seen."""
    walk = {t: frame(*([person(100 + 3 * t)] if t != 22 else [])) for t in range(40) if t not in (20, 21)}
    kept = track(walk)
    assert frames_of(kept) == {"track-0": [*range(20), *range(22, 40)]}
    assert kept.rules == {**NOTHING, FILLED: 1}


def test_a_gap_over_a_border_is_filled_behind_it():
    frames = [frame(*([person(100 + 3 * t)] if t not in range(18, 24) else [])) for t in range(40)]
    kept = track(frames, (20,))
    assert frames_of(kept) == {"track-0": [*range(18), *range(20, 40)]}
    np.testing.assert_allclose(column(kept, "track-0", "boxes")[:, 0], 100 + 3 * column(kept, "track-0"), atol=1e-4)
    assert kept.summaries["track-0"].interpolated_frames == kept.rules[FILLED] == 4


def test_double_detections_are_counted():
    kept = track([frame(person(100), person(102, score=0.5)) for _ in range(20)])
    assert frames_of(kept) == {"track-0": [*range(20)]}
    assert kept.rules == {**NOTHING, DOUBLES: 20}


# ------------------------------------------------------------------------------------------------------------- segments


def test_a_track_that_comes_to_nothing_is_withdrawn():
    """Four frames before the border; what it gave then is taken back once it cannot go on: the fifth is never."""
    frames = [frame(person(800), *([person(100)] if 6 <= t < 11 else [])) for t in range(100)]
    kept = track(frames, (10, 20, 60))
    assert [part.withdrawn for part in kept.parts] == [(), (), ("track-1",), ()]
    assert [part.dropped[TOO_SHORT] for part in kept.parts] == [0, 0, 1, 0]
    assert ["track-1" in part.summaries for part in kept.parts] == [True, True, False, False]
    assert list(kept.rows) == ["track-0"]


def test_what_was_never_given_is_not_withdrawn():
    frames = [frame(person(800), *([person(100)] if 6 <= t < 9 else [])) for t in range(50)]
    kept = track(frames)
    assert (kept.withdrawn, kept.dropped[TOO_SHORT]) == ([], 1)


def test_a_track_is_decided_upon_once_it_cannot_come_back():
    """Unseen from frame 10 on; the buffer is 30 frames and so is the link's reach: it may be seen in frame 40."""
    frames = [frame(person(800), *([person(100)] if t < 10 else [])) for t in range(60)]
    for border, there in ((40, True), (41, False)):
        kept = track(frames, (10, border, border + 1))
        assert ("track-1" in kept.parts[2].summaries) is there
    back = [frame(person(800), *([person(100)] if t < 10 or t >= 40 else [])) for t in range(60)]
    assert len(track(back, (10, 40)).rows) == 2
    late = [frame(person(800), *([person(100)] if t < 10 or t >= 41 else [])) for t in range(60)]
    for borders in ((), (10, 41), (41,), (40,), (50,)):
        assert len(track(late, borders).rows) == 3


@pytest.mark.parametrize("count", [0, 1])
def test_a_video_of_no_frame_or_one_has_no_tracklets(count):
    kept = track([frame(person(100))] * count)
    assert (kept.rows, kept.summaries, kept.withdrawn) == ({}, {}, [])
    assert kept.dropped == {TOO_SHORT: count, GHOST: 0}
    assert kept.rules == NOTHING


def test_a_segment_without_frames_changes_nothing():
    tracker = begin()
    for t in range(20):
        tracker.add(t, frame(person(100)))
    tracker.end_segment(final=False)
    for final in (False, True):
        empty = tracker.end_segment(final=final)
        assert (empty.tracklets, empty.withdrawn) == ((), ())
        assert (empty.summaries["track-0"].num_frames, empty.summaries["track-0"].last_frame) == (20, 19)
        assert (empty.dropped, empty.rules) == ({TOO_SHORT: 0, GHOST: 0}, NOTHING)
    assert empty.summaries["track-0"].ends == ENDED


@pytest.mark.parametrize("border", range(1, 40))
def test_a_border_where_nobody_is_missing_changes_nothing(border):
    """Three walk, one of them comes in frame 12 and another leaves in frame 25; nobody is missed."""
    walk = [
        frame(
            person(100 + 3 * t),
            *([person(900 - 4 * t, 300)] if t >= 12 else []),
            *([person(1300, 600 - t)] if t < 25 else []),
        )
        for t in range(40)
    ]
    # In frame 13 the second is seen for the second time, and its track begins.
    same(track(walk, (border,)), track(walk))


@RANDOM
@given(seed=st.integers(0, 10_000), borders=st.sets(st.integers(1, 59), max_size=4))
def test_the_books_balance_for_any_people_and_any_borders(seed, borders):
    frames = crowd(seed)
    kept = track(frames, borders)
    assert set(kept.rows) == set(kept.summaries)
    assert len(set(kept.withdrawn)) == len(kept.withdrawn)
    assert not set(kept.withdrawn) & set(kept.rows)
    for name, summary in kept.summaries.items():
        index, filled = column(kept, name), column(kept, name, "interpolated")
        assert (np.diff(index) > 0).all()
        assert (index[0], index[-1]) == (summary.first_frame, summary.last_frame)
        assert (len(index), filled.sum()) == (summary.num_frames, summary.interpolated_frames)
        assert len(index) - filled.sum() >= 8
        assert not column(kept, name, "score")[filled].any()
        assert not column(kept, name, "keypoints")[filled].any()
        confidence = column(kept, name, "keypoints")[~filled][:, :, 2].mean()
        assert summary.keypoint_confidence == pytest.approx(float(confidence), abs=1e-5)
    assert kept.rules[FILLED] >= sum(one.interpolated_frames for one in kept.summaries.values())
    # Every row that is not interpolated is a detection's own, and none is two people's.
    used = set()
    for name in kept.rows:
        for part in kept.rows[name]:
            for i in np.flatnonzero(~part.interpolated):
                people = frames[part.frame_index[i]]
                (row,) = np.flatnonzero((people.boxes == part.boxes[i]).all(axis=1) & (people.score == part.score[i]))
                np.testing.assert_array_equal(people.keypoints[row], part.keypoints[i])
                assert (int(part.frame_index[i]), int(row)) not in used
                used.add((int(part.frame_index[i]), int(row)))


@RANDOM
@given(seed=st.integers(0, 10_000), border=st.integers(1, 59))
def test_who_replays_the_segments_before_goes_on_as_if_nothing_had_happened(seed, border):
    frames = crowd(seed)
    went_on, again = begin(), begin()
    for tracker in (went_on, again):
        for t in range(border):
            tracker.add(t, frames[t])
        tracker.end_segment(final=False)
    for t in range(border, len(frames)):
        went_on.add(t, frames[t])
    for t in range(border, len(frames)):
        again.add(t, frames[t])
    a, b = went_on.end_segment(final=True), again.end_segment(final=True)
    assert (a.summaries, a.withdrawn, a.dropped, a.rules) == (b.summaries, b.withdrawn, b.dropped, b.rules)
    for one, other in zip(a.tracklets, b.tracklets, strict=True):
        np.testing.assert_array_equal(one.frame_index, other.frame_index)
        np.testing.assert_array_equal(one.boxes, other.boxes)


@RANDOM
@given(seed=st.integers(0, 10_000), borders=st.sets(st.integers(1, 59), max_size=4))
def test_numbers_of_tracks_do_not_depend_on_borders_without_links(seed, borders):
    """With neither links nor gaps that are filled, a border changes nothing at all."""
    off = {"link_seconds": 0.0, "interpolate_seconds": 0.0}
    same(track(crowd(seed), borders, **off), track(crowd(seed), **off))


@pytest.mark.slow
def test_what_is_kept_in_mind_does_not_grow_with_the_video():
    """Somebody new every second frame for 100 segments, and one who stays: the last ones hold what the first did."""
    tracker, most = begin(), []
    for t in range(4000):
        walkers = (person(100 + 90 * ((t // 2 - k) % 20), 300 + (t - 2 * (t // 2 - k))) for k in range(8))
        tracker.add(t, frame(person(100, 100), *walkers))
        if t % 40 == 39:
            tracker.end_segment(final=False)
            held = [len(tracker._live), len(tracker._open), sum(len(one.recent) for one in tracker._open)]
            inner = tracker._association._tracker
            held += [len(inner.tracked_stracks), len(inner.lost_stracks), len(tracker._looked_at)]
            most.append(held)
            assert not any(one.rows for one in tracker._open)
    assert np.max(most[-20:], axis=0).tolist() <= (np.max(most[5:25], axis=0) + 1).tolist()
    assert len(inner.removed_stracks) <= 1000


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan")])
def test_the_frame_rate_is_positive(fps):
    with pytest.raises(ValueError, match="expected more than 0"):
        begin(fps=fps)


def test_frames_come_in_order():
    tracker = begin()
    tracker.add(4, frame())
    with pytest.raises(ValueError, match="frame_index 4 comes after 4"):
        tracker.add(4, frame())


@pytest.mark.parametrize(("pause", "people"), [(3, 1), (25, 2), (40, 2)])
def test_whoever_comes_in_where_somebody_left_is_somebody_else(pause, people):
    """One walks out at the right border of a frame 2000 pixels wide, one walks in at the same place."""
    out = [frame(person(1844 + 4 * i)) for i in range(30)]
    back = [frame(person(1960 - 4 * i)) for i in range(30)]
    found = track(out + [frame()] * pause + back)
    assert len(found.summaries) == people
    assert found.rules[LINKS] == 0


def test_whoever_comes_back_in_the_middle_of_the_frame_is_the_same():
    there = [frame(person(500 + 4 * i)) for i in range(30)]
    back = [frame(person(616 - 4 * i)) for i in range(30)]
    assert len(track(there + [frame()] * 8 + back).summaries) == 1


@pytest.mark.parametrize(
    ("stride", "seen", "lost"),
    [(1, [10, 11, 14], [12, 13]), (1, [12], [10, 11]), (2, [10, 12, 18], [14, 16]), (1, [], []), (1, [10, 11], [])],
)
def test_frames_that_did_not_decode_are_known(stride, seen, lost):
    found = Found(None, SimpleNamespace(first=10), frame_index=seen)
    assert lost_frames(found, stride) == lost
