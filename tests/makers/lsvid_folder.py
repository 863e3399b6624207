"""A tiny copy of LS-VID, with everything in it that loaders stumble over (datasets.md section 13)."""

import json
from pathlib import Path

import h5py
import numpy as np
from PIL import Image
from scipy.io import savemat

# (pid, tracklet number, camera from 1, pictures): a line each, in order; its number is its place, counted from 1.
# Lines do not follow the people, and as text 101 and 11 come before 2.
TRAIN = (
    *((11, 1, 5, 4), (11, 2, 15, 5)),
    *((2, 1, 5, 20), (2, 10, 3, 3), (2, 2, 3, 4)),
    *((101, 1, 3, 4), (101, 2, 15, 5)),
    *((3, 1, 3, 4), (3, 2, 5, 3)),
)
TEST = (
    *((120, 1, 1, 3), (120, 10, 2, 4)),
    *((6, 1, 1, 3), (6, 2, 2, 3), (6, 3, 1, 4)),
    *((5, 1, 15, 2), (5, 2, 1, 3)),
)
# Lines of TEST, counted from 1: every tracklet of person 5 asks, so that it is found among the queries only.
QUERIES = (1, 3, 4, 6, 7)
WITHOUT_SIDECAR = "0002_1_05_0010"  # in the middle of its tracklet
ALL_ZERO = "0003_1_03_0001"  # nobody was found there


def make(root, *, train=TRAIN, test=TEST, queries=QUERIES, index="release", skeletons="", size=(16, 32), line_end="\n"):
    """Write a tiny copy of LS-VID: 4 people to train on, 3 to test on, 5 of the 15 cameras.

    Person 2's first tracklet has twenty pictures, and its name begins that of the tenth: 0002_1 and 0002_10.

    Args:
        root: made where it is not there.
        train: lines of the training list: (pid, tracklet number, camera from 1, pictures); pid -1 is junk.
        test: lines of the test list.
        queries: lines of the test list that ask, counted from 1.
        index: "release": where LS-VID_V2.zip has lists and matrices, HDF5 as MATLAB 7.3 writes it; "info": the same
            below info/; "arrays": .npy files; "old": a MATLAB file of version 5.
        skeletons: name of a folder of side-car files to write; one is left out and one is all zeros. Empty: none.
        size: width and height of the pictures; no two are the same.
        line_end: of the lists.
    """
    root = Path(root)
    top = root / "info" if index == "info" else root
    lists = top / "list_sequence"
    lists.mkdir(parents=True)
    for half, rows in (("train", train), ("test", test)):
        text = "".join(f"{prefix_of(half, row)} {row[0]}{line_end}" for row in rows)
        (lists / f"list_seq_{half}.txt").write_bytes(text.encode())
        for row in rows:
            for path in pictures_of(half, row):
                _picture(root / path, row, size)
                if skeletons and Path(path).stem != WITHOUT_SIDECAR:
                    _sidecar(root / skeletons / Path(path).with_suffix(".json"), row)
    (lists / "list_seq_val.txt").write_text(
        f"tracklet_val/0900/0900_1 900{line_end}tracklet_val/0900/0900_2 900{line_end}"
    )
    info = np.array([[0, 0, pid, camera] for pid, _, camera, _ in test], np.float64)
    write_matrices(root, np.array(queries, np.float64)[:, None], info, index)


def prefix_of(half, row):
    pid, number, _, _ = row
    person = f"{pid:04d}" if pid >= 0 else "junk"
    return f"tracklet_{half}/{person}/{person}_{number}"


def pictures_of(half, row):
    _, _, camera, pictures = row
    return [f"{prefix_of(half, row)}_{camera:02d}_{frame:04d}.jpg" for frame in range(1, pictures + 1)]


def write_matrices(root, query, info, index="release"):
    """Write who asks (queries, 1) and the test list's facts (tracklets, 4), both as MATLAB shows them."""
    folder = Path(root) / {"info": "info/data", "arrays": "test"}.get(index, "test/data")
    folder.mkdir(parents=True, exist_ok=True)
    if index == "arrays":
        np.save(folder / "query.npy", query.ravel())
        np.save(folder / "info_test.npy", info)
    elif index == "old":
        savemat(folder / "info_test.mat", {"query": query, "info_test": info})
    else:
        write_hdf5(folder / "info_test.mat", query=query, info_test=info)


def write_hdf5(path, **matrices):
    """Write what MATLAB does for `save -v7.3`: 512 bytes of its own, then HDF5 with every matrix transposed."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, matrix in matrices.items():
            file[name] = matrix.T
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(512))


def _picture(path, row, size):
    """A person's colour, darker under cameras of high numbers; a line across tells the frame, one down the tracklet."""
    pid, number, camera, _ = row
    frame, light = int(path.stem[-4:]), 150 - 3 * camera
    image = Image.new("RGB", size, tuple(int(light * (0.55 + 0.45 * np.cos(pid + turn)) + 20) for turn in (0, 2, 4)))
    image.paste("white", (0, frame, size[0], frame + 1))
    image.paste("black", (number, 0, number + 1, size[1]))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=95)


def _sidecar(path, row):
    """A figure of 17 joints whose joint 16 knows frame, person and tracklet; HMR2.0 adds other keys."""
    pid, number, _, _ = row
    joints = np.array([[0.1 * (j % 3), 0.1 * j, 0.05 * (j % 2)] for j in range(17)])
    joints[16] = int(path.stem[-4:]), pid, number
    if path.stem == ALL_ZERO:
        joints[:] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"keypoints": joints.tolist(), "score": 0.9}))
