"""Skeletons of crops: the shipped model on crops of the shipped video, and a stand-in that knows what it saw."""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from csip.config import BenchmarkConfig, DetectConfig, ExtractConfig, RuntimeConfig
from csip.errors import SourceError, WeightsError
from csip.ingest.benchmarks import crop_pose
from csip.ingest.benchmarks.crop_pose import PoseSkeletons, own_person
from csip.ingest.benchmarks.crops import CropFile
from csip.ingest.pose import PoseModel
from csip.ingest.track_pass import encode_crop
from csip.ingest.yolo import resolve_weights
from csip.types import Frames, People
from tests.makers.read_video import read_frames

CONFIG = ExtractConfig()
RUNTIME = RuntimeConfig(device="cpu", pose_engine="pytorch")


def encode(pixels, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, kind, **options)
    return file.getvalue()


def plain(height, width, colour=255):
    return np.full((height, width, 3), colour, np.uint8)


def run(source, images):
    return source([CropFile(Path(f"crop{i}.png"), i) for i in range(len(images))], images)


def people(*rows):
    """People of (box, score); all keypoints of one lie in its box's left upper corner, with its score."""
    boxes = np.array([box for box, _ in rows], np.float32).reshape(-1, 4)
    score = np.array([score for _, score in rows], np.float32)
    keypoints = np.concatenate([boxes[:, :2], score[:, None]], axis=1)[:, None].repeat(17, axis=1)
    return People(boxes, score, keypoints)


def benchmark(**changes):
    return dataclasses.replace(CONFIG, benchmark=BenchmarkConfig(**changes))


def replace_model(patch, see):
    """Put a function from a canvas (H, W, 3) to People in the pose model's place; give the canvases it will see."""
    canvases = []

    class Model:
        def __init__(self, weights, **settings):
            self.settings = settings

        def __call__(self, frames):
            assert frames.pixels.shape[1:3] == self.settings["frame_size"]
            canvases.extend(frames.pixels)
            return [see(pixels) for pixels in frames.pixels]

    patch.setattr(crop_pose, "PoseModel", Model)
    patch.setattr(crop_pose, "resolve_weights", lambda _: Path(__file__))
    return canvases


@pytest.fixture
def stand_in(monkeypatch):
    """`replace_model` for one test."""
    return lambda see: replace_model(monkeypatch, see)


@pytest.fixture(scope="module")
def seen(street):
    """Four frames of the street, and the people of at least .5 that the model sees in them as a whole."""
    frames = next(iter(read_frames(Path(street.path), batch=60, threads=2)))
    rows = slice(5, 60, 15)
    frames = Frames(frames.pixels[rows], frames.frame_index[rows], frames.time[rows])
    model = PoseModel(
        resolve_weights("yolo11n-pose.pt"),
        frame_size=frames.pixels.shape[1:3],
        image_size=960,
        confidence=0.5,
        iou=0.7,
        max_people=300,
        device="cpu",
        engine="pytorch",
    )
    return [
        (pixels, found.boxes[n], found.keypoints[n])
        for pixels, found in zip(frames.pixels, model(frames), strict=True)
        for n in range(len(found))
    ]


@pytest.fixture(scope="module")
def crops(seen):
    return [encode_crop(pixels, box, 95) for pixels, box, _ in seen]


@pytest.fixture(scope="module")
def skeletons(crops):
    return run(PoseSkeletons(CONFIG, RUNTIME), crops)


def test_keypoints_on_crops_are_those_of_the_whole_frame(seen, skeletons):
    assert len(seen) >= 8
    assert skeletons.has_skeleton.all()
    errors = []
    for (_, box, whole), found in zip(seen, skeletons.keypoints, strict=True):
        corner = np.maximum(np.floor(box[:2]), 0)
        sure = (whole[:, 2] > 0.5) & (found[:, 2] > 0.5)
        assert sure.sum() >= 8
        distance = np.linalg.norm(found[sure, :2] + corner - whole[sure, :2], axis=1).mean()
        errors.append(distance / (box[3] - box[1]))
    # A head is about an eighth of a person.
    assert np.mean(errors) < 1 / 32
    assert max(errors) < 1 / 10


def test_a_skeleton_does_not_depend_on_the_batch(crops, skeletons):
    for batch in (1, 3):
        again = run(PoseSkeletons(CONFIG, dataclasses.replace(RUNTIME, pose_batch=batch)), crops[:5])
        np.testing.assert_array_equal(again.keypoints, skeletons.keypoints[:5])


def test_the_confidence_is_that_of_the_frames_with_a_skeleton(crops, skeletons):
    with_nobody = [encode(plain(80, 40, 127)), *crops[:2], encode(plain(1, 1, 0))]
    found = run(PoseSkeletons(CONFIG, RUNTIME), with_nobody)
    assert found.has_skeleton.tolist() == [False, True, True, False]
    np.testing.assert_array_equal(found.keypoints[1:3], skeletons.keypoints[:2])
    np.testing.assert_array_equal(found.keypoints[[0, 3]], np.zeros((2, 17, 3)))
    assert found.confidence == pytest.approx(skeletons.keypoints[:2, :, 2].mean())


