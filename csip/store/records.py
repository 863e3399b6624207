"""The store's memory: which stages have run, and which snapshots are published."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import lance

from csip.errors import StoreError
from csip.store.columns import from_rows
from csip.store.committing import commit, refuse_if_closed
from csip.store.paths import is_plain
from csip.store.reading import read
from csip.store.versions import current, exists, quote, table_uri
from csip.store.writing import upsert
from csip.types import Snapshot, TableRef
from storage_schemas import TABLES

_JSON_COLUMNS = ("inputs", "outputs", "config", "counts", "weights")
_ROUNDS = 20
# ASCII: Lance writes a tag of other letters under a name that it does not find again, and lists no tags from then on.
_NAME = re.compile(r"\w[\w.-]{0,199}", re.ASCII)


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One finished stage, as `storage_schemas.runs` has it; JSON columns hold plain values."""

    run_id: str
    stage: str
    key: str
    inputs: Any
    outputs: Any
    config: Any
    counts: Any
    weights: Any
    source_digest: str
    git_commit: str
    device: str
    started: str
    seconds: float


def record_run(store: str, run: RunRecord) -> TableRef:
    """Append a finished stage to the store's memory."""
    return record_runs(store, [run])


def record_runs(store: str, runs: Sequence[RunRecord]) -> TableRef:
    """Write runs in one commit; those that are known by their run_id are written anew."""
    rows = [{name: getattr(run, name) for name in TABLES["runs"].names} for run in runs]
    rows = [row | {name: json.dumps(row[name], sort_keys=True) for name in _JSON_COLUMNS} for row in rows]
    return upsert(store, "runs", from_rows("runs", rows))


def find_runs(store: str, where: str) -> list[RunRecord]:
    """List the runs that meet a condition, oldest first."""
    rows = read(current(store, "runs"), where=where).to_pylist()
    runs = [RunRecord(**(row | {name: json.loads(row[name]) for name in _JSON_COLUMNS})) for row in rows]
    return sorted(runs, key=lambda run: (run.started, run.run_id))


def find_run(store: str, key: str) -> RunRecord | None:
    """Find the newest finished run with this key."""
    runs = find_runs(store, f"key = {quote(key)}")
    return runs[-1] if runs else None


def check_name(name: str) -> None:
    """Check a name that becomes a tag of Lance's and part of file names.

    Raises:
        ValueError: it could lead out of a folder, or Lance takes no such tag.
    """
    if not _NAME.fullmatch(name) or ".." in name or name.endswith((".", ".lock")):
        raise ValueError(
            f"Snapshot {name!r}: expected a name of letters a to z, digits, '_', '-' and single dots, that neither "
            "begins with '-' or a dot nor ends with a dot or '.lock', at most 200 long."
        )


def publish(
    snapshot: Snapshot,
    *,
    config: Any,
    counts: Any,
    videos: Sequence[str],
    created: str = "",
    over: Mapping[str, int] | None = None,
) -> None:
    """Make a snapshot visible, in one commit, after tagging every table version it names against clean-up.

    Where several processes publish one name at once, the last row holds, and the tags are on its versions.

    Args:
        snapshot: its name, digest and table versions.
        config: the sections that made it.
        counts: of what is in it.
        videos: SHA-256 of every video in it.
        created: when it was first published, ISO 8601; empty: now.
        over: the versions that it names now: where it has been dropped or published again since, nothing is published.

    Raises:
        ValueError: the name cannot be a tag and a file name, or a table or version is none.
        StoreError: it cannot be written, or a version is gone.
    """
    check_name(snapshot.name)
    _check_versions(snapshot.name, snapshot.tables)
    for name, version in snapshot.tables.items():
        ref = TableRef(table_uri(snapshot.store, name), version)
        if not exists(ref):
            raise StoreError(f"Snapshot {snapshot.name}: {ref.uri} has no version {version}; build it again.")
    _tag(snapshot, snapshot.tables)
    row = {
        "name": snapshot.name,
        "digest": snapshot.digest,
        "tables": json.dumps(dict(snapshot.tables), sort_keys=True),
        "config": json.dumps(config, sort_keys=True),
        "counts": json.dumps(counts, sort_keys=True),
        "videos": json.dumps(sorted(videos)),
        "created": created or now(),
    }
    still = None if over is None else f"target.tables = {quote(json.dumps(dict(over), sort_keys=True))}"
    upsert(snapshot.store, "snapshots", from_rows("snapshots", [row]), only_over=still)
    tagged = dict(snapshot.tables)
    for _ in range(_ROUNDS):
        held = read_snapshots(current(snapshot.store, "snapshots")).get(snapshot.name, {}).get("tables", tagged)
        if held == tagged:
            return
        _tag(snapshot, held)
        tagged = held
    raise StoreError(
        f"Snapshot {snapshot.name}: other processes publish it again and again. Let one of them finish, and run the "
        "same command again."
    )


