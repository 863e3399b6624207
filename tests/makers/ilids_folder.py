"""A tiny copy of iLIDS-VID, with everything in it that loaders stumble over (datasets.md section 13)."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

# Numbers have gaps: the fourth person is number 319, and the third number 5.
PEOPLE = (1, 2, 5, 319)
# Numbers of the source video's frames: not from 1, and one is missing.
FRAMES = {1: (317, 318, 320, 321), 2: (9, 10, 11)}
# A row a split, places in the sorted list of people from 1: the first half of the first row is people 2 and 319.
LS_SET = (
    *((2, 4, 1, 3), (1, 2, 3, 4), (4, 3, 2, 1), (3, 1, 4, 2), (1, 3, 2, 4)),
    *((4, 1, 3, 2), (2, 3, 4, 1), (3, 4, 1, 2), (1, 4, 2, 3), (2, 1, 4, 3)),
)
WITHOUT_SIDECAR = "cam1_person005_00318"  # in the middle of its tracklet
ALL_ZERO = "cam2_person001_00009"  # nobody was found there


def make(root, *, people=PEOPLE, ls_set=LS_SET, kind=np.uint16, below=".", skeletons="", size=(16, 32)):
    """Write a tiny copy of iLIDS-VID: four people, everybody under both cameras, as the tar file unpacks.

    Args:
        root: made where it is not there.
        people: their numbers.
        ls_set: the splits.
        kind: number type of the splits.
        below: where the tar file was unpacked, below the root ("raw/iLIDS-VID" in older code).
        skeletons: end of the name of the folder of side-car files to write, sequences_NAME; it lies below the root even
            where the pictures lie deeper, one file is left out and one is all zeros. Empty: none.
        size: width and height of the pictures; each has a colour of its own.
    """
    root = Path(root)
    top = root / below
    for pid in people:
        for camera, frames in FRAMES.items():
            person = f"cam{camera}/person{pid:03d}"
            # The single-shot version, which nobody should read.
            _picture(top / "i-LIDS-VID/images" / person / f"cam{camera}_person{pid:03d}.png", 0, 0, 0, size)
            for frame in frames:
                stem = f"cam{camera}_person{pid:03d}_{frame:05d}"
                _picture(top / "i-LIDS-VID/sequences" / person / f"{stem}.png", pid, camera, frame, size)
                if skeletons and stem != WITHOUT_SIDECAR:
                    folder = root / "i-LIDS-VID" / f"sequences_{skeletons}" / person
                    _sidecar(folder / f"{stem}.json", pid, camera, frame)
    write_splits(root, np.array(ls_set, kind), below)


def write_splits(root, ls_set, below="."):
    folder = Path(root) / below / "train-test people splits"
    folder.mkdir(parents=True, exist_ok=True)
    savemat(folder / "train_test_splits_ilidsvid.mat", {"ls_set": ls_set})


def _picture(path, pid, camera, frame, size):
    """A person's colour, darker under the second camera, brighter with every frame."""
    red, green, blue = (0.55 + 0.45 * np.cos(pid + turn) for turn in (0, 2, 4))
    light = 120 + 8 * (frame % 10) - 30 * camera
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, tuple(int(light * c + 20) for c in (red, green, blue))).save(path)


def _sidecar(path, pid, camera, frame):
    """A figure of 17 joints whose joint 16 knows frame, person and camera."""
    joints = np.array([[0.1 * (j % 3), 0.1 * j, 0.05 * (j % 2)] for j in range(17)])
    joints[16] = frame, pid, camera
    if path.stem == ALL_ZERO:
        joints[:] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"keypoints": joints.tolist()}))
