"""What a user names as a source: videos, folders of videos, manifests; to a list of videos known by their content."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from csip import tables
from csip.config import ExtractConfig, RuntimeConfig
from csip.errors import SourceError, VideoError
from csip.ingest.records import extract_digests, finished_videos, record_video
from csip.ingest.video import VideoInfo, find_videos, probe
from csip.types import Outcome, Output, Progress, SourceVideo, Stage, VideoList


@dataclass(frozen=True, slots=True)
class Named:
    """A file that a source named, and its camera; `plain` where nobody named the camera."""

    path: Path
    camera: str
    plain: bool = False


def list_videos(
    out: Output, sources: tuple[str, ...], camera: str, config: ExtractConfig, runtime: RuntimeConfig
) -> Stage[VideoList]:
    """Stage `list_videos`: find the files, know them by content, and say which are still to do.

    Args:
        out: the store.
        sources: videos, folders of videos, or manifests (a .csv with the columns path and camera).
        camera: the name of the camera that took all of them; empty: every file is a camera of its own.
        config: decides, with the video's content, whether a video is done.
        runtime: how videos are batched.

    Raises:
        SourceError: a source names nothing to read, or no file in them is a video.
    """
    tables.prepare_store(out.store)
    named = _tell_apart([one for source in sources for one in expand(source, camera)], by_name=not camera)
    digests = extract_digests(config)
    done = finished_videos(out.store, digests.track)
    videos: dict[str, SourceVideo] = {}
    reasons: list[str] = []
    duplicates = 0
    for i, one in enumerate(named):
        yield Progress("list_videos", i, len(named), "files")
        try:
            info = probe(one.path)
        except VideoError as error:
            reasons.append(str(error))
            record_video(out.store, one.path, None, "failed", str(error), 0)
            continue
        duplicates += info.sha256 in videos
        videos.setdefault(info.sha256, _known(info, one.camera))
    yield Progress("list_videos", len(named), len(named), "files")
    if not videos:
        raise SourceError(
            f"Found {len(named)} files, none of them a readable video. The first: {reasons[0]} "
            "Expected at least one video that FFmpeg can read."
        )
    every = tuple(videos[sha] for sha in sorted(videos))
    todo = [video for video in every if video.video_sha not in done]
    listed = VideoList(every, _batches(todo, runtime.video_batch_seconds), digests.track)
    counts = {
        "files": len(named),
        "videos": len(every),
        "already_extracted": len(every) - len(todo),
        "duplicate_files": duplicates,
        "unreadable_files": len(reasons),
        **{f"unreadable {i}": reason for i, reason in enumerate(reasons[:20], 1)},
    }
    return Outcome(listed, counts, digests.weights)


def _tell_apart(named: list[Named], *, by_name: bool) -> list[Named]:
    """Name plain files by their whole path where two of them, from different sources, would be one camera."""
    if not by_name:
        return named
    files: dict[str, set[Path]] = {}
    for one in named:
        if one.plain:
            files.setdefault(one.camera, set()).add(one.path.resolve())
    return [
        Named(one.path, one.path.resolve().with_suffix("").as_posix(), plain=True)
        if one.plain and len(files[one.camera]) > 1
        else one
        for one in named
    ]


def _known(info: VideoInfo, camera: str) -> SourceVideo:
    return SourceVideo(info.sha256, str(info.path.resolve()), camera, info.duration)


def expand(source: str, camera: str) -> Iterator[Named]:
    """Turn one source into the files it names.

    Raises:
        SourceError: no such path, an empty folder, or a manifest without the right columns.
    """
    try:
        path = Path(source).expanduser()
    except RuntimeError as error:  # no such user
        raise SourceError(f"{source}: {error} Expected a path; write it out in full.") from error
    if path.suffix.lower() == ".csv" and path.is_file():
        yield from _read_manifest(path, camera)
        return
    root = path if path.is_dir() else path.parent
    for file in find_videos(path):
        # Below the folder that was named: cameras often write files of the same names into folders of their own.
        yield Named(file, camera or file.relative_to(root).with_suffix("").as_posix(), plain=not camera)


def _read_manifest(path: Path, camera: str) -> Iterator[Named]:
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
        for video in find_videos(path.parent / line["path"]):
            yield Named(video, camera or line["camera"])


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