def _check_versions(snapshot: str, versions: Mapping[str, Any]) -> None:
    for name, version in versions.items():
        if name not in TABLES or type(version) is not int:
            raise ValueError(
                f"Snapshot {snapshot}: names version {version!r} of a table {name!r}, expected numbers for some of "
                f"{list(TABLES)}."
            )


def _tag(snapshot: Snapshot, versions: Mapping[str, int]) -> None:
    for name, version in versions.items():
        uri = table_uri(snapshot.store, name)
        commit(uri, "a tag", partial(_set_tag, uri, snapshot_tag(snapshot.name), version))


def _set_tag(uri: str, tag: str, version: int) -> None:
    dataset = lance.dataset(uri)
    refuse_if_closed(dataset)
    tags = dataset.tags
    try:
        tags.create(tag, version)
    except ValueError:  # it is there, perhaps since this very moment: another process publishes the same
        try:
            tags.update(tag, version)
        except ValueError as error:
            # Gone again between the two: somebody drops the snapshot. To be tried again, as any conflict.
            raise OSError(f"conflict over the tag {tag}: {error}") from error


def now() -> str:
    """Write the time as tables store it: ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def snapshot_row(store: str, name: str) -> dict[str, Any]:
    """Read a snapshot's row with its JSON columns decoded.

    Raises:
        StoreError: no such snapshot; the message lists those there are.
    """
    rows = read_snapshots(current(store, "snapshots"))
    if name not in rows:
        known = ", ".join(sorted(rows)) or "none"
        raise StoreError(
            f"Store {store}: found no snapshot {name!r}; there are: {known}. "
            "Name one of those, or make one with `csip build-skeletons`."
        )
    return rows[name]


def newest_snapshot(store: str) -> str:
    """Name the snapshot that was published last.

    Raises:
        StoreError: none is, or its row was not written by CSIP.
    """
    rows = list(read_snapshots(current(store, "snapshots")).values())
    if not rows:
        raise StoreError(f"Store {store}: found no snapshot. Publish one with `csip build-skeletons`.")
    check_row(store, rows[-1])
    return str(rows[-1]["name"])


def read_snapshots(ref: TableRef) -> dict[str, dict[str, Any]]:
    """Read a version of `snapshots`: name -> row, its JSON columns decoded, oldest first."""
    columns = ("tables", "config", "counts", "videos")
    rows = [row | {name: json.loads(row[name]) for name in columns} for row in read(ref).to_pylist()]
    return {row["name"]: row for row in sorted(rows, key=lambda row: (row["created"], row["name"]))}


def open_snapshot(store: str, name: str) -> Snapshot:
    """Pin a published snapshot by name.

    Raises:
        StoreError: there is none, or its row was not written by CSIP.
    """
    row = snapshot_row(store, name)
    check_row(store, row)
    return Snapshot(name=name, store=store, tables=row["tables"], digest=row["digest"])


def published_at(row: Mapping[str, Any]) -> datetime:
    """Give the time at which a row of `snapshots` was published.

    Raises:
        ValueError: it tells none, as no row does that CSIP wrote.
    """
    try:
        at = datetime.fromisoformat(row["created"])
    except ValueError:
        at = datetime.min
    if not at.tzinfo:
        raise ValueError(
            f"Snapshot {row['name']}: was published at {row['created']!r}, expected a time with its zone in ISO 8601."
        )
    return at


def check_row(store: str, row: Mapping[str, Any]) -> None:
    """Check what of a row of `snapshots` becomes paths or a time: its name, its tables, its videos, when it was made.

    Raises:
        StoreError: they are such as `publish` does not write.
    """
    name = row["name"]
    try:
        check_name(name)
        _check_versions(name, row["tables"])
        strange = [sha for sha in row["videos"] if not is_plain(str(sha))]
        if strange:
            raise ValueError(f"Snapshot {name}: names the video {strange[0]!r}, expected a SHA-256.")
        published_at(row)
    except ValueError as error:
        raise StoreError(
            f"Store {store}: {error} The row was not written by CSIP; publish it again, or take it away: "
            f"{shlex.join(['csip', 'gc', '--store', store, '--drop', name])}"
        ) from error


def pinned(snapshot: Snapshot, table: str) -> TableRef:
    """Give the version of a table that a snapshot names.

    Raises:
        StoreError: the snapshot names no version of it.
    """
    if table not in snapshot.tables:
        raise StoreError(f"Snapshot {snapshot.name}: names no version of {table}, only of {sorted(snapshot.tables)}.")
    return TableRef(table_uri(snapshot.store, table), snapshot.tables[table])


def snapshot_tag(name: str) -> str:
    """Name the tag that protects the versions of a snapshot."""
    return f"snapshot-{name}"
