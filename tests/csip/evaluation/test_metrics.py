import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from csip.errors import TooLittleDataError
from csip.evaluation import metrics
from csip.evaluation.metrics import euclidean_distance, rank_gallery, score_ranking


def row(*values):
    return np.array([values], dtype=np.float32)


def ints(*values):
    return np.array(values, dtype=np.int64)


@st.composite
def rankings(draw):
    """Distances without ties (a shuffled ladder), 4 people, 2 cameras; every query has a match under camera 2."""
    q, g = draw(st.integers(1, 4)), draw(st.integers(4, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    distance = np.stack([rng.permutation(g) for _ in range(q)]).astype(np.float32)
    pid, camid = rng.integers(0, 4, g), rng.integers(0, 2, g)
    pid[:4], camid[:4] = np.arange(4), 2
    return distance, rng.integers(0, 4, q), rng.integers(0, 2, q), pid, camid


def slow_scores(distance, query_pid, query_camid, gallery_pid, gallery_camid):
    """datasets.md 1.1, word by word."""
    hits, precisions = [], []
    for d, pid, camid in zip(distance, query_pid, query_camid, strict=True):
        ranked = sorted(range(len(d)), key=lambda j: (d[j], j))
        ranked = [j for j in ranked if not (gallery_pid[j] == pid and gallery_camid[j] == camid)]
        matches = [bool(gallery_pid[j] == pid) for j in ranked]
        if not any(matches):
            continue
        hits.append([any(matches[: k + 1]) for k in range(len(d))])
        terms = [sum(matches[: k + 1]) / (k + 1) for k in range(len(ranked)) if matches[k]]
        precisions.append(sum(terms) / len(terms))
    return np.mean(hits, axis=0), np.mean(precisions)


def test_a_match_under_the_query_camera_does_not_count():
    # Nearest is the same person under the same camera; a stranger comes before the true match.
    scores = score_ranking(row(0.1, 0.2, 0.3), ints(7), ints(0), ints(7, 9, 7), ints(0, 1, 1))
    assert scores.mean_ap == pytest.approx(1 / 2)
    np.testing.assert_array_equal(scores.cmc, [0, 1, 1])


def test_with_one_camera_only_the_querys_own_part_is_left_out():
    scores = score_ranking(
        row(0.0, 0.2, 0.3),
        ints(7),
        ints(0),
        ints(7, 9, 7),
        ints(0, 0, 0),
        exclude_same_camera=False,
        own=np.array([[True, False, False]]),
    )
    assert scores.mean_ap == pytest.approx(1 / 2)


def test_strangers_under_the_query_camera_and_distractors_stay_as_negatives():
    scores = score_ranking(row(0.1, 0.2, 0.3), ints(7), ints(0), ints(9, 0, 7), ints(0, 2, 1))
    np.testing.assert_array_equal(scores.cmc, [0, 0, 1])


def test_average_precision_is_the_step_form():
    # Matches at ranks 1, 3 and 6.
    scores = score_ranking(row(1, 2, 3, 4, 5, 6), ints(1), ints(0), ints(1, 2, 1, 2, 2, 1), ints(1, 1, 1, 1, 1, 1))
    assert scores.mean_ap == pytest.approx((1 / 1 + 2 / 3 + 3 / 6) / 3)


def test_queries_without_a_match_are_counted_but_not_averaged():
    distance = np.array([[0.1, 0.2], [0.1, 0.2]], dtype=np.float32)
    scores = score_ranking(distance, ints(1, 5), ints(0, 0), ints(1, 2), ints(1, 1))
    assert (scores.num_queries, scores.num_valid_queries, scores.mean_ap, scores.rank(1)) == (2, 1, 1.0, 1.0)


def test_ties_rank_by_gallery_index():
    # 60 distances of 0, 1 or 2, more than numpy's default sort leaves in order.
    distance = np.random.default_rng(0).integers(0, 3, 60).astype(np.float32)
    strangers, elsewhere = np.zeros(60, dtype=np.int64), np.ones(60, dtype=np.int64)
    indices, _ = rank_gallery(distance, 1, 0, strangers, elsewhere, top=60)
    assert indices.tolist() == sorted(range(60), key=lambda j: (distance[j], j))


def test_a_gallery_shorter_than_the_rank_answers_with_all_it_has():
    scores = score_ranking(row(0.1, 0.2), ints(1), ints(0), ints(2, 1), ints(1, 1))
    assert scores.rank(20) == 1.0


def test_infinite_distances_come_last():
    scores = score_ranking(row(np.inf, 0.2), ints(1), ints(0), ints(1, 2), ints(1, 1))
    np.testing.assert_array_equal(scores.cmc, [0, 1])


@given(rankings())
def test_scores_equal_a_slow_reference(ranking):
    scores = score_ranking(*ranking)
    cmc, mean_ap = slow_scores(*ranking)
    np.testing.assert_allclose(scores.cmc, cmc, atol=1e-12)
    assert scores.mean_ap == pytest.approx(mean_ap)


@given(rankings())
def test_mean_ap_equals_scikit_learns(ranking):
    distance, query_pid, _, gallery_pid, _ = ranking
    scores = score_ranking(*ranking, exclude_same_camera=False)
    each = [average_precision_score(gallery_pid == p, -d) for d, p in zip(distance, query_pid, strict=True)]
    assert scores.mean_ap == pytest.approx(np.mean(each))


@given(rankings(), st.randoms(use_true_random=False))
def test_the_order_of_the_gallery_does_not_matter_without_ties(ranking, random):
    distance, query_pid, query_camid, gallery_pid, gallery_camid = ranking
    order = list(range(len(gallery_pid)))
    random.shuffle(order)
    before = score_ranking(*ranking)
    after = score_ranking(distance[:, order], query_pid, query_camid, gallery_pid[order], gallery_camid[order])
    np.testing.assert_array_equal(before.cmc, after.cmc)
    assert before.mean_ap == after.mean_ap


@given(rankings(), st.floats(-1, 13, width=32))
def test_one_more_item_of_the_querys_person_and_camera_changes_nothing(ranking, at):
    distance, query_pid, query_camid = (array[:1] for array in ranking[:3])
    gallery_pid, gallery_camid = ranking[3:]
    before = score_ranking(distance, query_pid, query_camid, gallery_pid, gallery_camid)
    after = score_ranking(
        np.append(distance, np.float32([[at]]), axis=1),
        query_pid,
        query_camid,
        np.append(gallery_pid, query_pid),
        np.append(gallery_camid, query_camid),
    )
    np.testing.assert_array_equal(before.cmc, after.cmc[:-1])
    assert before.mean_ap == after.mean_ap


@given(rankings())
def test_the_ranked_list_of_a_query_agrees_with_its_scores(ranking):
    distance, query_pid, query_camid, gallery_pid, gallery_camid = ranking
    one = score_ranking(distance[:1], query_pid[:1], query_camid[:1], gallery_pid, gallery_camid)
    indices, is_match = rank_gallery(
        distance[0], int(query_pid[0]), int(query_camid[0]), gallery_pid, gallery_camid, top=len(gallery_pid)
    )
    ranks = np.flatnonzero(is_match) + 1
    assert one.mean_ap == pytest.approx(np.mean(np.arange(1, len(ranks) + 1) / ranks))
    assert (np.diff(distance[0][indices]) > 0).all()
    np.testing.assert_array_equal(is_match, gallery_pid[indices] == query_pid[0])


def test_the_ranked_list_is_cut_at_top_after_the_own_part_is_left_out():
    indices, is_match = rank_gallery(
        row(0, 3, 2, 1)[0],
        5,
        0,
        ints(5, 5, 6, 5),
        ints(0, 0, 0, 0),
        top=2,
        exclude_same_camera=False,
        own=np.array([True, False, False, False]),
    )
    assert (indices.tolist(), is_match.tolist()) == ([3, 2], [True, False])


def test_no_query_with_a_match_is_an_error():
    with pytest.raises(TooLittleDataError, match="none of 1 queries has a match among 2 gallery items"):
        score_ranking(row(0.1, 0.2), ints(1), ints(0), ints(1, 2), ints(0, 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distance": np.zeros(3, dtype=np.float32)}, r"distance: got shape \(3,\), expected \(Q, G\)"),
        ({"distance": row(np.nan, 1)}, "distance: 1 of 2 are NaN"),
        ({"query_pid": ints(1, 2)}, r"query_pid: got shape \(2,\), expected \(1,\)"),
        ({"query_camid": ints()}, r"query_camid: got shape \(0,\), expected \(1,\)"),
        ({"gallery_pid": ints(1)}, r"gallery_pid: got shape \(1,\), expected \(2,\)"),
        ({"gallery_camid": ints(1, 1, 1)}, r"gallery_camid: got shape \(3,\), expected \(2,\)"),
        ({"gallery_pid": ints(1, -1)}, "gallery_pid: got -1, expected 0 or more; junk"),
        ({"own": np.zeros((2, 1), dtype=bool)}, r"own: got shape \(2, 1\), expected \(1, 2\)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    fitting = {
        "distance": row(0.1, 0.2),
        "query_pid": ints(1),
        "query_camid": ints(0),
        "gallery_pid": ints(1, 2),
        "gallery_camid": ints(1, 1),
    }
    with pytest.raises(ValueError, match=message):
        score_ranking(**{**fitting, **change})


def test_a_list_of_no_items_is_refused():
    with pytest.raises(ValueError, match="got top=0, expected 1 or more"):
        rank_gallery(row(0.1)[0], 1, 0, ints(1), ints(1), top=0)


def unit(rng, n, width):
    feature = rng.normal(size=(n, width))
    return (feature / np.linalg.norm(feature, axis=1, keepdims=True)).astype(np.float32)


def test_distances_are_euclidean_whatever_the_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    query, gallery = unit(rng, 7, 5), unit(rng, 11, 5)
    whole = euclidean_distance(query, gallery)
    monkeypatch.setattr(metrics, "_QUERIES", 3)
    monkeypatch.setattr(metrics, "_BLOCK", 20)
    slow = np.array([[np.sqrt(((a - b) ** 2).sum()) for b in gallery.astype(float)] for a in query.astype(float)])
    np.testing.assert_allclose(whole, slow, atol=1e-6)
    np.testing.assert_allclose(euclidean_distance(query, gallery), slow, atol=1e-6)
    assert whole.dtype == np.float32


def test_equal_features_are_at_distance_zero():
    feature = unit(np.random.default_rng(1), 50, 301)
    assert (np.diag(euclidean_distance(feature, feature)) == 0).all()


def test_opposite_features_are_at_distance_two():
    np.testing.assert_array_equal(euclidean_distance(row(1, 0), row(-1, 0)), [[2]])


def test_features_must_have_length_one_and_the_same_width():
    with pytest.raises(ValueError, match=r"a gallery feature has length 2\.0000, expected 1"):
        euclidean_distance(row(1, 0), row(0, 2))
    with pytest.raises(ValueError, match=r"got \(1, 2\) and \(1, 3\)"):
        euclidean_distance(row(1, 0), row(1, 0, 0))
