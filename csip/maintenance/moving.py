"""Snapshots that are kept leave versions that hold other extractions' rows, so that the bytes of these come back.

A snapshot pins whole tables, with whatever else was in them when it was published. When an extraction that no snapshot
shows has left the newest versions, the snapshots that were published beside it are published again, under their names,
on the newest ones, where all of their own rows are the same. Runs that name them name the new versions then, so that no
training is done again. The old versions go as others do: some time after nobody could have them open.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from csip import tables
from csip.maintenance.diff import diff_rows
from csip.maintenance.files import age
from csip.maintenance.keys import shorten
from csip.maintenance.named import snapshots_in
from csip.maintenance.unused import Pair, ended, where_pairs
from csip.plain import digest
from csip.references import is_snapshot
from csip.tables import RunRecord, table_uri
from csip.types import Snapshot, TableRef

_MOVED = ("videos", "detections", "tracklets", "crops", "skeletons")
_Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Newest:
    """What the newest versions will hold when a gc has taken away what nothing needs.

    Attributes:
        staying: extractions and imports whose tracklets they have.
        gone: extractions whose raw detections were given back.
    """

    staying: Collection[Pair]
    gone: Collection[Pair]


def find_moves(
    store: str, rows: Mapping[str, _Row], runs: Sequence[RunRecord], newest: Newest, since: datetime | None
) -> tuple[list[str], list[str]]:
    """Name the snapshots that are to move, and say in sentences which have to stay.

    Args:
        store: the store's folder.
        rows: of the snapshots that are kept.
        runs: all there are.
        newest: what the newest versions will hold.
        since: a snapshot that somebody has published or read later stays; None: nobody else uses the store.
    """
    holding = [name for name, row in rows.items() if _holds(store, row, newest)]
    busy = [name for name in holding if since is not None and _in_use(store, rows[name], runs, since)]
    others = [name for name in holding if name not in busy]
    fixed = [name for name in others if not _can_move(store, rows[name], runs)]
    left = [
        f"{len(names)} snapshots pin versions with rows that no snapshot uses, and {why}: {shorten(names)}."
        for names, why in ((busy, "were in use lately"), (fixed, "have rows that were written again since"))
        if names
    ]
    return [name for name in others if name not in fixed], left


def _holds(store: str, row: _Row, newest: Newest) -> bool:
    """Tell whether the versions that a snapshot pins have rows of extractions that the newest ones will not have."""
    pinned = {name: TableRef(table_uri(store, name), version) for name, version in row["tables"].items()}
    if "tracklets" in pinned:
        for batch in tables.stream(pinned["tracklets"], ["video_sha", "track_digest"]):
            if set(zip(*(batch.column(i).to_pylist() for i in range(2)), strict=True)) - set(newest.staying):
                return True
    return bool(
        newest.gone
        and "detections" in pinned
        and tables.count(pinned["detections"], where_pairs("detections", newest.gone))
    )


def _in_use(store: str, row: _Row, runs: Sequence[RunRecord], since: datetime) -> bool:
    """Tell whether a snapshot was published or read since, or somebody is in the middle of a training."""
    if datetime.fromisoformat(row["created"]) > since:
        return True
    if any(row["name"] in snapshots_in(run.inputs) and ended(run) > since for run in runs):
        return True
    now = datetime.now(since.tzinfo)
    states = () if tables.is_address(store) else Path(store, "checkpoints").glob("*.state")
    return any(age(path, now) < (now - since).total_seconds() for path in states)


def _can_move(store: str, row: _Row, runs: Sequence[RunRecord]) -> bool:
    """Tell whether the newest versions have all of a snapshot's own rows, as it has them.

    A video's row may have changed: it says where the file lay when it was last read.
    """
    found = diff_rows(store, row, {**row, "tables": _newest(store, row)}, runs).tables
    other = sum(some.only_a + some.only_b for some in found.values())
    return not other + sum(some.changed for table, some in found.items() if table != "videos")


def _newest(store: str, row: _Row) -> dict[str, int]:
    pinned = dict(row["tables"])
    return pinned | {name: tables.current(store, name).version for name in _MOVED if name in pinned}


def move(store: str, row: _Row) -> None:
    """Publish a snapshot again on the newest versions, after letting the runs that name it name these.

    A kill in between leaves tags on the new versions before the row names them, which the next gc completes.

    Raises:
        StoreError: the store cannot be written.
    """
    versions, runs = _newest(store, row), tables.find_runs(store, "true")
    moved = [_follow(run, row, versions) for run in runs]
    changed = [new for new, run in zip(moved, runs, strict=True) if new != run]
    if changed:
        tables.record_runs(store, changed)
    snapshot = Snapshot(row["name"], store, versions, row["digest"])
    told = {name: row[name] for name in ("config", "counts", "videos", "created")}
    tables.publish(snapshot, **told)


def _follow(run: RunRecord, row: _Row, versions: Mapping[str, int]) -> RunRecord:
    """Let a run name the new versions of a snapshot; its key, if it was made of what the run read, with them."""
    inputs, outputs = (_renamed(value, row, versions) for value in (run.inputs, run.outputs))
    key = run.key
    if inputs != run.inputs and key == _key(run, run.inputs):
        key = _key(run, inputs)
    return dataclasses.replace(run, inputs=inputs, outputs=outputs, key=key)


def _key(run: RunRecord, inputs: Any) -> str:
    """Make a cached stage's key; see `flows.stage`."""
    return digest(run.stage, {**inputs, **run.config}, run.source_digest)


def _renamed(value: Any, row: _Row, versions: Mapping[str, int]) -> Any:
    if isinstance(value, list):
        return [_renamed(one, row, versions) for one in value]
    if not isinstance(value, Mapping):
        return value
    if is_snapshot(value) and (value["name"], value["tables"]) == (row["name"], row["tables"]):
        return {**value, "tables": dict(versions)}
    return {name: _renamed(one, row, versions) for name, one in value.items()}
