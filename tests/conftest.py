"""What every test stands on: an environment without network and telemetry, and a tiny published snapshot.

The snapshot is made by hand through `csip.tables`, so that a test knows each pixel and joint of it: a crop's colour
says which tracklet and which of its frames it shows, a skeleton's breadth and nose say the same in torso lengths.
"""

import atexit
import dataclasses
import importlib.util
import io
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.browser import FLAGS, find_chromium

# Before any test imports csip, Prefect or ultralytics: they read it on import.
_PREFECT_HOME = tempfile.mkdtemp(prefix="csip-tests-prefect-")
atexit.register(shutil.rmtree, _PREFECT_HOME, ignore_errors=True)
# Not that of the user, and not that of the process which distributes the tests: each of its workers has one of its own.
os.environ["PREFECT_HOME"] = _PREFECT_HOME
for _name, _value in {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_V2_ENABLED": "false",
    "YOLO_OFFLINE": "true",
}.items():
    os.environ.setdefault(_name, _value)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `--dist loadfile` the files of flows that look at the demo go to one process, as if they were one file.

    The demo takes a minute to make, and its runs are known to the server of the process that made it.
    """
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    files = Path(__file__).parent.glob("flows/test_*.py")
    sharing = {path.name for path in files if re.search(r"^def \w+\([^)]*\bdemo\b", path.read_text(), re.MULTILINE)}

    class FilesScheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            folder, _, name = file.rpartition("/")
            return "the demo" if folder == "tests/flows" and name in sharing else file

    return FilesScheduling(config, log)


# A standing person in torso lengths, root-centred, COCO-17: shoulders a torso above the hips, the left hand hanging
# lower than the right one, so that a mirror image is another picture.
TEMPLATE = (
    *((0.0, -1.6), (0.05, -1.65), (-0.05, -1.65), (0.1, -1.6), (-0.1, -1.6), (0.2, -1.0), (-0.2, -1.0)),
    *((0.3, -0.5), (-0.3, -0.5), (0.3, 0.3), (-0.3, 0.0), (0.1, 0.0), (-0.1, 0.0)),
    *((0.1, 0.8), (-0.1, 0.8), (0.1, 1.6), (-0.1, 1.6)),
)
NOSE, LEFT_WRIST = 0, 9  # in TEMPLATE


@dataclasses.dataclass(frozen=True)
class Walk:
    """One tracklet of the tiny store; `parts` are (first position, last position), all of it where empty."""

    tracklet_id: str
    pid: int
    camid: int
    role: str
    frames: tuple[int, ...]
    parts: tuple[tuple[int, int], ...] = ()
    without_row: tuple[int, ...] = ()  # positions that have no row in `skeletons`
    unsure: tuple[int, ...] = ()  # positions whose every joint has confidence .1
    group: str = ""


# Labels by ascending pid: 4 -> 0, 7 -> 1, 30 -> 2, 100 -> 3. Camera 2 never trains.
WALKS = (
    Walk("p30-a", 30, 0, "train", tuple(range(100, 109)), unsure=(3,)),
    Walk("p30-b", 30, 1, "train", (0, 1, 2)),
    Walk("p4-a", 4, 0, "train", (10, 11, 12, 15, 16, 17, 18)),
    Walk("p4-b", 4, 1, "train", tuple(range(12)), parts=((0, 5), (6, 11))),
    Walk("p100-a", 100, 0, "train", tuple(range(8))),
    Walk("p100-b", 100, 1, "train", tuple(range(50, 58)), without_row=(0, 2, 3, 4, 5, 6, 7)),
    Walk("p7-a", 7, 0, "train", tuple(range(6)), without_row=tuple(range(6))),
    Walk("p7-b", 7, 1, "train", tuple(range(5)), unsure=tuple(range(5))),
    Walk("p55-a", 55, 0, "query", tuple(range(6))),
    Walk("p55-b", 55, 2, "gallery", tuple(range(6))),
    Walk("p2-a", 2, 1, "query", tuple(range(7))),
    Walk("p2-b", 2, 2, "gallery", tuple(range(7))),
)


def colour(number, position):
    """RGB of the crop at a position of the numbered tracklet."""
    return (10 + 20 * number, 10 + 12 * position, 128)


def shown(pixels):
    """Read tracklet number and position back from a crop (3, H, W) of values 0..255; JPEG shifts them a little."""
    red, green = float(pixels[0].mean()), float(pixels[1].mean())
    return round((red - 10) / 20), round((green - 10) / 12)


def skeleton(number, position):
    """(17, 2) root-centred, in torso lengths: the nose's x is the position, the person's breadth the tracklet."""
    points = np.array(TEMPLATE, dtype=np.float32)
    points[:, 0] *= 0.5 + number
    points[NOSE, 0] = 0.1 * position
    return points


def crop_rows(number, walk):
    for position, frame in enumerate(walk.frames):
        image = io.BytesIO()
        Image.new("RGB", (12, 20), colour(number, position)).save(image, format="JPEG", quality=95)
        yield {
            "tracklet_id": walk.tracklet_id,
            "frame_index": frame,
            "time": frame / 25,
            "box": [30.0, 10.0, 70.0, 110.0],
            "score": 0.9,
            "media_type": "image/jpeg",
            "image": image.getvalue(),
        }


def skeleton_rows(number, walk):
    for position, frame in enumerate(walk.frames):
        if position in walk.without_row:
            continue
        # People walk along, and each tracklet is seen from another distance.
        points = np.array([50 + 3 * position, 60]) + (20 + number) * skeleton(number, position)
        sure = 0.1 if position in walk.unsure else 0.9
        yield {
            "tracklet_id": walk.tracklet_id,
            "frame_index": frame,
            "extractor_digest": "e" * 64,
            "has_skeleton": True,
            "layout": "coco17",
            "keypoints": [[float(x), float(y), sure] for x, y in points],
        }


def split_rows(name, walk):
    for first, last in walk.parts or ((0, len(walk.frames) - 1),):
        yield {
            "dataset": name,
            "protocol": "tiny",
            "split": "0",
            "tracklet_id": walk.tracklet_id,
            "first_frame": walk.frames[first],
            "last_frame": walk.frames[last],
            "role": walk.role,
            "group": walk.group,
            "pid": walk.pid,
            "camid": walk.camid,
            "camera": f"cam{walk.camid}",
        }


def tracklet_row(walk):
    first, last = walk.frames[0], walk.frames[-1]
    return {
        "tracklet_id": walk.tracklet_id,
        "video_sha": f"{walk.camid:064d}",
        "track_digest": "d" * 64,
        "first_frame": first,
        "last_frame": last,
        "first_time": first / 25,
        "last_time": last / 25,
        "num_frames": len(walk.frames),
        "keypoint_confidence": 0.9,
        "pid": walk.pid,
        "begins": "unknown",
        "ends": "unknown",
        "interpolated_frames": 0,
    }


def video_row(camid):
    return {
        "video_sha": f"{camid:064d}",
        "path": f"/videos/cam{camid}.mp4",
        "bytes": 1000,
        "codec": "h264",
        "width": 640,
        "height": 480,
        "fps": 25.0,
        "expected_frames": 200,
        "num_frames": 200,
        "duration": 8.0,
        "status": "ok",
        "reason": "",
    }


def publish_walks(store, walks, name):
    """Write walks to a store and publish them; no table's rows lie in the order of its key, nor in another's."""
    from csip import tables
    from csip.types import Snapshot

    tables.prepare_store(store)
    numbered = list(enumerate(walks))
    cameras = {walk.camid for walk in walks}
    tables.upsert(store, "videos", tables.from_rows("videos", map(video_row, cameras)))
    tables.upsert(store, "tracklets", tables.from_rows("tracklets", map(tracklet_row, walks)))
    for half in (numbered[1::2], numbered[::2]):
        rows = [row for number, walk in half for row in crop_rows(number, walk)]
        tables.upsert(store, "crops", tables.from_rows("crops", rows[3:] + rows[:3]))
    # Writing the first walk again moves its rows behind all others.
    tables.upsert(store, "crops", tables.from_rows("crops", crop_rows(0, walks[0])))
    poses = [row for number, walk in numbered for row in skeleton_rows(number, walk)]
    tables.upsert(store, "skeletons", tables.from_rows("skeletons", poses[::-1]))
    splits = [row for walk in walks for row in split_rows(name, walk)]
    tables.upsert(store, "splits", tables.from_rows("splits", splits[::-1]))
    pins = ("videos", "tracklets", "crops", "skeletons", "splits")
    versions = {table: tables.current(store, table).version for table in pins}
    snapshot = Snapshot(name, store, versions, digest="5" * 64)
    tables.publish(snapshot, config={}, counts={}, videos=[f"{camid:064d}" for camid in cameras])
    return snapshot


def run_stage(stage):
    """Run a stage function's generator to its end: its progress records, heartbeats left out, and its outcome."""
    records = []
    while True:
        try:
            record = next(stage)
        except StopIteration as end:
            return records, end.value
        if record.values or record.unit != "epochs":
            records.append(record)


