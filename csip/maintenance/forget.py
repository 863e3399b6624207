"""`csip forget`: take a person's, tracklet's or video's rows out of every version of every table, for good.

To be run while nothing else writes to the store. A version that a snapshot, tag or run names is made anew without the
rows, and they then name the new one; every other old version goes, and every file that nothing names. Until it is
done, `forget.json` in the store's folder says how far it came; run again, it goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from csip import tables
from csip.errors import StoreError
from csip.lineage import FILE, TABLE
from csip.maintenance.named import references, snapshots_in, versions_of_runs
from csip.protocols import SELF_LABELLED
from csip.tables import RunRecord, quote, table_uri
from csip.types import Snapshot, TableRef
from storage_schemas import TABLES

_BY_TRACKLET = ("tracklets", "crops", "skeletons", "splits", "frame_features", "embeddings")
_COLUMNS = {name: ["tracklet_id"] for name in _BY_TRACKLET} | {
    "videos": ["video_sha", "status"],
    "detections": ["video_sha", "frame_index", "box"],
}
FORGOTTEN = "forgotten"


@dataclass(slots=True)
class Forgotten:
    """What is to be forgotten, and how far that came; kept in the journal until it is done.

    Attributes:
        run_id: of the row in `runs` that will say that it happened.
        kind: "pid", "tracklet" or "video".
        tracklets: ids.
        videos: digests.
        boxes: video -> [frame, box in hexadecimal] of the detections that go.
        counts: table -> rows of the kept versions that go, each row once a version.
        files: that show the person, by their path from the store.
        trained: checkpoints of trainings on a snapshot with the rows: they cannot forget, train again.
        snapshots: name -> tracklets and frames that it had of them.
        newest: table -> its newest version before.
        moved: table -> {version: the one that takes its place}.
        done: tables that are made anew.
        notes: what the user should know.
    """

    run_id: str
    kind: str
    tracklets: list[str]
    videos: list[str]
    boxes: dict[str, list[list[Any]]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    trained: list[str] = field(default_factory=list)
    snapshots: dict[str, list[int]] = field(default_factory=dict)
    newest: dict[str, int] = field(default_factory=dict)
    moved: dict[str, dict[str, int]] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def forgotten(store: str) -> frozenset[str]:
    """List the digests of the videos that were forgotten and must not be built again."""
    where = f"status = {quote(FORGOTTEN)}"
    return frozenset(tables.read(tables.current(store, "videos"), [], where)["video_sha"].to_pylist())


def plan(
    store: str, *, pid: int | None = None, snapshot: str = "", ids: Sequence[str] = (), videos: Sequence[str] = ()
) -> Forgotten:
    """Find what is to be forgotten; nothing is changed. One that was begun and killed comes before anything new.

    Raises:
        StoreError: nothing goes by that name, or the store lies in object storage.
    """
    journal = tables.folder(store, tables.FORGETTING)
    if journal.is_file():
        left = Forgotten(**json.loads(journal.read_text()))
        left.notes = ["An earlier forget did not end; this completes it. Run the command again for what it asks."]
        return left
    if pid is not None:
        kind, found, shas, notes = "pid", *_of_pid(store, pid, snapshot)
    elif ids:
        kind, found, shas, notes = "tracklet", sorted(set(ids)), [], []
    else:
        kind, shas, notes = "video", sorted({_sha_of(store, one) for one in videos}), []
        found = _tracklets_of(store, shas)
    work = Forgotten(uuid.uuid4().hex[:12], kind, found, shas, notes=notes)
    work.newest = {name: tables.current(store, name).version for name in _COLUMNS}
    if kind != "video":
        work.boxes = _boxes_of(store, work)
    for name in _COLUMNS:
        here = sum(_count(TableRef(table_uri(store, name), v), name, work) for v in _versions(store, name))
        if here:
            work.counts[name] = here
    if (
        not work.counts.get("tracklets")
        and not work.counts.get("videos")
        and kind != "pid"
        and not any(work.counts.get(name) for name in _BY_TRACKLET)
    ):
        raise StoreError(f"Store {store}: holds no row of this {kind}; look at its name with `csip lineage`.")
    _what_shows_them(store, work)
    return work


def forget(store: str, work: Forgotten) -> int:
    """Forget what `plan` found; bytes that are free again."""
    _save(store, work)
    for name in _COLUMNS:
        if name not in work.done:
            _make_anew(store, name, work)
            work.done.append(name)
            _save(store, work)
    if work.videos:
        _leave_tombstones(store, work.videos)
    _repin(store, work)
    _rename_in_runs(store, work)
    for file in work.files:
        (Path(store) / file).unlink(missing_ok=True)
    _remember(store, work)
    freed = sum(_erase(store, name) for name in TABLES)
    tables.folder(store, tables.FORGETTING).unlink()
    return freed


def _of_pid(store: str, pid: int, snapshot: str) -> tuple[list[str], list[str], list[str]]:
    opened = tables.open_snapshot(store, snapshot)
    where = f"dataset = {quote(snapshot)} AND pid = {pid}"
    rows = tables.read(tables.pinned(opened, "splits"), ["protocol"], where)
    found = set(rows["tracklet_id"].to_pylist())
    if not found:
        raise StoreError(f"Store {store}: the snapshot {snapshot} has no person {pid}; see its table `splits`.")
    told = "On a self-labelled snapshot a pid is provisional: a tracklet's number, so the person may have others."
    return sorted(found), [], [told] if SELF_LABELLED in rows["protocol"].to_pylist() else []


def _sha_of(store: str, one: str) -> str:
    path = Path(one)
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    rows = tables.read(tables.current(store, "videos"), ["path"]).to_pylist()
    found = {r["video_sha"] for r in rows if r["path"] == one or (len(one) >= 6 and r["video_sha"].startswith(one))}
    if len(found) != 1:
        raise StoreError(f"Store {store}: {one!r} names {len(found)} videos, expected one, by its path or SHA-256.")
    return str(found.pop())


def _versions(store: str, name: str) -> list[int]:
    """List the versions of a table that something names, and the newest, ascending."""
    named = set(versions_of_runs(tables.find_runs(store, "true")).get(name, ()))
    named |= {version for version, _ in tables.list_tags(store, name).values()}
    rows = tables.read_snapshots(tables.current(store, "snapshots")).values()
    named |= {row["tables"][name] for row in rows if name in row["tables"]}
    there = tables.list_versions(store, name)
    return sorted({*(named & set(there)), max(there)})


def _tracklets_of(store: str, shas: Sequence[str]) -> list[str]:
    where = f"video_sha IN ({', '.join(map(quote, shas))})"
    refs = [TableRef(table_uri(store, "tracklets"), version) for version in _versions(store, "tracklets")]
    return sorted({one for ref in refs for one in tables.read(ref, [], where)["tracklet_id"].to_pylist()})


def _boxes_of(store: str, work: Forgotten) -> dict[str, list[list[Any]]]:
    """Find the detections that became the tracklets' crops: same video, frame and box."""
    where = f"tracklet_id IN ({', '.join(map(quote, work.tracklets))})"
    owner: dict[str, str] = {}
    for version in _versions(store, "tracklets"):
        rows = tables.read(TableRef(table_uri(store, "tracklets"), version), ["video_sha"], where)
        owner |= dict(zip(rows["tracklet_id"].to_pylist(), rows["video_sha"].to_pylist(), strict=True))
    found: dict[str, set[tuple[int, str]]] = {}
    for version in _versions(store, "crops"):
        rows = tables.read(TableRef(table_uri(store, "crops"), version), ["box"], where)
        boxes: Sequence[Any] = list(tables.boxes_array(rows["box"])) if len(rows) else []
        pairs = zip(rows["tracklet_id"].to_pylist(), rows["frame_index"].to_pylist(), boxes, strict=True)
        for tracklet, frame, box in pairs:
            if owner.get(tracklet):
                found.setdefault(owner[tracklet], set()).add((frame, box.tobytes().hex()))
    return {sha: [list(one) for one in sorted(some)] for sha, some in found.items()}


