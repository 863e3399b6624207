"""Stage `evaluate`: embeddings to CMC, mAP and mINP, under the snapshot's protocol, into `results`.

Shapes: V valid queries, M figures.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from csip import tables
from csip.config import EvaluateConfig, RuntimeConfig
from csip.data.clips import read_groups, read_protocol
from csip.device import resolve_device
from csip.evaluation.breakdown import named_figures
from csip.evaluation.intervals import bootstrap
from csip.evaluation.metrics import QueryScores, summarise, values_by_figure
from csip.evaluation.protocol import count_valid, describe, rules, valid_words
from csip.evaluation.ranking import rank, score_rankings
from csip.types import EmbeddingsRef, Outcome, Output, Progress, ResultsRef, Snapshot, Stage

LOW, HIGH = "low", "high"
"""Prefixes of the ends of a figure's confidence interval among the names of table `results`."""
CONFIDENCE = "confidence"
"""Name, in the same table, of the share of the draws that lies inside the intervals."""


def evaluate(
    out: Output,
    embeddings: tuple[EmbeddingsRef, ...],
    snapshot: Snapshot,
    config: EvaluateConfig,
    runtime: RuntimeConfig,
) -> Stage[ResultsRef]:
    """Score each encoder on the same queries and gallery, and write the scores with the protocol in words.

    Beside each figure NAME stand low/NAME and high/NAME, its bootstrap interval, whose share of the draws is
    `confidence`. Some of the queries are scored by themselves as well, as WHICH/mean_ap and so on: each group of
    people, pair of cameras and class of length; of those without a valid query only the counts.

    Args:
        out: the store.
        embeddings: one for each encoder.
        snapshot: whose queries and gallery they are of.
        config: what counts, and what is reported.
        runtime: where distances are computed.

    Raises:
        TooLittleDataError: no query has a possible match under this protocol.
    """
    protocol, split = read_protocol(snapshot)
    rule = rules(config, protocol)
    device = resolve_device(runtime.device)
    groups = read_groups(snapshot)
    rows: list[dict[str, object]] = []
    counts: dict[str, int | float | str] = {}
    for i, ref in enumerate(embeddings):
        yield Progress("evaluate", i, len(embeddings), "encoders")
        ranking = rank(ref, snapshot, rule)
        scored = score_rankings(ranking, snapshot, rule, config, device)
        found = score_figures(scored.queries, len(ranking.gallery), config)
        for name, some in scored.some.items():
            ranks = config.ranks if name in groups else ()
            found |= named_figures(name, some, sorted({1, *ranks}))
        described = describe(rule, protocol, split=split, ranked=ref.words, rerank=rerank_words(config))
        described += valid_words(count_valid(found))
        for name, value in found.items():
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
        told = ["mean_ap", *(f"rank-{k}" for k in config.ranks), "num_queries", "num_valid_queries", "num_gallery"]
        told += [f"{group}/{name}" for group in groups for name in ("mean_ap", "rank-1")]
        counts |= {f"{ref.encoder} {name}": round(found[name], 6) for name in told if name in found}
        counts.setdefault("protocol", described)
    table = tables.upsert(out.store, "results", tables.from_rows("results", rows))
    yield Progress("evaluate", len(embeddings), len(embeddings), "encoders")
    return Outcome(ResultsRef(table, out.run_id), counts)


def rerank_words(config: EvaluateConfig) -> str:
    """Say how distances are re-ranked, as `describe` takes it; empty where they are not."""
    if not config.rerank:
        return ""
    return f"k1 {config.rerank_k1}, k2 {config.rerank_k2}, lambda {config.rerank_weight:g}"


def score_figures(queries: QueryScores, num_gallery: int, config: EvaluateConfig) -> dict[str, float]:
    """Sum up the queries' scores, with confidence intervals, by the names of table `results`.

    Raises:
        TooLittleDataError: no query is valid.
    """
    scores = summarise(queries, num_gallery)
    return {
        "mean_ap": scores.mean_ap,
        "mean_ap_trapezoidal": scores.mean_ap_trapezoidal,
        "mean_inp": scores.mean_inp,
        **{f"rank-{k}": scores.rank(k) for k in config.ranks},
        "num_queries": scores.num_queries,
        "num_valid_queries": scores.num_valid_queries,
        "num_gallery": num_gallery,
        **{f"cmc-{k:03d}": scores.rank(k) for k in range(1, min(num_gallery, max(config.ranks)) + 1)},
        **dict(_intervals(queries, config)),
    }


def _intervals(queries: QueryScores, config: EvaluateConfig) -> Iterator[tuple[str, float]]:
    """Give both ends of every figure's confidence interval; all figures are drawn together."""
    if not config.bootstrap:
        return
    values = values_by_figure(queries, config.ranks)
    table = np.stack(list(values.values()), axis=1)
    bounds = bootstrap(table, draws=config.bootstrap, confidence=config.confidence, seed=config.bootstrap_seed)
    for prefix, ends in zip((LOW, HIGH), bounds, strict=True):
        yield from ((f"{prefix}/{name}", float(end)) for name, end in zip(values, ends, strict=True))
    yield CONFIDENCE, config.confidence
