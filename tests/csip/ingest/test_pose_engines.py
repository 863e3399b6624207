"""Files of every kind that ultralytics exports, against its own predictor; and files that are nothing of the kind."""

import json
import shutil
import warnings
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

import csip
from csip.errors import WeightsError
from csip.ingest import pose_engines
from csip.ingest.pose import PoseModel
from csip.ingest.pose_openvino import import_openvino
from csip.ingest.yolo import import_quietly
from csip.types import Frames
from tests.makers.read_video import read_frames

ASSETS = Path(csip.__file__).parent / "assets"
WEIGHTS = ASSETS / "yolo11n-pose.pt"
SIZE = (576, 768)
BOUND = (256, 320)
# So low that a small image size finds people in every frame, and doubtful ones beside them.
LIMITS = {"confidence": 0.005, "iou": 0.7, "max_people": 300}


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CSIP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def frames():
    """Five frames with people."""
    return next(islice(read_frames(ASSETS / "pedestrians.mp4", batch=5, threads=2), 50, None))


def some(frames, rows):
    return Frames(frames.pixels[rows], frames.frame_index[rows], frames.time[rows])


def make(weights, image_size=0, frame_size=SIZE, device="cpu", **changes):
    settings = {**LIMITS, **changes}
    return PoseModel(weights, frame_size=frame_size, image_size=image_size, device=device, **settings)


def export(folder, form, weights=WEIGHTS, **settings):
    """Let ultralytics export weights to a folder of their own."""
    if form == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    else:
        pytest.importorskip("openvino")
        import_openvino()
    folder.mkdir(parents=True)
    copy = shutil.copyfile(weights, folder / "model.pt")
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = import_quietly("ultralytics").YOLO(str(copy)).export(format=form, imgsz=BOUND, device="cpu", **settings)
    torch.set_num_threads(threads)
    return Path(made)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Exports by name, each made once when it is first asked for."""
    folder, made = tmp_path_factory.mktemp("exported"), {}
    settings = {
        "onnx": ("onnx", {}),
        "onnx-any": ("onnx", {"dynamic": True}),
        "onnx-four": ("onnx", {"batch": 4}),
        "onnx-half": ("onnx", {"quantize": 16}),
        "onnx-nms": ("onnx", {"nms": True}),
        "openvino": ("openvino", {}),
        "openvino-any": ("openvino", {"dynamic": True}),
    }

    def get(name):
        if name not in made:
            form, more = settings[name]
            made[name] = export(folder / name, form, **more)
        return made[name]

    return get


@pytest.fixture
def openvino_in_float32(monkeypatch):
    """Ultralytics leaves the precision to OpenVINO, which takes bfloat16 where the CPU has it."""
    openvino = import_openvino()
    compiled = openvino.Core.compile_model

    def in_float32(self, model, device_name, config):
        return compiled(self, model, device_name, config | {"INFERENCE_PRECISION_HINT": openvino.Type.f32})

    monkeypatch.setattr(openvino.Core, "compile_model", in_float32)


def assert_as_predicted(found, weights, frames, image_size):
    """What ultralytics' own predictor finds in each frame."""
    predictor = import_quietly("ultralytics").YOLO(str(weights), task="pose")
    limits = {"conf": LIMITS["confidence"], "iou": LIMITS["iou"], "max_det": LIMITS["max_people"], "classes": [0]}
    total = 0
    for people, picture in zip(found, frames.pixels, strict=True):
        # The predictor wants BGR.
        given = picture[:, :, ::-1]
        theirs = predictor.predict(given, imgsz=image_size, device="cpu", verbose=False, **limits)[0]
        assert len(people) == len(theirs.boxes) >= 1
        np.testing.assert_allclose(people.boxes, theirs.boxes.xyxy.numpy(), atol=0.01)
        np.testing.assert_allclose(people.score, theirs.boxes.conf.numpy(), atol=1e-4)
        np.testing.assert_allclose(people.keypoints, theirs.keypoints.data.numpy(), atol=0.01)
        total += len(people)
    assert total > 2 * len(frames)


