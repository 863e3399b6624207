"""What `csip forget` has to do for a person or a video, settled before anything is changed.

A plan is all that is needed to go on after a kill, when the rows that told whom a selector means are gone already.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from csip import tables
from csip.errors import StoreError
from csip.files import digest_file
from csip.maintenance.diff import diff_rows
from csip.maintenance.forget_counts import Gone, run_counts, snapshot_counts
from csip.maintenance.forget_traces import (
    BY_TRACKLET,
    Tracklets,
    doomed_detections,
    dropped_with,
    files_of,
    paths_of,
    read_parts,
    snapshots_with,
    tracklet_rows,
    unfinished_rows,
    video_paths,
)
from csip.maintenance.keys import shorten
from csip.maintenance.snapshots import published
from csip.plain import digest
from csip.protocols import SELF_LABELLED
from csip.tables import RunRecord

_PINNED = ("tracklets", "crops", "skeletons", "splits")
_SHORTEST = 6
Kind = Literal["pid", "tracklet", "video"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """Whom to forget: the person of a pid in a snapshot, tracklets, or a video."""

    kind: Kind
    names: tuple[str, ...]
    snapshot: str = ""
    pid: int = 0

    @classmethod
    def of_person(cls, snapshot: str, pid: int) -> Selector:
        """Select all tracklets of a person, as a snapshot numbers people."""
        return cls(kind="pid", names=(f"{snapshot} {pid}",), snapshot=snapshot, pid=pid)

    @classmethod
    def of_tracklets(cls, names: Sequence[str]) -> Selector:
        """Select tracklets by name."""
        return cls(kind="tracklet", names=tuple(sorted(set(names))))

    @classmethod
    def of_video(cls, store: str, name: str) -> Selector:
        """Select a video by its file, the path it had, or its SHA-256 or the start of it.

        Raises:
            StoreError: the store has no such video, or several.
        """
        return cls(kind="video", names=(_find_video(store, name),))

    @property
    def shas(self) -> tuple[str, ...]:
        """Digest the names: what stays of them."""
        return tuple(digest("forget", self.kind, name) for name in self.names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that there is to do.

    Attributes:
        kind: of selector.
        shas: its SHA-256; several where several tracklets were named.
        tracklets: whose rows go.
        videos: SHA-256 of videos of which all goes.
        paths: that these videos had.
        rows: table -> rows that go.
        files: that show the person, by their path from the store.
        trained: checkpoints and states of trainings that learned from the person; they stay.
        snapshots: name -> its new counts, of those that had the person.
        runs: run_id -> its new counts.
        notes: sentences that the user must know.
    """

    kind: Kind
    shas: tuple[str, ...]
    tracklets: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    rows: Mapping[str, int] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()
    snapshots: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    runs: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def make_plan(store: str, selector: Selector) -> Plan:
    """Find all that shows the selected person or video.

    Raises:
        StoreError: there is nobody of that name, or a snapshot would lose other rows, too.
    """
    known, runs = published(store), tables.find_runs(store, "true")
    _check_movable(store, known, runs)
    videos = selector.names if selector.kind == "video" else ()
    rows = unfinished_rows(store, videos, runs) | tracklet_rows(store, known)
    chosen = _choose(store, selector, rows)
    counts = {name: _count(store, name, chosen) for name in BY_TRACKLET}
    boxes = doomed_detections(store, chosen, videos, runs, rows)
    counts |= {"detections": len(boxes), "videos": len(videos)}
    gone = Gone(
        tracklets={name: rows[name] for name in chosen if name in rows},
        frames=_frames_of(store, chosen),
        videos=videos,
        detections=_by_pass(boxes),
    )
    had = snapshots_with(store, known, runs, gone.tracklets, videos)
    changed = {name: snapshot_counts(store, known[name], runs, gone) for name in had}
    files, trained, notes = files_of(store, runs, [*had, *dropped_with(runs, known, gone.tracklets, videos)])
    return Plan(
        kind=selector.kind,
        shas=selector.shas,
        tracklets=tuple(sorted(chosen)),
        videos=tuple(videos),
        paths=paths_of(store, videos, runs),
        rows={name: number for name, number in counts.items() if number},
        files=files,
        trained=trained,
        snapshots=changed,
        runs=run_counts(runs, gone),
        notes=(*_notes(store, selector, known, gone.tracklets), *notes),
    )


def _find_video(store: str, name: str) -> str:
    """Find a video among those that have a row, and those that have none yet: a build was killed before their end."""
    table = tables.read(tables.current(store, "videos"), ["path"])
    known: dict[str, str] = dict(zip(table["video_sha"].to_pylist(), table["path"].to_pylist(), strict=True))
    paths = {one: {path} for one, path in known.items()}
    for run in tables.find_runs(store, "true"):
        for one, some in video_paths([run.inputs, run.outputs]).items():
            if one not in known:
                paths.setdefault(one, set()).update(some)
    sha = digest_file(Path(name)) if Path(name).is_file() else name
    places = {name, str(Path(name).absolute())} - {""}
    found = [one for one, some in paths.items() if one == sha or some & places]
    if not found and len(sha) >= _SHORTEST:
        found = [one for one in paths if one.startswith(sha)]
    if len(found) != 1:
        told = shorten([f"{one[:12]} {min(some)}".strip() for one, some in sorted(paths.items())]) or "none"
        raise StoreError(
            f"Store {store}: {name!r} names {len(found)} videos, expected one of {len(paths)}: {told}. Name a file, "
            "the path it had, or its SHA-256 or the beginning of that."
        )
    return found[0]


