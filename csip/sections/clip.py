"""What of a snapshot is trained on and scored, and how clips of it are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict

from csip.sections.bounds import STRICT, Each, Spelt, Within, check

ChunkRule = Literal["padded", "even"]
"""How a tracklet of n frames is cut into the T chunks that a clip takes one frame of each: "padded" with its last frame
to T times ceil(n / T), as published, which fills the late chunks of lengths just above T with that frame; "even" gives
every chunk as many of its own frames as another, or one more."""

DatasetName = Annotated[
    str,
    Spelt(
        "[A-Za-z0-9_][A-Za-z0-9_-]{0,99}",
        "letters, digits, '-' and '_' of ASCII, no '-' in front, at most 100: it becomes part of file and tag names",
    ),
]
"""What snapshots and their splits are called by, with a digest behind it: what `csip.tables.check_name` takes."""


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


_TWO = Each("two positive numbers, ascending", above=0, count=(2, 2), ascending=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipConfig:
    """How clips are sampled from a part and prepared (method.md sections 1 and 5).

    Attributes:
        frames: T, frames a clip.
        chunks: how a tracklet's frames become T chunks: "padded" with the last one, as published, or "even".
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
    frames: Annotated[int, Within(1, 4096)] = 8
    chunks: ChunkRule = "padded"
    height: Annotated[int, Within(8, 8192)] = 256
    width: Annotated[int, Within(8, 8192)] = 128
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: Annotated[tuple[float, float, float], Each("positive numbers", above=0, count=(3, 3))] = (0.229, 0.224, 0.225)
    flip: Annotated[float, Within(0, 1)] = 0.5
    erase: Annotated[float, Within(0, 1)] = 0.5
    erase_area: Annotated[tuple[float, float], _TWO] = (0.02, 0.2)
    erase_aspect: Annotated[tuple[float, float], _TWO] = (0.3, 3.3)
    joint_confidence: Annotated[float, Within(0, 1)] = 0.3
    max_gap: Annotated[int, Within(0, 100_000)] = 5
    min_joints: Annotated[int, Within(1, 1000)] = 5
    unit: Literal["tracklet", "chunk", "window"] = "tracklet"
    unit_frames: Annotated[int, Within(1, 100_000)] = 48
    unit_stride: Annotated[int, Within(1, 100_000)] = 4

    def __post_init__(self) -> None:
        check(self)
