"""The pose model's engines side by side, and what each frame costs outside of the network, ours and ultralytics'.

Run: pytest tests/benchmarks/test_pose_engines.py --benchmark-only --benchmark-group-by=group
"""

import importlib.util
import shutil
import sys
import time
import warnings
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

import csip
from csip.config import DetectConfig
from csip.ingest.pose import PoseModel
from csip.ingest.pose_openvino import import_openvino
from csip.ingest.pose_pixels import Letterbox
from csip.ingest.yolo import import_quietly
from csip.types import Frames
from tests.makers.read_video import read_frames

ASSETS = Path(csip.__file__).parent / "assets"
WEIGHTS = ASSETS / "yolo11n-pose.pt"
CONFIG = DetectConfig()
FRAMES = 40
SIZE = (576, 768)


@pytest.fixture(scope="module")
def frames():
    """Frames from where the street is full."""
    some = list(islice(read_frames(ASSETS / "pedestrians.mp4", batch=20, threads=2), 10, 10 + FRAMES // 20))
    return Frames(*(np.concatenate([getattr(s, n) for s in some]) for n in ("pixels", "frame_index", "time")))


def make(weights, **more):
    limits = {"confidence": CONFIG.confidence, "iou": CONFIG.iou, "max_people": CONFIG.max_people}
    return PoseModel(weights, frame_size=SIZE, image_size=CONFIG.image_size, device="cpu", **limits, **more)


def export(folder, form):
    """Export the shipped weights for the size that the default image size gives these frames."""
    import_openvino()
    copy, threads = shutil.copyfile(WEIGHTS, folder / "model.pt"), torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = import_quietly("ultralytics").YOLO(str(copy)).export(format=form, imgsz=(960, 1280), device="cpu")
    torch.set_num_threads(threads)
    return Path(made)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = {engine: make(WEIGHTS, engine=engine) for engine in ("pytorch", "openvino")}
    if all(importlib.util.find_spec(package) for package in ("onnx", "onnxruntime")):
        made["onnxruntime"] = make(export(tmp_path_factory.mktemp("onnx"), "onnx"))
    return made


def median(values):
    return sorted(values)[len(values) // 2]


def test_engines(benchmark, models, frames, capsys):
    """Alternate the engines frame by frame, so that a busy neighbour slows all alike."""
    seconds, cpu = {engine: [] for engine in models}, dict.fromkeys(models, 0.0)

    def all_of_them():
        for n in range(FRAMES):
            one = Frames(frames.pixels[n : n + 1], frames.frame_index[n : n + 1], frames.time[n : n + 1])
            for engine, model in models.items():
                begun, used = time.perf_counter(), time.process_time()
                model(one)
                seconds[engine].append(time.perf_counter() - begun)
                cpu[engine] += time.process_time() - used

    benchmark.pedantic(all_of_them, rounds=1, warmup_rounds=0)
    rates = ", ".join(
        f"{engine} {1 / median(s):.1f} frames/s ({cpu[engine] / FRAMES:.2f} core seconds a frame)"
        for engine, s in seconds.items()
    )
    size = models["openvino"].network_size
    with capsys.disabled():
        sys.stdout.write(f"\n{FRAMES} frames of 768x576 at {size[1]}x{size[0]}: {rates}\n")
        for engine, s in seconds.items():
            sys.stdout.write(f"  {engine} / pytorch: {median(seconds['pytorch']) / median(s):.2f} times as fast\n")


class Answer:
    """Stands in for the network, with an answer that it gave before: what is left is everything else."""

    def __init__(self, output):
        self.output = output

    def infer(self, *_, **__):
        return {0: self.output}

    def __call__(self, _):
        return {0: self.output}


def test_a_frame_outside_of_the_network(benchmark, tmp_path, frames, monkeypatch, capsys):
    """Letterbox, conversion, suppression and scaling back, beside ultralytics' predict() on the same OpenVINO file."""
    weights = export(tmp_path, "openvino")
    model = make(weights)
    raw = model._network.lanes[0](Letterbox(model.network_size)(frames.pixels[:1])).numpy().copy()
    compiled = import_openvino().CompiledModel
    monkeypatch.setattr(compiled, "create_infer_request", lambda self: Answer(raw))
    ours = make(weights)
    theirs = import_quietly("ultralytics").YOLO(str(weights), task="pose")
    # The predictor wants BGR, which costs nothing here: views are turned into copies beforehand.
    pictures = [np.ascontiguousarray(picture[:, :, ::-1]) for picture in frames.pixels]
    limits = {"conf": CONFIG.confidence, "iou": CONFIG.iou, "max_det": CONFIG.max_people, "classes": [0]}
    settings = {"imgsz": 1280, "device": "cpu", "verbose": False, **limits}
    found = theirs.predict(pictures[0], **settings)[0]
    theirs.predictor.model.backend.ov_compiled_model = Answer(raw)
    seconds = {"ours": [], "theirs": []}

    def both():
        for n, picture in enumerate(pictures):
            one = Frames(frames.pixels[n : n + 1], frames.frame_index[n : n + 1], frames.time[n : n + 1])
            begun = time.perf_counter()
            people = ours(one)
            middle = time.perf_counter()
            theirs.predict(picture, **settings)
            seconds["ours"].append(middle - begun)
            seconds["theirs"].append(time.perf_counter() - middle)
            assert len(people) == 1

    benchmark.pedantic(both, rounds=3, warmup_rounds=1)
    ms = {name: 1000 * median(values) for name, values in seconds.items()}
    assert len(found.boxes) >= 1
    with capsys.disabled():
        told = f"ours {ms['ours']:.1f} ms, ultralytics' {ms['theirs']:.1f} ms, ratio {ms['ours'] / ms['theirs']:.2f}"
        sys.stdout.write(f"\na frame outside of the network: {told}\n")


def test_waiting_costs_nothing(benchmark, models, frames, capsys):
    """A thread that spins while there is no work would take the decoder's core: core seconds of an idle second."""
    one = Frames(frames.pixels[:1], frames.frame_index[:1], frames.time[:1])
    idle = {}

    def run_and_wait():
        for engine, model in models.items():
            model(one)
            used = time.process_time()
            time.sleep(1)
            idle[engine] = time.process_time() - used

    benchmark.pedantic(run_and_wait, rounds=2, warmup_rounds=0)
    told = ", ".join(f"{engine} {seconds:.3f}" for engine, seconds in idle.items())
    with capsys.disabled():
        sys.stdout.write(f"\ncore seconds in a second without work: {told}\n")
