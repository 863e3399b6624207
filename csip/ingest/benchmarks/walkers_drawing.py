"""Drawing Walkers: a body as solids around its joints, a scene as the pixels of any window of its frames.

Shapes: T frames, J joints, P solids of a person, K corners of an outline, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from csip.ingest.benchmarks.walkers_camera import HEIGHT, SCALE, WIDTH, Camera, background, noise_field, response
from csip.ingest.benchmarks.walkers_gait import JOINTS, Points
from csip.ingest.benchmarks.walkers_people import Colour, Person

Window = tuple[int, int, int, int]

_ARC = 7  # corners of each of an outline's two arcs
_BLUR_MARGIN = 6  # pixels beyond the window that its blurred edge depends on
_SHADE, _SHINE = 0.82, 1.05
_FLAT = 0.95  # shade of what lies smoothly on the body
_SHINE_SIZE, _SHINE_SHIFT = 0.66, 0.22  # of the light side of a solid, as shares of its radius


@dataclass(frozen=True, slots=True)
class Solid:
    """A tapered capsule around the line between two points of a body; each point is a weighted sum of joints.

    Attributes:
        start: joint -> weight; weights sum to 1.
        end: joint -> weight.
        radii: at start and end, metres.
        colour: RGB.
        nearer: it is drawn as if it were this much nearer to the camera, metres.
        flat: it has no light side, so that no seam shows where it meets others of its colour.
    """

    start: Mapping[str, float]
    end: Mapping[str, float]
    radii: tuple[float, float]
    colour: Colour
    nearer: float = 0.0
    flat: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """One pass before one camera, ready to be drawn.

    Attributes:
        seed: of the benchmark.
        camid: the camera's number.
        camera: the camera.
        person: who walks.
        joints: (T, J, 3) in the world, metres.
        gain: (3,) of this pass's light, for red, green and blue.
        noise_at: (T, 2) int64, where in the field of noise each frame lies.
        bar: what stands in front, x1 y1 x2 y2 in frame pixels; None without.
        bar_colour: RGB.
    """

    seed: int
    camid: int
    camera: Camera
    person: Person
    joints: Points
    gain: Points
    noise_at: npt.NDArray[np.int64]
    bar: Window | None
    bar_colour: Colour


@dataclass(frozen=True, slots=True, eq=False)
class Figure:
    """A person in pixels, for every frame of a pass.

    Attributes:
        ends: (T, P, 2, 3) the solids' ends: x and y in frame pixels, metres ahead.
        radii: (T, P, 2) in pixels.
        outlines: (T, P, 2, K, 2) int64 in 1 / SCALE pixels: of each solid, and of its light side.
        colours: (T, P, 2, 3) int64.
        order: (T, P) the solids from far to near.
    """

    ends: Points
    radii: Points
    outlines: npt.NDArray[np.int64]
    colours: npt.NDArray[np.int64]
    order: npt.NDArray[np.int64]

    def extent(self) -> Points:
        """Give the smallest boxes around the person, (T, 4) x1 y1 x2 y2 in frame pixels."""
        corners = self.outlines[:, :, 0].reshape(len(self.outlines), -1, 2) / SCALE
        return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


def solids(person: Person) -> tuple[Solid, ...]:
    """List what a person's body and clothes are drawn with."""
    wear, body = person.clothes, person.body
    size = (body.thigh + body.shank + body.spine + body.chest) / 1.30
    trunk, limb = size * body.girth, size * body.girth**0.7
    out = [
        Solid({"left_hip": 1}, {"right_hip": 1}, (0.094 * trunk,) * 2, wear.trousers, flat=True),
        Solid({"thorax": 0.85, "spine": 0.15}, {"pelvis": 1}, (0.105 * trunk, 0.112 * trunk), wear.top, flat=True),
        Solid(*_beam(), (0.07 * limb,) * 2, wear.top, flat=True),
        Solid({"thorax": 1}, {"neck": 1}, (0.052 * size, 0.050 * size), wear.skin),
        *_head(person),
    ]
    for side in ("left", "right"):
        hip, knee, ankle = (f"{side}_{name}" for name in ("hip", "knee", "ankle"))
        shoulder, elbow, wrist = (f"{side}_{name}" for name in ("shoulder", "elbow", "wrist"))
        shank = wear.trousers if wear.long_trousers else wear.skin
        forearm = wear.top if wear.long_sleeves else wear.skin
        flank = {"thorax": 0.25, "spine": 0.15, shoulder: 0.6}
        out += [
            Solid({hip: 1}, {knee: 1}, (0.086 * limb, 0.062 * limb), wear.trousers),
            Solid({knee: 1}, {ankle: 1}, (0.058 * limb, 0.042 * limb), shank),
            Solid({f"{side}_heel": 1}, {f"{side}_toe": 1}, (0.040 * size, 0.034 * size), wear.shoes),
            Solid(flank, {hip: 0.9, "spine": 0.1}, (0.085 * trunk, 0.092 * trunk), wear.top, 0.01, flat=True),
            Solid({shoulder: 1}, {elbow: 1}, (0.056 * limb, 0.044 * limb), wear.top),
            Solid({elbow: 1}, {wrist: 1}, (0.042 * limb, 0.031 * limb), forearm),
            Solid({wrist: 1}, _between(elbow, wrist, 1.25), (0.034 * size, 0.030 * size), wear.skin),
        ]
        if wear.coat:
            out.append(
                Solid({hip: 1}, _between(hip, knee, 0.6), (0.105 * trunk, 0.098 * limb), wear.top, 0.04, flat=True)
            )
    return (*out, *_stripe(person, size))


