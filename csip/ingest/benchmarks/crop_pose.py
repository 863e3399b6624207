"""Skeletons of crops without any: the pose model on each crop, and of the people it sees there the one it belongs to.

Shapes: T frames of a tracklet, H and W pixels of the canvas, h and w of a crop, N people, J joints.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from csip.config import ExtractConfig, RuntimeConfig
from csip.errors import SourceError
from csip.ingest.benchmarks.crops import CropFile, Skeletons
from csip.ingest.pose import PoseModel
from csip.ingest.yolo import resolve_weights
from csip.joints import COCO17
from csip.plain import digest
from csip.types import FloatArray, Frames, People
from csip.weights import digest_weights

CROP_POSE_VERSION = 1
"""Raise it when a change to this file or to `csip.ingest.pose` changes the skeletons of crops."""

Pixels = npt.NDArray[np.uint8]

_GREY = 114  # what the model was trained to see around a picture (ultralytics' LetterBox)


class PoseSkeletons:
    """A YOLO pose model on crops of any size, one skeleton a crop.

    Every crop is fitted into the same canvas, so that one model serves them all.

    Attributes:
        layout: of its skeletons.
        reads_sidecars: no.
        digest: of the weights and of the settings that decide the skeletons; not of device, engine, batch or paths.
        extractor: the same for people.
    """

    layout = COCO17.name
    reads_sidecars = False

    def __init__(self, config: ExtractConfig, runtime: RuntimeConfig) -> None:
        """Find and digest the weights; the model is loaded for the first tracklet.

        Args:
            config: `detect` gives weights and non-maximum suppression, `benchmark` the canvas and the lowest score.
            runtime: device, engine and batch.

        Raises:
            WeightsError: the weights are nowhere to be had.
        """
        self._config, self._runtime = config, runtime
        self._weights = resolve_weights(config.detect.weights)
        sha256 = digest_weights(self._weights)
        detect, crop = config.detect, config.benchmark
        self._canvas = (crop.pose_height, crop.pose_width)
        limits = (crop.pose_confidence, detect.iou, detect.max_people, detect.precision)
        self.digest = digest("crop_pose", CROP_POSE_VERSION, sha256, self._canvas, crop.pose_margin, limits)
        self.extractor: Mapping[str, Any] = {
            "name": "YOLO-pose on crops",
            "weights": self._weights.name,
            "weights_sha256": sha256,
            "canvas": list(self._canvas),
            "margin": crop.pose_margin,
            "confidence": crop.pose_confidence,
            "units": "crop pixels",
        }

    @functools.cached_property
    def _model(self) -> PoseModel:
        return PoseModel(
            self._weights,
            frame_size=self._canvas,
            image_size=max(self._canvas),
            confidence=self._config.benchmark.pose_confidence,
            iou=self._config.detect.iou,
            max_people=self._config.detect.max_people,
            device=self._runtime.device,
            engine=self._runtime.pose_engine,
            precision=self._config.detect.precision,
        )

    def __call__(self, files: Sequence[CropFile], images: Sequence[bytes]) -> Skeletons:
        """Find the people on T crops.

        Args:
            files: name the crops in errors.
            images: their encoded bytes, one for each of `files`.

        Returns:
            Keypoints (T, 17, 3): x and y in crop pixels, from the crop's left upper corner, and confidence; zero where
            nobody was found. Joints may lie a little outside of the crop. The confidence is the mean over all keypoints
            of the frames with a skeleton, 0 without any.

        Raises:
            SourceError: a picture cannot be decoded.
            WeightsError: the weights are not those of a YOLO pose model of 17 keypoints.
        """
        keypoints = np.zeros((len(files), len(COCO17.joints), 3), np.float32)
        found = np.zeros(len(files), np.bool_)
        crops = list(zip(files, images, strict=True))
        for start in range(0, len(crops), self._runtime.pose_batch):
            batch = [decode_picture(*crop) for crop in crops[start : start + self._runtime.pose_batch]]
            for i, skeleton in enumerate(self._skeletons(batch), start):
                if skeleton is not None:
                    keypoints[i], found[i] = skeleton, True
        confidence = float(keypoints[found, :, 2].mean()) if found.any() else 0.0
        return Skeletons(keypoints, found, confidence)

    def _skeletons(self, crops: Sequence[Pixels]) -> list[FloatArray | None]:
        """Give each crop's (J, 3) skeleton in crop pixels, or None where nobody was found."""
        fits = [Fit.of(crop, self._canvas, self._config.benchmark.pose_margin) for crop in crops]
        canvases = np.stack([fit.draw(crop) for fit, crop in zip(fits, crops, strict=True)])
        frames = Frames(canvases, np.arange(len(crops)), np.zeros(len(crops)))
        seen = [fit.undo(people) for fit, people in zip(fits, self._model(frames), strict=True)]
        return [
            people.keypoints[own_person(people, crop.shape[:2])] if len(people) else None
            for people, crop in zip(seen, crops, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Fit:
    """Where a crop lies in the canvas.

    Attributes:
        canvas: (H, W) pixels.
        size: (height, width) of the enlarged or shrunk crop in it, pixels.
        corner: (top, left) of that.
        scale: (down, across) canvas pixels a crop pixel; they differ by the rounding of `size`.
    """

    canvas: tuple[int, int]
    size: tuple[int, int]
    corner: tuple[int, int]
    scale: tuple[float, float]

    @classmethod
    def of(cls, crop: Pixels, canvas: tuple[int, int], margin: float) -> Fit:
        """Fit a crop (h, w, 3) into the middle of a canvas (H, W), its shape kept.

        Args:
            crop: of any size.
            canvas: (H, W).
            margin: share of the canvas's height and width that stays free, 0..1.
        """
        h, w = crop.shape[:2]
        scale = min(canvas[0] / h, canvas[1] / w) * (1 - margin)
        # A crop of one pixel's breadth must not vanish.
        height, width = max(round(h * scale), 1), max(round(w * scale), 1)
        corner = (canvas[0] - height) // 2, (canvas[1] - width) // 2
        return cls(canvas, (height, width), corner, (height / h, width / w))

    def draw(self, crop: Pixels) -> Pixels:
        """Give the canvas (H, W, 3) with the crop in it, grey around."""
        (height, width), (top, left) = self.size, self.corner
        image = np.full((*self.canvas, 3), _GREY, np.uint8)
        image[top : top + height, left : left + width] = cv2.resize(crop, (width, height))
        return image

    def undo(self, people: People) -> People:
        """Bring people from canvas pixels to crop pixels."""
        corner, scale = np.array(self.corner[::-1], np.float32), np.array(self.scale[::-1], np.float32)
        keypoints = people.keypoints.copy()
        keypoints[:, :, :2] = (keypoints[:, :, :2] - corner) / scale
        boxes = (people.boxes.reshape(-1, 2, 2) - corner) / scale
        return People(boxes.reshape(-1, 4), people.score, keypoints)


def own_person(people: People, size: tuple[int, ...]) -> int:
    """Choose the person that a crop was cut out for.

    A crop is a box that somebody drew around its person, who therefore fills it and stands in its middle, whereas
    bystanders are cut off at its sides, however sure the model is of them. The one wins with the largest product of

    - the share of the crop that the person's box covers (that is their IoU, once the box is clipped to the crop),
    - how near the middle of the clipped box is to the crop's, across: 1 there, 0 at the sides. Not down: half-hidden
      people are seen with their upper or lower body only,
    - the score, so that a faint box around two people at once does not win by its size.

    Measured on 200 loose crops of a street that show a second person, 256 x 128 with a margin: the best score alone
    takes a wrong one in 33, covering times score in 11, all three in 4.

    Args:
        people: at least one, in crop pixels.
        size: (height, width) of the crop.

    Returns:
        The position in `people`; of equals the first.
    """
    height, width = size
    left, top, right, bottom = np.clip(people.boxes, 0, np.array([width, height, width, height])).T
    covers = (right - left) * (bottom - top) / (height * width)
    central = 1 - np.abs((left + right) / width - 1)
    return int(np.argmax(covers * central * people.score))


def decode_picture(file: CropFile, content: bytes) -> Pixels:
    """Decode a crop's bytes to (h, w, 3) RGB.

    Raises:
        SourceError: they are no picture, or not a whole one.
    """
    # Pixels as they lie in the file: a crop is never turned. The pose model wants RGB.
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return np.array(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SourceError(
            f"Picture {file.path}: found {len(content)} bytes that cannot be decoded, expected a whole picture. "
            "Get the file again from where the data set comes from; the same command then goes on."
        ) from error
