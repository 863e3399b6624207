"""Results to plain files and back: anybody can score ours, and we anybody's (`csip export`, `csip score`).

Shapes: Q queries, G gallery items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from csip import tables
from csip.config import EvaluateConfig
from csip.data.clips import read_protocol
from csip.errors import StoreError
from csip.evaluation.breakdown import by_camera_pair, by_length, name_lengths, name_pairs, named_figures
from csip.evaluation.matrix import Matrix
from csip.evaluation.metrics import score_queries
from csip.evaluation.protocol import count_valid, describe, label, rules, valid_words
from csip.evaluation.ranking import count_frames, rank
from csip.evaluation.score import rerank_words, score_figures
from csip.plain import from_plain
from csip.protocols import PROTOCOLS
from csip.tables import quote
from csip.types import EmbeddingsRef, Snapshot


def export_matrix(store: str, run_id: str, encoder: str) -> Matrix:
    """Measure an evaluation's distances again, with all it takes to score them.

    Args:
        store: the store's folder.
        run_id: of the evaluation.
        encoder: whose distances.

    Raises:
        StoreError: no such evaluation, or it has no such encoder; the message lists those there are.
        ValueError: it ranked clips and counted matches under the query's own camera; then a query has several own
            items in the gallery, and the file has room for one.
    """
    runs = tables.find_runs(store, f"run_id = {quote(run_id)} AND stage = 'evaluate'")
    if not runs:
        raise StoreError(
            f"Store {store}: found no evaluation with the run id {run_id!r}. `csip train-csip` and "
            "`csip evaluate-csip` print it, and `csip lineage` shows the run ids behind anything."
        )
    given = runs[-1].inputs
    config: EvaluateConfig = from_plain(EvaluateConfig, runs[-1].config["config"])
    asked: tuple[EmbeddingsRef, ...] = from_plain(tuple[EmbeddingsRef, ...], given["embeddings"])
    refs = {ref.encoder: ref for ref in asked}
    if encoder not in refs:
        raise StoreError(f"Run {run_id}: found no encoder {encoder!r}; name one of {', '.join(refs)} with --encoder.")
    snapshot: Snapshot = from_plain(Snapshot, given["snapshot"])
    protocol, split = read_protocol(snapshot)
    rule = rules(config, protocol)
    ranking = rank(refs[encoder], snapshot, rule)
    own = np.full(len(ranking.query), -1, dtype=np.int64)
    for i in range(len(own)):
        mine = np.flatnonzero(ranking.own(slice(i, i + 1))[0])
        if len(mine) > 1 and not rule.exclude_same_camera:
            raise ValueError(f"Run {run_id}: query {i} has {len(mine)} own clips in the gallery; expected one at most.")
        own[i] = mine[0] if len(mine) else -1
    query_pid, query_camid, gallery_pid, gallery_camid = ranking.ids()
    return Matrix(
        distance=np.concatenate([block for _, block in ranking.blocks(config, "cpu")]),
        query_pid=query_pid,
        query_camid=query_camid,
        gallery_pid=gallery_pid,
        gallery_camid=gallery_camid,
        own=own,
        query_length=count_frames(ranking.query, snapshot),
        exclude_same_camera=rule.exclude_same_camera,
        described=describe(rule, protocol, split=split, ranked=refs[encoder].words, rerank=rerank_words(config)),
        encoder=encoder,
    )


@dataclass(frozen=True, slots=True)
class ScoredMatrix:
    """The scores of a file.

    Attributes:
        encoder: what made the distances.
        label: the protocol in a few words.
        described: the protocol in words.
        figures: by the names of table `results`.
    """

    encoder: str
    label: str
    described: str
    figures: Mapping[str, float]


def score_matrix(matrix: Matrix, config: EvaluateConfig, protocol: str = "") -> ScoredMatrix:
    """Score a file as the stage `evaluate` would.

    Args:
        matrix: distances and identities; whether queries stand in the gallery is settled there.
        config: what is reported; `rerank` needs features, which the file does not hold, and `query_in_gallery` says
            nothing about a gallery that is there already.
        protocol: whose same-camera rule holds; empty: the file's own.

    Raises:
        ValueError: no such protocol, or re-ranking or another gallery is asked for.
        TooLittleDataError: no query has a possible match.
    """
    if config.rerank:
        raise ValueError("evaluate.rerank: got true for a file of distances, which re-ranking cannot start from.")
    if config.query_in_gallery is not None:
        raise ValueError(
            f"evaluate.query_in_gallery: got {config.query_in_gallery} for a file of distances, whose gallery is as it "
            "was written; leave it out, and set it where the file is made."
        )
    if protocol and protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}.")
    same = config.exclude_same_camera
    if same is None:
        same = PROTOCOLS[protocol].exclude_same_camera if protocol else matrix.exclude_same_camera
    ids = (matrix.query_pid, matrix.query_camid, matrix.gallery_pid, matrix.gallery_camid)
    own = matrix.own[:, None] == np.arange(matrix.distance.shape[1])
    queries = score_queries(matrix.distance, *ids, exclude_same_camera=same, own=own)
    found = score_figures(queries, matrix.distance.shape[1], config)
    if config.breakdown:
        pairs = by_camera_pair(matrix.distance, *ids, exclude_same_camera=same, own=own)
        names = {camera: f"camera {camera}" for pair in pairs for camera in pair}
        some = name_pairs(pairs, names, exclude_same_camera=same)
        if matrix.query_length is not None:
            some |= name_lengths(by_length(queries, matrix.query_length, config.lengths))
        for name, one in some.items():
            found |= named_figures(name, one, (1,))
    words = matrix.described or "A file of distances."
    if not matrix.described or same != matrix.exclude_same_camera:
        other = " Scored by another rule than the file's: " if matrix.described else " "
        rule = "do not count" if same else "count"
        words += f"{other}gallery items of the query's own person under its own camera {rule}."
    words += valid_words(count_valid(found))
    return ScoredMatrix(matrix.encoder or "distances", label(protocol) if protocol else "a file", words, found)
