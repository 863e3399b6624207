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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from csip import tables
from csip.errors import StoreError
from csip.maintenance.files import lost_files
from csip.maintenance.keys import shorten
from csip.maintenance.moving import Remaining, find_moves, move
from csip.maintenance.named import (
    place,
    published_since,
    snapshots_in,
    versions_of_runs,
)
from csip.maintenance.rows import Needless, Search
from csip.maintenance.snapshots import published
from csip.maintenance.table_work import TablePlan, TableWork, carry_out, plan_all
from csip.maintenance.unused import give_back
from csip.tables import RunRecord, quote

OLDER_THAN = timedelta(days=7)
"""As long as Lance itself leaves files that no version names."""

_OF_TRACKLETS = ("crops", "skeletons")


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
    plans: Mapping[str, TablePlan]
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
    now = datetime.now(UTC)
    known, runs = published(store), tables.find_runs(store, "true")
    for name in drop:
        _may_go(store, name, runs, force=force)
    kept = {name: row for name, row in known.items() if name not in drop}
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
    plans = plan_all(store, versions_of_runs(runs), recent, set(kept), since, changed)
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


def _carry_out_all(
    store: str, plans: Mapping[str, TablePlan], needless: Needless, done: Collected, *, dry_run: bool
) -> bool:
    """Do what there is to do, table by table; tell whether all tracklets went that had to go."""
    late = False
    for name, plan in plans.items():
        # Where tracklets have to stay, what they stand on stays with them.
        rows = None if late and name in _OF_TRACKLETS else needless.rows.get(name)
        work = carry_out(store, name, plan, rows, done.left, dry_run=dry_run)
        late |= name == "tracklets" and rows is not None and not work.rows
        if work != TableWork():
            done.tables[name] = work
    return not late
