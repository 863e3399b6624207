"""The file beside one's own videos that says who is where in which frame.

Shapes: N rows (one person in one frame each), T frames of a tracklet.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from csip.errors import VideoError
from csip.ingest.benchmarks.checking import Findings
from csip.ingest.benchmarks.labelled_index import MEND, Index, check_frames, group_rows, read_index
from csip.ingest.benchmarks.labelled_people import JUNK, Labels, below, make_labels
from csip.ingest.cut import clip_boxes
from csip.ingest.decoder import Decoder
from csip.ingest.video import VideoInfo
from csip.types import IntArray

IDENTITIES: Final = ("identities.csv", "identities.parquet")
"""Names of the file; a folder has one of them."""

_BOX = ("x1", "y1", "x2", "y2")
_COLUMNS = ("video", "frame", *_BOX, "pid", "camera", "split", "tracklet")


@dataclass(frozen=True, slots=True, eq=False)
class VideoTracklet:
    """One person in one video, T frames.

    Attributes:
        labels: who it is.
        video: its path, relative to the folder of videos.
        name: of the tracklet, unique among those of its video and person.
        frame_index: (T,) zero-based in the video, strictly increasing.
        boxes: (T, 4) x1 y1 x2 y2, whole pixels inside the frame, as they are cut.
    """

    labels: Labels
    video: str
    name: str
    frame_index: IntArray
    boxes: IntArray


@dataclass(frozen=True, slots=True)
class Identities:
    """What the file says, checked against the videos.

    Attributes:
        tracklets: in no order.
        videos: by their path relative to the folder; only those that somebody is in.
        counts: what was found and left out.
    """

    tracklets: list[VideoTracklet]
    videos: Mapping[str, VideoInfo]
    counts: Mapping[str, int]


def read_identities(root: Path, path: Path, decoder: Decoder, findings: Findings) -> Identities:
    """Read who is where, and check each row against its video; no frame is decoded but one of each video.

    Args:
        root: the folder that the videos' paths are relative to.
        path: of the file.
        decoder: looks at the videos; it is closed behind the last one.
        findings: where everything that is wrong goes.

    Raises:
        SourceError: the file itself cannot be read, or cells of it.
    """
    index = read_index(path, _COLUMNS, (), findings)
    pid, frame = index.whole("pid", findings), index.whole("frame", findings)
    boxes = np.stack([index.numbers(name, findings) for name in _BOX], axis=1)
    for row in np.flatnonzero(pid < JUNK).tolist():
        findings.add("people without a number", f"{index.where(row)}: found pid {pid[row]}, expected 0 or more")
    findings.refuse(MEND)
    video, names = index.texts("video")
    pixels = np.zeros((len(index), 4), np.int64)
    counts = Counter({"videos": 0, "boxes cut off by the frame": 0})
    videos, paths = {}, dict.fromkeys(range(len(names)), "")
    people = np.flatnonzero(pid != JUNK)
    people = people[np.argsort(video[people], kind="stable")]
    with decoder:
        for rows in np.split(people, np.flatnonzero(np.diff(video[people])) + 1) if len(people) else []:
            code = int(video[rows[0]])
            plain, info = _probe(root, names[code], index.where(int(rows[0])), decoder, findings)
            if info is not None:
                paths[code] = plain
                videos[plain] = info
                pixels[rows] = _check_rows(index, rows, frame, boxes, info, findings)
                outside = (boxes[rows, :2] < 0).any(axis=1) | (boxes[rows, 2:] > (info.width, info.height)).any(axis=1)
                counts["boxes cut off by the frame"] += int(outside.sum())
    counts["videos"] = len(videos)
    counts["junk boxes left out"] = len(index) - len(people)
    tracklets = _gather(index, pid, frame, pixels, [paths[code] for code in range(len(names))], counts, findings)
    return Identities(tracklets, videos, counts)


def _probe(root: Path, name: str, where: str, decoder: Decoder, findings: Findings) -> tuple[str, VideoInfo | None]:
    plain = below(name, where, findings)
    if plain is None:
        return "", None
    if not os.path.isfile(root / plain):
        findings.add("missing videos", f"{where}: found no file {plain!r} in {root}")
        return plain, None
    try:
        info = decoder.probe(root / plain)
    except VideoError as error:
        findings.add("videos that cannot be read", str(error))
        return plain, None
    if info.num_frames < info.announced_frames:
        found = f"found {info.num_frames} frames in {plain}, expected the {info.announced_frames} that it announces"
        findings.add("videos that are not complete", f"{where}: {found}")
    return plain, info


def _check_rows(
    index: Index,
    rows: npt.NDArray[np.intp],
    frame: IntArray,
    boxes: npt.NDArray[np.float64],
    info: VideoInfo,
    findings: Findings,
) -> IntArray:
    """Check a video's rows, and give the whole pixels of their boxes."""
    x1, y1, x2, y2 = boxes[rows].T
    size = f"{info.width} x {info.height} pixels"
    kinds = (
        ("frames outside of their video", (frame[rows] < 0) | (frame[rows] >= info.num_frames)),
        ("boxes without area", (x2 <= x1) | (y2 <= y1)),
        ("boxes outside of the frame", (x2 <= 0) | (y2 <= 0) | (x1 >= info.width) | (y1 >= info.height)),
    )
    for kind, wrong in kinds:
        for row in rows[wrong].tolist():
            if kind.startswith("frames"):
                told = f"found frame {frame[row]}, expected 0 to {info.num_frames - 1} of {info.path.name}"
            else:
                told = f"found {boxes[row].tolist()}, expected x1 < x2 and y1 < y2 in a frame of {size}"
            findings.add(kind, f"{index.where(row)}: {told}")
    return clip_boxes(boxes[rows], info.width, info.height)


def _gather(
    index: Index,
    pid: IntArray,
    frame: IntArray,
    pixels: IntArray,
    paths: list[str],
    counts: Counter[str],
    findings: Findings,
) -> list[VideoTracklet]:
    """Make tracklets of the rows that agree in video, person and tracklet."""
    video, _ = index.texts("video")
    (split, splits), (camera, cameras) = index.texts("split"), index.texts("camera")
    name, names = index.texts("tracklet")
    found = []
    counts["junk tracklets left out"] = 0
    for rows in group_rows(frame, video, pid, name):
        row = int(rows[0])
        if pid[row] == JUNK:
            counts["junk tracklets left out"] += 1
            continue
        where, tracklet, path = index.where(row), names[name[row]], paths[video[row]]
        if tracklet in ("", ".", "..") or "/" in tracklet or "\0" in tracklet:
            findings.add("tracklets without a name", f"{where}: found {tracklet!r}, expected a name without slashes")
        check_frames(index, rows, frame, findings)
        for column, code, values in (("split", split, splits), ("camera", camera, cameras)):
            other = rows[code[rows] != code[row]]
            if len(other):
                told = f"found {column} {values[code[other[0]]]!r}, and {values[code[row]]!r} in {where}"
                findings.add(f"tracklets of more than one {column}", f"{index.where(int(other[0]))}: {told}")
        labels = make_labels(
            splits[split[row]], int(pid[row]), cameras[camera[row]], f"{path}/{tracklet}", where, findings
        )
        if labels is not None and path:
            found.append(VideoTracklet(labels, path, tracklet, frame[rows], pixels[rows]))
    return found
