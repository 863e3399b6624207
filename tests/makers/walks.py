"""Hand-made detections: people as boxes of 40 x 100 pixels, for the tests of tracking."""

import numpy as np

from csip.types import People

JOINTS = 17


def person(x, y=100.0, score=0.9, confidence=0.8, size=(40, 100)):
    """A person whose upper left corner is (x, y); the joints lie on a diagonal through the box."""
    width, height = size
    share = np.arange(JOINTS, dtype=np.float32) / (JOINTS - 1)
    keypoints = np.stack([x + share * width, y + share * height, np.full(JOINTS, confidence)], axis=1)
    return np.array([x, y, x + width, y + height], np.float32), score, keypoints.astype(np.float32)


def frame(*people):
    """The people of one frame."""
    boxes = np.array([box for box, _, _ in people], np.float32).reshape(-1, 4)
    score = np.array([score for _, score, _ in people], np.float32)
    return People(boxes, score, np.array([points for _, _, points in people], np.float32).reshape(-1, JOINTS, 3))
