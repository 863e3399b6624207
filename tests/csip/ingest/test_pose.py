"""The shipped model on frames of the shipped video, against ultralytics' own predictor; and where weights come from."""

import dataclasses
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError

import csip
from csip.config import TrackConfig
from csip.errors import WeightsError
from csip.ingest import pose
from csip.ingest.pose import PoseModel, import_quietly, resolve_weights
from csip.ingest.track import build_tracklets
from csip.ingest.video import read_frames
from csip.types import Frames

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
    assert openvino.network_size == (736, 960)


def test_frames_of_another_size_are_refused(pytorch):
    small = Frames(np.zeros((1, 100, 100, 3), np.uint8), np.zeros(1, np.int64), np.zeros(1))
    with pytest.raises(ValueError, match=r"got frames of \(100, 100\) pixels, expected \(576, 768\)"):
        pytorch(small)


def test_the_network_sees_the_shape_that_ultralytics_would_give_it():
    letterbox = import_quietly("ultralytics.data.augment").LetterBox
    assert pose._network_size((576, 768), 960, 32) == (736, 960)
    assert pose._network_size((1080, 1920), 1280, 32) == (736, 1280)
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width = rng.integers(40, 1500, 2).tolist()
        size = int(rng.integers(2, 40)) * 32
        expected = letterbox((size, size), auto=True, stride=32)(image=np.zeros((height, width, 3), np.uint8))
        assert pose._network_size((height, width), size, 32) == expected.shape[:2]


def test_openvino_is_for_the_cpu():
    with pytest.raises(ValueError, match="got engine openvino on device cuda:0, expected cpu"):
        pose._resolve_engine("openvino", "cuda:0")


def test_without_openvino_auto_is_pytorch_and_asking_for_it_says_how_to_get_it(monkeypatch):
    assert pose._resolve_engine("auto", "cuda:0") == "pytorch"
    monkeypatch.setattr(pose.importlib.util, "find_spec", lambda name: None)
    assert pose._resolve_engine("auto", "cpu") == "pytorch"
    with pytest.raises(WeightsError, match=r"pip install 'csip\[demo\]'"):
        pose._resolve_engine("openvino", "cpu")


def test_a_conversion_is_kept_and_whole(monkeypatch, tmp_path):
    """Two processes convert at once: whoever comes second uses the first one's folder, and leaves nothing behind."""
    monkeypatch.setenv("CSIP_CACHE", str(tmp_path))
    calls = []

    def export(weights, folder, network_size):
        calls.append(network_size)
        fresh = folder / "model_openvino_model"
        fresh.mkdir()
        (fresh / "model.xml").write_text(f"by {len(calls)}")
        if len(calls) == 1:
            with pose._openvino_model(WEIGHTS, "0" * 64, (64, 64)) as path:
                assert path.read_text() == "by 2"
        return fresh

    monkeypatch.setattr(pose, "_export", export)
    for _ in range(2):
        with pose._openvino_model(WEIGHTS, "0" * 64, (64, 64)) as path:
            assert path.read_text() == "by 2"
    assert calls == [(64, 64), (64, 64)]
    (folder,) = (tmp_path / "openvino").iterdir()
    assert folder.name.startswith("0000000000000000-64x64-ultralytics")


