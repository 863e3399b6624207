"""Tracklets whose crops lie on disk as picture files, and where their skeletons come from.

Shapes: T frames of a tracklet, J joints.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from csip.errors import SourceError
from csip.ingest.benchmarks.checking import Findings
from csip.ingest.benchmarks.records import BenchmarkTracklet
from csip.joints import H36M17, LAYOUTS
from csip.plain import digest
from csip.types import FloatArray

MEDIA_TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".bmp": "image/bmp"}
"""Suffixes of picture files, in lower case, and what they hold."""


def require_sidecars(found: bool, expected: str, findings: Findings, *, of: str = "picture") -> None:
    """Note a folder of side-car files that holds none that is looked for.

    Args:
        found: there is one.
        expected: the folder, and the names that were looked for.
        findings: where it is noted.
        of: what side-car files belong to.
    """
    if not found:
        advice = "or --set benchmark.skeletons=pose, or none, to do without them"
        findings.add(f"skeleton folders without a file of any {of}", f"{expected}; {advice}")


@dataclass(frozen=True, slots=True)
class CropFile:
    """One frame of a tracklet on disk.

    Attributes:
        path: of the picture.
        frame_index: as the source counts frames.
        sidecar: of the file that holds its skeleton; None where there is none.
    """

    path: Path
    frame_index: int
    sidecar: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Skeletons:
    """The skeletons of one tracklet.

    Attributes:
        keypoints: (T, J, 3) float32, raw as in table `skeletons`, in pixels of the crop where they are 2D.
        has_skeleton: (T,) bool.
        confidence: 0..1; of a 3D layout the share of frames with a skeleton.
    """

    keypoints: FloatArray
    has_skeleton: npt.NDArray[np.bool_]
    confidence: float


class SkeletonSource(Protocol):
    """Where a benchmark's skeletons come from.

    Attributes:
        layout: of its skeletons; empty for none.
        digest: of what decides them, apart from the pictures and the side-car files.
        extractor: the same for people, see `Benchmark.extractor`.
        reads_sidecars: it reads `CropFile.sidecar`; loaders look for these files only then.
    """

    @property
    def reads_sidecars(self) -> bool:
        """Whether side-car files are read."""

    @property
    def layout(self) -> str:
        """Name in `csip.joints.LAYOUTS`, or empty."""

    @property
    def digest(self) -> str:
        """Digest of what decides the skeletons."""

    @property
    def extractor(self) -> Mapping[str, Any]:
        """What made them, for people."""

    def __call__(self, files: Sequence[CropFile], images: Sequence[bytes]) -> Skeletons:
        """Give the skeletons of one tracklet's T frames."""


class NoSkeletons:
    """For those who only evaluate a video model."""

    layout = ""
    digest = "none"
    reads_sidecars = False
    extractor: Mapping[str, Any] = {}

    def __call__(self, files: Sequence[CropFile], images: Sequence[bytes]) -> Skeletons:
        """Give none."""
        return Skeletons(np.zeros((len(files), 0, 3), np.float32), np.zeros(len(files), np.bool_), 0.0)


class SidecarSkeletons:
    """Side-car files: JSON with a key `keypoints` of 17 x 3 numbers, Human3.6M's joints (datasets.md section 6).

    All zeros mean that nobody was found.
    """

    layout = H36M17.name
    digest = digest("sidecar", 1)
    reads_sidecars = True
    extractor: Mapping[str, Any] = {"name": "side-car files", "units": "the files' own, from the pelvis"}

    def __call__(self, files: Sequence[CropFile], images: Sequence[bytes]) -> Skeletons:
        """Read one tracklet's files.

        Raises:
            SourceError: a file is not what it should be.
        """
        joints = len(LAYOUTS[self.layout].joints)
        keypoints = np.zeros((len(files), joints, 3), np.float32)
        for i, file in enumerate(files):
            if file.sidecar is not None:
                keypoints[i] = _read_sidecar(file.sidecar, joints)
        found = np.any(keypoints != 0, axis=(1, 2))
        return Skeletons(keypoints, found, float(found.mean()))


def _read_sidecar(path: Path, joints: int) -> FloatArray:
    try:
        value = np.asarray(json.loads(path.read_bytes())["keypoints"], dtype=np.float64)
        # As float32, which tables hold, 1e39 is infinite.
        finite = bool((np.abs(value) <= np.finfo(np.float32).max).all())
        fits = value.shape == (joints, 3) and finite
        found = f"{'' if finite else 'numbers that are not finite in '}an array of shape {value.shape}"
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        fits, found = False, f"{type(error).__name__}: {error}"
    if not fits:
        raise SourceError(
            f"Skeleton {path}: found {found}, expected JSON with a key 'keypoints' of {joints} x 3 finite numbers. "
            "Extract it again, or remove the file: the frame then counts as one without skeleton."
        )
    return value.astype(np.float32)


def load_crops(
    tracklet_id: str, pid: int, camid: int, files: Sequence[CropFile], skeletons: SkeletonSource
) -> BenchmarkTracklet:
    """Read a tracklet's pictures as they are, and its skeletons.

    Args:
        tracklet_id: of the tracklet.
        pid: the person.
        camid: zero-based camera number.
        files: its frames, by ascending frame_index.
        skeletons: where they come from.

    Raises:
        SourceError: a file cannot be read, is no picture, or holds no skeleton where it should.
    """
    images, boxes, kinds = [], [], []
    for file in files:
        content, size, kind = read_picture(file.path)
        images.append(content)
        boxes.append((0, 0, *size))
        kinds.append(kind)
    found = skeletons(files, images)
    return BenchmarkTracklet(
        tracklet_id=tracklet_id,
        pid=pid,
        camid=camid,
        frame_index=np.array([file.frame_index for file in files], np.int64),
        time=np.zeros(len(files)),
        boxes=np.array(boxes, np.float32),
        score=np.ones(len(files), np.float32),
        images=tuple(images),
        media_types=tuple(kinds),
        layout=skeletons.layout,
        keypoints=found.keypoints,
        has_skeleton=found.has_skeleton,
        keypoint_confidence=found.confidence,
    )


def read_picture(path: Path) -> tuple[bytes, tuple[int, int], str]:
    """Read a picture file; its header must make sense, its pixels are not decoded.

    Returns:
        Its bytes, (width, height) in pixels, and its media type.

    Raises:
        SourceError: it cannot be read or is no picture.
    """
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            kind = Image.MIME.get(image.format or "", "")
            size = image.size
    # All of these are what Pillow makes of damaged headers.
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise SourceError(
            f"Picture {path}: cannot be read ({error}). Expected one of {', '.join(sorted(MEDIA_TYPES))}; "
            "get the file again from where the data set comes from. The same command then goes on."
        ) from error
    if kind not in MEDIA_TYPES.values():
        raise SourceError(
            f"Picture {path}: found {kind or 'no picture'}, expected one of {', '.join(sorted(MEDIA_TYPES))}. "
            "Convert it, or get the data set again."
        )
    return content, size, kind
