"""The rows that the shipped weights make of the shipped video's frames 500 to 562, against a file written earlier.

Made anew by ``python tests/csip/ingest/test_golden_rows.py``.
"""

import hashlib
import io
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csip import tables
from csip.ingest.records import EXTRACT_VERSION, extract_digests

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "extract_rows.json"
COMMAND = "python tests/csip/ingest/test_golden_rows.py"
# Other machines add up in another order: these are a hundred times what that moves.
PIXELS, SHARE, GREY = 0.5, 0.01, 2.0
# Weak detections may come or go at the threshold; strong ones may not.
SURE = 0.3


def summarise(store):
    """Say what a store's rows are: every sure detection, every tracklet, and how each tracklet's crops look."""
    rows = {
        name: tables.read(tables.current(str(store), name)).to_pylist()
        for name in ("detections", "tracklets", "crops", "skeletons")
    }
    tracklets = []
    for row in sorted(rows["tracklets"], key=lambda row: row["tracklet_id"]):
        crops = [crop for crop in rows["crops"] if crop["tracklet_id"] == row["tracklet_id"]]
        poses = [pose for pose in rows["skeletons"] if pose["tracklet_id"] == row["tracklet_id"]]
        pictures = [Image.open(io.BytesIO(crop["image"])) for crop in crops]
        tracklets.append(
            {
                "frames": [crop["frame_index"] for crop in crops],
                "time": [row["first_time"], row["last_time"]],
                "first_box": crops[0]["box"],
                "last_box": crops[-1]["box"],
                "keypoint_confidence": row["keypoint_confidence"],
                "first_pose": poses[0]["keypoints"],
                "mean_colour": np.mean([np.asarray(p).mean(axis=(0, 1)) for p in pictures], axis=0).tolist(),
            }
        )
    return {
        "detections": len(rows["detections"]),
        "sure": [
            {name: row[name] for name in ("frame_index", "time", "box", "score")}
            for row in rows["detections"]
            if row["score"] >= SURE
        ],
        "tracklets": tracklets,
    }


def rounded(value):
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value


def differences(found, expected):
    """Name what differs by more than machines do."""
    told = []
    if abs(found["detections"] - expected["detections"]) > 2:
        told.append(f"{found['detections']} detections, not {expected['detections']}")
    # One at the border of what is sure may fall on either side.
    clear = [[row for row in side["sure"] if row["score"] >= SURE + SHARE] for side in (found, expected)]
    if [row["frame_index"] for row in clear[0]] != [row["frame_index"] for row in clear[1]]:
        told.append("sure detections in other frames")
    else:
        for mine, golden in zip(*clear, strict=True):
            far = np.abs(np.subtract(mine["box"], golden["box"])).max()
            if far > PIXELS or abs(mine["score"] - golden["score"]) > SHARE or mine["time"] != golden["time"]:
                told.append(f"frame {golden['frame_index']}: {mine}, not {golden}")
    frames = [[tracklet["frames"] for tracklet in side["tracklets"]] for side in (found, expected)]
    if sorted(frames[0]) != sorted(frames[1]):
        return [*told, "other tracklets"]
    limits = {"time": 1e-6, "first_box": PIXELS, "last_box": PIXELS, "keypoint_confidence": SHARE, "mean_colour": GREY}
    for mine, golden in zip(
        *(sorted(side["tracklets"], key=lambda t: t["frames"]) for side in (found, expected)), strict=True
    ):
        for name, limit in limits.items():
            if np.abs(np.subtract(mine[name], golden[name])).max() > limit:
                told.append(f"tracklet of frames {golden['frames'][0]}..: {name} {mine[name]}, not {golden[name]}")
        pose, other = np.array(mine["first_pose"]), np.array(golden["first_pose"])
        seen = other[:, 2] > 0.5
        if np.abs(pose - other)[seen, :2].max() > 2 * PIXELS or np.abs(pose - other)[:, 2].max() > 5 * SHARE:
            told.append(f"tracklet of frames {golden['frames'][0]}..: another pose")
    return told


def verdict(found, golden, version):
    """What is wrong with rows and version together; empty where both are as they were."""
    told = differences(found, golden)
    shown = "\n  ".join(told[:10])
    if told and version == golden["extract_version"]:
        return (
            f"rows changed but EXTRACT_VERSION did not:\n  {shown}\nIf that is meant, raise EXTRACT_VERSION in "
            f"csip/ingest/records.py, so that stores extract again, and then run `{COMMAND}`."
        )
    if version != golden["extract_version"]:
        return (
            f"EXTRACT_VERSION is {version}, the golden rows are of {golden['extract_version']}: run `{COMMAND}` and "
            f"look at what changed.\n  {shown}"
        )
    return ""


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_rows_change_only_with_the_version(extracted, golden):
    told = verdict(rounded(summarise(extracted.store)), golden, EXTRACT_VERSION)
    assert not told, told


def test_the_golden_rows_are_of_these_weights_and_settings(golden, steps):
    digests = extract_digests(steps.config)
    assert golden["weights"] == dict(digests.weights)
    assert golden["settings"] == {"image_size": 640, "engine": "pytorch", "device": "cpu"}
    assert len(golden["sure"]) > 50
    assert len(golden["tracklets"]) == 4


def test_the_guard_sees_a_moved_box_a_lost_tracklet_and_a_forgotten_version(golden):
    assert verdict(golden, golden, golden["extract_version"]) == ""
    moved = json.loads(json.dumps(golden))
    moved["sure"][0]["box"][0] += 1
    assert "rows changed but EXTRACT_VERSION did not" in verdict(moved, golden, golden["extract_version"])
    fewer = golden | {"tracklets": golden["tracklets"][1:]}
    assert "other tracklets" in verdict(fewer, golden, golden["extract_version"])
    assert "the golden rows are of" in verdict(golden, golden, golden["extract_version"] + 1)
    nearly = json.loads(json.dumps(golden))
    nearly["sure"][0]["box"][0] += 0.4
    nearly["detections"] += 1
    assert verdict(nearly, golden, golden["extract_version"]) == ""


def regenerate():
    """Write the golden file from this machine's rows."""
    import conftest  # beside this file, which is run as a program

    with tempfile.TemporaryDirectory() as folder:
        video = conftest.source_video(conftest.copy_packets(Path(folder) / "street.mp4"))
        conftest.extract(Path(folder) / "store", [video])
        rows = rounded(summarise(Path(folder) / "store"))
    head = {
        "command": COMMAND,
        "extract_version": EXTRACT_VERSION,
        "settings": {"image_size": 640, "engine": "pytorch", "device": "cpu"},
        "video": hashlib.sha256(conftest.SHIPPED.read_bytes()).hexdigest(),
        "weights": dict(extract_digests(conftest.CONFIG).weights),
    }
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(head | rows, indent=1) + "\n", encoding="utf-8")
    sys.stderr.write(f"{GOLDEN}: {len(rows['sure'])} sure detections, {len(rows['tracklets'])} tracklets\n")


if __name__ == "__main__":
    regenerate()
