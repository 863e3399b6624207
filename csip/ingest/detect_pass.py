"""The first pass over videos: every frame through the pose model, to the rows of `detections`.

Frames go through the model in full batches, which may hold the end of one video and the beginning of the next.

Shapes: F frames, N people, J joints.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import numpy as np
import numpy.typing as npt

from csip import tables
from csip.config import DetectConfig, RuntimeConfig
from csip.ingest.keep import keep_people
from csip.ingest.phases import Seconds, timed
from csip.ingest.plan import Segment, VideoPlan
from csip.ingest.pose import PoseModel, Seen
from csip.ingest.reading import Ended, Opened, Piece, Rejected, Step
from csip.types import ExtractDigests, Frames, IntArray, People


@dataclass(slots=True)
class Found:
    """What the pose model saw in a segment.

    Attributes:
        plan: of the video.
        segment: which part of it.
        frame_index: of the frames that were looked at.
        time: of each, seconds from the container.
        people: in each.
        dropped: rule of `csip.ingest.keep` -> people that it left out.
        reason: why the video breaks off within this segment; empty where it does not.
        seconds: in the pose model.
        elapsed: from its first frame to its last, seconds.
        model: what ran: engine, device and image size; empty where no frame came.
        begun: when the first of its frames went into the model, ISO 8601, UTC.
    """

    plan: VideoPlan
    segment: Segment
    frame_index: list[int] = field(default_factory=list)
    time: list[float] = field(default_factory=list)
    people: list[People] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    reason: str = ""
    seconds: float = 0.0
    elapsed: float = 0.0
    model: dict[str, str | int] = field(default_factory=dict)
    begun: str = field(default_factory=tables.now)
    _clock: float = field(default_factory=monotonic)

    def complete(self, reason: str) -> Found:
        """Say that no more of its frames come, and why, if the video breaks off."""
        self.reason, self.elapsed = reason, monotonic() - self._clock
        return self

    @property
    def last(self) -> bool:
        """Whether nothing of the video comes after it."""
        return self.segment.end is None or bool(self.reason)


@dataclass(frozen=True, slots=True)
class _Asked:
    """Frames whose people are on their way."""

    plan: VideoPlan
    segment: Segment
    frame_index: IntArray
    time: npt.NDArray[np.float64]
    size: tuple[int, int]


class DetectPass:
    """Runs the pose model over a stream of frames.

    Attributes:
        frames: that it has seen so far.
    """

    def __init__(self, config: DetectConfig, digests: ExtractDigests, runtime: RuntimeConfig, seconds: Seconds) -> None:
        """Load nothing yet.

        Args:
            config: what the model is to find.
            digests: where its weights lie.
            runtime: device, engine, batch.
            seconds: to count its time in.
        """
        self._config, self._digests, self._runtime, self._seconds = config, digests, runtime, seconds
        self._size = (0, 0)
        self._model: PoseModel | None = None
        self._held: list[Frames] = []
        self._jobs: deque[Future[Seen]] = deque()
        self._answers: deque[tuple[People, float]] = deque()
        self._waiting: deque[_Asked | Opened | Ended | Rejected] = deque()
        self._found: Found | None = None
        self.frames = 0

    def __call__(self, steps: Iterable[Step | None]) -> Iterator[Found | Opened | Ended | Rejected | None]:
        """Pass the steps on in their order, with a `Found` in the place of a segment's frames; None after a batch.

        Args:
            steps: None while there is none; it is passed on too.
        """
        for step in steps:
            if step is None:
                yield None
            elif isinstance(step, Piece):
                size = step.frames.pixels.shape[1:3]
                if size != self._size:
                    self._run(whole=True)
                    yield from self._ready()
                    self._size, self._model = size, None
                self._held.append(step.frames)
                frames = step.frames
                self._waiting.append(_Asked(step.plan, step.segment, frames.frame_index, frames.time, size))
                self._run(whole=False)
                yield None
            else:
                self._waiting.append(step)
            yield from self._ready()
        self._run(whole=True)
        yield from self._ready()

    def _run(self, *, whole: bool) -> None:
        """Put full batches of the frames that are held through the model; with `whole`, what is left of them too."""
        batch = self._runtime.pose_batch
        while (count := sum(map(len, self._held))) >= (1 if whole else batch):
            frames = self._held[0] if len(self._held) == 1 else _join(self._held)
            self._held = [frames[batch:]] if count > batch else []
            if self._model is None:
                with timed(self._seconds, "load"):
                    self._model = self._load()
            self._jobs.extend(self._model.start(frames[:batch]))
            # So many are under way that no lane waits for the next ones.
            self._collect(2 * self._model.lanes)
        if whole:
            self._collect(0)

    def _collect(self, left: int) -> None:
        """Take in what the pose model has found, until at most `left` of its jobs are pending."""
        while self._jobs and (len(self._jobs) > left or self._jobs[0].done()):
            seen = self._jobs.popleft().result()
            self._seconds["model"] += seen.seconds * len(seen.people)  # type: ignore[assignment]
            self._answers.extend((one, seen.seconds) for one in seen.people)
            self.frames += len(seen.people)

    def _ready(self) -> Iterator[Found | Opened | Ended | Rejected]:
        while self._waiting:
            head = self._waiting[0]
            if isinstance(head, _Asked):
                if len(self._answers) < len(head.frame_index):
                    return
                self._answer(head)
            elif isinstance(head, Ended) and head.seen:
                yield self._current(head.plan, head.segment).complete(head.reason)
                self._found = None
            else:
                self._found = None
                yield head
            self._waiting.popleft()

    def _current(self, plan: VideoPlan, segment: Segment) -> Found:
        if self._found is None:
            self._found = Found(plan, segment)
        return self._found

    def _answer(self, asked: _Asked) -> None:
        found = self._current(asked.plan, asked.segment)
        found.frame_index += asked.frame_index.tolist()
        found.time += asked.time.tolist()
        for _ in range(len(asked.frame_index)):
            people, seconds = self._answers.popleft()
            kept, dropped = keep_people(people, asked.size, self._config)
            found.people.append(kept)
            found.dropped.update(dropped)
            found.seconds += seconds
        if self._model is not None:
            model = self._model
            found.model = {"engine": model.engine, "device": model.device, "image_size": model.image_size}

    def _load(self) -> PoseModel:
        config, runtime = self._config, self._runtime
        return PoseModel(
            Path(self._digests.weights_path),
            image_size=config.image_size,
            confidence=config.confidence,
            iou=config.iou,
            max_people=config.max_people,
            precision=config.precision,
            device=runtime.device,
            engine=runtime.pose_engine,
            frame_size=self._size,
        )


def _join(some: Sequence[Frames]) -> Frames:
    columns = zip(*((one.pixels, one.frame_index, one.time) for one in some), strict=True)
    return Frames(*(np.concatenate(column) for column in columns))


def lost_frames(found: Found, stride: int) -> list[int]:
    """List the frames before the last one of a segment that should have been looked at and did not decode."""
    looked_at = set(found.frame_index)
    return [i for i in range(found.segment.first, max(looked_at, default=0), stride) if i not in looked_at]
