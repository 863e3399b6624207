"""TranSG's arrays: BIWI and IAS cut into windows of f frames by its authors (datasets.md section 9).

Of the files, only arrays of numbers are read. `ids_*` are pickles, and reading a pickle runs what it says: they are
never opened, and hold nothing that `frame_id_*` does not. `target_*` (time-reversed) are of older releases.

Shapes: W windows, f frames a window, J = 20 joints.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from csip.errors import SourceError
from csip.ingest.benchmarks.checking import Findings, Folders
from csip.ingest.benchmarks.kinect_protocols import KinectPart, KinectSet, Session, check_people, split_rows, tracklet
from csip.ingest.benchmarks.records import Benchmark, BenchmarkTracklet
from csip.joints import KINECT20
from csip.plain import digest
from csip.types import FloatArray, IntArray

TRANSG_VERSION: Final = 1
"""Raise it when a change to this loader changes the rows that it makes of the same files."""

WINDOW_FRAMES: Final = "window_frames"
"""Key in `Benchmark.extractor` for f: such tracklets are windows already, and cannot be cut into others."""

_JOINTS = len(KINECT20.joints)
_PLACES = ("train_npy_data", "test_npy_data")


@dataclass(frozen=True, slots=True, eq=False)
class _Session:
    """What is read of one session.

    Attributes:
        keypoints: (W, f, J, 3) float32, as they are in the files.
        pid: (W,) int64.
    """

    keypoints: FloatArray
    pid: IntArray


def find_arrays(kinect: KinectSet, root: Path, source: str) -> Path | None:
    """Find the folder of TranSG's arrays, the one that holds train_npy_data and test_npy_data.

    It is the root itself; or else a folder named by its f (6), below the root, below <root>/<BIWI or IAS>, or below
    <root>/Datasets/<BIWI or IAS>, looked for in this order. Where there are several, one must be named.

    Returns:
        It, or None where the root holds no arrays.

    Raises:
        SourceError: arrays of several f, of an older release, or beside the data set as it is distributed.
    """
    above = (root, root / kinect.release, root / "Datasets" / kinect.release)
    levels = [[root], *([top / name for name in Folders(top).folders("") if name.isdecimal()] for top in above)]
    found: list[Path] = []
    for level in levels:
        found = found or [folder for folder in level if any((folder / place).is_dir() for place in _PLACES)]
    if len(found) > 1:
        listed = ", ".join(folder.relative_to(root).as_posix() for folder in found)
        raise SourceError(
            f"Source {source}: found TranSG's arrays for several lengths of window ({listed}), expected one. "
            f"Name its folder: {kinect.name}:{found[0]}."
        )
    if found and (root / kinect.train.folder).is_dir():
        raise SourceError(
            f"Source {source}: found both {kinect.train.folder} and TranSG's arrays in {root}, expected one of them. "
            "Name a folder that holds only the one that is meant."
        )
    if not found:
        _refuse_older(kinect, root, above, source)
    return found[0] if found else None


def _refuse_older(kinect: KinectSet, root: Path, above: Iterable[Path], source: str) -> None:
    for top in above:
        names = [name for name in Folders(top).folders("") if name.endswith(tuple(f"_{place}" for place in _PLACES))]
        if names:
            raise SourceError(
                f"Source {source}: found {', '.join(names)} in {top}, arrays of an older release, whose test sets are "
                f"not these protocols' (or are named otherwise). Expected {' and '.join(_PLACES)}, as in "
                f"Datasets/{kinect.release}/6 of TranSG's release: get that one."
            )


def read_arrays(kinect: KinectSet, root: Path, source: str) -> Benchmark:
    """Read TranSG's arrays and describe them; every window becomes a tracklet of its own.

    Training windows overlap, and many are there twice: they are taken as they are.

    Args:
        kinect: which data set.
        root: absolute; holds train_npy_data and test_npy_data.
        source: as the user named it.

    Raises:
        SourceError: the arrays are not what they should be; one message lists everything that is wrong.
    """
    findings = Findings(source)
    frames = _window_frames(kinect, root, findings)
    shas: dict[str, str] = {}
    read = {session.word: _read_session(kinect, session, root, frames, shas, findings) for session in kinect.sessions}
    findings.refuse(_advice(kinect))
    sessions = {word: session for word, session in read.items() if session is not None}
    check_people(kinect, {word: np.unique(session.pid).tolist() for word, session in sessions.items()}, findings)
    findings.refuse(_advice(kinect))
    content = digest(kinect.name, "transg", TRANSG_VERSION, frames, shas)
    parts = {
        word: [
            KinectPart(f"{content[:12]}-{word}-{number:06d}", pid, None)
            for number, pid in enumerate(session.pid.tolist())
        ]
        for word, session in sessions.items()
    }

    def load(name: str) -> BenchmarkTracklet:
        _, word, number = name.split("-")
        session, i = sessions[word], int(number)
        everywhere = np.ones(frames, np.bool_)
        return tracklet(name, int(session.pid[i]), np.arange(frames), session.keypoints[i], everywhere)

    extractor = {"name": "TranSG's arrays", "units": "the source's own", WINDOW_FRAMES: frames}
    counts = {
        "frames a window": frames,
        **{f"{word} windows": len(session.pid) for word, session in sessions.items()},
    }
    return Benchmark(kinect.name, content, split_rows(kinect, parts), load, KINECT20.name, extractor, counts)


def _advice(kinect: KinectSet) -> str:
    tests = " and ".join(session.arrays for session in kinect.tests)
    return f"Get TranSG's Datasets/{kinect.release} again: {kinect.train.arrays}, {tests}, each with its arrays."


def _window_frames(kinect: KinectSet, root: Path, findings: Findings) -> int:
    """Read f from the names of the training arrays."""
    pattern = re.compile(rf"source_x_{kinect.release}_([1-9][0-9]*)\.npy")
    names = Folders(root).files(kinect.train.arrays)
    found = [int(match[1]) for match in map(pattern.fullmatch, names) if match]
    where = f"{root / kinect.train.arrays}: found {len(found)} files source_x_{kinect.release}_<f>.npy"
    if len(found) != 1:
        findings.add("folders without the arrays of one length of window", f"{where}, expected one")
    elif root.name.isdecimal() and int(root.name) != found[0]:
        findings.add("folders of another length of window", f"{where}, of f={found[0]}; expected f={root.name}")
    findings.refuse(_advice(kinect))
    return found[0]


def _read_session(
    kinect: KinectSet, session: Session, root: Path, frames: int, shas: dict[str, str], findings: Findings
) -> _Session | None:
    """Read a session's four files, checked against each other; None where something is wrong with them."""
    ending = f"{kinect.release}_{frames}.npy"
    before = "" if session is kinect.train else "t_"
    axes = [_read_array(root, f"{session.arrays}/{before}source_{axis}_{ending}", shas, findings) for axis in "xyz"]
    pid = _read_array(root, f"{session.arrays}/frame_id_{ending}", shas, findings)
    arrays = [array for array in axes if array is not None]
    if len(arrays) < len(axes) or pid is None:
        return None
    where = f"{session.arrays}: found"
    shapes = [array.shape for array in arrays]
    if pid.ndim != 1 or len(pid) == 0 or pid.dtype.kind not in "iu" or pid.min() < 0:
        told = f"{where} {pid.dtype} {pid.shape} in frame_id, expected a person's number for each window"
        findings.add("lists of people that are none", told)
    elif shapes != [(len(pid) * frames, _JOINTS)] * len(axes) or any(array.dtype.kind != "f" for array in arrays):
        wanted = f"expected {len(axes)} of {(len(pid) * frames, _JOINTS)}: {len(pid)} windows of {frames}"
        kinds = ", ".join(f"{array.dtype} {array.shape}" for array in arrays)
        findings.add("arrays that do not fit their lists of people", f"{where} {kinds}, {wanted}")
    elif wrong := sum(int((~(np.abs(array) <= np.finfo(np.float32).max)).sum()) for array in arrays):
        findings.add("arrays with positions that are not finite", f"{where} {wrong} of them")
    else:
        keypoints = np.stack(arrays, axis=-1).astype(np.float32).reshape(len(pid), frames, _JOINTS, 3)
        return _Session(keypoints, pid.astype(np.int64))
    return None


def _read_array(root: Path, name: str, shas: dict[str, str], findings: Findings) -> npt.NDArray[np.generic] | None:
    """Read an array of numbers, and digest its file; None where there is none, or none that may be read."""
    try:
        content = (root / name).read_bytes()
        array: npt.NDArray[np.generic] = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except FileNotFoundError:
        findings.add("missing arrays", name)
        return None
    except (OSError, ValueError) as error:
        findings.add("files that are no arrays of numbers", f"{name}: {error}")
        return None
    shas[name] = hashlib.sha256(content).hexdigest()
    return array
