"""The records that rooms hand to each other; each checks itself once, at the door.

Shapes: F frames, N people or rows, T frames of a tracklet or clip, J joints, B clips, C channels,
E embedding width, Q queries, G gallery items, P parts.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

ValueT = TypeVar("ValueT")


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _expect_shape(name: str, array: npt.NDArray[np.generic] | Tensor, shape: tuple[int | None, ...]) -> None:
    fits = array.ndim == len(shape) and all(w is None or w == g for w, g in zip(shape, array.shape, strict=True))
    wanted = "(" + ", ".join("*" if s is None else str(s) for s in shape) + ")"
    _expect(fits, f"{name}: got shape {tuple(array.shape)}, expected {wanted}.")


@dataclass(frozen=True, slots=True)
class TableRef:
    """One version of one table. Never "latest": a reference always reads the same rows."""

    uri: str
    version: int

    def __post_init__(self) -> None:
        _expect(self.version >= 1, f"TableRef {self.uri}: got version {self.version}, expected 1 or more.")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A published data set: the version of every table that a reader of it pins.

    Attributes:
        name: what a user calls it, unique in its store.
        store: the store's folder.
        tables: table name -> version.
        digest: of what decides its rows: videos, cameras, settings and the protocol's code.
        protocol: whose rows of `splits` are meant; empty: its only one.
        split: which of that protocol's splits; empty: its only one.
    """

    name: str
    store: str
    tables: Mapping[str, int]
    digest: str
    protocol: str = ""
    split: str = ""


@dataclass(frozen=True, slots=True)
class CheckpointRef:
    """A checkpoint on disk, named by the SHA-256 of its weights file."""

    path: str
    sha256: str

    def __post_init__(self) -> None:
        _expect(len(self.sha256) == 64, f"CheckpointRef {self.path}: got sha256 {self.sha256!r}, expected 64 digits.")


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file that a stage wrote for people to read, such as the report."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class SourceVideo:
    """A video that was offered, known by its content.

    Attributes:
        video_sha: SHA-256 of the file's bytes.
        path: absolute.
        camera: the camera's name.
        duration: seconds.
    """

    video_sha: str
    path: str
    camera: str
    duration: float


@dataclass(frozen=True, slots=True)
class ExtractDigests:
    """What decides a video's rows.

    Attributes:
        detect: of the detection settings, the weights and EXTRACT_VERSION.
        track: of that and the tracking settings.
        weights: file name -> SHA-256.
        weights_path: where the weights lie; empty where no pose model may run, since the detections are in the store.
    """

    detect: str
    track: str
    weights: Mapping[str, str]
    weights_path: str


@dataclass(frozen=True, slots=True)
class VideoList:
    """The videos of a build.

    Attributes:
        videos: all of them, by SHA-256.
        batches: those that are still to be extracted, grouped for one process each.
        digests: of the extraction that the build asks for.
    """

    videos: tuple[SourceVideo, ...]
    batches: tuple[tuple[SourceVideo, ...], ...]
    digests: ExtractDigests


@dataclass(frozen=True, slots=True)
class ExtractedVideo:
    """A video whose tracklets are in the store.

    Attributes:
        video_sha: SHA-256 of the file's bytes.
        track_digest: of the extraction that made them.
        run_id: of the row in `runs` that says so.
    """

    video_sha: str
    track_digest: str
    run_id: str


@dataclass(frozen=True, slots=True)
class EmbeddingsRef:
    """The embeddings of one encoder in a pinned version of `embeddings`.

    Attributes:
        table: the version.
        encoder_digest: the rows with this digest.
        encoder: what results call it: "trained", "untrained", "hsv-histogram".
        checkpoint_sha: of the checkpoint; empty for a baseline without one.
        unit: what one embedding is of: a whole "part", or one of the "clips" that it was cut into.
        words: the same for people, and which frames it was made from.
    """

    table: TableRef
    encoder_digest: str
    encoder: str
    checkpoint_sha: str
    unit: Literal["part", "clips"] = "part"
    words: str = "whole tracklets"


