"""The second pass over a video: its detections to tracklets, and the tracklets' crops and skeletons.

Shapes: H W pixels of a frame, N rows, J joints.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from csip import tables
from csip.config import ExtractConfig, RuntimeConfig, digest, to_plain
from csip.errors import StoreError, VideoError
from csip.extractors import describe_extractor
from csip.ingest.cut import encode_crop
from csip.ingest.detect_pass import nobody
from csip.ingest.records import ExtractDigests, FrameReader, Pass, detect_key, tracklet_id, tracklet_prefix
from csip.ingest.track import TrackResult, build_tracklets
from csip.ingest.video import VideoInfo
from csip.joints import COCO17
from csip.tables import RunRecord, quote
from csip.types import Output, People, Progress, SourceVideo, Tracklet
from storage_schemas import TABLES

_COMMIT_CROPS = 4_000
_DECODE_BATCH = 16


def track_video(
    video: SourceVideo,
    info: VideoInfo,
    config: ExtractConfig,
    digests: ExtractDigests,
    runtime: RuntimeConfig,
    out: Output,
) -> Generator[Progress, None, RunRecord]:
    """Fill `crops`, `skeletons` and `tracklets` for one video, in this order; return the run that says so.

    Raises:
        VideoError: the second reading of the file gave other frames than the first.
        StoreError: the video's detections are not in the store.
    """
    this = Pass("track_video", digest("track_video", video.video_sha, digests.track), video, digests)
    known = tables.find_run(out.store, this.key)
    if known is not None:
        return known  # another build has done it since this one listed its videos
    detected = tables.find_run(out.store, detect_key(video.video_sha, digests))
    if detected is None:
        raise StoreError(f"Store {out.store}: found no detections of {video.path}. Run the detection pass first.")
    result = track_detections(out.store, video.video_sha, info.fps, int(detected.counts["frames"]), config, digests)
    # Rows of a run that was killed half-way, perhaps on another device, must not mix with these.
    leftover = f"starts_with(tracklet_id, {quote(tracklet_prefix(video.video_sha, digests.track))})"
    for name in ("crops", "skeletons"):
        tables.delete(out.store, name, leftover)
    times: dict[int, float] = {}
    crops = 0
    for step in _cut(info, result, config.track.jpeg_quality, runtime.decode_threads, times):
        if isinstance(step, Progress):
            yield step
        else:
            tables.upsert(out.store, "crops", step)
            crops += len(step)
    boxes = sum(len(tracklet) for tracklet in result.tracklets)
    if crops != boxes:
        raise VideoError(
            f"{video.path}: the tracklets have {boxes} boxes, but reading the video again gave {crops} crops. The "
            "file or its disk does not read the same twice; copy it anew and run the same command again."
        )
    tables.upsert(out.store, "skeletons", _skeleton_rows(result.tracklets, digests.detect))
    made = {"layout": COCO17.name, "name": "YOLO-pose on frames", "units": "frame pixels", "weights": digests.weights}
    describe_extractor(out.store, digests.detect, made)
    rows = [_tracklet_row(t, video.video_sha, digests.track, times) for t in result.tracklets]
    where = f"video_sha = {quote(video.video_sha)} AND track_digest = {quote(digests.track)}"
    tables.upsert(out.store, "tracklets", tables.from_rows("tracklets", rows), replace=where)
    seen = [t.keypoints[:, :, 2].mean(axis=1) for t in result.tracklets]
    counts = {
        **detected.counts,
        "detect_seconds": detected.seconds,
        "tracklets": len(result.tracklets),
        "crops": crops,
        "keypoint_confidence": round(float(np.concatenate(seen).mean()), 4) if seen else 0.0,
        "dropped": dict(result.dropped),
    }
    settings = {"detect": to_plain(config.detect), "track": to_plain(config.track)}
    return this.record(out, config=settings, counts=counts, device="cpu")


def track_detections(
    store: str, video_sha: str, fps: float, num_frames: int, config: ExtractConfig, digests: ExtractDigests
) -> TrackResult:
    """Track a video's stored detections."""
    return build_tracklets(
        read_detections(store, video_sha, digests.detect, num_frames),
        fps=fps,
        tracker=config.track.tracker,
        high_confidence=config.track.high_confidence,
        low_confidence=config.track.low_confidence,
        new_confidence=config.track.new_confidence,
        match_cost=config.track.match_cost,
        buffer_seconds=config.track.buffer_seconds,
        min_frames=config.track.min_frames,
        min_keypoint_confidence=config.track.min_keypoint_confidence,
        make_id=lambda number: tracklet_id(video_sha, digests.track, number),
    )