def _choose(store: str, selector: Selector, rows: Tracklets) -> set[str]:
    """Name the tracklets that a selector means."""
    if selector.kind == "tracklet":
        strange = sorted(set(selector.names) - set(rows))
        if strange:
            raise StoreError(
                f"Store {store}: found no tracklet {', '.join(strange)}; there are {len(rows)}: "
                f"{shorten(sorted(rows)) or 'none'}. `csip diff` and the report of an evaluation name them."
            )
        return set(selector.names)
    if selector.kind == "video":
        return {name for name, row in rows.items() if row["video_sha"] in selector.names}
    row = tables.snapshot_row(store, selector.snapshot)
    parts = read_parts(store, row)
    named = list(zip(*(parts[name].to_pylist() for name in ("tracklet_id", "pid")), strict=True))
    found = {name for name, pid in named if pid == selector.pid}
    people = {pid for _, pid in named}
    if SELF_LABELLED not in parts["protocol"].to_pylist():
        # Also those of the person's tracklets that no protocol uses.
        own = {n: one["pid"] for n, one in rows.items() if one["track_digest"] == row["digest"]}
        found |= {name for name, pid in own.items() if pid == selector.pid}
        people |= {pid for pid in own.values() if pid is not None}
    if not found:
        told = shorten([str(pid) for pid in sorted(people)], 10) or "none"
        raise StoreError(
            f"Snapshot {selector.snapshot}: found nobody with pid {selector.pid} among {len(people)} people: {told}."
        )
    return found


def _check_movable(store: str, known: Mapping[str, Mapping[str, Any]], runs: Sequence[RunRecord]) -> None:
    """Check that the newest versions still have all rows of every snapshot, as they were published.

    Raises:
        StoreError: they have not: the snapshot could not be published without the versions that have to go; or its row
            was not written by CSIP.
    """
    for name, row in known.items():
        tables.check_row(store, row)  # it will be published again, which must not fail half-way
        moved = {table: tables.current(store, table).version for table in row["tables"]}
        if moved == row["tables"]:
            continue
        found = diff_rows(store, row, dict(row) | {"tables": moved}, runs)
        lost = [table for table in _PINNED if table in found.tables]
        lost = [table for table in lost if found.tables[table].only_a + found.tables[table].changed]
        if lost:
            raise StoreError(
                f"Snapshot {name}: its rows of {', '.join(lost)} were written again since it was published, so that "
                f"it cannot do without the old versions, which `csip forget` has to remove. Nothing was changed. Drop "
                f"it first (`csip gc --drop {name} --force`), and build it again afterwards."
            )


def _count(store: str, name: str, tracklets: Collection[str]) -> int:
    return sum(len(some) for some in tables.stream_tracklets(tables.current(store, name), tracklets, []))


def _frames_of(store: str, tracklets: Collection[str]) -> dict[str, list[int]]:
    """Read which frames have a crop of each tracklet, ascending."""
    out: dict[str, list[int]] = {}
    for batch in tables.stream_tracklets(tables.current(store, "crops"), tracklets, ["frame_index"]):
        for name, frame in zip(*(batch.column(i).to_pylist() for i in range(2)), strict=True):
            out.setdefault(name, []).append(frame)
    return {name: sorted(frames) for name, frames in out.items()}


def _by_pass(boxes: pa.Table) -> dict[tuple[str, str], list[int]]:
    """Sort keys of detections by what made them: video_sha, detect_digest -> frames, ascending."""
    out: dict[tuple[str, str], list[int]] = {}
    for sha, by, frame in zip(
        *(boxes[n].to_pylist() for n in ("video_sha", "detect_digest", "frame_index")), strict=True
    ):
        out.setdefault((sha, by), []).append(frame)
    return {pair: sorted(frames) for pair, frames in out.items()}


def _notes(store: str, selector: Selector, known: Mapping[str, Any], gone: Tracklets) -> list[str]:
    out = []
    if selector.kind == "pid":
        parts = read_parts(store, known[selector.snapshot])
        if SELF_LABELLED in parts["protocol"].to_pylist():
            out.append(
                "The people of a self-labelled snapshot are provisional: a pid is one tracklet, and the same person "
                "may have others. Look at the pictures, and name those with --tracklet."
            )
    if selector.kind != "video" and any(row["video_sha"] for row in gone.values()):
        out.append(
            "The video files still show this person: a build with other settings finds them again. Cut them out of "
            "the files, or forget the videos (--video)."
        )
    return out
