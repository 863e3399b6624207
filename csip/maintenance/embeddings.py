"""Do the embeddings of a store belong to tracklets that are there, and are they vectors that can be ranked?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from csip import tables
from csip.errors import StoreError
from csip.maintenance.findings import Finding, Kind
from csip.maintenance.keys import shorten
from csip.maintenance.named import snapshots_in
from csip.maintenance.values import BoolArray, lengths_of_vectors, odd_vectors
from csip.references import things_in
from csip.tables import RunRecord, table_uri
from csip.types import IntArray, TableRef

_RAW = "embed_skeletons"  # the one stage whose embeddings are ranked as they are, of any length
_TOLERANCE = 1e-3
_Snapshots = Mapping[str, Mapping[str, Any]]
_Makers = Mapping[str, Sequence[RunRecord]]


@dataclass(frozen=True, slots=True)
class _Vectors:
    """What is to be known of N embeddings.

    Attributes:
        names: encoder and tracklet of each.
        width: (N,) how many numbers it has.
        bad: (N,) whether any of them is not finite.
        length: (N,) Euclidean.
    """

    names: list[tuple[str, str]]
    width: IntArray
    bad: BoolArray
    length: npt.NDArray[np.float64]


def check_embeddings(
    store: str, runs: Sequence[RunRecord], snapshots: Mapping[str, Mapping[str, Any]]
) -> list[Finding]:
    """Look the newest `embeddings` over: tracklets, widths, lengths, and numbers that are none.

    Args:
        store: the store's folder.
        runs: all there are; they say which snapshot an encoder's embeddings were made of.
        snapshots: name -> row of `snapshots`, decoded.
    """
    made: dict[str, list[RunRecord]] = {}
    for run in runs:
        for thing in things_in(run.outputs):
            if thing.kind == "embeddings":
                made.setdefault(thing.name, []).append(run)
    try:
        ref = tables.current(store, "embeddings")
        vectors = _read(ref)
        return [*_odd_rows(vectors, made), *_dangling(store, set(vectors.names), made, snapshots)]
    except StoreError as error:
        return [Finding("fault", "", "embeddings", str(error))]


def _read(ref: TableRef) -> _Vectors:
    """Read all rows, and keep what there is to say of each."""
    names: list[tuple[str, str]] = []
    widths, odd, length = [np.zeros(0, np.int64)], [np.zeros(0, np.bool_)], [np.zeros(0)]
    for batch in tables.stream(ref, ["encoder_digest", "tracklet_id", "feature"]):
        feature = batch.column("feature")
        names += zip(*(batch.column(i).to_pylist() for i in range(2)), strict=True)
        widths.append(np.asarray(pc.list_value_length(feature), np.int64))
        odd.append(odd_vectors(feature))
        length.append(lengths_of_vectors(feature))
    return _Vectors(names, np.concatenate(widths), np.concatenate(odd), np.concatenate(length))


def _odd_rows(vectors: _Vectors, made: _Makers) -> Iterator[Finding]:
    """Find vectors of another width than most of their encoder, not of length 1 where they are to be, or not finite."""
    names, width, bad, norm = vectors.names, vectors.width, vectors.bad, vectors.length
    encoders = np.array([encoder for encoder, _ in names])
    wide = np.zeros(len(names), np.bool_)
    unit = np.zeros(len(names), np.bool_)
    for encoder in np.unique(encoders).tolist():
        own = encoders == encoder
        seen, counts = np.unique(width[own], return_counts=True)
        wide |= own & (width != seen[counts.argmax()])
        if encoder in made and all(run.stage != _RAW for run in made[encoder]):
            unit |= own
    wrong = unit & ~bad & (np.abs(norm - 1) > _TOLERANCE)
    for mask, text in (
        (bad, "rows have numbers that are not finite"),
        (wide, "rows have another width than most of their encoder"),
        (wrong, "rows are not of length 1"),
    ):
        told = [f"{tracklet} of {encoder[:12]}" for encoder, tracklet in (names[i] for i in np.flatnonzero(mask))]
        yield from _say("fault", told, text)


def _dangling(store: str, owners: set[tuple[str, str]], made: _Makers, snapshots: _Snapshots) -> Iterator[Finding]:
    """Find rows of tracklets that are not there; without harm where the snapshot they were made of was dropped."""
    known = _tracklets(tables.current(store, "tracklets"))
    gone = {(encoder, tracklet) for encoder, tracklet in owners if tracklet not in known}
    if not gone:
        return
    versions = {row["tables"]["tracklets"] for row in snapshots.values() if "tracklets" in row["tables"]}
    for version in versions:
        known |= _tracklets(TableRef(table_uri(store, "tracklets"), version))
    told: dict[Kind, list[str]] = {"fault": [], "leftover": []}
    for encoder, tracklet in sorted(gone):
        if tracklet not in known:
            read = {name for run in made.get(encoder, ()) for name in snapshots_in(run.inputs)}
            kind: Kind = "leftover" if read and not read & set(snapshots) else "fault"
            told[kind].append(f"{tracklet} of {encoder[:12]}")
    for kind, names in told.items():
        yield from _say(kind, names, "tracklets that are not there have embeddings")


def _tracklets(ref: TableRef) -> set[str]:
    return {name for batch in tables.stream(ref, ["tracklet_id"]) for name in batch.column(0).to_pylist()}


def _say(kind: Kind, names: Sequence[str], text: str) -> Iterator[Finding]:
    if names:
        yield Finding(kind, "", "embeddings", f"{len(names)} {text}: {shorten(names)}.")
