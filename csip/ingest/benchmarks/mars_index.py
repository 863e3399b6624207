"""The index files of MARS: which pictures make a tracklet, and which tracklets ask (datasets.md section 2).

Shapes: N pictures named by a list, R tracklets (rows) of a half, Q queries.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from csip.ingest.benchmarks.checking import Findings
from csip.ingest.benchmarks.matlab import read_matlab, whole_numbers
from csip.plain import digest
from csip.types import IntArray

JUNK: Final = -1
"""pid of boxes that show nobody: never loaded."""

DISTRACTOR: Final = 0
"""pid of people nobody asks for: in the gallery, never in training."""

CAMERAS: Final = 6

# Nine digits at most, so that a frame number fits int32 and a name fits _NAME_TYPE.
_NAME = re.compile(rb"(?:\d{4}|00-1)C[1-6]T\d{4}F\d{3,9}\.jpg")
_NAME_TYPE = np.dtype("S25")
_FRAME_AT = slice(12, 21)
_XMARS_ROWS = (7986, 12492, 2003)
_ADVICE = (
    "Get the folder info/ again from the official MARS-evaluation repository (it is a download of its own, apart from "
    "the pictures) and put it into the data set's folder as it is."
)


@dataclass(frozen=True, slots=True, eq=False)
class Half:
    """The training or the test half of MARS.

    Attributes:
        name: train or test.
        rows: (R, 4) int64: first and last line of the name list, 1-based and inclusive; pid; camera from 1.
        pictures: (N,) names of fixed width as bytes: a million of them as Python strings would take 80 MB.
        pid: (N,) the person in each picture's name.
        camera: (N,) the camera in each picture's name, from 1.
        frame: (N,) the frame number in each picture's name.
    """

    name: str
    rows: IntArray
    pictures: npt.NDArray[np.bytes_]
    pid: npt.NDArray[np.int16]
    camera: npt.NDArray[np.int8]
    frame: npt.NDArray[np.int32]

    def lines(self, row: int) -> slice:
        """Give the pictures of a row, by its position from 0."""
        first, last = self.rows[row, :2].tolist()
        return slice(first - 1, last)


@dataclass(frozen=True, slots=True, eq=False)
class MarsIndex:
    """What the five index files say, checked against each other.

    Attributes:
        train: rows that train.
        test: rows that ask and answer, with distractors and junk.
        queries: (Q,) int64, positions from 0 of those rows of `test` that ask, ascending.
        digest: of the content, whatever the line ends and the files' headers.
    """

    train: Half
    test: Half
    queries: IntArray
    digest: str


def read_index(info: Path, findings: Findings) -> MarsIndex:
    """Read MARS's index files and check them against each other; no picture is looked at.

    Args:
        info: folder of the five files.
        findings: where everything that is wrong goes.

    Raises:
        SourceError: something is wrong; the message lists it.
    """
    train_rows = _read_matrix(info / "tracks_train_info.mat", "track_train_info", findings)
    test_rows = _read_matrix(info / "tracks_test_info.mat", "track_test_info", findings)
    query_idx = _read_matrix(info / "query_IDX.mat", "query_IDX", findings)
    halves = (_read_half("train", info, train_rows, findings), _read_half("test", info, test_rows, findings))
    findings.refuse(_ADVICE)
    found = (len(train_rows), len(test_rows), query_idx.size)
    if found == _XMARS_ROWS:
        findings.add("index files of X-MARS", f"{info}: found X-MARS's {found} rows, expected those of MARS")
    queries = query_idx.ravel() - 1
    for half in halves:
        _check_rows(half, findings)
    _check_people(*halves, findings)
    _check_queries(queries, halves[1], findings)
    findings.refuse(_ADVICE)
    names = [hashlib.sha256(half.pictures.tobytes()).hexdigest() for half in halves]
    rows = [hashlib.sha256(array.astype("<i8").tobytes()).hexdigest() for array in (train_rows, test_rows, queries)]
    return MarsIndex(*halves, queries, digest(names, rows))


def _read_matrix(path: Path, key: str, findings: Findings) -> IntArray:
    """Read a matrix as int64; an empty one where something is wrong with it."""
    empty = np.zeros((0, 4), np.int64)
    content = read_matlab(path, findings)
    if content is None:
        return empty
    is_list = key == "query_IDX"
    wanted = "whole numbers of shape " + ("(1, queries)" if is_list else "(tracklets, 4)")
    if key in content:
        array = content[key]
        numbers = whole_numbers(array)
        fits = array.ndim == 2 and array.size > 0 and (1 in array.shape if is_list else array.shape[1] == 4)
        if fits and numbers is not None:
            return numbers
        found = f"{array.dtype} of shape {array.shape}"
        findings.add("matrices of another kind", f"{path}: found {key} as {found}, expected {wanted}")
    elif any(name.startswith("xmars_") for name in content):
        found = ", ".join(sorted(content))
        findings.add("index files of X-MARS", f"{path}: found {found}, expected MARS's own {key}")
    else:
        found = ", ".join(sorted(content)) or "nothing"
        findings.add("index files without their matrix", f"{path}: found {found}, expected {key}")
    return empty


def _read_half(name: str, info: Path, rows: IntArray, findings: Findings) -> Half:
    path = info / f"{name}_name.txt"
    try:
        text = path.read_bytes().rstrip()
    except OSError as error:
        kind = "missing index files" if isinstance(error, FileNotFoundError) else "index files that cannot be read"
        findings.add(kind, f"{path}: {error}")
        text = b""
    # From a generator: the lines as a list of Python's bytes would take three times the file.
    pictures = np.fromiter(_each_name(text, path, findings), _NAME_TYPE)
    # The columns up to the frame number are fixed, so that all names are read at once.
    column = pictures.view(np.uint8).reshape(len(pictures), _NAME_TYPE.itemsize)
    pid = (column[:, :4].astype(np.int16) - ord("0")) @ np.array([1000, 100, 10, 1], np.int16)
    frame = np.zeros(len(pictures), np.int32)
    for character in column[:, _FRAME_AT].T:
        digit = character.astype(np.int32) - ord("0")
        frame = np.where((digit >= 0) & (digit <= 9), 10 * frame + digit, frame)
    return Half(
        name=name,
        rows=rows,
        pictures=pictures,
        pid=np.where(column[:, 2] == ord("-"), JUNK, pid).astype(np.int16),
        camera=(column[:, 5] - ord("0")).astype(np.int8),
        frame=frame,
    )


def _each_name(text: bytes, path: Path, findings: Findings) -> Iterator[bytes]:
    for i, line in enumerate(io.BytesIO(text)):
        name = line.strip()  # the lists were written under Windows
        if not _NAME.fullmatch(name):
            wanted = "a name such as 0001C1T0001F001.jpg"
            findings.add("lines that name no picture", f"{path} line {i + 1}: found {name[:60]!r}, expected {wanted}")
        yield name


def _check_rows(half: Half, findings: Findings) -> None:
    """Check that rows tile the list of names in order, and that names and numbers of each agree."""
    first, last, pid, camera = half.rows.T
    total = len(half.pictures)
    least = 1 if half.name == "train" else JUNK
    due = np.concatenate([[1], last[:-1] + 1])
    before = np.concatenate([pid[:1], pid[:-1]])
    kinds = (
        ("rows that do not begin behind the one before", first, due, first != due, "line"),
        ("rows that end before they begin", last, first, last < first, "at least line"),
        ("rows out of the people's order", pid, before, pid < before, "at least pid"),
        ("rows of no person", pid, np.full_like(pid, least), pid < least, "at least pid"),
        ("rows of no camera", camera, np.full_like(camera, CAMERAS), (camera < 1) | (camera > CAMERAS), "camera 1 to"),
    )
    where = f"tracks_{half.name}_info.mat row"
    for kind, found, expected, wrong, words in kinds:
        for i in np.flatnonzero(wrong):
            findings.add(kind, f"{where} {i + 1}: found {found[i]}, expected {words} {expected[i]}")
    if last[-1] != total:
        found = f"{half.name}_name.txt: found {total} lines, expected {last[-1]}, where the last row ends"
        findings.add("lists of another length than their rows", found)
    for i in np.flatnonzero((first >= 1) & (first <= last) & (last <= total)):
        _check_names(half, int(i), f"{where} {i + 1} (lines {first[i]} to {last[i]})", findings)


def _check_names(half: Half, row: int, where: str, findings: Findings) -> None:
    lines = half.lines(row)
    pid, camera = half.rows[row, 2:].tolist()
    strange = np.flatnonzero((half.pid[lines] != pid) | (half.camera[lines] != camera))
    if len(strange):
        name = half.pictures[lines][strange[0]].decode()
        wanted = f"person {pid}, camera {camera} in every name"
        findings.add("rows of several people or cameras", f"{where}: found {name}, expected {wanted}")
        return
    back = np.flatnonzero(np.diff(half.frame[lines]) <= 0)
    if len(back):
        before, after = (half.pictures[lines][back[0] + i].decode() for i in (0, 1))
        findings.add("rows whose frames do not ascend", f"{where}: found {after} behind {before}")


def _check_people(train: Half, test: Half, findings: Findings) -> None:
    for pid in sorted(set(train.rows[:, 2].tolist()) & set(test.rows[:, 2].tolist())):
        if pid > DISTRACTOR:
            findings.add("people in both halves", f"pid {pid}: found in training and in test, expected in one of them")


def _check_queries(queries: IntArray, test: Half, findings: Findings) -> None:
    """Check positions from 0; messages count from 1, as the file does."""
    total = len(test.rows)
    inside = (queries >= 0) & (queries < total)
    for i in np.flatnonzero(~inside):
        found = f"query_IDX.mat number {i + 1}: found row {queries[i] + 1}, expected 1 to {total}"
        findings.add("queries that name no row", found)
    for i in np.flatnonzero(np.diff(queries) <= 0):
        found = f"query_IDX.mat number {i + 2}: found row {queries[i + 1] + 1} behind row {queries[i] + 1}"
        findings.add("queries that do not ascend", found)
    for i in np.flatnonzero(inside):
        pid = int(test.rows[queries[i], 2])
        if pid <= DISTRACTOR:
            found = f"query_IDX.mat number {i + 1}: found row {queries[i] + 1} of pid {pid}, expected pid 1 or more"
            findings.add("queries for nobody", found)
