"""BIWI RGBD-ID and IAS-Lab RGBD-ID as they are distributed: skeleton text files, one folder a person.

datasets.md sections 6 to 8. Every skeleton file is read when the data set is opened: which frames survive decides what
is trained on and ranked, and all skeletons of either set fit in some ten megabytes.

Shapes: T frames of a sequence, J = 20 joints, N lines of a file.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from csip.ingest.benchmarks.checking import Findings, Folders
from csip.ingest.benchmarks.kinect_protocols import KinectPart, KinectSet, Session, check_people, split_rows, tracklet
from csip.ingest.benchmarks.records import Benchmark, BenchmarkTracklet
from csip.ingest.benchmarks.transg_arrays import find_arrays, read_arrays
from csip.joints import KINECT20
from csip.plain import digest
from csip.types import FloatArray, IntArray

SKELETON_SUFFIX: Final = "_skel.txt"

_JOINTS = len(KINECT20.joints)
_COLUMNS = 14
_PERSON_ID, _POSITION, _STATE = 0, slice(1, 4), 6

_NO_LINES = "frames left out: a file without lines"
_FEW_LINES = f"frames left out: fewer than {_JOINTS} lines"
_NOBODY = "frames left out: person id 0"
_UNTRACKED = "frames left out: a joint of tracking state 0"
_NOT_FINITE = "frames left out: a position that is not finite"
_SEVERAL = f"frames of more than {_JOINTS} lines, of which the first {_JOINTS} count"
_CUT = "frames cut off at the ends of sequences"
_NOTHING_LEFT = "sequences of which nothing is left"
_WITHOUT_FILE = "frames of other streams without a skeleton file"
_COUNTS = (_NO_LINES, _FEW_LINES, _NOBODY, _UNTRACKED, _NOT_FINITE, _SEVERAL, _CUT, _NOTHING_LEFT, _WITHOUT_FILE)


@dataclass(frozen=True, slots=True, eq=False)
class KinectSequence:
    """One person in one session.

    Attributes:
        frame_index: (T,) int64.
        keypoints: (T, J, 3) float32, x y z as they stand in the files; zero where the frame has no skeleton.
        has_skeleton: (T,) bool.
        sha256: of the files' names and bytes.
    """

    frame_index: IntArray
    keypoints: FloatArray
    has_skeleton: npt.NDArray[np.bool_]
    sha256: str

    def kept(self, session: Session) -> tuple[int, int] | None:
        """First and last frame_index of what is left after cutting the ends; None where nothing is.

        Frames without a skeleton are no frames to the published protocol: what is cut off are those with one.
        """
        left = np.flatnonzero(self.has_skeleton)[session.cut_first :]
        left = left[: max(0, len(left) - session.cut_last)]
        return (int(self.frame_index[left[0]]), int(self.frame_index[left[-1]])) if len(left) else None


def read_kinect(kinect: KinectSet, root: Path, source: str) -> Benchmark:
    """Read a data set as it is distributed, or TranSG's arrays of it, and describe it.

    Args:
        kinect: which data set.
        root: folder of the sessions' folders; or of TranSG's arrays, see `find_arrays`.
        source: as the user named it.

    Raises:
        SourceError: the copy is not what it should be; one message lists everything that is wrong.
    """
    root = root.absolute()
    arrays = find_arrays(kinect, root, source)
    return _read_folders(kinect, root, source) if arrays is None else read_arrays(kinect, arrays, source)


def _read_folders(kinect: KinectSet, root: Path, source: str) -> Benchmark:
    findings, folders = Findings(source), Folders(root)
    people = {session.word: _find_people(kinect, session, folders, findings) for session in kinect.sessions}
    check_people(kinect, people, findings)
    findings.refuse(
        f"Name the folder that holds {', '.join(session.folder for session in kinect.sessions)}, each with a folder "
        "for every person, named by three digits; unpack what is missing, and move what does not belong there."
    )
    counts = Counter(dict.fromkeys(_COUNTS, 0))
    sequences: dict[str, KinectSequence] = {}
    for session in kinect.sessions:
        for pid in people[session.word]:
            sequence = _read_sequence(kinect, f"{session.folder}/{pid:03d}", pid, folders, findings, counts)
            if sequence is not None:
                sequences[f"{session.word}-{pid:03d}"] = sequence
    findings.refuse("Unpack the skeleton files (*_skel.txt) again, and check that the disk was not full.")
    content = digest(kinect.name, kinect.version, {key: sequence.sha256 for key, sequence in sequences.items()})
    parts = {
        session.word: _cut_ends(session, people[session.word], sequences, content[:12], counts)
        for session in kinect.sessions
    }
    _check_left(kinect, parts, counts, findings)
    frames = [len(sequence.frame_index) for sequence in sequences.values()]
    usable = sum(int(sequence.has_skeleton.sum()) for sequence in sequences.values())

    def load(name: str) -> BenchmarkTracklet:
        sequence = sequences[name.partition("-")[2]]
        return tracklet(name, int(name[-3:]), sequence.frame_index, sequence.keypoints, sequence.has_skeleton)

    told = {
        **{f"{session.word} sequences": len(people[session.word]) for session in kinect.sessions},
        **{"skeleton files": sum(frames), "skeletons": usable},
        **counts,
    }
    return Benchmark(kinect.name, content, split_rows(kinect, parts), load, KINECT20.name, dict(kinect.extractor), told)


def _find_people(kinect: KinectSet, session: Session, folders: Folders, findings: Findings) -> list[int]:
    """List a session's people by ascending number: the names of its folders, never their order."""
    names = folders.folders(session.folder)
    if not names:
        deeper = folders.root / kinect.release
        hint = f"; it is in {deeper}" if (deeper / session.folder).is_dir() else ""
        findings.add("missing or empty folders", f"{session.folder}: expected it in {folders.root}{hint}")
    for name in names:
        if not re.fullmatch(r"[0-9]{3}", name):
            findings.add("folders that are no person's", f"{session.folder}/{name}: expected three digits")
    return sorted(int(name) for name in names if re.fullmatch(r"[0-9]{3}", name))


