"""Videos to rows: detections, then tracklets, crops and skeletons, a commit each; the store says what is done.

Detection and tracking are two passes over a video. The first (`detect_pass`) costs the pose model and fills
`detections`; the second (`track_pass`) decodes again, at a hundredth of that cost, and can be repeated with other
tracker settings without a GPU.
"""

from __future__ import annotations

import logging
from pathlib import Path

from csip import tables
from csip.config import ExtractConfig, RuntimeConfig
from csip.errors import VideoError
from csip.ingest.detect_pass import detect_video
from csip.ingest.pose import PoseModel
from csip.ingest.records import extract_digests, record_video
from csip.ingest.track_pass import track_video
from csip.ingest.video import probe
from csip.types import ExtractedVideo, Outcome, Output, Progress, SourceVideo, Stage

_LOG = logging.getLogger(__name__)


def extract_videos(
    out: Output, videos: tuple[SourceVideo, ...], config: ExtractConfig, runtime: RuntimeConfig
) -> Stage[tuple[ExtractedVideo, ...]]:
    """Stage `extract_videos`: detect, track and cut out the people of a batch of videos, a commit each.

    A video that cannot be decoded is quarantined with its reason and stops none of the others; one that breaks
    off is kept as far as it goes and recorded as partial.
    """
    digests = extract_digests(config)
    tables.prepare_store(out.store)
    done: list[ExtractedVideo] = []
    names = ("frames", "detections", "tracklets", "crops")
    totals: dict[str, int | float | str] = dict.fromkeys((*names, "failed"), 0)
    models: dict[tuple[int, int], PoseModel] = {}
    for video in videos:
        try:
            info = probe(Path(video.path))
            if info.sha256 != video.video_sha:
                raise VideoError(
                    f"{video.path}: was {video.video_sha[:12]} when it was listed and is {info.sha256[:12]} now. "
                    "Is it still being written? Run the same command again when it is complete."
                )
            yield from detect_video(video, info, config, digests, runtime, out, models)
            run = yield from track_video(video, info, config, digests, runtime, out)
        except VideoError as error:
            record_video(out.store, Path(video.path), None, "quarantined", str(error), 0)
            totals["failed"] = int(totals["failed"]) + 1
            _LOG.warning("Left out: %s", error)
            continue
        done.append(ExtractedVideo(video.video_sha, digests.track, run.run_id))
        for name in names:
            totals[name] = int(totals[name]) + int(run.counts[name])
    yield Progress("extract_videos", len(videos), len(videos), "videos")
    return Outcome(tuple(done), totals, digests.weights)
