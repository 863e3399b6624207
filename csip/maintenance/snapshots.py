"""What a store publishes, and which rows of the pinned tables are a snapshot's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from csip import tables
from csip.errors import StoreError
from csip.tables import RunRecord, quote
from csip.types import Snapshot

_File = tuple[str, str]
"""A table and the name of one of its data files."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A published snapshot.

    Attributes:
        name: what a user calls it.
        created: ISO 8601, UTC.
        digest: of what decides its rows.
        protocols: protocol -> how many splits it has.
        counts: what it was published with.
        tables: table -> pinned version.
        bytes: of the data files that its versions name.
        own_bytes: of those that no other snapshot names.
        problem: why its tables cannot be read; empty where they can.
    """

    name: str
    created: str
    digest: str
    protocols: Mapping[str, int]
    counts: Mapping[str, Any]
    tables: Mapping[str, int]
    bytes: int = 0
    own_bytes: int = 0
    problem: str = ""


def published(store: str, names: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Read the rows of all published snapshots, or of those that are named: name -> row, oldest first.

    Raises:
        StoreError: there is no such store or snapshot; the message lists those there are.
    """
    for name in names:
        tables.snapshot_row(store, name)
    rows = tables.read_snapshots(tables.current(store, "snapshots"))
    return {name: row for name, row in rows.items() if not names or name in names}


def list_snapshots(store: str) -> tuple[list[Listed], int]:
    """List what a store publishes, oldest first, and count the bytes of the data files that all of it names.

    Raises:
        StoreError: there is no such store.
    """
    found = [_listed(store, row) for row in published(store).values()]
    sizes = {file: size for _, files in found for file, size in files.items()}
    users = Counter(file for _, files in found for file in files)
    listed = [
        replace(
            one,
            bytes=sum(files.values()),
            own_bytes=sum(size for file, size in files.items() if users[file] == 1),
        )
        for one, files in found
    ]
    return listed, sum(sizes.values())


def _listed(store: str, row: Mapping[str, Any]) -> tuple[Listed, dict[_File, int]]:
    protocols: dict[str, int] = {}
    files: dict[_File, int] = {}
    problem = ""
    try:
        tables.check_row(store, row)
        snapshot = Snapshot(row["name"], store, row["tables"], row["digest"])
        for name in row["tables"]:
            extent = tables.extent(tables.pinned(snapshot, name))
            files.update({(name, path): size for path, size in extent.files.items()})
        where = f"dataset = {quote(row['name'])}"
        splits = tables.read(tables.pinned(snapshot, "splits"), ["protocol", "split"], where)
        pairs = set(zip(splits["protocol"].to_pylist(), splits["split"].to_pylist(), strict=True))
        protocols = {name: sum(one == name for one, _ in pairs) for name in sorted({name for name, _ in pairs})}
    except StoreError as error:
        problem = str(error)
    told = {name: row[name] for name in ("name", "created", "digest", "counts", "tables")}
    return Listed(**told, protocols=protocols, problem=problem), files


def recorded_digests(row: Mapping[str, Any]) -> dict[str, str]:
    """Give the digests "detect" and "track" of a snapshot's extraction, as `publish` has recorded them.

    Empty for benchmarks, and for what was published before they were recorded.
    """
    return dict(row["config"].get("digests", {}))


def extractions(row: Mapping[str, Any], runs: Sequence[RunRecord]) -> dict[str, RunRecord]:
    """Map each video of a snapshot to the finished run that gave it its tracklets."""
    return {run.outputs["video_sha"]: run for run in possible_extractions(row, runs)}


def possible_extractions(row: Mapping[str, Any], runs: Sequence[RunRecord]) -> list[RunRecord]:
    """List the finished runs that may have given a snapshot its tracklets, of each video the likeliest last.

    They are those of the recorded digests. Where none are recorded, they are those of the same settings that came
    before: under other weights at the same path, or another EXTRACT_VERSION, there may be several of one video.
    """
    videos = set(row["videos"])
    mine = [run for run in runs if run.stage == "track_video" and run.outputs["video_sha"] in videos]
    earlier = [run for run in mine if run.started <= row["created"]]
    digests = recorded_digests(row)
    if digests:
        # Later ones too: another machine's clock may be ahead.
        return [run for run in (*mine, *earlier) if run.outputs["track_digest"] == digests["track"]]
    # The same weights may have lain elsewhere when the video was extracted; the same place says more, if it is there.
    found = [run for run in earlier if _settings(run.config, path=False) == _settings(row["config"], path=False)]
    exact = [run for run in earlier if _settings(run.config, path=True) == _settings(row["config"], path=True)]
    return [*found, *exact]


def _settings(config: Any, *, path: bool) -> Any:
    known = config if isinstance(config, Mapping) else {}
    detect = dict(known.get("detect") or {})
    return [detect if path else detect | {"weights": ""}, known.get("track")]


def generations(row: Mapping[str, Any], runs: Sequence[RunRecord]) -> set[str]:
    """List the track digests of a snapshot's own tracklets."""
    digests = recorded_digests(row)
    own = {digests["track"]} if digests else {run.outputs["track_digest"] for run in extractions(row, runs).values()}
    return {row["digest"], *own}
