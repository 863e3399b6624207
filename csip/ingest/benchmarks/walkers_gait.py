"""How the people of Walkers walk: where their joints are at any time.

Shapes: T frames, J joints. A walker's own axes are x forward, y left, z up, in metres; the floor is z = 0.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from csip.ingest.benchmarks.walkers_people import ANKLE_HEIGHT, Body, Person
from csip.joints import H36M17

Points = npt.NDArray[np.float64]

JOINTS: Final = (
    *H36M17.joints,
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_toe", "right_toe", "left_heel", "right_heel"),
)
"""What `walk` gives: the joints of Human3.6M, then what COCO and the drawing need beside them."""

_STANCE = 0.6  # share of a cycle that a foot is on the ground, as people walk
_FRONT = 0.25  # a foot lands this share of a stride before the pelvis


def walk(person: Person, time: npt.NDArray[np.float64], phase: float) -> Points:
    """Place a person's joints while walking straight on along x, over the origin at time 0.

    Bones keep their length; a standing foot stays where it is; the pelvis advances at `Gait.speed`.

    Args:
        person: who.
        time: (T,) seconds.
        phase: of the right foot's cycle at time 0, 0..1; it lands at 0.

    Returns:
        (T, J, 3) metres, joints as in `JOINTS`.
    """
    body, gait = person.body, person.gait
    cycle = gait.cadence * time + phase
    turn = 2 * np.pi * cycle
    leg = body.thigh + body.shank
    pelvis = np.stack(
        [
            gait.speed * time,
            -gait.sway * np.sin(turn - 0.3),  # over the foot that stands: the right one first
            ANKLE_HEIGHT + 0.955 * leg - gait.bounce * np.cos(2 * turn - 0.6),
        ],
        axis=-1,
    )
    hips = _rotation(yaw=0.6 * gait.twist * np.cos(turn), roll=0.05 * np.sin(turn))
    trunk = _rotation(yaw=-gait.twist * np.cos(turn), pitch=np.full(len(time), gait.lean), roll=-0.03 * np.sin(turn))
    head = _rotation(pitch=gait.lean + gait.head_tilt + 0.02 * np.cos(2 * turn))
    at = {"pelvis": pelvis}
    at["spine"] = pelvis + trunk @ (0.0, 0.0, body.spine)
    at["thorax"] = at["spine"] + trunk @ (0.0, 0.0, body.chest)
    at["neck"] = at["thorax"] + head @ (0.0, 0.0, body.neck)
    at["head"] = at["neck"] + head @ (0.0, 0.0, body.skull)
    _place_face(at, head, body)
    for side, sign, late in (("right", -1.0, 0.0), ("left", 1.0, 0.5 + gait.asymmetry)):
        at[f"{side}_hip"] = pelvis + hips @ (0.0, sign * body.hip, 0.0)
        at[f"{side}_shoulder"] = at["thorax"] + trunk @ (0.0, sign * body.shoulder, -0.035)
        _place_leg(at, side, sign * gait.width / 2, cycle - late, time, person)
        _place_arm(at, side, sign, turn - 2 * np.pi * late, trunk, person)
    return np.stack([at[name] for name in JOINTS], axis=1)


def _place_face(at: dict[str, Points], head: Points, body: Body) -> None:
    size = body.skull
    at["nose"] = at["neck"] + head @ (0.90 * size, 0.0, 0.10 * size)
    for side, sign in (("left", 1.0), ("right", -1.0)):
        at[f"{side}_eye"] = at["neck"] + head @ (0.72 * size, sign * 0.28 * size, 0.32 * size)
        at[f"{side}_ear"] = at["neck"] + head @ (0.05 * size, sign * 0.62 * size, 0.18 * size)


def _place_leg(
    at: dict[str, Points], side: str, lane: float, cycle: npt.NDArray[np.float64], time: Points, person: Person
) -> None:
    """Put a foot where it stands or swings to, then the knee where the bones' lengths want it, bent forwards."""
    body, gait = person.body, person.gait
    part = cycle % 1.0
    swing = np.clip((part - _STANCE) / (1 - _STANCE), 0, 1)
    # In the pelvis's frame a standing foot goes back at walking speed; a swinging one eases into that at both ends.
    back = _FRONT - _STANCE
    ease = swing**2 * (3 - 2 * swing)
    along = np.where(part < _STANCE, _FRONT - part, back - (part - _STANCE) + ease) * gait.stride
    heel_off = np.clip((part - 0.7 * _STANCE) / (0.3 * _STANCE), 0, 1) ** 2 * np.cos(np.pi / 2 * swing) ** 2
    pitch = 0.75 * heel_off - 0.30 * np.sin(np.pi * np.clip((swing - 0.4) / 0.6, 0, 1))
    up = ANKLE_HEIGHT + 0.13 * heel_off + gait.lift * np.sin(np.pi * swing) ** 2
    hip = at[f"{side}_hip"]
    ankle = np.stack([gait.speed * time + along, np.full(len(time), lane), up], axis=-1)
    reach = ankle - hip
    length = np.linalg.norm(reach, axis=-1, keepdims=True)
    most = 0.998 * (body.thigh + body.shank)
    # Out of reach, the heel comes up a little more: the foot is drawn in along the leg.
    ankle = hip + reach * np.minimum(1, most / length)
    at[f"{side}_knee"] = _bend(hip, ankle, body.thigh, body.shank)
    at[f"{side}_ankle"] = ankle
    foot = _rotation(pitch=pitch)
    at[f"{side}_toe"] = ankle + foot @ (0.70 * body.foot, 0.0, -0.75 * ANKLE_HEIGHT)
    at[f"{side}_heel"] = ankle + foot @ (-0.20 * body.foot, 0.0, -0.60 * ANKLE_HEIGHT)