@pytest.mark.parametrize(
    ("name", "image_size", "engine", "network_size", "batch"),
    [
        ("onnx", 0, "onnxruntime", BOUND, 1),
        ("onnx-any", 320, "onnxruntime", (256, 320), 1),
        ("onnx-four", 320, "onnxruntime", BOUND, 4),
        ("openvino", 0, "openvino", BOUND, 1),
        ("openvino-any", 480, "openvino", (384, 480), 1),
    ],
)
def test_an_exported_file_finds_what_ultralytics_finds_with_it(
    exported, frames, openvino_in_float32, name, image_size, engine, network_size, batch
):
    weights = exported(name)
    model = make(weights, image_size)
    assert (model.engine, model.device, model.network_size, model.batch) == (engine, "cpu", network_size, batch)
    assert model.image_size == max(network_size)
    assert_as_predicted(model(frames), weights, frames, image_size or 320)


@pytest.mark.parametrize("engine", ["pytorch", "openvino"])
def test_pt_weights_find_what_ultralytics_finds_with_them(frames, engine):
    pytest.importorskip("openvino")
    few = some(frames, slice(0, 2))
    assert_as_predicted(make(WEIGHTS, 320, engine=engine)(few), WEIGHTS, few, 320)


@pytest.fixture
def two_heads(tmp_path, monkeypatch):
    """A model, untrained, with a second head whose boxes need no non-maximum suppression, as newer ones have."""
    monkeypatch.setitem(LIMITS, "confidence", 1e-5)
    torch.manual_seed(0)
    path = tmp_path / "two-heads.pt"
    model = import_quietly("ultralytics").YOLO("yolo26n-pose.yaml")
    model.model = import_quietly("ultralytics.nn.tasks").PoseModel("yolo26n-pose.yaml", nc=1, verbose=False)
    model.model.task = "pose"
    model.model.end2end = True
    model.save(path)
    return path


def test_a_model_of_two_heads_is_run_as_ultralytics_runs_it(two_heads, frames):
    few = some(frames, slice(0, 2))
    assert_as_predicted(make(two_heads, 320, engine="pytorch")(few), two_heads, few, 320)


def test_an_export_of_the_head_without_suppression_is_run_as_ultralytics_runs_it(
    two_heads, tmp_path, frames, openvino_in_float32
):
    weights = export(tmp_path / "out", "openvino", two_heads, nms=False)
    few = some(frames, slice(0, 2))
    model = make(weights)
    assert model._network.end2end
    assert_as_predicted(model(few), weights, few, 320)


def test_an_xml_is_its_folder(exported, frames):
    folder = exported("openvino")
    (xml,) = folder.glob("*.xml")
    few = some(frames, slice(0, 1))
    one, other = make(folder), make(xml)
    assert one.weights_sha256 == other.weights_sha256
    np.testing.assert_array_equal(one(few)[0].boxes, other(few)[0].boxes)


@pytest.mark.parametrize("name", ["onnx", "onnx-four", "openvino-any"])
def test_a_frame_gives_the_same_alone_and_among_others(exported, frames, name):
    model = make(exported(name), 320)
    together = model(frames)
    for n in (0, 4):
        (alone,) = model(some(frames, slice(n, n + 1)))
        np.testing.assert_array_equal(alone.boxes, together[n].boxes)
        np.testing.assert_array_equal(alone.keypoints, together[n].keypoints)


