"""The shipped model on frames of the shipped video, against ultralytics' own predictor."""

from pathlib import Path

import numpy as np
import pytest

import csip
from csip.ingest.pose import PoseModel
from csip.ingest.yolo import import_quietly
from csip.types import Frames
from tests.makers.read_video import read_frames

ASSETS = Path(csip.__file__).parent / "assets"
WEIGHTS = ASSETS / "yolo11n-pose.pt"
LIMITS = {"confidence": 0.1, "iou": 0.7, "max_people": 300}


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """A cache of this module's own: one conversion for all its tests, and none found from earlier."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CSIP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def frames():
    """Every tenth frame of the first 240."""
    picked = []
    for some in read_frames(ASSETS / "pedestrians.mp4", batch=40, threads=2):
        picked.append((some.pixels[::10], some.frame_index[::10], some.time[::10]))
        if some.frame_index[-1] >= 239:
            return Frames(*(np.concatenate(part) for part in zip(*picked, strict=True)))
    return None


def some(frames, rows):
    return Frames(frames.pixels[rows], frames.frame_index[rows], frames.time[rows])


def make(engine, image_size=960, frame_size=(576, 768), **changes):
    settings = {**LIMITS, **changes}
    return PoseModel(WEIGHTS, frame_size=frame_size, image_size=image_size, device="cpu", engine=engine, **settings)


@pytest.fixture(scope="module")
def openvino():
    pytest.importorskip("openvino")
    return make("openvino")


@pytest.fixture(scope="module")
def pytorch():
    return make("pytorch")


@pytest.fixture(scope="module")
def found(openvino, frames):
    return openvino(frames)


def test_the_people_are_those_of_ultralytics_own_predictor(pytorch, frames):
    few = some(frames, slice(0, 24, 6))
    predictor = import_quietly("ultralytics").YOLO(str(WEIGHTS))
    for people, picture in zip(pytorch(few), few.pixels, strict=True):
        # The predictor wants BGR.
        theirs = predictor.predict(picture[:, :, ::-1], imgsz=960, conf=0.1, iou=0.7, device="cpu", verbose=False)[0]
        assert len(people) == len(theirs.boxes) >= 1
        np.testing.assert_allclose(people.boxes, theirs.boxes.xyxy.numpy(), atol=0.01)
        np.testing.assert_allclose(people.score, theirs.boxes.conf.numpy(), atol=1e-4)
        np.testing.assert_allclose(people.keypoints, theirs.keypoints.data.numpy(), atol=0.01)


def test_openvino_sees_what_pytorch_sees(pytorch, found, frames):
    # In bfloat16, which OpenVINO takes of its own accord, boxes move by pixels.
    rows = slice(0, 24, 3)
    for slow, fast in zip(pytorch(some(frames, rows)), found[rows], strict=True):
        assert len(slow) == len(fast)
        np.testing.assert_allclose(slow.boxes, fast.boxes, atol=0.01)
        np.testing.assert_allclose(slow.score, fast.score, atol=1e-3)
        np.testing.assert_allclose(slow.keypoints, fast.keypoints, atol=0.02)


def test_a_frame_gives_the_same_people_alone_and_among_others(openvino, found, frames):
    for n in (0, 7, 23):
        (alone,) = openvino(some(frames, slice(n, n + 1)))
        np.testing.assert_array_equal(alone.boxes, found[n].boxes)
        np.testing.assert_array_equal(alone.keypoints, found[n].keypoints)


def test_people_are_float32_best_first_and_keypoints_lie_on_them(found):
    assert len(found) == 24
    seen = inside = 0
    for people in found:
        assert people.boxes.dtype == people.score.dtype == people.keypoints.dtype == np.float32
        assert people.keypoints.shape[1:] == (17, 3)
        assert (np.diff(people.score) <= 0).all()
        assert ((people.score >= 0.1) & (people.score <= 1)).all()
        assert ((people.boxes >= 0) & (people.boxes <= (768, 576, 768, 576))).all()
        assert (people.boxes[:, 2:] > people.boxes[:, :2]).all()
        size = people.boxes[:, 2:] - people.boxes[:, :2]
        low, high = people.boxes[:, None, :2] - 0.1 * size[:, None], people.boxes[:, None, 2:] + 0.1 * size[:, None]
        sure = people.keypoints[:, :, 2] > 0.5
        points = people.keypoints[:, :, :2]
        inside += (((points >= low) & (points <= high)).all(axis=2) & sure).sum()
        seen += sure.sum()
    assert inside / seen > 0.99
    assert seen > 24 * 10


def test_the_first_frame_shows_three_people(frames):
    """Counted by eye, and their middles read off a drawing; the two tripods are nobody."""
    pytest.importorskip("openvino")
    (people,) = make("openvino", confidence=0.25)(some(frames, slice(0, 1)))
    middle = (people.boxes[:, :2] + people.boxes[:, 2:]) / 2
    middle = middle[np.argsort(middle[:, 0])]
    np.testing.assert_allclose(middle, [(268, 263), (515, 194), (662, 279)], atol=8)


def test_red_and_blue_are_not_exchanged(openvino, found, frames):
    rows = slice(12, 24)
    exchanged = Frames(frames.pixels[rows, :, :, ::-1].copy(), frames.frame_index[rows], frames.time[rows])
    as_is = sum(float(people.score.sum()) for people in found[rows])
    swapped = sum(float(people.score.sum()) for people in openvino(exchanged))
    assert abs(as_is - swapped) > 0.2


def test_limits_are_kept(frames):
    few = some(frames, slice(20, 22))
    assert all((people.score >= 0.6).all() for people in make("pytorch", confidence=0.6)(few))
    assert [len(people) for people in make("pytorch", max_people=1)(few)] == [1, 1]


def test_a_frame_without_people_is_an_empty_record(openvino):
    grey = Frames(np.full((2, 576, 768, 3), 127, np.uint8), np.arange(2), np.arange(2) / 10)
    people = openvino(grey)
    assert [(p.boxes.shape, p.score.shape, p.keypoints.shape) for p in people] == [((0, 4), (0,), (0, 17, 3))] * 2
    assert openvino(some(grey, slice(0, 0))) == []


def test_the_model_says_what_it_is(openvino, pytorch):
    assert (openvino.engine, pytorch.engine) == ("openvino", "pytorch")
    assert openvino.device == pytorch.device == "cpu"
    assert openvino.weights_sha256 in (ASSETS / "NOTICE.md").read_text(encoding="utf-8")
    assert openvino.layout.name == "coco17"
    assert (openvino.network_size, openvino.image_size) == ((736, 960), 960)
    assert (openvino.precision, openvino.batch) == ("float32", 1)


def test_frames_of_another_size_are_refused(pytorch):
    small = Frames(np.zeros((1, 100, 100, 3), np.uint8), np.zeros(1, np.int64), np.zeros(1))
    with pytest.raises(ValueError, match=r"got frames of \(100, 100\) pixels, expected \(576, 768\)"):
        pytorch(small)
