"""Distances to scores: the ranking, CMC and mAP of datasets.md section 1.1.

Shapes: Q queries, G gallery items, E embedding width.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from csip.errors import TooLittleDataError
from csip.types import FloatArray, IntArray, Scores

BoolArray = npt.NDArray[np.bool_]

# Numbers in one block of the distance computation: 2**22 float64 are 32 MiB.
_BLOCK = 2**22
_QUERIES = 256


def score_ranking(
    distance: FloatArray,
    query_pid: IntArray,
    query_camid: IntArray,
    gallery_pid: IntArray,
    gallery_camid: IntArray,
    *,
    exclude_same_camera: bool = True,
    own: BoolArray | None = None,
) -> Scores:
    """Score the rankings that a distance matrix implies.

    Args:
        distance: (Q, G), small is alike; infinite is allowed, NaN is not.
        query_pid: (Q,), 0 or more.
        query_camid: (Q,).
        gallery_pid: (G,), 0 or more; a pid that no query has is a distractor and stays as a negative.
        gallery_camid: (G,).
        exclude_same_camera: take out gallery items of the query's own person under the query's own camera.
        own: (Q, G), True where the gallery item is the query's own part; always taken out.

    Returns:
        CMC of length G, the step form of mAP, and how many of the queries count.

    Raises:
        ValueError: shapes do not fit each other, a pid is negative (junk), or a distance is NaN.
        TooLittleDataError: no query has a possible match.
    """
    own = _check(distance, query_pid, query_camid, gallery_pid, gallery_camid, own)
    q, g = distance.shape
    first = np.zeros(g, dtype=np.int64)  # how many queries have their first match at each rank
    precisions = []
    for i in range(q):
        keep, match = _judge(query_pid[i], query_camid[i], gallery_pid, gallery_camid, exclude_same_camera, own[i])
        if not match.any():
            continue
        order = _order(distance[i], keep)
        ranks = np.flatnonzero(match[order]) + 1
        first[ranks[0] - 1] += 1
        precisions.append(float(np.mean(np.arange(1, len(ranks) + 1) / ranks)))
    if not precisions:
        raise TooLittleDataError(
            f"score_ranking: none of {q} queries has a match among {g} gallery items, expected at least one that does. "
            f"exclude_same_camera is {exclude_same_camera}; with it, people seen by one camera only cannot match."
        )
    return Scores(
        cmc=np.cumsum(first) / len(precisions),
        mean_ap=float(np.mean(precisions)),
        num_queries=q,
        num_valid_queries=len(precisions),
    )


def rank_gallery(
    distance: FloatArray,
    query_pid: int,
    query_camid: int,
    gallery_pid: IntArray,
    gallery_camid: IntArray,
    *,
    top: int,
    exclude_same_camera: bool = True,
    own: BoolArray | None = None,
) -> tuple[IntArray, BoolArray]:
    """List what one query finds first, under the same rules as `score_ranking`.

    Args:
        distance: (G,), of the one query.
        query_pid: its person.
        query_camid: its camera.
        gallery_pid: (G,).
        gallery_camid: (G,).
        top: how many items to list at most.
        exclude_same_camera: as in `score_ranking`.
        own: (G,), as in `score_ranking`.

    Returns:
        (K,) gallery indices, nearest first, and (K,) True where the item is the query's person; K is at most `top`.

    Raises:
        ValueError: shapes do not fit each other, a pid is negative, a distance is NaN, or `top` is under 1.
    """
    if top < 1:
        raise ValueError(f"rank_gallery: got top={top}, expected 1 or more.")
    pid, camid = np.array([query_pid]), np.array([query_camid])
    mine = _check(distance[None], pid, camid, gallery_pid, gallery_camid, None if own is None else own[None])[0]
    keep, match = _judge(pid[0], camid[0], gallery_pid, gallery_camid, exclude_same_camera, mine)
    order = _order(distance, keep)[:top]
    return order, match[order]


def euclidean_distance(query: FloatArray, gallery: FloatArray) -> FloatArray:
    """Measure every query against every gallery item.

    The blocks are summed in float64: in float32 the difference of two almost equal numbers would decide the order of
    near duplicates, and it differs with the BLAS library's threads.

    Args:
        query: (Q, E), rows of length 1.
        gallery: (G, E), rows of length 1.

    Returns:
        (Q, G) float32, 0 to 2.

    Raises:
        ValueError: widths differ, or a row is not of length 1.
    """
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise ValueError(f"euclidean_distance: got {query.shape} and {gallery.shape}, expected (Q, E) and (G, E).")
    for name, feature in (("query", query), ("gallery", gallery)):
        length = np.linalg.norm(feature, axis=1)
        if not np.allclose(length, 1.0, atol=1e-4):
            worst = length[np.argmax(np.abs(length - 1.0))]
            raise ValueError(f"euclidean_distance: a {name} feature has length {worst:.4f}, expected 1; normalise it.")
    out = np.empty((len(query), len(gallery)), dtype=np.float32)
    columns = max(1, _BLOCK // max(_QUERIES, query.shape[1]))
    for j in range(0, len(gallery), columns):
        right = gallery[j : j + columns].astype(np.float64)
        right_square = np.einsum("ge,ge->g", right, right)
        for i in range(0, len(query), _QUERIES):
            left = query[i : i + _QUERIES].astype(np.float64)
            square = np.einsum("qe,qe->q", left, left)[:, None] + right_square - 2.0 * (left @ right.T)
            # What float64's rounding leaves of an exact zero must not put equal items in an order.
            out[i : i + _QUERIES, j : j + columns] = np.sqrt(np.where(square < 1e-14, 0.0, square))
    return out


def _check(
    distance: FloatArray,
    query_pid: IntArray,
    query_camid: IntArray,
    gallery_pid: IntArray,
    gallery_camid: IntArray,
    own: BoolArray | None,
) -> BoolArray:
    """Check the arguments of a ranking against each other; return `own`, all False where there is none."""
    if distance.ndim != 2:
        raise ValueError(f"distance: got shape {distance.shape}, expected (Q, G).")
    q, g = distance.shape
    for name, array, length in (
        ("query_pid", query_pid, q),
        ("query_camid", query_camid, q),
        ("gallery_pid", gallery_pid, g),
        ("gallery_camid", gallery_camid, g),
    ):
        if array.shape != (length,):
            raise ValueError(f"{name}: got shape {array.shape}, expected ({length},) for distances {distance.shape}.")
    if own is not None and own.shape != (q, g):
        raise ValueError(f"own: got shape {own.shape}, expected {distance.shape}.")
    for name, pid in (("query_pid", query_pid), ("gallery_pid", gallery_pid)):
        if (pid < 0).any():
            raise ValueError(f"{name}: got {pid.min()}, expected 0 or more; junk must not be loaded.")
    if np.isnan(distance).any():
        raise ValueError(f"distance: {int(np.isnan(distance).sum())} of {distance.size} are NaN; expected numbers.")
    return np.zeros((q, g), dtype=np.bool_) if own is None else own


def _judge(
    pid: int,
    camid: int,
    gallery_pid: IntArray,
    gallery_camid: IntArray,
    exclude_same_camera: bool,
    own: BoolArray,
) -> tuple[BoolArray, BoolArray]:
    """Tell which gallery items stay in one query's list, and which of those are matches; (G,) each."""
    same_person = gallery_pid == pid
    keep = ~own
    if exclude_same_camera:
        keep &= ~(same_person & (gallery_camid == camid))
    return keep, same_person & keep


def _order(distance: FloatArray, keep: BoolArray) -> IntArray:
    """Sort (G,) distances; return the indices of the kept items, nearest first."""
    # Stable, so that ties rank by gallery index on every machine.
    order = np.argsort(distance, kind="stable")
    return np.asarray(order[keep[order]], dtype=np.int64)
