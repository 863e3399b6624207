"""The people of Walkers: how they are built, how they walk and what they wear, drawn from a seed."""

from __future__ import annotations

import zlib
from dataclasses import astuple, dataclass
from typing import Final

import numpy as np

Colour = tuple[int, int, int]

ANKLE_HEIGHT: Final = 0.08
"""Of a standing foot, metres."""

_CANDIDATES = 6  # a second twin is the one of so many draws that differs most from the first

_SKINS = ((241, 202, 172), (224, 176, 138), (190, 138, 100), (141, 94, 66), (94, 62, 46))
_HAIRS = ((32, 26, 24), (72, 48, 32), (122, 84, 48), (196, 160, 96), (150, 146, 142), (120, 48, 30))
_CLOTHES = (
    *((196, 40, 44), (36, 78, 164), (44, 120, 66), (222, 190, 60), (232, 232, 226), (34, 34, 40)),
    *((128, 128, 132), (122, 60, 128), (222, 118, 44), (94, 66, 46), (60, 156, 170), (210, 128, 160)),
)
_TROUSERS = ((38, 48, 84), (30, 30, 34), (96, 98, 104), (150, 128, 92), (72, 56, 44), (198, 194, 186), (64, 84, 62))
_SHOES = ((24, 22, 22), (226, 224, 220), (96, 60, 36), (150, 40, 44))


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """How a person is built: lengths in metres, joint centre to joint centre.

    Attributes:
        thigh: hip to knee.
        shank: knee to ankle.
        foot: heel to toe.
        spine: pelvis to the middle of the back.
        chest: middle of the back to the base of the neck.
        neck: base of the neck to the head's middle.
        skull: the head's middle to its top.
        hip: pelvis to each hip.
        shoulder: base of the neck to each shoulder, sideways.
        upper_arm: shoulder to elbow.
        forearm: elbow to wrist.
        girth: factor of every thickness.
    """

    thigh: float
    shank: float
    foot: float
    spine: float
    chest: float
    neck: float
    skull: float
    hip: float
    shoulder: float
    upper_arm: float
    forearm: float
    girth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Gait:
    """How a person walks; angles in radians.

    Attributes:
        cadence: strides (two steps) a second.
        stride: length of one, metres.
        bounce: amplitude of the pelvis's rise and fall, metres.
        sway: amplitude of its way from side to side, metres.
        twist: amplitude of the turn of the shoulders against the hips.
        lean: of the trunk, forwards.
        arm_swing: amplitude at the shoulder.
        arm_spread: of the arms away from the body.
        elbow: bend of the elbows.
        head_tilt: of the head, forwards.
        lift: how high a foot is carried, metres.
        width: between the two lines that the feet walk on, metres.
        asymmetry: by how much of a cycle the left foot comes late.
    """

    cadence: float
    stride: float
    bounce: float
    sway: float
    twist: float
    lean: float
    arm_swing: float
    arm_spread: float
    elbow: float
    head_tilt: float
    lift: float
    width: float
    asymmetry: float

    @property
    def speed(self) -> float:
        """Metres a second."""
        return self.stride * self.cadence


