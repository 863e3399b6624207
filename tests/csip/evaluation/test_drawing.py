import io

import numpy as np
import pytest
from PIL import Image

from csip.errors import StoreError
from csip.evaluation.drawing import LEFT, MIDDLE, RIGHT, clip_box, draw_skeleton, enlarge
from csip.joints import COCO17, H36M17

LEFT_KNEE, RIGHT_KNEE, LEFT_HIP, RIGHT_HIP = (
    COCO17.joints.index(name) for name in ("left_knee", "right_knee", "left_hip", "right_hip")
)


@pytest.fixture
def grey(jpeg):
    return jpeg(np.full((100, 40, 3), 128, dtype=np.uint8))


def pixels(picture):
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), dtype=int)


def near(array, colour):
    return np.abs(array - np.array(colour)).max(axis=-1) < 60


def test_the_picture_has_the_asked_height_and_the_crops_proportions(grey, box, keypoints):
    assert pixels(draw_skeleton(grey, box, keypoints, COCO17, 0.3, 400)).shape == (400, 160, 3)
    assert pixels(enlarge(grey, 400)).shape == (400, 160, 3)


def test_bones_lie_where_the_keypoints_are_left_and_right_in_their_colours(grey, box, keypoints):
    # Four picture pixels a frame pixel: the left shin runs from (25, 72) to (25, 94) of the box, the right at x = 15.
    drawn = pixels(draw_skeleton(grey, box, keypoints, COCO17, 0.3, 400))
    assert near(drawn[4 * 83, 4 * 25], LEFT)
    assert near(drawn[4 * 83, 4 * 15], RIGHT)
    assert near(drawn[4 * 52, 4 * 20], MIDDLE)
    assert near(drawn[4 * 83, 4 * 35], (128, 128, 128))


def test_joints_under_the_threshold_and_their_bones_are_not_drawn(grey, box, keypoints):
    keypoints[LEFT_KNEE, 2] = 0.29
    keypoints[RIGHT_KNEE, 2] = 0.3
    drawn = pixels(draw_skeleton(grey, box, keypoints, COCO17, 0.3, 400))
    assert near(drawn[4 * 83, 4 * 25], (128, 128, 128))
    assert near(drawn[4 * 83, 4 * 15], RIGHT)


def test_without_any_sure_joint_the_crop_stays_as_it_is(grey, box, keypoints):
    keypoints[:, 2] = 0
    np.testing.assert_allclose(pixels(draw_skeleton(grey, box, keypoints, COCO17, 0.3, 160)), 128, atol=2)


def test_nan_keypoints_are_not_drawn_and_far_ones_do_no_harm(grey, box, keypoints):
    keypoints[LEFT_HIP, 0] = np.nan
    keypoints[RIGHT_HIP, :2] = -1e6
    assert pixels(draw_skeleton(grey, box, keypoints, COCO17, 0.3, 160)).shape == (160, 64, 3)


def test_the_skeleton_fits_a_crop_of_another_resolution(jpeg, box, keypoints):
    small = jpeg(np.full((50, 20, 3), 128, dtype=np.uint8))
    assert near(pixels(draw_skeleton(small, box, keypoints, COCO17, 0.3, 400))[4 * 83, 4 * 25], LEFT)


def test_a_box_is_clipped_to_its_frame():
    box = np.array([-5, 10, 700, 500], dtype=np.float32)
    np.testing.assert_array_equal(clip_box(box, 640, 480), [0, 10, 640, 480])


def test_the_same_crop_gives_the_same_bytes(grey, box, keypoints):
    first = draw_skeleton(grey, box, keypoints, COCO17, 0.3, 160)
    assert first == draw_skeleton(grey, box, keypoints, COCO17, 0.3, 160)


def test_what_does_not_fit_is_refused(grey, box, keypoints):
    with pytest.raises(ValueError, match=r"got keypoints \(16, 3\).*expected \(17, 3\) for layout coco17"):
        draw_skeleton(grey, box, keypoints[:16], COCO17, 0.3, 160)
    with pytest.raises(ValueError, match="layout h36m17 is 3D"):
        draw_skeleton(grey, box, keypoints, H36M17, 0.3, 160)
    with pytest.raises(ValueError, match="expected x1 < x2 and y1 < y2"):
        draw_skeleton(grey, box[[2, 1, 0, 3]], keypoints, COCO17, 0.3, 160)


@pytest.mark.parametrize("broken", [b"", b"no picture", b"\xff\xd8\xff\xe0 cut off"])
def test_bytes_that_are_no_picture_are_an_error_of_the_store(broken):
    with pytest.raises(StoreError, match="is not a picture"):
        enlarge(broken, 160)