@dataclass(frozen=True, slots=True)
class ResultsRef:
    """The scores of one evaluation: the rows of a pinned version of `results` with this run id."""

    table: TableRef
    run_id: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage is. Stages yield these; the terminal and the Prefect UI draw them.

    Attributes:
        stage: the stage's name, the same in every record of a run.
        done: units finished.
        part: share of the next unit that is done, 0 to 1.
        total: units there are in all; 0 where that is unknown.
        unit: what is counted, in the plural ("frames", "epochs").
        values: figures worth showing beside the bar (losses, rates).
        note: one sentence for the log, or empty.
    """

    stage: str
    done: int
    total: int
    unit: str
    values: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    part: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome(Generic[ValueT]):
    """What a stage leaves behind.

    Attributes:
        value: the reference that later stages read.
        counts: what was kept, and what was dropped and why.
        weights: file name -> SHA-256 of weights that came from outside.
        leftovers: files to remove once the stage is recorded as done.
    """

    value: ValueT
    counts: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    leftovers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Output:
    """Where a stage writes.

    Attributes:
        store: the store's folder.
        run_id: the id under which the stage is recorded in `runs`.
    """

    store: str
    run_id: str


Stage = Generator[Progress, None, Outcome[ValueT]]
"""A running stage: it yields `Progress` and returns its `Outcome`."""


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """Consecutive frames of a video.

    Attributes:
        pixels: (F, H, W, 3) uint8, RGB.
        frame_index: (F,) int64, zero-based in the source.
        time: (F,) float64, seconds, from the container.
    """

    pixels: npt.NDArray[np.uint8]
    frame_index: IntArray
    time: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        _expect_shape("Frames.pixels", self.pixels, (None, None, None, 3))
        _expect(self.pixels.dtype == np.uint8, f"Frames.pixels: got {self.pixels.dtype}, expected uint8.")
        _expect_shape("Frames.frame_index", self.frame_index, (len(self.pixels),))
        _expect_shape("Frames.time", self.time, (len(self.pixels),))

    def __len__(self) -> int:
        """Count the frames."""
        return len(self.pixels)

    def __getitem__(self, part: slice) -> Frames:
        """Give some of the frames; pixels are shared, not copied."""
        return Frames(self.pixels[part], self.frame_index[part], self.time[part])


@dataclass(frozen=True, slots=True, eq=False)
class People:
    """The people a pose model saw in one frame.

    Attributes:
        boxes: (N, 4) float32, x1 y1 x2 y2, frame pixels.
        score: (N,) float32, detection confidence 0..1.
        keypoints: (N, J, 3) float32, x and y in frame pixels, confidence 0..1.
    """

    boxes: FloatArray
    score: FloatArray
    keypoints: FloatArray

    def __post_init__(self) -> None:
        _expect_shape("People.boxes", self.boxes, (None, 4))
        _expect_shape("People.score", self.score, (len(self.boxes),))
        _expect_shape("People.keypoints", self.keypoints, (len(self.boxes), None, 3))

    def __len__(self) -> int:
        """Count the people."""
        return len(self.boxes)


@dataclass(frozen=True, slots=True, eq=False)
class Tracklet:
    """One person under one camera, unbroken.

    Attributes:
        tracklet_id: deterministic; see `csip.ingest.extract.tracklet_id`.
        frame_index: (T,) int64, strictly increasing, zero-based in the source.
        boxes: (T, 4) float32, x1 y1 x2 y2, frame pixels.
        score: (T,) float32, detection confidence 0..1.
        keypoints: (T, J, 3) float32, x and y in frame pixels, confidence 0..1.
        interpolated: (T,) bool, where nobody was detected: the box was interpolated, score and keypoints are zero.
    """

    tracklet_id: str
    frame_index: IntArray
    boxes: FloatArray
    score: FloatArray
    keypoints: FloatArray
    interpolated: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        t = len(self.frame_index)
        _expect(t > 0, f"Tracklet {self.tracklet_id}: got no frames, expected at least one.")
        _expect(
            bool((np.diff(self.frame_index) > 0).all()),
            f"Tracklet {self.tracklet_id}: frame_index must increase strictly.",
        )
        _expect_shape("Tracklet.boxes", self.boxes, (t, 4))
        _expect_shape("Tracklet.score", self.score, (t,))
        _expect_shape("Tracklet.keypoints", self.keypoints, (t, None, 3))
        _expect_shape("Tracklet.interpolated", self.interpolated, (t,))

    def __len__(self) -> int:
        """Count the frames."""
        return len(self.frame_index)


@dataclass(frozen=True, slots=True)
class TrackletPart:
    """A run of frames of one tracklet, the unit that training samples and evaluation ranks.

    On benchmarks a part is a whole tracklet; on unlabelled video a tracklet is cut into parts with a gap
    in time between them.

    Attributes:
        tracklet_id: the tracklet the frames belong to.
        first_frame: first frame_index of the part.
        last_frame: last frame_index of the part, inclusive.
        pid: the person, as the data set numbers people.
        camid: zero-based camera number.
    """

    tracklet_id: str
    first_frame: int
    last_frame: int
    pid: int
    camid: int

    def __post_init__(self) -> None:
        _expect(
            0 <= self.first_frame <= self.last_frame,
            f"TrackletPart of {self.tracklet_id}: got frames {self.first_frame}..{self.last_frame}.",
        )

    @property
    def unit(self) -> tuple[str, int, int]:
        """What tells this part from every other."""
        return (self.tracklet_id, self.first_frame, self.last_frame)


@dataclass(frozen=True, slots=True, eq=False)
class ClipBatch:
    """Clips ready for the model.

    Attributes:
        crops: (B, T, 3, H, W) float32, normalised RGB.
        skeleton: (B, T, J, 3) float32, root-centred; x, y, confidence (or z).
        frame_mask: (B, T) bool, True where the frame has a valid skeleton.
        label: (B,) int64, class index in training; -1 outside it.
        camid: (B,) int64, zero-based; -1 for a camera the model does not know.
        part: (B,) int64, index of each clip's part in the data set it was drawn from.
    """

    crops: Tensor
    skeleton: Tensor
    frame_mask: Tensor
    label: Tensor
    camid: Tensor
    part: Tensor

    def __post_init__(self) -> None:
        _expect_shape("ClipBatch.frame_mask", self.frame_mask, (None, None))
        b, t = self.frame_mask.shape
        _expect_shape("ClipBatch.crops", self.crops, (b, t, 3, None, None))
        _expect_shape("ClipBatch.skeleton", self.skeleton, (b, t, None, 3))
        for name in ("label", "camid", "part"):
            _expect_shape(f"ClipBatch.{name}", getattr(self, name), (b,))


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """The result of ranking.

    Attributes:
        cmc: (R,) float64, cmc[k - 1] is the share of valid queries with a match among the first k.
        mean_ap: mean average precision over the valid queries, step form.
        mean_ap_trapezoidal: the same by the trapezoidal form of MARS's official evaluation (datasets.md 1.1, 6).
        mean_inp: mean inverse negative penalty over the valid queries: matches over the rank of the last one.
        num_queries: all queries that were asked.
        num_valid_queries: those with at least one possible match; only they count.
    """

    cmc: npt.NDArray[np.float64]
    mean_ap: float
    mean_ap_trapezoidal: float
    mean_inp: float
    num_queries: int
    num_valid_queries: int

    def rank(self, k: int) -> float:
        """Rank-k accuracy; a gallery of fewer than k items answers with all it has."""
        _expect(k >= 1, f"rank: got k={k}, expected 1 or more.")
        return float(self.cmc[min(k, len(self.cmc)) - 1])
