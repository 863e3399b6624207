"""Skeletons of a closed set: every person in a training, a query and a gallery session, published as a snapshot.

People differ in the lengths of legs, arms and trunk; from frame to frame they turn, swing their limbs and move along,
which changes the coordinates far more than who they are.
"""

import numpy as np

# Kinect-20 in metres, y up, facing the camera, arms hanging.
STANDING = np.array(
    [
        *((0, 0, 0), (0, 0.1, 0), (0, 0.5, 0), (0, 0.7, 0)),
        *((0.2, 0.48, 0), (0.22, 0.2, 0), (0.23, -0.05, 0), (0.23, -0.12, 0)),
        *((-0.2, 0.48, 0), (-0.22, 0.2, 0), (-0.23, -0.05, 0), (-0.23, -0.12, 0)),
        *((0.1, -0.05, 0), (0.1, -0.45, 0), (0.1, -0.85, 0), (0.1, -0.87, 0.1)),
        *((-0.1, -0.05, 0), (-0.1, -0.45, 0), (-0.1, -0.85, 0), (-0.1, -0.87, 0.1)),
    ]
)
TRUNK, ARMS, LEGS = slice(0, 4), [5, 6, 7, 9, 10, 11], [13, 14, 15, 17, 18, 19]
ROLES = {"train": 0, "query": 1, "gallery": 2}


def sequence(person, role, frames):
    """(frames, 20, 3) of one person in one session."""
    body = STANDING.copy()
    trunk, arms, legs = np.random.default_rng(person).uniform(0.85, 1.15, 3)
    body[TRUNK] *= trunk
    body[[4, 8]] *= (1, trunk, 1)
    for side in (4, 8):
        body[side + 1 : side + 4] = body[side] + arms * (STANDING[side + 1 : side + 4] - STANDING[side])
    body[LEGS] *= (1, legs, 1)
    rng = np.random.default_rng([person, ROLES[role]])
    out = np.empty((frames, 20, 3))
    turn, phase = rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi)
    for f in range(frames):
        turn += rng.normal(0, 0.3)
        moved = body.copy()
        swing = 0.35 * np.sin(phase + 0.6 * f)
        for joints, sign in ((ARMS[:3], 1), (ARMS[3:], -1), (LEGS[:3], -1), (LEGS[3:], 1)):
            moved[joints, 2] += sign * swing * np.abs(moved[joints, 1] - 0.2)
        c, s = np.cos(turn), np.sin(turn)
        moved = moved @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
        out[f] = moved + rng.normal(0, 0.02, moved.shape) + (0.05 * f, 0.9, 3.0)
    return out


def rows(name, people, lengths):
    """Rows of `skeletons` and `splits`: one tracklet a person and session, frames from 10 on."""
    poses, splits = [], []
    for person in people:
        for role, frames in lengths.items():
            tracklet = f"{role}-{person:03d}"
            for f, joints in enumerate(sequence(person, role, frames)):
                poses.append(
                    {
                        "tracklet_id": tracklet,
                        "frame_index": 10 + f,
                        "extractor_digest": "e" * 64,
                        "has_skeleton": True,
                        "layout": "kinect20",
                        "keypoints": joints.tolist(),
                    }
                )
            splits.append(
                {
                    "dataset": name,
                    "protocol": "biwi-s",
                    "split": "0",
                    "tracklet_id": tracklet,
                    "first_frame": 10,
                    "last_frame": 9 + frames,
                    "role": role,
                    "group": "",
                    "pid": person,
                    "camid": ROLES[role],
                    "camera": role,
                }
            )
    return poses, splits


def make(store, people=(0, 3, 4, 7, 11, 12), lengths=(("train", 24), ("query", 24), ("gallery", 24)), name="sessions"):
    """Write the tables and publish them."""
    from csip import tables
    from csip.types import Snapshot

    store = str(store)
    tables.prepare_store(store)
    poses, splits = rows(name, people, dict(lengths))
    tables.upsert(store, "skeletons", tables.from_rows("skeletons", poses[::-1]))
    tables.upsert(store, "splits", tables.from_rows("splits", splits[::-1]))
    pins = ("videos", "tracklets", "crops", "skeletons", "splits")
    snapshot = Snapshot(name, store, {one: tables.current(store, one).version for one in pins}, digest="5" * 64)
    tables.publish(snapshot, config={}, counts={}, videos=[])
    return snapshot
