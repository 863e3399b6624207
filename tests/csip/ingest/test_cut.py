"""Boxes to crops: whole pixels, inside the frame, never without any."""

import io

import numpy as np
import pytest
from PIL import Image

from csip.ingest.cut import clip_boxes, encode_crop


@pytest.mark.parametrize(
    ("box", "pixels"),
    [
        ((2.2, 3.9, 7.1, 8.0), (2, 3, 8, 8)),
        ((-5, -1, 4, 30), (0, 0, 4, 20)),
        # Outside of the frame, or without area: the nearest pixel.
        ((12, 25, 15, 28), (9, 19, 10, 20)),
        ((-9, -9, -2, -2), (0, 0, 1, 1)),
        ((4, 6, 4, 6), (4, 6, 5, 7)),
    ],
)
def test_a_box_becomes_whole_pixels_inside_the_frame(box, pixels):
    assert clip_boxes(np.array([box], np.float32), 10, 20).tolist() == [list(pixels)]


def test_a_crop_shows_the_pixels_of_its_box():
    frame = np.zeros((20, 10, 3), np.uint8)
    frame[3:8, 2:8] = 200
    content = encode_crop(frame, np.array([2.2, 3.9, 7.1, 8.0], np.float32), 95)
    with Image.open(io.BytesIO(content)) as crop:
        assert (crop.format, crop.size) == ("JPEG", (6, 5))
        assert np.abs(np.asarray(crop, np.int64) - 200).max() <= 3
