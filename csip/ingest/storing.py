"""What goes on behind the pose model: detections to the store, then tracking, cutting out and storing.

One thread runs it, in the order in which the segments come.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from csip import tables
from csip.config import ExtractConfig
from csip.errors import VideoError
from csip.ingest.decoder import Decoder
from csip.ingest.detect_pass import Found, lost_frames
from csip.ingest.detections import detection_rows, which_detections
from csip.ingest.phases import Seconds, timed
from csip.ingest.plan import Segment, VideoPlan, detect_key
from csip.ingest.reading import Ended, Rejected
from csip.ingest.records import record_pass
from csip.ingest.track_pass import StoppedError, TrackPass
from csip.ingest.video_rows import record_quarantine, record_read
from csip.plain import to_plain
from csip.tables import RunRecord
from csip.types import ExtractDigests, ExtractedVideo, Output, SourceVideo

_LOG = logging.getLogger(__name__)


class Storing:
    """Takes what the first pass gives, and leaves rows.

    Attributes:
        done: videos that are finished.
        totals: what they hold: frames, detections, tracklets, crops; and the videos that are quarantined.
        reasons: why those are, one each.
        seconds: phase -> time spent in it.
        seconds_of_video: that are stored.
    """

    def __init__(
        self,
        out: Output,
        config: ExtractConfig,
        digests: ExtractDigests,
        decoder: Decoder,
        encoders: ThreadPoolExecutor,
    ) -> None:
        self._out, self._config, self._digests = out, config, digests
        self._decoder, self._encoders = decoder, encoders
        self._passes: dict[str, TrackPass] = {}  # by video_sha, of what is being worked on
        self._left_out: set[str] = set()
        self.done: list[ExtractedVideo] = []
        self.totals = dict.fromkeys(("frames", "detections", "tracklets", "crops", "quarantined"), 0)
        self.reasons: list[str] = []
        self.seconds: Seconds = Counter()
        self.seconds_of_video = 0.0
        self._stopping = threading.Event()

    def begin(self, plan: VideoPlan) -> None:
        """Make ready for a video while the pose model looks at its first frames."""
        self._decoder.prepare()
        self._passes[plan.video.video_sha] = TrackPass(
            plan,
            self._config,
            self._digests,
            self._out,
            self._decoder,
            self._encoders,
            self.seconds,
            self._stopping,
        )

    def store_found(self, found: Found) -> None:
        """Store what the pose model saw in a segment, and go on with it."""
        if found.plan.video.video_sha not in self._passes:
            return  # It was left out meanwhile.
        run = self._store_detections(found)
        self._go_on(found.plan, found.segment, run, last=found.last)

    def store_known(self, ended: Ended) -> None:
        """Go on with a segment whose detections are stored."""
        if ended.plan.video.video_sha not in self._passes:
            return
        last = ended.segment.end is None or bool(ended.reason)
        self._go_on(ended.plan, ended.segment, ended.plan.detected[ended.segment.number], last=last)

    def quarantine(self, rejected: Rejected) -> None:
        """Record a video that cannot be worked on, with its reason; it stops none of the others.

        Both passes may fail over it, as where its disk goes away: it is left out once, for the first reason.
        """
        video = rejected.video
        if video.video_sha in self._left_out:
            return
        self._left_out.add(video.video_sha)
        self._leave(video)
        self.totals["quarantined"] += 1
        self.reasons.append(rejected.reason)
        # By the digest that it was listed under: to read a file that hangs would be to hang, too.
        record_quarantine(self._out.store, video.video_sha, Path(video.path), rejected.reason)
        _LOG.warning("Left out: %s", rejected.reason)

    def finished(self, plan: VideoPlan, run: RunRecord) -> None:
        """Count a video whose tracklets are all in the store."""
        with timed(self.seconds, "write"):
            record_read(self._out.store, plan)
        self.done.append(ExtractedVideo(plan.video.video_sha, self._digests.track, run.run_id))
        for name in ("frames", "detections", "tracklets", "crops"):
            self.totals[name] += int(run.counts[name])

    def stop(self) -> None:
        """Ask the thread that stores to leave off at the next commit; what is committed stays."""
        self._stopping.set()

    def close(self) -> None:
        """Let go of the video that was being worked on."""
        for one in self._passes.values():
            one.close()

    def _store_detections(self, found: Found) -> RunRecord:
        video, digests, segment = found.plan.video, self._digests, found.segment
        rows = detection_rows(video.video_sha, digests.detect, found.frame_index, found.time, found.people)
        end = None if found.last else segment.end
        where = which_detections(video.video_sha, digests.detect, segment.first, end)
        with timed(self.seconds, "write"):
            tables.upsert(self._out.store, "detections", rows, replace=where)
        counts = {
            "frames": len(found.people),
            "detections": len(rows),
            "end_frame": max(found.frame_index, default=segment.first - 1) + 1,
            "lost": lost_frames(found, self._config.detect.stride),
            "reason": found.reason,
            "left_out": found.dropped,
            "model_seconds": round(found.seconds, 3),
            **found.model,
        }
        run = record_pass(
            self._out,
            "detect_video",
            detect_key(video, digests, segment),
            video,
            digests,
            config=to_plain(self._config.detect),
            counts=counts,
            device=str(found.model.get("device", "")),
            started=found.begun,
            seconds=found.elapsed,
        )
        found.plan.detected[segment.number] = run
        return run

    def _go_on(self, plan: VideoPlan, segment: Segment, detected: RunRecord, *, last: bool) -> None:
        if self._stopping.is_set():
            raise StoppedError
        if last:
            # Before the tracklets, which name it.
            with timed(self.seconds, "write"):
                record_read(self._out.store, plan)
        try:
            run = self._passes[plan.video.video_sha](segment, detected, last=last)
        except VideoError as error:
            if self._stopping.is_set():
                # Whoever stops us kills the decoder: the file has nothing to do with it.
                raise StoppedError from error
            self.quarantine(Rejected(plan.video, str(error)))
            return
        self.seconds_of_video += (int(detected.counts["end_frame"]) - segment.first) / plan.info.fps
        if last:
            self._leave(plan.video)
            self.finished(plan, run)

    def _leave(self, video: SourceVideo) -> None:
        if video.video_sha in self._passes:
            self._passes.pop(video.video_sha).close()
