"""The cameras of Walkers: where they stand, how they map the world to pixels, what light falls in.

Shapes: N points, H W pixels of a frame. World axes: x and y on the floor, z up, metres; everybody walks along +y, more
or less, past the origin. Camera axes: x right, y down, z ahead.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from csip.ingest.benchmarks.walkers_gait import Points
from csip.ingest.benchmarks.walkers_people import draw

WIDTH: Final = 768
HEIGHT: Final = 576
SCALE: Final = 2
"""People are drawn this many times larger, then shrunk: Pillow draws without smoothing."""

NOISE_MARGIN: Final = 64
"""A camera's field of noise is this much larger than a frame; each frame shows another part of it."""

# Where people go, as the camera sees them: to it, past it, askance, away from it; degrees from the walking direction.
_VIEWS = (12.0, 90.0, 45.0, 168.0, -90.0, -45.0, 135.0, -135.0)


@dataclass(frozen=True, slots=True, eq=False)
class Camera:
    """A pinhole camera and its light.

    Attributes:
        name: "camera-0", ...
        position: (3,) metres.
        rotation: (3, 3) world axes to camera axes.
        focal: focal length, pixels.
        gain: (3,) factor of red, green and blue.
        gamma: exponent of the response.
        noise: standard deviation, 0..255.
        blur: radius, pixels.
    """

    name: str
    position: Points
    rotation: Points
    focal: float
    gain: Points
    gamma: float
    noise: float
    blur: float

    def to_camera(self, points: Points) -> Points:
        """Turn world points (..., 3) into camera axes, metres from the camera."""
        return np.asarray((points - self.position) @ self.rotation.T)

    def project(self, points: Points) -> Points:
        """Map world points (..., 3) to (..., 3): x and y in frame pixels, and the distance ahead in metres."""
        seen = self.to_camera(points)
        depth = seen[..., 2:]
        pixels = self.focal * seen[..., :2] / depth + np.array([WIDTH / 2, HEIGHT / 2])
        return np.concatenate([pixels, depth], axis=-1)


def look(position: Points, target: Points) -> Points:
    """Give the rotation (3, 3), world to camera, of a level camera at `position` that looks at `target`."""
    ahead = (target - position) / np.linalg.norm(target - position)
    right = np.cross(ahead, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(ahead, right), ahead])


def make_camera(seed: int, camid: int) -> Camera:
    """Make a camera from the seed and its number."""
    rng = draw(seed, "camera", camid)
    azimuth = np.radians(_VIEWS[camid % len(_VIEWS)] + rng.uniform(-8, 8))
    away, height = rng.uniform(7.8, 9.4), rng.uniform(2.2, 3.6)
    position = np.array([away * np.sin(azimuth), away * np.cos(azimuth), height])
    target = np.array([rng.uniform(-0.4, 0.4), rng.uniform(-0.3, 0.3), rng.uniform(0.8, 1.1)])
    warmth = rng.uniform(-0.06, 0.06)
    gain = rng.uniform(0.88, 1.12) * np.array([1 + warmth, 1.0, 1 - warmth])
    return Camera(
        name=f"camera-{camid}",
        position=position,
        rotation=look(position, target),
        focal=float(rng.uniform(540, 620)),
        gain=gain,
        gamma=float(rng.uniform(0.88, 1.14)),
        noise=float(rng.uniform(2, 6)),
        blur=float(rng.uniform(0.2, 0.7)),
    )


@functools.lru_cache(maxsize=8)
def background(seed: int, camid: int) -> npt.NDArray[np.uint8]:
    """Paint what a camera sees without people, (SCALE x H, SCALE x W, 3) uint8 RGB, before its light."""
    rng = draw(seed, "background", camid)
    camera = make_camera(seed, camid)
    rows = (np.arange(HEIGHT) + 0.5 - HEIGHT / 2) / camera.focal
    columns = (np.arange(WIDTH) + 0.5 - WIDTH / 2) / camera.focal
    rays = np.stack([*np.broadcast_arrays(columns[None, :], rows[:, None]), np.ones((HEIGHT, WIDTH))], axis=-1)
    down = rays @ camera.rotation[:, 2]  # the world's z of every ray
    reach = np.where(down < -0.02, -camera.position[2] / np.minimum(down, -0.02), np.inf)
    on_floor = reach < rng.uniform(12, 16)
    ground = camera.position[:2] + np.where(on_floor, reach, 0)[..., None] * (rays @ camera.rotation[:, :2])
    # Greys with a tint: places are duller than clothes.
    floor, wall, trim = rng.uniform(85, 150, (3, 1)) * rng.uniform(0.94, 1.06, (3, 3))
    tile = rng.uniform(0.6, 1.6)
    checks = ((ground // tile).sum(axis=-1) % 2)[..., None] * rng.uniform(4, 26)
    joints = ((ground % tile).min(axis=-1) < 0.05)[..., None] * rng.uniform(10, 40)
    panel = rng.uniform(50, 140)
    panels = ((np.arange(WIDTH) % panel) < 0.5 * panel)[None, :, None] * (trim - wall) * rng.uniform(0.2, 0.9)
    picture = np.where(on_floor[..., None], floor + checks - joints, wall + panels)
    coarse = Image.fromarray(rng.normal(128, 30, (HEIGHT // 24, WIDTH // 24)).clip(0, 255).astype(np.uint8))
    patches = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.float64) - 128
    picture = (picture + 0.7 * patches[..., None]).clip(0, 255).astype(np.uint8)
    smooth = Image.fromarray(picture).filter(ImageFilter.GaussianBlur(1))
    return np.asarray(smooth).repeat(SCALE, axis=0).repeat(SCALE, axis=1)


@functools.lru_cache(maxsize=8)
def noise_field(seed: int, camid: int) -> npt.NDArray[np.int16]:
    """Draw a camera's sensor noise, (H + NOISE_MARGIN, W + NOISE_MARGIN, 1) int16."""
    sigma = make_camera(seed, camid).noise
    shape = (HEIGHT + NOISE_MARGIN, WIDTH + NOISE_MARGIN, 1)
    return np.rint(draw(seed, "noise", camid).normal(0, sigma, shape)).astype(np.int16)


def response(camera: Camera, gain: Points) -> list[int]:
    """Tabulate a camera's response to red, green and blue 0..255 under a light of `gain` (3,), as Pillow wants it."""
    level = np.arange(256) / 255
    curves = [(level * factor).clip(0, 1) ** camera.gamma for factor in camera.gain * gain]
    return [int(value) for value in np.rint(255 * np.concatenate(curves))]
