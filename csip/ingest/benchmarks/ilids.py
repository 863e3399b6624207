"""iLIDS-VID: everybody once under each of two cameras, and ten random halves of the people (datasets.md section 4).

Shapes: T frames of a tracklet, K splits, P people.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from csip.config import BenchmarkConfig
from csip.ingest.benchmarks.checking import Findings, Folders
from csip.ingest.benchmarks.crops import CropFile, SkeletonSource, load_crops, require_sidecars
from csip.ingest.benchmarks.matlab import read_matlab, whole_numbers
from csip.ingest.benchmarks.records import Benchmark, BenchmarkTracklet, Role, SplitRow
from csip.plain import digest
from csip.protocols import ILIDS_TEST_FIRST, ILIDS_TRAIN_FIRST
from csip.types import IntArray

ILIDS_VERSION: Final = 1
"""Raise it when a change to this loader changes the rows that it makes of the same files."""

_CAMERAS = (1, 2)
_BASES = (".", "i-LIDS-VID", "iLIDS-VID/i-LIDS-VID", "raw/iLIDS-VID/i-LIDS-VID")
_SPLITS = "train-test people splits/train_test_splits_ilidsvid.mat"
_SPLITS_KEY = "ls_set"
_PERSON = re.compile(r"person([0-9]{3})")
_FRAME = re.compile(r"cam([12])_person([0-9]{3})_([0-9]{5})\.png")
_ADVICE = (
    "Unpack iLIDS-VID.tar again, and check that the disk was not full. Extract bad side-car files again, or remove "
    "them: their frames then count as frames without skeleton."
)

_Key = tuple[int, int]  # camera from 1, pid


@dataclass(frozen=True, slots=True, eq=False)
class _Tracklet:
    """One person under one camera.

    Attributes:
        frames: (T,) int64, numbers in the names, ascending.
        has_sidecar: (T,) bool, the frame has a side-car file.
    """

    frames: IntArray
    has_sidecar: npt.NDArray[np.bool_]


def sidecar_folder(root: Path, config: BenchmarkConfig) -> Path:
    """Say where side-car files with skeletons are, or would be; below it folders are as in `sequences`.

    CSIP-ReID looks in i-LIDS-VID beside `sequences`, of whatever name the root has; a folder right below the root, as
    the other data sets have it, will do too.
    """
    beside = [root / base / f"sequences_{config.skeleton_folder}" for base in ("i-LIDS-VID", *_BASES)]
    return next((place for place in (*beside, root / config.skeleton_folder) if place.is_dir()), beside[0])


def ilids(root: Path, source: str, skeletons: SkeletonSource, config: BenchmarkConfig) -> Benchmark:
    """Check a copy of iLIDS-VID and describe it; no picture is read yet, but each is looked for.

    Both readings of the splits become rows: the first half of a permutation of people, P // 2 of them, is the test half
    under one protocol and the training half under the other.

    Args:
        root: folder of i-LIDS-VID and of the people's splits, one above it (raw/iLIDS-VID), or i-LIDS-VID itself.
        source: as the user named it.
        skeletons: where they come from; side-car files from `sidecar_folder`.
        config: how the folder becomes rows.

    Raises:
        SourceError: the copy is not what it should be; one message lists everything that is wrong.
    """
    root = root.absolute()
    findings = Findings(source)
    base, splits_file = _find_places(root, findings)
    sidecars = sidecar_folder(root, config) if skeletons.reads_sidecars else None
    look = _Look(base, sidecars, findings)
    people = look.at_cameras()
    halves = _read_splits(splits_file, len(people), findings)
    findings.refuse(_ADVICE)
    seen = (look.pictures.digest(), look.beside.digest())
    content = digest("ilids", ILIDS_VERSION, halves.tolist(), seen, skeletons.digest)
    about = {f"{content[:12]}-cam{camera}-person{pid:03d}": (camera, pid) for camera, pid in sorted(look.tracklets)}

    def load(name: str) -> BenchmarkTracklet:
        camera, pid = about[name]
        files = _crop_files(base, sidecars, (camera, pid), look.tracklets[camera, pid])
        return load_crops(name, pid, camera - 1, files, skeletons)

    counts = {
        "people": len(people),
        "pictures": sum(len(one.frames) for one in look.tracklets.values()),
        "splits of the people": len(halves),
        "people in the first half of each": len(people) // 2,
        **look.counts,
    }
    rows = tuple(_split_rows(halves, people, about))
    return Benchmark("ilids", content, rows, load, skeletons.layout, dict(skeletons.extractor), counts)


def _find_places(root: Path, findings: Findings) -> tuple[Path, Path]:
    """Find the folder that holds `sequences`, and the file of splits, which lies beside that folder."""
    base = next((root / base for base in _BASES if (root / base / "sequences").is_dir()), None)
    if base is None:
        wanted = " or ".join("sequences" if base == "." else f"{base}/sequences" for base in _BASES)
        findings.add("missing folders", f"{root}: expected {wanted}")
    places = [place / _SPLITS for place in ((base or root).parent, base or root, root)]
    splits_file = next((place for place in places if place.is_file()), None)
    if splits_file is None:
        findings.add(
            "missing index files", f"{_SPLITS}: expected it in {' or '.join(str(p.parents[1]) for p in places)}"
        )
    findings.refuse("Name the folder that iLIDS-VID.tar was unpacked in, with all that it brought.")
    return base or root, splits_file or root


class _Look:
    """Looks for everybody's pictures under both cameras.

    Args:
        base: folder of `sequences`.
        sidecars: folder of the side-car files; None to look for none.
        findings: where everything that is wrong goes.

    Attributes:
        pictures: what was listed of the pictures.
        beside: what was listed of the side-car files.
        tracklets: by camera and person.
        counts: what was left out.
    """

    def __init__(self, base: Path, sidecars: Path | None, findings: Findings) -> None:
        self._sidecars, self._findings = sidecars, findings
        self.pictures = Folders(base / "sequences")
        self.beside = Folders(sidecars or base)
        self.tracklets: dict[_Key, _Tracklet] = {}
        self.counts = Counter({"folders that are nobody's": 0, "files that are no pictures": 0})
        if sidecars:
            self.counts.update({"frames without a side-car file": 0, "side-car files of no picture": 0})

    def at_cameras(self) -> list[int]:
        """Look under both cameras; give the people, in the order of their folders."""
        under = {}
        for camera in _CAMERAS:
            names = self.pictures.folders(f"cam{camera}")
            found = {name: int(match[1]) for name in names if (match := _PERSON.fullmatch(name))}
            self.counts["folders that are nobody's"] += len(names) - len(found)
            for name, pid in found.items():
                self.tracklets[camera, pid] = self._at_person(camera, name)
            under[camera] = set(found.values())
        for camera, other in zip(_CAMERAS, reversed(_CAMERAS), strict=True):
            for pid in sorted(under[other] - under[camera]):
                found_at = f"sequences/cam{other}/person{pid:03d}, expected cam{camera}/person{pid:03d} as well"
                self._findings.add("people under one camera only", f"found {found_at}")
        if self._sidecars:
            expected = f"{self._sidecars}: expected files such as cam1/person001/cam1_person001_00317.json"
            any_there = any(one.has_sidecar.any() for one in self.tracklets.values())
            require_sidecars(any_there, expected, self._findings)
        return sorted(under[1] | under[2])

    def _at_person(self, camera: int, person: str) -> _Tracklet:
        folder = f"cam{camera}/{person}"
        frames, example = {}, f"cam{camera}_{person}_00317.png"
        for name, size in self.pictures.files(folder).items():
            match = _FRAME.fullmatch(name)
            if not name.lower().endswith(".png"):
                self.counts["files that are no pictures"] += 1
            elif match is None or not name.startswith(example[:-9]):
                found = f"sequences/{folder}/{name}: expected one like {example}"
                self._findings.add("pictures with other names than their folder's", found)
            elif size == 0:
                self._findings.add("empty pictures", f"sequences/{folder}/{name}: found 0 bytes")
            else:
                frames[f"{name.removesuffix('.png')}.json"] = int(match[3])
        if not frames:
            self._findings.add("people without pictures", f"sequences/{folder}: expected pictures like {example}")
        # Names are padded with zeros, and sorted: so are the numbers in them.
        numbers = np.array(list(frames.values()), np.int64)
        return _Tracklet(numbers, self._find_sidecars(folder, list(frames)))

    def _find_sidecars(self, folder: str, names: list[str]) -> npt.NDArray[np.bool_]:
        if self._sidecars is None:
            return np.zeros(len(names), np.bool_)
        files = self.beside.files(folder)
        has_sidecar = np.array([name in files for name in names], np.bool_)
        self.counts["frames without a side-car file"] += int((~has_sidecar).sum())
        self.counts["side-car files of no picture"] += len(files.keys() - set(names))
        for name in names:
            if files.get(name) == 0:
                self._findings.add("empty side-car files", f"{self._sidecars / folder / name}: found 0 bytes")
        return has_sidecar


def _read_splits(path: Path, people: int, findings: Findings) -> IntArray:
    """Read the splits (K, P), each a permutation of 0..P-1: places in the sorted list of people, not their numbers."""
    nothing = np.zeros((0, people), np.int64)
    content = read_matlab(path, findings)
    if content is None:
        return nothing
    if _SPLITS_KEY not in content:
        found = ", ".join(sorted(content)) or "nothing"
        findings.add("index files without their matrix", f"{path}: found {found}, expected {_SPLITS_KEY}")
        return nothing
    array = content[_SPLITS_KEY]
    numbers = whole_numbers(array)
    if numbers is None or array.ndim != 2 or array.size == 0:
        wanted = "whole numbers of shape (splits, people)"
        found = f"{path}: found {_SPLITS_KEY} as {array.dtype} of shape {array.shape}, expected {wanted}"
        findings.add("matrices of another kind", found)
        return nothing
    if numbers.shape[1] != people:
        found = f"{path}: found {numbers.shape[1]} columns, expected {people}, one for each person in sequences"
        findings.add("splits of another number of people", found)
        return nothing
    if people < 2:
        findings.add("data sets too small to halve", f"{path}: found {people} person, expected at least 2")
    for k, row in enumerate(numbers.tolist(), 1):
        times = Counter(row)
        wrong = [value for value in row if times[value] > 1 or not 1 <= value <= people]
        if wrong:
            found = f"{path} row {k}: found {wrong[0]} {times[wrong[0]]} times, expected each of 1 to {people} once"
            findings.add("splits that are no permutation", found)
    return numbers - 1


def _split_rows(halves: IntArray, people: list[int], about: Mapping[str, _Key]) -> Iterator[SplitRow]:
    """Say who trains, asks (camera 1) and answers (camera 2), under both readings of every split."""
    for protocol, first_is_test in ((ILIDS_TEST_FIRST, True), (ILIDS_TRAIN_FIRST, False)):
        for k, order in enumerate(halves.tolist()):
            first = {people[place] for place in order[: len(people) // 2]}
            for name, (camera, pid) in about.items():
                asks: Role = "query" if camera == 1 else "gallery"
                role: Role = asks if (pid in first) is first_is_test else "train"
                yield SplitRow(name, protocol, str(k), role, pid, camera - 1, f"ilids-{camera}")


def _crop_files(base: Path, sidecars: Path | None, key: _Key, tracklet: _Tracklet) -> list[CropFile]:
    """List a tracklet's frames, each with the side-car file of its own stem."""
    camera, pid = key
    folder = Path(f"cam{camera}", f"person{pid:03d}")
    files = []
    for frame, has_sidecar in zip(tracklet.frames.tolist(), tracklet.has_sidecar.tolist(), strict=True):
        stem = f"cam{camera}_person{pid:03d}_{frame:05d}"
        beside = sidecars / folder / f"{stem}.json" if sidecars and has_sidecar else None
        files.append(CropFile(base / "sequences" / folder / f"{stem}.png", frame, beside))
    return files