@pytest.fixture(scope="session")
def tiny():
    """How the tiny store is made, and the sections of a recipe that trains on it in a second."""
    from csip.config import ClipConfig, ModelConfig, RuntimeConfig

    return SimpleNamespace(
        Walk=Walk,
        walks=WALKS,
        number={walk.tracklet_id: number for number, walk in enumerate(WALKS)},
        colour=colour,
        shown=shown,
        skeleton=skeleton,
        publish=publish_walks,
        nose=NOSE,
        left_wrist=LEFT_WRIST,
        # Pixels come out as they are, over 255, so that a test can read a crop's colour back.
        plain_clip=ClipConfig(frames=4, height=32, width=16, mean=(0, 0, 0), std=(1, 1, 1)),
        clip=ClipConfig(frames=4, height=32, width=16),
        model=ModelConfig(
            image_encoder="vit_tiny_patch16_224",
            image_weights="none",
            image_depth=1,
            image_width=32,
            image_heads=2,
            width=32,
            joint_layers=1,
            joint_heads=2,
            joint_dropout=0.1,
            graph_positions=4,
            prototype_layers=1,
            prototype_heads=2,
            temporal_heads=2,
        ),
        runtime=RuntimeConfig(device="cpu", encode_batch=5),
        seed=0,
    )


