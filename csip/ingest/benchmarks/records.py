"""What every benchmark comes down to: labelled tracklets, and who trains, asks and answers.

Shapes: T frames of a tracklet, J joints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from csip.ingest.decoder import Decoder
from csip.joints import LAYOUTS
from csip.types import FloatArray, IntArray

Role = Literal["train", "query", "gallery"]


@dataclass(frozen=True, slots=True, eq=False)
class BenchmarkTracklet:
    """One person under one camera, with everything that becomes rows.

    Attributes:
        tracklet_id: deterministic: of the data set, the settings that made its rows, and the source's own numbering.
        pid: the person, as the data set numbers people.
        camid: zero-based camera number.
        frame_index: (T,) int64, strictly increasing, as the source counts frames.
        time: (T,) float64, seconds; 0 where the source tells no time.
        boxes: (T, 4) float32, x1 y1 x2 y2: exactly what the crops show, in frame pixels; from 0, 0 where the source
            gives crops and no frames.
        score: (T,) float32, detection confidence 0..1; 1 where the source tells none.
        images: T encoded crops, as they lie in the source; none of a data set that has skeletons only.
        media_types: one for each of `images`, for example image/jpeg.
        layout: of the skeletons, a name in `csip.joints.LAYOUTS`; empty where there are no skeletons at all.
        keypoints: (T, J, 3) float32, raw as in table `skeletons`; zero where there is no skeleton; J is 0 without
            layout.
        has_skeleton: (T,) bool, True where the frame has a skeleton.
        keypoint_confidence: 0..1; of a 3D layout the share of frames with a skeleton.
    """

    tracklet_id: str
    pid: int
    camid: int
    frame_index: IntArray
    time: npt.NDArray[np.float64]
    boxes: FloatArray
    score: FloatArray
    images: tuple[bytes, ...]
    media_types: tuple[str, ...]
    layout: str
    keypoints: FloatArray
    has_skeleton: npt.NDArray[np.bool_]
    keypoint_confidence: float

    def __post_init__(self) -> None:
        t = len(self.frame_index)
        j = len(LAYOUTS[self.layout].joints) if self.layout else 0
        wanted = {
            **{"frame_index": (t,), "time": (t,), "boxes": (t, 4), "score": (t,)},
            **{"keypoints": (t, j, 3), "has_skeleton": (t,)},
        }
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape:
                raise ValueError(
                    f"BenchmarkTracklet {self.tracklet_id}.{name}: got shape {getattr(self, name).shape}, expected "
                    f"{shape} for {t} frames and layout {self.layout or 'none'}."
                )
        if len(self.images) not in (0, t) or len(self.media_types) != len(self.images):
            raise ValueError(
                f"BenchmarkTracklet {self.tracklet_id}: got {len(self.images)} images and {len(self.media_types)} "
                f"media types, expected {t} or none of each."
            )
        if t == 0 or not (np.diff(self.frame_index) > 0).all():
            raise ValueError(f"BenchmarkTracklet {self.tracklet_id}: got {t} frames, expected some, in their order.")

    def __len__(self) -> int:
        """Count the frames."""
        return len(self.frame_index)


@dataclass(frozen=True, slots=True)
class SplitRow:
    """What a tracklet, or a run of its frames, is for.

    Attributes:
        tracklet_id: which.
        protocol: a name in `csip.protocols.PROTOCOLS`.
        split: number of the split, for protocols that have several; else "0".
        role: train, query or gallery.
        pid: the person.
        camid: zero-based camera number.
        camera: the camera's name.
        group: a named subset of people that scores are also reported for; empty for none.
        frames: first and last frame_index, inclusive; None: all of the tracklet.
    """

    tracklet_id: str
    protocol: str
    split: str
    role: Role
    pid: int
    camid: int
    camera: str
    group: str = ""
    frames: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A labelled data set, checked, its tracklets named but not yet loaded.

    Attributes:
        name: of the data set; snapshots of it are called NAME-DIGEST.
        digest: of all that decides its rows.
        splits: who trains, asks and answers; the tracklets are those it names.
        load: tracklet_id -> the tracklet.
        layout: of all its skeletons; empty where there are none.
        extractor: what made the skeletons, for people: name, units, weights' digest; no paths. Empty without skeletons.
        counts: what the check found and left out, by what it is ("junk tracklets left out").
        decoder: what `load` reads videos with; whoever loads closes it. None where there are none.
    """

    name: str
    digest: str
    splits: tuple[SplitRow, ...]
    load: Callable[[str], BenchmarkTracklet]
    layout: str
    extractor: Mapping[str, Any]
    counts: Mapping[str, int] = field(default_factory=dict)
    decoder: Decoder | None = None
