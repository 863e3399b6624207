"""A data set of one's own as folders: <split>/<pid>/<camera>/<tracklet>/<picture>."""

from __future__ import annotations

from collections.abc import Iterator

from csip.ingest.benchmarks.checking import Findings, Folders
from csip.ingest.benchmarks.labelled_people import JUNK, ROLES, make_labels, parse_pid
from csip.ingest.benchmarks.labelled_pictures import Pictures, is_picture


def list_folder(pictures: Pictures, skip: str, findings: Findings) -> None:
    """List what lies in a folder as <split>/<pid>/<camera>/<tracklet>/<picture>.

    Args:
        pictures: of that folder; filled here.
        skip: name of the folder of side-car files.
        findings: where everything that is wrong goes.
    """
    for split, person, camera, tracklet in _each_tracklet(pictures.folders, skip, findings):
        where = f"{split}/{person}/{camera}/{tracklet}"
        pid = parse_pid(person)
        if pid is None:
            findings.add("people without a number", f"{where}: found {person!r}, expected a whole number, 0 or more")
        elif pid == JUNK:
            pictures.leave_out()
        else:
            labels = make_labels(split, pid, camera, tracklet, where, findings)
            if labels is not None:
                pictures.add_folder(labels, where)


def _each_tracklet(folders: Folders, skip: str, findings: Findings) -> Iterator[tuple[str, str, str, str]]:
    """Walk down to the tracklets' folders; what lies too high is found on the way."""
    for split in folders.folders(""):
        if split == skip:
            continue
        if split not in ROLES:
            wanted = f"{', '.join(ROLES)}, or {skip} with side-car files"
            findings.add("splits of an unknown name", f"found folder {split!r}, expected {wanted}")
            continue
        for person in _inner(folders, split, "<pid>", findings):
            for camera in _inner(folders, f"{split}/{person}", "<camera>", findings):
                where = f"{split}/{person}/{camera}"
                yield from (
                    (split, person, camera, tracklet) for tracklet in _inner(folders, where, "<tracklet>", findings)
                )


def _inner(folders: Folders, where: str, wanted: str, findings: Findings) -> list[str]:
    for name in filter(is_picture, folders.files(where)):
        found = f"{where}/{name}: expected pictures in <split>/<pid>/<camera>/<tracklet>/"
        findings.add("pictures outside of a tracklet's folder", found)
    inner = folders.folders(where)
    if not inner:
        findings.add("empty folders", f"{where}: expected folders {wanted} in it")
    return inner
