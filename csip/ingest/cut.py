"""Boxes cut out of frames, as encoded crops.

Shapes: N boxes, H and W pixels of a frame.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from csip.types import FloatArray, IntArray


def clip_boxes(boxes: npt.NDArray[np.floating[Any]], width: int, height: int) -> IntArray:
    """Give the whole pixels that boxes cover of a frame: inside it, and at least one pixel wide and high.

    Args:
        boxes: (N, 4) x1 y1 x2 y2, frame pixels, finite.
        width: of the frame, pixels.
        height: of the frame, pixels.

    Returns:
        (N, 4) x1 y1 x2 y2; x2 and y2 are the first pixels that no longer belong.
    """
    size = np.array([width, height])
    first = np.clip(np.floor(boxes[:, :2]), 0, size - 1)
    last = np.clip(np.ceil(boxes[:, 2:]), first + 1, size)
    return np.concatenate([first, last], axis=1).astype(np.int64)


def encode_crop(pixels: npt.NDArray[np.uint8], box: FloatArray, quality: int) -> bytes:
    """Cut a box out of a frame (H, W, 3), clipped to the frame and at least one pixel wide, as JPEG."""
    height, width = pixels.shape[:2]
    x1, y1, x2, y2 = clip_boxes(box[None], width, height)[0].tolist()
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[y1:y2, x1:x2])).save(file, "JPEG", quality=quality)
    return file.getvalue()
