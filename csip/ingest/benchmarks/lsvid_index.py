"""The index files of LS-VID: which names make a tracklet, and which tracklets ask (datasets.md section 3).

Shapes: R tracklets (lines) of the test list, Q queries.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from csip.ingest.benchmarks.checking import Findings
from csip.ingest.benchmarks.matlab import read_matlab, whole_numbers
from csip.plain import digest
from csip.types import IntArray

JUNK: Final = -1
"""pid of tracklets that show nobody: never loaded. The release has none; loaders have always looked out for them."""

CAMERAS: Final = 15

# As LS-VID_V2.zip has them; as TF-CLIP wants them.
_LISTS = ("list_sequence", "info/list_sequence")
_MATRICES = ("test/data", "info/data")
_ARRAYS = ("test", *_MATRICES)
_PID_COLUMN, _CAMERA_COLUMN, _COLUMNS = 2, 3, 4  # of info_test, from 0; what the first two mean nobody says
_PID = re.compile(r"-1|[0-9]{1,9}")
_PERSON = re.compile(r"[0-9]{4}")
_LINE = "a path and a pid with one space between, such as tracklet_test/0001/0001_0002 1"
_ADVICE = (
    "Name the folder that holds list_sequence, test and tracklet_train (or info and tracklet_train), and get the index "
    "files again as they are distributed."
)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a list: one tracklet.

    Attributes:
        half: train or test.
        number: of the line, from 1.
        folder: of its pictures, below the root.
        stem: what the names of its pictures begin with.
        pid: the person, or `JUNK`.
    """

    half: str
    number: int
    folder: str
    stem: str
    pid: int

    @property
    def place(self) -> str:
        """Say where it stands."""
        return f"list_seq_{self.half}.txt line {self.number}"


@dataclass(frozen=True, slots=True, eq=False)
class LsvidIndex:
    """What the index files say, checked against each other.

    Attributes:
        train: tracklets that train.
        test: tracklets that ask and answer, R of them.
        queries: (Q,) int64, positions from 0 of those lines of `test` that ask, as the file has them.
        cameras: (R,) int64, of the lines of `test`, from 1.
        validation: lines of the list that nobody uses; None where it is not there.
        digest: of the content, whatever the files' format, place and line ends.
    """

    train: tuple[Line, ...]
    test: tuple[Line, ...]
    queries: IntArray
    cameras: IntArray
    validation: int | None
    digest: str


def read_index(root: Path, findings: Findings) -> LsvidIndex:
    """Read LS-VID's index files and check them against each other; no picture is looked at.

    Args:
        root: of the data set.
        findings: where everything that is wrong goes.

    Raises:
        SourceError: something is wrong; the message lists it.
    """
    train = _read_list(root, "train", findings)
    test = _read_list(root, "test", findings)
    query, info = _read_matrices(root, findings)
    validation = _count_validation(root, findings)
    findings.refuse(_ADVICE)
    queries = query.ravel() - 1
    _check_people(train, test, findings)
    _check_info(info, test, findings)
    _check_queries(queries, test, findings)
    findings.refuse(_ADVICE)
    lines = [(line.half, line.folder, line.stem, line.pid) for line in (*train, *test)]
    cameras = info[:, _CAMERA_COLUMN]
    content = digest(lines, queries.tolist(), cameras.tolist())
    return LsvidIndex(train, test, queries, cameras, validation, content)


def _find(root: Path, folders: Sequence[str], name: str) -> Path | None:
    places = [root / folder / name for folder in folders]
    return next((place for place in places if place.is_file()), None)


def _read_list(root: Path, half: str, findings: Findings) -> tuple[Line, ...]:
    name = f"list_seq_{half}.txt"
    path = _find(root, _LISTS, name)
    if path is None:
        findings.add("missing index files", f"{root}: expected {name} in {' or '.join(_LISTS)}")
        return ()
    lines = [_read_line(half, i, row, path, findings) for i, row in enumerate(_read_rows(path, findings), 1)]
    return tuple(line for line in lines if line is not None)


def _read_rows(path: Path, findings: Findings) -> list[str]:
    """Read the lines of a list; blank ones at its end do not count."""
    try:
        rows = path.read_bytes().decode().rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        findings.add("index files that cannot be read", f"{path}: {type(error).__name__}: {error}")
        return []
    return [row.rstrip() for row in rows]


def _read_line(half: str, number: int, text: str, path: Path, findings: Findings) -> Line | None:
    prefix, _, pid = text.rpartition(" ")
    parts = PurePosixPath(prefix).parts
    inside = len(parts) > 1 and ".." not in parts and "\\" not in prefix and not prefix.startswith("/")
    if not inside or prefix != prefix.strip() or not _PID.fullmatch(pid):
        findings.add("lines that name no tracklet", f"{path} line {number}: found {text[:80]!r}, expected {_LINE}")
        return None
    line = Line(half, number, "/".join(parts[:-1]), parts[-1], int(pid))
    person = _PERSON.match(parts[-2])
    if line.pid != JUNK and (person is None or int(person[0]) != line.pid):
        found = f"{path} line {number}: found folder {parts[-2]}, expected one that begins with {line.pid:04d}"
        findings.add("lines whose folder is another person's", found)
    return line


