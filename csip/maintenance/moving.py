"""Snapshots that are kept leave versions that hold other extractions' rows, so that the bytes of these come back.

A snapshot pins whole tables, with whatever else was in them when it was published. When an extraction that no snapshot
shows has left the newest versions, the snapshots that were published beside it are published again, under their names,
on the newest ones, where all of their own rows are the same. Runs that name them name the new versions then, so that no
training is done again. The old versions go as others do: some time after nobody could have them open.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from csip import tables
from csip.errors import StoreError
from csip.maintenance.diff import diff_rows
from csip.maintenance.files import age, tell_damage
from csip.maintenance.keys import shorten
from csip.maintenance.named import snapshots_in
from csip.maintenance.snapshots import published
from csip.maintenance.unused import Pair, ended, where_pairs
from csip.plain import digest
from csip.references import is_snapshot
from csip.tables import RunRecord, table_uri
from csip.types import Snapshot, TableRef

_MOVED = ("videos", "detections", "tracklets", "crops", "skeletons")
_Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Remaining:
    """What the newest versions will hold when a gc has taken away what nothing needs.

    Attributes:
        staying: extractions and imports whose tracklets they have.
        gone: extractions whose raw detections were given back.
    """

    staying: Set[Pair]
    gone: Set[Pair]


def find_moves(
    store: str, rows: Mapping[str, _Row], runs: Sequence[RunRecord], newest: Remaining, since: datetime | None
) -> tuple[list[str], list[str]]:
    """Name the snapshots that are to move, and say in sentences which have to stay.

    Args:
        store: the store's folder.
        rows: of the snapshots that are kept.
        runs: all there are.
        newest: what the newest versions will hold.
        since: a snapshot that somebody has published or read later stays; None: nobody else uses the store.
    """
    moves: list[str] = []
    stay: dict[str, list[str]] = {}
    for name, row in rows.items():
        try:
            if _holds(store, row, newest):
                why = _obstacle(store, row, runs, since)
                stay.setdefault(why, []).append(name) if why else moves.append(name)
        except StoreError:
            stay.setdefault("cannot be read, see `csip verify`", []).append(name)
    told = "{} snapshots pin versions that may have rows which no snapshot uses, and {}: {}."
    return moves, [told.format(len(names), why, shorten(names)) for why, names in stay.items()]


def _holds(store: str, row: _Row, newest: Remaining) -> bool:
    """Tell whether the versions that a snapshot pins have rows of extractions that the newest ones will not have."""
    pinned = {name: TableRef(table_uri(store, name), version) for name, version in row["tables"].items()}
    for name in {"tracklets", "detections"} & set(pinned):
        damaged = tables.damaged_files(pinned[name], {})
        if damaged:
            raise StoreError(f"Snapshot {row['name']}: {name}: {tell_damage(damaged)}")
    if "tracklets" in pinned:
        for batch in tables.stream(pinned["tracklets"], ["video_sha", "track_digest"]):
            if set(zip(*(batch.column(i).to_pylist() for i in range(2)), strict=True)) - newest.staying:
                return True
    if not newest.gone or "detections" not in pinned:
        return False
    return tables.count(pinned["detections"], where_pairs("detections", newest.gone)) > 0


def _obstacle(store: str, row: _Row, runs: Sequence[RunRecord], since: datetime | None) -> str:
    """Say why a snapshot has to stay where it is; empty where it may move."""
    if since is not None and _in_use(store, row, runs, since):
        return "were in use lately"
    return "" if _can_move(store, row, runs) else "have rows that were written again since"


def _in_use(store: str, row: _Row, runs: Sequence[RunRecord], since: datetime) -> bool:
    """Tell whether a snapshot was published or read since, or somebody is in the middle of a training."""
    if tables.published_at(row) > since:
        return True
    if any(row["name"] in snapshots_in(run.inputs) and ended(run) > since for run in runs):
        return True
    now = datetime.now(since.tzinfo)
    states = tables.files_in(store, "checkpoints", "*.state")
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


def move(store: str, row: _Row) -> bool:
    """Publish a snapshot again on the newest versions, after letting the runs that name it name these.

    A kill in between leaves tags on the new versions before the row names them, which the next gc completes.

    Returns:
        Whether it has moved: a snapshot that others have dropped or published again in the meantime is left to them.

    Raises:
        StoreError: the store cannot be written.
    """
    if published(store).get(row["name"]) != row:
        return False
    versions, runs = _newest(store, row), tables.find_runs(store, "true")
    moved = [_follow(run, row, versions) for run in runs]
    changed = [new for new, run in zip(moved, runs, strict=True) if new != run]
    if changed:
        tables.record_runs(store, changed)
    snapshot = Snapshot(row["name"], store, versions, row["digest"])
    told = {name: row[name] for name in ("config", "counts", "videos", "created")}
    tables.publish(snapshot, **told, over=row["tables"])
    return bool(published(store).get(row["name"], {}).get("tables") == versions)


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
