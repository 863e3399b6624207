"""`csip forget`: a person's rows leave every table, and every version and file that had them, while nobody else writes.

The plan is written to `runs` first, and its names leave that table last. In between, each step looks what is left to
do, in an order in which a kill never leaves a snapshot without its versions:

1. all tables are closed to everybody else (`csip.store.closing`), and stay so after a kill;
2. rows leave the newest versions, dependants first, in commits that do not say which rows;
3. files that show the person are deleted;
4. the newest versions are written anew where rows are deleted;
5. all snapshots are published again under their names, on these versions; runs name these versions, too;
6. every other version of these tables goes, with its files, and with those that no version names;
7. the tables are opened.

What a network has learned cannot be taken out of it: checkpoints stay, and are told.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from csip import tables
from csip.errors import StoreBusyError, StoreError
from csip.maintenance.forget_plan import Plan, Selector, make_plan
from csip.maintenance.forget_scrub import Scrub
from csip.maintenance.forget_traces import BY_TRACKLET, FORGOTTEN, doomed_detections, forgotten
from csip.maintenance.snapshots import published
from csip.plain import from_plain, to_plain
from csip.source import git_commit
from csip.tables import RunRecord, table_uri
from csip.types import Snapshot

__all__ = ["FORGOTTEN", "Plan", "Selector", "finish", "forget", "forgotten", "forgotten_on", "look_up"]

YOUNG_SECONDS = 120.0
"""So old is a data file that no version names when nobody is taken to be writing it any more."""

_STAGE = "forget"
_STARTED, _DONE = "started", "done"
_WITH_ROWS = ("videos", "detections", *BY_TRACKLET)
_ALL = ("runs", *(name for name in tables.TABLES if name != "runs"))


@dataclass(frozen=True, slots=True)
class _Journal:
    """A plan that was begun, and the run that says so."""

    run: RunRecord
    plan: Plan

    @property
    def name(self) -> str:
        """What others are told of it while they may not write."""
        return f"run {self.run.run_id}, begun {self.run.started}"


def forgotten_on(store: str, selector: Selector) -> str:
    """Say when all that a selector names was forgotten, ISO 8601; empty where it was not."""
    done = [run for run in _runs(store) if run.counts.get("status") == _DONE and run.config["kind"] == selector.kind]
    times = {sha: run.started for run in done for sha in run.config["sha256"]}
    return max(times[sha] for sha in selector.shas) if set(selector.shas) <= set(times) else ""


def look_up(store: str, selector: Selector) -> Plan | None:
    """Find what there is to do, and change nothing; None where all of it was forgotten before.

    Raises:
        StoreError: nobody of that name; another `csip forget` was not finished; or the store cannot be read.
    """
    unfinished = [one.name for one in _begun(store)] or [name for name in [tables.closed_by(store)] if name]
    if unfinished:
        raise StoreError(
            f"Store {store}: a `csip forget` ({unfinished[0]}) was not finished, or has not ended yet. If it was "
            "killed, run it, or any other, without --dry-run: that finishes it first."
        )
    before = forgotten_on(store, selector)
    try:
        found = make_plan(store, selector)
    except StoreError:
        if before:
            return None
        raise
    return found if not before or set(found.rows) - {"videos"} else None


def finish(store: str) -> list[Plan]:
    """Complete what was begun and killed.

    Raises:
        StoreBusyError: it was not killed, or somebody else works on the store.
        StoreError: what was begun cannot be read, or the store cannot be written.
    """
    begun, closed_by = _begun(store), tables.closed_by(store)
    if closed_by and closed_by not in [one.name for one in begun]:  # killed at the very last step
        with tables.alone(store, closed_by):
            _end(store)
    for one in sorted(begun, key=lambda one: one.name != closed_by):
        with tables.alone(store, one.name):
            _carry_out(store, one)
    return [one.plan for one in begun]


def forget(store: str, selector: Selector, plan: Plan) -> None:
    """Do what a plan says, if that is still all there is to do; after a kill, `finish` goes on.

    Args:
        store: the store's folder.
        selector: whom to forget.
        plan: what `look_up` has found for it.

    Raises:
        StoreBusyError: somebody else works on the store, or writes to it.
        StoreError: there is something else to do by now; or the store cannot be written.
    """
    run = RunRecord(
        run_id=uuid.uuid4().hex[:12],
        stage=_STAGE,
        key="",
        inputs={},
        outputs={},
        config={"kind": plan.kind, "sha256": list(plan.shas), "plan": to_plain(plan)},
        counts={"status": _STARTED},
        weights={},
        source_digest="",
        git_commit=git_commit(),
        device="cpu",
        started=tables.now(),
        seconds=0.0,
    )
    journal = _Journal(run, plan)
    with tables.alone(store, journal.name):
        _refuse_writers(store)
        _refuse_changes(store, selector, plan)
        tables.record_run(store, run)
        _carry_out(store, journal)


def _refuse_writers(store: str) -> None:
    """Refuse to begin while somebody seems to write who is not at work on this machine.

    Raises:
        StoreBusyError: a data file is young, and no version names it.
    """
    found = tables.young_file(store, YOUNG_SECONDS)
    if found is not None:
        path, age = found
        raise StoreBusyError(
            f"{path}: was written {age:.0f} s ago, and no version of its table names it: somebody writes, perhaps on "
            "another machine, or was killed just now. Nothing was changed. Stop builds and trainings on this store, "
            f"and run the same command again in {max(YOUNG_SECONDS - age, 1):.0f} s."
        )


def _refuse_changes(store: str, selector: Selector, plan: Plan) -> None:
    """Refuse a plan that was made before others wrote: what came since it does not know, and would leave there.

    Raises:
        StoreError: another one would be made now.
    """
    now = look_up(store, selector)
    if now == plan:
        return
    rows = [f"{sum(one.rows.values())} rows and {len(one.files)} files" for one in (plan, now) if one is not None]
    raise StoreError(
        f"Store {store}: what there is to forget has changed since you were asked (then {rows[0]}, now "
        f"{rows[1] if now is not None else 'nothing'}). Nothing was changed. Run the same command again, and look at "
        "what it names."
    )


def _runs(store: str) -> list[RunRecord]:
    return tables.find_runs(store, f"stage = {tables.quote(_STAGE)}")


def _begun(store: str) -> list[_Journal]:
    begun = [run for run in _runs(store) if run.counts.get("status") == _STARTED]
    return [_read_journal(store, run) for run in begun]


def _read_journal(store: str, run: RunRecord) -> _Journal:
    try:
        return _Journal(run, from_plain(Plan, run.config.get("plan")))
    except ValueError as error:
        raise StoreError(
            f"Store {store}, run {run.run_id}: its plan cannot be read ({error}). Expected what a `csip forget` wrote "
            "down that was not finished; finish it with the CSIP version that began it."
        ) from error


def _carry_out(store: str, journal: _Journal) -> None:
    plan = journal.plan
    doomed = [_doomed_file(store, name) for name in plan.files]  # all are looked at before anything is changed
    for name in _ALL:
        tables.close_table(store, name)
    _delete_rows(store, plan)
    for path in doomed:
        path.unlink(missing_ok=True)
    versions = {name: _rewrite(store, name) for name in _WITH_ROWS}
    _publish_again(store, plan, versions)
    _change_runs(store, journal, versions)
    for name, version in (versions | {"snapshots": _rewrite(store, "snapshots")}).items():
        _purge(store, name, version)
    config = {"kind": plan.kind, "sha256": list(plan.shas)}
    counts = {"status": _DONE, "rows": dict(plan.rows), "files": len(plan.files), "trained": len(plan.trained)}
    tables.record_run(store, replace(journal.run, config=config, counts=counts))
    _end(store)


def _end(store: str) -> None:
    """Remove the versions of `runs` that have the plan, and open the tables; by `runs` they are known to be closed."""
    _purge(store, "runs", _rewrite(store, "runs"))
    for name in reversed(_ALL):
        tables.open_table(store, name)


def _doomed_file(store: str, name: str) -> Path:
    """Give a file that a journal names, which may be forged as all else in a store.

    Raises:
        StoreError: it could be anything but a file in one of the store's folders.
    """
    kind, _, own = name.partition("/")
    return tables.inside(store, kind, own)


def _delete_rows(store: str, plan: Plan) -> None:
    """Take the rows out of the newest versions; detections first, which only the crops tell."""
    doomed = doomed_detections(store, plan.tracklets, plan.videos, tables.find_runs(store, "true"))
    if len(doomed):
        tables.delete_rows(store, "detections", doomed)
    names = pa.table({"tracklet_id": pa.array(plan.tracklets, pa.string())})
    for name in BY_TRACKLET:
        tables.delete_rows(store, name, names)
    for sha in plan.videos:
        row = {"video_sha": sha, "path": "", "bytes": 0, "codec": "", "width": 0, "height": 0, "fps": 0.0}
        row |= {"expected_frames": 0, "num_frames": 0, "duration": 0.0, "status": FORGOTTEN}
        row |= {"reason": "`csip forget` removed it; it is not built from again"}
        held = tables.read(tables.current(store, "videos"), where=f"video_sha = {tables.quote(sha)}").to_pylist()
        if held != [row]:
            tables.upsert(store, "videos", tables.from_rows("videos", [row]))


def _rewrite(store: str, name: str) -> int:
    """Write a table's newest version so that no file of it holds a deleted row, and seal it; give its number."""
    if not tables.compact(tables.current(store, name), (), deleted_share=0.0):
        raise _disturbed(store, name)
    return tables.seal(store, name)


