"""Rows of the newest versions that nothing needs: what killed builds left, and data sets that are not published."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from csip import tables
from csip.maintenance.keys import Numbers
from csip.maintenance.named import Published
from csip.maintenance.snapshots import generations
from csip.tables import RunRecord, any_of, quote, table_uri
from csip.types import TableRef

_AT_ONCE = 20_000
_UPDATED = "_row_last_updated_at_version"


@dataclass(frozen=True, slots=True)
class Unneeded:
    """Rows of one version that nothing needs.

    Attributes:
        ref: the version they were found in.
        where: the condition that they alone meet.
        rows: how many.
    """

    ref: TableRef
    where: str
    rows: int


@dataclass(frozen=True, slots=True)
class _Found:
    """The rows of one table by owner: how many, and whether all are old enough."""

    ref: TableRef
    before: int
    rows: Mapping[str, int]
    old: frozenset[str]


def unneeded_rows(
    store: str,
    recent: Published,
    used: Collection[str],
    since: datetime,
    *,
    alone: bool,
    left: list[str],
) -> dict[str, Unneeded]:
    """Find the rows that no snapshot and no run needs, table by table; only what was written before `since`.

    Args:
        store: the store's folder.
        recent: what is published, or was a short time ago.
        used: track digests of published tracklets.
        since: what was written later is left.
        alone: nobody else uses the store: tracklets that an import has begun to write are not waited for.
        left: gets a sentence on each thing that cannot be told to be needless.
    """
    # Tracklets are read last: a build that finishes one in the meantime is seen.
    owned = {name: _by_owner(store, name, "tracklet_id", since) for name in ("crops", "skeletons")}
    found = {"splits": _by_owner(store, "splits", "dataset", since)}
    ref = tables.current(store, "tracklets")
    idle = _idle_imports(store, ref, recent, used, left, alone=alone)
    keep = {name for name, (_, digest) in _tracklets(ref).items() if digest not in idle}
    out = {}
    if idle:
        where = f"{any_of('track_digest', idle)} AND video_sha = ''"
        out["tracklets"] = Unneeded(ref, where, tables.count(ref, where))
    for name, known, column in (
        *((name, keep, "tracklet_id") for name in owned),
        ("splits", recent.names(), "dataset"),
    ):
        some = (owned | found)[name]
        lost = sorted(some.old - set(known))
        if len(lost) > _AT_ONCE:
            left.append(f"{name}: rows of {len(lost) - _AT_ONCE} more that nothing needs are left for the next gc.")
        young = set(some.rows) - set(known) - some.old
        if young:
            rows = sum(some.rows[one] for one in young)
            left.append(f"{name}: {rows} rows that nothing vouches for were written too lately to be given up.")
        if lost:
            chosen = lost[:_AT_ONCE]
            where = f"{any_of(column, chosen)} AND {_UPDATED} <= {some.before}"
            out[name] = Unneeded(some.ref, where, sum(some.rows[one] for one in chosen))
    return out


def _by_owner(store: str, name: str, column: str, since: datetime) -> _Found:
    """Count a table's rows by who they belong to."""
    versions = tables.list_versions(store, name)
    ref = TableRef(table_uri(store, name), max(versions))
    before = max((version for version, at in versions.items() if at <= since), default=0)
    numbers, rows, newest = Numbers(), np.zeros(0, np.int64), np.zeros(0, np.int64)
    for batch in tables.stream(ref, [column, _UPDATED]):
        number = numbers.of([batch.column(column)])
        more = len(numbers) - len(rows)
        rows, newest = (np.concatenate([some, np.zeros(more, np.int64)]) for some in (rows, newest))
        np.add.at(rows, number, 1)
        np.maximum.at(newest, number, np.asarray(batch.column(_UPDATED)).astype(np.int64))
    names = [name for (name,) in numbers.names]
    old = frozenset(name for name, version in zip(names, newest.tolist(), strict=True) if version <= before)
    return _Found(ref, before, dict(zip(names, rows.tolist(), strict=True)), old)


def _tracklets(ref: TableRef) -> dict[str, tuple[str, str]]:
    """Read who made each tracklet: tracklet_id -> video, track digest."""
    columns = ["tracklet_id", "video_sha", "track_digest"]
    return {
        name: (sha, digest)
        for batch in tables.stream(ref, columns)
        for name, sha, digest in zip(*(batch.column(one).to_pylist() for one in columns), strict=True)
    }


def _idle_imports(
    store: str, ref: TableRef, recent: Published, used: Collection[str], left: list[str], *, alone: bool
) -> frozenset[str]:
    """Name the track digests of imports that may go, and say what of other tracklets is not published."""
    in_splits: set[str] = set()
    for row in recent.rows:
        splits = TableRef(table_uri(store, "splits"), row["tables"]["splits"])
        for batch in tables.stream(splits, ["tracklet_id"], f"dataset = {quote(row['name'])}"):
            in_splits |= set(batch.column(0).to_pylist())
    made = _tracklets(ref)
    digests = {row["digest"] for row in recent.rows}
    needed = set(used) | digests | {made[name][1] for name in in_splits if name in made}
    rest: dict[bool, list[str]] = {True: [], False: []}
    for sha, digest in made.values():
        if digest not in needed:
            rest[bool(sha)].append(digest)
    if rest[True]:
        left.append(
            f"tracklets: {len(rest[True])} of {len(set(rest[True]))} extractions that no snapshot uses, with their "
            "crops: finished runs name them, and a build does not do them again."
        )
    if rest[False] and not alone:
        left.append(
            f"tracklets: {len(rest[False])} of {len(set(rest[False]))} imports that are not published: one that goes "
            "on may need them. `csip gc --older-than 0`, while nobody else uses the store, deletes them."
        )
    return frozenset(rest[False]) if alone else frozenset()


def used_generations(rows: Sequence[Mapping[str, Any]], runs: Sequence[RunRecord]) -> set[str]:
    """List the track digests of the tracklets that snapshots publish."""
    return {digest for row in rows for digest in generations(row, runs)}
