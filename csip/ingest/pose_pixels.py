"""A frame to what a pose network sees: how large, letterboxed, and as numbers from 0 to 1.

Shapes: F frames, H and W frame pixels, h and w network pixels.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from csip.errors import WeightsError
from csip.ingest.yolo import import_quietly

Pixels = npt.NDArray[np.uint8]

_LOG = logging.getLogger(__name__)

_LEAST, _MOST = 640, 3200
_SEEN, _PROMISED = 100, 60  # how high people must stand before the network, and in a frame, pixels


def choose_image_size(frame_size: tuple[int, int]) -> int:
    """Choose the longer side of what the network sees, such that it finds people of 60 pixels in the frame.

    The shipped model finds people once they stand about 100 pixels high before it: of people of 50 to 70 pixels in
    `pedestrians.avi` (768x576), shown at an image size of 640, 960, 1280 and 1600, it found 0, 11, 49 and 53 of 53; of
    the same street at a median of 60 pixels on 1920x1080, at 1280, 1920, 2560 and 3200, it found 87, 105, 99 and 135 of
    156. So a frame is enlarged by 5/3, but to no more than the 3200 of Full HD, as the time grows with the square, and
    to no less than the 640 that the model was trained at. Of larger frames, it is said who is missed: 6400 for
    3840x2160 took 47 seconds a frame and 11 GB on two busy CPU cores.

    Args:
        frame_size: (H, W).

    Returns:
        Pixels: 1280 for 768x576, 3200 for 1920x1080.
    """
    longest = max(frame_size)
    wanted = max(-(-longest * _SEEN // _PROMISED), _LEAST)
    if wanted > _MOST:
        _LOG.warning(
            "Frames of %dx%d are shown to the pose model at an image size of %d, where people smaller than about %d "
            "pixels are missed. detect.image_size=%d finds those of %d pixels, in %.1f times the time.",
            *(frame_size[1], frame_size[0], _MOST, _SEEN * longest // _MOST),
            *(wanted, _PROMISED, (wanted / _MOST) ** 2),
        )
    return min(wanted, _MOST)


def network_size(frame_size: tuple[int, int], image_size: int, stride: int) -> tuple[int, int]:
    """(h, w): the frame scaled so that its longer side is `image_size`, each side rounded up to the stride."""
    longest = round_up(image_size, stride)
    scale = longest / max(frame_size)
    height, width = (round_up(round(side * scale), stride) for side in frame_size)
    return max(height, stride), max(width, stride)


def round_up(pixels: int, stride: int) -> int:
    """Give the next multiple of the stride."""
    return -(-pixels // stride) * stride


def check_bound_size(bound: tuple[int, int], image_size: int, stride: int, where: str) -> tuple[int, int]:
    """Check that the size which a file is bound to is the one that was asked for; 0 asks for none.

    Raises:
        WeightsError: it is not.
    """
    if image_size and max(bound) != round_up(image_size, stride):
        raise WeightsError(
            f"{where}: found a model for images of {bound[0]}x{bound[1]} only, expected a longer side of "
            f"{round_up(image_size, stride)} (detect.image_size). Use --set detect.image_size={max(bound)}, or export "
            f"the model again with imgsz={image_size} or dynamic=True."
        )
    return bound


class Letterbox:
    """Scales frames to fit and puts grey around them, as ultralytics' predictor does."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._fit = import_quietly("ultralytics.data.augment").LetterBox(size, auto=False)

    def __call__(self, pixels: Pixels) -> torch.Tensor:
        """(F, H, W, 3) uint8 to (F, 3, h, w) uint8, the channels last in memory."""
        # Ultralytics' loaders give BGR and its predictor turns it to RGB; ours come as RGB.
        images = [self._fit(image=image) for image in pixels]
        stacked: Pixels = images[0][None] if len(images) == 1 else np.stack(images)
        return torch.from_numpy(stacked).permute(0, 3, 1, 2)


class ScaledPixels:
    """Turns bytes into numbers from 0 to 1 where the network is, in memory that is used again.

    New memory for every frame would cost more than the arithmetic: 15 MB at 1280x960, page by page.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
        self._device = device
        self._kind: dict[str, Any] = {"device": device, "dtype": dtype, "memory_format": memory_format}
        self._buffer = torch.empty(0, 0, 0, 0)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(F, 3, h, w) uint8 to the same as floats; they hold until the next call."""
        if self._buffer.shape != images.shape:
            self._buffer = torch.empty(tuple(images.shape), **self._kind)
        # Over to the device as bytes, a quarter of what floats would be.
        return self._buffer.copy_(images.to(self._device)).div_(255)
