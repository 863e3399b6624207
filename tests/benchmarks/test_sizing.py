"""What the operating guide counts with: frames a second, bytes of store a frame and memory of a build from a terminal.

Run: pytest tests/benchmarks/test_sizing.py --benchmark-only
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import csip
from csip import tables

SHIPPED = Path(csip.__file__).parent / "assets" / "pedestrians.mp4"


def size(folder):
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_build_of_the_street_with_the_recipe_video(benchmark, tmp_path, capsys):
    """The shipped 80 seconds of 768x576, at the image size that is chosen for them."""
    store = tmp_path / "store"
    own = {"PREFECT_HOME": str(tmp_path / "prefect"), "CSIP_CACHE": str(tmp_path / "cache"), "YOLO_OFFLINE": "true"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | own

    def csip_(*words):
        command = [Path(sys.executable).with_name("csip"), *words, "--store", store, "--json"]
        return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    def build():
        load, begun = os.getloadavg()[0], time.monotonic()
        csip_("build-skeletons", SHIPPED)
        return load, time.monotonic() - begun

    load, seconds = benchmark.pedantic(build, rounds=1)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    runs = tables.find_runs(str(store), "seconds >= 0")
    detected = [run for run in runs if run.stage == "detect_video"]
    (whole,) = (run for run in runs if run.stage == "extract_videos")
    frames = sum(run.counts["frames"] for run in detected)
    before = size(store)
    csip_("gc", "--older-than", "0")
    after = size(store)
    parts = {
        path.stem: round(size(path) / frames) for path in sorted(store.glob("*.lance")) if size(path) > 50 * frames
    }
    benchmark.extra_info |= {"frames a second": frames / whole.seconds, "bytes a frame": after / frames, "MB": peak}
    with capsys.disabled():
        sys.stdout.write(
            f"\n{frames} frames, load {load:.1f} before: {frames / whole.seconds:.1f} frames/s in the stage, "
            f"{frames / seconds:.1f} with start and end; largest process {peak:.0f} MB; {before / frames:.0f} bytes a "
            f"frame, {after / frames:.0f} after gc: {parts}\n"
        )
