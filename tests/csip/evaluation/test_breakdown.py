import numpy as np
import pytest

from csip.evaluation.breakdown import by_camera_pair, by_length, figures, join_groups
from csip.evaluation.metrics import score_queries, score_ranking


def ints(*values):
    return np.array(values, dtype=np.int64)


# Person 1 is asked for under camera 0 and under camera 2, person 2 under camera 0.
QUERIES = ints(1, 2, 1), ints(0, 0, 2)
# Camera 0: person 1. Camera 1: a distractor, person 1, person 2. Camera 5: person 2.
GALLERY = ints(1, 0, 1, 2, 2), ints(0, 1, 1, 1, 5)
DISTANCE = np.array([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [3, 1, 2, 0, 4]], dtype=np.float32)


def test_a_pair_ranks_the_queries_of_one_camera_among_the_items_of_the_other():
    groups = by_camera_pair(DISTANCE, *QUERIES, *GALLERY)
    assert list(groups) == [(0, 0), (0, 1), (0, 5), (2, 0), (2, 1), (2, 5)]
    # Person 1 comes second, behind the distractor; person 2 comes first.
    assert figures(groups[0, 1], (1, 2)) == {
        "mean_ap": (1 / 2 + 1) / 2,
        "mean_ap_trapezoidal": (1 / 4 + 1) / 2,
        "mean_inp": (1 / 2 + 1) / 2,
        "rank-1": 1 / 2,
        "rank-2": 1,
        "num_queries": 2,
        "num_valid_queries": 2,
    }
    # Person 1 was never under camera 5, person 2 was: the only item there.
    assert groups[0, 5].valid.tolist() == [False, True]
    assert groups[2, 0].first_match.tolist() == [1]
    assert groups[2, 1].first_match.tolist() == [3]


def test_a_group_without_a_valid_query_has_its_counts_and_no_figures():
    groups = by_camera_pair(DISTANCE, *QUERIES, *GALLERY)
    # Under the same camera nobody may be found; person 1 was never under camera 5.
    assert figures(groups[0, 0], (1,)) == {"num_queries": 2, "num_valid_queries": 0}
    assert figures(groups[2, 5], (1,)) == {"num_queries": 1, "num_valid_queries": 0}


def test_the_rules_of_the_whole_ranking_hold_inside_a_pair():
    # Without the camera rule person 1 is found under its own camera, unless that item is the query itself.
    found = by_camera_pair(DISTANCE, *QUERIES, *GALLERY, exclude_same_camera=False)
    assert found[0, 0].valid.tolist() == [True, False]
    own = np.zeros((3, 5), dtype=bool)
    own[0, 0] = True
    found = by_camera_pair(DISTANCE, *QUERIES, *GALLERY, exclude_same_camera=False, own=own)
    assert found[0, 0].valid.tolist() == [False, False]


def test_a_pair_equals_a_ranking_of_its_queries_and_items_alone():
    rng = np.random.default_rng(0)
    query_pid, query_camid = rng.integers(0, 5, 20), rng.integers(0, 3, 20)
    gallery_pid, gallery_camid = rng.integers(0, 5, 60), rng.integers(0, 3, 60)
    distance = rng.integers(0, 9, (20, 60)).astype(np.float32)
    groups = by_camera_pair(distance, query_pid, query_camid, gallery_pid, gallery_camid)
    asked, there = query_camid == 1, gallery_camid == 2
    alone = score_ranking(
        distance[asked][:, there], query_pid[asked], query_camid[asked], gallery_pid[there], gallery_camid[there]
    )
    assert figures(groups[1, 2], (1,))["mean_ap"] == alone.mean_ap
    assert figures(groups[1, 2], (1,))["rank-1"] == alone.rank(1)


def test_every_query_is_in_one_pair_a_gallery_camera():
    groups = by_camera_pair(DISTANCE, *QUERIES, *GALLERY)
    assert sum(len(scores) for scores in groups.values()) == 3 * 3


def test_groups_of_blocks_join_to_those_of_all():
    whole = by_camera_pair(DISTANCE, *QUERIES, *GALLERY)
    pid, camid = QUERIES
    # The last block has no query of camera 0.
    blocks = [by_camera_pair(DISTANCE[s], pid[s], camid[s], *GALLERY) for s in (slice(0, 1), slice(1, 2), slice(2, 3))]
    joined = join_groups(blocks)
    assert list(joined) == list(whole)
    for name, scores in whole.items():
        np.testing.assert_array_equal(joined[name].valid, scores.valid)
        np.testing.assert_array_equal(joined[name].average_precision, scores.average_precision)


def test_a_length_belongs_to_the_class_that_begins_with_it():
    scores = score_queries(DISTANCE, *QUERIES, *GALLERY)
    groups = by_length(scores, ints(15, 16, 128), (16, 32, 64, 128))
    assert list(groups) == [(1, 15), (16, 31), (32, 63), (64, 127), (128, None)]
    assert [len(group) for group in groups.values()] == [1, 1, 0, 0, 1]
    assert groups[1, 15].first_match.tolist() == [scores.first_match[0]]
    assert groups[128, None].first_match.tolist() == [scores.first_match[2]]
    assert figures(groups[32, 63], (1,)) == {"num_queries": 0, "num_valid_queries": 0}


def test_without_ends_all_queries_are_of_one_class():
    scores = score_queries(DISTANCE, *QUERIES, *GALLERY)
    assert {name: len(group) for name, group in by_length(scores, ints(1, 9, 999), ()).items()} == {(1, None): 3}
    assert list(by_length(scores, ints(1, 9, 999), (1, 9))) == [(1, 8), (9, None)]


@pytest.mark.parametrize(
    ("length", "ends", "message"),
    [
        (ints(1, 2), (16,), r"got lengths \(2,\), expected \(3,\), one a query"),
        (ints(1, 0, 2), (16,), "a query of 0 frames, expected 1 or more"),
        (ints(1, 1, 2), (16, 8), r"got ends \(16, 8\), expected ascending"),
        (ints(1, 1, 2), (0, 8), r"got ends \(0, 8\)"),
    ],
)
def test_lengths_that_cannot_be_are_refused(length, ends, message):
    with pytest.raises(ValueError, match=message):
        by_length(score_queries(DISTANCE, *QUERIES, *GALLERY), length, ends)


def test_cameras_that_do_not_fit_the_distances_are_refused():
    with pytest.raises(ValueError, match=r"got shape \(3, 4\), expected \(3, 5\) for the cameras"):
        by_camera_pair(DISTANCE[:, :4], *QUERIES, *GALLERY)
