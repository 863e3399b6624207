"""The pose model's two engines on the same frames, side by side in one process.

Run: pytest tests/benchmarks --benchmark-only --benchmark-group-by=group
"""

import sys
import time
from importlib.resources import files
from itertools import islice
from pathlib import Path

import pytest

from csip.config import DetectConfig
from csip.ingest.pose import PoseModel
from csip.ingest.video import read_frames
from csip.ingest.yolo import resolve_weights

IMAGE_SIZE = 960
FRAMES = 16


@pytest.fixture(scope="module")
def frames():
    video = Path(str(files("csip") / "assets" / "pedestrians.mp4"))
    return next(islice(read_frames(video, batch=FRAMES, threads=2), 12, None))


@pytest.fixture(scope="module")
def models():
    c = DetectConfig(image_size=IMAGE_SIZE)
    return {
        engine: PoseModel(
            resolve_weights(c.weights),
            frame_size=(576, 768),
            image_size=c.image_size,
            confidence=c.confidence,
            iou=c.iou,
            max_people=c.max_people,
            device="cpu",
            engine=engine,
        )
        for engine in ("pytorch", "openvino")
    }


@pytest.mark.benchmark(group="pose, 16 frames of 768x576 at 960")
@pytest.mark.parametrize("engine", ["pytorch", "openvino"])
def test_one_engine(benchmark, models, frames, engine):
    people = benchmark.pedantic(models[engine], args=(frames,), rounds=3, warmup_rounds=1)
    assert sum(map(len, people)) > FRAMES


def test_ratio(benchmark, models, frames, capsys):
    """Alternate the engines, so that a busy neighbour slows both alike; print the ratio of the medians."""
    seconds = {engine: [] for engine in models}

    def both():
        for engine, model in models.items():
            begun = time.perf_counter()
            model(frames)
            seconds[engine].append(time.perf_counter() - begun)

    benchmark.pedantic(both, rounds=5, warmup_rounds=1)
    median = {engine: sorted(values)[len(values) // 2] for engine, values in seconds.items()}
    rates = ", ".join(f"{engine} {FRAMES / s:.1f} frames/s" for engine, s in median.items())
    with capsys.disabled():
        sys.stdout.write(f"\n{rates}; OpenVINO / PyTorch: {median['pytorch'] / median['openvino']:.2f}\n")
