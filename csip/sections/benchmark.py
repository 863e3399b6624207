"""Labelled people to rows: benchmarks' folders, and the benchmark that the computer draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict

from csip.sections.bounds import STRICT, Spelt, Within, check


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkersConfig:
    """Walkers, the synthetic benchmark (`csip.ingest.benchmarks.walkers`): everything that changes its rows.

    Attributes:
        people: persons in all, train and test.
        twins: share of the people who come in pairs of the same clothes, hair and skin.
        test_fraction: share of the people held out for query and gallery; a pair stays together.
        cameras: views of the place that everybody walks through.
        passes: times each person walks past each camera; of a test person's, the first is the query.
        frames: of a pass, at 10 a second.
        layout: which skeletons become rows: HMR-like 3D ("h36m17") or detector-like 2D ("coco17").
        joint_noise: standard deviation of 3D joints along each axis, metres.
        scale_noise: standard deviation of the factor by which a pass's 3D skeletons are too large or too small.
        keypoint_noise: standard deviation of 2D joints along each axis, as a share of the person's height in pixels.
        missing_joints: chance that a joint is not found in a frame; three times that where it is hidden.
        missing_frames: chance that a frame has no skeleton at all.
        occlusion: chance that something stands in front of part of a pass.
        box_noise: standard deviation of the box's edges, as a share of its height.
        jpeg_quality: of the stored crops, 1..100.
        seed: of everything.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    people: Annotated[int, Within(4, 100_000)] = 60
    twins: Annotated[float, Within(0, 1)] = 0.5
    test_fraction: Annotated[float, Within(0, 1)] = 0.5
    cameras: Annotated[int, Within(2, 100)] = 4
    passes: Annotated[int, Within(2, 100)] = 2
    # 40 frames at 10 a second are 6 metres at a brisk pace: more would lead out of some camera's view.
    frames: Annotated[int, Within(2, 40)] = 24
    layout: Literal["h36m17", "coco17"] = "h36m17"
    joint_noise: Annotated[float, Within(0, 1)] = 0.015
    scale_noise: Annotated[float, Within(0, 0.2)] = 0.02
    keypoint_noise: Annotated[float, Within(0, 0.2)] = 0.01
    missing_joints: Annotated[float, Within(0, 1)] = 0.03
    missing_frames: Annotated[float, Within(0, 1)] = 0.05
    occlusion: Annotated[float, Within(0, 1)] = 0.15
    box_noise: Annotated[float, Within(0, 0.1)] = 0.015
    jpeg_quality: Annotated[int, Within(1, 100)] = 90
    seed: Annotated[int, Within(0, 2**63 - 1)] = 0

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkConfig:
    """How a benchmark's folder becomes rows (`csip.ingest.benchmarks`).

    Attributes:
        skeletons: where the crops' skeletons come from: "files" beside the pictures; "pose", the model of
            `detect.weights` on the crops; "none" for those who only evaluate; "auto" takes the files where their folder
            is there, else the pose model.
        skeleton_folder: name of the folder of side-car files, below the data set's root.
        pose_height: pixels of what the pose model sees of a crop; crops are enlarged or shrunk to fit.
        pose_width: the same across.
        pose_margin: share of that height and width which stays free around a crop, room for joints that the crop cuts
            off.
        pose_confidence: lowest score of a person that a crop's skeleton is taken from.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    skeletons: Literal["auto", "files", "pose", "none"] = "auto"
    skeleton_folder: Annotated[str, Spelt(r"(?!\.\.?$)[^/\\]+", "the name of one folder")] = "skeleton_3d_hmr2.0"
    pose_height: Annotated[int, Within(32, 4096)] = 256
    pose_width: Annotated[int, Within(32, 4096)] = 128
    pose_margin: Annotated[float, Within(0, 0.9)] = 0.1
    pose_confidence: Annotated[float, Within(0, 1)] = 0.1

    def __post_init__(self) -> None:
        check(self)
