"""Do the embeddings and frame features of a store belong to tracklets that are there, and can the first be ranked?"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from csip import tables
from csip.errors import StoreError
from csip.maintenance.files import count_by
from csip.maintenance.findings import Finding, Kind
from csip.maintenance.keys import shorten
from csip.maintenance.named import snapshots_in
from csip.maintenance.values import BoolArray, lengths_of_vectors, odd_vectors
from csip.references import things_in
from csip.tables import RunRecord, table_uri
from csip.types import IntArray, TableRef

_CACHES = "cache_features"  # the stage that fills `frame_features`
_RAW = "embed_skeletons"  # the one stage whose embeddings are ranked as they are, of any length
_TOLERANCE = 1e-3
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


def check_vectors(
    store: str,
    newest: Mapping[str, TableRef],
    files: dict[str, str],
    runs: Sequence[RunRecord],
    snapshots: Mapping[str, Mapping[str, Any]],
) -> list[Finding]:
    """Look the newest `embeddings` over, tracklets, widths, lengths and numbers that are none, and `frame_features`.

    Where a version of `tracklets` cannot be read, which is a fault of its own, nothing can be told.

    Args:
        store: the store's folder.
        newest: table -> its newest version, of those that can be read.
        files: as for `tables.damaged_files`.
        runs: all there are; they say which snapshot vectors were made of.
        snapshots: name -> row of `snapshots`, decoded.
    """
    versions = {row["tables"]["tracklets"] for row in snapshots.values() if "tracklets" in row["tables"]}
    published = [TableRef(table_uri(store, "tracklets"), version) for version in sorted(versions)]
    found: list[Finding] = []
    if "tracklets" not in newest or not all(_is_whole(ref, files) for ref in published):
        return found
    there = _Tracklets(newest["tracklets"], published, snapshots)
    for table, check in (("embeddings", _check_embeddings), ("frame_features", _check_features)):
        if table in newest:
            try:
                found += check(newest[table], there, runs)
            except StoreError as error:
                found.append(Finding("fault", "", table, str(error)))
    return found


def _is_whole(ref: TableRef, files: dict[str, str]) -> bool:
    try:
        return not tables.damaged_files(ref, files)
    except StoreError:
        return False


class _Tracklets:
    """The tracklets that are there, now or in a published version; those are read only when somebody is missed."""

    def __init__(self, newest: TableRef, published: Sequence[TableRef], snapshots: Collection[str]) -> None:
        self._refs, self._known = (newest, *published), set[str]()
        self.snapshots = set(snapshots)

    def without(self, names: Iterable[str]) -> set[str]:
        """Give those of these names that no tracklet has."""
        gone = set(names)
        for ref in self._refs:
            if gone - self._known:
                self._known |= {n for batch in tables.stream(ref, ["tracklet_id"]) for n in batch.column(0).to_pylist()}
        return gone - self._known


def _check_embeddings(ref: TableRef, there: _Tracklets, runs: Sequence[RunRecord]) -> Iterator[Finding]:
    made: dict[str, list[RunRecord]] = {}
    for run in runs:
        for thing in things_in(run.outputs):
            if thing.kind == "embeddings":
                made.setdefault(thing.name, []).append(run)
    vectors = _read(ref)
    yield from _odd_rows(vectors, made)
    gone = there.without(tracklet for _, tracklet in vectors.names)
    told: dict[Kind, list[str]] = {"fault": [], "leftover": []}
    for encoder, tracklet in sorted(set(vectors.names)):
        if tracklet in gone:
            read = {name for run in made.get(encoder, ()) for name in snapshots_in(run.inputs)}
            # Without harm where the snapshot they were made of was dropped.
            kind: Kind = "leftover" if read and not read & there.snapshots else "fault"
            told[kind].append(f"{tracklet} of {encoder[:12]}")
    for kind, names in told.items():
        yield from _say(kind, "embeddings", names, "tracklets that are not there have embeddings")


def _check_features(ref: TableRef, there: _Tracklets, runs: Sequence[RunRecord]) -> Iterator[Finding]:
    names: dict[str, int] = count_by(ref, "tracklet_id")
    gone = sorted(there.without(names))
    read = {name for run in runs if run.stage == _CACHES for name in snapshots_in(run.inputs)}
    # Rows do not say of which snapshot they were made: one that was dropped may have had these tracklets.
    kind: Kind = "leftover" if read - there.snapshots else "fault"
    rows = sum(names[one] for one in gone)
    yield from _say(kind, "frame_features", gone, f"tracklets that are not there have {rows} rows")


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
        yield from _say("fault", "embeddings", told, text)


def _say(kind: Kind, table: str, names: Sequence[str], text: str) -> Iterator[Finding]:
    if names:
        yield Finding(kind, "", table, f"{len(names)} {text}: {shorten(names)}.")