@dataclass(frozen=True, slots=True, kw_only=True)
class Clothes:
    """What can be seen of a person, RGB.

    Attributes:
        skin: face, hands, and what the clothes leave bare.
        hair: and whether it is long.
        top: of trunk and sleeves.
        pattern: colour of the stripe.
        trousers: of the legs.
        shoes: of the feet.
        stripe: "none", "band" across the chest, or "front" down its middle.
        long_hair: down to the shoulders.
        long_sleeves: the forearms are covered.
        long_trousers: the shanks are covered.
        coat: the top reaches down the thighs.
    """

    skin: Colour
    hair: Colour
    top: Colour
    pattern: Colour
    trousers: Colour
    shoes: Colour
    stripe: str
    long_hair: bool
    long_sleeves: bool
    long_trousers: bool
    coat: bool


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who walks by, always built, dressed and walking alike.

    Attributes:
        pid: number.
        twin: pid of the one who wears the same; None without one.
        body: lengths.
        gait: movement.
        clothes: colours.
    """

    pid: int
    twin: int | None
    body: Body
    gait: Gait
    clothes: Clothes


def draw(seed: int, *path: str | int) -> np.random.Generator:
    """Give the random numbers of one thing, by its path from the seed: the same in any order and process."""
    return np.random.default_rng([seed, *(zlib.crc32(str(step).encode()) for step in path)])


def make_person(seed: int, pid: int, twin: int | None) -> Person:
    """Make a person; of two twins the one with the higher number is drawn to differ from the other."""
    own = _make_body(draw(seed, "body", pid, 0))
    if twin is not None and twin < pid:
        other = _make_body(draw(seed, "body", twin, 0))
        candidates = [_make_body(draw(seed, "body", pid, n)) for n in range(_CANDIDATES)]
        own = max(candidates, key=lambda one: _difference(one, other))
    dressed_as = pid if twin is None else min(pid, twin)
    return Person(pid, twin, *own, _make_clothes(draw(seed, "clothes", dressed_as)))


def _make_body(rng: np.random.Generator) -> tuple[Body, Gait]:
    u = rng.uniform(-1, 1, 24)
    height = 1.70 + 0.19 * u[0]
    leg = height * (0.475 + 0.030 * u[1])  # hip to ankle
    thigh = leg * (0.505 + 0.015 * u[2])
    rest = height - leg - ANKLE_HEIGHT
    skull = 0.125 + 0.008 * u[3]
    neck = 0.135 + 0.015 * u[4]
    trunk = rest - skull - neck
    arm = trunk + 0.04 + 0.04 * u[5]
    girth = 1.08 + 0.30 * u[6]
    body = Body(
        thigh=thigh,
        shank=leg - thigh,
        foot=height * 0.15,
        spine=0.48 * trunk,
        chest=0.52 * trunk,
        neck=neck,
        skull=skull,
        hip=height * (0.056 + 0.009 * u[7]),
        shoulder=height * (0.108 + 0.016 * u[8]),
        upper_arm=0.54 * arm,
        forearm=0.46 * arm,
        girth=girth,
    )
    gait = Gait(
        cadence=0.92 + 0.14 * u[9],
        stride=leg * (1.42 + 0.18 * u[10]),
        bounce=0.018 + 0.010 * u[11],
        sway=0.022 + 0.014 * u[12],
        twist=0.14 + 0.10 * u[13],
        lean=0.05 + 0.10 * u[14],
        arm_swing=0.42 + 0.32 * u[15],
        arm_spread=0.16 + 0.09 * u[16],
        elbow=0.55 + 0.40 * u[17],
        head_tilt=0.08 + 0.22 * u[18],
        lift=0.09 + 0.05 * u[19],
        width=0.14 + 0.07 * u[20],
        asymmetry=0.03 * u[21],
    )
    return body, gait


def _difference(one: tuple[Body, Gait], other: tuple[Body, Gait]) -> float:
    """Sum up by how much two people differ, each measure as a share of its own size."""
    a, b = (np.array([*astuple(body), *astuple(gait)]) for body, gait in (one, other))
    return float((np.abs(a - b) / (np.abs(a) + np.abs(b) + 1e-3)).sum())


def _make_clothes(rng: np.random.Generator) -> Clothes:
    def pick(choices: tuple[Colour, ...]) -> Colour:
        tint = rng.integers(-14, 15, 3)
        red, green, blue = np.clip(np.array(choices[rng.integers(len(choices))]) + tint, 8, 247).tolist()
        return (red, green, blue)

    return Clothes(
        skin=pick(_SKINS),
        hair=pick(_HAIRS),
        top=pick(_CLOTHES),
        pattern=pick(_CLOTHES),
        trousers=pick(_TROUSERS),
        shoes=pick(_SHOES),
        stripe=("none", "none", "band", "front")[rng.integers(4)],
        long_hair=bool(rng.random() < 0.35),
        long_sleeves=bool(rng.random() < 0.6),
        long_trousers=bool(rng.random() < 0.75),
        coat=bool(rng.random() < 0.2),
    )