def read_detections(store: str, video_sha: str, detect_digest: str, num_frames: int) -> Iterator[tuple[int, People]]:
    """Give every frame of a video in order, with the people that `detections` holds of it."""
    where = f"video_sha = {quote(video_sha)} AND detect_digest = {quote(detect_digest)}"
    table = tables.read(tables.current(store, "detections"), where=where)
    if len(table) == 0:
        yield from ((index, nobody()) for index in range(num_frames))
        return
    score = np.asarray(table["score"], dtype=np.float32)
    boxes = tables.boxes_array(table["box"])
    keypoints = tables.keypoints_array(table["keypoints"], len(COCO17.joints))
    frame_index = np.asarray(table["frame_index"], dtype=np.int64)
    # A file damaged in its middle has holes in its numbering, so that its last frame may lie beyond their count.
    end = max(num_frames, int(frame_index[-1]) + 1)
    bounds = np.searchsorted(frame_index, np.arange(end + 1))
    for index in range(end):
        span = slice(int(bounds[index]), int(bounds[index + 1]))
        yield index, People(boxes[span], score[span], keypoints[span])


def _cut(
    info: VideoInfo, result: TrackResult, quality: int, threads: int, times: dict[int, float]
) -> Iterator[pa.Table | Progress]:
    """Decode the video again and cut the tracklets out of it; fills `times` with every frame's time."""
    wanted: dict[int, list[tuple[Tracklet, int]]] = {}
    for tracklet in result.tracklets:
        for i, frame in enumerate(tracklet.frame_index.tolist()):
            wanted.setdefault(frame, []).append((tracklet, i))
    rows: list[dict[str, Any]] = []
    reader = FrameReader(info, batch=_DECODE_BATCH, threads=threads)
    for frames in reader:
        for pixels, frame, at in zip(frames.pixels, frames.frame_index.tolist(), frames.time.tolist(), strict=True):
            times[frame] = at
            rows.extend(_crop_row(pixels, frame, at, one, i, quality) for one, i in wanted.get(frame, []))
        if len(rows) >= _COMMIT_CROPS:
            yield tables.from_rows("crops", rows)
            rows = []
        yield Progress("cut_crops", reader.num_frames, info.num_frames, "frames")
    yield tables.from_rows("crops", rows)


def _crop_row(
    pixels: npt.NDArray[np.uint8], frame: int, at: float, tracklet: Tracklet, i: int, quality: int
) -> dict[str, Any]:
    return {
        "tracklet_id": tracklet.tracklet_id,
        "frame_index": frame,
        "time": at,
        "box": tracklet.boxes[i].tolist(),
        "score": float(tracklet.score[i]),
        "media_type": "image/jpeg",
        "image": encode_crop(pixels, tracklet.boxes[i], quality),
    }


def _skeleton_rows(tracklets: tuple[Tracklet, ...], extractor_digest: str) -> pa.Table:
    ids = [t.tracklet_id for t in tracklets for _ in range(len(t))]
    return pa.table(
        [
            pa.array(ids, pa.string()),
            pa.array([frame for t in tracklets for frame in t.frame_index.tolist()], pa.int64()),
            pa.array([extractor_digest] * len(ids), pa.string()),
            pa.array([True] * len(ids), pa.bool_()),
            pa.array([COCO17.name] * len(ids), pa.string()),
            tables.keypoints_column(np.concatenate([nobody().keypoints, *(t.keypoints for t in tracklets)])),
        ],
        schema=TABLES["skeletons"],
    )


def _tracklet_row(tracklet: Tracklet, video_sha: str, track_digest: str, times: Mapping[int, float]) -> dict[str, Any]:
    first, last = int(tracklet.frame_index[0]), int(tracklet.frame_index[-1])
    return {
        "tracklet_id": tracklet.tracklet_id,
        "video_sha": video_sha,
        "track_digest": track_digest,
        "first_frame": first,
        "last_frame": last,
        "first_time": times[first],
        "last_time": times[last],
        "num_frames": len(tracklet),
        "keypoint_confidence": float(tracklet.keypoints[:, :, 2].mean()),
        "pid": None,
        "begins": "unknown",
        "ends": "unknown",
        "interpolated_frames": 0,
    }
