"""Where a person or a video shows: detections, snapshots, runs and files.

`gone` are the tracklets that go, by name: their video_sha, track_digest, num_frames and pid.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from csip import tables
from csip.errors import StoreError
from csip.maintenance.keys import shorten
from csip.maintenance.named import kept_checkpoints, place, references, snapshots_in
from csip.maintenance.snapshots import generations
from csip.references import FILE, extraction_name, once_each, things_in
from csip.tables import RunRecord, any_of, quote, table_uri
from csip.types import TableRef

BY_TRACKLET = ("embeddings", "frame_features", "skeletons", "crops", "splits", "tracklets")
"""The tables of a person's rows, dependants first."""
FORGOTTEN = "forgotten"
"""The status of a video that must not come back, and how counts call who has gone."""
Tracklets = Mapping[str, Mapping[str, Any]]
Box = tuple[float, ...]
Boxes = dict[tuple[str, str, int], set[Box]]


def forgotten(store: str) -> frozenset[str]:
    """Name the videos, by SHA-256, that were forgotten and must not be built from again."""
    rows = tables.read(tables.current(store, "videos"), ["status"], f"status = {quote(FORGOTTEN)}")
    return frozenset(rows["video_sha"].to_pylist())


def tracklet_rows(store: str, known: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Read all tracklets there are, now or in a published version: tracklet_id -> row."""
    versions = {row["tables"]["tracklets"] for row in known.values() if "tracklets" in row["tables"]}
    newest = tables.current(store, "tracklets")
    columns = ["video_sha", "track_digest", "num_frames", "pid"]
    refs = [TableRef(newest.uri, one) for one in sorted(versions - {newest.version})]
    return {row["tracklet_id"]: row for ref in (*refs, newest) for row in tables.read(ref, columns).to_pylist()}


def unfinished_rows(store: str, videos: Sequence[str], runs: Sequence[RunRecord]) -> dict[str, dict[str, Any]]:
    """Find tracklets of some videos by the rows that depend on them, as `tracklet_rows` gives them.

    A build writes crops and skeletons before the tracklets, and before a run says so; if it was killed, nothing but
    their names tells whose they are. Any extraction may be theirs that a run names, be it of another video.
    """
    things = [thing for run in runs for thing in things_in([run.inputs, run.outputs]) if thing.kind == "video"]
    digests = {str(thing.facts["track_digest"]) for thing in things if "track_digest" in thing.facts}
    begun = {extraction_name(sha, one): (sha, one) for sha in videos for one in digests}
    where = " OR ".join(f"starts_with(tracklet_id, {quote(f'{name}-')})" for name in sorted(begun))
    out: dict[str, dict[str, Any]] = {}
    for table in BY_TRACKLET if begun else ():
        for batch in tables.stream(tables.current(store, table), ["tracklet_id"], where):
            for name in set(batch.column(0).to_pylist()):
                sha, one = begun[name.rpartition("-")[0]]
                out[name] = {"tracklet_id": name, "video_sha": sha, "track_digest": one, "num_frames": 0, "pid": None}
    return out


def doomed_detections(
    store: str, chosen: Collection[str], videos: Sequence[str], runs: Sequence[RunRecord], rows: Tracklets | None = None
) -> pa.Table:
    """Find the detections behind some tracklets' crops, and all of some videos; (M,) keys of `detections`.

    Beside the boxes that became crops these are such as lie over them and became nobody else's: weak ones, which the
    tracker passed over, show the person too.

    Args:
        store: the store's folder.
        chosen: the tracklets.
        videos: SHA-256 of the videos.
        runs: all there are; they say which detections a tracklet was made from.
        rows: of `tracklets`; None: those of the newest version.
    """
    rows = tracklet_rows(store, {}) if rows is None else rows
    made = [run.outputs for run in runs if run.stage in ("track_video", "track_segment")]
    source = {(one["video_sha"], one["track_digest"]): one["detect_digest"] for one in made}
    behind = {name: (one["video_sha"], one["track_digest"]) for name, one in rows.items()}
    pairs = {name: (pair[0], source[pair]) for name, pair in behind.items() if pair in source}
    mine = _boxes(store, {name: pair for name, pair in pairs.items() if name in chosen})
    theirs = _boxes(store, {n: p for n, p in pairs.items() if n not in chosen and p in {key[:2] for key in mine}})
    shas = sorted({*videos, *(key[0] for key in mine)})
    found = []
    columns = ["video_sha", "detect_digest", "frame_index", "n"]
    where = any_of("video_sha", shas)
    for batch in tables.stream(tables.current(store, "detections"), [*columns, "box"], where) if shas else ():
        each = zip(*(batch.column(i).to_pylist() for i in (0, 1, 2, 4)), strict=True)
        doomed = [sha in videos or _shows(tuple(box), (sha, by, frame), mine, theirs) for sha, by, frame, box in each]
        found.append(batch.select(columns).filter(pa.array(doomed, pa.bool_())))
    schema = pa.schema([tables.TABLES["detections"].field(name) for name in columns])
    return pa.concat_tables([schema.empty_table(), *(pa.Table.from_batches([one]).cast(schema) for one in found)])


def _boxes(store: str, pairs: Mapping[str, tuple[str, str]]) -> Boxes:
    """Read the boxes of some tracklets' crops: video, detect_digest, frame_index -> boxes."""
    out: Boxes = {}
    crops = tables.current(store, "crops")
    for batch in tables.stream_tracklets(crops, pairs, ["frame_index", "box"]) if pairs else ():
        for name, frame, box in zip(*(batch.column(i).to_pylist() for i in range(3)), strict=True):
            out.setdefault((*pairs[name], frame), set()).add(tuple(box))
    return out


def _shows(box: Box, at: tuple[str, str, int], mine: Boxes, theirs: Boxes) -> bool:
    return box not in theirs.get(at, ()) and any(_same(box, one) for one in mine.get(at, ()))


def _same(a: Box, b: Box) -> bool:
    """Tell whether two boxes lie over each other by half or more, intersection over union, or are one."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(wide, 0.0) * max(high, 0.0)
    return a == b or 2 * both >= sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - both > 0


def snapshots_with(
    store: str, known: Mapping[str, Any], runs: Sequence[RunRecord], gone: Tracklets, videos: Sequence[str]
) -> list[str]:
    """Name the snapshots that show some tracklets or videos."""
    out = []
    for name, row in known.items():
        parts = set(read_parts(store, row)["tracklet_id"].to_pylist())
        if own_tracklets(row, runs, gone) or parts & set(gone) or set(videos) & set(row["videos"]):
            out.append(name)
    return out


def dropped_with(
    runs: Sequence[RunRecord], known: Collection[str], gone: Tracklets, videos: Sequence[str]
) -> list[str]:
    """Name the snapshots that are published no more and that may have shown some tracklets or videos.

    Their rows cannot be looked at any more; runs tell which data set or videos they were of.
    """
    shas = {*videos, *(row["video_sha"] for row in gone.values())} - {""}
    digests = {row["track_digest"] for row in gone.values()}
    out = set()
    for run in runs:
        things = list(once_each(things_in([run.inputs, run.outputs])))
        of_videos = {thing.name for thing in things if thing.kind == "video"} & shas
        for one in (thing for thing in things if thing.kind == "snapshot" and thing.name not in known):
            if one.facts["digest"] in digests or (of_videos and run.stage == "publish"):
                out.add(one.name)
    return sorted(out)


def own_tracklets(row: Mapping[str, Any], runs: Sequence[RunRecord], gone: Tracklets) -> Tracklets:
    """Give those of some tracklets that a snapshot publishes."""
    mine, videos = generations(row, runs), {"", *row["videos"]}
    return {n: one for n, one in gone.items() if one["track_digest"] in mine and one["video_sha"] in videos}


def read_parts(store: str, row: Mapping[str, Any]) -> pa.Table:
    """Read a snapshot's own rows of `splits`."""
    if "splits" not in row["tables"]:
        return tables.TABLES["splits"].empty_table()
    ref = TableRef(table_uri(store, "splits"), row["tables"]["splits"])
    return tables.read(ref, ["pid", "role"], f"dataset = {quote(row['name'])}")


def paths_of(store: str, videos: Sequence[str], runs: Sequence[RunRecord]) -> tuple[str, ...]:
    """List where some videos lay whenever they were read."""
    if not videos:
        return ()
    table = tables.read(tables.current(store, "videos"), ["path"])
    out = {p for sha, p in zip(*(table[n].to_pylist() for n in ("video_sha", "path")), strict=True) if sha in videos}
    for run in runs:
        out |= {one for sha, some in video_paths([run.inputs, run.outputs]).items() if sha in videos for one in some}
    return tuple(sorted(out - {""}))


def video_paths(value: Any) -> dict[str, set[str]]:
    """List where the videos lay that a run's inputs or outputs name: video_sha -> paths."""
    out: dict[str, set[str]] = {}
    if isinstance(value, Mapping) and {"video_sha", "path"} <= set(value):
        out[value["video_sha"]] = {value["path"]}
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for one in inner:
        for sha, paths in video_paths(one).items():
            out.setdefault(sha, set()).update(paths)
    return out


def files_of(
    store: str, runs: Sequence[RunRecord], had: Collection[str]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """List the files that show what some snapshots had, those that learned from it, and what cannot be told.

    Raises:
        StoreError: there are such files, and nobody says in which folder.
    """
    root = tables.home(store)
    shown: set[Path] = set()
    trained: set[Path] = set()
    users = [run for run in runs if set(snapshots_in(run.inputs)) & set(had)]
    if root is None:
        _refuse_files(store, sorted({one["path"] for run in users for one in references(run.outputs, FILE)}))
    if root is None or not had:
        return (), (), ()
    short = {sha[:12] for run in users for sha in kept_checkpoints(run)}
    trained |= {p for p in tables.files_in(store, "checkpoints", "*-*") if p.stem.rpartition("-")[2] in short}
    for run in users:
        for one in references(run.outputs, FILE):
            path = tables.known_file(store, one["path"])
            if path is not None:
                (trained if path.suffix == ".safetensors" else shown).add(path)
    trained |= set(tables.files_in(store, "checkpoints", "*.state"))
    # Links too: one that leads out of the store is said, since what it shows stays.
    pages = [p for p in tables.folder(store, "reports").glob("*") if p.is_file()]
    pages = [p for p in pages if p.suffix in (".part", ".npz") or p.stem.rpartition("-")[0] in had]
    shown |= {tables.inside(store, "reports", page.name) for page in pages}
    exports = sorted(path.name for path in root.glob("*.npz"))
    notes = [f"Exported rankings may hold this person: {shorten(exports)}. Remove them by hand."] if exports else []
    told = [tuple(sorted(map(place, some))) for some in (shown, trained)]
    return told[0], told[1], tuple(notes)


def _refuse_files(store: str, paths: Sequence[str]) -> None:
    if paths:
        raise StoreError(
            f"Store {store}: {len(paths)} files that runs have written may show whom to forget, or have learned "
            f"from them: {shorten(paths)}. They are not in object storage, and CSIP_FILES is not set. Set it to the "
            "folder that it named when they were written, and run the same command again; nothing was changed."
        )
