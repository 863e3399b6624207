"""`csip gc`: give back what nothing names, beside whatever else goes on in the store.

What a reader or writer at work could lose, and why it does not:

- A reader has a version open, or a snapshot that is dropped under it. A version is removed only if no snapshot, tag or
  run names it, if no version of `snapshots` that was the newest within the last `older_than` names it, and if it has
  itself not been the newest for that long. So a read that began less than `older_than` ago ends well.
- A writer has files that no version names yet. They are Lance's to judge: it leaves them for 7 days.
- A build has rows that nothing vouches for yet: crops come before their tracklet, parts before their snapshot. Rows go
  only if they were written more than `older_than` ago, and as they were read: rows that came since stay, and rows that
  were written again since keep all of them (the next gc looks again).
- A build counts on extractions that no snapshot shows yet. They stay while it goes on, see `csip.maintenance.unused`;
  what it has listed as done in the very moment in which a gc takes it away, it misses before it publishes, and says so.
- A build changes rows while fragments are merged: whoever commits second does it again (a build), or leaves it (gc).
  Fragments that came within `older_than` are not touched at all, nor those that a kept version names: their files have
  to stay, and merging would store their rows twice.
- A training writes its state: states and unfinished files go only when nobody has written them for `older_than`.

With `older_than` 0 all of this rests on nobody else using the store. A killed gc leaves a store that is as good as
before: each step is one commit, or removes what nothing names, and the next gc finds what is left to do. Before rows of
an extraction go, the runs that did it say so no more: whatever happens then, a build does it again, all of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from csip import tables
from csip.errors import StoreError
from csip.maintenance.files import lost_files, stale_tags
from csip.maintenance.keys import shorten
from csip.maintenance.moving import Remaining, find_moves, move
from csip.maintenance.named import (
    Published,
    current_since,
    place,
    published_since,
    snapshots_in,
    versions_of_runs,
)
from csip.maintenance.rows import Needless, Search, Unneeded
from csip.maintenance.snapshots import published
from csip.maintenance.unused import give_back
from csip.tables import RunRecord, quote, snapshot_tag, table_uri
from csip.types import TableRef
from storage_schemas import TABLES

OLDER_THAN = timedelta(days=7)
"""As long as Lance itself leaves files that no version names."""

_SLACK = timedelta(seconds=1)
_OF_TRACKLETS = ("crops", "skeletons")


@dataclass(slots=True)
class TableWork:
    """What there is to do in one table, or was done.

    Attributes:
        tags: of snapshots that are not published any more.
        rows: that nothing needs; they leave the newest version, their bytes go with the versions before it.
        fragments: to merge.
        fragment_bytes: of their data files.
        versions: that nothing names.
        files: that only they name, or that nothing names and Lance takes for lost.
        bytes: of these files and manifests.
    """

    tags: int = 0
    rows: int = 0
    fragments: int = 0
    fragment_bytes: int = 0
    versions: int = 0
    files: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Collected:
    """What a gc did; of a dry run, what one would do.

    Attributes:
        dropped: snapshots.
        moved: snapshots that pin newer versions now, with the same rows of theirs, see `csip.maintenance.moving`.
        extractions: of videos that no snapshot shows any more: a build would do them again.
        tables: table -> work, where there was any.
        files: beside the tables, by their path from the store, and their bytes.
        bytes: that are free again.
        left: sentences on what was left, and why.
    """

    dropped: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    extractions: int = 0
    tables: dict[str, TableWork] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    left: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Plan:
    """All that is to be done to one table, settled before anything is changed."""

    ref: TableRef
    tags: tuple[str, ...]
    leave: frozenset[int]
    fragments: tuple[int, ...]
    fragment_bytes: int
    versions: tuple[int, ...]


@dataclass(slots=True)
class _Work:
    """All that is to be done, settled before anything is changed.

    Attributes:
        search: that found the rows.
        alone: nobody else uses the store.
        needless: what it found.
        plans: table -> what is to be done to it.
        lost: files.
    """

    search: Search
    alone: bool
    needless: Needless
    plans: Mapping[str, _Plan]
    lost: tuple[Path, ...]


def collect(
    store: str,
    *,
    dry_run: bool,
    drop: Sequence[str] = (),
    force: bool = False,
    older_than: timedelta = OLDER_THAN,
    detections: bool = False,
) -> Collected:
    """Drop snapshots, delete rows that nothing needs, merge small files, clean up old versions and lost files.

    What a snapshot named that is dropped now stays for `older_than`, for those who read it; a later gc frees it.
    Extractions that no snapshot shows then give back tracklets, crops and skeletons. Their raw detections, which cost
    the pose model's time and are a tenth of the bytes, go only if that is asked for.

    Args:
        store: the store's folder.
        dry_run: change nothing, and tell what would be done.
        drop: names of snapshots; their rows in `snapshots` go, and the tags that protect their versions.
        force: drop snapshots that runs were made from, too; the runs stay, but cannot be done again.
        older_than: how long a thing must have been out of use.
        detections: delete the raw detections, too, that no snapshot and no extraction needs.

    Raises:
        StoreError: no such store or snapshot; runs were made from a snapshot, or one that stays was not written by
            CSIP; or the store cannot be written.
    """
    now, runs = datetime.now(UTC), tables.find_runs(store, "true")
    for name in drop:
        _may_go(store, name, runs, force=force)
    kept = {name: row for name, row in published(store).items() if name not in drop}
    for row in kept.values():
        tables.check_row(store, row)  # nobody can tell what one needs that was not written by CSIP
    work, done = _settle(store, kept, sorted(set(drop)), runs, now, older_than, detections=detections)
    if not dry_run:
        _give_up(store, work, done)
    if not _carry_out_all(store, work.plans, work.needless, done, dry_run=dry_run):
        done.moved = ()  # the rows that they are to leave behind are still there
    if not dry_run:
        _move_all(store, kept, done)
    for path in work.lost:
        done.files[place(path)] = path.stat().st_size
        if not dry_run:
            path.unlink(missing_ok=True)
    done.bytes = sum(work.bytes for work in done.tables.values()) + sum(done.files.values())
    return done


def _settle(
    store: str,
    kept: Mapping[str, Mapping[str, Any]],
    dropped: Sequence[str],
    runs: Sequence[RunRecord],
    now: datetime,
    older_than: timedelta,
    *,
    detections: bool,
) -> tuple[_Work, Collected]:
    """Find all that there is to do, and change nothing."""
    since, alone = now - older_than, not older_than
    recent = published_since(store, since)
    search = Search(store, recent.only(kept) if alone else recent, runs, since, alone=alone)
    needless = search(detections=detections)
    remaining = Remaining(search.staying, search.gone_detections)
    moves, fixed = find_moves(store, kept, runs, remaining, None if alone else since)
    done = Collected(tuple(dropped), tuple(moves), needless.extractions, left=[*search.left, *fixed])
    changed = set(needless.rows)
    if dropped or moves:
        changed.add("snapshots")
    if needless.done or moves:
        changed.add("runs")
    plans = _plan_all(store, versions_of_runs(runs), recent, set(kept), since, changed)
    lost = lost_files(store, runs, now, older_than, done.left)
    return _Work(search, alone, needless, plans, tuple(lost)), done


def _give_up(store: str, work: _Work, done: Collected) -> None:
    """Drop snapshots, and let runs say no more that needless rows are there."""
    # A reader sees a snapshot as long as its row is there: that goes first, and at once.
    for name in done.dropped:
        tables.delete(store, "snapshots", f"name = {quote(name)}")
    if not work.alone and work.search.used_meanwhile():
        done.left.append("what no snapshot used: another process has come to use some of it meanwhile.")
        work.needless, done.moved, done.extractions = Needless(), (), 0
    if work.needless.done:
        tables.record_runs(store, give_back(work.needless.done))


def _move_all(store: str, kept: Mapping[str, Mapping[str, Any]], done: Collected) -> None:
    moved = tuple(name for name in done.moved if move(store, kept[name]))
    if moved != done.moved:
        stayed = sorted(set(done.moved) - set(moved))
        done.left.append(f"{len(stayed)} snapshots were dropped or published again meanwhile: {shorten(stayed)}.")
    done.moved = moved


def _may_go(store: str, name: str, runs: Sequence[RunRecord], *, force: bool) -> None:
    tables.snapshot_row(store, name)
    users = [run for run in runs if name in snapshots_in(run.inputs)]
    if users and not force:
        told = shorten([f"{run.run_id} ({run.stage})" for run in users])
        raise StoreError(
            f"Store {store}: the snapshot {name} cannot be dropped; {len(users)} runs were made from it: {told}. "
            "Keep it, so that their results can be traced and made again, or add --force."
        )


def _plan_all(
    store: str,
    named: Mapping[str, set[int]],
    recent: Published,
    kept: set[str],
    since: datetime,
    changed: Collection[str],
) -> dict[str, _Plan]:
    plans = {name: _plan(store, name, named.get(name, set()), recent, kept, since) for name in TABLES}
    for name in changed:
        # Rows that are deleted or written again change the fragments that were to be merged.
        plans[name] = replace(plans[name], fragments=(), fragment_bytes=0)
    return plans


def _plan(store: str, name: str, named: set[int], recent: Published, kept: set[str], since: datetime) -> _Plan:
    """Settle what is to be done to a table before anything is changed, so that a dry run tells the same."""
    versions = tables.list_versions(store, name)
    ref = TableRef(table_uri(store, name), max(versions))
    # A tag that is younger than any row of its snapshot belongs to one that is being published.
    seen = {snapshot_tag(row["name"]): tables.published_at(row) + _SLACK for row in recent.rows}
    stale = stale_tags(store, name, kept)
    gone = tuple(sorted(tag for tag, at in stale.items() if at <= max(since, seen.get(tag, since))))
    keep = {*named, *recent.versions(name), *(version for version, _ in tables.list_tags(store, name).values())}
    old = set(versions) - keep - set(current_since(versions, since))
    before = max((version for version, at in versions.items() if at <= since), default=0)
    newest = tables.extent(ref).fragments
    leave = set(newest) - set(tables.extent(TableRef(ref.uri, before)).fragments if before else ())
    for version in keep & set(versions) if len(newest) > len(leave) else ():
        leave |= set(tables.extent(TableRef(ref.uri, version)).fragments)
    merged = tables.plan_compaction(ref, leave) if len(set(newest) - leave) else []
    return _Plan(ref, gone, frozenset(leave), tuple(merged), sum(newest[one] for one in merged), tuple(sorted(old)))


def _carry_out_all(
    store: str, plans: Mapping[str, _Plan], needless: Needless, done: Collected, *, dry_run: bool
) -> bool:
    """Do what there is to do, table by table; tell whether all tracklets went that had to go."""
    late = False
    for name, plan in plans.items():
        # Where tracklets have to stay, what they stand on stays with them.
        rows = None if late and name in _OF_TRACKLETS else needless.rows.get(name)
        work = _carry_out(store, name, plan, rows, done.left, dry_run=dry_run)
        late |= name == "tracklets" and rows is not None and not work.rows
        if work != TableWork():
            done.tables[name] = work
    return not late


def _carry_out(
    store: str, name: str, plan: _Plan, needless: Unneeded | None, left: list[str], *, dry_run: bool
) -> TableWork:
    work = TableWork(tags=len(plan.tags))
    busy = f"{name}: another process was writing; {{}} are left for the next gc."
    if not dry_run:
        for tag in plan.tags:
            tables.untag(store, name, tag)
    if needless is not None:
        if dry_run or tables.delete_as_read(needless.ref, needless.where):
            work.rows = needless.rows
        else:
            left.append(busy.format("rows that nothing needs"))
    if plan.fragments:
        if dry_run or tables.compact(plan.ref, plan.leave):
            work.fragments, work.fragment_bytes = len(plan.fragments), plan.fragment_bytes
        else:
            left.append(busy.format("small files"))
    work.versions, work.files, work.bytes = tables.clean_up(store, name, plan.versions, dry_run=dry_run)
    return work
