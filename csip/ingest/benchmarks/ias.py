"""IAS-Lab RGBD-ID: skeletons of 11 people in three sessions (datasets.md section 8).

They come from NiTE, which finds 15 joints, and were written as Kinect's 20: hands stand in for wrists, feet for
ankles, and joints 0 and 1 are both the middle of the torso, so that the root is not the hips here. They are taken as
they are.

A frame is left out where one of its first 20 lines has tracking state 0. The published preprocessing looks at all
lines; whether any file of this data set has more than 20 is not known, and those that do are counted.
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
from csip.protocols import IAS_A, IAS_B

IAS_VERSION: Final = 1
"""Raise it when a change to this loader changes the rows that it makes of the same files."""

_CUT = 10  # skeletons at the begin of every sequence, and at the end of those of A and B
_OTHERS = ("_rgb.jpg", "_depth.pgm", "_userMap.pgm")


def find_frames(folder: str, pid: int, names: Iterable[str], findings: Findings) -> tuple[dict[int, str], int]:
    """Number the skeleton files of a person's folder in their order.

    How stems are made up is not established: the order is that of the names, numbers in them by their size (frame 10
    comes after frame 9 whether or not they are written with as many digits). The streams of a frame share a stem.

    Args:
        folder: below the root.
        pid: the person whose folder it is.
        names: of all files there.
        findings: for names that do not fit.

    Returns:
        Frame number from 0 -> name, and how many frames only the other streams have.
    """
    named = sorted(names)
    skeletons = sorted((name for name in named if name.endswith(SKELETON_SUFFIX)), key=_by_numbers)
    stems = {name.removesuffix(SKELETON_SUFFIX) for name in skeletons}
    if "" in stems:
        findings.add("names of skeleton files that cannot be read", f"{folder}/{SKELETON_SUFFIX}: expected a stem")
    others = {name.removesuffix(end) for name in named for end in _OTHERS if name.endswith(end)}
    return dict(enumerate(skeletons)), len(others - stems)


def _by_numbers(name: str) -> tuple[tuple[tuple[str, int], ...], str]:
    pieces = re.findall(r"([^0-9]*)([0-9]*)", name.removesuffix(SKELETON_SUFFIX))
    return tuple((text, int(number or -1)) for text, number in pieces), name


_IAS = KinectSet(
    name="ias",
    release="IAS",
    version=IAS_VERSION,
    train=Session("train", "Training", "train_npy_data", _CUT, 0),
    tests=(
        Session("a", "TestingA", "test_npy_data/A", _CUT, _CUT),
        Session("b", "TestingB", "test_npy_data/B", _CUT, _CUT),
    ),
    protocols=(IAS_A, IAS_B),
    extractor={"name": "IAS-Lab's skeleton files", "units": "metres, in the depth camera's frame"},
    find_frames=find_frames,
)


def ias(root: Path, source: str) -> Benchmark:
    """Check a copy of IAS-Lab RGBD-ID and describe it: as it is distributed, or TranSG's arrays of it.

    Args:
        root: folder of Training, TestingA and TestingB; or of TranSG's arrays, see `find_arrays`.
        source: as the user named it.

    Raises:
        SourceError: the copy is not what it should be; one message lists everything that is wrong.
    """
    return read_kinect(_IAS, root, source)
