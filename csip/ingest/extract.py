"""Videos to rows: detections, then tracklets, crops and skeletons; the store says what is done.

The work overlaps. One process decodes ahead for the pose model, which this thread keeps busy; a second thread goes
behind it, segment by segment, with a decoding process of its own: it stores detections, tracks, cuts crops out and
stores those (`csip.ingest.storing`). Every queue between them is bounded, so that memory does not grow with the length
of a video.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from pathlib import Path

from csip import tables
from csip.config import ExtractConfig, RuntimeConfig
from csip.errors import StoreError, VideoError
from csip.ingest.decoder import Decoder
from csip.ingest.detect_pass import DetectPass, Found
from csip.ingest.find import SHOWN
from csip.ingest.known_files import look_at
from csip.ingest.phases import Seconds, timed, waiting_for
from csip.ingest.plan import VideoPlan, make_plan
from csip.ingest.prefetch import prefetch
from csip.ingest.reading import Ended, Opened, Rejected, read_videos
from csip.ingest.retrack import WHERE_NOW
from csip.ingest.storing import Storing
from csip.maintenance.forget import forgotten
from csip.types import ExtractDigests, ExtractedVideo, Outcome, Output, Progress, SourceVideo, Stage

_PIECES_AHEAD = 2
_SEGMENTS_BEHIND = 2
_SECONDS_BETWEEN_RECORDS = 0.5


def extract_videos(
    out: Output,
    videos: tuple[SourceVideo, ...],
    digests: ExtractDigests,
    config: ExtractConfig,
    runtime: RuntimeConfig,
) -> Stage[tuple[ExtractedVideo, ...]]:
    """Stage `extract_videos`: detect, track and cut out the people of a batch of videos.

    A video that cannot be decoded, or whose decoder hangs or dies, is quarantined with its reason and stops none of the
    others; one that breaks off is kept as far as it goes and recorded as partial.

    Args:
        out: the store.
        videos: in the order to work in.
        digests: of what decides the rows.
        config: the build's settings.
        runtime: device, engine, threads, deadlines.

    Raises:
        StoreError: the store cannot be written, or no pose model may run and a video's detections are not there.
    """
    begun = time.monotonic()
    tables.prepare_store(out.store)
    seconds: Seconds = Counter()
    with ExitStack() as stack:
        first, second = (stack.enter_context(Decoder(runtime)) for _ in range(2))
        encoders = stack.enter_context(ThreadPoolExecutor(runtime.encode_threads, "encode"))
        storing = Storing(out, config, digests, second, encoders)
        behind = stack.enter_context(closing(_Behind(storing)))

        def plan(video: SourceVideo) -> VideoPlan:
            return _plan(out.store, video, first, digests, config)

        stride, batch = config.detect.stride, runtime.pose_batch
        steps = stack.enter_context(
            closing(
                prefetch(
                    read_videos(videos, plan, first, stride=stride, batch=batch),
                    _PIECES_AHEAD,
                    _SECONDS_BETWEEN_RECORDS,
                )
            )
        )
        # Whoever stops early does not wait for a decoder that may hang; but says so first, so that no file is blamed.
        stack.callback(second.interrupt)
        stack.callback(first.interrupt)
        stack.callback(storing.stop)
        detecting = DetectPass(config.detect, digests, runtime, seconds)
        position = _Position(videos, stride, detecting, None if digests.weights_path else storing)
        for step in detecting(waiting_for(steps, seconds, "read")):
            if step is not None:
                position.pass_by(step)
                behind.give(step)
                for _ in behind.wait_until(_SEGMENTS_BEHIND):
                    yield position.record()
            yield position.record()
        with timed(seconds, "finish"):
            for _ in behind.wait_until(0):
                yield position.record()
    total = position.record().total
    yield Progress("extract_videos", total, total, "seconds of video")
    seconds.update(storing.seconds)
    seconds["all"] = time.monotonic() - begun  # type: ignore[assignment]
    return Outcome(tuple(storing.done), _counts(storing, seconds), digests.weights)


def _counts(storing: Storing, seconds: Seconds) -> dict[str, object]:
    """Count what both passes made, what they took, and the first of the videos that were left out."""
    counts: dict[str, object] = {**storing.totals}
    counts["seconds"] = {name: round(value, 3) for name, value in sorted(seconds.items())}
    return counts | {f"left out {i}": reason for i, reason in enumerate(storing.reasons[:SHOWN], 1)}


def _plan(
    store: str, video: SourceVideo, decoder: Decoder, digests: ExtractDigests, config: ExtractConfig
) -> VideoPlan:
    """Look at a video again, which may have changed since it was listed, and at what is done of it."""
    if video.video_sha in forgotten(store):
        raise VideoError(
            f"Video {video.video_sha[:12]}: was forgotten here (`csip forget`) since this build has listed it, and is "
            "not built from."
        )
    again = not digests.weights_path
    if again and look_at(Path(video.path)) is None:
        raise VideoError(f"{video.path}: no such file, expected it where it was last read. {WHERE_NOW}")
    info = decoder.probe(Path(video.path))
    if info.sha256 != video.video_sha:
        cure = "Is it still being written? Run the same command again when it is complete."
        raise VideoError(
            f"{video.path}: was {video.video_sha[:12]} when it was listed and is {info.sha256[:12]} now. "
            f"{WHERE_NOW if again else cure}"
        )
    plan = make_plan(store, video, info, digests, config.detect)
    if again and not any(run.counts["reason"] for run in plan.detected.values()):
        missing = len(plan.segments) - len(plan.detected)
        if missing:
            raise StoreError(
                f"Store {store}: the detections of {missing} of {len(plan.segments)} segments of {video.path} are not "
                "there. Tracking again needs them all; run `csip build-skeletons` on the video first."
            )
    return plan


class _Behind:
    """The second thread: does what it is given, in that order, and nothing more once something has failed."""

    def __init__(self, storing: Storing) -> None:
        self._storing = storing
        self._thread = ThreadPoolExecutor(1, "storing")
        self._pending: deque[Future[None]] = deque()
        self._whole = True

    def give(self, step: Found | Opened | Ended | Rejected) -> None:
        storing = self._storing
        match step:
            case Found():
                self._submit(lambda: storing.store_found(step))
            case Ended():
                self._submit(lambda: storing.store_known(step))
            case Rejected():
                self._submit(lambda: storing.quarantine(step))
            case Opened(plan) if (run := plan.finished) is not None:
                self._submit(lambda: storing.finished(plan, run))
            case Opened(plan):
                self._submit(lambda: storing.begin(plan))

    def _submit(self, work: Callable[[], None]) -> None:
        self._pending.append(self._thread.submit(self._do, work))

    def _do(self, work: Callable[[], None]) -> None:
        # A segment must not be tracked by a tracker that has missed the one before.
        if self._whole:
            self._whole = False
            work()
            self._whole = True

    def wait_until(self, left: int) -> Iterator[None]:
        """Wait until at most `left` pieces of work are pending; give the caller a turn from time to time.

        Raises:
            CsipError: what a piece of work raised.
        """
        while self._pending and (self._pending[0].done() or len(self._pending) > left):
            if wait([self._pending[0]], _SECONDS_BETWEEN_RECORDS).done:
                self._pending.popleft().result()
            yield

    def close(self) -> None:
        self._storing.stop()
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._storing.close()


class _Position:
    """How far the work is, in seconds of video.

    It is the pose model that people wait for; where none runs, it is the second pass.
    """

    def __init__(
        self, videos: tuple[SourceVideo, ...], stride: int, detecting: DetectPass, storing: Storing | None
    ) -> None:
        self._durations = {video.video_sha: video.duration for video in videos}
        self._total = sum(self._durations.values())
        self._stride, self._detecting, self._storing = stride, detecting, storing
        self._begun = time.monotonic()
        self._before = self._this = self._known = 0.0
        self._frames, self._frame_seconds = 0, 0.0

    def pass_by(self, step: Found | Opened | Ended | Rejected) -> None:
        """Take note of a step that is done."""
        match step:
            case Opened(plan):
                self._before += self._this
                self._this = self._durations[plan.video.video_sha]
                self._known, self._frames = 0.0, self._detecting.frames
                self._frame_seconds = plan.info.duration / max(plan.info.num_frames, 1)
            case Ended(plan, segment):
                # What was looked at before in this run is counted by itself.
                self._known = self._frame_seconds * plan.detected[segment.number].counts["end_frame"]

    def record(self) -> Progress:
        """Say how far it is."""
        seen = self._detecting.frames - self._frames
        done = self._before + min(self._known + seen * self._stride * self._frame_seconds, self._this)
        if self._storing is not None:
            done = self._storing.seconds_of_video
        rate = self._detecting.frames / max(time.monotonic() - self._begun, 1e-9)
        total = math.ceil(self._total)
        return Progress("extract_videos", min(int(done), total), total, "seconds of video", {"frames_per_second": rate})
