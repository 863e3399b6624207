"""What a user names as a source: videos, folders of videos, manifests; to a list of videos known by their content."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from csip import tables
from csip.config import ExtractConfig, RuntimeConfig
from csip.errors import SourceError, VideoError
from csip.ingest.container import spell
from csip.ingest.decoder import Decoder
from csip.ingest.records import extract_digests, finished_videos, record_video
from csip.ingest.video import VideoInfo
from csip.maintenance.forget import forgotten
from csip.types import ExtractDigests, Outcome, Output, Progress, SourceVideo, Stage, VideoList

VIDEO_SUFFIXES = (
    *(".264", ".3gp", ".asf", ".avi", ".flv", ".h264", ".h265", ".hevc", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"),
)
_ARCHIVES = (".7z", ".bz2", ".gz", ".rar", ".tar", ".tbz2", ".tgz", ".txz", ".xz", ".zip", ".zst")
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Named:
    """A file that a source named, and its camera; `plain` where nobody named the camera."""

    path: Path
    camera: str
    plain: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """The files that sources named, and the folders among them that could not be looked into, with the reason."""

    files: tuple[Named, ...]
    closed: tuple[str, ...]


def list_videos(
    out: Output, sources: tuple[str, ...], camera: str, config: ExtractConfig, runtime: RuntimeConfig
) -> Stage[VideoList]:
    """Stage `list_videos`: find the files, know them by content, and say which are still to do.

    Args:
        out: the store.
        sources: videos, folders of videos, or manifests (a .csv with the columns path and camera). What is no readable
            video is quarantined: it has a row in `videos` that says why, and stops none of the others.
        camera: the name of the camera that took all of them; empty: every file is a camera of its own.
        config: decides, with the video's content, whether a video is done.
        runtime: how videos are batched, and how long their decoder is waited for.

    Raises:
        SourceError: a source names nothing to read, or no file in them is a video.
    """
    tables.prepare_store(out.store)
    found = expand_all(sources, camera)
    digests = extract_digests(config)
    videos: dict[str, SourceVideo] = {}
    reasons: list[str] = []
    duplicates = refused = 0
    gone = forgotten(out.store)
    with Decoder(runtime) as decoder:
        for i, one in enumerate(found.files):
            yield Progress("list_videos", i, len(found.files), "files")
            try:
                info = decoder.probe(one.path)
            except VideoError as error:
                reasons.append(str(error))
                record_video(out.store, one.path, None, "quarantined", str(error), 0)
                continue
            if info.sha256 in gone:
                refused += 1
                continue
            duplicates += info.sha256 in videos
            videos.setdefault(info.sha256, _known(info, one.camera))
    yield Progress("list_videos", len(found.files), len(found.files), "files")
    if not videos and refused:
        raise SourceError(
            f"Found {len(found.files)} files, of which {refused} were forgotten here (`csip forget`), and none is left "
            "to build from. Build them into another store if that is meant."
        )
    if not videos:
        raise SourceError(
            f"Found {len(found.files)} files, none of them a readable video. The first: {reasons[0]} "
            "Expected at least one video that FFmpeg can read."
        )
    every = tuple(videos[sha] for sha in sorted(videos))
    listed, counted = list_to_do(out.store, every, digests, runtime)
    counts = {
        "files": len(found.files),
        **counted,
        "duplicate_files": duplicates,
        "forgotten_files": refused,
        "unreadable_files": len(reasons),
        "unreadable_folders": len(found.closed),
        **{f"unreadable {i}": reason for i, reason in enumerate([*reasons, *found.closed][:_SHOWN], 1)},
    }
    return Outcome(listed, counts, digests.weights)


def _tell_apart(named: list[Named], *, by_name: bool) -> list[Named]:
    """Name plain files by their whole path where two of them, from different sources, would be one camera."""
    if not by_name:
        return named
    files: dict[str, set[Path]] = {}
    for one in named:
        if one.plain:
            files.setdefault(one.camera, set()).add(_real(one.path))
    return [
        Named(one.path, _real(one.path).with_suffix("").as_posix(), plain=True)
        if one.plain and len(files[one.camera]) > 1
        else one
        for one in named
    ]


def _known(info: VideoInfo, camera: str) -> SourceVideo:
    return SourceVideo(info.sha256, str(_real(info.path)), camera, info.duration)


def _real(path: Path) -> Path:
    """Follow links as far as they lead; `Path.resolve` raises where they lead in a circle."""
    return Path(os.path.realpath(path))


def expand_all(sources: tuple[str, ...], camera: str) -> Found:
    """Turn sources into the files they name, each with its camera.

    Args:
        sources: as for `list_videos`.
        camera: of all of them; empty: every file is a camera of its own.

    Raises:
        SourceError: no such path, an empty folder, an archive, or a manifest without the right columns.
    """
    closed: list[str] = []
    named = [one for source in sources for one in _expand(source, camera, closed)]
    return Found(tuple(_tell_apart(named, by_name=not camera)), tuple(closed))


def _expand(source: str, camera: str, closed: list[str]) -> Iterator[Named]:
    try:
        path = Path(source).expanduser()
    except RuntimeError as error:  # no such user
        raise SourceError(f"{source}: {error} Expected a path; write it out in full.") from error
    if path.suffix.lower() == ".csv" and path.is_file():
        yield from _read_manifest(path, camera, closed)
        return
    root = path if path.is_dir() else path.parent
    for file in find_videos(path, closed):
        # Below the folder that was named: cameras often write files of the same names into folders of their own.
        yield Named(file, camera or file.relative_to(root).with_suffix("").as_posix(), plain=not camera)


def find_videos(source: Path, closed: list[str]) -> list[Path]:
    """List the videos a source names: the file itself, or every video in a folder and the folders below it.

    Hidden files and folders are passed over; a folder reached twice through links counts once. What has a video's name
    is listed, be it a dead link.

    Args:
        source: a file or a folder.
        closed: is given what is wrong with folders that cannot be looked into.

    Returns:
        Paths in POSIX order, at least one.

    Raises:
        SourceError: there is no such path, it is an archive, or no video is in the folder.
    """
    if source.suffix.lower() in _ARCHIVES and source.is_file():
        raise SourceError(
            f"{spell(source)}: is an archive, expected videos. Archives are not opened here: unpack it where its "
            "contents may lie, and name that folder."
        )
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise SourceError(f"{spell(source)}: no such file or folder. Name a video, or a folder that holds videos.")
    before = len(closed)

    def note(error: OSError) -> None:
        where = spell(Path(error.filename or source))
        closed.append(f"{where}: the folder cannot be looked into ({error.strerror}) and is passed over.")

    found: list[Path] = []
    others, seen = 0, set()
    for folder, inner, names in os.walk(source, followlinks=True, onerror=note):
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in seen:
            inner.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in names:
            path = Path(folder, name)
            if name.startswith(".") or path.suffix.lower() not in VIDEO_SUFFIXES:
                others += 1
            else:
                found.append(path)
    if not found:
        raise SourceError(
            f"{spell(source)}: found no videos and {others} other files; looked for names that end in "
            f"{' '.join(VIDEO_SUFFIXES)}. Name a folder with videos, or a video by its own path."
            + "".join(f" {one}" for one in closed[before:][:_SHOWN])
        )
    return sorted(found, key=Path.as_posix)


def _read_manifest(path: Path, camera: str, closed: list[str]) -> Iterator[Named]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            fields, lines = rows.fieldnames, list(rows)
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(
            f"Manifest {path}: cannot be read as CSV ({error}). Expected UTF-8 text; save it so."
        ) from error
    if fields is None or not {"path", "camera"} <= set(fields):
        raise SourceError(f"Manifest {path}: found columns {fields}, expected path and camera in the first line.")
    if not lines:
        raise SourceError(f"Manifest {path}: found no lines below the header, expected one a video.")
    for number, line in enumerate(lines, 2):
        if not line["path"] or not (camera or line["camera"]):
            raise SourceError(f"Manifest {path}, line {number}: found {line}, expected a path and a camera.")
        for video in find_videos(path.parent / line["path"], closed):
            yield Named(video, camera or line["camera"])


def list_to_do(
    store: str, videos: tuple[SourceVideo, ...], digests: ExtractDigests, runtime: RuntimeConfig
) -> tuple[VideoList, dict[str, int]]:
    """Say which of a build's videos are still to be extracted, and count."""
    done = finished_videos(store, digests.track)
    todo = [video for video in videos if video.video_sha not in done]
    counts = {"videos": len(videos), "already_extracted": len(videos) - len(todo)}
    return VideoList(videos, _batches(todo, runtime.video_batch_seconds), digests), counts


def _batches(videos: list[SourceVideo], seconds: float) -> tuple[tuple[SourceVideo, ...], ...]:
    """Join short videos until they fill `seconds`, so that one process serves them; a long one stands alone."""
    batches: list[list[SourceVideo]] = []
    filled = seconds
    for video in videos:
        if filled + video.duration > seconds:
            batches.append([])
            filled = 0.0
        batches[-1].append(video)
        filled += video.duration
    return tuple(tuple(batch) for batch in batches)
