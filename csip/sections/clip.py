"""What of a snapshot is trained on and scored, and how clips of it are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from csip.sections.bounds import STRICT, in_range

ChunkRule = Literal["padded", "even"]
"""How a tracklet of n frames is cut into the T chunks that a clip takes one frame of each: "padded" with its last frame
to T times ceil(n / T), as published, which fills the late chunks of lengths just above T with that frame; "even" gives
every chunk as many of its own frames as another, or one more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """What of a snapshot is trained on and scored.

    Attributes:
        protocol: a name in `csip.protocols.PROTOCOLS`; "all": one after the other; empty: the snapshot's only one.
        split: number of the split; "all": one training for each; empty: the protocol's only one.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    protocol: str = ""
    split: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipConfig:
    """How clips are sampled from a part and prepared (method.md sections 1 and 5).

    Attributes:
        frames: T, frames a clip.
        chunks: see `ChunkRule`.
        height: of a crop, pixels.
        width: of a crop, pixels.
        mean: of each RGB channel, for normalisation.
        std: of each RGB channel, for normalisation.
        flip: chance that a training clip is mirrored, once a clip.
        erase: chance that a frame of a training clip loses a rectangle, once a frame.
        erase_area: least and largest area of that rectangle, as a share of the crop.
        erase_aspect: least and largest height over width of it.
        joint_confidence: 2D joints under it count as unseen.
        max_gap: unseen joints are interpolated over time across at most this many frames.
        min_joints: a frame with fewer seen joints has no valid skeleton.
        unit: what training samples clips from: a "tracklet" (MARS), a "chunk" of one (LS-VID), or a "window"
            (iLIDS-VID).
        unit_frames: of a chunk or window.
        unit_stride: frames from the begin of one window to that of the next.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    frames: int = 8
    chunks: ChunkRule = "padded"
    height: int = 256
    width: int = 128
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    flip: float = 0.5
    erase: float = 0.5
    erase_area: tuple[float, float] = (0.02, 0.2)
    erase_aspect: tuple[float, float] = (0.3, 3.3)
    joint_confidence: float = 0.3
    max_gap: int = 5
    min_joints: int = 5
    unit: Literal["tracklet", "chunk", "window"] = "tracklet"
    unit_frames: int = 48
    unit_stride: int = 4

    def __post_init__(self) -> None:
        in_range(self, unit_frames=(1, 100_000), unit_stride=(1, 100_000))
        in_range(self, frames=(1, 4096), height=(8, 8192), width=(8, 8192), flip=(0, 1), erase=(0, 1))
        in_range(self, joint_confidence=(0, 1), max_gap=(0, 100_000), min_joints=(1, 1000))
        for name in ("erase_area", "erase_aspect"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"ClipConfig.{name}: got {(low, high)}, expected two positive numbers, ascending.")
        if min(self.std) <= 0:
            raise ValueError(f"ClipConfig.std: got {self.std}, expected positive numbers.")