def _bend(hip: Points, ankle: Points, thigh: float, shank: float) -> Points:
    """Find the knee between hip and ankle, (T, 3) each: the one of the circle's points that lies farthest ahead."""
    reach = ankle - hip
    length = np.linalg.norm(reach, axis=-1, keepdims=True)
    along = reach / length
    share = (thigh**2 - shank**2 + length**2) / (2 * length)
    ahead = np.array([1.0, 0.0, 0.0]) - along[:, :1] * along
    ahead /= np.linalg.norm(ahead, axis=-1, keepdims=True)
    return np.asarray(hip + share * along + np.sqrt(np.maximum(thigh**2 - share**2, 0)) * ahead)


def _place_arm(
    at: dict[str, Points], side: str, sign: float, turn: npt.NDArray[np.float64], trunk: Points, person: Person
) -> None:
    """Swing an arm against the leg of its side; `turn` is that leg's cycle in radians."""
    body, gait = person.body, person.gait
    swing = -gait.arm_swing * np.cos(turn - 0.25) + 0.05
    bend = gait.elbow + 0.45 * gait.arm_swing * (1 - np.cos(turn - 0.25)) / 2
    spread = np.full(len(turn), sign * gait.arm_spread)
    upper = trunk @ _rotation(pitch=-swing, roll=spread)
    lower = trunk @ _rotation(pitch=-swing - bend, roll=0.5 * spread)
    at[f"{side}_elbow"] = at[f"{side}_shoulder"] + upper @ (0.0, 0.0, -body.upper_arm)
    at[f"{side}_wrist"] = at[f"{side}_elbow"] + lower @ (0.0, 0.0, -body.forearm)


def _rotation(yaw: Points | float = 0.0, pitch: Points | float = 0.0, roll: Points | float = 0.0) -> Points:
    """Give rotations (T, 3, 3) from angles (T,), radians: roll about x, then pitch about y, then yaw about z.

    Positive yaw turns to the left, positive pitch leans forwards, positive roll leans to the right.
    """
    z, y, x = np.broadcast_arrays(*(np.atleast_1d(angle) for angle in (yaw, pitch, roll)))
    (sz, sy, sx), (cz, cy, cx) = (np.sin((z, y, x)), np.cos((z, y, x)))
    rows = (
        (cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx),
        (sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx),
        (-sy, cy * sx, cy * cx),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)
