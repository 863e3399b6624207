"""Distances to scores: the ranking, CMC, mAP and mINP of datasets.md section 1.1.

Shapes: Q queries, V valid queries, G gallery items, R matches of one query.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from csip.errors import TooLittleDataError
from csip.types import FloatArray, IntArray, Scores

BoolArray = npt.NDArray[np.bool_]
DoubleArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class QueryScores:
    """What each query's ranking is worth. Where a query is not valid the figures are NaN, and `first_match` is 0.

    Attributes:
        valid: (Q,) True where the query has a match to find; the others count in no figure.
        average_precision: (Q,) step form: the mean over the matches of (matches so far / rank).
        trapezoidal_precision: (Q,) as MARS's official evaluation has it: at each match the mean of the precision there
            and one rank before, which is 1 before the first rank.
        inverse_penalty: (Q,) matches / rank of the last one.
        first_match: (Q,) rank of the first match, from 1.
    """

    valid: BoolArray
    average_precision: DoubleArray
    trapezoidal_precision: DoubleArray
    inverse_penalty: DoubleArray
    first_match: IntArray

    def __post_init__(self) -> None:
        for field in fields(self):
            shape = getattr(self, field.name).shape
            if shape != (self.valid.size,):
                raise ValueError(f"QueryScores.{field.name}: got shape {shape}, expected ({self.valid.size},).")

    def __len__(self) -> int:
        """Count the queries, valid or not."""
        return len(self.valid)

    def take(self, which: BoolArray | IntArray) -> QueryScores:
        """Pick queries by a mask (Q,) or by their numbers."""
        return QueryScores(*(getattr(self, field.name)[which] for field in fields(self)))


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
    """Score the rankings that a distance matrix implies; arguments and errors of `score_queries` and `summarise`."""
    ids = (query_pid, query_camid, gallery_pid, gallery_camid)
    scores = score_queries(distance, *ids, exclude_same_camera=exclude_same_camera, own=own)
    return summarise(scores, len(gallery_pid))


def score_queries(
    distance: FloatArray,
    query_pid: IntArray,
    query_camid: IntArray,
    gallery_pid: IntArray,
    gallery_camid: IntArray,
    *,
    exclude_same_camera: bool = True,
    own: BoolArray | None = None,
) -> QueryScores:
    """Score some queries, each by its own ranking of the whole gallery; equal distances rank by gallery index.

    Args:
        distance: (Q, G), small is alike; infinite is allowed, NaN is not.
        query_pid: (Q,), 0 or more.
        query_camid: (Q,).
        gallery_pid: (G,), 0 or more; a pid that no query has is a distractor and stays as a negative.
        gallery_camid: (G,).
        exclude_same_camera: take out gallery items of the query's own person under the query's own camera.
        own: (Q, G), True where the gallery item is the query's own part; always taken out.

    Raises:
        ValueError: shapes do not fit each other, a pid is negative (junk), or a distance is NaN.
    """
    _check(distance, query_pid, query_camid, gallery_pid, gallery_camid, own)
    q = len(distance)
    precision, trapezoidal, penalty = np.full((3, q), np.nan)
    first = np.zeros(q, dtype=np.int64)
    for i in range(q):
        mine = None if own is None else own[i]
        keep, match = _judge(query_pid[i], query_camid[i], gallery_pid, gallery_camid, exclude_same_camera, mine)
        if match.any():
            ranks = _match_ranks(distance[i], keep, np.flatnonzero(match))
            first[i] = ranks[0]
            precision[i], trapezoidal[i], penalty[i] = _figures(ranks)
    return QueryScores(first > 0, precision, trapezoidal, penalty, first)


def join(blocks: Iterable[QueryScores]) -> QueryScores:
    """Put the scores of some queries after those of others.

    Raises:
        ValueError: there are no blocks.
    """
    parts = list(blocks)
    if not parts:
        raise ValueError("join: got no blocks, expected at least one.")
    return QueryScores(*(np.concatenate([getattr(one, field.name) for one in parts]) for field in fields(QueryScores)))


def summarise(scores: QueryScores, num_gallery: int) -> Scores:
    """Average over the valid queries, as papers report.

    MARS's official script divides its CMC by all queries instead, valid or not: that is
    `cmc * num_valid_queries / num_queries`.

    Args:
        scores: of all queries.
        num_gallery: G, as many ranks the CMC has.

    Raises:
        TooLittleDataError: no query is valid.
        ValueError: a match has a rank beyond the gallery.
    """
    valid = scores.valid
    count = int(valid.sum())
    if not count:
        raise TooLittleDataError(
            f"summarise: none of {len(scores)} queries has a match among {num_gallery} gallery items, expected at "
            "least one that does. Where a person's items under the query's camera are taken out, people seen by one "
            "camera only cannot match."
        )
    first = scores.first_match[valid]
    if first.max() > num_gallery:
        raise ValueError(f"summarise: got a match at rank {first.max()}, expected 1 to num_gallery={num_gallery}.")
    return Scores(
        cmc=np.cumsum(np.bincount(first - 1, minlength=num_gallery)) / count,
        mean_ap=float(np.mean(scores.average_precision[valid])),
        mean_ap_trapezoidal=float(np.mean(scores.trapezoidal_precision[valid])),
        mean_inp=float(np.mean(scores.inverse_penalty[valid])),
        num_queries=len(scores),
        num_valid_queries=count,
    )


def values_by_figure(scores: QueryScores, ranks: Sequence[int]) -> dict[str, DoubleArray]:
    """List for each figure what every valid query adds to it, (V,): its mean is the figure.

    Args:
        scores: of all queries.
        ranks: the rank-k figures that are wanted.
    """
    valid = scores.valid
    first = scores.first_match[valid]
    return {
        "mean_ap": scores.average_precision[valid],
        "mean_ap_trapezoidal": scores.trapezoidal_precision[valid],
        "mean_inp": scores.inverse_penalty[valid],
        **{f"rank-{k}": (first <= k).astype(np.float64) for k in ranks},
    }


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
    """List what one query finds first, under the same rules as `score_queries`.

    Args:
        distance: (G,), of the one query.
        query_pid: its person.
        query_camid: its camera.
        gallery_pid: (G,).
        gallery_camid: (G,).
        top: how many items to list at most.
        exclude_same_camera: as in `score_queries`.
        own: (G,), as in `score_queries`.

    Returns:
        (K,) gallery indices, nearest first, and (K,) True where the item is the query's person; K is at most `top`.

    Raises:
        ValueError: shapes do not fit each other, a pid is negative, a distance is NaN, or `top` is under 1.
    """
    if top < 1:
        raise ValueError(f"rank_gallery: got top={top}, expected 1 or more.")
    pid, camid = np.array([query_pid]), np.array([query_camid])
    _check(distance[None], pid, camid, gallery_pid, gallery_camid, None if own is None else own[None])
    keep, match = _judge(query_pid, query_camid, gallery_pid, gallery_camid, exclude_same_camera, own)
    # Stable, so that ties rank by gallery index on every machine.
    order = np.argsort(distance, kind="stable")
    order = order[keep[order]][:top].astype(np.int64)
    return order, match[order]


def _check(
    distance: FloatArray,
    query_pid: IntArray,
    query_camid: IntArray,
    gallery_pid: IntArray,
    gallery_camid: IntArray,
    own: BoolArray | None,
) -> None:
    """Check the arguments of a ranking against each other."""
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
    if own is not None and (own.shape != (q, g) or own.dtype != np.bool_):
        raise ValueError(f"own: got shape {own.shape} of {own.dtype}, expected {distance.shape} of bool.")
    for name, pid in (("query_pid", query_pid), ("gallery_pid", gallery_pid)):
        if (pid < 0).any():
            raise ValueError(f"{name}: got {pid.min()}, expected 0 or more; junk must not be loaded.")
    if np.isnan(distance).any():
        raise ValueError(f"distance: {int(np.isnan(distance).sum())} of {distance.size} are NaN; expected numbers.")


def _judge(
    pid: int,
    camid: int,
    gallery_pid: IntArray,
    gallery_camid: IntArray,
    exclude_same_camera: bool,
    own: BoolArray | None,
) -> tuple[BoolArray, BoolArray]:
    """Tell which gallery items stay in one query's list, and which of those are matches; (G,) each."""
    same_person = gallery_pid == pid
    keep = np.ones(len(gallery_pid), dtype=np.bool_) if own is None else ~own
    if exclude_same_camera:
        keep &= ~(same_person & (gallery_camid == camid))
    return keep, same_person & keep


