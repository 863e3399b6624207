"""The skeletons that the shipped weights make of crops of the shipped video, against a file written earlier.

Made anew by ``python tests/csip/ingest/benchmarks/test_golden_crop_pose.py``.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from csip.config import ExtractConfig, RuntimeConfig
from csip.ingest.benchmarks.crop_pose import CROP_POSE_VERSION, PoseSkeletons
from csip.ingest.benchmarks.crops import CropFile
from csip.ingest.decoder import Decoder
from csip.ingest.track_pass import encode_crop
from csip.ingest.video import probe

FOLDER = Path(__file__).resolve().parents[3] / "golden"
GOLDEN = FOLDER / "crop_pose.json"
COMMAND = "python tests/csip/ingest/benchmarks/test_golden_crop_pose.py"
# Other machines add up in another order: these are a hundred times what that moves.
PIXELS, SHARE = 0.5, 0.05


def skeletons(video):
    """Give the rounded skeletons of every eighth of the golden detections, cut out of their frames."""
    boxes = json.loads((FOLDER / "extract_rows.json").read_text(encoding="utf-8"))["sure"][::8]
    with Decoder(RuntimeConfig()) as decoder:
        frames = np.concatenate([some.pixels for some in decoder.frames(probe(video), batch=64)])
    images = [encode_crop(frames[row["frame_index"]], np.array(row["box"], np.float32), 95) for row in boxes]
    source = PoseSkeletons(ExtractConfig(), RuntimeConfig(device="cpu", pose_engine="pytorch"))
    found = source([CropFile(Path(f"{i}.jpg"), i) for i in range(len(images))], images)
    return found.keypoints.astype(float).round(3).tolist()


def verdict(found, golden, version):
    """What is wrong with skeletons and version together; empty where both are as they were."""
    mine, other = np.array(found), np.array(golden["skeletons"])
    seen = other[:, :, 2] > 0.5
    told = mine.shape != other.shape or (
        np.abs(mine - other)[seen][:, :2].max() > PIXELS or np.abs(mine - other)[:, :, 2].max() > SHARE
    )
    if version != golden["crop_pose_version"]:
        return f"CROP_POSE_VERSION is {version}, the golden one {golden['crop_pose_version']}: run `{COMMAND}`."
    if told:
        return (
            "skeletons of crops changed but CROP_POSE_VERSION did not. If that is meant, and no default of the config "
            f"has changed, raise it in csip/ingest/benchmarks/crop_pose.py; then run `{COMMAND}`."
        )
    return ""


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_skeletons_of_crops_change_only_with_the_version(street, golden):
    told = verdict(skeletons(Path(street.path)), golden, CROP_POSE_VERSION)
    assert not told, told


def test_the_guard_sees_a_moved_joint_and_a_forgotten_version(golden):
    version, kept = golden["crop_pose_version"], golden["skeletons"]
    assert len(kept) >= 8
    assert verdict(kept, golden, version) == ""
    moved = np.array(kept)
    surest = np.unravel_index(moved[:, :, 2].argmax(), moved.shape[:2])
    moved[(*surest, 0)] += 1
    assert "skeletons of crops changed but CROP_POSE_VERSION did not" in verdict(moved, golden, version)
    assert "changed" in verdict(kept[1:], golden, version)
    assert "CROP_POSE_VERSION is" in verdict(kept, golden, version + 1)


def regenerate():
    """Write the golden file from this machine's skeletons."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import conftest  # of the folder above

    with tempfile.TemporaryDirectory() as folder:
        found = skeletons(conftest.copy_packets(Path(folder) / "street.mp4"))
    content = {"command": COMMAND, "crop_pose_version": CROP_POSE_VERSION, "skeletons": found}
    GOLDEN.write_text(json.dumps(content) + "\n", encoding="utf-8")
    sys.stderr.write(f"{GOLDEN}: {len(found)} skeletons\n")


if __name__ == "__main__":
    regenerate()
