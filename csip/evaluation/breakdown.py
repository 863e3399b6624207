"""Scores of some queries by themselves: a pair of cameras, a class of length.

Groups are `QueryScores` by name, so that blocks of queries can be joined and every figure taken of them; `figures`
gives a group's, also where it has no valid query.

Shapes: Q queries, G gallery items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from csip.evaluation.metrics import BoolArray, QueryScores, join, score_queries, values_by_figure
from csip.types import FloatArray, IntArray


def by_camera_pair(
    distance: FloatArray,
    query_pid: IntArray,
    query_camid: IntArray,
    gallery_pid: IntArray,
    gallery_camid: IntArray,
    *,
    exclude_same_camera: bool = True,
    own: BoolArray | None = None,
) -> dict[tuple[int, int], QueryScores]:
    """Score the queries of each camera against the gallery of each camera alone.

    A query of camera a is ranked among the items of camera b only, its distractors and strangers included, and is valid
    for the pair if its person was seen there. So the figures of pairs do not average to those of the whole gallery,
    which mixes the cameras in one list. With `exclude_same_camera` no query is valid where a = b.

    Args:
        distance: (Q, G), and the rest as in `score_queries`.
        query_pid: (Q,).
        query_camid: (Q,).
        gallery_pid: (G,).
        gallery_camid: (G,).
        exclude_same_camera: as in `score_queries`.
        own: (Q, G), as in `score_queries`.

    Returns:
        (query camera, gallery camera) -> scores of that camera's queries; every pair of a camera that has queries and
        one that has gallery items, ascending.

    Raises:
        ValueError: as `score_queries` does.
    """
    if distance.shape != (len(query_camid), len(gallery_camid)):
        raise ValueError(
            f"distance: got shape {distance.shape}, expected ({len(query_camid)}, {len(gallery_camid)}) for the "
            "cameras of queries and gallery."
        )
    out: dict[tuple[int, int], QueryScores] = {}
    for b in np.unique(gallery_camid).tolist():
        there = np.flatnonzero(gallery_camid == b)
        scores = score_queries(
            distance[:, there],
            query_pid,
            query_camid,
            gallery_pid[there],
            gallery_camid[there],
            exclude_same_camera=exclude_same_camera,
            own=None if own is None else own[:, there],
        )
        out |= {(a, b): scores.take(query_camid == a) for a in np.unique(query_camid).tolist()}
    return dict(sorted(out.items()))


def by_length(scores: QueryScores, length: IntArray, ends: Sequence[int]) -> dict[tuple[int, int | None], QueryScores]:
    """Sort queries, each ranked against the whole gallery, by how many frames they have.

    Args:
        scores: of Q queries.
        length: (Q,) frames of each query.
        ends: frames at which one class ends and the next begins, ascending.

    Returns:
        (fewest, most frames) -> scores of the queries in that class; the last class has no most. All classes are there,
        ascending, also those without a query.

    Raises:
        ValueError: lengths do not fit the queries, a query has no frames, or `ends` does not ascend from 1 or more.
    """
    if length.shape != (len(scores),):
        raise ValueError(f"by_length: got lengths {length.shape}, expected ({len(scores)},), one a query.")
    if (length < 1).any():
        raise ValueError(f"by_length: got a query of {length.min()} frames, expected 1 or more.")
    if list(ends) != sorted(set(ends)) or min(ends, default=1) < 1:
        raise ValueError(f"by_length: got ends {tuple(ends)}, expected ascending positive numbers.")
    starts = [1, *(end for end in ends if end > 1)]
    number = np.searchsorted(starts, length, side="right") - 1
    mosts: list[int | None] = [*(start - 1 for start in starts[1:]), None]
    return {(start, most): scores.take(number == k) for k, (start, most) in enumerate(zip(starts, mosts, strict=True))}


def name_pairs(
    pairs: Mapping[tuple[int, int], QueryScores], names: Mapping[int, str], *, exclude_same_camera: bool
) -> dict[str, QueryScores]:
    """Name pairs of cameras, and leave those out in which nothing may match.

    Args:
        pairs: as `by_camera_pair` gives them.
        names: of the cameras.
        exclude_same_camera: as it was given there.
    """
    return {f"{names[a]} to {names[b]}": one for (a, b), one in pairs.items() if a != b or not exclude_same_camera}


def name_lengths(classes: Mapping[tuple[int, int | None], QueryScores]) -> dict[str, QueryScores]:
    """Name classes of length, as `by_length` gives them, and leave those out that no query is in."""
    return {f"{least} to {most or 'more'} frames": one for (least, most), one in classes.items() if len(one)}


def join_groups(blocks: Sequence[Mapping[tuple[int, int], QueryScores]]) -> dict[tuple[int, int], QueryScores]:
    """Join the groups of blocks of queries; a block need not have every group."""
    names = sorted({name for block in blocks for name in block})
    return {name: join(block[name] for block in blocks if name in block) for name in names}


def figures(scores: QueryScores, ranks: Sequence[int]) -> dict[str, float]:
    """Average over the valid queries of a group.

    Args:
        scores: of the group.
        ranks: the rank-k figures that are wanted.

    Returns:
        `mean_ap`, `mean_ap_trapezoidal`, `mean_inp`, `rank-k` for each k, `num_queries` and `num_valid_queries`; of a
        group without a valid query the last two only.
    """
    count = int(scores.valid.sum())
    means = values_by_figure(scores, ranks) if count else {}
    return {
        **{name: float(np.mean(values)) for name, values in means.items()},
        "num_queries": len(scores),
        "num_valid_queries": count,
    }


def named_figures(name: str, scores: QueryScores, ranks: Sequence[int]) -> dict[str, float]:
    """Give a group's `figures` by the names of table `results`, NAME/mean_ap and so on."""
    return {f"{name}/{figure}": value for figure, value in figures(scores, ranks).items()}
