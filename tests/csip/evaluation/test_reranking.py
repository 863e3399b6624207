import tracemalloc

import numpy as np
import pytest

from csip.evaluation import distances
from csip.evaluation.metrics import score_ranking
from csip.evaluation.reranking import rerank

pytestmark = pytest.mark.usefixtures("one_thread")


def dense(query, gallery, k1, k2, weight):
    """The paper's method with full matrices, an item after the other; equal distances rank by index."""
    joint = np.concatenate([query, gallery]).astype(np.float64)
    n, q = len(joint), len(query)
    original = ((joint[:, None] - joint[None]) ** 2).sum(axis=2)
    original = original / original.max(axis=1, keepdims=True)
    ranked = [sorted(range(n), key=lambda j: (original[i, j], j)) for i in range(n)]

    def reciprocal(i, k):
        return {j for j in ranked[i][: k + 1] if i in ranked[j][: k + 1]}

    weights = np.zeros((n, n))
    for i in range(n):
        own = reciprocal(i, k1)
        wide = set(own)
        for candidate in own:
            half = reciprocal(candidate, int(np.around(k1 / 2)))
            if 3 * len(half & own) > 2 * len(half):
                wide |= half
        for j in wide:
            weights[i, j] = np.exp(-original[i, j])
        weights[i] /= max(weights[i].sum(), 1e-300)
    averaged = np.array([np.mean([weights[j] for j in ranked[i][:k2]], axis=0) for i in range(n)])
    out = np.empty((q, n - q))
    for i in range(q):
        for j in range(n - q):
            least = np.minimum(averaged[i], averaged[q + j]).sum()
            out[i, j] = (1 - weight) * (1 - least / (2 - least)) + weight * original[i, q + j]
    return out


def people(seed, num_queries, num_gallery, width=6, spread=0.6):
    """Features that lie about those of some people."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(8, width))
    pid = rng.integers(0, 8, num_queries + num_gallery)
    feature = (centres[pid] + spread * rng.normal(size=(len(pid), width))).astype(np.float32)
    return feature[:num_queries], feature[num_queries:], pid[:num_queries], pid[num_queries:]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("k1", "k2"), [(20, 6), (7, 3), (5, 1), (1, 1), (2, 9), (50, 15), (200, 300)])
def test_distances_equal_those_of_full_matrices(k1, k2, seed):
    query, gallery, *_ = people(seed, 9, 38)
    found = rerank(query, gallery, k1=k1, k2=k2, weight=0.3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, dense(query, gallery, k1, k2, 0.3), atol=2e-6)


@pytest.mark.parametrize("k1", [3, 6, 12])
def test_equal_distances_rank_by_index(k1):
    # Points of a small grid, most of them several times: all distances are exact, and most are tied.
    rng = np.random.default_rng(2)
    query, gallery = (rng.integers(0, 3, (n, 2)).astype(np.float32) for n in (8, 40))
    found = rerank(query, gallery, k1=k1, k2=4, weight=0.3)
    np.testing.assert_allclose(found, dense(query, gallery, k1, 4, 0.3), atol=2e-6)


def test_the_size_of_blocks_changes_nothing(monkeypatch):
    query, gallery, *_ = people(3, 70, 150)
    whole = rerank(query, gallery, k1=20, k2=6, weight=0.3)
    monkeypatch.setattr(distances, "_QUERIES", 64)
    monkeypatch.setattr(distances, "_GALLERY", 64)
    np.testing.assert_array_equal(rerank(query, gallery, k1=20, k2=6, weight=0.3), whole)


def test_with_all_weight_on_it_the_original_distance_is_left():
    # Of query 0 the farthest item of the joint set is at 5, of query 1 too: squares over 25.
    query, gallery = np.float32([[0, 0], [3, 0]]), np.float32([[0, 4], [3, 4], [0, 1]])
    found = rerank(query, gallery, k1=2, k2=1, weight=1)
    np.testing.assert_allclose(found, np.array([[16, 25, 1], [25, 16, 10]]) / 25, rtol=1e-6)


def test_an_item_among_the_same_neighbours_comes_nearer():
    # Query 0 and gallery 2 are of one tight group; gallery 3 is nearer than 2, but of another group, far from the rest.
    group = np.array([[0, 0], [0.0, 1.0], [0.1, 0.5], [-0.1, 0.5]])
    others = np.array([[-0.95, 0], [-1.9, 0], [-1.8, 0.2], [-2, -0.2]])
    query, gallery = group[:1].astype(np.float32), np.concatenate([group[1:], others]).astype(np.float32)
    assert np.linalg.norm(gallery[3]) < np.linalg.norm(gallery[0])
    found = rerank(query, gallery, k1=3, k2=1, weight=0.0)[0]
    assert found[0] < found[3]


def test_scores_keep_their_rules_after_re_ranking():
    # The query's own item is the nearest of all, and so is its person under its camera: both are still taken out.
    query, gallery, query_pid, gallery_pid = people(4, 6, 40, spread=0.3)
    gallery = np.concatenate([query, gallery])
    gallery_pid = np.concatenate([query_pid, gallery_pid])
    query_camid = np.zeros(6, dtype=np.int64)
    gallery_camid = np.concatenate([query_camid, np.arange(40) % 3])
    own = np.eye(6, 46, dtype=bool)
    found = rerank(query, gallery, k1=10, k2=4, weight=0.3)
    assert (found.argmin(axis=1) == np.arange(6)).all()
    ids = query_pid, query_camid, gallery_pid, gallery_camid
    with_own = score_ranking(found, *ids, own=own)
    without = score_ranking(found[:, 6:], *ids[:2], gallery_pid[6:], gallery_camid[6:])
    assert with_own.mean_ap == without.mean_ap
    assert with_own.num_valid_queries == without.num_valid_queries


def test_items_that_are_all_the_same_stay_at_their_distance_of_zero():
    query, gallery = np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)
    found = rerank(query, gallery, k1=9, k2=2, weight=0.3)
    np.testing.assert_allclose(found, np.zeros((2, 4)), atol=1e-6)


def test_no_matrix_of_all_pairs_is_made(monkeypatch):
    # 64 rows of 2,000 distances at a time; all 2,000 x 2,000 would be 16 MB in float32, 32 MB in float64.
    monkeypatch.setattr(distances, "_QUERIES", 64)
    query, gallery, *_ = people(5, 20, 1980, width=8)
    tracemalloc.start()
    rerank(query, gallery, k1=5, k2=2, weight=0.3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k1": 0}, "got k1=0, k2=2, weight=0.3, expected k1, k2 >= 1"),
        ({"k2": 0}, "got k1=3, k2=0"),
        ({"weight": 1.5}, "weight=1.5, expected .* 0 <= weight <= 1"),
        ({"gallery": np.zeros((4, 2), np.float32)}, r"got \(2, 3\) and \(4, 2\), expected \(Q, E\) and \(G, E\)"),
        ({"gallery": np.zeros((0, 3), np.float32)}, "got 2 queries and 0 gallery items, expected some of both"),
        ({"query": np.full((2, 3), np.nan, np.float32)}, "has NaN or infinite numbers"),
    ],
)
def test_arguments_that_cannot_be_are_refused(change, message):
    given = {"query": np.ones((2, 3), np.float32), "gallery": np.ones((4, 3), np.float32)}
    with pytest.raises(ValueError, match=message):
        rerank(**{**given, "k1": 3, "k2": 2, "weight": 0.3, **change})
