import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csip.config import EvaluateConfig, SplitConfig
from csip.errors import TooLittleDataError
from csip.evaluation.protocol import (
    BETWEEN,
    CAVEAT,
    LABEL,
    TOO_SHORT,
    cut_parts,
    describe,
    label,
    rules,
    self_labelled_split,
)
from csip.protocols import ILIDS_TEST_FIRST, MARS, PROTOCOLS, SELF_LABELLED, WALKERS


def regular(n, fps=10.0, start=0):
    """Frames start, start + 1, ... at a constant rate."""
    frame_index = np.arange(start, start + n)
    return frame_index, frame_index / fps


def cut(n, *, least=8, most=4, gap=0.5, fps=10.0, start=0):
    return cut_parts(*regular(n, fps, start), min_part_frames=least, max_parts=most, gap_seconds=gap)


def people(count, n=40):
    return [(f"t{i:02d}", *regular(n, start=100 * i), 0) for i in range(count)]


def most_parts(time, least, gap):
    """Slow reference: the most parts of `least` frames that any choice of starts allows, by trying every start."""
    best = [0] * (len(time) + 1)
    for start in range(len(time) - 1, -1, -1):
        best[start] = best[start + 1]
        if start + least <= len(time):
            last = start + least - 1
            after = next((i for i in range(last + 1, len(time)) if time[i] - time[last] >= gap - 1e-6), len(time))
            best[start] = max(best[start], 1 + best[after])
    return best[0]


def test_parts_are_cut_as_worked_out_by_hand():
    # 10 frames a second, half a second between: four frames lie between two parts. 20 = 8 + 4 + 8.
    assert cut(20) == [(0, 7), (12, 19)]


def test_one_frame_too_few_for_two_parts_gives_none():
    assert cut(19) == []


def test_what_is_over_goes_to_the_earlier_parts():
    # 23 = 10 + 4 + 9: a third part would need 32 frames.
    assert cut(23) == [(0, 9), (14, 22)]


def test_no_more_parts_than_asked_for():
    # 44 frames hold four parts of 8 with three gaps of 4; with at most two parts, 44 = 20 + 4 + 20.
    assert cut(44) == [(0, 7), (12, 19), (24, 31), (36, 43)]
    assert cut(44, most=2) == [(0, 19), (24, 43)]


def test_without_a_gap_parts_touch():
    assert cut(16, gap=0.0) == [(0, 7), (8, 15)]


def test_frames_are_named_by_their_index_in_the_source():
    assert cut(20, start=1000) == [(1000, 1007), (1012, 1019)]


def test_the_gap_is_measured_in_time_not_in_frames():
    # Nobody was seen between frame 7 and frame 50: nothing else need be left out.
    frame_index = np.concatenate([np.arange(8), np.arange(50, 58)])
    assert cut_parts(frame_index, frame_index / 10.0, min_part_frames=8, max_parts=4, gap_seconds=0.5) == [
        (0, 7),
        (50, 57),
    ]


def test_a_gap_of_exactly_the_asked_length_counts_whatever_the_rounding():
    # From frame 8 to frame 12 are 0.4 s, although 0.8 + 0.4 > 1.2 in floating point.
    assert cut(21, least=9, gap=0.4) == [(0, 8), (12, 20)]


