"""Builds that are killed at random points, and what the store is afterwards.

    python -m tests.kill_builds --kills 300

A store with a published snapshot gets a second build, which is killed (SIGKILL, the build's process alone) after a
random time, again and again, until one is let through. After every kill the store must verify, the published snapshot
must read as before, and no decoder may be left over; in the end all tables must equal, row for row, those of a store
where nobody was killed. Of `runs` that means: the same work is finished, and nothing twice.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

import csip
from csip import tables
from csip.config import DetectConfig, ExtractConfig, RuntimeConfig
from csip.evaluation.publish import publish
from csip.ingest.extract import extract_videos
from csip.ingest.sources import list_videos
from csip.maintenance.verify import verify
from csip.types import Output

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = Path(csip.__file__).parent / "assets" / "pedestrians.mp4"
CONFIG = ExtractConfig(dataset="killed", detect=DetectConfig(image_size=640, segment_seconds=2.0))
RUNTIME = RuntimeConfig(device="cpu", pose_engine="pytorch", threads=1)
ROWS = ("videos", "detections", "tracklets", "crops", "skeletons", "splits", "snapshots")
UNLIKE = {"created", "tables", "path"}
READY = "ready"


def make_videos(folder: Path) -> tuple[Path, list[Path]]:
    """Cut three short videos out of the shipped one: a first, and two for the build that is killed."""
    with av.open(str(SHIPPED)) as source:
        frames = [f.to_ndarray(format="rgb24") for i, f in enumerate(source.decode(video=0)) if 500 <= i < 590]
    parts = {"first": frames[:24], "second": frames[24:66], "third": frames[66:]}
    paths = {name: write_video(folder / f"{name}.mp4", part) for name, part in parts.items()}
    return paths["first"], [paths["second"], paths["third"]]


def write_video(path: Path, frames: list[np.ndarray]) -> Path:
    with av.open(str(path), "w") as made:
        stream = made.add_stream("h264", rate=10, options={"crf": "18"})
        stream.height, stream.width = frames[0].shape[:2]
        for pixels in frames:
            made.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        made.mux(stream.encode())
    return path


def run(stage):
    while True:
        try:
            next(stage)
        except StopIteration as end:
            return end.value.value


def build(store: str, videos: list[str], config: ExtractConfig = CONFIG) -> str:
    """Build without Prefect: the three stages one after the other; return the snapshot's name."""
    out = Output(store, "run-0")
    listed = run(list_videos(out, tuple(videos), "", config, RUNTIME))
    extracted = tuple(run(extract_videos(out, batch, listed.digests, config, RUNTIME)) for batch in listed.batches)
    return run(publish(out, listed, extracted, config)).name


def start(store: Path, videos: list[Path]) -> subprocess.Popen:
    """Start a build in a process of its own; return once it is about to begin."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.kill_builds", "--build", str(store), *map(str, videos)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    line = process.stdout.readline().strip()
    if line != READY:
        raise RuntimeError(f"The build did not start: {line!r} {process.stderr.read()}")
    return process


def rows(store: Path) -> dict[str, list[dict]]:
    """Everything in the tables that two builds of the same videos must agree on."""
    return {
        name: [
            {key: value for key, value in row.items() if key not in UNLIKE}
            for row in tables.read(tables.current(str(store), name)).to_pylist()
        ]
        for name in ROWS
    }


def finished_runs(store: Path) -> list[dict]:
    """What `runs` says is finished, by key, without what no two builds share: who, when, how fast, from where."""
    told = [
        {
            "stage": run.stage,
            "key": run.key,
            "outputs": run.outputs,
            "config": run.config,
            "counts": {name: value for name, value in run.counts.items() if not name.endswith("seconds")},
            "weights": run.weights,
            "source_digest": run.source_digest,
        }
        for run in tables.find_runs(str(store), "true")
    ]
    return sorted(told, key=lambda one: (one["stage"], one["key"]))


def published(store: Path, name: str) -> dict[str, list[dict]]:
    snapshot = tables.open_snapshot(str(store), name)
    return {table: tables.read(tables.pinned(snapshot, table)).to_pylist() for table in snapshot.tables}


def children_of(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def kill(process: subprocess.Popen) -> list[int]:
    """Kill a build alone; return those of its children that are still there ten seconds later."""
    children = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    end = time.monotonic() + 10
    while any(map(alive, children)) and time.monotonic() < end:
        time.sleep(0.05)
    return [pid for pid in children if alive(pid)]


def kill_and_look(store: Path, videos: list[Path], snapshot: str, before: dict, after: float) -> bool:
    """Kill one build after so many seconds; True where it was done before that. Raise on anything that is wrong."""
    process = start(store, videos)
    left: list[int] = []
    told = ""
    try:
        _, told = process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        left = kill(process)
    if left:
        raise AssertionError(f"killed after {after:.2f} s: the processes {left} live on")
    if process.returncode not in (0, -signal.SIGKILL):
        raise AssertionError(f"a build failed: {told}")
    faults = [one for one in verify(str(store)) if one.kind == "fault"]
    if faults:
        raise AssertionError(f"killed after {after:.2f} s: {faults}")
    if published(store, snapshot) != before:
        raise AssertionError(f"killed after {after:.2f} s: the published snapshot reads otherwise")
    return process.returncode == 0


def kill_many(folder: Path, kills: int, seed: int, tell=lambda text: None) -> int:
    """Kill so many builds, in as many stores as it takes; return how many stores were completed."""
    draw = random.Random(seed)
    first, others = make_videos(folder)
    base, whole = folder / "base", folder / "whole"
    snapshot = build(str(base), [str(first)])
    before = published(base, snapshot)
    shutil.copytree(base, whole)
    begun = time.monotonic()
    process = start(whole, others)
    _, told = process.communicate()
    if process.returncode:
        raise RuntimeError(told)
    seconds = time.monotonic() - begun
    expected, runs = rows(whole), finished_runs(whole)
    done = stores = 0
    while done < kills:
        store = folder / f"store-{stores}"
        shutil.copytree(base, store)
        for _ in range(min(draw.randint(1, 6), kills - done)):
            after = draw.uniform(0, seconds)
            finished = kill_and_look(store, others, snapshot, before, after)
            done += not finished
            tell(f"{done} of {kills}: {'finished before' if finished else 'killed after'} {after:.2f} s")
            if finished:
                break
        if not kill_and_look(store, others, snapshot, before, 600):
            raise AssertionError("a build that nobody killed did not end")
        found = rows(store)
        for name in ROWS:
            if found[name] != expected[name]:
                raise AssertionError(f"{store}: table {name} differs from that of an undisturbed build")
        if finished_runs(store) != runs:
            raise AssertionError(f"{store}: found {finished_runs(store)} in `runs`, expected {runs}")
        shutil.rmtree(store)
        stores += 1
    return stores


def main() -> None:
    """Serve a build that is to be killed, or kill many."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--build", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.build:
        sys.stdout.write(READY + "\n")
        sys.stdout.flush()
        sys.stdout.write(json.dumps(build(args.build[0], args.build[1:])) + "\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        stores = kill_many(Path(folder), args.kills, args.seed, lambda text: sys.stdout.write(text + "\n"))
    sys.stdout.write(f"{args.kills} builds were killed in {stores} stores; every store was completed.\n")


if __name__ == "__main__":
    main()
