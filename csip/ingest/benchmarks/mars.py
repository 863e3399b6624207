"""MARS: pictures of tracklets under six cameras, and the index files that say who is who (datasets.md section 2).

Shapes: N pictures named by a list.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from csip.config import BenchmarkConfig
from csip.ingest.benchmarks.checking import Findings, Folders
from csip.ingest.benchmarks.crops import CropFile, SkeletonSource, load_crops, require_sidecars
from csip.ingest.benchmarks.mars_index import DISTRACTOR, JUNK, Half, MarsIndex, read_index
from csip.ingest.benchmarks.records import Benchmark, BenchmarkTracklet, Role, SplitRow
from csip.plain import digest
from csip.protocols import MARS

MARS_VERSION: Final = 1
"""Raise it when a change to this loader changes the rows that it makes of the same files."""

_PLACES = ("bbox_train", "bbox_test", "info")


@dataclass(frozen=True, slots=True, eq=False)
class _Pictures:
    """What lies on disk for one half.

    Attributes:
        has_sidecar: (N,) bool, the picture has a side-car file.
        unnamed: files among the pictures that no row names.
        spare: side-car files of no picture.
    """

    has_sidecar: npt.NDArray[np.bool_]
    unnamed: int
    spare: int


def mars(root: Path, source: str, skeletons: SkeletonSource, config: BenchmarkConfig) -> Benchmark:
    """Check a copy of MARS and describe it; no picture is read yet, but each is looked for.

    Args:
        root: folder of bbox_train, bbox_test and info, and of the side-car files where there are any.
        source: as the user named it.
        skeletons: where they come from.
        config: how the folder becomes rows.

    Raises:
        SourceError: the copy is not what it should be; one message lists everything that is wrong.
    """
    root = root.absolute()
    sidecars = config.skeleton_folder if skeletons.reads_sidecars else ""
    findings = Findings(source)
    _check_places(root, findings)
    index = read_index(root / "info", findings)
    folders = Folders(root)
    halves = {half.name: half for half in (index.train, index.test)}
    seen = {half.name: _look(half, folders, sidecars, findings) for half in halves.values()}
    if sidecars:
        expected = f"{root / sidecars}: expected files such as bbox_train/0001/0001C1T0001F001.json"
        found = any(one.has_sidecar.any() for one in seen.values())
        require_sidecars(found, expected, findings)
    findings.refuse(
        "Unpack bbox_train and bbox_test of MARS again, and check that the disk was not full. Extract bad side-car "
        "files again, or remove them: their frames then count as frames without skeleton."
    )
    content = digest("mars", MARS_VERSION, index.digest, folders.digest(), skeletons.digest)
    rows = split_rows(index, content[:12])
    about = {row.tracklet_id: row for row in rows}

    def load(name: str) -> BenchmarkTracklet:
        row = about[name]
        _, half, number = name.split("-")
        files = _crop_files(root, halves[half], int(number) - 1, seen[half], sidecars)
        return load_crops(name, row.pid, row.camid, files, skeletons)

    counts = {
        **count_rows(index),
        "files that no row names": sum(one.unnamed for one in seen.values()),
        **(_count_sidecars(halves, seen) if sidecars else {}),
    }
    return Benchmark(MARS, content, rows, load, skeletons.layout, dict(skeletons.extractor), counts)


def tracklet_id(prefix: str, half: str, row: int) -> str:
    """Name a tracklet so that names sort as rows do; `row` counts from 1, as the index files count."""
    return f"{prefix}-{half}-{row:05d}"


def split_rows(index: MarsIndex, prefix: str) -> tuple[SplitRow, ...]:
    """Say who trains, asks and answers: junk has no row, and distractors answer like everybody who does not ask.

    Args:
        index: of the data set.
        prefix: of the tracklets' names.
    """
    asking = set(index.queries.tolist())
    rows = []
    for half in (index.train, index.test):
        for i, (_, _, pid, camera) in enumerate(half.rows.tolist()):
            if pid == JUNK:
                continue
            role: Role = "train" if half is index.train else "query" if i in asking else "gallery"
            name = tracklet_id(prefix, half.name, i + 1)
            rows.append(SplitRow(name, MARS, "0", role, pid, camera - 1, f"mars-{camera}"))
    return tuple(rows)


def count_rows(index: MarsIndex) -> dict[str, int]:
    """Count people, tracklets and pictures by what they are for."""
    pid = index.test.rows[:, 2]
    asking = pid[index.queries]
    kept = np.count_nonzero(pid != JUNK)
    return {
        "training people": len(np.unique(index.train.rows[:, 2])),
        "training tracklets": len(index.train.rows),
        "training pictures": len(index.train.pictures),
        "query people": len(np.unique(asking)),
        "query tracklets": len(asking),
        "gallery tracklets besides the queries": int(kept) - len(asking),
        "distractor tracklets among them": int(np.count_nonzero(pid == DISTRACTOR)),
        "test pictures": int(np.count_nonzero(index.test.pid != JUNK)),
        "junk tracklets left out": int(np.count_nonzero(pid == JUNK)),
        "junk pictures left out": int(np.count_nonzero(index.test.pid == JUNK)),
    }


def _check_places(root: Path, findings: Findings) -> None:
    for name in _PLACES:
        if not (root / name).is_dir():
            findings.add("missing folders", f"{name}: expected {', '.join(_PLACES)} side by side in {root}")
        elif (root / name / name).is_dir():
            findings.add("folders inside their like", f"{name}/{name}: expected what it holds one folder further up")
    findings.refuse(
        "Name the folder that holds all three. The pictures (bbox_train, bbox_test) and info are two downloads; info "
        "is a folder of the official MARS-evaluation repository. Move what lies too deep with mv."
    )


def _look(half: Half, folders: Folders, sidecars: str, findings: Findings) -> _Pictures:
    """Look for every picture that a half names, one folder (person) at a time."""
    top = f"bbox_{half.name}"
    has_sidecar = np.zeros(len(half.pictures), np.bool_)
    unnamed, spare, people = len(folders.files(top)), 0, set()
    # Rows are sorted by person, and names agree with rows: a person's names lie together.
    begins = np.flatnonzero(np.diff(half.pid, prepend=JUNK - 1)).tolist()
    for first, end in zip(begins, [*begins[1:], len(half.pictures)], strict=True):
        names = [name.decode() for name in half.pictures[first:end].tolist()]
        person = names[0][:4]
        people.add(person)
        files = folders.files(f"{top}/{person}")
        _check_pictures(f"{top}/{person}", names, files, findings)
        unnamed += len(files.keys() - set(names))
        if sidecars and half.pid[first] != JUNK:
            where = f"{sidecars}/{top}/{person}"
            beside = folders.files(where)
            stems = [_sidecar_name(name) for name in names]
            has_sidecar[first:end] = [name in beside for name in stems]
            spare += len(beside.keys() - set(stems))
            for name in stems:
                if beside.get(name) == 0:
                    findings.add("empty side-car files", f"{where}/{name}")
    unnamed += sum(len(folders.files(f"{top}/{name}")) for name in folders.folders(top) if name not in people)
    return _Pictures(has_sidecar, unnamed, spare)


def _check_pictures(where: str, names: list[str], files: dict[str, int], findings: Findings) -> None:
    before: set[str] = set()
    for name in names:
        size = files.get(name)
        if size is None:
            findings.add("missing pictures", f"{where}/{name}")
        elif size == 0:
            findings.add("empty pictures", f"{where}/{name}: found 0 bytes")
        if name in before:
            findings.add("pictures that two lines name", f"{where}/{name}")
        before.add(name)


def _sidecar_name(picture: str) -> str:
    return f"{picture.removesuffix('.jpg')}.json"


def _crop_files(root: Path, half: Half, row: int, pictures: _Pictures, sidecars: str) -> list[CropFile]:
    """List a tracklet's frames, each with the side-car file of its own stem."""
    lines = half.lines(row)
    top = f"bbox_{half.name}"
    files = []
    for picture, frame, has_sidecar in zip(
        half.pictures[lines].tolist(), half.frame[lines].tolist(), pictures.has_sidecar[lines].tolist(), strict=True
    ):
        name = picture.decode()
        sidecar = root / sidecars / top / name[:4] / _sidecar_name(name) if has_sidecar else None
        files.append(CropFile(root / top / name[:4] / name, frame, sidecar))
    return files


def _count_sidecars(halves: dict[str, Half], seen: dict[str, _Pictures]) -> dict[str, int]:
    missing = sum(int(((half.pid != JUNK) & ~seen[name].has_sidecar).sum()) for name, half in halves.items())
    return {
        "frames without a side-car file": missing,
        "side-car files of no picture": sum(one.spare for one in seen.values()),
    }
