"""LS-VID: pictures of tracklets under 15 cameras, and the index files that say who is who (datasets.md section 3)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from csip.config import BenchmarkConfig
from csip.ingest.benchmarks.checking import Findings
from csip.ingest.benchmarks.crops import CropFile, SkeletonSource, load_crops, require_sidecars
from csip.ingest.benchmarks.lsvid_index import JUNK, Line, LsvidIndex, read_index
from csip.ingest.benchmarks.lsvid_pictures import Look, Pictures, stem_of
from csip.ingest.benchmarks.records import Benchmark, BenchmarkTracklet, Role, SplitRow
from csip.plain import digest
from csip.protocols import LSVID

LSVID_VERSION: Final = 1
"""Raise it when a change to this loader changes the rows that it makes of the same files."""

_ADVICE = (
    "Unpack LS-VID again, and check that the disk was not full. Extract bad side-car files again, or remove them: "
    "their frames then count as frames without skeleton."
)


def sidecar_folder(root: Path, config: BenchmarkConfig) -> Path:
    """Say where side-car files with skeletons would be; below it folders are as in the data set."""
    return root / config.skeleton_folder


def lsvid(root: Path, source: str, skeletons: SkeletonSource, config: BenchmarkConfig) -> Benchmark:
    """Check a copy of LS-VID and describe it; no picture is read yet, but each is looked for.

    Args:
        root: folder of tracklet_train and tracklet_test, of the index files (see `read_index`), and of the side-car
            files where there are any.
        source: as the user named it.
        skeletons: where they come from.
        config: how the folder becomes rows.

    Raises:
        SourceError: the copy is not what it should be; one message lists everything that is wrong.
    """
    root = root.absolute()
    sidecars = config.skeleton_folder if skeletons.reads_sidecars else ""
    findings = Findings(source)
    index = read_index(root, findings)
    look = Look(root, sidecars, findings)
    lines = (*index.train, *index.test)
    # A stable sort: lines of one folder need not lie together, and keep their order.
    for folder, together in itertools.groupby(sorted(lines, key=lambda line: line.folder), lambda line: line.folder):
        look.at_folder(folder, list(together))
    look.at_rest({line.folder for line in lines})
    _check_cameras(index, look.pictures, findings)
    if sidecars:
        expected = f"{root / sidecars}: expected files such as tracklet_train/0001/NAME.json for NAME.jpg"
        found = any(one.has_sidecar.any() for one in look.pictures.values())
        require_sidecars(found, expected, findings)
    findings.refuse(_ADVICE)
    content = digest("lsvid", LSVID_VERSION, index.digest, look.folders.digest(), skeletons.digest)
    rows = _split_rows(index, look.pictures, content[:12])
    about = {row.tracklet_id: (line, row) for line, row in rows}

    def load(name: str) -> BenchmarkTracklet:
        line, row = about[name]
        return load_crops(name, row.pid, row.camid, _crop_files(root, line, look.pictures[line], sidecars), skeletons)

    counts = _count(index, look.pictures) | dict(look.counts)
    return Benchmark(
        LSVID, content, tuple(r for _, r in rows), load, skeletons.layout, dict(skeletons.extractor), counts
    )


def _check_cameras(index: LsvidIndex, pictures: Mapping[Line, Pictures], findings: Findings) -> None:
    for line, camera in zip(index.test, index.cameras.tolist(), strict=True):
        seen = pictures[line].camera if line in pictures else 0
        if seen and seen != camera:
            found = f"info_test row {line.number}: found camera {camera}, expected {seen} as in the names"
            findings.add("rows of another camera than their pictures", found)


def _split_rows(index: LsvidIndex, pictures: Mapping[Line, Pictures], prefix: str) -> list[tuple[Line, SplitRow]]:
    """Say who trains, asks and answers, line by line; the names of tracklets sort as lines do."""
    asking = set(index.queries.tolist())
    rows = []
    for half in (index.train, index.test):
        for i, line in enumerate(half):
            if line.pid == JUNK:
                continue
            role: Role = "train" if half is index.train else "query" if i in asking else "gallery"
            name, camera = f"{prefix}-{line.half}-{line.number:05d}", pictures[line].camera
            rows.append((line, SplitRow(name, LSVID, "0", role, line.pid, camera - 1, f"lsvid-{camera}")))
    return rows


def _crop_files(root: Path, line: Line, pictures: Pictures, sidecars: str) -> list[CropFile]:
    """List a tracklet's frames, each with the side-car file of its own stem."""
    files = []
    for i, (name, has_sidecar) in enumerate(zip(pictures.names(line), pictures.has_sidecar.tolist(), strict=True)):
        beside = root / sidecars / line.folder / f"{stem_of(name)}.json" if has_sidecar else None
        files.append(CropFile(root / line.folder / name, i, beside))
    return files


def _count(index: LsvidIndex, pictures: Mapping[Line, Pictures]) -> dict[str, int]:
    """Count people, tracklets and pictures by what they are for."""
    train, test = ([line for line in half if line.pid != JUNK] for half in (index.train, index.test))
    junk = [line for line in (*index.train, *index.test) if line.pid == JUNK]
    asking = [index.test[i].pid for i in index.queries.tolist()]
    return {
        "training people": len({line.pid for line in train}),
        "training tracklets": len(train),
        "training pictures": sum(len(pictures[line]) for line in train),
        "query people": len(set(asking)),
        "query tracklets": len(asking),
        "gallery tracklets besides the queries": len(test) - len(asking),
        "test pictures": sum(len(pictures[line]) for line in test),
        "junk tracklets left out": len(junk),
        "junk pictures left out": sum(len(pictures[line]) for line in junk if line in pictures),
        **({} if index.validation is None else {"validation tracklets not imported": index.validation}),
    }
