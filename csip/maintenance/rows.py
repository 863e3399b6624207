"""Rows of the newest versions that nothing needs: what killed builds left, and data sets that are not published."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from csip import tables
from csip.errors import StoreError
from csip.maintenance import unused
from csip.maintenance.forget_traces import forgotten
from csip.maintenance.keys import Numbers, shorten
from csip.maintenance.named import Published
from csip.maintenance.snapshots import published
from csip.maintenance.unused import Pair, Used
from csip.references import extraction_name
from csip.tables import RunRecord, any_of, quote, table_uri
from csip.types import TableRef

_AT_ONCE = 20_000
_UPDATED = "_row_last_updated_at_version"
Owner = tuple[str, ...]


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


@dataclass(slots=True)
class Needless:
    """What may go.

    Attributes:
        rows: table -> rows, in the order in which they have to go.
        done: runs that say that some of them are there: they have to say otherwise before.
        extractions: whose tracklets are among the rows.
    """

    rows: dict[str, Unneeded] = field(default_factory=dict)
    done: list[RunRecord] = field(default_factory=list)
    extractions: int = 0


@dataclass(frozen=True, slots=True)
class _Found:
    """The rows of one table by owner: how many, and who has none that is young."""

    ref: TableRef
    before: int
    rows: Mapping[Owner, int]
    old: frozenset[Owner]

    @property
    def young(self) -> set[Owner]:
        """Owners with a row that was written too lately."""
        return set(self.rows) - self.old

    def unneeded(self, where: str, owners: Iterable[Owner]) -> Unneeded:
        """Give the rows of some owners, all of them old, that meet a condition which names just these."""
        return Unneeded(self.ref, f"({where}) AND {_UPDATED} <= {self.before}", sum(self.rows[one] for one in owners))


class Search:
    """Looks for the rows that no snapshot and no run needs, table by table; only what was written before `since`.

    Attributes:
        needless: what it has found.
        left: sentences on what it has left.
        gone_detections: extractions whose raw detections were given back, and will be in no newest version.
    """

    def __init__(
        self, store: str, recent: Published, runs: Sequence[RunRecord], since: datetime, *, alone: bool
    ) -> None:
        """Read who owns the rows there are.

        Args:
            store: the store's folder.
            recent: what is published, or was a short time ago.
            runs: all there are, read before.
            since: what was written or used later is left.
            alone: nobody else uses the store: tracklets that an import has begun to write are not waited for.
        """
        self._store, self._recent, self._runs, self._since, self._alone = store, recent, runs, since, alone
        self.needless, self.left = Needless(), list[str]()
        # Tracklets are read last: a build that finishes one in the meantime is seen.
        self._owned = {name: _by_owner(store, name, ["tracklet_id"], since) for name in ("crops", "skeletons")}
        self._splits = _by_owner(store, "splits", ["dataset"], since)
        self._extractions = _by_owner(store, "tracklets", ["video_sha", "track_digest"], since)
        self._made = _tracklets(self._extractions.ref)
        self._forgotten = forgotten(store)
        self._published = unused.used_by_snapshots(recent.rows, runs)
        self._lately = Used() if alone else unused.used_lately(runs, since)
        self._idle: set[Pair] = set()
        self._idle_detections: set[Pair] = set()
        self._detections_used = Used()
        self.gone_detections: set[Pair] = set()

    def __call__(self, *, detections: bool) -> Needless:
        """Find them, and say in `left` what cannot be told to be needless; raw detections only if that is asked."""
        self._find_extractions()
        for name, found in self._owned.items():
            self._find_lost(name, found, "tracklet_id", self._kept(found))
        self._find_lost("splits", self._splits, "dataset", {(name,) for name in self._recent.names()})
        self._find_detections()
        if detections:
            self._take_detections()
        else:
            self._tell_detections()
        return self.needless

    @property
    def staying(self) -> set[Pair]:
        """Extractions and imports whose tracklets will be in the newest version."""
        return {(sha, digest) for sha, digest in self._extractions.rows} - self._idle

    def used_meanwhile(self) -> bool:
        """Tell whether somebody has listed or published, since the store was read, what was found to be needless."""
        runs, rows = tables.find_runs(self._store, "true"), published(self._store).values()
        used = unused.used_by_snapshots(rows, runs) | unused.used_lately(runs, self._since)
        return any(map(used.has_tracked, self._idle)) or any(map(used.has_detected, self._idle_detections))

    def _find_extractions(self) -> None:
        """Find the extractions and imports that nothing uses: their tracklets, and the runs that say they are done."""
        shown = self._in_splits()
        passes = [run for run in self._runs if run.stage in unused.TRACKS]
        there: set[Pair] = {(sha, digest) for sha, digest in self._extractions.rows}
        every = {pair for pair in there | self._done_again(passes, "track_digest") if pair[0]}
        spare = {pair for pair in every - shown if not self._published.has_tracked(pair)}
        cut = {name.rpartition("-")[0] for found in self._owned.values() for (name,) in found.young}
        busy = {one for one in spare if one in self._lately.tracked or extraction_name(*one) in cut}
        busy |= spare & self._extractions.young
        self._tell(spare & busy, "extractions that no snapshot uses, but which were in use lately")
        imports = {pair for pair in there - shown - {("", row["digest"]) for row in self._recent.rows} if not pair[0]}
        if not self._alone:
            self._tell(
                imports,
                "imports that are not published: one that goes on may need them. `csip gc --older-than 0`, while "
                "nobody else uses the store, deletes them",
            )
            imports = set()
        self._idle = self._at_once("tracklets", {*(spare - busy), *imports})
        done = [run for run in passes if unused.of_pass(run, "track_digest") in self._idle]
        self.needless.done += done
        gone = self._idle & there
        again = {pair for pair in gone if pair[0] not in self._forgotten} | self._done_again(done, "track_digest")
        self.needless.extractions = len(again - imports)
        if gone:
            where = unused.where_pairs("tracklets", gone)
            self.needless.rows["tracklets"] = self._extractions.unneeded(where, gone)

    def _in_splits(self) -> set[Pair]:
        """List the extractions and imports whose tracklets the protocols of snapshots name.

        Of a snapshot whose protocols cannot be read, all may be that are of its videos or its own import.
        """
        found: set[Pair] = set()
        unreadable = set()
        for row in (row for row in self._recent.rows if "splits" in row["tables"]):
            splits = TableRef(table_uri(self._store, "splits"), row["tables"]["splits"])
            try:
                for batch in tables.stream(splits, ["tracklet_id"], f"dataset = {quote(row['name'])}"):
                    found |= {self._made[name] for name in batch.column(0).to_pylist() if name in self._made}
            except StoreError:
                unreadable.add(row["name"])
                own = {*row["videos"], ""}
                found |= {(sha, one) for sha, one in self._extractions.rows if sha in own}
        if unreadable:
            self.left.append(
                f"splits: those of {len(unreadable)} snapshots cannot be read, see `csip verify`, and what they may "
                f"name is left: {shorten(sorted(unreadable))}."
            )
        return found

    def _done_again(self, passes: Iterable[RunRecord], name: str) -> set[Pair]:
        """List what passes have done and a build would do again: what was forgotten, none does."""
        return {pair for pair in unused.done_by(passes, name) if pair[0] not in self._forgotten}

    def _at_once(self, table: str, some: Iterable[Pair]) -> set[Pair]:
        """Take as many as one condition can name, and say how many are left."""
        ordered = sorted(some)
        if len(ordered) > _AT_ONCE:
            more = len(ordered) - _AT_ONCE
            self.left.append(f"{table}: rows of {more} more extractions that nothing needs are left for the next gc.")
        return set(ordered[:_AT_ONCE])

    def _tell(self, some: Collection[Pair], what: str) -> None:
        rows = sum(self._extractions.rows.get(pair, 0) for pair in some)
        if rows:
            self.left.append(f"tracklets: {rows} of {len(some)} {what}.")

    def _kept(self, found: _Found) -> set[Owner]:
        """Name the owners of crops or skeletons that stay: tracklets, and those of extractions that go on."""
        passes = [run for run in self._runs if run.stage in unused.TRACKS]
        whole = unused.done_by((run for run in passes if run.stage in unused.FINISHES), "track_digest")
        begun = {extraction_name(*pair) for pair in unused.done_by(passes, "track_digest") - whole - self._idle}
        known = {(name,) for name, pair in self._made.items() if pair not in self._idle}
        return known | {(name,) for (name,) in found.rows if name.rpartition("-")[0] in begun}

    def _find_lost(self, name: str, found: _Found, column: str, kept: set[Owner]) -> None:
        """Find the rows of owners that are not kept."""
        lost = sorted(found.old - kept)
        if len(lost) > _AT_ONCE:
            self.left.append(
                f"{name}: rows of {len(lost) - _AT_ONCE} more that nothing needs are left for the next gc."
            )
        young = found.young - kept
        if young:
            rows = sum(found.rows[one] for one in young)
            self.left.append(f"{name}: {rows} rows that nothing vouches for were written too lately to be given up.")
        if lost:
            chosen = lost[:_AT_ONCE]
            self.needless.rows[name] = found.unneeded(any_of(column, (one for (one,) in chosen)), chosen)

    def _find_detections(self) -> None:
        """Find whose raw detections neither a snapshot nor tracklets that stay stand on."""
        gone = {run.run_id for run in self.needless.done}
        stay = [run for run in self._runs if run.stage in unused.TRACKS and run.run_id not in gone]
        shown = Used(detected=frozenset(unused.done_by(stay, "detect_digest")))
        self._detections_used = self._published | self._lately | shown
        self.gone_detections = unused.given_back(self._runs, unused.DETECTS, "detect_digest")

    def _tell_detections(self) -> None:
        passes = [run for run in self._runs if run.stage in unused.DETECTS]
        spare = {p for p in self._done_again(passes, "detect_digest") if not self._detections_used.has_detected(p)}
        own = [run for run in passes if unused.of_pass(run, "detect_digest") in spare]
        rows = sum(int(run.counts.get("detections", 0)) for run in own)
        if rows:
            self.left.append(
                f"detections: {rows} of {len(spare)} extractions that no snapshot uses; from them a build makes "
                "tracklets without the pose model. `csip gc --detections` gives them back, too."
            )
        if self.gone_detections:
            where = unused.where_pairs("detections", self.gone_detections)
            if tables.count(tables.current(self._store, "detections"), where):
                self.gone_detections = set()  # a gc was killed before it took them

    def _take_detections(self) -> None:
        found = _by_owner(self._store, "detections", ["video_sha", "detect_digest"], self._since)
        passes = [run for run in self._runs if run.stage in unused.DETECTS]
        there: set[Pair] = {(sha, digest) for sha, digest in found.rows}
        every = (there | self._done_again(passes, "detect_digest")) - found.young
        spare = {pair for pair in every if not self._detections_used.has_detected(pair)}
        idle = self._idle_detections = self._at_once("detections", spare)
        self.gone_detections = (self.gone_detections - there) | idle
        self.needless.done += [run for run in passes if unused.of_pass(run, "detect_digest") in idle]
        if idle & there:
            where = unused.where_pairs("detections", idle & there)
            self.needless.rows["detections"] = found.unneeded(where, idle & there)


def _by_owner(store: str, name: str, columns: Sequence[str], since: datetime) -> _Found:
    """Count a table's rows by who they belong to."""
    versions = tables.list_versions(store, name)
    ref = TableRef(table_uri(store, name), max(versions))
    before = max((version for version, at in versions.items() if at <= since), default=0)
    numbers, rows, newest = Numbers(), np.zeros(0, np.int64), np.zeros(0, np.int64)
    for batch in tables.stream(ref, [*columns, _UPDATED]):
        number = numbers.of([batch.column(one) for one in columns])
        more = len(numbers) - len(rows)
        rows, newest = (np.concatenate([some, np.zeros(more, np.int64)]) for some in (rows, newest))
        np.add.at(rows, number, 1)
        np.maximum.at(newest, number, np.asarray(batch.column(_UPDATED)).astype(np.int64))
    old = frozenset(name for name, version in zip(numbers.names, newest.tolist(), strict=True) if version <= before)
    return _Found(ref, before, dict(zip(numbers.names, rows.tolist(), strict=True)), old)


def _tracklets(ref: TableRef) -> dict[str, Pair]:
    """Read who made each tracklet: tracklet_id -> video, track digest."""
    columns = ["tracklet_id", "video_sha", "track_digest"]
    return {
        name: (sha, digest)
        for batch in tables.stream(ref, columns)
        for name, sha, digest in zip(*(batch.column(one).to_pylist() for one in columns), strict=True)
    }
