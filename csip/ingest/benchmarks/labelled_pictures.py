"""Tracklets of one's own that lie on disk as pictures: which files each has, and how they are loaded.

Shapes: T frames of a tracklet.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from csip.ingest.benchmarks.checking import Findings, Folders
from csip.ingest.benchmarks.crops import MEDIA_TYPES, CropFile, SkeletonSource, load_crops, require_sidecars
from csip.ingest.benchmarks.labelled_people import Labels, natural, number_cameras
from csip.ingest.benchmarks.records import BenchmarkTracklet
from csip.plain import digest
from csip.types import IntArray

_NO_PICTURE = "files that are no pictures"
_WITHOUT_SIDECAR = "frames without a side-car file"
_SPARE = "side-car files of no picture"
_JUNK = "junk tracklets left out"


@dataclass(frozen=True, slots=True, eq=False)
class _Tracklet:
    """Where a tracklet's T pictures lie.

    Attributes:
        labels: whose they are.
        paths: of the pictures, relative to the root.
        frame_index: (T,) strictly increasing.
        has_sidecar: (T,) bool.
        digest: of the labels, and of the names and sizes of all files.
    """

    labels: Labels
    paths: tuple[str, ...]
    frame_index: IntArray
    has_sidecar: npt.NDArray[np.bool_]
    digest: str


class Pictures:
    """The listing of tracklets that are pictures; `add_folder` and `add_pictures` fill it, `sort` ends that.

    Only names and sizes are looked at: a picture that is changed without changing its size goes unnoticed.

    Args:
        root: that all paths are relative to, absolute.
        skeletons: where they come from.
        sidecars: name of the folder of side-car files below the root; empty to look for none.
        findings: where everything that is wrong goes.
    """

    def __init__(self, root: Path, skeletons: SkeletonSource, sidecars: str, findings: Findings) -> None:
        self._root, self._skeletons, self._sidecars, self._findings = root, skeletons, sidecars, findings
        self.folders = Folders(root)
        self._tracklets: list[_Tracklet] = []
        self._counts: Counter[str] = Counter({_JUNK: 0, _NO_PICTURE: 0})
        if sidecars:
            self._counts[_WITHOUT_SIDECAR] = 0

    @property
    def labels(self) -> Sequence[Labels]:
        """Of each tracklet, by role, person, camera and name."""
        return [one.labels for one in self._tracklets]

    @property
    def lengths(self) -> Sequence[int]:
        """Pictures of each tracklet."""
        return [len(one.paths) for one in self._tracklets]

    @property
    def digest(self) -> str:
        """Digest of labels, and of names and sizes of the pictures and side-car files that are used."""
        return digest("pictures", [one.digest for one in self._tracklets])

    @property
    def counts(self) -> Mapping[str, int]:
        """What was left out."""
        return self._counts

    def load(self, number: int, tracklet_id: str, camid: int) -> BenchmarkTracklet:
        """Read a tracklet's pictures and skeletons, by its position in `labels`.

        Raises:
            SourceError: a file cannot be read, is no picture, or holds no skeleton where it should.
        """
        one = self._tracklets[number]
        files = [
            CropFile(self._root / path, frame, self._root / self._sidecar(path) if has_sidecar else None)
            for path, frame, has_sidecar in zip(
                one.paths, one.frame_index.tolist(), one.has_sidecar.tolist(), strict=True
            )
        ]
        return load_crops(tracklet_id, one.labels.pid, camid, files, self._skeletons)

    def leave_out(self) -> None:
        """Count a junk tracklet."""
        self._counts[_JUNK] += 1

    def add_folder(self, labels: Labels, folder: str) -> None:
        """Add the tracklet that a folder's pictures make: frames are numbered from 0 in the pictures' order."""
        files = self.folders.files(folder)
        names = sorted((name for name in files if is_picture(name)), key=natural)
        self._counts[_NO_PICTURE] += len(files) - len(names)
        for name in self.folders.folders(folder):
            self._findings.add("folders inside of tracklets", f"{folder}/{name}: expected pictures only")
        if not names:
            self._findings.add("tracklets without a picture", f"{folder}: expected {', '.join(MEDIA_TYPES)}")
        sidecars = [-1] * len(names)
        if self._sidecars:
            beside = self.folders.files(f"{self._sidecars}/{folder}")
            wanted = [f"{PurePosixPath(name).stem}.json" for name in names]
            sidecars = [beside.get(name, -1) for name in wanted]
            self._counts[_SPARE] += len(beside.keys() - set(wanted))
        sizes = [files[name] for name in names]
        self._add(labels, [f"{folder}/{name}" for name in names], np.arange(len(names)), sizes, sidecars)

    def add_pictures(self, labels: Labels, paths: Sequence[str], frame_index: IntArray) -> None:
        """Add the tracklet of T pictures that may lie anywhere below the root.

        Args:
            labels: whose they are.
            paths: relative to the root.
            frame_index: (T,) strictly increasing.
        """
        sizes = [self._size(path) for path in paths]
        for path, size in zip(paths, sizes, strict=True):
            if size < 0:
                self._findings.add("missing pictures", path)
            elif not is_picture(path):
                self._findings.add("names of no picture", f"{path}: expected {', '.join(MEDIA_TYPES)}")
        sidecars = [self._size(self._sidecar(path)) if self._sidecars else -1 for path in paths]
        self._add(labels, paths, frame_index, sizes, sidecars)

    def sort(self) -> None:
        """Bring the tracklets into the order in which they are numbered, whatever order they were added in."""
        camids = number_cameras(one.labels.camera for one in self._tracklets)

        def place(one: _Tracklet) -> tuple[str, int, int, tuple[tuple[int, ...], str]]:
            labels = one.labels
            return (labels.role, labels.pid, camids[labels.camera], natural(labels.tracklet))

        self._tracklets.sort(key=place)
        if self._sidecars and self._tracklets:
            expected = f"{self._sidecars}: expected files such as {self._sidecar(self._example())}"
            found = any(one.has_sidecar.any() for one in self._tracklets)
            require_sidecars(found, expected, self._findings)

    def _example(self) -> str:
        return next((path for one in self._tracklets for path in one.paths), "train/0001/1/1/000001.jpg")

    def _sidecar(self, path: str) -> str:
        return f"{self._sidecars}/{PurePosixPath(path).with_suffix('.json')}"

    def _size(self, path: str) -> int:
        """Bytes of a file; -1 for none."""
        try:
            found = (self._root / path).stat()
            return found.st_size if stat.S_ISREG(found.st_mode) else -1
        except PermissionError:
            raise  # a side-car file that may not be read is not one that is missing
        except OSError:
            return -1

    def _add(
        self, labels: Labels, paths: Sequence[str], frame_index: IntArray, sizes: list[int], sidecars: list[int]
    ) -> None:
        stems: dict[PurePosixPath, str] = {}
        for path, size, sidecar in zip(paths, sizes, sidecars, strict=True):
            if size == 0:
                self._findings.add("empty pictures", f"{path}: found 0 bytes")
            if sidecar == 0:
                self._findings.add("empty side-car files", f"{self._sidecar(path)}: found 0 bytes")
            other = stems.setdefault(PurePosixPath(path).with_suffix(""), path)
            if other != path:
                self._findings.add(
                    "pictures of the same name", f"{path}: found {other} beside it, expected one of them"
                )
        if self._sidecars:
            self._counts[_WITHOUT_SIDECAR] += sidecars.count(-1)
        files = list(zip(paths, frame_index.tolist(), sizes, sidecars, strict=True))
        about = (labels.role, labels.pid, labels.camera, labels.tracklet)
        self._tracklets.append(
            _Tracklet(labels, tuple(paths), frame_index, np.array(sidecars, np.int64) >= 0, digest(about, files))
        )


def is_picture(path: str) -> bool:
    """Tell by its suffix whether a file is a picture."""
    return PurePosixPath(path).suffix.lower() in MEDIA_TYPES
