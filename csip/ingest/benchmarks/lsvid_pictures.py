"""The pictures of LS-VID: found by what their names begin with, one folder at a time (datasets.md section 3).

Shapes: T pictures of a tracklet.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np
import numpy.typing as npt

from csip.ingest.benchmarks.checking import Findings, Folders
from csip.ingest.benchmarks.crops import MEDIA_TYPES
from csip.ingest.benchmarks.lsvid_index import CAMERAS, JUNK, Line

_CAMERA_TOKEN: Final = 2  # of a picture's name, from 0
_LEAST_TOKENS: Final = 4


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """A tracklet's pictures.

    Attributes:
        endings: of their names behind the line's stem, in the order of time, joined by slashes: as one string, since
            three million names of their own would take 200 MB.
        has_sidecar: (T,) bool, the picture has a side-car file.
        camera: from 1.
    """

    endings: str
    has_sidecar: npt.NDArray[np.bool_]
    camera: int

    def names(self, line: Line) -> list[str]:
        """List the pictures of a tracklet, in the order of time."""
        return [line.stem + ending for ending in self.endings.split("/")]

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self.has_sidecar)


def stem_of(picture: str) -> str:
    """Cut the suffix off a name; pathlib takes twenty times as long, and there are three million."""
    return picture.rpartition(".")[0]


class Look:
    """Looks for the pictures of all lines, one folder at a time.

    Args:
        root: absolute.
        sidecars: name of the folder of side-car files below the root; empty to look for none.
        findings: where everything that is wrong goes.

    Attributes:
        folders: what was listed.
        pictures: of each line that has any.
        counts: what was left out.
    """

    def __init__(self, root: Path, sidecars: str, findings: Findings) -> None:
        self._sidecars, self._findings = sidecars, findings
        self.folders = Folders(root)
        self.pictures: dict[Line, Pictures] = {}
        self.counts = Counter({"files that no line names": 0})
        if sidecars:
            self.counts.update({"frames without a side-car file": 0, "side-car files of no picture": 0})

    def at_folder(self, folder: str, lines: list[Line]) -> None:
        """Look for the pictures of all lines of one folder (person)."""
        files = self.folders.files(folder)
        beside = self.folders.files(f"{self._sidecars}/{folder}") if self._sidecars else {}
        pictures = [name for name in files if PurePosixPath(name).suffix.lower() in MEDIA_TYPES]
        named: Counter[str] = Counter()
        stems = set()
        for line, names in _match(lines, pictures, self._findings).items():
            named.update(names)
            stems |= set(map(stem_of, names))
            if line.pid != JUNK:
                _check_sizes(folder, names, files, "empty pictures", self._findings)
            if names:
                self.pictures[line] = self._at_line(line, names, beside)
        for name in (name for name, times in named.items() if times > 1):
            self._findings.add("pictures that two lines name", f"{folder}/{name}")
        self.counts["files that no line names"] += len(files.keys() - named.keys())
        used = {name for name in beside if name.removesuffix(".json") in stems and name.endswith(".json")}
        _check_sizes(f"{self._sidecars}/{folder}", sorted(used), beside, "empty side-car files", self._findings)
        if self._sidecars:
            self.counts["side-car files of no picture"] += len(beside.keys() - used)

    def _at_line(self, line: Line, names: list[str], beside: Mapping[str, int]) -> Pictures:
        has_sidecar = np.array([f"{stem_of(name)}.json" in beside for name in names])
        if self._sidecars and line.pid != JUNK:
            self.counts["frames without a side-car file"] += int((~has_sidecar).sum())
        camera = 0 if line.pid == JUNK else _check_names(line, names, self._findings)
        return Pictures("/".join(name.removeprefix(line.stem) for name in names), has_sidecar, camera)

    def at_rest(self, known: set[str]) -> None:
        """Count what lies beside the folders that lines name."""
        for top in sorted({str(PurePosixPath(folder).parent) for folder in known} - {"."}):
            others = [f"{top}/{name}" for name in self.folders.folders(top)]
            files = sum(len(self.folders.files(folder)) for folder in [top, *others] if folder not in known)
            self.counts["files that no line names"] += files


def _match(lines: list[Line], pictures: Sequence[str], findings: Findings) -> dict[Line, list[str]]:
    """Find the pictures of each line of one folder: names that begin with its stem and an underscore.

    Where there are none, names that begin with the stem alone will do, as long as it is plain that they are meant:
    `0001_1` must not get the pictures of `0001_10`.

    Args:
        lines: of the folder.
        pictures: names, sorted.
        findings: for lines without pictures.
    """
    found = {line: _begin_with(f"{line.stem}_", pictures) for line in lines}
    taken = {name for names in found.values() for name in names}
    for line in (line for line, names in found.items() if not names):
        names = _begin_with(line.stem, pictures)
        cut = line.stem[-1:].isdigit() and any(name[len(line.stem) :][:1].isdigit() for name in names)
        if line.pid == JUNK:
            continue
        wanted = f"{line.place}: expected names in {line.folder} that begin with {line.stem}_"
        if not names:
            findings.add("lines without pictures", wanted)
        elif cut or taken & set(names):
            findings.add("lines whose pictures might be another line's", f"{wanted}, found {names[0]}")
        found[line] = names
    return found


def _begin_with(prefix: str, names: Sequence[str]) -> list[str]:
    first = bisect.bisect_left(names, prefix)
    return list(itertools.takewhile(lambda name: name.startswith(prefix), names[first:]))


def _check_names(line: Line, names: list[str], findings: Findings) -> int:
    """Check that a tracklet's names tell one camera and one order of time; give the camera, 0 where it is not plain."""
    cameras = set()
    for name in names:
        tokens = stem_of(name).split("_")
        token = tokens[_CAMERA_TOKEN] if len(tokens) >= _LEAST_TOKENS else ""
        camera = int(token) if re.fullmatch("[0-9]{1,9}", token) else 0
        cameras.add(camera)
        if not 1 <= camera <= CAMERAS:
            wanted = f"the third of at least {_LEAST_TOKENS} parts to be the camera, 1 to {CAMERAS}"
            findings.add("names that tell no camera", f"{line.folder}/{name}: expected {wanted}")
    if len(cameras) > 1:
        found = f"{line.place} ({names[0]}, ...): found cameras {sorted(cameras)}, expected one"
        findings.add("tracklets of several cameras", found)
    # As text 10 comes before 2: where both orders differ, or two frames have one place, the order of time is a guess.
    keys = [tuple(int(digits) for digits in re.findall("[0-9]+", stem_of(name))) for name in names]
    for before, after in itertools.pairwise(range(len(names))):
        if keys[before] >= keys[after]:
            found = f"{line.place}: {names[after]} comes behind {names[before]} as text, expected the same of numbers"
            findings.add("tracklets whose frames have no plain order", found)
            break
    return cameras.pop() if len(cameras) == 1 else 0


def _check_sizes(where: str, names: Sequence[str], files: Mapping[str, int], kind: str, findings: Findings) -> None:
    for name in names:
        if files[name] == 0:
            findings.add(kind, f"{where}/{name}: found 0 bytes")