def test_a_tracklet_of_nobody_has_no_confidence(stand_in):
    stand_in(lambda _: people())
    found = run(PoseSkeletons(CONFIG, RUNTIME), [encode(plain(20, 10))] * 3)
    assert found.keypoints.shape == (3, 17, 3)
    assert found.keypoints.dtype == np.float32
    assert not found.keypoints.any()
    assert not found.has_skeleton.any()
    assert found.confidence == 0


def corners(canvas):
    """One person, whose box is the white part of a canvas and whose first four keypoints are its corners."""
    rows, columns = np.flatnonzero((canvas == 255).any(axis=(1, 2))), np.flatnonzero((canvas == 255).any(axis=(0, 2)))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    found = people(((left, top, right, bottom), 0.9))
    found.keypoints[0, :4, :2] = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return found


@settings(max_examples=60, deadline=None)
@given(
    crop=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    canvas=st.tuples(st.integers(32, 300), st.integers(32, 300)),
    margin=st.floats(0, 0.5),
)
def test_a_crops_corners_come_back_from_any_canvas(crop, canvas, margin):
    (height, width), (down, across) = crop, canvas
    config = benchmark(pose_height=down, pose_width=across, pose_margin=margin)
    with pytest.MonkeyPatch.context() as patch:
        canvases = replace_model(patch, corners)
        found = run(PoseSkeletons(config, RUNTIME), [encode(plain(height, width))])
    wanted = [(0, 0), (width, 0), (width, height), (0, height)]
    np.testing.assert_allclose(found.keypoints[0, :4, :2], wanted, atol=1e-3)
    # Its shape is kept, it is in the middle, and as large as the margin lets it be: to half a pixel, the rounding.
    left, top, right, bottom = corners(canvases[0]).boxes[0]
    scale = min(down / height, across / width) * (1 - margin)
    assert bottom - top == pytest.approx(max(height * scale, 1), abs=0.51)
    assert right - left == pytest.approx(max(width * scale, 1), abs=0.51)
    assert abs(left + right - across) <= 1
    assert abs(top + bottom - down) <= 1


def test_what_a_crop_shows_is_found_where_it_shows_it(stand_in):
    # A white block on black, 30 to 50 across and 80 to 120 down; canvas pixels are half of the crop's, so that its
    # edges are sharp to one of them.
    crop = plain(256, 128, 0)
    crop[80:120, 30:50] = 255
    stand_in(corners)
    found = run(PoseSkeletons(benchmark(pose_height=128, pose_width=64, pose_margin=0.0), RUNTIME), [encode(crop)])
    np.testing.assert_allclose(found.keypoints[0, :4, :2], [(30, 80), (50, 80), (50, 120), (30, 120)], atol=2)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
def test_the_model_sees_rgb_of_every_kind_of_picture(stand_in, kind):
    crop = plain(60, 30)
    crop[:] = (200, 40, 90)
    canvases = stand_in(lambda _: people())
    run(PoseSkeletons(benchmark(pose_height=120, pose_width=60, pose_margin=0.0), RUNTIME), [encode(crop, kind)])
    np.testing.assert_allclose(canvases[0].reshape(-1, 3).mean(axis=0), (200, 40, 90), atol=3)


def test_a_crop_is_not_turned_though_its_file_says_so(stand_in):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by a quarter
    stand_in(corners)
    found = run(PoseSkeletons(CONFIG, RUNTIME), [encode(plain(60, 30), "JPEG", exif=exif)])
    np.testing.assert_allclose(found.keypoints[0, 2, :2], (30, 60), atol=1e-3)


OWN = (12, 5, 40, 98)  # in a crop of 100 x 50: of the middle, from head to foot


@pytest.mark.parametrize(
    "bystander",
    [
        pytest.param(((32, 2, 50, 100), 0.95), id="cut off by the right side"),
        pytest.param(((-30, -10, 16, 110), 0.95), id="large, but outside for the most part"),
        pytest.param(((0, 0, 15, 35), 0.95), id="small, in the distance"),
        pytest.param(((20, 5, 30, 30), 0.95), id="small, behind the person's head"),
        pytest.param(((0, 0, 50, 100), 0.12), id="a faint box around both"),
    ],
)
def test_the_person_is_the_crops_own_in_whatever_order(bystander):
    own = (OWN, 0.4)
    assert own_person(people(own, bystander), (100, 50)) == 0
    assert own_person(people(bystander, own), (100, 50)) == 1


def test_a_narrow_person_in_the_middle_comes_before_a_broad_one_at_the_side():
    # Covering alone would take the second: 15 x 90 against 22 x 90 pixels.
    assert own_person(people(((18, 5, 33, 95), 0.6), ((28, 5, 50, 95), 0.6)), (100, 50)) == 0


def test_of_two_boxes_around_one_person_the_surer_wins():
    assert own_person(people(((11, 4, 40, 99), 0.3), (OWN, 0.8)), (100, 50)) == 1


def test_half_a_person_is_better_than_nobody():
    assert own_person(people(((0, 0, 4, 100), 0.2)), (100, 50)) == 0


