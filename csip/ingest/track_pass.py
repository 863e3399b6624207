"""The second pass over a video: its detections to tracklets, and the tracklets' crops and skeletons.

It goes segment by segment behind the first pass and decodes again, at a few hundredths of the pose model's cost: so the
tracker can look both ways within a segment, no crop is made that nobody keeps, and tracking again with other settings
is this pass alone.

Shapes: H W pixels of a frame, N rows, J joints.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from csip import tables
from csip.config import ExtractConfig
from csip.errors import StoreError, VideoError
from csip.extractors import describe_extractor
from csip.ingest.cut import encode_crop
from csip.ingest.decoder import Decoder
from csip.ingest.detections import nobody, read_detections
from csip.ingest.phases import Seconds, timed, waiting_for
from csip.ingest.pictures import Pictures
from csip.ingest.plan import Segment, VideoPlan, in_frames, track_key
from csip.ingest.records import record_pass, tracklet_id, tracklet_prefix
from csip.ingest.tracklets import SegmentTracks, TrackSummary, VideoTracker
from csip.joints import COCO17
from csip.plain import to_plain
from csip.tables import RunRecord, quote
from csip.types import ExtractDigests, Output, Tracklet
from storage_schemas import TABLES

_COMMIT_CROPS, _COMMIT_BYTES = 4_000, 64_000_000


class StoppedError(Exception):
    """The pass was asked to leave off."""


class TrackPass:
    """Tracks and cuts out one video, segment by segment; one that was killed goes on where it was.

    The tracker's state at a segment's beginning is no more than what it makes of the detections before it. They are
    stored, so a new process makes it again, and a tracklet goes on over the border as if nothing had happened.
    """

    def __init__(
        self,
        plan: VideoPlan,
        config: ExtractConfig,
        digests: ExtractDigests,
        out: Output,
        decoder: Decoder,
        encoders: ThreadPoolExecutor,
        seconds: Seconds,
        stopping: threading.Event,
    ) -> None:
        """Begin with the video's first segment.

        Args:
            plan: of the video.
            config: the build's settings.
            digests: of them.
            out: the store.
            decoder: decodes.
            encoders: threads that make crops.
            seconds: to count its time in.
            stopping: when it is set, the pass leaves off.
        """
        self._stopping = stopping
        self._plan, self._config, self._digests, self._out = plan, config, digests, out
        self._encoders, self._seconds = encoders, seconds
        sha = plan.video.video_sha
        self._prefix = tracklet_prefix(sha, digests.track)
        self._tracker = VideoTracker(
            config.track,
            fps=plan.info.fps,
            frame_size=(plan.info.height, plan.info.width),
            stride=config.detect.stride,
            make_id=lambda number: tracklet_id(sha, digests.track, number),
        )
        self._pictures = Pictures(plan.info, decoder, config.detect.stride)
        self._summaries: dict[str, TrackSummary] = {}
        self._times: dict[str, tuple[float, float]] = {}
        self._counts: dict[str, int] = {"frames": 0, "detections": 0}
        self._dropped: Counter[str] = Counter()
        self._rules: Counter[str] = Counter()

    def __call__(self, segment: Segment, detected: RunRecord, *, last: bool) -> RunRecord:
        """Fill `crops` and `skeletons` for a segment and, with the last, `tracklets`; return the run that says so.

        Args:
            segment: the next one.
            detected: the run that filled its detections.
            last: nothing of the video comes after it.

        Raises:
            VideoError: the second reading of the file gave other frames than the first.
            StoreError: another build has written other rows for the same video meanwhile.
        """
        started, begun = tables.now(), time.monotonic()
        tracks = self._track(segment, detected, last=last)
        known = self._plan.tracked.get(segment.number)
        if known is not None:
            return known
        end = None if last else segment.end
        crops = self._cut(segment.first, end, tracks.tracklets)
        self._write("skeletons", _skeleton_rows(tracks.tracklets, self._digests.detect), segment.first, end)
        for name in ("crops", "skeletons"):
            for withdrawn in tracks.withdrawn:
                tables.delete(self._out.store, name, f"tracklet_id = {quote(withdrawn)}")
        if last:
            with timed(self._seconds, "write"):
                self._finish()
        video = self._plan.video
        return record_pass(
            self._out,
            "track_video" if last else "track_segment",
            track_key(video, self._digests, segment),
            video,
            self._digests,
            config={"detect": to_plain(self._config.detect), "track": to_plain(self._config.track)},
            counts={"segment": segment.number, "segment_crops": crops, **self._totals(detected)},
            device="cpu",
            started=started,
            seconds=time.monotonic() - begun,
        )

    def _track(self, segment: Segment, detected: RunRecord, *, last: bool) -> SegmentTracks:
        store, sha, stride = self._out.store, self._plan.video.video_sha, self._config.detect.stride
        end = int(detected.counts["end_frame"])
        # There is no picture of them, so that no box may be interpolated there; earlier versions did not say.
        lost = set(detected.counts.get("lost", ()))
        times: dict[int, float] = {}
        with timed(self._seconds, "track"):
            for frame_index, at, people in read_detections(
                store, sha, self._digests.detect, segment.first, end, stride
            ):
                if frame_index in lost:
                    continue
                times[frame_index] = at
                self._tracker.add(frame_index, people)
            tracks = self._tracker.end_segment(final=last)
        for name in self._counts:
            self._counts[name] += int(detected.counts[name])
        self._dropped.update(tracks.dropped)
        self._rules.update(tracks.rules)
        for name in tracks.withdrawn:
            del self._summaries[name], self._times[name]
        for name, summary in tracks.summaries.items():
            first = self._times[name][0] if name in self._times else times[summary.first_frame]
            self._times[name] = (first, times.get(summary.last_frame, self._times.get(name, (0.0, 0.0))[1]))
            self._summaries[name] = summary
        return tracks

    def _cut(self, first: int, end: int | None, tracklets: tuple[Tracklet, ...]) -> int:
        """Cut a segment's boxes out of its frames into `crops`, in commits of bounded size; return how many there are.

        Every commit replaces what another run has left of the same frames, so that at no time a row is missing that
        somebody else has counted on.
        """
        wanted: dict[int, list[tuple[Tracklet, int]]] = {}
        for tracklet in tracklets:
            for i, frame in enumerate(tracklet.frame_index.tolist()):
                wanted.setdefault(frame, []).append((tracklet, i))
        rows: list[dict[str, Any]] = []
        crops, size = 0, 0
        for pictures in waiting_for(self._pictures(sorted(wanted)), self._seconds, "read_again"):
            self._leave_off()
            with timed(self._seconds, "encode"):
                jobs = [(pixels, frame, at, *one) for frame, at, pixels in pictures for one in wanted[frame]]
                made = list(self._encoders.map(self._crop_row, jobs))
            rows += made
            size += sum(len(row["image"]) for row in made)
            if len(rows) >= _COMMIT_CROPS or size >= _COMMIT_BYTES:
                behind = pictures[-1][0] + 1
                self._write("crops", tables.from_rows("crops", rows), first, behind)
                crops, size, first, rows = crops + len(rows), 0, behind, []
        self._write("crops", tables.from_rows("crops", rows), first, end)
        crops += len(rows)
        boxes = sum(len(tracklet) for tracklet in tracklets)
        if crops != boxes:
            raise VideoError(
                f"{self._plan.info.path}: the tracklets have {boxes} boxes, but reading the video again gave {crops} "
                "crops. The file or its disk does not read the same twice; copy it anew and run the same command again."
            )
        return crops

    def _leave_off(self) -> None:
        if self._stopping.is_set():
            raise StoppedError

    def _write(self, name: str, rows: pa.Table, first: int, end: int | None) -> None:
        where = f"starts_with(tracklet_id, {quote(self._prefix)}) AND {in_frames(first, end)}"
        with timed(self._seconds, "write"):
            if len(rows):
                tables.upsert(self._out.store, name, rows, replace=where)
            else:
                tables.delete(self._out.store, name, where)

    def _crop_row(self, job: _Job) -> dict[str, Any]:
        pixels, frame, at, tracklet, i = job
        return {
            "tracklet_id": tracklet.tracklet_id,
            "frame_index": frame,
            "time": at,
            "box": tracklet.boxes[i].tolist(),
            "score": float(tracklet.score[i]),
            "media_type": "image/jpeg",
            "image": encode_crop(pixels, tracklet.boxes[i], self._config.track.jpeg_quality),
        }

    def _finish(self) -> None:
        """Write the video's tracklets, once all of their crops are there.

        Raises:
            StoreError: the store has other crops than were written.
        """
        store, sha, digests = self._out.store, self._plan.video.video_sha, self._digests
        made = {"layout": COCO17.name, "name": "YOLO-pose on frames", "units": "frame pixels"}
        describe_extractor(store, digests.detect, made | {"weights": dict(digests.weights)})
        rows = [
            {
                "tracklet_id": name,
                "video_sha": sha,
                "track_digest": digests.track,
                "first_frame": s.first_frame,
                "last_frame": s.last_frame,
                "first_time": self._times[name][0],
                "last_time": self._times[name][1],
                "num_frames": s.num_frames,
                "keypoint_confidence": s.keypoint_confidence,
                "pid": None,
                "begins": s.begins,
                "ends": s.ends,
                "interpolated_frames": s.interpolated_frames,
            }
            for name, s in sorted(self._summaries.items())
        ]
        expected = sum(one.num_frames for one in self._summaries.values())
        found = tables.count(tables.current(store, "crops"), f"starts_with(tracklet_id, {quote(self._prefix)})")
        if found != expected:
            raise StoreError(
                f"Store {store}: found {found} crops of {self._plan.video.path}, expected {expected}. Another build "
                "with the same settings, on another kind of device, has written the same video at the same time; run "
                "the same command again."
            )
        where = f"video_sha = {quote(sha)} AND track_digest = {quote(digests.track)}"
        tables.upsert(store, "tracklets", tables.from_rows("tracklets", rows), replace=where)

    def _totals(self, detected: RunRecord) -> dict[str, Any]:
        """Count what the video has given so far."""
        summaries = self._summaries.values()
        seen = sum(s.num_frames - s.interpolated_frames for s in summaries)
        confidence = sum(s.keypoint_confidence * (s.num_frames - s.interpolated_frames) for s in summaries)
        return {
            **self._counts,
            "tracklets": len(self._summaries),
            "crops": sum(s.num_frames for s in summaries),
            "keypoint_confidence": round(confidence / max(seen, 1), 4),
            "dropped": dict(sorted(self._dropped.items())),
            "rules": dict(sorted(self._rules.items())),
            **{name: detected.counts[name] for name in ("engine", "image_size") if name in detected.counts},
        }

    def close(self) -> None:
        """Let go of the decoder."""
        self._pictures.close()


_Job = tuple[npt.NDArray[np.uint8], int, float, Tracklet, int]


def _skeleton_rows(tracklets: tuple[Tracklet, ...], extractor_digest: str) -> pa.Table:
    ids = [t.tracklet_id for t in tracklets for _ in range(len(t))]
    seen = [bool(one) for t in tracklets for one in ~t.interpolated]
    return pa.table(
        [
            pa.array(ids, pa.string()),
            pa.array([frame for t in tracklets for frame in t.frame_index.tolist()], pa.int64()),
            pa.array([extractor_digest] * len(ids), pa.string()),
            pa.array(seen, pa.bool_()),
            pa.array([COCO17.name] * len(ids), pa.string()),
            tables.keypoints_column(np.concatenate([nobody().keypoints, *(t.keypoints for t in tracklets)])),
        ],
        schema=TABLES["skeletons"],
    )