def _beam() -> tuple[dict[str, float], dict[str, float]]:
    return _between("thorax", "left_shoulder", 0.8), _between("thorax", "right_shoulder", 0.8)


def _between(start: str, end: str, share: float) -> dict[str, float]:
    return {start: 1 - share, end: share}


def _head(person: Person) -> list[Solid]:
    """The face looks along the nose; hair lies behind it and above."""
    wear, size = person.clothes, person.body.skull
    chin = {"neck": 1.25, "head": -0.35, "nose": 0.10}
    crown = {"neck": 0.70, "head": 0.22, "nose": 0.08}
    tuft = {"neck": 0.72, "head": 0.38, "nose": -0.10}
    nape = {"neck": 1.30, "head": -0.10, "nose": -0.20}
    out = [
        Solid(chin, crown, (0.58 * size, 0.76 * size), wear.skin),
        Solid(tuft, nape, (0.76 * size, 0.60 * size), wear.hair),
    ]
    if wear.long_hair:
        out.append(Solid(tuft, {"neck": 2.2, "head": -0.80, "nose": -0.40}, (0.74 * size, 0.62 * size), wear.hair))
    return out


def _stripe(person: Person, size: float) -> list[Solid]:
    """A band is seen from everywhere, a panel down the front only from there: from behind, the trunk covers it."""
    wear = person.clothes
    if wear.stripe == "band":
        ends = [{f"{side}_shoulder": 0.75, "thorax": -0.30, "spine": 0.55} for side in ("left", "right")]
        return [Solid(ends[0], ends[1], (0.050 * size,) * 2, wear.pattern, 0.13)]
    if wear.stripe == "front":
        ahead = {"nose": 0.75, "neck": -0.75}
        ends = [{"thorax": 0.6, "spine": 0.4} | ahead, {"pelvis": 0.9, "spine": 0.1} | ahead]
        return [Solid(ends[0], ends[1], (0.055 * size,) * 2, wear.pattern, 0.03)]
    return []


def figure(scene: Scene) -> Figure:
    """Work out the outlines, colours and order of all solids of a pass."""
    parts = solids(scene.person)
    weights = np.array([[[end.get(j, 0.0) for j in JOINTS] for end in (s.start, s.end)] for s in parts])
    ends = scene.camera.project(np.einsum("pej,tjc->tpec", weights, scene.joints))
    radii = np.array([s.radii for s in parts]) * scene.camera.focal / ends[..., 2]
    # Pillow draws at whole pixels only; rounded here, so that every window draws the same ones.
    shine = ends[..., :2] - (_SHINE_SHIFT * radii)[..., None]
    outlines = np.stack([_outline(ends[..., :2], radii), _outline(shine, _SHINE_SIZE * radii)], axis=2)
    depth = ends[..., 2].mean(axis=-1) - np.array([s.nearer for s in parts])
    # What is farther than the pelvis lies a little in the shade: the far leg parts from the near one.
    behind = depth - scene.camera.project(scene.joints[:, :1])[..., 2]
    sides = np.array([(_FLAT, _FLAT) if s.flat else (_SHADE, _SHINE) for s in parts])[:, :, None]
    colours = np.clip(1 - 0.6 * behind, 0.78, 1.08)[..., None, None] * sides * np.array([[s.colour] for s in parts])
    colours = np.rint(colours).clip(0, 255).astype(np.int64)
    return Figure(ends, radii, np.rint(outlines * SCALE).astype(np.int64), colours, np.argsort(-depth, axis=1))


def _outline(ends: Points, radii: Points) -> Points:
    """Give the outline (..., K, 2) of two circles and their common tangents, from ends (..., 2, 2), radii (..., 2)."""
    along = ends[..., 1, :] - ends[..., 0, :]
    length = np.maximum(np.hypot(along[..., 0], along[..., 1]), 1e-9)
    direction = np.arctan2(along[..., 1], along[..., 0])
    tangent = np.arccos(np.clip((radii[..., 0] - radii[..., 1]) / length, -1, 1))[..., None]
    share = np.linspace(0, 1, _ARC)
    first = direction[..., None] + tangent + share * 2 * (np.pi - tangent)
    second = direction[..., None] - tangent + share * 2 * tangent
    angle = np.concatenate([first, second], axis=-1)
    which = np.repeat([0, 1], _ARC)
    return np.asarray(ends[..., which, :] + radii[..., which, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1))


