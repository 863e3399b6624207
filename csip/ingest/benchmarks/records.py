"""What every benchmark comes down to: labelled tracklets, and who trains, asks and answers.

Shapes: T frames of a tracklet, J joints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

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
        time: (T,) float64, seconds.
        boxes: (T, 4) float32, x1 y1 x2 y2, frame pixels: exactly what the crops show.
        score: (T,) float32, detection confidence 0..1.
        images: T encoded crops.
        media_type: of `images`, for example image/jpeg.
        layout: of the skeletons, a name in `csip.joints.LAYOUTS`.
        keypoints: (T, J, 3) float32, raw as in table `skeletons`; zero where there is no skeleton.
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
    media_type: str
    layout: str
    keypoints: FloatArray
    has_skeleton: npt.NDArray[np.bool_]
    keypoint_confidence: float

    def __post_init__(self) -> None:
        t, j = len(self.images), len(LAYOUTS[self.layout].joints)
        wanted = {
            **{"frame_index": (t,), "time": (t,), "boxes": (t, 4), "score": (t,)},
            **{"keypoints": (t, j, 3), "has_skeleton": (t,)},
        }
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape:
                raise ValueError(
                    f"BenchmarkTracklet {self.tracklet_id}.{name}: got shape {getattr(self, name).shape}, expected "
                    f"{shape} for {t} crops and layout {self.layout}."
                )
        if t == 0 or not (np.diff(self.frame_index) > 0).all():
            raise ValueError(f"BenchmarkTracklet {self.tracklet_id}: got {t} frames, expected some, in their order.")

    def __len__(self) -> int:
        """Count the frames."""
        return len(self.images)


@dataclass(frozen=True, slots=True)
class SplitRow:
    """What a whole tracklet is for.

    Attributes:
        tracklet_id: which.
        split: number of the split, for protocols that have several.
        role: train, query or gallery.
        pid: the person.
        camid: zero-based camera number.
        camera: the camera's name.
        group: a named subset of people that scores are also reported for; empty for none.
    """

    tracklet_id: str
    split: str
    role: Role
    pid: int
    camid: int
    camera: str
    group: str


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A labelled data set, its tracklets named but not yet loaded.

    Attributes:
        name: of the data set and its protocol.
        digest: of all that decides its rows.
        splits: who trains, asks and answers; the tracklets are those it names.
        load: tracklet_id -> the tracklet.
    """

    name: str
    digest: str
    splits: tuple[SplitRow, ...]
    load: Callable[[str], BenchmarkTracklet]
