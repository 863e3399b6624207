"""A data set of one's own as videos, and a file that says who is where in which frame.

Shapes: T frames of a tracklet, J joints.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from csip.ingest.benchmarks.checking import Findings, Folders
from csip.ingest.benchmarks.crops import CropFile, SkeletonSource, require_sidecars
from csip.ingest.benchmarks.labelled_cutting import Cutter, Track
from csip.ingest.benchmarks.labelled_identities import VideoTracklet, read_identities
from csip.ingest.benchmarks.labelled_people import Labels
from csip.ingest.benchmarks.records import BenchmarkTracklet
from csip.ingest.decoder import Decoder
from csip.joints import LAYOUTS
from csip.plain import digest
from csip.types import FloatArray, IntArray


class Videos:
    """The listing of tracklets that are cut out of videos.

    Those of a role are numbered by video and last frame, so that loading them by their numbers decodes each video once
    for each role that it has; `Cutter` says what that holds in memory.

    Args:
        root: that all paths are relative to, absolute.
        path: of the file that says who is where.
        skeletons: where they come from.
        sidecars: name of the folder of side-car files, <sidecars>/<video>/<pid>/<tracklet>/<frame>.json below the root;
            empty to look for none.
        quality: of the crops' JPEG, 1..100.
        decoder: reads the videos; `load` leaves it open.
        findings: where everything that is wrong goes.

    Raises:
        SourceError: the file itself cannot be read, or cells of it.
    """

    def __init__(
        self,
        root: Path,
        path: Path,
        skeletons: SkeletonSource,
        sidecars: str,
        *,
        quality: int,
        decoder: Decoder,
        findings: Findings,
    ) -> None:
        self._root, self._skeletons, self._sidecars, self._quality = root, skeletons, sidecars, quality
        said = read_identities(root, path, decoder, findings)
        self._tracklets = sorted(said.tracklets, key=_place)
        self._videos = {name: info.sha256 for name, info in said.videos.items()}
        self._counts = dict(said.counts)
        self._beside = _look_beside(root, sidecars, self._tracklets, findings) if sidecars else {}
        if sidecars:
            self._counts["frames without a side-car file"] = sum(self.lengths) - len(self._beside)
        # Where a video could not be read, that is a finding, and nothing is ever cut.
        tracks = [
            Track(one.labels.role, said.videos[one.video], one.frame_index, one.boxes)
            for one in self._tracklets
            if one.video in said.videos
        ]
        self._cutter = Cutter(tracks, quality=quality, decoder=decoder)

    @property
    def labels(self) -> Sequence[Labels]:
        """Of each tracklet, by role, video and last frame."""
        return [one.labels for one in self._tracklets]

    @property
    def lengths(self) -> Sequence[int]:
        """Frames of each tracklet."""
        return [len(one.frame_index) for one in self._tracklets]

    @property
    def digest(self) -> str:
        """Digest of the videos' bytes, of who is where in them, of the side-car files' sizes, and of the quality."""
        rows = [
            (one.labels.role, one.labels.pid, one.labels.camera, one.video, one.name, _digest_frames(one))
            for one in self._tracklets
        ]
        return digest("videos", self._quality, self._videos, rows, sorted(self._beside.items()))

    @property
    def counts(self) -> Mapping[str, int]:
        """What was found and left out."""
        return self._counts

    def load(self, number: int, tracklet_id: str, camid: int) -> BenchmarkTracklet:
        """Cut a tracklet out of its video, and find its skeletons, by its position in `labels`.

        Raises:
            SourceError: a side-car file does not hold what it should.
            VideoError: a frame cannot be decoded, or the video's decoder hung or died.
        """
        one = self._tracklets[number]
        images, time = self._cutter.cut(number)
        files = []
        for frame in one.frame_index.tolist():
            sidecar = _sidecar(self._sidecars, one, frame)
            beside = self._root / sidecar if sidecar in self._beside else None
            files.append(CropFile(self._root / one.video, frame, beside))
        found = self._skeletons(files, images)
        return BenchmarkTracklet(
            tracklet_id=tracklet_id,
            pid=one.labels.pid,
            camid=camid,
            frame_index=one.frame_index,
            time=time,
            boxes=one.boxes.astype(np.float32),
            score=np.ones(len(files), np.float32),
            images=tuple(images),
            media_types=("image/jpeg",) * len(images),
            layout=self._skeletons.layout,
            keypoints=_to_frame(found.keypoints, found.has_skeleton, one.boxes, self._skeletons.layout),
            has_skeleton=found.has_skeleton,
            keypoint_confidence=found.confidence,
        )


def _place(one: VideoTracklet) -> tuple[str, str, int, int, str]:
    return (one.labels.role, one.video, int(one.frame_index[-1]), one.labels.pid, one.name)


def _sidecar(sidecars: str, one: VideoTracklet, frame: int) -> str:
    return f"{sidecars}/{one.video}/{one.labels.pid}/{one.name}/{frame}.json"


def _look_beside(root: Path, sidecars: str, tracklets: Sequence[VideoTracklet], findings: Findings) -> dict[str, int]:
    """Map the side-car files of frames, relative to the root, to their bytes."""
    folders = Folders(root)
    sizes = {}
    for one in tracklets:
        first = _sidecar(sidecars, one, int(one.frame_index[0]))
        beside = folders.files(first.rpartition("/")[0])
        for frame in one.frame_index.tolist():
            if f"{frame}.json" in beside:
                path = _sidecar(sidecars, one, frame)
                sizes[path] = beside[f"{frame}.json"]
                if sizes[path] == 0:
                    findings.add("empty side-car files", f"{path}: found 0 bytes")
    if tracklets:
        example = _sidecar(sidecars, tracklets[0], int(tracklets[0].frame_index[0]))
        require_sidecars(bool(sizes), f"{root}: expected files such as {example}", findings, of="frame")
    return sizes


def _digest_frames(one: VideoTracklet) -> str:
    arrays = (one.frame_index.astype("<i8"), one.boxes.astype("<i8"))
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def _to_frame(keypoints: FloatArray, has_skeleton: npt.NDArray[np.bool_], boxes: IntArray, layout: str) -> FloatArray:
    """Bring (T, J, 3) keypoints in crop pixels to frame pixels; 3D ones, and zeros of nobody, stay as they are."""
    if not layout or LAYOUTS[layout].third == "z":
        return keypoints
    moved = keypoints.copy()
    moved[has_skeleton, :, :2] += boxes[has_skeleton, None, :2].astype(np.float32)
    return moved
