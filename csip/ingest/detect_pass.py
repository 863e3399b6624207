"""The first pass over a video: every frame through the pose model, into `detections`.

Shapes: N people, J joints.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from csip import tables
from csip.config import DetectConfig, ExtractConfig, RuntimeConfig, to_plain
from csip.ingest.pose import PoseModel
from csip.ingest.records import ExtractDigests, FrameReader, Pass, detect_key, record_video
from csip.ingest.video import VideoInfo
from csip.joints import COCO17
from csip.tables import quote
from csip.types import Output, People, Progress, SourceVideo
from storage_schemas import TABLES


def detect_video(
    video: SourceVideo,
    info: VideoInfo,
    config: ExtractConfig,
    digests: ExtractDigests,
    runtime: RuntimeConfig,
    out: Output,
    models: dict[tuple[int, int], PoseModel],
) -> Iterator[Progress]:
    """Fill `detections` for one video, unless a finished run says that it is filled.

    Args:
        video: which.
        info: what its file says.
        config: the build's settings.
        digests: of them.
        runtime: device, engine, batch.
        out: the store.
        models: loaded models by frame size (height, width); the newest is kept for the next video.
    """
    this = Pass("detect_video", detect_key(video.video_sha, digests), video, digests)
    where = f"video_sha = {quote(video.video_sha)} AND detect_digest = {quote(digests.detect)}"
    known = tables.find_run(out.store, this.key)
    if known is not None and tables.count(tables.current(out.store, "detections"), where) == known.counts["detections"]:
        return
    size = (info.height, info.width)
    if size not in models:
        models.clear()
        models[size] = _load(config.detect, digests, runtime, size)
    model = models[size]
    reader = FrameReader(info, batch=runtime.pose_batch, threads=runtime.decode_threads)
    found: list[tuple[int, float, People]] = []
    model_seconds = 0.0
    for frames in reader:
        before = time.monotonic()
        people = model(frames)
        model_seconds += time.monotonic() - before
        found.extend(zip(frames.frame_index.tolist(), frames.time.tolist(), people, strict=True))
        rate = reader.num_frames / max(this.seconds(), 1e-9)
        yield Progress("detect", reader.num_frames, info.num_frames, "frames", {"frames_per_second": rate})
    rows = detection_rows(video.video_sha, digests.detect, found)
    tables.upsert(out.store, "detections", rows, replace=where)
    status = "partial" if reader.reason else "ok"
    record_video(out.store, info.path, info, status, reader.reason, reader.num_frames)
    counts = {
        "frames": reader.num_frames,
        "detections": len(rows),
        "model_seconds": round(model_seconds, 3),
        "engine": model.engine,
    }
    this.record(out, config=to_plain(config.detect), counts=counts, device=model.device)


def _load(config: DetectConfig, digests: ExtractDigests, runtime: RuntimeConfig, size: tuple[int, int]) -> PoseModel:
    return PoseModel(
        digests.weights_path,
        image_size=config.image_size,
        confidence=config.confidence,
        iou=config.iou,
        max_people=config.max_people,
        device=runtime.device,
        engine=runtime.pose_engine,
        precision=config.precision,
        frame_size=size,
    )


def detection_rows(video_sha: str, detect_digest: str, found: list[tuple[int, float, People]]) -> pa.Table:
    """Lay out (frame_index, seconds, people) as rows of `detections`."""
    count = [len(people) for _, _, people in found]
    n = [np.arange(c, dtype=np.int32) for c in count]
    people = [nobody(), *(people for _, _, people in found)]
    rows = sum(count)
    return pa.table(
        [
            pa.array([video_sha] * rows, pa.string()),
            pa.array([detect_digest] * rows, pa.string()),
            pa.array(np.repeat(np.array([index for index, _, _ in found], np.int64), count)),
            pa.array(np.concatenate([np.zeros(0, np.int32), *n])),
            pa.array(np.repeat(np.array([at for _, at, _ in found], np.float64), count)),
            tables.boxes_column(np.concatenate([p.boxes for p in people])),
            pa.array(np.concatenate([p.score for p in people])),
            tables.keypoints_column(np.concatenate([p.keypoints for p in people])),
        ],
        schema=TABLES["detections"],
    )


def nobody() -> People:
    """Make the record of an empty frame."""
    j = len(COCO17.joints)
    return People(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, j, 3), np.float32))