def test_beside_a_cpu_whole_batches_go_through_and_halves_are_near(frames):
    # "cpu:0" is the CPU, taken as any accelerator is: what CUDA would do, with torch's own halves.
    half = make(WEIGHTS, 640, engine="pytorch", device="cpu:0", precision="float16")
    assert (half.batch, half.precision, half.engine) == (0, "float16", "pytorch")
    shapes, lane = [], half._free.get()

    def watched(images):
        shapes.append(tuple(images.shape))
        return lane[0](images)

    half._free.put((watched, lane[1]))
    found = half(frames)
    assert shapes == [(5, 3, 480, 640)]
    full = make(WEIGHTS, 640, engine="pytorch", device="cpu:0")(frames)
    for some_half, some_full in zip(found, full, strict=True):
        np.testing.assert_allclose(some_half.boxes[0], some_full.boxes[0], atol=2)
        assert not np.array_equal(some_half.boxes[0], some_full.boxes[0])


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "atol"), [("float32", 0.1), ("float16", 2)])
def test_cuda_finds_what_the_cpu_finds(frames, precision, atol):
    here, there = make(WEIGHTS, 640, engine="pytorch"), make(WEIGHTS, 640, device="cuda", precision=precision)
    assert (there.engine, there.batch) == ("pytorch", 0)
    for expected, found in zip(here(frames), there(frames), strict=True):
        np.testing.assert_allclose(found.boxes[0], expected.boxes[0], atol=atol)


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_a_cpu_computes_pt_weights_in_float32(precision):
    message = rf"detect\.precision: got {precision} for yolo11n-pose\.pt in pytorch on cpu, expected float32 on a CPU"
    with pytest.raises(ValueError, match=message):
        make(WEIGHTS, 320, engine="pytorch", precision=precision)


def test_an_exported_file_is_of_one_precision(exported, frames):
    message = (
        r"found an export in float16, expected float32 \(detect\.precision\)\. Use --set detect\.precision=float16"
    )
    with pytest.raises(WeightsError, match=message):
        make(exported("onnx-half"))
    few = some(frames, slice(0, 1))
    assert_found = make(exported("onnx-half"), precision="float16", confidence=0.05)(few)
    assert len(assert_found[0]) >= 1


def test_a_file_with_limits_of_its_own_is_refused(exported):
    with pytest.raises(WeightsError, match=r"found non-maximum suppression built in \(nms=True\)"):
        make(exported("onnx-nms"))


def test_a_file_bound_to_another_size_says_what_to_set(exported):
    message = r"images of 256x320 only, expected a longer side of 1280 .* Use --set detect\.image_size=320"
    with pytest.raises(WeightsError, match=message):
        make(exported("openvino"), 1280)


def test_the_file_decides_the_engine(exported):
    with pytest.raises(ValueError, match=r"got runtime\.pose_engine=pytorch, expected auto: openvino runs this file"):
        make(exported("openvino"), engine="pytorch")
    assert make(exported("openvino"), engine="openvino", device="auto").device == "cpu"


def test_openvino_is_for_the_cpu(exported):
    with pytest.raises(ValueError, match=r"got engine openvino on device cpu:0, expected cpu; use --set"):
        make(exported("openvino"), device="cpu:0")
    with pytest.raises(ValueError, match=r"got engine openvino on device cpu:0, expected cpu; use --set"):
        make(WEIGHTS, engine="openvino", device="cpu:0")


