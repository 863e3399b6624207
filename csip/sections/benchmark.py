"""Labelled people to rows: benchmarks' folders, and the benchmark that the computer draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from csip.sections.bounds import STRICT, in_range


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
    people: int = 60
    twins: float = 0.5
    test_fraction: float = 0.5
    cameras: int = 4
    passes: int = 2
    frames: int = 24
    layout: Literal["h36m17", "coco17"] = "h36m17"
    joint_noise: float = 0.015
    scale_noise: float = 0.02
    keypoint_noise: float = 0.01
    missing_joints: float = 0.03
    missing_frames: float = 0.05
    occlusion: float = 0.15
    box_noise: float = 0.015
    jpeg_quality: int = 90
    seed: int = 0

    def __post_init__(self) -> None:
        # 40 frames at 10 a second are 6 metres at a brisk pace: more would lead out of some camera's view.
        in_range(self, people=(4, 100_000), twins=(0, 1), test_fraction=(0, 1), cameras=(2, 100), passes=(2, 100))
        in_range(self, frames=(2, 40), joint_noise=(0, 1), scale_noise=(0, 0.2), keypoint_noise=(0, 0.2))
        in_range(self, missing_joints=(0, 1), missing_frames=(0, 1), occlusion=(0, 1), box_noise=(0, 0.1))
        in_range(self, jpeg_quality=(1, 100), seed=(0, 2**63 - 1))


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
    skeleton_folder: str = "skeleton_3d_hmr2.0"
    pose_height: int = 256
    pose_width: int = 128
    pose_margin: float = 0.1
    pose_confidence: float = 0.1

    def __post_init__(self) -> None:
        in_range(self, pose_height=(32, 4096), pose_width=(32, 4096), pose_confidence=(0, 1), pose_margin=(0, 0.9))
        if self.skeleton_folder in ("", ".", "..") or "/" in self.skeleton_folder or "\\" in self.skeleton_folder:
            raise ValueError(
                f"BenchmarkConfig.skeleton_folder: got {self.skeleton_folder!r}, expected the name of one folder."
            )
