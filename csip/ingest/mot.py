"""Tracks as MOTChallenge text, so that anybody can score them (IDF1, MOTA, HOTA) with public tools.

A line is ``frame,id,left,top,width,height,confidence,-1,-1,-1``: frames, ids and pixels count from 1.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from csip import tables
from csip.errors import CsipError, SourceError
from csip.maintenance.snapshots import generations
from csip.tables import any_of
from csip.types import Snapshot

_NO_VIDEOS = "is of a benchmark, which brings its own tracklets, expected videos. Leave --mot-out away."
_CURE = "Mend that, or name another file or folder with --mot-out."


def write_mot(snapshot: Snapshot, out: Path) -> list[Path]:
    """Write the tracks of a snapshot's videos.

    People are numbered by appearance in each video. A box that was interpolated has the lowest confidence of its
    tracklet: scorers take 0 for "ignore".

    Args:
        snapshot: of videos.
        out: the file to write; where it is a folder, or the snapshot has several videos, a folder for a file each,
            named as the videos are, and where two have one name, with the beginning of their SHA-256.

    Returns:
        The files, by video digest. Each is written whole or not at all.

    Raises:
        SourceError: the snapshot is not of videos.
        CsipError: a file cannot be written.
    """
    row = tables.snapshot_row(snapshot.store, snapshot.name)
    videos = sorted(row["videos"])
    if not videos:
        raise SourceError(f"Snapshot {snapshot.name}: {_NO_VIDEOS}")
    runs = tables.find_runs(snapshot.store, "stage = 'track_video'")
    own = any_of("track_digest", generations(row, runs))
    table = tables.read(tables.pinned(snapshot, "tracklets"), ["video_sha"], own)
    names: dict[str, list[str]] = {sha: [] for sha in videos}
    for name, sha in zip(table["tracklet_id"].to_pylist(), table["video_sha"].to_pylist(), strict=True):
        if sha in names:
            names[sha].append(name)
    tracks = _read_tracks(snapshot, [name for some in names.values() for name in some])
    files = _name_files(snapshot, videos, out)
    for sha, path in files.items():
        try:
            _write(path, _lines(tracks, names[sha]))
        except OSError as error:
            raise CsipError(f"{path}: tracks could not be written ({error.strerror}). {_CURE}") from error
    return list(files.values())


def check_target(out: Path, videos: int) -> None:
    """Look whether tracks can be written, before anything is built for it.

    Args:
        out: as for `write_mot`.
        videos: how many there are at most; 0 of a benchmark.

    Raises:
        CsipError: they cannot.
    """
    if not videos:
        raise SourceError(f"--mot-out {out}: the source {_NO_VIDEOS}")
    try:
        # What is not there is made, in the nearest folder that is.
        there = next(place for place in (out, *out.parents) if place.exists())
        what = "a folder" if there.is_dir() else "a file" if there.is_file() else "neither a file nor a folder"
    except OSError as error:
        raise CsipError(f"--mot-out {out}: cannot be reached ({error.strerror}). {_CURE}") from error
    if what != "a folder" and (there != out or videos > 1 or what != "a file"):
        expected = f"a folder, for a file each of {videos} videos" if videos > 1 else "a file or a folder"
        raise CsipError(f"--mot-out {out}: found that {there} is {what}, expected {expected}. {_CURE}")
    folder = there if what == "a folder" else there.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CsipError(f"--mot-out {out}: this user may not write to {folder}. {_CURE}")


def _write(path: Path, lines: Iterator[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".mot-") as folder:
        part = Path(folder, path.name)
        with part.open("w", encoding="ascii") as file:
            file.writelines(lines)
        os.replace(part, path)


def _read_tracks(snapshot: Snapshot, names: list[str]) -> pa.Table:
    """Read the boxes of some tracklets, in one go for all videos."""
    crops = tables.pinned(snapshot, "crops")
    columns = ["tracklet_id", "frame_index", "box", "score"]
    schema = pa.schema([tables.TABLES["crops"].field(name) for name in columns])
    batches = [batch.cast(schema) for batch in tables.stream_tracklets(crops, names, columns[1:])]
    return pa.Table.from_batches(batches, schema=schema)


def _name_files(snapshot: Snapshot, videos: list[str], out: Path) -> dict[str, Path]:
    if len(videos) == 1 and not out.is_dir():
        return {videos[0]: out}
    table = tables.read(tables.pinned(snapshot, "videos"), ["path"])
    path_of = dict(zip(table["video_sha"].to_pylist(), table["path"].to_pylist(), strict=True))
    stems = {sha: Path(path_of[sha]).stem for sha in videos}
    count = Counter(stems.values())
    return {sha: out / (f"{stem}.txt" if count[stem] == 1 else f"{stem}-{sha[:8]}.txt") for sha, stem in stems.items()}


def _lines(tracks: pa.Table, names: list[str]) -> Iterator[str]:
    """Give the lines of one video, by frame and then by person."""
    wanted = pa.array(names, pa.string())
    table = tracks.filter(pc.is_in(tracks["tracklet_id"], value_set=wanted))
    number = np.asarray(pc.index_in(table["tracklet_id"], wanted), dtype=np.int64) + 1
    frame = np.asarray(table["frame_index"], dtype=np.int64) + 1
    boxes = tables.boxes_array(table["box"]).astype(np.float64)
    score = np.asarray(table["score"], dtype=np.float64)
    lowest = np.ones(len(names) + 1)
    np.minimum.at(lowest, number[score > 0], score[score > 0])
    confidence = np.where(score > 0, score, lowest[number])
    for i in np.lexsort((number, frame)):
        x1, y1, x2, y2 = boxes[i]
        box = f"{x1 + 1:.2f},{y1 + 1:.2f},{x2 - x1:.2f},{y2 - y1:.2f}"
        yield f"{frame[i]},{number[i]},{box},{confidence[i]:.4f},-1,-1,-1\n"
