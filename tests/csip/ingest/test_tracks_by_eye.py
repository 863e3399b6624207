"""The shipped video's tracklets against what we see in it.

The detections are stored (`tests/golden/pedestrians_detections.npz`); who is who in every 40th frame was written down by
eye (`tests/golden/pedestrians_by_eye.json`): no public ground truth, and no part of one.
"""

import sys
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[2] / "golden"
DETECTIONS, BY_EYE = GOLDEN / "pedestrians_detections.npz", GOLDEN / "pedestrians_by_eye.json"


def make_detections(video, target):
    """Run the pose model over a video and keep what it sees, to a tenth of a pixel."""
    from csip.config import DetectConfig
    from csip.ingest.pose import PoseModel
    from csip.ingest.video import read_frames
    from csip.ingest.yolo import resolve_weights

    detect = DetectConfig()
    limits = {name: getattr(detect, name) for name in ("image_size", "confidence", "iou", "max_people", "precision")}
    model, people = None, []
    for frames in read_frames(Path(video), batch=8, threads=1):
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


if __name__ == "__main__":
    make_detections(sys.argv[1], DETECTIONS)