def _count_validation(root: Path, findings: Findings) -> int | None:
    path = _find(root, _LISTS, "list_seq_val.txt")
    return None if path is None else len(_read_rows(path, findings))


def _read_matrices(root: Path, findings: Findings) -> tuple[IntArray, IntArray]:
    """Read who asks, from 1, and the (R, 4) facts of the test list; empty where something is wrong with them."""
    matrix = _find(root, _MATRICES, "info_test.mat")
    arrays = {name: _find(root, _ARRAYS, f"{name}.npy") for name in ("query", "info_test")}
    found: dict[str, npt.NDArray[Any]] = {}
    if matrix is not None:
        found = read_matlab(matrix, findings) or {}
        places = dict.fromkeys(arrays, matrix)
    else:
        places = {name: path for name, path in arrays.items() if path is not None}
        found = {name: array for name, path in places.items() if (array := _read_array(path, findings)) is not None}
    if len(places) < len(arrays):
        wanted = f"info_test.mat in {' or '.join(_MATRICES)} (or query.npy and info_test.npy in {' or '.join(_ARRAYS)})"
        findings.add("missing index files", f"{root}: expected {wanted}")
        return np.zeros(0, np.int64), np.zeros((0, _COLUMNS), np.int64)
    query = _pick(found, "query", places["query"], findings)
    return query, _pick(found, "info_test", places["info_test"], findings)


def _read_array(path: Path, findings: Findings) -> npt.NDArray[Any] | None:
    try:
        # Unpickling a file of unknown origin would run whatever code it brings.
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        findings.add("index files that cannot be read", f"{path}: {type(error).__name__}: {error}")
        return None


def _pick(content: dict[str, npt.NDArray[Any]], name: str, path: Path, findings: Findings) -> IntArray:
    is_list = name == "query"
    if name in content:
        array = content[name]
        numbers = whole_numbers(array)
        flat = array.ndim == 1 or (array.ndim == 2 and 1 in array.shape)
        fits = flat if is_list else array.ndim == 2 and array.shape[1] == _COLUMNS
        if fits and array.size and numbers is not None:
            return numbers
        wanted = "(queries, 1)" if is_list else f"(tracklets, {_COLUMNS}), as MATLAB shows it (HDF5 has it transposed)"
        where = (
            f"{path}: found {name} as {array.dtype} of shape {array.shape}, expected whole numbers of shape {wanted}"
        )
        findings.add("matrices of another kind", where)
    elif content or path.suffix == ".mat":
        found = ", ".join(sorted(content)) or "nothing"
        findings.add("index files without their matrix", f"{path}: found {found}, expected {name}")
    return np.zeros((0, 0 if is_list else _COLUMNS), np.int64)


def _check_people(train: tuple[Line, ...], test: tuple[Line, ...], findings: Findings) -> None:
    both = {line.pid for line in train} & {line.pid for line in test} - {JUNK}
    for pid in sorted(both):
        findings.add("people in both lists", f"pid {pid}: found in training and in test, expected in one of them")


def _check_info(info: IntArray, test: tuple[Line, ...], findings: Findings) -> None:
    if len(info) != len(test):
        found = f"info_test: found {len(info)} rows, expected {len(test)}, one a line of list_seq_test.txt"
        findings.add("matrices of another length than their list", found)
        return
    for line, row in zip(test, info.tolist(), strict=True):
        pid, camera = row[_PID_COLUMN], row[_CAMERA_COLUMN]
        if pid != line.pid:
            found = f"info_test row {line.number}: found pid {pid}, expected {line.pid} as in {line.place}"
            findings.add("rows of another person than their line", found)
        if not 1 <= camera <= CAMERAS and line.pid != JUNK:
            found = f"info_test row {line.number}: found {camera}, expected camera 1 to {CAMERAS}"
            findings.add("rows of no camera", found)


def _check_queries(queries: IntArray, test: tuple[Line, ...], findings: Findings) -> None:
    """Check positions from 0; messages count from 1, as the file does."""
    seen: set[int] = set()
    for i, at in enumerate(queries.tolist(), 1):
        found = f"query number {i}: found row {at + 1}"
        if not 0 <= at < len(test):
            findings.add("queries that name no row", f"{found}, expected 1 to {len(test)}")
        elif test[at].pid == JUNK:
            findings.add("queries for nobody", f"{found} of pid {JUNK}, expected a person")
        elif at in seen:
            findings.add("rows that ask twice", f"{found} a second time, expected it once")
        seen.add(at)
