"""What the store remembers of an extraction: digests that decide rows, and finished passes."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

from csip import tables
from csip.config import ExtractConfig
from csip.ingest.yolo import resolve_weights
from csip.plain import digest, to_plain
from csip.references import extraction_name
from csip.source import git_commit
from csip.tables import RunRecord
from csip.types import ExtractDigests, Output, SourceVideo
from csip.weights import digest_weights

EXTRACT_VERSION = 3
"""Raise it when a change to this room changes rows; `tests/csip/ingest/test_golden_rows.py` says when."""


def extract_digests(config: ExtractConfig) -> ExtractDigests:
    """Digest what decides a video's rows: settings and weights, not device, engine, batch size or paths.

    Raises:
        WeightsError: the pose weights are nowhere to be had.
    """
    path = resolve_weights(config.detect.weights)
    sha = digest_weights(path)
    detect = digest(EXTRACT_VERSION, replace(config.detect, weights=""), sha)
    return ExtractDigests(detect, digest(detect, config.track), {path.name: sha}, str(path))


def tracklet_prefix(video_sha: str, track_digest: str) -> str:
    """Begin the names of a video's tracklets."""
    return extraction_name(video_sha, track_digest) + "-"


def tracklet_id(video_sha: str, track_digest: str, number: int) -> str:
    """Name a tracklet by video, settings and track number."""
    return f"{tracklet_prefix(video_sha, track_digest)}{number:05d}"


def finished_videos(store: str, track_digest: str) -> dict[str, RunRecord]:
    """Map video_sha to the run that extracted it under this digest."""
    runs = tables.find_runs(store, "stage = 'track_video'")
    return {run.outputs["video_sha"]: run for run in runs if run.outputs["track_digest"] == track_digest}


def finished_ever(store: str) -> frozenset[str]:
    """Name the videos, by SHA-256, that were extracted under any digest."""
    return frozenset(run.outputs["video_sha"] for run in tables.find_runs(store, "stage = 'track_video'"))


def record_pass(
    out: Output,
    stage: str,
    key: str,
    video: SourceVideo,
    digests: ExtractDigests,
    *,
    config: Any,
    counts: Any,
    device: str,
    started: str,
    seconds: float,
) -> RunRecord:
    """Say in `runs` that a pass over a segment of a video is finished; its rows must all be committed.

    Args:
        out: the store.
        stage: "detect_video"; "track_segment", or "track_video" for the last segment, which finishes the video.
        key: equal keys mean equal rows.
        video: which.
        digests: what decides its rows.
        config: the sections that the pass read.
        counts: what it made.
        device: where it ran.
        started: ISO 8601, UTC.
        seconds: that it took.
    """
    outputs = {"video_sha": video.video_sha, "detect_digest": digests.detect}
    if stage != "detect_video":
        outputs["track_digest"] = digests.track
    run = RunRecord(
        run_id=uuid.uuid4().hex[:12],
        stage=stage,
        key=key,
        inputs={"video": to_plain(video)},
        outputs=outputs,
        config=config,
        counts=counts,
        weights=dict(digests.weights),
        source_digest=f"extract-{EXTRACT_VERSION}",
        git_commit=git_commit(),
        device=device,
        started=started,
        seconds=round(seconds, 3),
    )
    tables.record_run(out.store, run)
    return run