def _doomed(name: str, work: Forgotten) -> Any:
    """Say of a batch's N rows which are to go: (N,) bool."""
    shas, ids = set(work.videos), pa.array(work.tracklets, pa.string())
    boxes = {sha: {(frame, box) for frame, box in some} for sha, some in work.boxes.items()}

    def by_tracklet(batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        return np.asarray(pc.is_in(batch.column("tracklet_id"), value_set=ids))

    def by_video(batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        pairs = zip(batch.column("video_sha").to_pylist(), batch.column("status").to_pylist(), strict=True)
        return np.array([sha in shas and status != FORGOTTEN for sha, status in pairs], np.bool_)

    def by_box(batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        out = np.zeros(batch.num_rows, np.bool_)
        names = batch.column("video_sha").to_pylist()
        for i, sha in enumerate(names):
            if sha in shas:
                out[i] = True
            elif sha in boxes:
                box = np.asarray(batch.column("box")[i].as_py(), np.float32).tobytes().hex()
                out[i] = (batch.column("frame_index")[i].as_py(), box) in boxes[sha]
        return out

    return {"videos": by_video, "detections": by_box}.get(name, by_tracklet)


def _count(ref: TableRef, name: str, work: Forgotten) -> int:
    doomed = _doomed(name, work)
    return sum(int(doomed(batch).sum()) for batch in tables.stream(ref, _COLUMNS[name]))


def _what_shows_them(store: str, work: Forgotten) -> None:
    """Find the snapshots that have them, the files that show them, and the checkpoints that saw them."""
    rows = tables.read_snapshots(tables.current(store, "snapshots"))
    ids = f"tracklet_id IN ({', '.join(map(quote, work.tracklets))})"
    for name, row in rows.items():
        ref = TableRef(table_uri(store, "tracklets"), row["tables"]["tracklets"])
        own = tables.read(ref, ["num_frames"], ids)["num_frames"].to_pylist() if work.tracklets else []
        if own or set(work.videos) & set(row["videos"]):
            work.snapshots[name] = [len(own), sum(own)]
    told = [one.encode() for one in (*work.tracklets, *work.videos)]
    for path in sorted(path for path in Path(store).rglob("*") if path.is_file() and not path.is_symlink()):
        inside = path.relative_to(store)
        if inside.parts[0].endswith(".lance") or path.suffix == ".safetensors":
            continue
        shown = inside.parts[0] == "reports" and any(path.name.startswith(f"{name}-") for name in work.snapshots)
        if shown or (path.suffix == ".state" and work.snapshots) or any(one in path.read_bytes() for one in told):
            work.files.append(inside.as_posix())
    for run in tables.find_runs(store, "true"):
        if set(snapshots_in(run.inputs)) & set(work.snapshots):
            paths = [one["path"] for one in references(run.outputs, FILE)]
            work.trained += [p for p in paths if p.endswith(".safetensors") and p not in work.trained]


def _make_anew(store: str, name: str, work: Forgotten) -> None:
    """Make each kept version of a table anew that has the rows, and the newest one last."""
    moved, newest = work.moved.setdefault(name, {}), work.newest[name]
    begun = False
    for version in sorted({*_versions(store, name), newest}):
        known = str(version) in moved or version in moved.values() or version > newest
        if known or (version != newest and not _count(TableRef(table_uri(store, name), version), name, work)):
            continue
        begun = begun or version != newest
        now = tables.current(store, name).version
        if version == newest == now and not _count(TableRef(table_uri(store, name), version), name, work):
            continue
        moved[str(version)] = tables.rewrite_without(store, name, version, _COLUMNS[name], _doomed(name, work))
        _save(store, work)


def _leave_tombstones(store: str, shas: Sequence[str]) -> None:
    empty = {f.name: "" if pa.types.is_string(f.type) else 0 for f in TABLES["videos"]}
    rows = [empty | {"video_sha": sha, "status": FORGOTTEN} for sha in shas]
    tables.upsert(store, "videos", tables.from_rows("videos", rows))


def _repin(store: str, work: Forgotten) -> None:
    """Let snapshots and tags name the new versions, with counts that hold."""
    rows = tables.read_snapshots(tables.current(store, "snapshots"))
    changed = []
    for name, row in rows.items():
        versions = {t: work.moved.get(t, {}).get(str(v), v) for t, v in row["tables"].items()}
        note = row["counts"].get("forgotten", [])
        if name in work.snapshots and work.run_id not in [one["run"] for one in note]:
            tracklets, frames = work.snapshots[name]
            gone = {"tracklets": tracklets, "crops": frames, "frames": 0 if "crops" in row["counts"] else frames}
            gone["videos"] = len(set(work.videos) & set(row["videos"]))
            row["counts"] |= {k: row["counts"][k] - n for k, n in gone.items() if isinstance(row["counts"].get(k), int)}
            row["counts"]["forgotten"] = [
                *note,
                {"run": work.run_id, "date": tables.now()[:10], "tracklets": tracklets},
            ]
        row |= {"tables": versions, "videos": [sha for sha in row["videos"] if sha not in work.videos]}
        # The versions exist already: whoever reads a row finds them, protected or not, since nothing is erased yet.
        tables.tag_snapshot(Snapshot(name, store, versions, row["digest"]), versions)
        told = {k: json.dumps(row[k], sort_keys=True) for k in ("tables", "config", "counts", "videos")}
        changed.append(row | told)
    tables.upsert(store, "snapshots", tables.from_rows("snapshots", changed))


def _rename_in_runs(store: str, work: Forgotten) -> None:
    """Let runs name the new versions; take the video's path and the numbers of its rows out of them."""
    for run in tables.find_runs(store, "true"):
        new = replace(run, inputs=_renamed(run.inputs, work), outputs=_renamed(run.outputs, work))
        new = _recounted(store, new, work)
        if new != run:
            tables.record_run(store, new)


def _renamed(value: Any, work: Forgotten) -> Any:
    if isinstance(value, list):
        return [_renamed(one, work) for one in value]
    if not isinstance(value, Mapping):
        return value
    if set(value) == TABLE:
        moved = work.moved.get(Path(value["uri"]).stem, {})
        return {**value, "version": moved.get(str(value["version"]), value["version"])}
    if set(value) == FILE and any(str(value["path"]).endswith(f"/{one}") for one in work.files):
        return {**value, "sha256": ""}  # no such file, and none expected
    new = {key: _renamed(one, work) for key, one in value.items()}
    if {"name", "tables", "digest"} <= set(new):
        new["tables"] = {t: work.moved.get(t, {}).get(str(v), v) for t, v in new["tables"].items()}
    if new.get("video_sha") in work.videos:
        new |= {key: "" for key in ("path", "name", "camera") if isinstance(new.get(key), str)}
    return new


def _recounted(store: str, run: RunRecord, work: Forgotten) -> RunRecord:
    """Give a finished pass the counts of the rows that it still has."""
    sha = run.outputs.get("video_sha") if isinstance(run.outputs, Mapping) else None
    if run.stage not in ("track_video", "detect_video") or sha not in {*work.videos, *work.boxes}:
        return run
    counts = dict(run.counts)
    if run.stage == "track_video":
        where = f"video_sha = {quote(sha)} AND track_digest = {quote(run.outputs['track_digest'])}"
        left = tables.read(tables.current(store, "tracklets"), ["num_frames"], where)["num_frames"].to_pylist()
        counts |= {"tracklets": len(left), "crops": sum(left)}
    if run.stage == "track_video" and "detections" in counts:
        where = f"video_sha = {quote(sha)} AND detect_digest = {quote(run.outputs['detect_digest'])}"
        counts["detections"] = tables.count(tables.current(store, "detections"), where)
    return replace(run, counts=counts)


def _remember(store: str, work: Forgotten) -> None:
    digests = [hashlib.sha256(one.encode()).hexdigest() for one in (*work.tracklets, *work.videos)]
    counts = {"rows": work.counts, "files": len(work.files), "trained": len(work.trained)}
    rest: dict[str, Any] = {
        "key": work.run_id,
        "outputs": {},
        "config": {},
        "weights": {},
        "source_digest": "",
        "git_commit": "",
    }
    inputs = {"kind": work.kind, "digests": digests}
    values: dict[str, Any] = {
        "stage": "forget",
        "inputs": inputs,
        "counts": counts,
        "device": "",
        "started": tables.now(),
        **rest,
    }
    tables.record_run(store, RunRecord(run_id=work.run_id, seconds=0.0, **values))


def _erase(store: str, name: str) -> int:
    if name not in _COLUMNS:
        # Rewritten rows leave what they were in the files.
        newest = tables.current(store, name).version
        if name in ("snapshots", "runs"):
            tables.rewrite_without(store, name, newest, [], lambda batch: np.zeros(batch.num_rows, np.bool_))
            tables.compact(tables.current(store, name), (), deletions=0.0)
    return tables.erase_versions(store, name, _versions(store, name))


def _save(store: str, work: Forgotten) -> None:
    path = tables.folder(store, tables.FORGETTING)
    part = path.with_suffix(".part")
    with part.open("w") as file:
        json.dump({name: getattr(work, name) for name in work.__slots__}, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
