"""The files and versions that runs left, whether they are as they were, and what lies about beside them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from csip import tables
from csip.errors import StoreError
from csip.files import digest_file
from csip.maintenance.findings import Finding
from csip.maintenance.keys import shorten
from csip.maintenance.named import named_files, place, references, snapshots_in
from csip.references import FILE, TABLE
from csip.tables import RunRecord, table_uri
from csip.types import TableRef
from storage_schemas import TABLES


def tell_damage(damaged: Mapping[str, str]) -> str:
    """Say what is wrong with data files of a version: name -> what."""
    told = shorten([f"{name} ({why})" for name, why in damaged.items()])
    return f"{len(damaged)} data files cannot be read: {told}. Restore them from a copy, or build into a new store."


def check_runs(store: str, runs: Sequence[RunRecord], known: Collection[str], opened: dict[str, str]) -> list[Finding]:
    """Look whether the table versions and files that runs left are as they were.

    A store may have been moved since: what is not where a run wrote it is looked for by its name in this one.

    Args:
        store: the store's folder.
        runs: all there are.
        known: names of the published snapshots.
        opened: as for `tables.damaged_files`.
    """
    found = []
    versions: dict[TableRef, str] = {}
    hashed: dict[Path, str] = {}
    for run in runs:
        who = f"run {run.run_id} ({run.stage})"
        for one in references(run.outputs, TABLE):
            name = Path(one["uri"]).stem
            ref = TableRef(table_uri(store, name), one["version"])
            if ref not in versions:
                versions[ref] = _damage(ref, opened) if name in TABLES else "CSIP knows no such table."
            if versions[ref]:
                told = f"{name}@{one['version']}, which it left: {versions[ref]}"
                found.append(Finding("fault", "", who, told))
        for one in references(run.outputs, FILE):
            path = find_file(store, one["path"])
            if path not in hashed:
                hashed[path] = _sha(path)
            if hashed[path] != one["sha256"]:
                told = f"SHA-256 {hashed[path][:12]}" if hashed[path] else "no such file"
                found.append(Finding("fault", "", who, f"{path}: found {told}, expected {one['sha256'][:12]}."))
        for name in sorted(set(snapshots_in(run.outputs)) - set(known)):
            found.append(Finding("leftover", "", who, f"the snapshot {name} that it published is not there any more."))
    return found


def _damage(ref: TableRef, opened: dict[str, str]) -> str:
    try:
        damaged = tables.damaged_files(ref, opened)
    except StoreError as error:
        return str(error)
    return tell_damage(damaged) if damaged else ""


def find_file(store: str, path: str) -> Path:
    """Find a file where a run wrote it, or, in a store that was moved, of that folder and name."""
    written = Path(path)
    return written if written.is_file() else tables.known_file(store, path) or written


def _sha(path: Path) -> str:
    return digest_file(path) if path.is_file() else ""


def find_leftovers(
    store: str, runs: Sequence[RunRecord], known: Collection[str], newest: Mapping[str, TableRef]
) -> list[Finding]:
    """List what nothing names: files, rows, tags.

    Args:
        store: the store's folder.
        runs: all there are.
        known: names of the published snapshots.
        newest: table -> its newest version, of those that can be read.
    """
    found = []
    for path, why in unnamed_files(store, runs):
        found.append(Finding("leftover", "", place(path), f"{why}, {path.stat().st_size} bytes."))
    run_ids = {run.run_id for run in runs}
    owners = {"results": ("run_id", run_ids), "metrics": ("run_id", run_ids), "splits": ("dataset", set(known))}
    for table, ref in newest.items():
        try:
            found += _leftover_rows(table, ref, *owners[table]) if table in owners else ()
            stale = sorted(stale_tags(store, table, known))
        except StoreError as error:
            found.append(Finding("fault", "", table, str(error)))
            continue
        if stale:
            text = f"{len(stale)} tags of snapshots that are not published: {shorten(stale)}."
            found.append(Finding("leftover", "", table, text))
    return found


def _leftover_rows(table: str, ref: TableRef, column: str, names: Collection[str]) -> Iterator[Finding]:
    counts = count_by(ref, column)
    strange = sorted(set(counts) - set(names))
    if strange:
        told = "no recorded run" if column == "run_id" else "no published snapshot"
        text = f"{sum(counts[name] for name in strange)} rows of {told}: {shorten(strange)}."
        yield Finding("leftover", "", table, text)


def stale_tags(store: str, table: str, known: Collection[str]) -> dict[str, datetime]:
    """List a table's tags that protect a snapshot which is not published, each with the time when it was set."""
    wanted = {tables.snapshot_tag(name) for name in known}
    tags = tables.list_tags(store, table)
    return {t: at for t, (_, at) in tags.items() if t.startswith(tables.snapshot_tag("")) and t not in wanted}


def count_by(ref: TableRef, column: str) -> dict[str, int]:
    """Count rows by the value of a column."""
    counts: dict[str, int] = {}
    for batch in tables.stream(ref, [column]):
        for pair in batch.column(0).value_counts().to_pylist():
            counts[pair["values"]] = counts.get(pair["values"], 0) + pair["counts"]
    return counts


def unnamed_files(store: str, runs: Sequence[RunRecord]) -> Iterator[tuple[Path, str]]:
    """List the files beside the tables that no run names, with what each is."""
    named = named_files(store, runs)
    for folder in tables.FOLDERS:
        for path in tables.files_in(store, folder):
            if path.suffix == ".part":
                yield path, "a file that was not written to its end"
            elif path.suffix == ".state":
                yield path, "the state of a training that was left"
            elif path not in named:
                yield path, "a file that no run names"


def age(path: Path, now: datetime) -> float:
    """Tell how long ago a file was last written, seconds."""
    return (now - datetime.fromtimestamp(path.stat().st_mtime, UTC)).total_seconds()


def lost_files(
    store: str, runs: Sequence[RunRecord], now: datetime, older_than: timedelta, left: list[str]
) -> list[Path]:
    """List the files beside the tables that can go: unfinished ones and states of trainings, long untouched."""
    lost, finished, young = [], [], []
    for path, _ in unnamed_files(store, runs):
        if path.suffix not in (".part", ".state"):
            finished.append(path)
        elif age(path, now) >= older_than.total_seconds():
            lost.append(path)
        else:
            young.append(path)
    if young:
        left.append(f"{len(young)} unfinished files or states of trainings were written lately.")
    if finished:
        told = shorten([path.name for path in finished])
        left.append(f"{len(finished)} files that no run names, but which are whole: {told}. Remove them by hand.")
    return lost
