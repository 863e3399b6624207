"""What many short videos cost above the pose model's own time: listing, commits, processes, Prefect, its database.

Run: pytest tests/benchmarks/test_overhead.py --benchmark-only [-k 100]
"""

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

import csip
from csip import tables
from tests.makers.read_video import read_frames

ASSETS = Path(csip.__file__).parent / "assets"
REGION, SIDE, FRAMES = 256, 64, 10
FIXED_SECONDS, SECONDS_A_VIDEO = 60, 0.24
SETTINGS = ("detect.image_size=256", "detect.min_box_height=0", "track.min_seconds=0.5", "runtime.device=cpu")


def write_videos(folder, count):
    """Cut videos of one second, 64 pixels wide and high, each another, from all over the shipped one."""
    folder.mkdir()
    frames = [one for some in read_frames(ASSETS / "pedestrians.mp4", batch=50, threads=2) for one in some.pixels]
    height, width = frames[0].shape[:2]
    corners = [(y, x) for y in range(0, height - REGION + 1, 100) for x in range(0, width - REGION + 1, 100)]
    for i in range(count):
        (y, x), first = corners[i % len(corners)], 7 * i % (len(frames) - FRAMES)
        with av.open(str(folder / f"{i:04d}.mp4"), "w") as made:
            stream = made.add_stream("h264", rate=FRAMES, options={"crf": "18", "preset": "ultrafast"})
            stream.height = stream.width = SIDE
            for pixels in frames[first : first + FRAMES]:
                part = cv2.resize(pixels[y : y + REGION, x : x + REGION], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
                made.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(part), format="rgb24")))
            made.mux(stream.encode())


def database_bytes(home):
    path = home / "prefect.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return path.stat().st_size


@pytest.mark.parametrize("count", [100, 1000])
def test_many_short_videos_cost_little_above_the_pose_model(benchmark, tmp_path, count):
    write_videos(tmp_path / "videos", count)
    home, store = tmp_path / "prefect", tmp_path / "store"
    own = {"PREFECT_HOME": str(home), "CSIP_CACHE": str(tmp_path / "cache"), "YOLO_OFFLINE": "true"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | own

    def build():
        words = [Path(sys.executable).with_name("csip"), "build-skeletons", tmp_path / "videos", "--store", store]
        words += ["--json", *(word for one in SETTINGS for word in ("--set", one))]
        begun = time.monotonic()
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout), time.monotonic() - begun

    told, whole = benchmark.pedantic(build, rounds=1)
    before = database_bytes(home)
    _, again = build()
    runs = tables.find_runs(str(store), "seconds >= 0")
    model = sum(run.counts["model_seconds"] for run in runs if run.stage == "detect_video")
    stages = {one["stage"]: one for one in told["stages"] if one["stage"] in ("list_videos", "publish")}
    benchmark.extra_info |= {
        "whole": whole,
        "model": model,
        "above the model, a video": (whole - model) / count,
        "again, with nothing to do": again,
        **{name: one["seconds"] for name, one in stages.items()},
        **{f"extraction: {name}": value for name, value in extraction(runs).items()},
        "bytes of Prefect's database": before,
        "more of them by a build with nothing to do": database_bytes(home) - before,
    }
    assert whole - model < FIXED_SECONDS + SECONDS_A_VIDEO * count


def extraction(runs):
    """Seconds by phase, over all batches."""
    spent = {}
    for run in runs:
        if run.stage == "extract_videos":
            for name, seconds in run.counts["seconds"].items():
                spent[name] = round(spent.get(name, 0) + seconds, 2)
    return spent
