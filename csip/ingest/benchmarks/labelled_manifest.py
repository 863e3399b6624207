"""A data set of one's own as a manifest: a row a tracklet's folder, or a row a picture.

Shapes: N rows.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from csip.ingest.benchmarks.checking import Findings
from csip.ingest.benchmarks.labelled_index import MEND, Index, check_frames, group_rows, read_index
from csip.ingest.benchmarks.labelled_people import JUNK, below, make_labels
from csip.ingest.benchmarks.labelled_pictures import Pictures
from csip.types import IntArray


def list_manifest(pictures: Pictures, path: Path, findings: Findings) -> None:
    """List what a manifest names: a folder of pictures a row, or with a column `frame` a picture a row.

    Args:
        pictures: of the manifest's folder; filled here.
        path: of the manifest.
        findings: where everything that is wrong goes.

    Raises:
        SourceError: the manifest itself cannot be read, or cells of it.
    """
    index = read_index(path, ("path", "pid", "camera", "split"), ("tracklet", "frame"), findings)
    pid = index.whole("pid", findings)
    for row in np.flatnonzero(pid < JUNK).tolist():
        findings.add("people without a number", f"{index.where(row)}: found pid {pid[row]}, expected 0 or more")
    paths = _read_paths(index, findings)
    if "frame" in index.columns:
        _list_pictures(pictures, index, pid, paths, findings)
    else:
        _list_folders(pictures, index, pid, paths, findings)


def _read_paths(index: Index, findings: Findings) -> list[str]:
    """Read the column `path`; every row has another."""
    code, names = index.texts("path")
    first: dict[str, int] = {}
    paths = []
    for row, name in enumerate(code.tolist()):
        path = below(names[name], index.where(row), findings) or ""
        other = first.setdefault(path, row)
        if path and other != row:
            findings.add("paths that stand there twice", f"{index.where(row)}: found {path!r} as {index.where(other)}")
        paths.append(path)
    return paths


def _list_folders(pictures: Pictures, index: Index, pid: IntArray, paths: list[str], findings: Findings) -> None:
    findings.refuse(MEND)
    (split, splits), (camera, cameras) = index.texts("split"), index.texts("camera")
    named = index.texts("tracklet") if "tracklet" in index.columns else None
    for row, path in enumerate(paths):
        where = index.where(row)
        if pid[row] == JUNK:
            pictures.leave_out()
            continue
        tracklet = path if named is None else named[1][named[0][row]]
        labels = make_labels(splits[split[row]], int(pid[row]), cameras[camera[row]], tracklet, where, findings)
        if not os.path.isdir(pictures.folders.root / path):
            findings.add("missing folders", f"{where}: found no folder {path!r}")
        elif labels is not None:
            pictures.add_folder(labels, path)


def _list_pictures(pictures: Pictures, index: Index, pid: IntArray, paths: list[str], findings: Findings) -> None:
    frame = index.whole("frame", findings)
    if "tracklet" not in index.columns:
        told = f"{index.path}: found frame without tracklet, expected both: they say which pictures are a tracklet"
        findings.add("index files without all columns", told)
    for row in np.flatnonzero(frame < 0).tolist():
        findings.add("frames below 0", f"{index.where(row)}: found frame {frame[row]}, expected 0 or more")
    findings.refuse(MEND)
    (split, splits), (camera, cameras) = index.texts("split"), index.texts("camera")
    tracklet, tracklets = index.texts("tracklet")
    for rows in group_rows(frame, split, pid, camera, tracklet):
        row = int(rows[0])
        if pid[row] == JUNK:
            pictures.leave_out()
            continue
        check_frames(index, rows, frame, findings)
        labels = make_labels(
            splits[split[row]],
            int(pid[row]),
            cameras[camera[row]],
            tracklets[tracklet[row]],
            index.where(row),
            findings,
        )
        if labels is not None:
            pictures.add_pictures(labels, [paths[i] for i in rows.tolist()], frame[rows])
