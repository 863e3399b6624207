"""The shipped video's tracklets against what we see in it.

The detections are stored (`tests/golden/pedestrians_detections.npz`); who is who in every 40th frame was written down
by eye (`tests/golden/pedestrians_by_eye.json`): no public ground truth, and no part of one.
"""

import dataclasses
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from csip.config import TrackConfig
from csip.ingest.tracklets import CUTS, DOUBLES, FILLED, LINKS, VideoTracker
from csip.types import People

GOLDEN = Path(__file__).parents[2] / "golden"
DETECTIONS, BY_EYE = GOLDEN / "pedestrians_detections.npz", GOLDEN / "pedestrians_by_eye.json"


def make_detections(video, target):
    """Run the pose model over a video and keep what it sees, to a tenth of a pixel."""
    from csip.config import DetectConfig, RuntimeConfig
    from csip.ingest.decoder import Decoder
    from csip.ingest.pose import PoseModel
    from csip.ingest.video import probe
    from csip.ingest.yolo import resolve_weights

    detect = DetectConfig()
    limits = {name: getattr(detect, name) for name in ("image_size", "confidence", "iou", "max_people", "precision")}
    model, people = None, []
    with Decoder(RuntimeConfig()) as decoder:
        for frames in decoder.frames(probe(Path(video)), batch=8):
            if model is None:
                size = frames.pixels.shape[1:3]
                weights = resolve_weights(detect.weights)
                model = PoseModel(weights, frame_size=size, device="cpu", engine="openvino", **limits)
            people += model(frames)
    keypoints = np.concatenate([p.keypoints for p in people])
    np.savez_compressed(
        target,
        count=np.array([len(p) for p in people], np.uint8),
        boxes=np.rint(np.concatenate([p.boxes for p in people]) * 10).astype(np.uint16),
        score=np.rint(np.concatenate([p.score for p in people]) * 10_000).astype(np.uint16),
        places=np.rint(keypoints[:, :, :2] * 10).astype(np.int16),
        confidence=np.rint(keypoints[:, :, 2] * 250).astype(np.uint8),
    )


@pytest.fixture(scope="module")
def detections():
    with np.load(DETECTIONS) as stored:
        border = np.cumsum(stored["count"])[:-1]
        keypoints = np.concatenate([stored["places"] / 10, stored["confidence"][:, :, None] / 250], axis=2)
        columns = (stored["boxes"] / 10, stored["score"] / 10_000, keypoints)
        return [People(*row) for row in zip(*(np.split(c.astype(np.float32), border) for c in columns), strict=True)]


@pytest.fixture(scope="module")
def by_eye():
    """Frame -> [(person and stay, x, y, whether the pose model shows them)], the hidden last."""
    frames = json.loads(BY_EYE.read_text(encoding="utf-8"))["frames"]
    return {
        int(frame): [
            ((one["person"], one["stay"]), *one["middle"], one["detected"])
            for one in sorted(people, key=lambda one: not one["detected"])
        ]
        for frame, people in frames.items()
    }


def track(detections, **changes):
    """Give frame -> [(tracklet_id, box)], what the rules did, and the tracklets' summaries."""
    config = dataclasses.replace(TrackConfig(), **changes)
    tracker = VideoTracker(config, fps=10.0, frame_size=(576, 768), stride=1, make_id="{:05d}".format)
    for index, people in enumerate(detections):
        tracker.add(index, people)
    found = tracker.end_segment(final=True)
    boxes = defaultdict(list)
    for one in found.tracklets:
        for index, box in zip(one.frame_index.tolist(), one.boxes, strict=True):
            boxes[index].append((one.tracklet_id, box))
    return boxes, found.rules, found.summaries


def compare(boxes, by_eye):
    """Give person -> tracklets, tracklet -> people, people nobody follows, and boxes of nobody; in looked-at frames."""
    tracklets, people, missed, false = defaultdict(set), defaultdict(set), [], 0
    for frame, seen in by_eye.items():
        left = list(boxes.get(frame, []))
        for who, x, y, detected in seen:
            apart = [float(np.hypot((b[0] + b[2]) / 2 - x, (b[1] + b[3]) / 2 - y)) for _, b in left]
            # One box of the woman with the white hat takes in the bollard behind her.
            if not apart or min(apart) > 21:
                missed += [(frame, who)] if detected else []
                continue
            name, _ = left.pop(int(np.argmin(apart)))
            tracklets[who].add(name)
            people[name].add(who)
        false += len(left)
    return tracklets, people, missed, false


def test_the_detections_are_where_somebody_was_seen(detections, by_eye):
    """Each person seen by eye has a detection within ten pixels, but for one box that takes in a bollard, too."""
    assert len(detections) == 795
    for frame, seen in by_eye.items():
        middle = (detections[frame].boxes[:, :2] + detections[frame].boxes[:, 2:]) / 2
        for who, x, y, detected in seen:
            assert not detected or np.hypot(*(middle - (x, y)).T).min() < 10, (frame, who)


def test_every_tracklet_is_one_person_and_nearly_every_stay_one_tracklet(detections, by_eye):
    boxes, rules, summaries = track(detections)
    tracklets, people, missed, false = compare(boxes, by_eye)
    assert {name: who for name, who in people.items() if len(who) > 1} == {}
    # In black behind the sign; the fair woman and the woman in red are lost by the pose model in the distance.
    broken = {who: len(names) for who, names in tracklets.items() if len(names) > 1}
    assert broken == {("black coat", 1): 3, ("blonde", 1): 2, ("red jacket", 2): 2}
    # Far off, and found in single frames only.
    assert (missed, false) == ([(200, ("red-blue", 1))], 0)
    assert len(summaries) == 23
    assert rules[LINKS] >= 10
    assert rules[DOUBLES] >= 20
    assert rules[CUTS] == 0
    assert rules[FILLED] == sum(one.interpolated_frames for one in summaries.values())


def test_links_make_fewer_tracklets_of_the_same_people(detections, by_eye):
    linked, apart = track(detections), track(detections, link_seconds=0)
    assert len(linked[2]) < len(apart[2])
    with_links, without = compare(linked[0], by_eye), compare(apart[0], by_eye)
    assert sum(map(len, with_links[0].values())) < sum(map(len, without[0].values()))
    assert len(with_links[2]) <= len(without[2])


def test_without_any_rule_nothing_is_better(detections, by_eye):
    ruled = compare(track(detections)[0], by_eye)
    off = {"double_distance": 0, "jump_distance": 0, "link_seconds": 0, "interpolate_seconds": 0}
    bare = compare(track(detections, **off)[0], by_eye)
    assert sum(map(len, ruled[0].values())) < sum(map(len, bare[0].values()))
    assert sum(len(who) > 1 for who in ruled[1].values()) <= sum(len(who) > 1 for who in bare[1].values())
    assert len(ruled[2]) <= len(bare[2])
    assert ruled[3] <= bare[3]


if __name__ == "__main__":
    make_detections(sys.argv[1], DETECTIONS)
