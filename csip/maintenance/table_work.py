"""What a gc has to do in one table: settled before anything is changed, and carried out table by table."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from csip import tables
from csip.maintenance.files import stale_tags
from csip.maintenance.named import Published, current_since
from csip.maintenance.rows import Unneeded
from csip.tables import snapshot_tag, table_uri
from csip.types import TableRef
from storage_schemas import TABLES

_SLACK = timedelta(seconds=1)


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


@dataclass(frozen=True, slots=True)
class TablePlan:
    """All that is to be done to one table, settled before anything is changed."""

    ref: TableRef
    tags: tuple[str, ...]
    leave: frozenset[int]
    fragments: tuple[int, ...]
    fragment_bytes: int
    versions: tuple[int, ...]


def plan_all(
    store: str,
    named: Mapping[str, set[int]],
    recent: Published,
    kept: set[str],
    since: datetime,
    changed: Collection[str],
) -> dict[str, TablePlan]:
    """Settle what is to be done to every table.

    Args:
        store: the store's folder.
        named: table -> versions that runs name.
        recent: what is published, or was a short time ago.
        kept: names of the snapshots that stay.
        since: what was written or used later is left.
        changed: tables whose rows will change before.
    """
    plans = {name: _plan(store, name, named.get(name, set()), recent, kept, since) for name in TABLES}
    for name in changed:
        # Rows that are deleted or written again change the fragments that were to be merged.
        plans[name] = replace(plans[name], fragments=(), fragment_bytes=0)
    return plans


def _plan(store: str, name: str, named: set[int], recent: Published, kept: set[str], since: datetime) -> TablePlan:
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
    return TablePlan(ref, gone, frozenset(leave), tuple(merged), sum(newest[one] for one in merged), tuple(sorted(old)))


def carry_out(
    store: str, name: str, plan: TablePlan, needless: Unneeded | None, left: list[str], *, dry_run: bool
) -> TableWork:
    """Do what there is to do in a table, or tell what one would do; what others keep from being done goes to `left`."""
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