@pytest.fixture
def one_thread():
    """Tiny matrices gain nothing from threads, and lose much where cores are shared."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_folder():
    """Give the function that writes a small but complete copy of a benchmark: make_folder("mars")(root, ...)."""

    def named(name):
        path = Path(__file__).parent / "makers" / f"{name}_folder.py"
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.make

    return named


@pytest.fixture(scope="session")
def run():
    return run_stage


@pytest.fixture(scope="session")
def tiny_snapshot(tmp_path_factory):
    """The tiny store, published; shared by all tests, so nothing may write to it."""
    return publish_walks(str(tmp_path_factory.mktemp("tiny") / "store"), WALKS, "tiny")


@pytest.fixture(scope="session")
def publish_tiny():
    """Publish the tiny snapshot into a store: publish_tiny(store)."""
    return lambda store: publish_walks(store, WALKS, "tiny")


@pytest.fixture
def tiny_store(tmp_path):
    """A tiny store of one's own."""
    return publish_walks(str(tmp_path / "tiny-store"), WALKS, "tiny")


@pytest.fixture
def out(tmp_path):
    """An empty store for a stage to write to."""
    from csip import tables
    from csip.types import Output

    store = str(tmp_path / "out")
    tables.prepare_store(store)
    return Output(store, "run-1")


@pytest.fixture(scope="session")
def untrained(tiny, tiny_snapshot, tmp_path_factory):
    """A checkpoint with initial weights for the tiny snapshot; read-only."""
    from csip.config import ValidateConfig
    from csip.training.pretrain import initialise
    from csip.types import Output

    store = str(tmp_path_factory.mktemp("untrained"))
    stage = initialise(Output(store, "run-0"), tiny_snapshot, tiny.clip, tiny.model, ValidateConfig(), tiny.seed)
    return run_stage(stage)[1].value


@pytest.fixture(scope="session")
def grown(untrained, tmp_path_factory):
    """The untrained checkpoint with all that stage 2 adds, prototypes drawn by lot; read-only."""
    import torch

    from csip.models.checkpoints import CheckpointHeader, add_heads, load_checkpoint, save_checkpoint

    network, header = load_checkpoint(untrained)
    network, spec = add_heads(network, header.spec, prototypes="pfu", temporal=True, seed=1)
    drawn = torch.Generator().manual_seed(2)
    network.set_prototypes(*(torch.randn(network.visual_prototypes.shape, generator=drawn) for _ in range(2)))
    header = CheckpointHeader(spec, "stage2", untrained.sha256, config={})
    return save_checkpoint(network, header, tmp_path_factory.mktemp("grown"))


@pytest.fixture(scope="session")
def tiny_features(tiny, tiny_snapshot, untrained, tmp_path_factory):
    """The features of the tiny snapshot under the untrained checkpoint; read-only."""
    from csip import tables
    from csip.training.features import cache_features
    from csip.types import Output

    store = str(tmp_path_factory.mktemp("features") / "store")
    tables.prepare_store(store)
    return run_stage(cache_features(Output(store, "run-0"), untrained, tiny_snapshot, tiny.runtime))[1].value


@pytest.fixture
def chromium(tmp_path):
    """Run headless Chromium on a page, with a profile of its own; return what it wrote to standard output."""
    found = find_chromium()

    def run(page, *options):
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        command = [found, *FLAGS, profile, *options, Path(page).as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            pytest.fail(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    return run
