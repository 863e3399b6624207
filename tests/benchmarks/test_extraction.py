"""The whole extraction beside the pose model's own time and beside ultralytics' tracking, on one video, in one process.

Run: pytest tests/benchmarks/test_extraction.py --benchmark-only
"""

import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch

import csip
from csip import tables
from csip.config import DetectConfig, ExtractConfig, RuntimeConfig
from csip.ingest.decoder_process import DecoderProcess
from csip.ingest.extract import extract_videos
from csip.ingest.pose_openvino import import_openvino
from csip.ingest.records import extract_digests
from csip.ingest.video import probe
from csip.ingest.yolo import import_quietly
from csip.types import Output, SourceVideo
from tests.makers.read_video import read_frames

ASSETS = Path(csip.__file__).parent / "assets"
ROOT = Path(__file__).resolve().parents[2]
FIRST, COUNT, SIZE = 400, 150, 1280
ROUNDS = 2


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Fifteen seconds in which the street is full."""
    path = tmp_path_factory.mktemp("clip") / "street.mp4"
    return write_clip(path, range(FIRST, FIRST + COUNT))


def write_clip(path, wanted):
    pictures = {
        int(i): pixels
        for some in read_frames(ASSETS / "pedestrians.mp4", batch=50, threads=2)
        for i, pixels in zip(some.frame_index, some.pixels, strict=True)
        if int(i) in set(wanted)
    }
    with av.open(str(path), "w") as made:
        stream = made.add_stream("h264", rate=10, options={"crf": "20"})
        stream.height, stream.width = next(iter(pictures.values())).shape[:2]
        for i in wanted:
            made.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pictures[i]), format="rgb24")))
        made.mux(stream.encode())
    return path


def weights_for(engine, folder):
    """Give the shipped weights in a form that both run by the same engine."""
    copy = shutil.copyfile(ASSETS / "yolo11n-pose.pt", folder / "yolo11n-pose.pt")
    if engine == "pytorch":
        return copy
    threads = torch.get_num_threads()
    made = import_quietly("ultralytics").YOLO(str(copy)).export(format="openvino", imgsz=(960, SIZE), device="cpu")
    torch.set_num_threads(threads)
    return Path(made)


def extract(store, clip, weights, engine):
    config = ExtractConfig(detect=DetectConfig(weights=str(weights), image_size=SIZE))
    runtime = RuntimeConfig(device="cpu", pose_engine="pytorch" if engine == "pytorch" else "auto")
    info = probe(clip)
    video = SourceVideo(info.sha256, str(clip), "gate", info.duration)
    tables.prepare_store(str(store))
    stage = extract_videos(Output(str(store), "run"), (video,), extract_digests(config), config, runtime)
    while True:
        try:
            next(stage)
        except StopIteration as end:
            return end.value.counts


def in_float32(patch):
    """Let ultralytics' OpenVINO compute in float32, as ours does."""
    openvino = import_openvino()
    compiled = openvino.Core.compile_model

    def compile_model(self, model, device_name, config):
        return compiled(self, model, device_name, config | {"INFERENCE_PRECISION_HINT": openvino.Type.f32})

    patch.setattr(openvino.Core, "compile_model", compile_model)