def test_without_openvino_auto_is_pytorch_and_asking_for_it_says_how_to_get_it(monkeypatch):
    assert pose_engines.resolve_engine("auto", "cuda:0") == "pytorch"
    monkeypatch.setattr(pose_engines.importlib.util, "find_spec", lambda name: None)
    assert pose_engines.resolve_engine("auto", "cpu") == "pytorch"
    with pytest.raises(WeightsError, match=r"the package openvino is not installed.*pip install 'csip\[demo\]'"):
        make(WEIGHTS, engine="openvino")


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        ("x.onnx", "cpu", r"the package onnxruntime is not installed\. Install it \(pip install onnxruntime\)"),
        ("x.onnx", "cuda:0", r"the package onnxruntime is not installed\. Install it \(pip install onnxruntime-gpu\)"),
        ("x.engine", "cuda:0", r"the package tensorrt is not installed\. Install it \(pip install tensorrt\)"),
        ("x.engine", "cpu", r"TensorRT needs a CUDA device, found cpu"),
    ],
)
def test_an_engine_that_is_missing_is_named_and_never_installed(monkeypatch, tmp_path, name, device, message):
    monkeypatch.setattr(pose_engines.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(pose_engines, "resolve_device", lambda name: name)
    (tmp_path / name).touch()
    with pytest.raises(WeightsError, match=message):
        make(tmp_path / name, device=device)


def test_an_onnxruntime_without_cuda_does_not_fall_back_to_the_cpu(exported, monkeypatch):
    # Ultralytics' backend would, and only log it.
    weights = exported("onnx")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(pose_engines, "resolve_device", lambda name: "cuda:0")
    with pytest.raises(WeightsError, match=r"onnxruntime finds no CUDA, expected one that runs on cuda:0\. Install"):
        make(weights, device="cuda")


class Engine:
    """Ultralytics' TensorRT backend without TensorRT: what it was given, and rows that say which frame they are of."""

    fp16 = True
    made = None

    def __init__(self, weight, device):
        self.weight, self.asked, self.device = weight, device, torch.device("cpu")
        self.calls = []
        Engine.made = self

    def forward(self, images):
        self.calls.append((tuple(images.shape), images.dtype))
        if images.shape[2] > 500:
            raise ValueError("input size is outside the TensorRT optimization profile")
        output = torch.zeros(len(images), 56, 84, dtype=torch.float16)
        output[:, :4, 0] = torch.tensor([100, 100, 20, 40])
        output[:, 4, 0] = images.mean(dim=(1, 2, 3))
        return [output]


@pytest.fixture
def tensorrt(monkeypatch, tmp_path):
    """Write an .engine file as ultralytics does, its length and facts in front, for a TensorRT that is not there."""
    find_spec = pose_engines.importlib.util.find_spec
    monkeypatch.setattr(pose_engines.importlib.util, "find_spec", lambda n: n == "tensorrt" or find_spec(n))
    monkeypatch.setattr(pose_engines, "resolve_device", lambda name: "cuda:0")
    monkeypatch.setattr(import_quietly("ultralytics.nn.backends"), "TensorRTBackend", Engine)

    def write(**changes):
        facts = {"task": "pose", "kpt_shape": [17, 3], "names": {"0": "person"}, "stride": 32, "batch": 4}
        facts |= {"imgsz": list(BOUND), "args": {"quantize": 16, "dynamic": False}, "end2end": False, **changes}
        head = json.dumps(facts).encode()
        path = tmp_path / "model.engine"
        path.write_bytes(len(head).to_bytes(4, "little") + head + b"engine")
        return path

    return write


def test_a_tensorrt_engine_gets_its_own_batch_size_and_precision(tensorrt):
    # Written without TensorRT and CUDA, which this project's machines lack: what is fed, and what is left out again.
    model = make(tensorrt(), precision="float16", device="cuda", confidence=0.05)
    assert (model.engine, model.device, model.batch, model.network_size) == ("tensorrt", "cuda:0", 4, BOUND)
    assert Engine.made.asked == torch.device("cuda:0")
    shades = np.array([40, 80, 120, 160, 200], np.uint8)
    grey = Frames(np.broadcast_to(shades[:, None, None, None], (5, *SIZE, 3)).copy(), np.arange(5), np.arange(5) / 10)
    Engine.made.calls.clear()
    people = model(grey)
    assert Engine.made.calls == [((4, 3, *BOUND), torch.float16)] * 2
    # A frame of one shade, and 114 in the 16 rows (of 256) that letterboxing adds.
    expected = [(shade * 240 + 114 * 16) / 256 / 255 for shade in shades.tolist()]
    assert [float(p.score[0]) for p in people] == pytest.approx(expected, abs=2e-3)


def test_a_size_outside_of_a_tensorrt_engines_bounds_is_refused_at_once(tensorrt):
    path = tensorrt(args={"quantize": 16, "dynamic": True})
    assert make(path, 480, precision="float16").network_size == (384, 480)
    with pytest.raises(WeightsError, match=r"cannot be loaded \(input size is outside the TensorRT optimization"):
        make(path, 1280, precision="float16")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "detect"}, r"found a model for detect, expected pose with \(17, 3\)"),
        ({"kpt_shape": [21, 3]}, r"found a model for pose with keypoints \(21, 3\), expected pose with \(17, 3\)"),
        ({"names": {0: "car", 1: "person"}}, r"found class 'car' first, expected 'person'"),
        ({"args": {"int8": True}}, r"found an export in int8, expected float16 \(detect\.precision\)"),
        ({"imgsz": None}, r"found nothing of what ultralytics' export writes"),
    ],
)
def test_an_export_of_something_else_is_refused(tensorrt, changes, message):
    path = tensorrt(**changes)
    with pytest.raises(WeightsError, match=message):
        make(path, precision="float16")


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
        make(path, 640, engine="pytorch")