@given(
    st.lists(st.sampled_from([0.04, 0.1, 0.5, 2.0]), min_size=1, max_size=40),
    st.integers(1, 6),
    st.integers(2, 6),
    st.sampled_from([0.0, 0.1, 0.45, 3.0]),
)
def test_parts_keep_their_promises(steps, least, most, gap):
    time = np.cumsum(steps)
    frame_index = np.arange(len(time)) * 3 + 5
    parts = cut_parts(frame_index, time, min_part_frames=least, max_parts=most, gap_seconds=gap)
    positions = [((first - 5) // 3, (last - 5) // 3) for first, last in parts]
    lengths = [last - first + 1 for first, last in positions]
    fitting = min(most, most_parts(time, least, gap))
    assert len(parts) == (fitting if fitting >= 2 else 0)
    assert all(length >= least for length in lengths)
    assert lengths == sorted(lengths, reverse=True)
    assert not lengths or lengths[0] - lengths[-1] <= 1
    for (_, last), (first, _) in itertools.pairwise(positions):
        assert first > last
        assert time[first] - time[last] >= gap - 1e-6


@pytest.mark.parametrize(
    ("frame_index", "time", "message"),
    [
        ([0, 1], [0.0], r"got frame_index \(2,\) and time \(1,\)"),
        ([0, 0], [0.0, 1.0], "frame_index must increase strictly"),
        ([0, 1], [1.0, 0.0], "never decrease"),
        ([0, 1], [0.0, np.nan], "finite"),
    ],
)
def test_tracklets_out_of_order_are_refused(frame_index, time, message):
    with pytest.raises(ValueError, match=message):
        cut_parts(np.array(frame_index), np.array(time), min_part_frames=1, max_parts=2, gap_seconds=0)


def test_the_first_part_of_a_test_person_is_the_query_and_the_later_ones_the_gallery():
    split = self_labelled_split(people(6, n=32), SplitConfig())
    roles = {}
    for part, role in split.rows:
        roles.setdefault(part.pid, []).append(role)
    assert (
        sorted(map(tuple, roles.values())) == [("query", "gallery", "gallery")] * 3 + [("train", "train", "train")] * 3
    )
    assert (split.num_train_people, split.num_test_people) == (3, 3)
    first = {part.pid: part.first_frame for part, _ in reversed(split.rows)}
    assert all(part.first_frame == first[part.pid] for part, role in split.rows if role == "query")


def test_people_are_numbered_by_tracklet_id_over_the_usable_ones():
    tracklets = [*people(4), ("t00a", *regular(10), 0)]
    split = self_labelled_split(tracklets, SplitConfig())
    assert {(part.tracklet_id, part.pid) for part, _ in split.rows} == {("t00", 0), ("t01", 1), ("t02", 2), ("t03", 3)}


def test_the_split_does_not_depend_on_the_order_of_the_input():
    tracklets = people(9)
    assert self_labelled_split(tracklets[::-1], SplitConfig(seed=3)) == self_labelled_split(
        tracklets, SplitConfig(seed=3)
    )


def test_another_seed_draws_other_people():
    drawn = {
        tuple(part.pid for part, role in self_labelled_split(people(12), SplitConfig(seed=s)).rows if role == "query")
        for s in range(8)
    }
    assert len(drawn) > 1


def test_the_camera_of_a_tracklet_stays_with_its_parts():
    tracklets = [(name, frames, time, i) for i, (name, frames, time, _) in enumerate(people(4))]
    assert all(part.camid == part.pid for part, _ in self_labelled_split(tracklets, SplitConfig()).rows)


def test_what_finds_no_place_is_counted():
    # Two tracklets of 10 frames hold no two parts; each of four of 21 frames (9 + 4 + 8) leaves its gap of 4.
    tracklets = [*people(4, n=21), ("x", *regular(10), 0), ("y", *regular(10), 0)]
    assert self_labelled_split(tracklets, SplitConfig()).left_out == {TOO_SHORT: 2, BETWEEN: 16}


def test_a_half_of_an_odd_number_rounds_up():
    assert self_labelled_split(people(5), SplitConfig()).num_test_people == 3


def test_too_few_usable_tracklets_is_an_error_that_says_what_to_change():
    tracklets = [*people(3), ("short", *regular(5), 0)]
    with pytest.raises(TooLittleDataError, match=r"Found 4 tracklets, 3 of them long enough.*Use a longer video"):
        self_labelled_split(tracklets, SplitConfig())


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.95])
def test_a_fraction_that_leaves_one_side_empty_is_an_error(fraction):
    with pytest.raises(TooLittleDataError, match=r"Bring split\.test_fraction nearer to one half"):
        self_labelled_split(people(8), SplitConfig(test_fraction=fraction))


def test_a_tracklet_that_comes_twice_is_refused():
    with pytest.raises(ValueError, match="tracklet_id t00 comes twice"):
        self_labelled_split([*people(4), *people(1)], SplitConfig())


def test_the_description_of_self_labelled_scores_carries_the_caveat():
    words = describe(rules(EvaluateConfig(), SELF_LABELLED), SELF_LABELLED)
    assert words.startswith("self-labelled, same camera: ")
    assert CAVEAT in words
    assert "never comparable with a benchmark" in words


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (EvaluateConfig(), ["own camera do not count", "the queries stand in the gallery too", "junk left out"]),
        (EvaluateConfig(query_in_gallery=False), ["the gallery holds no queries", "not the protocol's own rule"]),
        (EvaluateConfig(exclude_same_camera=False), ["matches under the query's own camera count"]),
    ],
)
def test_the_description_of_a_benchmark_names_its_choices(config, expected):
    words = describe(rules(config, "mars"), "mars")
    assert words.startswith("mars: ")
    assert all(phrase in words for phrase in expected)


def test_the_description_of_walkers_says_that_they_are_made_and_who_looks_for_whom():
    words = describe(rules(EvaluateConfig(), WALKERS), WALKERS)
    assert words.startswith(f"{label(WALKERS)}: of synthetic people, each test person's first pass before each camera")
    assert "own camera do not count" in words
    assert label(SELF_LABELLED) == LABEL


def test_the_official_rule_is_not_called_another():
    assert rules(EvaluateConfig(), MARS).query_in_gallery
    assert "not the protocol's own rule" not in describe(rules(EvaluateConfig(), MARS), MARS)


def test_one_split_of_ten_says_so():
    words = describe(rules(EvaluateConfig(), ILIDS_TEST_FIRST), ILIDS_TEST_FIRST, split="3", ranked="clips of 8 frames")
    assert "Split 3 alone; the literature reports the mean of 10 splits." in words
    assert "ranked: clips of 8 frames" in words


def test_a_description_says_that_and_how_distances_were_reranked():
    assert "re-ranked (k1 50)" in describe(rules(EvaluateConfig(), MARS), MARS, rerank="k1 50")


def test_every_protocol_says_who_asks_whom():
    assert all(one.words for one in PROTOCOLS.values())
