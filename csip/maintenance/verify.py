"""Is everything there that a store says it has, and does it fit together? Nothing is changed.

Crops are joined with tracklets and skeletons on numbers made of their keys, 16 bytes a crop; one pass reads each table
of a snapshot, and leaves the pictures alone unless asked to look into them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from csip import tables
from csip.errors import StoreError
from csip.maintenance import keys
from csip.maintenance.files import check_runs, find_leftovers, tell_damage
from csip.maintenance.findings import Finding
from csip.maintenance.forget_traces import FORGOTTEN
from csip.maintenance.frames import check_crops, check_skeletons, check_tracklets
from csip.maintenance.look import Look
from csip.maintenance.newest import check_newest
from csip.maintenance.snapshots import extractions, generations, published
from csip.maintenance.values import odd_boxes, odd_keypoints
from csip.maintenance.vectors import check_vectors
from csip.references import things_in
from csip.tables import table_uri
from csip.types import TableRef

_ROLES = ("train", "query", "gallery")


def verify(store: str, snapshots: Sequence[str] = (), *, deep: bool = False) -> list[Finding]:
    """Look a store over.

    Args:
        store: the store's folder.
        snapshots: look at these only, and at nothing else of the store; empty: at all there is.
        deep: also decode every crop, whether it is a whole picture of its kind.

    Returns:
        What is wrong ("fault"), and what lies about without harm ("leftover").

    Raises:
        StoreError: there is no such store or snapshot.
    """
    files: dict[str, str] = {}
    found = _check_memory(store, files)
    if found:
        return found
    rows = published(store, snapshots)
    runs = tables.find_runs(store, "true")
    told: set[tuple[str, int]] = set()
    for row in rows.values():
        look = Look(store, row, runs, deep, files)
        _check_snapshot(look)
        found += look.found
        faulty = {one.where for one in look.found if one.kind == "fault"}
        told |= {(name, ref.version) for name, ref in look.refs.items() if name in faulty}
    if not snapshots:
        newest = check_newest(store, files, told)
        found += newest.found
        found += check_runs(store, runs, set(rows), files)
        found += check_vectors(store, newest.refs, files, runs, rows)
        found += find_leftovers(store, runs, set(rows), newest.refs)
    return found


def _check_memory(store: str, files: dict[str, str]) -> list[Finding]:
    """Look whether the tables that say what there is are whole: without them nothing more can be told."""
    damaged = {name: tables.damaged_files(tables.current(store, name), files) for name in ("snapshots", "runs")}
    return [Finding("fault", "", name, tell_damage(some)) for name, some in damaged.items() if some]


def _check_snapshot(look: Look) -> None:
    try:
        tables.check_row(look.store, look.row)
    except StoreError as error:
        look.say("snapshots", str(error))
        return
    _open(look)
    if _check(look, "tracklets", check_tracklets):
        _check(look, "crops", check_crops)
        _check(look, "skeletons", check_skeletons)
        _check(look, "splits", _check_splits)
        _check(look, "videos", _check_videos)
        _check(look, "detections", _check_detections)
        _check_counts(look)


def _check(look: Look, name: str, check: Callable[[Look, TableRef], None]) -> bool:
    """Check one table, if the snapshot pins it; False where nothing more can be said of the others."""
    if name not in look.refs or name in look.damaged:
        return False
    try:
        check(look, look.refs[name])
    except StoreError as error:
        look.say(name, str(error))
        return False
    return True


def _open(look: Look) -> None:
    """Find the pinned versions, and whether a tag protects them from clean-up."""
    for name, version in look.row["tables"].items():
        ref = TableRef(table_uri(look.store, name), version)
        try:
            damaged = tables.damaged_files(ref, look.files)
            tag = tables.list_tags(look.store, name).get(tables.snapshot_tag(look.row["name"]))
        except StoreError as error:
            look.say(name, str(error))
            continue
        look.refs[name] = ref
        if damaged:
            look.damaged.add(name)
            look.say(name, tell_damage(damaged))
        if tag is None or tag[0] != version:
            told = "no tag" if tag is None else f"a tag on version {tag[0]}"
            look.say(name, f"found {told}, expected one that protects version {version} from clean-up.")
    for name in ("tracklets", "crops", "skeletons", "splits"):
        if name not in look.row["tables"]:
            look.say(name, "the snapshot names no version of it.")


def _check_splits(look: Look, ref: TableRef) -> None:
    """Check the parts: each names a tracklet, lies inside it, and has frames there."""
    columns = ["protocol", "split", "tracklet_id", "first_frame", "last_frame", "role"]
    rows = tables.read(ref, columns, f"dataset = {tables.quote(look.row['name'])}")
    if not len(rows) and look.row["counts"].get("train_people"):
        people = look.row["counts"]["train_people"]
        look.say("splits", f"found no part, expected those of {people} people to train, and of others.")
    each = list(zip(*(rows[name].to_pylist() for name in columns), strict=True))
    names = [f"{i} frames {a}..{b} ({protocol}, split {split})" for protocol, split, i, a, b, _ in each]
    same = len(each) - len({one[:4] for one in each})
    if same:
        look.say("splits", f"{same} rows have the key of another one.")
    look.say_some(
        "splits",
        [n for n, one in zip(names, each, strict=True) if one[5] not in _ROLES],
        "parts have another role than train, query, gallery",
    )
    number = np.array([look.numbers.find(one[2]) for one in each], np.int64)
    known = (number >= 0) & (number < len(look.tracklets))
    look.say_some("splits", [names[i] for i in np.flatnonzero(~known)], "parts of tracklets that are not there")
    at = number[known]
    begin, end = (np.asarray(rows[name], np.int64)[known] for name in ("first_frame", "last_frame"))
    outside = (begin < look.column("first_frame")[at]) | (end > look.column("last_frame")[at]) | (begin > end)
    left = [name for name, one in zip(names, known, strict=True) if one]
    look.say_some("splits", [left[i] for i in np.flatnonzero(outside)], "parts lie outside of their tracklet")
    frames = np.union1d(look.crops, look.poses)
    lower, upper = (keys.of_frames(at, np.maximum(frame, 0)) for frame in (begin, end))
    inside = np.searchsorted(frames, upper, "right") - np.searchsorted(frames, lower)
    look.say_some("splits", [left[i] for i in np.flatnonzero(~outside & (inside < 1))], "parts have no frames")


def _check_videos(look: Look, ref: TableRef) -> None:
    status: dict[str, str] = {}
    shas = []
    for batch in tables.stream(ref, ["video_sha", "status"]):
        some, told = (batch.column(i).to_pylist() for i in range(2))
        status |= dict(zip(some, told, strict=True))
        shas += some
    if len(shas) != len(set(shas)):
        look.say("videos", f"{len(shas) - len(set(shas))} rows have the key of another one.")
    look.videos = set(shas)
    gone = sorted(set(look.row["videos"]) - set(shas))
    look.say_some("videos", [sha[:12] for sha in gone], "videos of the snapshot are not there")
    gone = sorted(set(look.texts("video_sha")) - set(shas) - {""})
    look.say_some("videos", [sha[:12] for sha in gone], "videos that tracklets name are not there")
    back = sorted(sha for sha in {*look.row["videos"], *look.texts("video_sha")} if status.get(sha) == FORGOTTEN)
    again = "videos were forgotten, and were built from again; run `csip forget --video` on each once more"
    look.say_some("videos", [sha[:12] for sha in back], again)


def _check_detections(look: Look, ref: TableRef) -> None:
    """Check the keys, whether the numbers can be, whose video it is, and how many there are."""
    numbers, parts, boxes, poses = keys.Numbers(), [], [], []
    for batch in tables.stream(ref, ["video_sha", "detect_digest", "frame_index", "n", "box", "keypoints"]):
        parts.append(keys.pack(numbers, batch, ["video_sha", "detect_digest"], ["frame_index", "n"]))
        boxes.append(parts[-1][odd_boxes(batch.column("box"))])
        poses.append(parts[-1][odd_keypoints(batch.column("keypoints"))])
    found = np.sort(keys.join(parts))
    if len(keys.repeated(found)):
        look.say("detections", f"{len(keys.repeated(found))} keys stand in several rows.")
    for odd, text in ((boxes, "boxes that are inverted or not finite"), (poses, "keypoints that are not finite")):
        frame, _ = keys.split_pairs(np.sort(keys.join(odd)))
        number, index = keys.split_frames(frame)
        names = [
            f"video {numbers.names[n][0][:12]} frame {f}" for n, f in zip(number.tolist(), index.tolist(), strict=True)
        ]
        look.say_some("detections", names, f"rows have {text}")
    number, _ = keys.split_frames(keys.split_pairs(found)[0])
    own, counts = np.unique(number, return_counts=True)
    have = dict(zip((numbers.names[n] for n in own.tolist()), counts.tolist(), strict=True))
    strange = {sha for sha, _ in have} - look.videos
    if strange:
        strange -= _videos_of_runs(look)
    look.say_some("detections", [sha[:12] for sha in sorted(strange)], "videos that are not there have rows")
    for sha, run in extractions(look.row, look.runs).items():
        there, expected = have.get((sha, run.outputs["detect_digest"]), 0), run.counts["detections"]
        if there != expected:
            look.say("detections", f"video {sha[:12]}: found {there} rows, expected {expected} (run {run.run_id}).")


def _videos_of_runs(look: Look) -> set[str]:
    """Name the videos that any run read or left: of one that is being built, detections come before its own row."""
    return {one.name for run in look.runs for one in things_in([run.inputs, run.outputs]) if one.kind == "video"}


def _check_counts(look: Look) -> None:
    """Compare rows with what the snapshot and the runs behind it counted."""
    digests = look.texts("track_digest")
    videos = look.texts("video_sha")
    have: dict[tuple[str, str], list[int]] = {}
    for key, frames in zip(zip(videos, digests, strict=True), look.column("num_frames").tolist(), strict=True):
        one = have.setdefault(key, [0, 0])
        one[0], one[1] = one[0] + 1, one[1] + frames
    for sha, run in extractions(look.row, look.runs).items():
        found = have.get((sha, run.outputs["track_digest"]), [0, 0])
        expected = [run.counts["tracklets"], run.counts["crops"]]
        if found != expected:
            look.say("tracklets", f"video {sha[:12]}: {_compare(found, expected)} (run {run.run_id}).")
    own = generations(look.row, look.runs)
    mine = [one for (sha, digest), one in have.items() if digest in own and sha in {"", *look.row["videos"]}]
    counts = look.row["counts"]
    expected = [counts.get("tracklets"), counts.get("crops", counts.get("frames"))]
    found = [sum(one[0] for one in mine), sum(one[1] for one in mine)]
    if None not in expected and found != expected:
        look.say("tracklets", f"the snapshot counted otherwise: {_compare(found, expected)}.")


def _compare(found: Sequence[Any], expected: Sequence[Any]) -> str:
    return f"found {found[0]} tracklets of {found[1]} frames, expected {expected[0]} tracklets of {expected[1]} frames"