def _disturbed(store: str, name: str) -> StoreError:
    return StoreError(
        f"{table_uri(store, name)}: another process was writing. `csip forget` needs the store for itself: stop builds "
        "and trainings, and run the same command again."
    )


def _publish_again(store: str, plan: Plan, versions: Mapping[str, int]) -> None:
    """Publish every snapshot on versions without the rows."""
    for name, row in published(store).items():
        moved = {table: versions.get(table, version) for table, version in row["tables"].items()}
        videos = [sha for sha in row["videos"] if sha not in plan.videos]
        counts = plan.snapshots.get(name, row["counts"])
        tags = {table: tables.list_tags(store, table).get(tables.snapshot_tag(name), (0,))[0] for table in moved}
        if (moved, videos, counts, tags) != (row["tables"], row["videos"], row["counts"], moved):
            snapshot = Snapshot(name, store, moved, row["digest"])
            tables.publish(snapshot, config=row["config"], counts=counts, videos=videos, created=row["created"])


def _change_runs(store: str, journal: _Journal, versions: Mapping[str, int]) -> None:
    """Take what is personal out of the runs, and let them name the versions that stay, in one commit."""
    scrub = Scrub(journal.plan, versions)
    runs = [run for run in tables.find_runs(store, "true") if run.run_id != journal.run.run_id]
    changed = [new for run, new in zip(runs, map(scrub, runs), strict=True) if new != run]
    if changed:
        tables.record_runs(store, changed)


def _purge(store: str, name: str, newest: int) -> None:
    """Remove all but a table's newest version, whatever tags protect them, and all files that it does not name.

    Raises:
        StoreError: another version came meanwhile, or one was left.
    """
    if tables.current(store, name).version != newest:
        raise _disturbed(store, name)
    for tag, (version, _) in tables.list_tags(store, name).items():
        if version != newest:
            tables.untag(store, name, tag)
    old = [version for version in tables.list_versions(store, name) if version != newest]
    tables.clean_up(store, name, old, dry_run=False, alone=True)
    if list(tables.list_versions(store, name)) != [newest]:
        raise _disturbed(store, name)
