"""k-reciprocal re-ranking (Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017).

Two items are alike when the same items are near both. Each item is written as weights over the items that are its
neighbours and have it as a neighbour too; the Jaccard distance of these encodings is added to the original distance.

Shapes: Q queries, G gallery items, N = Q + G items of the joint set (queries first), E feature width, K neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from csip.evaluation.distances import distance_blocks
from csip.types import FloatArray, IntArray

Sparse = Any  # scipy has no types


def rerank(
    query: FloatArray, gallery: FloatArray, *, k1: int, k2: int, weight: float, device: str = "cpu"
) -> FloatArray:
    """Measure every query against every gallery item, by their neighbours in the joint set.

    As published: squared Euclidean distances, each item's divided by its largest; "k1 nearest" counts the item itself
    besides; a candidate's neighbours (half of k1, rounded half to even) join a set that holds more than two thirds of
    them; the encodings of the k2 nearest, the item itself among them, are averaged. Equal distances rank by index,
    queries before gallery. An item that is a query and in the gallery too stands in the joint set twice. Where all
    distances of an item are 0 they stay 0.

    No (N, N) matrix exists at any time. Memory, beside features and result: a block of distances, (512, N) float32; the
    neighbours, (N, max(k1 + 1, k2)) int64; and the encodings, sparse, 12 bytes for each item among an item's expanded
    neighbours, before and after averaging over k2: on MARS some hundred MB.

    Args:
        query: (Q, E).
        gallery: (G, E).
        k1: neighbours that may be reciprocal.
        k2: neighbours whose encodings are averaged; 1 averages nothing.
        weight: of the original distance in the sum, 0 to 1 (lambda); the Jaccard distance has the rest.
        device: where torch measures the original distances.

    Returns:
        (Q, G) float32, 0 to 1.

    Raises:
        ValueError: a number is out of its range, the widths differ, there is no query or no gallery, or a feature is
            not finite.
    """
    if k1 < 1 or k2 < 1 or not 0 <= weight <= 1:
        raise ValueError(f"rerank: got k1={k1}, k2={k2}, weight={weight}, expected k1, k2 >= 1 and 0 <= weight <= 1.")
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise ValueError(f"rerank: got {query.shape} and {gallery.shape}, expected (Q, E) and (G, E).")
    if not len(query) or not len(gallery):
        raise ValueError(f"rerank: got {len(query)} queries and {len(gallery)} gallery items, expected some of both.")
    joint = np.concatenate([query, gallery])
    nearest, farthest, original = _measure(joint, len(query), max(k1 + 1, k2), device)
    encoding = _encode(joint, farthest, _expand(nearest, k1))
    if k2 > 1:
        encoding = _adjacency(nearest[:, :k2], len(joint)).astype(np.float64) @ encoding / min(k2, len(joint))
    return _add_jaccard(original, weight, encoding[: len(query)], encoding[len(query) :])


def _measure(joint: FloatArray, num_queries: int, k: int, device: str) -> tuple[IntArray, FloatArray, FloatArray]:
    """Give all that is needed of the (N, N) distances.

    Returns:
        The nearest items of each, (N, K) nearest first; the largest distance of each, (N,) float32; and the normalised
        distances of the queries to the gallery, (Q, G) float32.
    """
    n = len(joint)
    k = min(k, n)
    nearest = np.empty((n, k), dtype=np.int64)
    farthest = np.empty(n, dtype=np.float32)
    original = np.empty((num_queries, n - num_queries), dtype=np.float32)
    for rows, block in distance_blocks(joint, joint, device=device):
        farthest[rows] = block.max(axis=1)
        for i, row in enumerate(block, rows.start):
            nearest[i] = _nearest(row, k)
        asked = block[: max(0, num_queries - rows.start), num_queries:]
        divisor = _divisor(farthest[rows][: len(asked)])[:, None]
        original[rows.start : rows.start + len(asked)] = (asked / divisor) ** 2
    return nearest, farthest, original


def _divisor(farthest: FloatArray) -> FloatArray:
    return np.where(farthest > 0, farthest, np.float32(1))


def _nearest(row: FloatArray, k: int) -> IntArray:
    """Give the indices of the k smallest of (N,) numbers, smallest first, equal ones by index."""
    border = np.partition(row, k - 1)[k - 1]
    candidates = np.flatnonzero(row <= border)
    order = np.argsort(row[candidates], kind="stable")[:k]
    return np.asarray(candidates[order], dtype=np.int64)


def _adjacency(neighbours: IntArray, n: int) -> Sparse:
    """Turn lists of neighbours (N, K) into a matrix (N, N) of ones, int32."""
    k = neighbours.shape[1]
    ones = np.ones(neighbours.size, dtype=np.int32)
    return sparse.csr_array((ones, neighbours.ravel(), np.arange(0, neighbours.size + 1, k)), shape=(n, n))


def _expand(nearest: IntArray, k1: int) -> Sparse:
    """Give each item's k-reciprocal neighbours, expanded: (N, N), entries where the column is in the row's set."""
    n = len(nearest)
    reciprocal, half = (_reciprocal(_adjacency(nearest[:, : k + 1], n)) for k in (k1, round(k1 / 2)))
    # Of item i and candidate c: how many of c's half set are in i's set.
    shared = ((reciprocal @ half.T) * reciprocal).tocoo()
    size = np.asarray(half.sum(axis=1)).ravel()
    joins = 3 * shared.data > 2 * size[shared.col]
    chosen = (np.ones(int(joins.sum()), dtype=np.int32), (shared.row[joins], shared.col[joins]))
    expanded = (reciprocal + sparse.csr_array(chosen, shape=(n, n)) @ half).tocsr()
    expanded.sort_indices()
    return expanded


def _reciprocal(adjacency: Sparse) -> Sparse:
    return (adjacency * adjacency.T).tocsr()


def _encode(joint: FloatArray, farthest: FloatArray, sets: Sparse) -> Sparse:
    """Weigh each item's set by nearness, exp(-d) with d the normalised distance: (N, N) sparse, rows sum to 1."""
    weights = np.empty(sets.nnz)
    divisor = _divisor(farthest).astype(np.float64) ** 2
    for i in range(len(joint)):
        span = slice(sets.indptr[i], sets.indptr[i + 1])
        between = joint[sets.indices[span]].astype(np.float64) - joint[i]
        near = np.exp(-np.einsum("ne,ne->n", between, between) / divisor[i])
        weights[span] = near / near.sum()
    return sparse.csr_array((weights, sets.indices, sets.indptr), shape=sets.shape)


def _add_jaccard(original: FloatArray, weight: float, query: Sparse, gallery: Sparse) -> FloatArray:
    """Mix the original distances (Q, G) with the Jaccard distances of encodings (Q, N) and (G, N)."""
    out = np.empty_like(original)
    by_column = gallery.T.tocsr()
    for i in range(len(out)):
        span = slice(query.indptr[i], query.indptr[i + 1])
        there = by_column[query.indices[span]]
        least = np.minimum(there.data, np.repeat(query.data[span], np.diff(there.indptr)))
        # Each side's weights sum to 1, so that the sum of the larger ones is 2 less that of the smaller ones.
        shared = np.bincount(there.indices, weights=least, minlength=original.shape[1])
        out[i] = (1 - weight) * (1 - shared / (2 - shared)) + weight * original[i]
    return out
