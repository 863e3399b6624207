"""Walkers, a synthetic benchmark: people with known gait, build and clothes walk past several cameras.

Some of them are twins: they wear the same, and only how they are built and how they walk tells them apart. Everything
is a pure function of the settings, the person, the camera and the pass, in any order and process.

Shapes: T frames, J joints, H W pixels.
"""

from __future__ import annotations

import functools
import io
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from csip.config import WalkersConfig
from csip.errors import TooLittleDataError
from csip.ingest.benchmarks.records import Benchmark, BenchmarkTracklet, Role, SplitRow
from csip.ingest.benchmarks.walkers_camera import HEIGHT, NOISE_MARGIN, WIDTH, make_camera
from csip.ingest.benchmarks.walkers_drawing import Figure, Scene, Window, figure, hidden, render
from csip.ingest.benchmarks.walkers_gait import JOINTS, Points, walk
from csip.ingest.benchmarks.walkers_people import Person, draw, make_person
from csip.joints import COCO17, H36M17
from csip.plain import digest
from csip.protocols import WALKERS
from csip.types import FloatArray

WALKERS_VERSION: Final = 1
"""Raise it when a change to any of the Walkers modules changes rows; `test_walkers.py` says when."""

TWINS: Final = "twins"
FPS: Final = 10.0
_BOX_MARGIN = 0.03  # around the body, as a share of its height
# Of the noise of joints and boxes, half the variance stays for a whole pass: a pose model errs alike from frame to
# frame, and the mean over a clip does not undo it.
_STEADY = 0.5


@dataclass(frozen=True, slots=True)
class People:
    """Who there is.

    Attributes:
        twin: twin[pid] is the one who wears the same; None without one.
        test: pids of those held out for query and gallery.
    """

    twin: tuple[int | None, ...]
    test: frozenset[int]