def test_a_cache_that_cannot_be_written_costs_time_only(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CSIP_CACHE", str(tmp_path / "file"))

    def export(weights, folder, network_size):
        (folder / "model.xml").touch()
        return folder

    monkeypatch.setattr(pose, "_export", export)
    with pose._openvino_model(WEIGHTS, "0" * 64, (64, 64)) as path:
        assert path.is_file()
    assert "converted anew each time" in caplog.text


def test_converting_leaves_torch_its_threads(monkeypatch, tmp_path):
    pytest.importorskip("openvino")
    monkeypatch.setenv("CSIP_CACHE", str(tmp_path))
    before = torch.get_num_threads()
    make("openvino", image_size=64)
    assert torch.get_num_threads() == before


def test_weights_come_from_the_path_then_the_cache_then_the_package(monkeypatch, tmp_path):
    monkeypatch.setenv("CSIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert resolve_weights("yolo11n-pose.pt") == WEIGHTS
    cached = tmp_path / "cache/weights/yolo11n-pose.pt"
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert resolve_weights("yolo11n-pose.pt") == cached
    (tmp_path / "yolo11n-pose.pt").touch()
    assert resolve_weights("yolo11n-pose.pt") == Path("yolo11n-pose.pt")
    assert resolve_weights(str(cached)) == cached


def test_a_path_that_is_given_is_not_looked_for_elsewhere(tmp_path):
    with pytest.raises(WeightsError, match=r"not found in .*gone/yolo11n-pose\.pt\. Copy the file"):
        resolve_weights(str(tmp_path / "gone/yolo11n-pose.pt"))


@pytest.mark.parametrize(("switch", "value"), [("YOLO_OFFLINE", "true"), ("HF_HUB_OFFLINE", "1")])
def test_offline_is_believed_at_once(monkeypatch, switch, value):
    def never(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(urllib.request, "urlopen", never)
    for name in ("YOLO_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(switch, value)
    message = rf"not found in .*weights/other-pose\.pt; .*assets/other-pose\.pt; https://.*because {switch} is set"
    with pytest.raises(WeightsError, match=message):
        resolve_weights("other-pose.pt")


def test_a_network_that_does_not_answer_is_given_up_soon(monkeypatch):
    for switch in ("YOLO_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(switch, raising=False)
    monkeypatch.setattr(pose, "_REACH_SECONDS", 0.2)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: time.sleep(20))
    before = time.monotonic()
    with pytest.raises(WeightsError, match=r"not reached; tried for at most 0\.2 seconds"):
        resolve_weights("other-pose.pt")
    assert time.monotonic() - before < 5


def test_a_download_arrives_whole_or_not_at_all(monkeypatch, tmp_path):
    for switch in ("YOLO_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(switch, raising=False)
    monkeypatch.setenv("CSIP_CACHE", str(tmp_path))
    monkeypatch.setattr(pose, "_reachable", lambda url: True)
    downloads = import_quietly("ultralytics.utils.downloads")

    def broken(file):
        Path(file).write_bytes(b"half")
        raise ConnectionError("the line went dead")

    monkeypatch.setattr(downloads, "attempt_download_asset", broken)
    with pytest.raises(WeightsError, match="the line went dead"):
        resolve_weights("other-pose.pt")
    assert list((tmp_path / "weights").iterdir()) == []
    monkeypatch.setattr(downloads, "attempt_download_asset", lambda file: None)
    with pytest.raises(WeightsError, match="publishes no file of this name"):
        resolve_weights("other-pose.pt")
    monkeypatch.setattr(downloads, "attempt_download_asset", lambda file: Path(file).write_bytes(b"whole"))
    assert resolve_weights("other-pose.pt") == tmp_path / "weights/other-pose.pt"
    assert [path.read_bytes() for path in (tmp_path / "weights").iterdir()] == [b"whole"]


def damaged(path):
    path.write_bytes(WEIGHTS.read_bytes()[:100_000])


def noise(path):
    path.write_bytes(np.random.default_rng(0).bytes(10_000))


def text(path):
    path.write_text("not weights\n")


def empty(path):
    path.touch()


def numbers(path):
    torch.save({"a": torch.zeros(3)}, path)


@pytest.mark.parametrize("write", [damaged, noise, text, empty, numbers])
def test_what_is_no_model_is_said_in_plain_words(tmp_path, write):
    path = tmp_path / "bad.pt"
    write(path)
    with pytest.raises(WeightsError, match=r"bad\.pt: the file cannot be loaded .* Use a YOLO pose model"):
        PoseModel(path, frame_size=(576, 768), image_size=640, engine="pytorch", **LIMITS)


def test_a_model_for_something_else_is_refused(tmp_path):
    path = tmp_path / "detect.pt"
    import_quietly("ultralytics").YOLO("yolo11n.yaml").save(path)
    with pytest.raises(WeightsError, match=r"found a model for detect, expected pose with \(17, 3\)"):
        PoseModel(path, frame_size=(576, 768), image_size=640, engine="pytorch", **LIMITS)


def test_another_kind_of_file_is_refused(tmp_path):
    (tmp_path / "model.onnx").touch()
    with pytest.raises(WeightsError, match=r"model\.onnx: found no \.pt file there"):
        PoseModel(tmp_path / "model.onnx", frame_size=(576, 768), image_size=640, engine="pytorch", **LIMITS)


def test_the_users_settings_and_environment_are_left_alone(tmp_path):
    """In a process of its own: ultralytics reads its environment when it is first imported."""
    code = """
import os
before = dict(os.environ)
from csip.ingest.pose import import_quietly
utils = import_quietly("ultralytics.utils")
assert dict(os.environ) == before
assert not utils.ONLINE and not utils.AUTOINSTALL
events = import_quietly("ultralytics.utils.events").Events()
assert not events.enabled
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("YOLO_")}
    environment |= {"HOME": str(tmp_path / "home"), "CSIP_CACHE": str(tmp_path / "cache")}
    environment.pop("XDG_CONFIG_HOME", None)
    (tmp_path / "home").mkdir()
    root = Path(csip.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "home").rglob("Ultralytics"))


@pytest.mark.slow
def test_two_processes_may_convert_at_the_same_time(tmp_path):
    pytest.importorskip("openvino")
    code = """
import sys
from pathlib import Path
from csip.ingest.pose import PoseModel
model = PoseModel(Path(sys.argv[1]), frame_size=(64, 64), image_size=64, confidence=.1, iou=.7, max_people=9,
    device="cpu", engine="openvino")
print(model.engine)
"""
    environment = {**os.environ, "CSIP_CACHE": str(tmp_path)}
    root = Path(csip.__file__).parent.parent
    command = [sys.executable, "-c", code, str(WEIGHTS)]
    children = [subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE) for _ in range(3)]
    assert [child.communicate()[0] for child in children] == [b"openvino\n"] * 3
    assert len(list((tmp_path / "openvino").iterdir())) == 1


@pytest.mark.slow
def test_the_whole_video_gives_long_tracklets():
    """Seen by eye on contact sheets: about a dozen people, most of whom leave and come back, and few short breaks."""
    config = TrackConfig()
    detections = []
    model = make("auto")
    for part in read_frames(ASSETS / "pedestrians.mp4", batch=16, threads=2):
        detections += zip(part.frame_index.tolist(), model(part), strict=True)
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name != "jpeg_quality"}
    result = build_tracklets(detections, fps=10.0, make_id=str, **settings)
    lengths = [len(tracklet) for tracklet in result.tracklets]
    assert 20 <= len(lengths) <= 50
    assert sum(lengths) > 2500
    assert np.median(lengths) > 50
    boxes = dict(detections)
    for tracklet in result.tracklets:
        for index, box in zip(tracklet.frame_index.tolist(), tracklet.boxes, strict=True):
            assert (boxes[index].boxes == box).all(axis=1).any()


def test_openvino_comes_without_the_part_that_reports_home():
    script = """
from csip.ingest.pose import _import_openvino
_import_openvino()
from openvino.tools.ovc import telemetry_utils
print(telemetry_utils.tm.__name__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "openvino.tools.ovc.telemetry_stub"


def test_ultralytics_leaves_pillow_as_it_was(tmp_path):
    # Its own Image.open asks for another package where a file is no picture.
    import_quietly("ultralytics.engine.model")
    (tmp_path / "none.jpg").write_bytes(b"no picture")
    with pytest.raises(UnidentifiedImageError, match="cannot identify image file"):
        Image.open(tmp_path / "none.jpg")
