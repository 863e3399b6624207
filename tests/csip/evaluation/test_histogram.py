import numpy as np
import pytest

from csip.evaluation.histogram import color_histogram


def flat(colour, height=4, width=3):
    return np.full((height, width, 3), colour, dtype=np.uint8)


def test_a_crop_of_one_colour_fills_one_bin():
    # Pure blue: hue 240 of 360 degrees is 170 of 255, bin 10 of 16; saturation and value are full, bins 3 of 4.
    vector = color_histogram([flat((0, 0, 255))], bins=(16, 4, 4))
    assert vector.shape == (256,)
    assert vector.dtype == np.float32
    assert np.flatnonzero(vector).tolist() == [(10 * 4 + 3) * 4 + 3]
    assert vector.max() == 1


def test_black_grey_and_white_have_hue_and_saturation_zero():
    for colour, value_bin in ((0, 0), (130, 2), (255, 3)):
        assert np.flatnonzero(color_histogram([flat(colour)], bins=(16, 4, 4))).tolist() == [value_bin]


def test_every_crop_weighs_the_same_whatever_its_size():
    vector = color_histogram([flat((255, 0, 0), 50, 50), flat((0, 0, 255), 2, 2)], bins=(16, 4, 4))
    np.testing.assert_allclose(vector[vector > 0], [np.sqrt(0.5)] * 2, rtol=1e-6)


def test_shares_of_a_crop_are_kept():
    crop = np.concatenate([flat((255, 0, 0), 3, 2), flat((0, 0, 255), 1, 2)])
    vector = color_histogram([crop], bins=(2, 1, 1))
    # Red is hue 0, blue hue 170: shares 3/4 and 1/4, brought to length one.
    np.testing.assert_allclose(vector, np.array([0.75, 0.25]) / np.hypot(0.75, 0.25), rtol=1e-6)


def test_the_vector_has_length_one():
    crop = np.random.default_rng(0).integers(0, 256, (20, 10, 3), dtype=np.uint8)
    assert np.linalg.norm(color_histogram([crop], bins=(256, 3, 5))) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("crops", "bins", "message"),
    [
        ([], (16, 4, 4), "got no crops"),
        ([np.zeros((0, 3, 3), dtype=np.uint8)], (16, 4, 4), r"got a crop \(0, 3, 3\) uint8"),
        ([np.zeros((4, 3), dtype=np.uint8)], (16, 4, 4), r"got a crop \(4, 3\) uint8"),
        ([np.zeros((4, 3, 3), dtype=np.float32)], (16, 4, 4), "float32, expected"),
        ([flat(0)], (0, 4, 4), r"got bins \(0, 4, 4\)"),
        ([flat(0)], (257, 4, 4), r"got bins \(257, 4, 4\)"),
    ],
)
def test_what_is_no_crop_is_refused(crops, bins, message):
    with pytest.raises(ValueError, match=message):
        color_histogram(crops, bins=bins)