def _match_ranks(distance: FloatArray, keep: BoolArray, matches: IntArray) -> IntArray:
    """Rank one query's matches among the items that are kept.

    Sorting bare numbers is several times as fast as sorting indices stably, and the ranks of the few matches are all
    that scores need: the items that are nearer, and of the equally near those with a smaller index.

    Args:
        distance: (G,).
        keep: (G,).
        matches: (R,) gallery indices, all of them kept.

    Returns:
        (R,) ranks from 1, ascending.
    """
    # At infinity what is taken out comes before no item.
    ordered = np.sort(np.where(keep, distance, np.inf))
    there = distance[matches]
    before = np.searchsorted(ordered, there, side="left")
    several = np.searchsorted(ordered, there, side="right") - before > 1
    for k in np.flatnonzero(several):
        earlier = slice(matches[k])
        before[k] += np.count_nonzero(keep[earlier] & (distance[earlier] == there[k]))
    return np.sort(before) + 1


def _figures(ranks: IntArray) -> tuple[float, float, float]:
    """Give average precision, trapezoidal precision and inverse penalty of matches at (R,) ascending ranks."""
    found = np.arange(1, len(ranks) + 1)
    precision = found / ranks
    previous = np.where(ranks > 1, (found - 1) / np.maximum(ranks - 1, 1), 1.0)
    trapezoidal = (previous + precision) / 2
    return float(np.mean(precision)), float(np.mean(trapezoidal)), len(ranks) / int(ranks[-1])
