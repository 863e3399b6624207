"""Skeletons drawn on crops, for people to look at.

Shapes: J joints.
"""

from __future__ import annotations

import io
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, UnidentifiedImageError

from csip.errors import StoreError
from csip.joints import JointLayout
from csip.types import FloatArray

# Orange and blue stay apart for colour-blind eyes, and both on dark and on light clothes.
LEFT: Final = (255, 138, 31)
RIGHT: Final = (64, 180, 255)
MIDDLE: Final = (250, 250, 250)
_OUTLINE: Final = (20, 20, 20)
# Pillow draws without smoothing: draw this many times larger, then shrink.
_OVERSAMPLE: Final = 4
_QUALITY: Final = 88

Colour = tuple[int, int, int]


def draw_skeleton(
    crop_jpeg: bytes,
    box: FloatArray,
    keypoints: FloatArray,
    layout: JointLayout,
    threshold: float,
    height: int,
) -> bytes:
    """Enlarge a crop and draw its person's bones and joints on it, left and right in different colours.

    Args:
        crop_jpeg: the stored crop.
        box: (4,) x1 y1 x2 y2, frame pixels: the part of the frame that the crop shows (`clip_box`).
        keypoints: (J, 3) x and y in frame pixels, confidence 0..1.
        layout: of the J axis; its third channel must be a confidence.
        threshold: joints of a lower confidence are not drawn, nor are their bones.
        height: of the picture, pixels; its width keeps the crop's proportions.

    Returns:
        A JPEG.

    Raises:
        ValueError: shapes do not fit the layout, the layout is 3D, or the box is empty.
        StoreError: the crop is not a picture.
    """
    joints = len(layout.joints)
    if keypoints.shape != (joints, 3) or box.shape != (4,):
        raise ValueError(
            f"draw_skeleton: got keypoints {keypoints.shape} and box {box.shape}, "
            f"expected ({joints}, 3) for layout {layout.name} and (4,)."
        )
    if layout.third != "confidence":
        raise ValueError(f"draw_skeleton: layout {layout.name} is 3D, expected keypoints in frame pixels.")
    size = box[2:] - box[:2]
    if not (size > 0).all():
        raise ValueError(f"draw_skeleton: got box {box.tolist()}, expected x1 < x2 and y1 < y2.")
    picture = _open(crop_jpeg, height * _OVERSAMPLE)
    points = (keypoints[:, :2] - box[:2]) / size * np.array(picture.size)
    seen = (keypoints[:, 2] >= threshold) & np.isfinite(points).all(axis=1)
    _draw(picture, points, seen, layout, height * _OVERSAMPLE / 160)
    return _save(picture.resize((picture.width // _OVERSAMPLE, height), Image.Resampling.LANCZOS))


def clip_box(box: FloatArray, frame_width: int, frame_height: int) -> FloatArray:
    """Cut a box, (4,) x1 y1 x2 y2, to what lies inside the frame: the tables keep boxes as the model gave them."""
    limits = np.array([frame_width, frame_height, frame_width, frame_height], dtype=np.float32)
    return np.asarray(np.clip(box, 0, limits), dtype=np.float32)


def enlarge(crop_jpeg: bytes, height: int) -> bytes:
    """Bring a crop to the same height as `draw_skeleton` does, and draw nothing; a JPEG.

    Raises:
        StoreError: the crop is not a picture.
    """
    return _save(_open(crop_jpeg, height))


def _open(crop_jpeg: bytes, height: int) -> Image.Image:
    try:
        with Image.open(io.BytesIO(crop_jpeg)) as stored:
            picture = stored.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise StoreError(
            f"A stored crop of {len(crop_jpeg)} bytes is not a picture ({error}); expected a JPEG. "
            "Write the crops table again (`csip build-skeletons`)."
        ) from error
    # A multiple of the oversampling, so that shrinking keeps the proportions.
    width = max(1, round(picture.width * height / picture.height / _OVERSAMPLE)) * _OVERSAMPLE
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _save(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _side(name: str) -> Colour:
    return LEFT if name.startswith("left_") else RIGHT if name.startswith("right_") else MIDDLE


def _bone_colour(a: Colour, b: Colour) -> Colour:
    """A bone across the body is neither side's; one from the middle to a side is that side's."""
    sides = {a, b} - {MIDDLE}
    return sides.pop() if len(sides) == 1 else MIDDLE


def _draw(
    picture: Image.Image,
    points: npt.NDArray[np.floating],
    seen: npt.NDArray[np.bool_],
    layout: JointLayout,
    unit: float,
) -> None:
    """Draw dark outlines first, so that they cover no bone; `unit` is the thickness that is 1 at 160 pixels' height."""
    canvas = ImageDraw.Draw(picture)
    colours = [_side(name) for name in layout.joints]
    spots = [(float(x), float(y)) for x, y in points]
    bones = [(a, b) for a, b in layout.bones if seen[a] and seen[b]]
    for outline, line, radius in ((True, 3.4, 2.9), (False, 1.8, 2.1)):
        for a, b in bones:
            fill = _OUTLINE if outline else _bone_colour(colours[a], colours[b])
            canvas.line((*spots[a], *spots[b]), fill=fill, width=round(line * unit))
        for j in np.flatnonzero(seen):
            (x, y), r = spots[j], radius * unit
            canvas.ellipse((x - r, y - r, x + r, y + r), fill=_OUTLINE if outline else colours[j])
