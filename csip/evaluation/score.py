"""Stage `evaluate`: embeddings to CMC and mAP, under the snapshot's protocol, into `results`.

Shapes: Q queries, G gallery items, E embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csip import tables
from csip.config import EvaluateConfig
from csip.data.clips import read_groups, read_parts, read_protocol
from csip.errors import TooLittleDataError
from csip.evaluation.embed import read_embeddings
from csip.evaluation.metrics import euclidean_distance, score_ranking
from csip.evaluation.protocol import Rules, describe, rules
from csip.types import (
    Embeddings,
    EmbeddingsRef,
    FloatArray,
    IntArray,
    Outcome,
    Output,
    Progress,
    ResultsRef,
    Scores,
    Snapshot,
    Stage,
    TrackletPart,
)


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """Who asks whom, and how far apart they are.

    Attributes:
        query: Q parts.
        gallery: G parts.
        distance: (Q, G) float32.
        own: (Q, G) bool, True where the gallery item is the query's own part.
    """

    query: tuple[TrackletPart, ...]
    gallery: tuple[TrackletPart, ...]
    distance: FloatArray
    own: npt.NDArray[np.bool_]

    def ids(self) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """Give query pid, query camid, gallery pid and gallery camid."""
        q, g = self.query, self.gallery
        pairs = ([p.pid for p in q], [p.camid for p in q], [p.pid for p in g], [p.camid for p in g])
        return tuple(np.array(ids, dtype=np.int64) for ids in pairs)  # type: ignore[return-value]


def rank(embeddings: EmbeddingsRef, snapshot: Snapshot, rule: Rules) -> Ranking:
    """Measure every query of a snapshot against its gallery."""
    query, gallery = read_parts(snapshot, "query"), read_parts(snapshot, "gallery")
    if rule.query_in_gallery:
        gallery = (*query, *gallery)
    if not query or not gallery:
        raise TooLittleDataError(f"Snapshot {snapshot.name}: found no query or no gallery, expected both.")
    asked = Embeddings(read_embeddings(embeddings, query), query)
    there = Embeddings(read_embeddings(embeddings, gallery), gallery)
    own = np.zeros((len(query), len(gallery)), dtype=np.bool_)
    at = {part.unit: i for i, part in enumerate(gallery)}
    for i, part in enumerate(query):
        if part.unit in at:
            own[i, at[part.unit]] = True
    return Ranking(query, gallery, euclidean_distance(asked.feature, there.feature), own)


def evaluate(
    out: Output, embeddings: tuple[EmbeddingsRef, ...], snapshot: Snapshot, config: EvaluateConfig
) -> Stage[ResultsRef]:
    """Score each encoder on the same queries and gallery, and write the scores with the protocol in words.

    Each group of people is scored by itself as well: its queries against the whole gallery, as `GROUP/mean_ap` and so
    on; of a group that has no query only `GROUP/num_queries`, 0.

    Raises:
        TooLittleDataError: no query has a possible match under this protocol.
    """
    protocol, split = read_protocol(snapshot)
    rule = rules(config, protocol)
    described = describe(rule, protocol)
    groups = read_groups(snapshot)
    rows: list[dict[str, object]] = []
    counts: dict[str, int | float | str] = {"protocol": described}
    for i, ref in enumerate(embeddings):
        yield Progress("evaluate", i, len(embeddings), "encoders")
        ranking = rank(ref, snapshot, rule)
        figures = _score(ranking, rule, config.ranks)
        for group, pids in groups.items():
            figures |= {f"{group}/{name}": value for name, value in _score_group(ranking, pids, rule, config).items()}
        for name, value in figures.items():
            rows.append(
                {
                    "run_id": out.run_id,
                    "protocol": protocol,
                    "split": split,
                    "encoder": ref.encoder,
                    "name": name,
                    "value": value,
                    "described": described,
                    "encoder_digest": ref.encoder_digest,
                    "checkpoint_sha": ref.checkpoint_sha,
                }
            )
        shown = ("mean_ap", *(f"rank-{k}" for k in config.ranks), "num_queries", "num_valid_queries", "num_gallery")
        told = (*shown, *(f"{group}/{name}" for group in groups for name in ("mean_ap", "rank-1")))
        counts |= {f"{ref.encoder} {name}": round(figures[name], 6) for name in told if name in figures}
    table = tables.upsert(out.store, "results", tables.from_rows("results", rows))
    yield Progress("evaluate", len(embeddings), len(embeddings), "encoders")
    return Outcome(ResultsRef(table, out.run_id), counts)


def _score_group(ranking: Ranking, pids: frozenset[int], rule: Rules, config: EvaluateConfig) -> dict[str, float]:
    """Score the queries of some people against the whole gallery."""
    asked = [i for i, part in enumerate(ranking.query) if part.pid in pids]
    if not asked:
        return {"num_queries": 0}
    query = tuple(ranking.query[i] for i in asked)
    own = Ranking(query, ranking.gallery, ranking.distance[asked], ranking.own[asked])
    return _score(own, rule, (1, *config.ranks))


def _score(ranking: Ranking, rule: Rules, ranks: tuple[int, ...]) -> dict[str, float]:
    scores = score_ranking(
        ranking.distance, *ranking.ids(), exclude_same_camera=rule.exclude_same_camera, own=ranking.own
    )
    return _figures(scores, len(ranking.gallery), ranks)


def _figures(scores: Scores, num_gallery: int, ranks: tuple[int, ...]) -> dict[str, float]:
    return {
        "mean_ap": scores.mean_ap,
        **{f"rank-{k}": scores.rank(k) for k in ranks},
        "num_queries": scores.num_queries,
        "num_valid_queries": scores.num_valid_queries,
        "num_gallery": num_gallery,
        **{f"cmc-{k:03d}": scores.rank(k) for k in range(1, min(num_gallery, max(ranks)) + 1)},
    }
