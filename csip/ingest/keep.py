"""Which of the people that a pose model saw are kept: by the height of their box, and by where they stand.

Shapes: N people, E edges of the region.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from csip.config import DetectConfig
from csip.types import People

TOO_SMALL, OUTSIDE = "smaller than min_box_height", "outside region"


def keep_people(people: People, frame_size: tuple[int, int], config: DetectConfig) -> tuple[People, Mapping[str, int]]:
    """Drop the people whom the settings leave out.

    Args:
        people: of one frame.
        frame_size: its (H, W).
        config: `min_box_height` and `region`.

    Returns:
        Those that are kept, in their order; and for each rule how many it dropped. Who breaks both rules counts as too
        small.
    """
    small = people.boxes[:, 3] - people.boxes[:, 1] < config.min_box_height
    outside = ~small & ~_in_region(people.boxes, frame_size, config.region)
    counts = {TOO_SMALL: int(small.sum()), OUTSIDE: int(outside.sum())}
    if not any(counts.values()):
        return people, counts
    kept = ~(small | outside)
    return People(people.boxes[kept], people.score[kept], people.keypoints[kept]), counts


def _in_region(
    boxes: npt.NDArray[np.float32], frame_size: tuple[int, int], region: tuple[tuple[float, float], ...]
) -> npt.NDArray[np.bool_]:
    """Say for each of (N, 4) boxes whether the middle of its lower edge lies in the region or on its border.

    Even-odd rule: a point is inside when a ray from it crosses the border an odd number of times. The border belongs to
    the region, as the feet of those whom the frame cuts off lie on the frame's own.
    """
    if not region:
        return np.ones(len(boxes), np.bool_)
    height, width = frame_size
    box = boxes.astype(np.float64)
    x, y = (box[:, 0] + box[:, 2])[:, None] / 2 / width, box[:, 3][:, None] / height  # (N, 1)
    x1, y1 = np.array(region, np.float64).T  # (E,)
    x2, y2 = np.roll(x1, -1), np.roll(y1, -1)
    side = (x2 - x1) * (y - y1) - (y2 - y1) * (x - x1)  # (N, E): 0 on the line through an edge
    crossed = ((y1 > y) != (y2 > y)) & ((side > 0) == (y2 > y1))
    within_x = (np.minimum(x1, x2) <= x) & (x <= np.maximum(x1, x2))
    within_y = (np.minimum(y1, y2) <= y) & (y <= np.maximum(y1, y2))
    on_border = (side == 0) & within_x & within_y
    inside: npt.NDArray[np.bool_] = (crossed.sum(axis=1) % 2 == 1) | on_border.any(axis=1)
    return inside
