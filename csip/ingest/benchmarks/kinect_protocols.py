"""BIWI RGBD-ID and IAS-Lab RGBD-ID as protocols: sessions, people, who asks and answers (datasets.md sections 7, 8).

Shapes: T frames of a tracklet, J = 20 joints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from csip.ingest.benchmarks.checking import Findings
from csip.ingest.benchmarks.records import BenchmarkTracklet, Role, SplitRow
from csip.joints import KINECT20
from csip.types import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class Session:
    """One condition that people were recorded in.

    Attributes:
        word: names it in tracklet ids and counts.
        folder: below the data set's root; holds a folder for each person.
        arrays: the same below the root of TranSG's arrays.
        cut_first: frames with a skeleton that are left out where a sequence begins.
        cut_last: the same where it ends.
    """

    word: str
    folder: str
    arrays: str
    cut_first: int
    cut_last: int


@dataclass(frozen=True, slots=True)
class KinectSet:
    """What tells one of the data sets from the other.

    Attributes:
        name: of the data set.
        release: its name in folders and in the files of TranSG's arrays.
        version: of the loader; raised when a change to it changes the rows that it makes of the same files.
        train: the session that is trained on.
        tests: the two that are ranked against each other.
        protocols: under the first, `tests[0]` asks and `tests[1]` answers; under the second the reverse.
        extractor: see `Benchmark.extractor`.
        find_frames: (folder, pid, names of its files, findings) -> frame number -> name of its skeleton file, and the
            frames that other streams have besides.
    """

    name: str
    release: str
    version: int
    train: Session
    tests: tuple[Session, Session]
    protocols: tuple[str, str]
    extractor: Mapping[str, Any]
    find_frames: Callable[[str, int, Iterable[str], Findings], tuple[dict[int, str], int]]

    @property
    def sessions(self) -> tuple[Session, ...]:
        """All three, the one trained on first."""
        return (self.train, *self.tests)


@dataclass(frozen=True, slots=True)
class KinectPart:
    """A tracklet of a session, for the split rows.

    Attributes:
        tracklet_id: which.
        pid: the person.
        frames: see `SplitRow.frames`.
    """

    tracklet_id: str
    pid: int
    frames: tuple[int, int] | None


def tracklet(
    name: str, pid: int, frame_index: IntArray, keypoints: FloatArray, has_skeleton: npt.NDArray[np.bool_]
) -> BenchmarkTracklet:
    """Make a tracklet of T skeletons without pictures."""
    t = len(frame_index)
    return BenchmarkTracklet(
        tracklet_id=name,
        pid=pid,
        camid=0,
        frame_index=frame_index,
        time=np.zeros(t),
        boxes=np.zeros((t, 4), np.float32),
        score=np.ones(t, np.float32),
        images=(),
        media_types=(),
        layout=KINECT20.name,
        keypoints=keypoints,
        has_skeleton=has_skeleton,
        keypoint_confidence=float(has_skeleton.mean()),
    )


def split_rows(kinect: KinectSet, parts: Mapping[str, Iterable[KinectPart]]) -> tuple[SplitRow, ...]:
    """Say who trains, asks and answers: both protocols train on the same, and swap who asks and who answers.

    Args:
        kinect: which data set.
        parts: of each session, by its word.
    """
    first, second = kinect.tests
    rows = []
    for protocol, asks, answers in zip(kinect.protocols, (first, second), (second, first), strict=True):
        roles: tuple[tuple[Role, Session], ...] = (("train", kinect.train), ("query", asks), ("gallery", answers))
        rows += [
            SplitRow(part.tracklet_id, protocol, "0", role, part.pid, 0, f"{kinect.name}-kinect", frames=part.frames)
            for role, session in roles
            for part in parts[session.word]
        ]
    return tuple(rows)


def check_people(kinect: KinectSet, people: Mapping[str, Iterable[int]], findings: Findings) -> None:
    """Note who is tested but not trained on, or in one of the two tests only: the protocols are closed-set.

    Args:
        kinect: which data set.
        people: pids of each session, by its word.
        findings: where it is noted.
    """
    trained, first, second = (set(people[session.word]) for session in kinect.sessions)
    for pid in sorted((first | second) - trained):
        findings.add("people tested but not trained on", f"{pid:03d}: expected them in {kinect.train.folder} too")
    for pid in sorted(first ^ second):
        there, missing = kinect.tests if pid in first else kinect.tests[::-1]
        expected = f"expected them in {missing.folder} too"
        findings.add("people in one test only", f"{pid:03d}: found in {there.folder}, {expected}")
