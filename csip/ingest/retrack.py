"""Tracking the videos of a published snapshot again, from the detections that are in the store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from csip import tables
from csip.config import DetectConfig, ExtractConfig, RuntimeConfig
from csip.errors import SourceError
from csip.ingest.known_files import look_at
from csip.ingest.sources import list_to_do
from csip.maintenance.snapshots import extractions
from csip.plain import digest, from_plain
from csip.types import ExtractDigests, Outcome, Output, Progress, SourceVideo, Stage, VideoList

WHERE_NOW = (
    "Where videos were moved, build from where they lie now, with the settings of the snapshot (`csip build-skeletons "
    "PLACE`): that extracts nothing again and takes note of the place. Then run the same command again."
)
"""What to do where files have gone."""


def with_detections_of(store: str, snapshot: str, config: ExtractConfig) -> ExtractConfig:
    """Give the settings with the section `detect` of a snapshot: what was detected with others is not there.

    Raises:
        SourceError: the snapshot is not of videos.
        StoreError: there is no such snapshot.
    """
    row = tables.snapshot_row(store, snapshot)
    if not row["videos"]:
        raise SourceError(
            f"Snapshot {snapshot}: is of a benchmark, which brings its own tracklets, expected one of videos. "
            "`csip snapshots` lists what there is."
        )
    return replace(config, detect=from_plain(DetectConfig, row["config"]["detect"]))


def list_snapshot(out: Output, snapshot: str, config: ExtractConfig, runtime: RuntimeConfig) -> Stage[VideoList]:
    """Stage `list_snapshot`: list the videos of a published snapshot, to be tracked again under other settings.

    Neither the pose model nor its weights are needed; the video files are, since crops are cut out of them.

    Args:
        out: the store.
        snapshot: its name.
        config: the settings to track with; `detect` is the snapshot's own, see `with_detections_of`.
        runtime: how videos are batched.

    Raises:
        SourceError: the run that published the snapshot is not recorded, or none of its videos is where it was.
        StoreError: there is no such snapshot.
    """
    yield Progress("list_snapshot", 0, 1, "snapshots")
    row = tables.snapshot_row(out.store, snapshot)
    runs = tables.find_runs(out.store, "stage IN ('track_video', 'publish')")
    publishers = [run for run in runs if run.stage == "publish" and run.outputs["name"] == snapshot]
    made = extractions(row, runs)
    if not publishers or set(made) != set(row["videos"]):
        raise SourceError(
            f"Snapshot {snapshot}: found {len(publishers)} runs that published it and {len(made)} that extracted its "
            f"{len(row['videos'])} videos, expected all of them. Build from the videos themselves: what was detected "
            "is not detected again."
        )
    published: list[SourceVideo] = [
        from_plain(SourceVideo, video) for video in publishers[-1].inputs["videos"]["videos"]
    ]
    known = tables.read(tables.current(out.store, "videos"), ["path"])
    path_of = dict(zip(known["video_sha"].to_pylist(), known["path"].to_pylist(), strict=True))
    videos = tuple(
        replace(video, path=path_of.get(video.video_sha, video.path)) for video in published if video.video_sha in made
    )
    gone = [video.path for video in videos if look_at(Path(video.path)) is None]
    if len(gone) == len(videos):
        raise SourceError(
            f"Snapshot {snapshot}: found none of its {len(videos)} video files where they were last read, such as "
            f"{gone[0]}; crops are cut out of them. {WHERE_NOW}"
        )
    first = made[videos[0].video_sha]
    detect = first.outputs["detect_digest"]
    digests = ExtractDigests(detect, digest(detect, config.track), first.weights, weights_path="")
    listed, counts = list_to_do(out.store, videos, digests, runtime)
    yield Progress("list_snapshot", 1, 1, "snapshots")
    return Outcome(listed, counts, digests.weights)
