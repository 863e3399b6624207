"""What the store remembers of an extraction: digests that decide rows, videos, and finished passes."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from csip import tables
from csip.config import ExtractConfig, digest, to_plain
from csip.errors import VideoError
from csip.ingest.pose import resolve_weights
from csip.ingest.video import VideoInfo, read_frames
from csip.lineage import git_commit
from csip.tables import RunRecord
from csip.types import Frames, Output, SourceVideo

EXTRACT_VERSION = 1
"""Raise it when a change to this room changes rows; `tests/csip/ingest/test_golden_rows.py` says when."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExtractDigests:
    """What decides a video's rows.

    Attributes:
        detect: of the detection settings, the weights and EXTRACT_VERSION.
        track: of that and the tracking settings.
        weights: file name -> SHA-256.
        weights_path: where the weights lie.
    """

    detect: str
    track: str
    weights: Mapping[str, str]
    weights_path: Path


def extract_digests(config: ExtractConfig) -> ExtractDigests:
    """Digest what decides a video's rows: settings and weights, not device, engine, batch size or paths.

    Raises:
        WeightsError: the pose weights are nowhere to be had.
    """
    path = resolve_weights(config.detect.weights)
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    detect = digest(EXTRACT_VERSION, replace(config.detect, weights=""), sha)
    return ExtractDigests(detect, digest(detect, config.track), {path.name: sha}, path)


def tracklet_prefix(video_sha: str, track_digest: str) -> str:
    """Begin the names of a video's tracklets: the same video and settings give the same on every machine."""
    return digest(video_sha, track_digest)[:12] + "-"


def tracklet_id(video_sha: str, track_digest: str, number: int) -> str:
    """Name a tracklet by video, settings and track number."""
    return f"{tracklet_prefix(video_sha, track_digest)}{number:05d}"


def detect_key(video_sha: str, digests: ExtractDigests) -> str:
    """Key of the run that fills a video's detections."""
    return digest("detect_video", video_sha, digests.detect)


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
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size
    except OSError:
        return nameless


@dataclass(slots=True)
class Pass:
    """One pass over one video: what it is keyed on, and when it began.

    Attributes:
        stage: "detect_video" or "track_video".
        key: equal keys mean equal rows.
        video: the video.
        digests: what decides its rows.
        started: ISO 8601, UTC.
    """

    stage: str
    key: str
    video: SourceVideo
    digests: ExtractDigests
    started: str = field(default_factory=tables.now)
    _begun: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        """Time since the pass began, seconds."""
        return time.monotonic() - self._begun

    def record(self, out: Output, *, config: Any, counts: Any, device: str) -> RunRecord:
        """Say in `runs` that the pass is finished; its rows must all be committed."""
        digests = {"detect_digest": self.digests.detect}
        if self.stage == "track_video":
            digests["track_digest"] = self.digests.track
        run = RunRecord(
            run_id=uuid.uuid4().hex[:12],
            stage=self.stage,
            key=self.key,
            inputs={"video": to_plain(self.video)},
            outputs={"video_sha": self.video.video_sha, **digests},
            config=config,
            counts=counts,
            weights=dict(self.digests.weights),
            source_digest=f"extract-{EXTRACT_VERSION}",
            git_commit=git_commit(),
            device=device,
            started=self.started,
            seconds=round(self.seconds(), 3),
        )
        tables.record_run(out.store, run)
        return run


class FrameReader:
    """Reads a video to where it breaks off; remembers how far it came and why it stopped."""

    def __init__(self, info: VideoInfo, *, batch: int, threads: int) -> None:
        self.info, self.batch, self.threads = info, batch, threads
        self.num_frames = 0
        self.reason = ""

    def __iter__(self) -> Iterator[Frames]:
        """Give the frames in batches.

        Raises:
            VideoError: not one frame could be decoded.
        """
        try:
            for frames in read_frames(self.info.path, batch=self.batch, threads=self.threads):
                self.num_frames += len(frames)
                yield frames
        except VideoError as error:
            if not self.num_frames:
                raise
            self.reason = str(error)
            _LOG.warning("%s", error)
