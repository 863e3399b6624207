"""A frame to what a pose network sees, against ultralytics' own letterbox."""

import numpy as np
import pytest
import torch

from csip.errors import WeightsError
from csip.ingest.pose_pixels import Letterbox, ScaledPixels, check_bound_size, choose_image_size, network_size
from csip.ingest.yolo import import_quietly


def test_the_network_sees_the_shape_that_ultralytics_would_give_it():
    letterbox = import_quietly("ultralytics.data.augment").LetterBox
    assert network_size((576, 768), 960, 32) == (736, 960)
    assert network_size((1080, 1920), 1280, 32) == (736, 1280)
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width = rng.integers(40, 1500, 2).tolist()
        size = int(rng.integers(2, 40)) * 32
        expected = letterbox((size, size), auto=True, stride=32)(image=np.zeros((height, width, 3), np.uint8))
        assert network_size((height, width), size, 32) == expected.shape[:2]


@pytest.mark.parametrize(
    ("frame_size", "expected"),
    [((576, 768), 1280), ((768, 576), 1280), ((720, 1280), 2134), ((1080, 1920), 3200), ((2160, 3840), 3200)],
)
def test_a_person_of_60_pixels_stands_100_pixels_high_up_to_full_hd(frame_size, expected):
    assert choose_image_size(frame_size) == expected


def test_whoever_is_missed_in_a_larger_frame_is_said(caplog):
    choose_image_size((1080, 1920))
    assert caplog.messages == []
    choose_image_size((2160, 3840))
    # Shown at 3200 / 3840 of their size, people stand 100 pixels high from 120 on; 3840 * 100 / 60 = 6400, twice 3200.
    assert caplog.messages == [
        "Frames of 3840x2160 are shown to the pose model at an image size of 3200, where people smaller than about 120 "
        "pixels are missed. detect.image_size=6400 finds those of 60 pixels, in 4.0 times the time."
    ]


def test_small_frames_are_seen_at_the_size_that_the_model_was_trained_at():
    assert choose_image_size((240, 320)) == 640


def test_a_file_for_one_size_must_be_of_the_size_that_was_asked_for():
    assert check_bound_size((256, 320), 0, 32, "x.onnx") == (256, 320)
    assert check_bound_size((256, 320), 300, 32, "x.onnx") == (256, 320)
    message = (
        r"x\.onnx: found a model for images of 256x320 only, expected a longer side of 640 \(detect\.image_size\)\. "
        r"Use --set detect\.image_size=320, or export the model again with imgsz=640"
    )
    with pytest.raises(WeightsError, match=message):
        check_bound_size((256, 320), 640, 32, "x.onnx")


def test_the_network_is_fed_what_ultralytics_predictor_feeds_it():
    # Its predictor: letterbox in BGR, channels first, to RGB, over 255.
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 90, 130, 3), dtype=np.uint8)
    size = network_size((90, 130), 256, 32)
    theirs = import_quietly("ultralytics.data.augment").LetterBox(size, auto=False)
    expected = np.stack([theirs(image=frame[:, :, ::-1]) for frame in frames])[..., ::-1].transpose(0, 3, 1, 2)
    letterbox = Letterbox(size)
    scaled = ScaledPixels(torch.device("cpu"), torch.float32, torch.contiguous_format)
    for rows in (slice(0, 3), slice(0, 1), slice(1, 3)):
        found = scaled(letterbox(frames[rows]))
        assert found.is_contiguous()
        np.testing.assert_array_equal(found, torch.from_numpy(expected[rows].copy()).float() / 255)


def test_memory_is_used_again_while_the_shape_stays():
    scaled = ScaledPixels(torch.device("cpu"), torch.float32, torch.channels_last)
    first = scaled(torch.full((1, 3, 4, 6), 255, dtype=torch.uint8))
    assert first.is_contiguous(memory_format=torch.channels_last)
    second = scaled(torch.zeros((1, 3, 4, 6), dtype=torch.uint8))
    assert first.data_ptr() == second.data_ptr()
    assert float(second.sum()) == 0
    assert scaled(torch.full((2, 3, 4, 6), 51, dtype=torch.uint8)).mean() == pytest.approx(0.2)