def deal(config: WalkersConfig) -> People:
    """Draw who are twins and who is held out; twins stay together, and both sides get their share of them.

    Raises:
        TooLittleDataError: fewer than two people to train on or to test on.
    """
    order = draw(config.seed, "people").permutation(config.people).tolist()
    pairs = math.floor(config.twins * config.people / 2 + 0.5)
    pairs = min(pairs, config.people // 2)
    twin: list[int | None] = [None] * config.people
    for a, b in zip(order[: 2 * pairs : 2], order[1 : 2 * pairs : 2], strict=True):
        twin[a], twin[b] = b, a
    wanted = math.floor(config.test_fraction * config.people + 0.5)
    test_pairs = min(math.floor(config.test_fraction * pairs + 0.5), wanted // 2)
    singles = order[2 * pairs :]
    test = {*order[: 2 * test_pairs], *singles[: wanted - 2 * test_pairs]}
    if min(len(test), config.people - len(test)) < 2:
        raise TooLittleDataError(
            f"Walkers of {config.people} people with test_fraction {config.test_fraction}: {config.people - len(test)} "
            f"to train on and {len(test)} to test on, expected at least two of each. Bring walkers.test_fraction "
            "nearer to one half, or raise walkers.people."
        )
    return People(tuple(twin), frozenset(test))


def walkers(config: WalkersConfig) -> Benchmark:
    """Describe the benchmark that a configuration makes; nothing is drawn yet.

    Of a test person's passes before each camera the first asks and the others answer; all passes of the others train.
    """
    people = deal(config)
    content = digest("walkers", WALKERS_VERSION, config)
    rows: dict[str, SplitRow] = {}
    where: dict[str, tuple[Person, int, int]] = {}
    for pid, twin in enumerate(people.twin):
        person = make_person(config.seed, pid, twin)
        for camid in range(config.cameras):
            for number in range(config.passes):
                name = f"{content[:12]}-{pid:05d}-{camid:02d}-{number:02d}"
                role: Role = "train" if pid not in people.test else "query" if number == 0 else "gallery"
                group = "" if twin is None else TWINS
                rows[name] = SplitRow(name, WALKERS, "0", role, pid, camid, f"camera-{camid}", group)
                where[name] = (person, camid, number)

    def load(name: str) -> BenchmarkTracklet:
        return make_tracklet(config, name, *where[name])

    facts = {"name": "walkers", "units": "frame pixels" if config.layout == COCO17.name else "metres"}
    return Benchmark("walkers", content, tuple(rows.values()), load, config.layout, facts)


def make_scene(config: WalkersConfig, person: Person, camid: int, number: int) -> Scene:
    """Let a person walk past a camera: with a start, heading, pace and light of this pass's own."""
    rng = draw(config.seed, "pass", person.pid, camid, number)
    camera = _camera(config.seed, camid)
    pace = rng.uniform(0.95, 1.05)
    time = np.asarray(pace * (np.arange(config.frames) - (config.frames - 1) / 2) / FPS, dtype=np.float64)
    joints = walk(person, time, rng.uniform())
    heading = np.pi / 2 + np.radians(rng.uniform(-10, 10))
    cos, sin = np.cos(heading), np.sin(heading)
    turned = joints @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    placed = turned + np.array([rng.uniform(-0.6, 0.6), rng.uniform(-0.4, 0.4), 0.0])
    warmth = rng.normal(0, 0.025)
    gain = rng.uniform(0.9, 1.1) * np.array([1 + warmth, 1.0, 1 - warmth])
    bar: Window | None = None
    grey = int(rng.integers(40, 200))
    noise_at = rng.integers(0, NOISE_MARGIN, (config.frames, 2))
    covered, when, side, breadth = rng.random(4)
    if covered < config.occlusion:
        # A post, where the person is at some time, and never broad enough to hide all of it.
        pelvis = camera.project(placed[:, 0])[int(when * config.frames)]
        unit = camera.focal / pelvis[2]  # pixels a metre
        half = (0.06 + 0.09 * breadth) * unit
        middle = pelvis[0] + (side - 0.5) * 0.5 * unit
        bar = (round(middle - half), 0, round(middle + half), HEIGHT)
    return Scene(config.seed, camid, camera, person, placed, gain, noise_at, bar, (grey, grey, grey))


_camera = functools.lru_cache(maxsize=128)(make_camera)


def make_tracklet(config: WalkersConfig, name: str, person: Person, camid: int, number: int) -> BenchmarkTracklet:
    """Make all of one pass: boxes, crops and skeletons, as a detector and a pose model would have left them."""
    scene = make_scene(config, person, camid, number)
    drawn = figure(scene)
    rng = draw(config.seed, "sight", person.pid, camid, number)
    boxes = _boxes(config, drawn, rng)
    joints_2d = keypoints_2d(config, scene, drawn, rng)
    joints_3d = skeletons_3d(config, scene, rng)
    has_skeleton = rng.random(config.frames) >= config.missing_frames
    keypoints = joints_2d if config.layout == COCO17.name else joints_3d
    images = [render(scene, drawn, t, _window(box)) for t, box in enumerate(boxes)]
    confident = joints_2d[:, :, 2].mean() if config.layout == COCO17.name else has_skeleton.mean()
    return BenchmarkTracklet(
        tracklet_id=name,
        pid=person.pid,
        camid=camid,
        frame_index=np.arange(config.frames, dtype=np.int64),
        time=np.arange(config.frames) / FPS,
        boxes=boxes,
        score=np.clip(rng.normal(0.9, 0.04, config.frames), 0, 1).astype(np.float32),
        images=tuple(_encode(image, config.jpeg_quality) for image in images),
        media_types=("image/jpeg",) * config.frames,
        layout=config.layout,
        keypoints=np.where(has_skeleton[:, None, None], keypoints, 0).astype(np.float32),
        has_skeleton=has_skeleton,
        keypoint_confidence=float(confident),
    )


def _boxes(config: WalkersConfig, drawn: Figure, rng: np.random.Generator) -> FloatArray:
    """Box the person in with a margin, as imprecisely as a detector does; (T, 4), whole pixels inside the frame."""
    tight = drawn.extent()
    height = (tight[:, 3] - tight[:, 1])[:, None]
    noise = _noise(rng, config.box_noise, (config.frames, 4))
    loose = tight + height * (_BOX_MARGIN * np.array([-1, -1, 1, 1]) + noise)
    least = np.clip(np.floor(loose[:, :2]), 0, [WIDTH - 2, HEIGHT - 2])
    most = np.clip(np.ceil(loose[:, 2:]), least + 2, [WIDTH, HEIGHT])
    return np.concatenate([least, most], axis=1).astype(np.float32)


def _window(box: FloatArray) -> Window:
    x1, y1, x2, y2 = (int(edge) for edge in box)
    return (x1, y1, x2, y2)


def _noise(rng: np.random.Generator, sigma: float, shape: tuple[int, ...]) -> Points:
    """Draw noise of standard deviation `sigma`; axis 0 is time, and part of the noise does not change with it."""
    steady, own = rng.normal(0, 1, (1, *shape[1:])), rng.normal(0, 1, shape)
    return np.asarray(sigma * (math.sqrt(_STEADY) * steady + math.sqrt(1 - _STEADY) * own))


def keypoints_2d(config: WalkersConfig, scene: Scene, drawn: Figure, rng: np.random.Generator) -> Points:
    """See a pass as a 2D pose model does: (T, 17, 3) COCO joints, x and y in frame pixels, confidence 0..1.

    Hidden joints are placed worse and less surely; those that are missing carry a confidence under 0.2.
    """
    exact = scene.camera.project(coco17(scene.joints))[:, :, :2]
    extent = drawn.extent()
    height = (extent[:, 3] - extent[:, 1])[:, None, None]
    covered = hidden(scene, drawn, COCO17.joints)
    if scene.bar is not None:
        covered |= (exact[:, :, 0] >= scene.bar[0]) & (exact[:, :, 0] < scene.bar[2])
    missing = rng.random(covered.shape) < config.missing_joints * np.where(covered, 3, 1)
    worse = np.where(missing, 8.0, np.where(covered, 2.5, 1.0))[:, :, None]
    points = exact + height * worse * _noise(rng, config.keypoint_noise, exact.shape)
    sure = rng.normal(np.where(covered, 0.55, 0.9), np.where(covered, 0.12, 0.05)).clip(0, 1)
    confidence = np.where(missing, rng.uniform(0.02, 0.2, covered.shape), sure)
    return np.concatenate([points, confidence[:, :, None]], axis=2)


def skeletons_3d(config: WalkersConfig, scene: Scene, rng: np.random.Generator) -> Points:
    """See a pass as a 3D pose model does: (T, 17, 3) Human3.6M joints from the pelvis, metres along the camera's axes.

    One camera cannot tell a tall person from a near one: a pass is too large or too small as a whole.
    """
    joints = scene.joints[:, : len(H36M17.joints)]
    turned = (joints - joints[:, :1]) @ scene.camera.rotation.T
    size = 1 + rng.normal(0, config.scale_noise)
    return np.asarray(size * turned + _noise(rng, config.joint_noise, turned.shape))


def coco17(joints: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Pick COCO's joints out of (T, J, 3), `JOINTS` in order."""
    return joints[:, [JOINTS.index(name) for name in COCO17.joints]]


def _encode(pixels: npt.NDArray[np.uint8], quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def render_frame(config: WalkersConfig, person: Person, camid: int, number: int, frame: int) -> npt.NDArray[np.uint8]:
    """Draw a whole frame of a pass, (H, W, 3) uint8 RGB; its crops show regions of it."""
    scene = make_scene(config, person, camid, number)
    return render(scene, figure(scene), frame, (0, 0, WIDTH, HEIGHT))
