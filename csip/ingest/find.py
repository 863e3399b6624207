"""What a user names (videos, folders of videos, manifests) to files and their cameras; no video is opened."""

from __future__ import annotations

import csv
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from csip.errors import SourceError
from csip.ingest.container import spell

VIDEO_SUFFIXES = (
    *(".264", ".265", ".266", ".3g2", ".3gp", ".asf", ".avi", ".dav", ".divx", ".dv", ".f4v", ".flv", ".gxf", ".h263"),
    *(".h264", ".h265", ".h266", ".hevc", ".ivf", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v", ".mk3d", ".mkv", ".mov"),
    *(".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".obu", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vc1"),
    *(".vob", ".vvc", ".webm", ".wmv", ".wtv", ".y4m"),
)
_ARCHIVES = (".7z", ".bz2", ".gz", ".rar", ".tar", ".tbz2", ".tgz", ".txz", ".xz", ".zip", ".zst")
SHOWN = 20
"""So many reasons are told one by one."""

# What stands behind the last dot of any other name is no kind of file, but part of what somebody called it.
_KIND = re.compile(r"\.[a-z0-9]{1,5}")
_HIDDEN, _NO_KIND = "hidden", "without an ending"


@dataclass(frozen=True, slots=True)
class Named:
    """A file that a source named, and its camera.

    Attributes:
        path: of the file.
        camera: that took it.
        plain: nobody named the camera.
        told: where a manifest names a file that is not there; empty for all others.
    """

    path: Path
    camera: str
    plain: bool = False
    told: str = ""


@dataclass(slots=True)
class PassedOver:
    """What lay in the folders that were looked through, and is no video to be read.

    Attributes:
        closed: of each folder that cannot be looked into, what is wrong.
        others: how the names of other files end -> how many there are.
    """

    closed: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Found:
    """The files that sources named, and what was passed over beside them; see `PassedOver`."""

    files: tuple[Named, ...]
    closed: tuple[str, ...]
    others: Mapping[str, int]


def expand_all(sources: tuple[str, ...], camera: str) -> Found:
    """Turn sources into the files they name, each with its camera.

    Args:
        sources: videos, folders of videos, or manifests (a .csv with the columns path and camera).
        camera: of all of them; empty: every file is a camera of its own.

    Raises:
        SourceError: no source, no such path, an empty folder, an archive, or a manifest without the right columns or
            of whose paths none is there. Where only some are missing, they are given: whoever reads them says so.
    """
    if not sources:
        raise SourceError("Found no source, expected at least one: name a video, a folder of videos, or a manifest.")
    passed = PassedOver()
    named = [one for source in sources for one in _expand(source, camera, passed)]
    others = dict(sorted(passed.others.items(), key=lambda item: (-item[1], item[0])))
    return Found(tuple(_tell_apart(named, by_name=not camera)), tuple(passed.closed), others)


def real_path(path: Path) -> Path:
    """Follow links as far as they lead; `Path.resolve` raises where they lead in a circle."""
    return Path(os.path.realpath(path))


def _tell_apart(named: list[Named], *, by_name: bool) -> list[Named]:
    """Name plain files by their whole path where two of them, from different sources, would be one camera."""
    if not by_name:
        return named
    files: dict[str, set[Path]] = {}
    for one in named:
        if one.plain:
            files.setdefault(one.camera, set()).add(real_path(one.path))
    return [
        Named(one.path, real_path(one.path).with_suffix("").as_posix(), plain=True)
        if one.plain and len(files[one.camera]) > 1
        else one
        for one in named
    ]


def _expand(source: str, camera: str, passed: PassedOver) -> Iterator[Named]:
    try:
        path = Path(source).expanduser()
    except RuntimeError as error:  # no such user
        raise SourceError(f"{source}: {error} Expected a path; write it out in full.") from error
    what = _look_at(path)
    if path.suffix.lower() == ".csv" and what == "file":
        yield from _read_manifest(path, camera, passed)
        return
    root = path if what == "folder" else path.parent
    for file in find_videos(path, passed):
        # Below the folder that was named: cameras often write files of the same names into folders of their own.
        yield Named(file, camera or file.relative_to(root).with_suffix("").as_posix(), plain=not camera)


def _look_at(path: Path) -> Literal["file", "folder", "nothing"]:
    """Say what lies at a path. What cannot be reached counts as a file: whoever reads it is told why, and goes on."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a name that no file can have
        return "nothing"
    except OSError:
        return "file"
    return "folder" if stat.S_ISDIR(mode) else "file"


def find_videos(source: Path, passed: PassedOver) -> list[Path]:
    """List the videos a source names: the file itself, or every video in a folder and the folders below it.

    Hidden files and folders are passed over, and so is what has no video's name; a folder reached twice through links
    counts once. What has a video's name is listed, be it a dead link.

    Args:
        source: a file or a folder.
        passed: takes note of what is passed over.

    Returns:
        Paths in POSIX order, at least one.

    Raises:
        SourceError: there is no such path, it is an archive, or no video is in the folder.
    """
    what = _look_at(source)
    if what == "file" and source.suffix.lower() in _ARCHIVES:
        raise SourceError(
            f"{spell(source)}: is an archive, expected videos. Archives are not opened here: unpack it where its "
            "contents may lie, and name that folder."
        )
    if what == "nothing":
        raise SourceError(f"{spell(source)}: no such file or folder. Name a video, or a folder that holds videos.")
    if what == "file":
        return [source]
    inside = PassedOver()
    found = sorted(_walk(source, inside), key=Path.as_posix)
    if not found:
        raise SourceError(
            f"{spell(source)}: found no videos and {inside.others.total()} other files; looked for names that end in "
            f"{' '.join(VIDEO_SUFFIXES)}. Name a folder with videos, or a video by its own path."
            + "".join(f" {one}" for one in inside.closed[:SHOWN])
        )
    passed.closed += inside.closed
    passed.others += inside.others
    return found


def _walk(source: Path, passed: PassedOver) -> Iterator[Path]:
    """Give what has a video's name in a folder and those below it."""

    def note(error: OSError) -> None:
        where = spell(Path(error.filename or source))
        passed.closed.append(f"{where}: the folder cannot be looked into ({error.strerror}) and is passed over.")

    seen: set[tuple[int, int]] = set()
    for folder, inner, names in os.walk(source, followlinks=True, onerror=note):
        try:
            here = os.stat(folder)
        except OSError as error:  # It went away, or its disk or network did, while it was listed.
            inner.clear()
            note(error)
            continue
        if (here.st_dev, here.st_ino) in seen:
            inner.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        inner.sort()
        shown = [name for name in inner if not name.startswith(".")]
        if len(shown) < len(inner):
            passed.others[_HIDDEN] += len(inner) - len(shown)
            inner[:] = shown
        for name in names:
            kind = _kind(name)
            if kind in VIDEO_SUFFIXES:
                yield Path(folder, name)
            else:
                passed.others[kind] += 1


def _kind(name: str) -> str:
    """Say what kind of file a name is one of, by how it ends."""
    if name.startswith("."):
        return _HIDDEN
    suffix = Path(name).suffix.lower()
    return suffix if _KIND.fullmatch(suffix) else _NO_KIND


def _read_manifest(path: Path, camera: str, passed: PassedOver) -> Iterator[Named]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            fields, lines = rows.fieldnames, list(rows)
    except OSError as error:
        raise SourceError(
            f"Manifest {spell(path)}: cannot be read ({error.strerror}). Expected a file that this user may read."
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(
            f"Manifest {path}: cannot be read as CSV ({error}). Expected UTF-8 text; save it so."
        ) from error
    if fields is None or not {"path", "camera"} <= set(fields):
        raise SourceError(f"Manifest {path}: found columns {fields}, expected path and camera in the first line.")
    if not lines:
        raise SourceError(f"Manifest {path}: found no lines below the header, expected one a video.")
    named = [one for number, line in enumerate(lines, 2) for one in _read_line(path, number, line, camera, passed)]
    if all(one.told for one in named):
        raise SourceError(
            f"{named[0].told}: {spell(named[0].path)}: no such file or folder, nor is any other of the manifest's "
            f"{len(named)} paths there. Expected paths that are absolute, or relative to the manifest's own folder."
        )
    yield from named


def _read_line(
    manifest: Path, number: int, line: Mapping[str, str], camera: str, passed: PassedOver
) -> Iterator[Named]:
    where = f"Manifest {spell(manifest)}, line {number}"
    if not line["path"] or "\0" in line["path"] or not (camera or line["camera"]):
        raise SourceError(f"{where}: found {line}, expected a path and a camera.")
    path, camera = manifest.parent / line["path"], camera or line["camera"]
    if _look_at(path) == "nothing":
        yield Named(path, camera, told=where)
        return
    try:
        yield from (Named(video, camera) for video in find_videos(path, passed))
    except SourceError as error:
        raise SourceError(f"{where}: {error}") from None