@pytest.mark.parametrize("write", [damaged, noise, text, empty])
@pytest.mark.parametrize("name", ["bad.onnx", "bad.engine"])
def test_what_is_no_export_is_said_in_plain_words(tmp_path, monkeypatch, name, write):
    monkeypatch.setattr(pose_engines, "_check_engine", lambda *_: None)
    write(tmp_path / name)
    with pytest.raises(WeightsError, match=rf"{name}: found nothing of what ultralytics' export writes into its files"):
        make(tmp_path / name)


def test_a_damaged_weights_file_is_not_replaced_by_a_download(tmp_path, monkeypatch):
    # Of a bare file name that its maker publishes, ultralytics would delete the file and fetch another.
    monkeypatch.chdir(tmp_path)
    damaged(Path("yolo11n-pose.pt"))
    with pytest.raises(WeightsError, match=r"yolo11n-pose\.pt: the file cannot be loaded"):
        make(Path("yolo11n-pose.pt"), 640, engine="pytorch")
    assert Path("yolo11n-pose.pt").stat().st_size == 100_000


def test_an_onnx_file_that_breaks_off_is_refused(exported, tmp_path):
    whole = exported("onnx").read_bytes()
    (tmp_path / "half.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        WeightsError, match=r"half\.onnx: found nothing of what .* it is cut off, or of another program"
    ):
        make(tmp_path / "half.onnx")


def test_an_onnx_file_with_a_broken_graph_is_refused(exported, tmp_path):
    # What it says of itself stands at its end, and is whole.
    whole = exported("onnx").read_bytes()
    where = whole.index(b"Conv")
    (tmp_path / "odd.onnx").write_bytes(whole[:where] + b"Cunv" + whole[where + 4 :])
    with pytest.raises(WeightsError, match=r"odd\.onnx: the file cannot be loaded"):
        make(tmp_path / "odd.onnx")


def folder_without(exported, tmp_path, suffix):
    folder = shutil.copytree(exported("openvino"), tmp_path / "part_openvino_model")
    for path in folder.glob(f"*{suffix}"):
        path.unlink()
    return folder


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        (".yaml", "found nothing of what ultralytics' export writes into its files"),
        (".xml", r"the file cannot be loaded \(found 0 \.xml files in the folder, expected one\)"),
        (".bin", "the file cannot be loaded"),
    ],
)
def test_an_openvino_folder_in_part_is_refused(exported, tmp_path, suffix, message):
    with pytest.raises(WeightsError, match=rf"part_openvino_model: {message}"):
        make(folder_without(exported, tmp_path, suffix))


def test_a_model_for_something_else_is_refused(tmp_path):
    path = tmp_path / "detect.pt"
    import_quietly("ultralytics").YOLO("yolo11n.yaml").save(path)
    with pytest.raises(WeightsError, match=r"found a model for detect, expected pose with \(17, 3\)"):
        make(path, 640, engine="pytorch")


@pytest.mark.parametrize("name", ["model.torchscript", "model", "folder"])
def test_another_kind_of_file_is_refused(tmp_path, name):
    (tmp_path / name).mkdir() if name == "folder" else (tmp_path / name).touch()
    message = r"found (\.torchscript|a name without an ending), expected \.pt, \.onnx, \.engine or a folder \*_openvino"
    with pytest.raises(WeightsError, match=message):
        make(tmp_path / name)


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(WeightsError, match=r"gone\.onnx: found nothing there"):
        make(tmp_path / "gone.onnx")


@pytest.mark.parametrize(
    ("args", "precision"),
    [
        ({}, "float32"),
        ({"quantize": None}, "float32"),
        ({"quantize": 32}, "float32"),
        ({"quantize": 16}, "float16"),
        ({"quantize": 8}, "int8"),
        ({"half": True, "int8": False}, "float16"),
        ({"half": False, "int8": False}, "float32"),
    ],
)
def test_newer_and_older_exports_say_their_precision(tensorrt, args, precision):
    path = tensorrt(args=args | {"dynamic": False})
    assert make(path, precision=precision).precision == precision
