"""A tiny copy of MARS, with everything in it that loaders stumble over (datasets.md section 13)."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

# (pid, camera from 1, frame numbers): a row each, in order; its number is its place, counted from 1.
TRAIN = (
    *((1, 1, (1, 2, 3)), (1, 1, (1, 2, 4, 5)), (1, 2, (1, 2))),
    *((3, 1, (1, 2, 3, 4)), (3, 2, (1, 2, 3))),
    *((5, 1, (1, 2, 3)), (5, 2, (1, 2, 3, 4)), (5, 2, (1, 2, 3))),
)
TEST = (
    *((-1, 1, (1, 2, 3)), (-1, 2, (1, 2))),
    *((0, 1, (1, 2, 3)), (0, 2, (1, 2, 3, 4))),
    *((2, 1, (1, 2, 3)), (2, 1, (1, 2, 3, 4)), (2, 2, (1, 2, 3)), (2, 2, (1, 2, 3, 4, 5))),
    *((4, 1, (1, 2, 3)), (4, 2, (1, 2, 3, 4))),
    *((6, 1, (1, 2, 3)), (6, 2, (1, 2, 3, 4)), (6, 2, (1, 2))),
)
# Rows of TEST, counted from 1: every tracklet of person 4 asks, so that it is found among the queries only.
QUERIES = (5, 7, 9, 10, 11)
WITHOUT_SIDECAR = "0002C1T0002F002"  # in the middle of its tracklet
ALL_ZERO = "0003C1T0001F001"  # nobody was found there


def make(root, *, train=TRAIN, test=TEST, queries=QUERIES, skeletons="", size=(16, 32), line_end="\r\n"):
    """Write a tiny copy of MARS: 3 people to train on (odd), 3 to test on (even), distractors and junk, 2 cameras.

    Args:
        root: made where it is not there.
        train: rows of the training half: (pid, camera from 1, frame numbers); pid ascending.
        test: rows of the test half; pid -1 is junk, 0 distractors.
        queries: rows of the test half that ask, counted from 1.
        skeletons: name of a folder of side-car files to write; one is left out and one is all zeros. Empty: none.
        size: width and height of the pictures; each has a colour of its own.
        line_end: of the lists of names.
    """
    root = Path(root)
    info = root / "info"
    info.mkdir(parents=True)
    for half, rows in (("train", train), ("test", test)):
        lists = names_of(rows)
        (info / f"{half}_name.txt").write_bytes("".join(name + line_end for one in lists for name in one).encode())
        table = [[0, 0, pid, camera] for pid, camera, _ in rows]
        for row, names, before in zip(table, lists, [[0, 0], *table], strict=False):
            row[:2] = before[1] + 1, before[1] + len(names)
        savemat(info / f"tracks_{half}_info.mat", {f"track_{half}_info": np.array(table, np.int32)})
        for (pid, camera, _), names in zip(rows, lists, strict=True):
            for name in names:
                _picture(root / f"bbox_{half}" / name[:4] / name, pid, camera, size)
                if skeletons and pid >= 0 and name[:-4] != WITHOUT_SIDECAR:
                    _sidecar(root / skeletons / f"bbox_{half}" / name[:4] / f"{name[:-4]}.json", pid)
    savemat(info / "query_IDX.mat", {"query_IDX": np.array([queries], np.uint16)})


def names_of(rows):
    """Name the pictures of each row as MARS does; tracklets are numbered within their person."""
    lists, numbers = [], {}
    for pid, camera, frames in rows:
        number = numbers[pid] = numbers.get(pid, 0) + 1
        person = "00-1" if pid < 0 else f"{pid:04d}"
        lists.append([f"{person}C{camera}T{number:04d}F{frame:03d}.jpg" for frame in frames])
    return lists


def _picture(path, pid, camera, size):
    """A person's colour, darker under the second camera, brighter with every tracklet and frame."""
    tracklet, frame = int(path.stem[7:11]), int(path.stem[12:])
    red, green, blue = (0.5 + 0.5 * np.cos(pid + turn) for turn in (0, 2, 4))
    light = 90 + 6 * frame + 12 * tracklet - 10 * camera
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, tuple(int(light * c + 40) for c in (red, green, blue))).save(path, quality=95)


def _sidecar(path, pid):
    """A figure of 17 joints that knows its frame (x of joint 16) and person (y of joint 16); HMR2.0 adds other keys."""
    joints = np.array([[0.1 * (j % 3), 0.1 * j, 0.05 * (j % 2)] for j in range(17)])
    joints[16, :2] = int(path.stem[12:]), pid
    if path.stem == ALL_ZERO:
        joints[:] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"keypoints": joints.tolist(), "score": 0.9}))
