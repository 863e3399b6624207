r"""Clips from the store, beside the same clips as a JPEG and a JSON file a frame: what published implementations read.

Run, with memory handled as in a stage's process (`flows/stage.py`):

    MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TRIM_THRESHOLD_=2000000000 \
        pytest tests/benchmarks/test_clip_reading.py --benchmark-only

Reading alone is to be three times as fast as from files.
"""

import ctypes
import io
import json
import mmap
import os
import sys
import time
from importlib.resources import files
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from csip import tables
from csip.config import ClipConfig
from csip.data import sampling, transforms
from csip.data.clips import ClipDataset, ClipRequest
from csip.data.loader import READ_AHEAD
from csip.joints import COCO17
from csip.types import ClipBatch, Snapshot, TrackletPart
from tests.makers.read_video import read_frames

TRACKLETS, FRAMES = 100, 60
CLIPS, T = 16, 8  # a batch
BATCHES, ROUNDS = 5 * READ_AHEAD, 5


def encoded_crops(size):
    """Pieces of the shipped video's frames, as JPEGs of the size (width, height)."""
    width, height = size
    rng = np.random.default_rng(0)
    video = Path(str(files("csip") / "assets" / "pedestrians.mp4"))
    frames = next(islice(read_frames(video, batch=64, threads=2), 1)).pixels
    for i in range(TRACKLETS * FRAMES):
        y, x = rng.integers(0, frames.shape[1] - height), rng.integers(0, frames.shape[2] - width)
        crop = frames[i % len(frames), y : y + height, x : x + width, ::-1]
        yield cv2.imencode(".jpg", np.ascontiguousarray(crop), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


@pytest.fixture(scope="module", params=[(60, 150), (128, 256)], ids=lambda size: f"{size[0]}x{size[1]}")
def world(request, tmp_path_factory):
    """The same tracklets in a store and on disk: (folder, data set, all files of the store)."""
    folder = tmp_path_factory.mktemp("clips")
    store = str(folder / "store")
    tables.prepare_store(store)
    rng = np.random.default_rng(1)
    images = encoded_crops(request.param)
    box = [0.0, 0.0, *map(float, request.param)]
    parts = []
    for begin in range(0, TRACKLETS, 25):  # a commit a video
        crops, poses = [], []
        for number in range(begin, begin + 25):
            name = f"t{number:04d}"
            (folder / name).mkdir()
            parts.append(TrackletPart(name, 0, FRAMES - 1, number, 0))
            for frame in range(FRAMES):
                image = next(images)
                points = np.round(rng.uniform(0.4, 1, (17, 3)) * [*request.param, 1], 3)
                key = {"tracklet_id": name, "frame_index": frame}
                kind = {"time": frame / 25, "box": box, "score": 0.9, "media_type": "image/jpeg"}
                crops.append(key | kind | {"image": image})
                poses.append(key | {"extractor_digest": "e" * 64, "layout": "coco17", "keypoints": points.tolist()})
                (folder / name / f"{frame:05d}.jpg").write_bytes(image)
                (folder / name / f"{frame:05d}.json").write_text(json.dumps({"keypoints": points.tolist()}))
        tables.upsert(store, "crops", tables.from_rows("crops", crops))
        tables.upsert(store, "skeletons", tables.from_rows("skeletons", poses))
    fields = ("tracklet_id", "first_frame", "last_frame", "pid", "camid")
    rows = [{name: getattr(part, name) for name in fields} for part in parts]
    more = {"dataset": "bench", "protocol": "bench", "split": "0", "role": "train", "camera": "c", "group": ""}
    tables.upsert(store, "splits", tables.from_rows("splits", [row | more for row in rows]))
    versions = {name: tables.current(store, name).version for name in ("crops", "skeletons", "splits")}
    label = {part.pid: part.pid for part in parts}
    dataset = ClipDataset(Snapshot("bench", store, versions, "5" * 64), parts, ClipConfig(), label)
    for path in (p for p in folder.rglob("*") if p.is_file()):  # only what is written can be dropped from memory
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return folder, dataset, [p for p in (folder / "store").rglob("*.lance") if p.is_file()]


def plan(seed):
    """For each batch, its requests."""
    rng = np.random.default_rng(seed)
    draw = sampling.restricted_random
    return [
        [ClipRequest(int(p), tuple(draw(FRAMES, T, rng).tolist()), True, int(rng.integers(2**62))) for p in drawn]
        for drawn in (rng.choice(TRACKLETS, CLIPS, replace=False) for _ in range(BATCHES))
    ]


def bundles_of(batches):
    """Batches as one process reads them: some in one call to the store."""
    return [batches[i : i + READ_AHEAD] for i in range(0, len(batches), READ_AHEAD)]


def paths(folder, request, ending):
    return [folder / f"t{request.part:04d}" / f"{at:05d}{ending}" for at in request.positions]


def read_files(folder, requests):
    """Bytes and skeletons of a batch, a file after the other."""
    images = [path.read_bytes() for r in requests for path in paths(folder, r, ".jpg")]
    poses = [json.loads(path.read_bytes())["keypoints"] for r in requests for path in paths(folder, r, ".json")]
    return images, np.array(poses, np.float32)


def read_store(dataset, bundle):
    """Bytes and skeletons of batches that are read in one call, as `ClipLoader` has them read.

    The skeletons are in memory, normalised: the store's key joins were paid when the data set was opened.
    """
    out = []
    for batch in dataset.read_batches(bundle):
        frames = [(dataset.frames[request.part], at) for request, at, _ in batch.clips]
        images = [batch.images[row] for part, at in frames for row in part.row[at].tolist()]
        out.append((images, np.concatenate([part.skeleton[at] for part, at in frames])))
    return out


def batch_of_files(folder, requests, clip, prepare):
    """A batch from files through this project's own augmentation; `prepare`: bytes -> (3, H, W) uint8."""
    images, poses = read_files(folder, requests)
    poses = torch.from_numpy(poses).view(CLIPS, T, 17, 3)
    crops, skeletons = [], []
    for i, (request, pose) in enumerate(zip(requests, poses, strict=True)):
        rng = np.random.default_rng(request.seed)
        pixels = torch.stack([prepare(image) for image in images[i * T : (i + 1) * T]])
        if rng.random() < clip.flip:
            pixels, pose = transforms.flip_clip(pixels, pose, COCO17)
        crops.append(torch.stack([transforms.erase(f, clip, rng) if rng.random() < clip.erase else f for f in pixels]))
        skeletons.append(pose)
    part = torch.tensor([r.part for r in requests])
    mask = torch.ones(CLIPS, T, dtype=torch.bool)
    return ClipBatch(
        transforms.normalise_crops(torch.stack(crops), clip), torch.stack(skeletons), mask, part, 0 * part, part
    )


def with_pillow(clip):
    def prepare(image):
        with Image.open(io.BytesIO(image)) as picture:
            resized = picture.convert("RGB").resize((clip.width, clip.height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1)

    return prepare


def with_our_decoder(clip):
    return lambda image: transforms.resize_crop(transforms.decode_crop(image, "bench"), clip)


def drop(dropped):
    """Drop files from the page cache; needs no rights."""
    for path in dropped:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def forget_files(folder, requests):
    drop([path for r in requests for ending in (".jpg", ".json") for path in paths(folder, r, ending)])


def in_memory(path):
    """Share of a file's pages in the page cache."""
    size = path.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as m,
    ):
        flags, address = (ctypes.c_ubyte * pages)(), ctypes.c_char.from_buffer(m)
        failed = ctypes.CDLL(None, use_errno=True).mincore(
            ctypes.c_void_p(ctypes.addressof(address)), ctypes.c_size_t(size), flags
        )
        del address
    assert not failed
    return sum(flag & 1 for flag in flags) / pages


def alternate(ways, bundles, before=lambda bundle: None):
    """Milliseconds a batch: the median over bundles of batches of the best of some rounds each.

    Alternated, so that a busy neighbour slows all alike; the best of rounds, since it slows what has threads most.
    """
    taken = {name: np.full(len(bundles), np.inf) for name in ways}
    for _ in range(ROUNDS):
        for i, bundle in enumerate(bundles):
            for name, way in ways.items():
                before(bundle)
                begun = time.perf_counter()
                way(bundle)
                taken[name][i] = min(taken[name][i], (time.perf_counter() - begun) / len(bundle))
    return {name: 1000 * float(np.median(seconds)) for name, seconds in taken.items()}


def report(capsys, title, median):
    own = median["store"]
    line = ", ".join(f"{name} {ms:.2f} ms ({ms / own:.2f}x)" for name, ms in median.items())
    with capsys.disabled():
        sys.stdout.write(f"\n{title}, a batch of {CLIPS} clips x {T}: {line}\n")


def measure(benchmark, *args):
    return benchmark.pedantic(alternate, args=args, rounds=1)


@pytest.mark.parametrize("cache", ["warm", "cold"])
def test_reading_alone(benchmark, world, capsys, cache, request):
    folder, dataset, store_files = world
    ways = {
        "files": lambda bundle: [read_files(folder, requests) for requests in bundle],
        "store": lambda bundle: read_store(dataset, bundle),
    }
    first, *bundles = bundles_of(plan(0)[:READ_AHEAD] + plan(1))
    for (images, _), (views, _) in zip(ways["files"](first), ways["store"](first), strict=True):
        assert images == views

    def forget(bundle):
        forget_files(folder, [r for requests in bundle for r in requests])
        drop(store_files)

    for bundle in bundles:
        for way in ways.values():
            way(bundle)
    if cache == "cold":
        looked_at = [store_files[0], paths(folder, first[0][0], ".jpg")[0]]
        assert min(map(in_memory, looked_at)) > 0
        forget(first)
        assert max(map(in_memory, looked_at)) == 0
    median = measure(benchmark, ways, bundles, *([forget] if cache == "cold" else []))
    report(capsys, f"{request.node.callspec.id}, reading alone", median)


@pytest.mark.parametrize("cache", ["warm", "cold"])
def test_end_to_end(benchmark, world, capsys, cache, request):
    folder, dataset, store_files = world
    ways = {
        "files, Pillow": lambda b: [batch_of_files(folder, r, dataset.clip, with_pillow(dataset.clip)) for r in b],
        "files, OpenCV": lambda b: [batch_of_files(folder, r, dataset.clip, with_our_decoder(dataset.clip)) for r in b],
        "store": lambda bundle: [dataset.decode_batch(batch) for batch in dataset.read_batches(bundle)],
    }
    bundles = bundles_of(plan(2)[: 2 * READ_AHEAD])
    made = {name: way(bundles[0][:2]) for name, way in ways.items()}
    # The same pixels: only where they lie differs.
    assert all(torch.equal(f.crops, s.crops) for f, s in zip(made["files, OpenCV"], made["store"], strict=True))

    def forget(bundle):
        forget_files(folder, [r for requests in bundle for r in requests])
        drop(store_files)

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    try:
        median = measure(benchmark, ways, bundles, *([forget] if cache == "cold" else []))
    finally:
        torch.set_num_threads(before)
    report(capsys, f"{request.node.callspec.id}, end to end", median)
    with capsys.disabled():
        sys.stdout.write(f"  {CLIPS * 1000 / median['store']:.0f} clips of {T} crops a second per core\n")
