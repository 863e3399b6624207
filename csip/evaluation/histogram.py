"""The baseline that learns nothing: a part's colours, as a joint histogram of hue, saturation and value."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from csip.types import FloatArray


def color_histogram(crops: Sequence[npt.NDArray[np.uint8]], *, bins: tuple[int, int, int]) -> FloatArray:
    """Describe a part by the colours of its crops.

    Every crop weighs the same, whatever its size. A pixel without colour (black, grey, white) has hue 0, so it counts
    in the first hue bin; black has saturation 0 as well.

    Args:
        crops: (H, W, 3) uint8 RGB each, of any sizes.
        bins: of hue, saturation and value, 1 to 256 each; equal widths over Pillow's 0..255.

    Returns:
        (hue bins x saturation bins x value bins,) float32 of length 1, hue slowest.

    Raises:
        ValueError: no crops, a crop that is empty or not (H, W, 3) uint8, or bins out of range.
    """
    if not all(1 <= count <= 256 for count in bins):
        raise ValueError(f"color_histogram: got bins {bins}, expected 1 to 256 each.")
    if not crops:
        raise ValueError("color_histogram: got no crops, expected at least one.")
    total = np.zeros(bins[0] * bins[1] * bins[2], dtype=np.float64)
    for crop in crops:
        if crop.ndim != 3 or crop.shape[2] != 3 or crop.size == 0 or crop.dtype != np.uint8:
            raise ValueError(f"color_histogram: got a crop {crop.shape} {crop.dtype}, expected (H, W, 3) uint8 RGB.")
        hsv = np.asarray(Image.fromarray(crop).convert("HSV"), dtype=np.int64).reshape(-1, 3)
        hue, saturation, value = (hsv * np.array(bins) // 256).T
        flat = (hue * bins[1] + saturation) * bins[2] + value
        total += np.bincount(flat, minlength=len(total)) / len(flat)
    return np.asarray(total / np.linalg.norm(total), dtype=np.float32)
