"""What snapshots, tags and runs name: table versions, files and data sets that must stay."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from csip import tables
from csip.errors import StoreError
from csip.references import FILE, TABLE, is_snapshot
from csip.tables import RunRecord, table_uri
from csip.types import TableRef
from storage_schemas import TABLES

_LONGEST_HEADER = 100_000_000


def references(value: Any, keys: frozenset[str]) -> Iterator[Mapping[str, Any]]:
    """Find the references with exactly these keys in a run's inputs or outputs."""
    if isinstance(value, Mapping):
        if keys == set(value):
            yield value
        for inner in value.values():
            yield from references(inner, keys)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner, keys)


def snapshots_in(value: Any) -> Iterator[str]:
    """Name the snapshots among a run's inputs or outputs."""
    if is_snapshot(value):
        yield value["name"]
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from snapshots_in(inner)


def versions_of_runs(runs: Sequence[RunRecord]) -> dict[str, set[int]]:
    """List the table versions that runs read or left, but for those of snapshots: table -> versions."""
    named: dict[str, set[int]] = {name: set() for name in TABLES}
    for run in runs:
        for ref in references([run.inputs, run.outputs], TABLE):
            named.setdefault(Path(ref["uri"]).stem, set()).add(ref["version"])
    return named


@dataclass(frozen=True, slots=True)
class Published:
    """What a store published at some time since a given one.

    Attributes:
        rows: of `snapshots`, decoded; those that were replaced in the meantime stand beside the new ones.
    """

    rows: tuple[Mapping[str, Any], ...]

    def names(self) -> set[str]:
        """Name the snapshots."""
        return {row["name"] for row in self.rows}

    def versions(self, table: str) -> set[int]:
        """List the versions of a table that they name."""
        return {row["tables"][table] for row in self.rows if table in row["tables"]}

    def only(self, names: Collection[str]) -> Published:
        """Leave out all but some."""
        return Published(tuple(row for row in self.rows if row["name"] in names))


def published_since(store: str, since: datetime) -> Published:
    """Gather what any version of `snapshots` names that was the newest at `since` or later.

    Whoever opened a snapshot since then may still read it, though it has been dropped or replaced. What was not written
    by CSIP is opened by nobody, and names nothing.
    """
    versions = current_since(tables.list_versions(store, "snapshots"), since)
    refs = [TableRef(table_uri(store, "snapshots"), version) for version in versions]
    rows = (row for ref in refs for row in tables.read_snapshots(ref).values())
    return Published(tuple(row for row in rows if _is_ours(store, row)))


def _is_ours(store: str, row: Mapping[str, Any]) -> bool:
    try:
        tables.check_row(store, row)
    except StoreError:
        return False
    return True


def current_since(versions: Mapping[int, datetime], since: datetime) -> list[int]:
    """List the versions, of those given in ascending order, that were the newest at `since` or later."""
    ended = [*list(versions.values())[1:], None]
    return [version for version, end in zip(versions, ended, strict=True) if end is None or end > since]


@dataclass(frozen=True, slots=True)
class NamedFiles:
    """The files that runs, and trainings that were left, name.

    Attributes:
        paths: as they were written, folder and name: a store may have been moved.
        shas: of their content.
    """

    paths: frozenset[str]
    shas: frozenset[str]

    def __contains__(self, path: Path) -> bool:
        """Tell whether a file is named, by its path or by the SHA-256 that a checkpoint has in its own name."""
        short = path.stem.rpartition("-")[2]
        return place(path) in self.paths or (len(short) == 12 and any(sha.startswith(short) for sha in self.shas))


def kept_checkpoints(run: RunRecord) -> set[str]:
    """Name the checkpoints, by SHA-256, that a training kept beside the one it returned."""
    kept = run.counts.get("kept", {}) if isinstance(run.counts, Mapping) else {}
    return set(kept.values()) if isinstance(kept, Mapping) else set()


def named_files(store: str, runs: Sequence[RunRecord]) -> NamedFiles:
    """Gather the files that runs and states of trainings name."""
    refs = [ref for run in runs for ref in references([run.inputs, run.outputs], FILE)]
    shas = {ref["sha256"] for ref in refs}
    for run in runs:
        shas |= kept_checkpoints(run)
    for state in tables.files_in(store, "checkpoints", "*.state"):
        held = list(references(_state_header(state), FILE))
        refs, shas = refs + held, shas | {ref["sha256"] for ref in held}
    return NamedFiles(frozenset(place(Path(ref["path"])) for ref in refs), frozenset(shas))


def place(path: Path) -> str:
    """Give the path of a file in one of a store's folders from the store: what stays when the store is moved."""
    return f"{path.parent.name}/{path.name}"


def _state_header(path: Path) -> list[Any]:
    """Read what a training's state says of itself (`csip.training.state`); nothing of a file that is none."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if size < _LONGEST_HEADER else {}
        return [json.loads(text) for text in header.get("__metadata__", {}).values()]
    except (OSError, ValueError, AttributeError):
        return []
