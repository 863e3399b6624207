"""What the store remembers of an extraction: digests that decide rows, videos, and finished passes."""

from __future__ import annotations

import hashlib
import os
import stat
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

from csip import tables
from csip.config import ExtractConfig
from csip.files import digest_file
from csip.ingest.video import VideoInfo
from csip.ingest.yolo import resolve_weights
from csip.plain import digest, to_plain
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
    """Begin the names of a video's tracklets: the same video and settings give the same on every machine."""
    return digest(video_sha, track_digest)[:12] + "-"


def tracklet_id(video_sha: str, track_digest: str, number: int) -> str:
    """Name a tracklet by video, settings and track number."""
    return f"{tracklet_prefix(video_sha, track_digest)}{number:05d}"


def finished_videos(store: str, track_digest: str) -> dict[str, RunRecord]:
    """Map video_sha to the run that extracted it under this digest."""
    runs = tables.find_runs(store, "stage = 'track_video'")
    return {run.outputs["video_sha"]: run for run in runs if run.outputs["track_digest"] == track_digest}


def record_video(store: str, path: Path, info: VideoInfo | None, status: str, reason: str, num_frames: int) -> None:
    """Write a video's row; without `info`, of a file that could not be read, under the digest of what there is."""
    sha, size = (info.sha256, info.bytes) if info else _content(path)
    row = {
        "video_sha": sha,
        "path": os.path.realpath(path).encode(errors="backslashreplace").decode(),
        "bytes": size,
        "codec": info.codec if info else "",
        "width": info.width if info else 0,
        "height": info.height if info else 0,
        "fps": info.fps if info else 0.0,
        "expected_frames": info.announced_frames if info else 0,
        "num_frames": num_frames,
        "duration": info.duration if info else 0.0,
        "status": status,
        "reason": reason,
    }
    tables.upsert(store, "videos", tables.from_rows("videos", [row]))


def _content(path: Path) -> tuple[str, int]:
    """Digest and measure a file that is no video; one that cannot even be read is known by its path."""
    nameless = hashlib.sha256(os.fsencode(path)).hexdigest(), 0
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return nameless  # To open a pipe is to wait for whoever writes to it.
        return digest_file(path), path.stat().st_size
    except OSError:
        return nameless


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
