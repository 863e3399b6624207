"""Who asks whom, how far apart they are, and what each query's ranking is worth.

Shapes: Q queries, G gallery items, E embedding width, b queries of a block.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csip import tables
from csip.config import EvaluateConfig
from csip.data.clips import read_cameras, read_groups, read_parts
from csip.errors import TooLittleDataError
from csip.evaluation.breakdown import by_camera_pair, by_length, join_groups, name_lengths, name_pairs
from csip.evaluation.distances import distance_blocks
from csip.evaluation.embed import read_embeddings
from csip.evaluation.metrics import QueryScores, join, score_queries
from csip.evaluation.protocol import Rules
from csip.evaluation.reranking import rerank
from csip.types import EmbeddingsRef, FloatArray, IntArray, Snapshot, TrackletPart

_BLOCK = 256  # queries of a block, where all distances are there already


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """Queries, gallery, and the embeddings whose distances rank the one for the other.

    Attributes:
        query: Q parts, or clips of parts.
        gallery: G of them, in the order in which equal distances rank.
        query_feature: (Q, E) float32.
        gallery_feature: (G, E) float32.
        query_part: (Q,) number of the part that each is, or is a clip of.
        gallery_part: (G,) in the same numbering; a query's own part is not to be found.
    """

    query: tuple[TrackletPart, ...]
    gallery: tuple[TrackletPart, ...]
    query_feature: FloatArray
    gallery_feature: FloatArray
    query_part: IntArray
    gallery_part: IntArray

    def ids(self) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """Give query pid, query camid, gallery pid and gallery camid."""
        q, g = self.query, self.gallery
        pairs = ([p.pid for p in q], [p.camid for p in q], [p.pid for p in g], [p.camid for p in g])
        return tuple(np.array(ids, dtype=np.int64) for ids in pairs)  # type: ignore[return-value]

    def own(self, which: slice) -> npt.NDArray[np.bool_]:
        """(b, G), True where the gallery item is the query's own part, or a clip of it."""
        return np.equal.outer(self.query_part[which], self.gallery_part)

    def blocks(self, config: EvaluateConfig, device: str) -> Iterator[tuple[slice, FloatArray]]:
        """Give the distances of some queries at a time, (b, G); re-ranking alone needs all of them at once."""
        if not config.rerank:
            yield from distance_blocks(self.query_feature, self.gallery_feature, device=device)
            return
        whole = rerank(
            self.query_feature,
            self.gallery_feature,
            k1=config.rerank_k1,
            k2=config.rerank_k2,
            weight=config.rerank_weight,
            device=device,
        )
        for begin in range(0, len(whole), _BLOCK):
            which = slice(begin, min(begin + _BLOCK, len(whole)))
            yield which, whole[which]

    def take(self, queries: IntArray) -> Ranking:
        """Keep some of the queries, and the whole gallery."""
        query = tuple(self.query[int(i)] for i in queries)
        feature, part = self.query_feature[queries], self.query_part[queries]
        return Ranking(query, self.gallery, feature, self.gallery_feature, part, self.gallery_part)


def rank(embeddings: EmbeddingsRef, snapshot: Snapshot, rule: Rules) -> Ranking:
    """Bring every query of a snapshot before its gallery.

    Raises:
        TooLittleDataError: there are no queries, no gallery, or no embeddings of some of them.
    """
    query, gallery = read_parts(snapshot, "query"), read_parts(snapshot, "gallery")
    if not query or not gallery:
        raise TooLittleDataError(f"Snapshot {snapshot.name}: found no query or no gallery, expected both.")
    if rule.query_in_gallery:
        # As the data set lists them: names sort as its rows do, and equal distances rank in that order.
        gallery = tuple(sorted({part.unit: part for part in (*query, *gallery)}.values(), key=lambda part: part.unit))
    both = tuple({part.unit: part for part in (*query, *gallery)}.values())
    number = {part.unit: i for i, part in enumerate(both)}
    units, of_part, feature = read_embeddings(embeddings, both)
    begin = np.searchsorted(of_part, np.arange(len(both) + 1)).tolist()
    sides = []
    for name, parts in (("query", query), ("gallery", gallery)):
        spans = [range(begin[i], begin[i + 1]) for i in (number[part.unit] for part in parts)]
        at = np.fromiter(itertools.chain.from_iterable(spans), dtype=np.int64)
        if not len(at):
            raise TooLittleDataError(
                f"{embeddings.table.uri} version {embeddings.table.version}: found no clip by {embeddings.encoder} "
                f"inside any of {len(parts)} {name} parts. Run the stage `embed` for this snapshot first."
            )
        sides.append((tuple(units[i] for i in at.tolist()), feature[at], of_part[at]))
    (asking, asked, asking_part), (there, found, there_part) = sides
    return Ranking(asking, there, asked, found, asking_part, there_part)


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """What the rankings of all queries are worth.

    Attributes:
        queries: of every query, before the whole gallery.
        some: the same for some of the queries by name: pairs of cameras (before one camera's gallery), classes of
            length, and groups of people.
    """

    queries: QueryScores
    some: dict[str, QueryScores]


def score_rankings(ranking: Ranking, snapshot: Snapshot, rule: Rules, config: EvaluateConfig, device: str) -> Scored:
    """Score every query, block by block.

    Args:
        ranking: to score.
        snapshot: it was made on.
        rule: what counts.
        config: re-ranking, and whether there is a breakdown.
        device: where distances are computed.
    """
    query_pid, query_camid, gallery_pid, gallery_camid = ranking.ids()
    same = rule.exclude_same_camera
    blocks, pairs = [], []
    for which, distance in ranking.blocks(config, device):
        ids = (query_pid[which], query_camid[which], gallery_pid, gallery_camid)
        own = ranking.own(which)
        blocks.append(score_queries(distance, *ids, exclude_same_camera=same, own=own))
        if config.breakdown:
            pairs.append(by_camera_pair(distance, *ids, exclude_same_camera=same, own=own))
    scores = join(blocks)
    some = {group: scores.take(np.isin(query_pid, sorted(pids))) for group, pids in read_groups(snapshot).items()}
    if config.breakdown:
        names = dict(enumerate(read_cameras(snapshot)))
        lengths = by_length(scores, count_frames(ranking.query, snapshot), config.lengths)
        # Where there is one camera on each side, or one class of length, there is nothing to tell apart.
        for told in (name_pairs(join_groups(pairs), names, exclude_same_camera=same), name_lengths(lengths)):
            some |= told if len(told) > 1 else {}
    return Scored(scores, some)


def count_frames(parts: tuple[TrackletPart, ...], snapshot: Snapshot) -> IntArray:
    """Count the frames of parts, (N,): of whole tracklets those there are, of other parts those from first to last."""
    columns = ["first_frame", "last_frame", "num_frames"]
    rows = tables.read(tables.pinned(snapshot, "tracklets"), columns).to_pylist()
    whole = {(row["tracklet_id"], row["first_frame"], row["last_frame"]): row["num_frames"] for row in rows}
    spans = [whole.get(part.unit, part.last_frame - part.first_frame + 1) for part in parts]
    return np.array(spans, dtype=np.int64)