def test_a_surer_bystander_at_the_side_is_not_taken(skeletons, crops, monkeypatch):
    """The street's least sure person in the middle, and two thirds of another at the right side: listed first."""
    pictures = [Image.open(io.BytesIO(crop)).resize((80, 200)) for crop in crops]
    surest_last = np.argsort(-skeletons.keypoints[:, :, 2].mean(axis=1))
    asked = []
    monkeypatch.setattr(crop_pose, "own_person", lambda *question: asked.append(question) or own_person(*question))
    source = PoseSkeletons(CONFIG, RUNTIME)
    for other in surest_last[:3]:
        crop = plain(200, 190, 127)
        crop[:, 135:] = np.asarray(pictures[other])[:, :55]
        crop[:, 55:135] = np.asarray(pictures[surest_last[-1]])
        found = run(source, [encode(crop)]).keypoints[0]
        first = asked[-1][0].boxes[0]
        assert first[[0, 2]].mean() > 135, "the model lists the bystander first, or this test tests nothing"
        sure = found[:, 2] > 0.5
        assert sure.sum() >= 8
        assert ((found[sure, 0] > 45) & (found[sure, 0] < 145)).all()


@pytest.mark.parametrize("content", [b"", b"no picture", encode(plain(60, 30), "JPEG")[:200]])
def test_a_picture_that_cannot_be_decoded_is_named(stand_in, content):
    stand_in(lambda _: people())
    with pytest.raises(SourceError, match=rf"crop1\.png: found {len(content)} bytes that cannot be decoded"):
        run(PoseSkeletons(CONFIG, RUNTIME), [encode(plain(60, 30)), content])


def test_missing_weights_are_told_before_the_first_crop(tmp_path):
    gone = str(tmp_path / "gone.pt")
    with pytest.raises(WeightsError, match=r"gone\.pt: not found"):
        PoseSkeletons(dataclasses.replace(CONFIG, detect=DetectConfig(weights=gone)), RUNTIME)


def test_the_model_is_loaded_once_and_not_before_the_first_crop(monkeypatch):
    loaded = []

    def load(*_, **settings):
        loaded.append(settings)
        return lambda frames: [people()] * len(frames)

    monkeypatch.setattr(crop_pose, "PoseModel", load)
    source = PoseSkeletons(benchmark(pose_height=300, pose_width=150, pose_confidence=0.2), RUNTIME)
    assert loaded == []
    run(source, [encode(plain(60, 30))] * 9)
    run(source, [encode(plain(30, 60))])
    assert loaded == [
        {
            **{"frame_size": (300, 150), "image_size": 300, "confidence": 0.2, "iou": 0.7, "max_people": 300},
            **{"device": "cpu", "engine": "pytorch", "precision": "float32"},
        }
    ]


def weights_at(path, extra=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(resolve_weights("yolo11n-pose.pt"), path)
    with path.open("ab") as file:
        file.write(extra)
    return DetectConfig(weights=str(path))


def test_the_digest_changes_with_what_changes_skeletons(tmp_path):
    changed = [
        CONFIG,
        dataclasses.replace(CONFIG, detect=weights_at(tmp_path / "yolo11n-pose.pt", extra=b"x")),
        dataclasses.replace(CONFIG, detect=DetectConfig(iou=0.6)),
        dataclasses.replace(CONFIG, detect=DetectConfig(max_people=1)),
        dataclasses.replace(CONFIG, detect=DetectConfig(precision="float16")),
        *(benchmark(pose_height=320), benchmark(pose_width=160), benchmark(pose_margin=0.2)),
        benchmark(pose_confidence=0.2),
    ]
    assert len({PoseSkeletons(config, RUNTIME).digest for config in changed}) == len(changed)


def test_the_digest_and_the_facts_know_nothing_of_device_batch_and_paths(tmp_path):
    first = PoseSkeletons(CONFIG, RUNTIME)
    elsewhere = dataclasses.replace(CONFIG, dataset="mars", detect=weights_at(tmp_path / "else" / "yolo11n-pose.pt"))
    runtime = RuntimeConfig(device="cuda:1", pose_engine="auto", pose_batch=64)
    second = PoseSkeletons(elsewhere, runtime)
    unread = dataclasses.replace(CONFIG, detect=DetectConfig(image_size=640, confidence=0.5))
    assert first.digest == second.digest == PoseSkeletons(unread, RUNTIME).digest
    assert dict(first.extractor) == dict(second.extractor)
    assert str(tmp_path) not in json.dumps(dict(second.extractor))


def test_the_facts_are_those_that_people_ask_for(tmp_path):
    source = PoseSkeletons(benchmark(pose_height=320, pose_width=160, pose_confidence=0.2), RUNTIME)
    facts = dict(source.extractor)
    assert source.layout == "coco17"
    assert len(facts.pop("weights_sha256")) == 64
    assert facts == {
        "name": "YOLO-pose on crops",
        "weights": "yolo11n-pose.pt",
        "canvas": [320, 160],
        "margin": 0.1,
        "confidence": 0.2,
        "units": "crop pixels",
    }
