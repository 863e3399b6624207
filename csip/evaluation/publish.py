"""Stage `publish`: the tracklets of a build become a data set with a protocol, visible under one name."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from csip import tables
from csip.config import ExtractConfig
from csip.errors import StoreError, TooLittleDataError
from csip.evaluation.protocol import self_labelled_split
from csip.maintenance.forget import forgotten
from csip.maintenance.keys import shorten
from csip.plain import digest, to_plain
from csip.protocols import SELF_LABELLED
from csip.source import source_digest
from csip.tables import RunRecord, quote
from csip.types import ExtractedVideo, IntArray, Outcome, Output, Progress, Snapshot, SourceVideo, Stage, VideoList

_PINNED = ("videos", "detections", "tracklets", "crops", "skeletons", "splits")


def publish(
    out: Output, videos: VideoList, extracted: tuple[tuple[ExtractedVideo, ...], ...], config: ExtractConfig
) -> Stage[Snapshot]:
    """Cut the tracklets of the listed videos into parts, deal them out, and publish all of it as one snapshot.

    The snapshot's name follows from its content: the same videos, cameras and settings give the same name, and a
    snapshot of that name that is published already is given back as it is. Too few people for a protocol publish a
    snapshot without splits, which `train-csip` will refuse.

    Args:
        out: the store.
        videos: of the build.
        extracted: what its extraction left, batch by batch; the store is what counts.
        config: the build's settings.

    Raises:
        TooLittleDataError: not one tracklet was found in any video.
        StoreError: rows were taken away meanwhile; what `csip forget` took before is left out, and counted.
    """
    yield Progress("publish", 0, 1, "snapshots")
    runs = _finished(out.store, videos, extracted)
    left_out = [video for video in videos.videos if video.video_sha not in runs]
    members = [(v.video_sha, v.camera) for v in videos.videos if v.video_sha in runs]
    content = digest(sorted(members), videos.digests.track, config.split, source_digest("csip.evaluation.protocol"))
    name = f"{config.dataset}-{content[:8]}"
    counts = _count(out.store, runs, left_out)
    if not members:
        raise _no_video(left_out, counts)
    if not counts["tracklets"]:
        raise TooLittleDataError(
            f"Found no tracklet in {len(members)} videos ({counts['frames']} frames, {counts['detections']} "
            f"detections, dropped: {counts['dropped']}), expected people in view for at least "
            f"{config.track.min_seconds:g} s. Try a larger detect.image_size, or a lower track.min_seconds."
        )
    known = {row["name"]: row for row in tables.read(tables.current(out.store, "snapshots"), ["digest"]).to_pylist()}
    if name in known and known[name]["digest"] != content:
        raise StoreError(
            f"Store {out.store}: a snapshot {name} of other content is published there already, by a rare accident of "
            "names. Give this data set another name (--set dataset=NAME)."
        )
    if name not in known:
        counts |= _write_splits(out.store, name, dict(members), videos.digests.track, config)
        versions = {table: tables.current(out.store, table).version for table in _PINNED}
        # A gc says that a video is not done before it takes its rows: those that are done now are in these versions.
        if set(_finished(out.store, videos, extracted)) != set(runs):
            raise _lost(out.store, {sha for sha, _ in members} & forgotten(out.store))
        snapshot = Snapshot(name, out.store, versions, content)
        # Settings alone do not say whose rows these are: weights are named by a path, and CSIP itself changes.
        made_by = {"digests": {"detect": videos.digests.detect, "track": videos.digests.track}}
        shas = [sha for sha, _ in members]
        tables.publish(snapshot, config=to_plain(config) | made_by, counts=counts, videos=shas)
    row = tables.snapshot_row(out.store, name)
    yield Progress("publish", 1, 1, "snapshots")
    return Outcome(tables.open_snapshot(out.store, name), row["counts"])


def _finished(store: str, videos: VideoList, extracted: tuple[tuple[ExtractedVideo, ...], ...]) -> dict[str, RunRecord]:
    """Map the video_sha of every listed video that is extracted to the run that did it; no video that is forgotten.

    Raises:
        StoreError: one that was done when the build listed it, or that the build has done, is not done any more.
    """
    gone = forgotten(store)
    wanted = {video.video_sha for video in videos.videos} - gone
    todo = {video.video_sha for batch in videos.batches for video in batch}
    just_now = {one.run_id for batch in extracted for one in batch}
    runs = tables.find_runs(store, "stage = 'track_video'")
    own = [run for run in runs if run.outputs["track_digest"] == videos.digests.track or run.run_id in just_now]
    done = {run.outputs["video_sha"]: run for run in own if run.outputs["video_sha"] in wanted}
    lost = ((wanted - todo) | {one.video_sha for batch in extracted for one in batch}) - gone - set(done)
    if lost:
        raise _lost(store, lost)
    return done


def _lost(store: str, shas: set[str]) -> StoreError:
    return StoreError(
        f"Store {store}: {len(shas)} videos that this build has extracted, or found extracted, are not there any "
        f"more: {shorten([sha[:12] for sha in sorted(shas)])}. `csip gc` or `csip forget` ran meanwhile; run the same "
        "command again."
    )


def _no_video(left_out: list[SourceVideo], counts: dict[str, object]) -> TooLittleDataError:
    if counts["videos_forgotten"] == len(left_out):
        return TooLittleDataError(
            f"All of {len(left_out)} videos were forgotten in this store (`csip forget`), and none is left to build "
            "from. Build them into another store if that is meant."
        )
    return TooLittleDataError(
        f"None of {len(left_out)} videos could be extracted, expected at least one (the first: {left_out[0].path}). "
        "The log of this run, and the table `videos`, say why; `csip check` looks at the files."
    )


def _count(store: str, runs: dict[str, RunRecord], left_out: list[SourceVideo]) -> dict[str, object]:
    behind = _detected(store, runs)
    people: Counter[str] = Counter()
    for run in behind:
        people.update(run.counts.get("left_out", {}))
    dropped: Counter[str] = Counter()
    rules: Counter[str] = Counter()
    for run in runs.values():
        dropped.update(run.counts["dropped"])
        rules.update(run.counts["rules"])
    total = {n: sum(run.counts[n] for run in runs.values()) for n in ("frames", "detections", "tracklets", "crops")}
    weighted = sum(run.counts["keypoint_confidence"] * run.counts["crops"] for run in runs.values())
    return {
        "videos": len(runs),
        "videos_left_out": len(left_out),
        "videos_forgotten": len(forgotten(store) & {video.video_sha for video in left_out}),
        "partial_videos": len({run.outputs["video_sha"] for run in behind if run.counts.get("reason")}),
        **total,
        "people_left_out": dict(sorted(people.items())),
        "keypoint_confidence": round(weighted / max(total["crops"], 1), 4),
        "dropped": dict(sorted(dropped.items())),
        "rules": dict(sorted(rules.items())),
    }


def _detected(store: str, runs: dict[str, RunRecord]) -> list[RunRecord]:
    """List the runs that detected what `runs` tracked, a segment each; two builds at once may have done one twice."""
    wanted = {(sha, run.outputs["detect_digest"]) for sha, run in runs.items()}
    every = tables.find_runs(store, "stage = 'detect_video'")
    mine = [run for run in every if (run.outputs["video_sha"], run.outputs["detect_digest"]) in wanted]
    return list({run.key: run for run in mine}.values())


def _write_splits(
    store: str, name: str, camera_of: dict[str, str], track_digest: str, config: ExtractConfig
) -> dict[str, object]:
    """Write the parts and roles of a snapshot's people; return how many there are of each."""
    camid = {camera: i for i, camera in enumerate(sorted(set(camera_of.values())))}
    where = f"track_digest = {quote(track_digest)}"
    table = tables.read(tables.current(store, "tracklets"), ["video_sha"], where)
    video_of = dict(zip(table["tracklet_id"].to_pylist(), table["video_sha"].to_pylist(), strict=True))
    members = {tracklet: camera_of[sha] for tracklet, sha in video_of.items() if sha in camera_of}
    times = _read_times(store, set(members))
    try:
        split = self_labelled_split(
            [(tracklet, *times[tracklet], camid[camera]) for tracklet, camera in sorted(members.items())], config.split
        )
    except TooLittleDataError as error:
        return {"cameras": len(camid), "train_people": 0, "test_people": 0, "no_protocol": str(error)}
    rows = [
        {
            "dataset": name,
            "protocol": SELF_LABELLED,
            "split": "0",
            "tracklet_id": part.tracklet_id,
            "first_frame": part.first_frame,
            "last_frame": part.last_frame,
            "role": role,
            "group": "",
            "pid": part.pid,
            "camid": part.camid,
            "camera": members[part.tracklet_id],
        }
        for part, role in split.rows
    ]
    tables.upsert(store, "splits", tables.from_rows("splits", rows), replace=f"dataset = {quote(name)}")
    parts = Counter(role for _, role in split.rows)
    return {
        "cameras": len(camid),
        "train_people": split.num_train_people,
        "test_people": split.num_test_people,
        **{f"{role}_parts": parts[role] for role in ("train", "query", "gallery")},
        "left_out_of_protocol": dict(split.left_out),
    }


def _read_times(store: str, tracklets: set[str]) -> dict[str, tuple[IntArray, np.ndarray]]:
    """Read when each crop of the given tracklets was taken: tracklet_id -> frame_index (T,), seconds (T,)."""
    crops = tables.current(store, "crops")
    batches = list(tables.stream_tracklets(crops, tracklets, ["frame_index", "time"]))
    if not batches:
        return {}
    table = pa.Table.from_batches(batches).sort_by([(name, "ascending") for name in ("tracklet_id", "frame_index")])
    frame = np.asarray(table["frame_index"], dtype=np.int64)
    seconds = np.asarray(table["time"], dtype=np.float64)
    runs = pc.run_end_encode(table["tracklet_id"].combine_chunks())
    ends = np.asarray(runs.run_ends)
    spans = zip(runs.values.to_pylist(), np.concatenate([[0], ends[:-1]]), ends, strict=True)
    return {name: (frame[a:b], seconds[a:b]) for name, a, b in spans}
