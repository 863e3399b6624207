import numpy as np
import pytest
import torch

from csip.evaluation import distances
from csip.evaluation.distances import distance_blocks, euclidean_distance

pytestmark = pytest.mark.usefixtures("one_thread")


def row(*values):
    return np.array([values], dtype=np.float32)


def unit(rng, n, width):
    feature = rng.normal(size=(n, width))
    return (feature / np.linalg.norm(feature, axis=1, keepdims=True)).astype(np.float32)


def slow(query, gallery):
    return np.array([[np.sqrt(((a - b) ** 2).sum()) for b in gallery.astype(float)] for a in query.astype(float)])


@pytest.mark.parametrize("scale", [1.0, 1e-12, 3e5])
def test_distances_are_euclidean_whatever_the_features_length(scale):
    rng = np.random.default_rng(0)
    query, gallery = (scale * rng.normal(size=(n, 5)) * rng.uniform(0.1, 9, (n, 1)) for n in (7, 11))
    found = euclidean_distance(query.astype(np.float32), gallery.astype(np.float32))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, slow(query.astype(np.float32), gallery.astype(np.float32)), rtol=1e-6)


def test_blocks_are_the_rows_of_the_matrix_in_order_whatever_their_size(monkeypatch):
    rng = np.random.default_rng(0)
    query, gallery = unit(rng, 150, 33), unit(rng, 210, 33)
    whole = euclidean_distance(query, gallery)
    for queries, items in ((64, 64), (64, 128), (128, 64)):
        monkeypatch.setattr(distances, "_QUERIES", queries)
        monkeypatch.setattr(distances, "_GALLERY", items)
        monkeypatch.setattr(distances, "_PAIRS", queries)
        blocks = list(distance_blocks(query, gallery))
        assert [rows.start for rows, _ in blocks] == list(range(0, 150, queries))
        assert blocks[-1][0].stop == 150
        np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), whole)


def test_the_device_never_holds_all_features_nor_a_whole_row_of_distances(monkeypatch):
    seen = []
    measure = distances._distances

    def watch(left, left_square, right):
        out = measure(left, left_square, right)
        seen.append((len(left), len(right), tuple(out.shape)))
        return out

    monkeypatch.setattr(distances, "_QUERIES", 64)
    monkeypatch.setattr(distances, "_GALLERY", 128)
    monkeypatch.setattr(distances, "_distances", watch)
    assert euclidean_distance(np.ones((100, 2), np.float32), np.ones((300, 2), np.float32)).shape == (100, 300)
    assert set(seen) == {(64, 128, (64, 128))}


def test_equal_features_are_at_exactly_zero_and_nothing_else_is():
    rng = np.random.default_rng(1)
    feature = unit(rng, 50, 301)
    # A neighbour in the last digit of one number: float64 products cannot tell it from the feature itself.
    feature[1] = feature[0]
    feature[1, 7] = np.nextafter(feature[0, 7], np.float32(2))
    for scale in (1, 1000, 1e-20):
        scaled = (feature * scale).astype(np.float32)
        found = euclidean_distance(scaled, scaled)
        assert (np.diag(found) == 0).all()
        assert np.count_nonzero(found == 0) == len(feature)
    found = euclidean_distance(feature, feature)
    assert found[0, 1] == np.float32(float(feature[1, 7]) - float(feature[0, 7]))


def test_near_duplicates_keep_their_order():
    # From a feature of length 1000, steps of a thousandth along one axis.
    gallery = np.zeros((5, 3), np.float32)
    gallery[:, 0], gallery[:, 1] = 1000, np.array([3, 1, 4, 2, 5]) / 1000
    found = euclidean_distance(row(1000, 0, 0), gallery)
    np.testing.assert_allclose(found[0], gallery[:, 1], rtol=1e-6)


def test_the_features_of_a_network_that_collapsed_are_still_told_apart(monkeypatch):
    # All about a point far off; measured from there, no pair is near, and none has to be measured twice.
    rng = np.random.default_rng(5)
    point = 1000 * rng.normal(size=64)
    query, gallery = ((point + 1e-3 * rng.normal(size=(n, 64))).astype(np.float32) for n in (20, 30))
    near, nonzero = [], torch.nonzero
    monkeypatch.setattr(distances.torch, "nonzero", lambda found: near.append(int(found.sum())) or nonzero(found))
    np.testing.assert_allclose(euclidean_distance(query, gallery), slow(query, gallery), rtol=1e-6)
    assert near == [0]


def test_equal_gallery_features_are_equally_far_wherever_they_stand():
    rng = np.random.default_rng(2)
    query, gallery = unit(rng, 30, 301), unit(rng, 400, 301)
    copies = rng.integers(0, 400, 300)
    found = euclidean_distance(query, np.concatenate([gallery, gallery[copies]]))
    np.testing.assert_array_equal(found[:, 400:], found[:, copies])


def test_features_of_zeros_have_distances_too():
    np.testing.assert_array_equal(euclidean_distance(row(0, 0), np.float32([[0, 0], [3, 4]])), [[0, 5]])


def test_opposite_features_are_at_distance_two():
    np.testing.assert_array_equal(euclidean_distance(row(1, 0), row(-1, 0)), [[2]])


def test_no_queries_and_no_gallery_give_an_empty_matrix():
    none, one = np.zeros((0, 3), np.float32), np.zeros((1, 3), np.float32)
    assert euclidean_distance(none, one).shape == (0, 1)
    assert euclidean_distance(one, none).shape == (1, 0)


def test_features_that_may_not_be_written_to_are_read():
    feature = unit(np.random.default_rng(3), 3, 4)
    feature.flags.writeable = False
    assert (np.diag(euclidean_distance(feature, feature)) == 0).all()


def test_features_must_be_finite_and_of_the_same_width():
    with pytest.raises(ValueError, match=r"got \(1, 2\) and \(1, 3\), expected \(Q, E\) and \(G, E\)"):
        distance_blocks(row(1, 0), row(1, 0, 0))
    with pytest.raises(ValueError, match="gallery feature 1 of 2 has NaN or infinite numbers"):
        distance_blocks(row(1, 0), np.float32([[1, 0], [np.nan, 0]]))
    with pytest.raises(ValueError, match="query feature 0 of 1 has NaN or infinite numbers"):
        euclidean_distance(row(np.inf, 0), row(1, 0))


@pytest.mark.gpu
def test_a_gpu_measures_the_same_distances():
    rng = np.random.default_rng(4)
    query, gallery = unit(rng, 70, 301), unit(rng, 90, 301)
    np.testing.assert_allclose(
        euclidean_distance(query, gallery, device="cuda"), euclidean_distance(query, gallery), rtol=1e-6, atol=1e-9
    )
