"""People as a Kinect sees them, for the makers of BIWI, IAS and TranSG's arrays: 20 joints, metres, y up."""

import numpy as np

# Hips, spine, shoulders, head; left arm, right arm, left leg, right leg: offsets in the unit of a person's height.
STANDING = (
    *((0, 0, 0), (0, 0.05, 0), (0, 0.27, 0), (0, 0.38, 0)),
    *((-0.1, 0.25, 0), (-0.12, 0.1, 0), (-0.13, -0.03, 0), (-0.13, -0.07, 0)),
    *((0.1, 0.25, 0), (0.12, 0.1, 0), (0.13, -0.03, 0), (0.13, -0.07, 0)),
    *((-0.06, -0.02, 0), (-0.06, -0.25, 0), (-0.06, -0.47, 0), (-0.06, -0.5, -0.06)),
    *((0.06, -0.02, 0), (0.06, -0.25, 0), (0.06, -0.47, 0), (0.06, -0.5, -0.06)),
)
SWINGS = {5: 0.3, 6: 0.7, 7: 0.8, 9: -0.3, 10: -0.7, 11: -0.8, 13: -0.4, 14: -1, 15: -1, 17: 0.4, 18: 1, 19: 1}


def skeletons(pid, frames, walking, seed=0):
    """(frames, 20, 3): a person of its own height and breadth; each joint's z tells the frame when standing still.

    Args:
        pid: decides how the person is built.
        frames: how many.
        walking: swing arms and legs, and come nearer.
        seed: of how the sensor trembles.
    """
    rng = np.random.default_rng([pid, int(walking), seed])
    height, breadth = 1.5 + 0.4 * ((pid * 0.618) % 1), 0.7 + 0.6 * ((pid * 0.382 + 0.2) % 1)
    joints = np.tile(np.array(STANDING, float) * (height * breadth, height, height), (frames, 1, 1))
    number = np.arange(frames)
    if walking:
        for joint, share in SWINGS.items():
            joints[:, joint, 2] += 0.25 * height * share * np.sin(0.6 * number + pid)
    joints += rng.normal(0, 0.005, joints.shape)
    return np.round(joints + np.stack([0 * number, 0 * number, 4 - 0.02 * number], 1)[:, None], 6)


def lines(joints, person=1):
    """One line for each of 20 joints as in skel.txt: all tracked; the caller spoils what shall be spoilt.

    Returns:
        A list of 20 lists of 14 numbers.
    """
    return [
        [person, *map(float, joint), 320.5, 240.5, 2, 0, number, min(number + 1, 19), 0, 0, 0, 1]
        for number, joint in enumerate(joints)
    ]


def text(rows, end="\n"):
    return "".join(",".join(map(repr, row)) + end for row in rows)
