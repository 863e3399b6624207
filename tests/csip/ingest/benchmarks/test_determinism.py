"""Rows follow from what a data set holds: not from where it lies, when it was written, how its folders are listed, or
the process's hash seed (datasets.md section 13)."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from csip.config import BenchmarkConfig, ExtractConfig, RuntimeConfig
from csip.data.clips import label_of_pid
from csip.ingest.benchmarks.importing import open_benchmark
from csip.types import TrackletPart

SIDECARS = "skeleton_3d_hmr2.0"
# Name -> the source's prefix, the maker, its options, and where skeletons come from.
KINDS = {
    "mars": ("mars", "mars", {"skeletons": SIDECARS}, "files"),
    "lsvid": ("lsvid", "lsvid", {"skeletons": SIDECARS}, "files"),
    "ilids": ("ilids", "ilids", {"skeletons": SIDECARS}, "files"),
    "biwi": ("biwi", "biwi", {}, "none"),
    "ias": ("ias", "ias", {}, "none"),
    "arrays": ("biwi", "transg", {}, "none"),
    "folder": ("labelled", "labelled", {"form": "folder", "skeletons": SIDECARS}, "files"),
    "videos": ("labelled", "labelled", {"form": "videos"}, "none"),
}


def look(kind, root):
    prefix, _, _, skeletons = KINDS[kind]
    config = ExtractConfig(benchmark=BenchmarkConfig(skeletons=skeletons))
    return open_benchmark(f"{prefix}:{root}", config, RuntimeConfig(device="cpu"))


def everything(benchmark):
    """All that becomes rows: splits, counts, and every tracklet whole."""
    tracklets = {}
    for name in sorted({row.tracklet_id for row in benchmark.splits}):
        one = benchmark.load(name)
        arrays = [one.frame_index, one.boxes, one.keypoints, one.has_skeleton]
        tracklets[name] = (one.pid, one.camid, one.images, [array.tolist() for array in arrays])
    return benchmark.name, benchmark.digest, benchmark.splits, dict(benchmark.counts), tracklets


def labels(benchmark):
    """Person -> class index, as training numbers them."""
    train = {(row.tracklet_id, row.pid, row.camid) for row in benchmark.splits if row.role == "train"}
    return label_of_pid([TrackletPart(name, 0, 0, pid, camid) for name, pid, camid in train])


@pytest.fixture(scope="module")
def originals(make_folder, tmp_path_factory):
    """Every kind of data set, once; read-only."""
    home = tmp_path_factory.mktemp("originals")
    for kind, (_, maker, options, _) in KINDS.items():
        make_folder(maker)(home / kind, **options)
    return home


@pytest.mark.parametrize("kind", KINDS)
def test_the_place_of_a_folder_and_its_times_decide_nothing(originals, kind, tmp_path, monkeypatch):
    before = everything(look(kind, originals / kind))
    moved = tmp_path / "else where" / "data"
    shutil.copytree(originals / kind, moved)
    for path in moved.rglob("*"):
        os.utime(path, (1, 1))
    assert everything(look(kind, moved)) == before
    # Named from where the user stands, and read from elsewhere.
    monkeypatch.chdir(moved.parent)
    relative = look(kind, Path("data"))
    monkeypatch.chdir(tmp_path)
    assert everything(relative) == before


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_in_which_folders_are_listed_decides_nothing(originals, kind, monkeypatch):
    before = everything(look(kind, originals / kind))
    scandir, listdir = os.scandir, os.listdir
    asked = []

    class Shuffled:
        def __init__(self, path="."):
            asked.append(path)
            with scandir(path) as entries:
                self.entries = list(entries)
            random.Random(str(path)).shuffle(self.entries)

        def __enter__(self):
            return iter(self.entries)

        def __iter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

        def close(self):
            pass

    monkeypatch.setattr(os, "scandir", Shuffled)
    monkeypatch.setattr(os, "listdir", lambda path=".": sorted(listdir(path), reverse=True))
    assert everything(look(kind, originals / kind)) == before
    # These two read files by their names only.
    assert asked or kind in ("arrays", "videos")


@pytest.mark.slow
def test_the_hash_seed_decides_nothing(originals):
    program = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import test_determinism as t
found = {{kind: t.look(kind, Path(sys.argv[1]) / kind) for kind in t.KINDS}}
print(json.dumps({{kind: [b.digest, repr(b.splits), repr(b.counts), repr(t.labels(b))] for kind, b in found.items()}}))
"""
    told = []
    for seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", program, str(originals)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        told.append(json.loads(done.stdout.splitlines()[-1]))
    assert told[0] == told[1]
    assert {kind: one[0] for kind, one in told[0].items()} == {
        kind: look(kind, originals / kind).digest for kind in KINDS
    }


@pytest.mark.parametrize("kind", KINDS)
def test_labels_number_the_training_people_by_ascending_pid(originals, kind):
    benchmark = look(kind, originals / kind)
    pids = sorted({row.pid for row in benchmark.splits if row.role == "train"})
    assert labels(benchmark) == {pid: label for label, pid in enumerate(pids)}
    assert all(isinstance(pid, int) and not isinstance(pid, np.generic) for pid in pids)
