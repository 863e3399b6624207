"""Six seconds of the shipped video, and the rows that the shipped pose model makes of them."""

import importlib.util
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

import csip
from csip import tables
from csip.config import DetectConfig, ExtractConfig, RuntimeConfig
from csip.ingest.extract import extract_videos
from csip.ingest.pose import Seen
from csip.ingest.pose_openvino import import_openvino
from csip.ingest.records import extract_digests
from csip.ingest.video import probe
from csip.types import Output, People, SourceVideo

SHIPPED = Path(csip.__file__).parent / "assets" / "pedestrians.mp4"
# The third group of pictures, where an image size of 640 finds four people that last.
FIRST, TICKS, COUNT = 500, 1024, 60
CONFIG = ExtractConfig(detect=DetectConfig(image_size=640))
RUNTIME = RuntimeConfig(device="cpu", pose_engine="pytorch")


def copy_packets(target):
    """Copy at least COUNT frames from the middle of the shipped video, packet by packet: the pictures stay equal."""
    with av.open(str(SHIPPED)) as source, av.open(str(target), "w") as made:
        stream = source.streams.video[0]
        copied = made.add_stream_from_template(stream)
        held = []
        for packet in source.demux(stream):
            # From the key frame on, and no further than to where no frame between is missing.
            if packet.pts is None or packet.pts < FIRST * TICKS or not (held or packet.is_keyframe):
                continue
            held.append(packet)
            if len(held) >= COUNT and max(p.pts for p in held) == (FIRST + len(held) - 1) * TICKS:
                break
        for packet in held:
            packet.pts, packet.dts, packet.stream = packet.pts - FIRST * TICKS, packet.dts - FIRST * TICKS, copied
            made.mux(packet)
    return target


def source_video(path, camera="street"):
    info = probe(path)
    return SourceVideo(info.sha256, str(path), camera, info.duration)


def extract(store, videos, config=CONFIG, runtime=RUNTIME):
    """Run the stage to its end; return its progress and its outcome."""
    tables.prepare_store(str(store))
    stage = extract_videos(Output(str(store), "run-0"), tuple(videos), extract_digests(config), config, runtime)
    records = []
    while True:
        try:
            records.append(next(stage))
        except StopIteration as end:
            return records, end.value


def all_rows(store, *names):
    """Rows of whole tables, by table."""
    return {name: tables.read(tables.current(str(store), name)).to_pylist() for name in names}


class ReplayedPose:
    """A pose model that knows its answers: what `detections` holds of a video."""

    device, engine, image_size, lanes = "cpu", "replayed", 640, 1

    def __init__(self, store):
        self._people = {}
        for row in tables.read(tables.current(str(store), "detections")).to_pylist():
            self._people.setdefault(row["frame_index"], []).append(row)
        self.calls = 0

    def start(self, frames):
        job = Future()
        job.set_result(Seen(self(frames), 0.0))
        return [job]

    def __call__(self, frames):
        self.calls += 1
        return [self._answer(self._people.get(int(index), [])) for index in frames.frame_index]

    @staticmethod
    def _answer(rows):
        shaped = {"box": (-1, 4), "score": (-1,), "keypoints": (-1, 17, 3)}
        return People(*(np.array([r[k] for r in rows], np.float32).reshape(shape) for k, shape in shaped.items()))


@pytest.fixture(autouse=True, scope="session")
def no_weights_of_the_users(tmp_path_factory):
    """The shipped weights, not some of the same name in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CSIP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


_CORES = []


@pytest.fixture(autouse=True, scope="session")
def cores_that_stay():
    """Keep every OpenVINO Core that ultralytics makes; `csip.ingest.pose_openvino` says what happens when they go."""
    if importlib.util.find_spec("openvino") is None:
        yield
        return
    core = import_openvino().Core
    made = core.__init__

    def keep(self, *args, **kwargs):
        made(self, *args, **kwargs)
        _CORES.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "__init__", keep)
        yield


@pytest.fixture(scope="session")
def street(tmp_path_factory):
    """The video, as a source."""
    return source_video(copy_packets(tmp_path_factory.mktemp("street") / "street.mp4"))


@pytest.fixture(scope="session")
def extracted(street, tmp_path_factory):
    """The street in a store, by the real pose model; read-only."""
    store = tmp_path_factory.mktemp("extracted") / "store"
    records, outcome = extract(store, [street])
    return SimpleNamespace(store=store, records=records, outcome=outcome)


@pytest.fixture
def replayed(extracted, monkeypatch):
    """The model's answers without the model; `calls` counts its batches."""
    model = ReplayedPose(extracted.store)
    monkeypatch.setattr("csip.ingest.detect_pass.PoseModel", lambda *_, **__: model)
    return model


@pytest.fixture(scope="session")
def steps():
    """What the tests do with a store."""
    return SimpleNamespace(extract=extract, rows=all_rows, source=source_video, config=CONFIG, runtime=RUNTIME)
