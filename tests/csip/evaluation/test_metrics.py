import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from torchmetrics.functional.retrieval import (
    retrieval_average_precision,
    retrieval_hit_rate,
    retrieval_reciprocal_rank,
)

from csip.errors import TooLittleDataError
from csip.evaluation.metrics import (
    QueryScores,
    join,
    rank_gallery,
    score_queries,
    score_ranking,
    summarise,
    values_by_figure,
)


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


@st.composite
def tied_rankings(draw):
    """Distances of few values, infinite ones among them; people without any match; queries that are gallery items."""
    q, g = draw(st.integers(1, 5)), draw(st.integers(5, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    distance = rng.choice([0, 1, 2, np.inf], (q, g)).astype(draw(st.sampled_from([np.float16, np.float32, np.float64])))
    pid, camid = rng.integers(0, 5, g), rng.integers(0, 3, g)
    own = np.zeros((q, g), dtype=bool)
    own[np.arange(q), rng.permutation(g)[:q]] = rng.integers(0, 2, q).astype(bool)
    return (distance, rng.integers(0, 6, q), rng.integers(0, 3, q), pid, camid), own


def slow_queries(distance, query_pid, query_camid, gallery_pid, gallery_camid, exclude_same_camera=True, own=None):
    """datasets.md 1.1, word by word: for each query its list of hits and misses, and both forms of AP, INP."""
    out = []
    for i, (d, pid, camid) in enumerate(zip(distance, query_pid, query_camid, strict=True)):
        ranked = sorted(range(len(d)), key=lambda j: (d[j], j))
        if own is not None:
            ranked = [j for j in ranked if not own[i, j]]
        if exclude_same_camera:
            ranked = [j for j in ranked if not (gallery_pid[j] == pid and gallery_camid[j] == camid)]
        hits = [bool(gallery_pid[j] == pid) for j in ranked]
        if not any(hits):
            out.append(None)
            continue
        step, trapezoidal, before, recall_before = 0.0, 0.0, 1.0, 0.0
        for k, hit in enumerate(hits):
            precision, recall = sum(hits[: k + 1]) / (k + 1), sum(hits[: k + 1]) / sum(hits)
            step += precision / sum(hits) if hit else 0
            trapezoidal += (recall - recall_before) * (before + precision) / 2
            before, recall_before = precision, recall
        last = max(k for k, hit in enumerate(hits) if hit)
        out.append((hits, step, trapezoidal, sum(hits) / (last + 1)))
    return out


def slow_scores(*ranking, **rules):
    """CMC, mAP, trapezoidal mAP, mINP, valid queries."""
    valid = [one for one in slow_queries(*ranking, **rules) if one is not None]
    ranks = range(ranking[0].shape[1])
    cmc = [np.mean([any(hits[: k + 1]) for hits, *_ in valid]) for k in ranks]
    return cmc, *(np.mean([one[n] for one in valid]) for n in (1, 2, 3)), len(valid)


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


def test_the_trapezoidal_form_averages_the_precision_before_and_at_each_match():
    # Matches at ranks 1, 3 and 6; precision before them 1 (by definition), 1/2 and 2/5.
    scores = score_ranking(row(1, 2, 3, 4, 5, 6), ints(1), ints(0), ints(1, 2, 1, 2, 2, 1), ints(1, 1, 1, 1, 1, 1))
    assert scores.mean_ap_trapezoidal == pytest.approx(((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2 + (2 / 5 + 3 / 6) / 2) / 3)


def test_a_first_match_at_rank_two_loses_half_of_the_step_it_climbs():
    # Precision 0 at rank 1 and 1/2 at rank 2.
    scores = score_ranking(row(1, 2), ints(1), ints(0), ints(2, 1), ints(1, 1))
    assert (scores.mean_ap, scores.mean_ap_trapezoidal) == (1 / 2, 1 / 4)


def test_mean_inp_tells_how_far_one_must_look_for_the_last_match():
    # Matches at ranks 1, 3 and 6 of one query, at rank 1 alone of the other.
    distance = np.array([[1, 2, 3, 4, 5, 6], [6, 1, 5, 4, 3, 2]], dtype=np.float32)
    scores = score_ranking(distance, ints(1, 3), ints(0, 0), ints(1, 3, 1, 2, 2, 1), ints(1, 1, 1, 1, 1, 1))
    assert scores.mean_inp == pytest.approx((3 / 6 + 1) / 2)


def test_the_official_cmc_of_mars_follows_from_the_counts():
    # One of two queries is valid and has its match first: of all queries that is one half.
    distance = np.array([[0.1, 0.2], [0.1, 0.2]], dtype=np.float32)
    scores = score_ranking(distance, ints(1, 5), ints(0, 0), ints(1, 2), ints(1, 1))
    np.testing.assert_array_equal(scores.cmc * scores.num_valid_queries / scores.num_queries, [0.5, 0.5])


def test_figures_are_the_means_of_what_valid_queries_add():
    # First matches at ranks 2 and 1; the third query has none.
    distance = np.array([[1, 2, 3], [3, 2, 1], [1, 2, 3]], dtype=np.float32)
    scores = score_queries(distance, ints(1, 2, 9), ints(0, 0, 0), ints(3, 1, 2), ints(1, 1, 1))
    values = values_by_figure(scores, (1, 2))
    assert list(values) == ["mean_ap", "mean_ap_trapezoidal", "mean_inp", "rank-1", "rank-2"]
    np.testing.assert_array_equal(values["mean_ap"], [1 / 2, 1])
    np.testing.assert_array_equal(values["mean_ap_trapezoidal"], [1 / 4, 1])
    np.testing.assert_array_equal(values["mean_inp"], [1 / 2, 1])
    np.testing.assert_array_equal(values["rank-1"], [0, 1])
    np.testing.assert_array_equal(values["rank-2"], [1, 1])


def test_queries_are_picked_by_mask_or_number():
    scores = score_queries(row(1, 2).repeat(2, axis=0), ints(1, 2), ints(0, 0), ints(1, 2), ints(1, 1))
    assert scores.take(np.array([False, True])).first_match.tolist() == [2]
    assert scores.take(ints(1, 0)).first_match.tolist() == [2, 1]


def test_scores_of_different_numbers_of_queries_are_no_record():
    three, two = np.zeros(3), np.zeros(2)
    with pytest.raises(ValueError, match=r"QueryScores\.inverse_penalty: got shape \(2,\), expected \(3,\)"):
        QueryScores(np.zeros(3, dtype=bool), three, three, two, ints(0, 0, 0))


def test_a_match_beyond_the_gallery_is_refused():
    scores = score_queries(row(1, 2), ints(1), ints(0), ints(2, 1), ints(1, 1))
    with pytest.raises(ValueError, match="match at rank 2, expected 1 to num_gallery=1"):
        summarise(scores, 1)


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


def figures_of(scores):
    return scores.mean_ap, scores.mean_ap_trapezoidal, scores.mean_inp


@given(rankings())
def test_scores_equal_a_slow_reference(ranking):
    scores = score_ranking(*ranking)
    cmc, *figures, num_valid = slow_scores(*ranking)
    np.testing.assert_allclose(scores.cmc, cmc, atol=1e-12)
    assert figures_of(scores) == pytest.approx(figures)
    assert scores.num_valid_queries == num_valid


@given(tied_rankings(), st.booleans())
def test_each_querys_scores_equal_a_slow_reference_with_ties_and_own_items(tied, exclude_same_camera):
    ranking, own = tied
    scores = score_queries(*ranking, exclude_same_camera=exclude_same_camera, own=own)
    slow = slow_queries(*ranking, exclude_same_camera=exclude_same_camera, own=own)
    assert len(scores) == len(slow)
    for i, one in enumerate(slow):
        found = [scores.average_precision[i], scores.trapezoidal_precision[i], scores.inverse_penalty[i]]
        if one is None:
            assert np.isnan(found).all()
            assert (scores.valid[i], scores.first_match[i]) == (False, 0)
        else:
            assert found == pytest.approx(one[1:])
            assert (scores.valid[i], scores.first_match[i]) == (True, one[0].index(True) + 1)


@given(tied_rankings(), st.integers(1, 4))
def test_blocks_of_queries_join_to_the_scores_of_all(tied, size):
    (distance, query_pid, query_camid, *gallery), own = tied
    whole = score_queries(distance, query_pid, query_camid, *gallery, own=own)
    cuts = [slice(i, i + size) for i in range(0, len(distance), size)]
    joined = join(score_queries(distance[c], query_pid[c], query_camid[c], *gallery, own=own[c]) for c in cuts)
    for name in QueryScores.__slots__:
        np.testing.assert_array_equal(getattr(whole, name), getattr(joined, name))


def test_no_blocks_do_not_join():
    with pytest.raises(ValueError, match="got no blocks, expected at least one"):
        join([])


@given(rankings())
def test_each_query_equals_torchmetrics(ranking):
    distance, query_pid, _, gallery_pid, _ = ranking
    scores = score_queries(*ranking, exclude_same_camera=False)
    for i, pid in enumerate(query_pid):
        # torchmetrics takes predictions of 0 and less for misses.
        preds, target = 100 - torch.from_numpy(distance[i]), torch.from_numpy(gallery_pid == pid)
        assert scores.average_precision[i] == pytest.approx(float(retrieval_average_precision(preds, target)))
        assert 1 / scores.first_match[i] == pytest.approx(float(retrieval_reciprocal_rank(preds, target)))
        for k in (1, 3):
            assert (scores.first_match[i] <= k) == bool(retrieval_hit_rate(preds, target, top_k=k))


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
def test_a_stranger_farther_than_everybody_changes_nothing(ranking):
    distance, query_pid, query_camid, gallery_pid, gallery_camid = ranking
    before = score_ranking(*ranking)
    after = score_ranking(
        np.append(distance, np.full((len(distance), 1), 99, np.float32), axis=1),
        query_pid,
        query_camid,
        np.append(gallery_pid, 77),
        np.append(gallery_camid, 0),
    )
    np.testing.assert_array_equal(before.cmc, after.cmc[:-1])
    assert figures_of(before) == figures_of(after)


@given(rankings())
def test_of_two_at_the_same_distance_the_first_in_the_gallery_ranks_first(ranking):
    # A stranger beside every item, at its distance: before it costs a rank, behind it costs none for the item itself.
    distance, query_pid, query_camid, gallery_pid, gallery_camid = ranking
    g = len(gallery_pid)
    doubled, strangers = np.concatenate([distance, distance], axis=1), np.full(g, 77)
    ids = query_pid, query_camid
    cameras = np.append(gallery_camid, gallery_camid)
    alone = score_queries(distance, *ids, gallery_pid, gallery_camid, exclude_same_camera=False)
    behind = score_queries(doubled, *ids, np.append(gallery_pid, strangers), cameras, exclude_same_camera=False)
    ahead = score_queries(doubled, *ids, np.append(strangers, gallery_pid), cameras, exclude_same_camera=False)
    np.testing.assert_array_equal(behind.first_match, 2 * alone.first_match - 1)
    np.testing.assert_array_equal(ahead.first_match, 2 * alone.first_match)


def test_distances_that_differ_in_their_last_digit_of_float64_are_not_tied():
    scores = score_ranking(np.array([[np.nextafter(1.0, 2.0), 1.0]]), ints(1), ints(0), ints(2, 1), ints(1, 1))
    assert scores.rank(1) == 1


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
        ({"own": np.zeros((2, 1), dtype=bool)}, r"own: got shape \(2, 1\) of bool, expected \(1, 2\) of bool"),
        ({"own": ints(0)[None]}, r"own: got shape \(1, 1\) of int64, expected \(1, 2\) of bool"),
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
