"""Crops and skeletons of one clip to the numbers the model reads; a flip mirrors both.

Shapes: T frames, J joints, (3, H, W) a crop.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from csip.config import ClipConfig
from csip.errors import StoreError
from csip.joints import JointLayout

_ERASE_AREA = (0.02, 0.2)
_ERASE_ASPECT = (0.3, 3.3)
_ERASE_TRIES = 10


def decode_crop(image: bytes, where: str) -> Tensor:
    """Decode an encoded crop to (3, h, w) uint8 RGB.

    Args:
        image: the encoded bytes.
        where: names the crop in an error.

    Raises:
        StoreError: the bytes are no picture.
    """
    try:
        with Image.open(io.BytesIO(image)) as picture:
            pixels = np.array(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise StoreError(
            f"Crop {where}: {len(image)} bytes that are no JPEG or PNG ({error}). Extract its video again."
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def resize_crop(pixels: Tensor, clip: ClipConfig) -> Tensor:
    """Resize (3, h, w) uint8 to (3, H, W) uint8, bilinear."""
    resized: Tensor = tv.resize(pixels, [clip.height, clip.width], antialias=True)
    return resized


def normalise_crops(crops: Tensor, clip: ClipConfig) -> Tensor:
    """Turn (..., 3, H, W) uint8 into float32, each channel minus its mean, over its deviation."""
    mean = torch.tensor(clip.mean).view(3, 1, 1)
    std = torch.tensor(clip.std).view(3, 1, 1)
    return (crops.float() / 255 - mean) / std


def flip_clip(crops: Tensor, skeleton: Tensor, layout: JointLayout) -> tuple[Tensor, Tensor]:
    """Mirror a clip: the pictures, the x of the root-centred skeletons, and left with right.

    Args:
        crops: (T, 3, H, W).
        skeleton: (T, J, 3), root-centred.
        layout: of the J axis.
    """
    mirrored = skeleton[:, torch.from_numpy(layout.swap())].clone()
    mirrored[..., 0] = -mirrored[..., 0]
    return crops.flip(-1), mirrored


def erase(crop: Tensor, rng: np.random.Generator) -> Tensor:
    """Fill one random rectangle inside a crop with one random colour.

    Area 2 to 20 percent, aspect .3 to 3.3 (method.md section 1). A shape that does not fit is drawn again, ten times.

    Args:
        crop: (3, H, W) uint8; not changed.
        rng: the only source of chance.
    """
    _, height, width = crop.shape
    for _ in range(_ERASE_TRIES):
        area = rng.uniform(*_ERASE_AREA) * height * width
        aspect = rng.uniform(*_ERASE_ASPECT)
        h, w = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < h < height and 0 < w < width:
            y, x = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
            out = crop.clone()
            colour = torch.from_numpy(rng.integers(0, 256, size=3, dtype=np.uint8))
            out[:, y : y + h, x : x + w] = colour.view(3, 1, 1)
            return out
    return crop
