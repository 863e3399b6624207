"""Video to tracklets: people in single frames, tracks of them, and who asks whom among unlabelled people."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict

from csip.sections.bounds import STRICT, Each, Within, check

PosePrecision = Literal["float32", "float16", "int8"]
"""What a pose network computes in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectConfig:
    """People and keypoints in single frames (`csip.ingest.pose`).

    Attributes:
        weights: a path, or a name that is looked for in the user's cache, in this package, and at its maker's. The file
            decides what runs it: .pt runs in PyTorch or OpenVINO (`runtime.pose_engine`); ultralytics' exports run in
            what they were made for, .onnx in ONNX Runtime, a folder *_openvino_model in OpenVINO, .engine in TensorRT.
        image_size: the longer side of what the model sees, pixels; 0 chooses one from the frame's size that finds
            people of 60 pixels (5/3 of its longer side, 640 to 3200), and takes that of a file which is bound to one.
        precision: what the model computes in: "float16" is for .pt files on CUDA; a file that was exported in "float16"
            or "int8" is named so.
        stride: every so many frames one is looked at.
        confidence: lowest box score kept; ByteTrack's second stage lives on low ones.
        iou: overlap above which non-maximum suppression drops the weaker box.
        max_people: most boxes a frame; `csip.maintenance.keys` has room for no more.
        segment_seconds: a long video is worked through in parts of this length, a commit each; a killed build loses no
            more than one of them.
        min_box_height: smaller boxes are dropped (and counted), frame pixels.
        region: where people count: corners of a polygon, x and y as shares of the frame's width and height; who stands
            (middle of the box's lower edge) outside of it is dropped (and counted). Empty: everywhere. On the command
            line: [[0,0.5],[1,0.5],[1,1],[0,1]].
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    weights: str = "yolo11n-pose.pt"
    image_size: Annotated[int, Within(64, 8192, or_zero=True)] = 0
    precision: PosePrecision = "float32"
    stride: Annotated[int, Within(1, 10_000)] = 1
    confidence: Annotated[float, Within(0, 1)] = 0.1
    iou: Annotated[float, Within(0, 1)] = 0.7
    max_people: Annotated[int, Within(1, 1024)] = 300
    segment_seconds: Annotated[float, Within(0.1, 86_400)] = 600.0
    min_box_height: Annotated[float, Within(0, 100_000)] = 0.0
    region: Annotated[tuple[tuple[float, float], ...], Each("shares of width and height, 0 to 1", 0, high=1)] = ()

    def __post_init__(self) -> None:
        check(self)
        # Two corners, or more on one line, hold no area: nobody could ever stand in it.
        sides = [(x - self.region[0][0], y - self.region[0][1]) for x, y in self.region]
        turns = (a[0] * b[1] - a[1] * b[0] for a, b in itertools.combinations(sides, 2))
        if self.region and not any(turns):
            raise ValueError(
                f"DetectConfig.region: got {self.region}, expected at least three corners that are not on one line; "
                "or none, for the whole frame."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackConfig:
    """Detections to tracklets (`csip.ingest.track`) and tracklets to crops.

    Attributes:
        tracker: "bytetrack", or "botsort" (here without motion compensation: fixed cameras).
        high_confidence: detections at or above it open the first association.
        low_confidence: detections between it and `high_confidence` join the second association.
        new_confidence: an unmatched detection at or above it starts a track.
        match_cost: largest association cost, 1 - IoU weighted by score.
        buffer_seconds: how long a lost track may come back.
        double_distance: two detections whose joints lie this near together, in box heights, are one person, and the
            weaker one is left out (and counted); 0 leaves both.
        jump_distance: a track whose next detection lies this many box heights off its way is cut there (and counted);
            0 cuts nothing.
        jump_ratio: it is cut also where the box grows or shrinks by this factor at once while it is half as far off; 0
            cuts nothing.
        link_seconds: a track that begins within this time of another's end, where that would have gone on to, is linked
            to it (and counted); 0 links nothing.
        link_distance: how far off it may be, box heights.
        link_ratio: how much larger or smaller it may be.
        interpolate_seconds: boxes of gaps in a tracklet up to this long are interpolated (and counted). Their crops
            show the person half hidden, and they have no skeleton; 0 leaves gaps.
        min_seconds: tracklets of fewer frames than make so many seconds are dropped (and counted).
        min_frames: and those of fewer frames than this, however slow the camera.
        min_keypoint_confidence: a frame in which the mean over the joints lies under it is unsure.
        ghost_share: tracklets of which a larger share of the frames is unsure are dropped (and counted).
        jpeg_quality: of the stored crops, 1..100.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    tracker: Literal["bytetrack", "botsort"] = "bytetrack"
    high_confidence: Annotated[float, Within(0, 1)] = 0.25
    low_confidence: Annotated[float, Within(0, 1)] = 0.1
    new_confidence: Annotated[float, Within(0, 1)] = 0.25
    match_cost: Annotated[float, Within(0, 1)] = 0.8
    buffer_seconds: Annotated[float, Within(0, 3600)] = 3.0
    double_distance: Annotated[float, Within(0, 10)] = 0.1
    jump_distance: Annotated[float, Within(0, 100)] = 0.5
    jump_ratio: Annotated[float, Within(0, 100)] = 1.5
    link_seconds: Annotated[float, Within(0, 3600)] = 3.0
    link_distance: Annotated[float, Within(0, 100)] = 0.5
    link_ratio: Annotated[float, Within(1, 100)] = 1.3
    interpolate_seconds: Annotated[float, Within(0, 3600)] = 1.0
    min_seconds: Annotated[float, Within(0, 86_400)] = 0.8
    min_frames: Annotated[int, Within(1, 1_000_000)] = 4
    min_keypoint_confidence: Annotated[float, Within(0, 1)] = 0.3
    ghost_share: Annotated[float, Within(0, 1)] = 0.5
    jpeg_quality: Annotated[int, Within(1, 100)] = 95

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitConfig:
    """The protocol of unlabelled video (`csip.evaluation.protocol`): every tracklet is a provisional identity.

    Attributes:
        min_part_frames: frames a part has at least.
        max_parts: a tracklet is cut into at most this many parts.
        gap_seconds: time left out between two parts of one tracklet.
        test_fraction: share of the people held out for query and gallery.
        seed: of the draw of the held-out people.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    min_part_frames: Annotated[int, Within(1, 100_000)] = 8
    max_parts: Annotated[int, Within(2, 10_000)] = 4
    gap_seconds: Annotated[float, Within(0, 86_400)] = 0.5
    test_fraction: Annotated[float, Within(0, 1)] = 0.5
    seed: Annotated[int, Within(0, 2**63 - 1)] = 0

    def __post_init__(self) -> None:
        check(self)