def render(scene: Scene, drawn: Figure, frame: int, window: Window) -> npt.NDArray[np.uint8]:
    """Draw what a window of a frame shows; the same pixels, however large the window around them is.

    Args:
        scene: the pass.
        drawn: its `figure`.
        frame: 0..T - 1.
        window: x1 y1 x2 y2 in whole pixels, inside the frame.

    Returns:
        (y2 - y1, x2 - x1, 3) uint8 RGB.
    """
    x1, y1, x2, y2 = window
    left, top = max(x1 - _BLUR_MARGIN, 0), max(y1 - _BLUR_MARGIN, 0)
    right, bottom = min(x2 + _BLUR_MARGIN, WIDTH), min(y2 + _BLUR_MARGIN, HEIGHT)
    behind = background(scene.seed, scene.camid)
    picture = Image.fromarray(np.ascontiguousarray(behind[top * SCALE : bottom * SCALE, left * SCALE : right * SCALE]))
    canvas = ImageDraw.Draw(picture)
    origin = np.array([left, top]) * SCALE
    shadow, dark = _shadow(scene, frame, behind)
    canvas.polygon((shadow - origin).ravel().tolist(), fill=dark)
    chosen = drawn.order[frame]
    outlines = (drawn.outlines[frame, chosen] - origin).reshape(len(chosen), 2, -1).tolist()
    for pair, shades in zip(outlines, drawn.colours[frame, chosen].tolist(), strict=True):
        for outline, colour in zip(pair, shades, strict=True):
            canvas.polygon(outline, fill=tuple(colour))
    if scene.bar is not None:
        bx1, by1, bx2, by2 = (np.array(scene.bar) * SCALE - np.tile(origin, 2)).tolist()
        canvas.rectangle((bx1, by1, bx2 - 1, by2 - 1), fill=scene.bar_colour)
    small = picture.reduce(SCALE).filter(ImageFilter.GaussianBlur(scene.camera.blur))
    lit = small.crop((x1 - left, y1 - top, x2 - left, y2 - top)).point(response(scene.camera, scene.gain))
    dx, dy = scene.noise_at[frame].tolist()
    noise = noise_field(scene.seed, scene.camid)[y1 + dy : y2 + dy, x1 + dx : x2 + dx]
    return np.asarray(np.clip(np.asarray(lit, dtype=np.int16) + noise, 0, 255), dtype=np.uint8)


def _shadow(scene: Scene, frame: int, behind: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.int64], Colour]:
    """Give the outline (16, 2), in 1 / SCALE pixels, of the shadow under a person, and the darkened floor's colour."""
    angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    middle = scene.joints[frame, 0, :2]
    ring = np.stack([middle[0] + 0.30 * np.cos(angle), middle[1] + 0.30 * np.sin(angle), 0 * angle], axis=-1)
    outline = np.rint(scene.camera.project(ring)[:, :2] * SCALE).astype(np.int64)
    x, y = outline.mean(axis=0).astype(int)
    red, green, blue = behind[min(max(y, 0), HEIGHT * SCALE - 1), min(max(x, 0), WIDTH * SCALE - 1)].tolist()
    return outline, (int(0.6 * red), int(0.6 * green), int(0.6 * blue))


HEAD: Final = frozenset({"nose", "left_eye", "right_eye", "left_ear", "right_ear"})
"""Joints that lie on the head, a small one: less depth hides them."""


def hidden(scene: Scene, drawn: Figure, names: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    """Tell which joints, of the given names, another part of the body covers: (T, len(names))."""
    points = scene.camera.project(scene.joints[:, [JOINTS.index(n) for n in names]])[:, :, None]
    start, end = drawn.ends[:, None, :, 0], drawn.ends[:, None, :, 1]
    along = end - start
    length = np.maximum((along[..., :2] ** 2).sum(axis=-1), 1e-9)
    share = np.clip(((points - start)[..., :2] * along[..., :2]).sum(axis=-1) / length, 0, 1)
    nearest = start + share[..., None] * along
    radius = drawn.radii[:, None, :, 0] * (1 - share) + drawn.radii[:, None, :, 1] * share
    covered = np.hypot(*np.moveaxis((points - nearest)[..., :2], -1, 0)) < 0.9 * radius
    margin = np.array([0.05 if n in HEAD else 0.11 for n in names])[:, None]
    return np.asarray((covered & (nearest[..., 2] < points[..., 2] - margin)).any(axis=-1))
