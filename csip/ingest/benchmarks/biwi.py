"""BIWI RGBD-ID: Kinect skeletons of 50 people, 28 of whom come back standing still and walking (datasets.md section 7).

Only the skeleton files (stream d) are needed; nothing of the other streams is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from csip.ingest.benchmarks.checking import Findings
from csip.ingest.benchmarks.kinect import SKELETON_SUFFIX, read_kinect
from csip.ingest.benchmarks.kinect_protocols import KinectSet, Session
from csip.ingest.benchmarks.records import Benchmark
from csip.protocols import BIWI_S, BIWI_W

BIWI_VERSION: Final = 1
"""Raise it when a change to this loader changes the rows that it makes of the same files."""

_CUT = 10  # skeletons at either end of every sequence
# Sequence (the person, and a letter in Testing), frame, stream, and a time that differs from stream to stream.
_NAME = re.compile(r"(?P<person>[0-9]{3})(?P<letter>[A-Za-z]?)_(?P<frame>[0-9]+)-(?P<stream>[a-e])_(?P<time>[0-9]+)_.*")


def find_frames(folder: str, pid: int, names: Iterable[str], findings: Findings) -> tuple[dict[int, str], int]:
    """Find the skeleton files of a person's folder by the number of their frame.

    The streams of one frame have different times in their names: frames are told by sequence and number alone.

    Args:
        folder: below the root.
        pid: the person whose folder it is.
        names: of all files there.
        findings: for names that do not fit.

    Returns:
        Frame number -> name, and how many frames only the other streams have.
    """
    frames: dict[int, str] = {}
    others, sequences = set(), set()
    for name in sorted(names):
        match = _NAME.fullmatch(name)
        is_skeleton = name.endswith(SKELETON_SUFFIX)
        if is_skeleton and (match is None or match["stream"] != "d"):
            findings.add("names of skeleton files that cannot be read", f"{folder}/{name}: expected {_example(pid)}")
        elif is_skeleton and match is not None:
            frame = int(match["frame"])
            sequences.add(match["person"] + match["letter"])
            if int(match["person"]) != pid:
                findings.add("skeleton files of another person", f"{folder}/{name}: expected {_example(pid)}")
            elif frame in frames:
                findings.add("frames with two skeleton files", f"{folder}: {frames[frame]} and {name}")
            frames[frame] = name
        elif match is not None:
            others.add(int(match["frame"]))
    if len(sequences) > 1:
        findings.add("folders of several sequences", f"{folder}: found {', '.join(sorted(sequences))}, expected one")
    return frames, len(others - frames.keys())


def _example(pid: int) -> str:
    return f"one like {pid:03d}_000000-d_8349192{SKELETON_SUFFIX}"


_BIWI = KinectSet(
    name="biwi",
    release="BIWI",
    version=BIWI_VERSION,
    train=Session("train", "Training", "train_npy_data", _CUT, _CUT),
    tests=(
        Session("still", "Testing/Still", "test_npy_data/Still", _CUT, _CUT),
        Session("walking", "Testing/Walking", "test_npy_data/Walking", _CUT, _CUT),
    ),
    protocols=(BIWI_S, BIWI_W),
    extractor={"name": "BIWI's skeleton files", "units": "metres, in the depth camera's frame"},
    find_frames=find_frames,
)


def biwi(root: Path, source: str) -> Benchmark:
    """Check a copy of BIWI RGBD-ID and describe it: as it is distributed, or TranSG's arrays of it.

    Args:
        root: folder of Training and Testing; or of TranSG's arrays, see `find_arrays`.
        source: as the user named it.

    Raises:
        SourceError: the copy is not what it should be; one message lists everything that is wrong.
    """
    return read_kinect(_BIWI, root, source)