def _read_sequence(
    kinect: KinectSet, folder: str, pid: int, folders: Folders, findings: Findings, counts: Counter[str]
) -> KinectSequence | None:
    """Read a person's folder; None where it has no skeleton file, or none that says anything."""
    files = folders.files(folder)
    frames, without_file = kinect.find_frames(folder, pid, files, findings)
    counts[_WITHOUT_FILE] += without_file
    keypoints = np.zeros((len(frames), _JOINTS, 3), np.float32)
    reasons, sha = [], hashlib.sha256()
    for i, (_, name) in enumerate(sorted(frames.items())):
        content = (folders.root / folder / name).read_bytes()
        sha.update(f"{name}\0{len(content)}\0".encode() + content)
        lines = _read_lines(content, f"{folder}/{name}", findings)
        counts[_SEVERAL] += len(lines) > _JOINTS
        reasons.append(_why_not(lines))
        if not reasons[-1]:
            keypoints[i] = lines[:_JOINTS, _POSITION]
    if set(reasons) <= {_NO_LINES}:
        findings.add(
            "sequences without a skeleton", f"{folder}: found {len(frames)} skeleton files, none with a line in it"
        )
        return None
    counts.update(reason for reason in reasons if reason)
    usable = np.array([not reason for reason in reasons], np.bool_)
    return KinectSequence(np.array(sorted(frames), np.int64), keypoints, usable, sha.hexdigest())


def _read_lines(content: bytes, where: str, findings: Findings) -> npt.NDArray[np.float64]:
    """Read a skeleton file: (N, 14).

    A line is 14 numbers between commas, with a comma behind the last or without; blank lines are nothing. Whatever
    else stands there, a header too, is refused: no description of the format knows of one.
    """
    lines = []
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = [float(field) for field in line.strip().removesuffix(b",").split(b",")]
        except ValueError:
            values = []
        if len(values) == _COLUMNS:
            lines.append(values)
        else:
            found = line[:60].decode("ascii", "backslashreplace")
            findings.add(f"lines that are not {_COLUMNS} numbers", f"{where}, line {number}: found {found!r}")
    return np.array(lines, np.float64).reshape(-1, _COLUMNS)


def _why_not(lines: npt.NDArray[np.float64]) -> str:
    """Say why a file's first person is no skeleton; empty where it is one."""
    joints = lines[:_JOINTS]
    if len(joints) < _JOINTS:
        return _FEW_LINES if len(joints) else _NO_LINES
    if joints[0, _PERSON_ID] == 0:
        return _NOBODY
    if (joints[:, _STATE] == 0).any():
        return _UNTRACKED
    if not (np.abs(joints[:, _POSITION]) <= np.finfo(np.float32).max).all():
        return _NOT_FINITE
    return ""


def _cut_ends(
    session: Session, people: Iterable[int], sequences: Mapping[str, KinectSequence], prefix: str, counts: Counter[str]
) -> list[KinectPart]:
    parts = []
    for pid in people:
        key = f"{session.word}-{pid:03d}"
        frames, skeletons = sequences[key].kept(session), int(sequences[key].has_skeleton.sum())
        if frames is None:
            counts[_NOTHING_LEFT] += 1
            counts[_CUT] += skeletons
        else:
            counts[_CUT] += session.cut_first + session.cut_last
            parts.append(KinectPart(f"{prefix}-{key}", pid, frames))
    return parts


def _check_left(
    kinect: KinectSet, parts: Mapping[str, list[KinectPart]], counts: Mapping[str, int], findings: Findings
) -> None:
    left_out = ", ".join(f"{number} {kind}" for kind, number in counts.items() if number) or "no frame left out"
    for session in kinect.sessions:
        if not parts[session.word]:
            cut = session.cut_first + session.cut_last
            expected = f"expected some of more than {cut} skeletons; of all sessions: {left_out}"
            findings.add("sessions of which nothing is left", f"{session.folder}: {expected}")
    findings.refuse("Unpack the skeleton files again; where they are whole, they have another format than expected.")