@pytest.mark.parametrize("engine", ["pytorch", "openvino"])
def test_extraction_beside_the_model_and_beside_tracking(benchmark, engine, clip, tmp_path, monkeypatch, capsys):
    if engine == "openvino":
        in_float32(monkeypatch)
    weights = weights_for(engine, tmp_path)
    frames = np.concatenate([some.pixels for some in read_frames(clip, batch=50, threads=2)])
    yolo = import_quietly("ultralytics").YOLO
    settings = {"imgsz": SIZE, "conf": 0.1, "iou": 0.7, "max_det": 300, "classes": [0], "device": "cpu"}
    quiet = {"verbose": False, "save": False}
    predictor, tracker = yolo(str(weights), task="pose"), yolo(str(weights), task="pose")
    predictor.predict(frames[0][:, :, ::-1], **settings, **quiet)
    seconds = {"model": [], "track": [], "ours": []}
    threads = len(os.sched_getaffinity(0))
    found = {}

    def start():
        # Ultralytics takes a core away from torch, and our engines take as many threads as torch has.
        torch.set_num_threads(threads)
        return time.perf_counter()

    def rounds():
        for number in range(ROUNDS):
            begun = start()
            # One frame at a time: ultralytics' fastest on a CPU, and the batch of its tracking.
            found["theirs"] = [
                predictor.predict(np.ascontiguousarray(frame[:, :, ::-1]), **settings, **quiet)[0].boxes.xyxy.numpy()
                for frame in frames
            ]
            seconds["model"].append(time.perf_counter() - begun)
            begun = start()
            for _ in tracker.track(str(clip), stream=True, tracker="bytetrack.yaml", **settings, **quiet):
                pass
            seconds["track"].append(time.perf_counter() - begun)
            begun = start()
            found["counts"] = extract(tmp_path / f"store-{number}", clip, weights, engine)
            seconds["ours"].append(time.perf_counter() - begun)

    benchmark.pedantic(rounds, rounds=1)
    rows = tables.read(tables.current(str(tmp_path / "store-0"), "detections"))
    boxes, index = tables.boxes_array(rows["box"]), np.asarray(rows["frame_index"])
    ours = [boxes[index == i] for i in range(len(frames))]
    assert [len(one) for one in ours] == [len(one) for one in found["theirs"]]
    assert max(np.abs(a - b).max() for a, b in zip(ours, found["theirs"], strict=True) if len(a)) < 0.1
    best = {name: min(values) for name, values in seconds.items()}
    with capsys.disabled():
        sys.stdout.write(
            f"\n{engine}, {len(frames)} frames, best of {ROUNDS}: model alone {best['model']:.2f} s; the whole "
            f"extraction {best['ours']:.2f} s = {best['ours'] / best['model']:.3f} of it; ultralytics' track "
            f"{best['track']:.2f} s, ours is {best['track'] / best['ours']:.2f} times as fast; {found['counts']}\n"
        )


def test_memory_beside_length(benchmark, tmp_path, capsys):
    """Peak memory of the process that extracts, and of its decoders, at 1, 5 and 20 times the length."""
    peaks = {}

    def measure():
        for times in (1, 5, 20):
            clip = write_clip(tmp_path / f"{times}.mp4", [FIRST + i % 60 for i in range(60 * times)])
            code = "from tests.benchmarks.test_extraction import peak; import sys; peak(*sys.argv[1:])"
            command = [sys.executable, "-c", code, str(tmp_path / f"store-{times}"), str(clip)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
            peaks[times] = [int(word) / 1024 for word in done.stdout.split()[-2:]]

    benchmark.pedantic(measure, rounds=1)
    with capsys.disabled():
        told = ", ".join(f"{times}x {own:.0f} and {child:.0f} MB" for times, (own, child) in peaks.items())
        sys.stdout.write(f"\npeak memory by length, of extraction and decoder: {told}\n")
    for own, child in peaks.values():
        assert own < 1.2 * peaks[1][0]
        assert 0 < child < 1.2 * peaks[1][1]


def peak(store, clip):
    """Extract a video in small segments at a small image size; print the peak memory of it and its decoder, kB.

    The decoder's is read after each frame: what the system tells of children counts in what they were forked from.
    """
    decoders, send = [0], DecoderProcess._send

    def look_and_send(decoder, message):
        told = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{decoder.pid}/status").read_text())
        decoders.append(int(told[1]) if told else 0)
        send(decoder, message)

    DecoderProcess._send = look_and_send
    config = ExtractConfig(detect=DetectConfig(image_size=320, segment_seconds=6.0))
    runtime = RuntimeConfig(device="cpu", pose_engine="openvino")
    info = probe(Path(clip))
    video = SourceVideo(info.sha256, clip, "gate", info.duration)
    tables.prepare_store(store)
    for _ in extract_videos(Output(store, "run"), (video,), extract_digests(config), config, runtime):
        pass
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stdout.write(f"{own} {max(decoders)}\n")
