"""Tiny arrays like those that TranSG's authors publish (datasets.md section 9)."""

import os
import pickle
import runpy
from pathlib import Path

import numpy as np

PEOPLE = runpy.run_path(str(Path(__file__).with_name("kinect_people.py")))

TESTS = {"BIWI": ("Still", "Walking"), "IAS": ("A", "B")}
# Windows of each person.
TRAIN = {0: 30, 1: 24, 2: 20, 5: 22}
TEST = ({0: 5, 1: 4, 5: 6}, {0: 6, 1: 7, 5: 4})


class _Poison:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def make(root, *, dataset="BIWI", frames=6, train=TRAIN, test=TEST, poison=None):
    """Write train_npy_data and test_npy_data; the third training window is there twice.

    Args:
        root: made where it is not there.
        dataset: BIWI or IAS.
        frames: f, of a window.
        train: person -> windows.
        test: the same for each of the two tests.
        poison: a path; whoever unpickles ids_* makes a folder there.
    """
    folders = ["train_npy_data", *(f"test_npy_data/{name}" for name in TESTS[dataset])]
    for number, (place, people) in enumerate(zip(folders, (train, *test), strict=True)):
        folder = Path(root) / place
        folder.mkdir(parents=True)
        pieces = [PEOPLE["skeletons"](pid, count * frames, number != 1, number) for pid, count in people.items()]
        windows = np.concatenate(pieces).reshape(-1, frames, 20, 3)
        pid = np.concatenate([np.full(count, pid) for pid, count in people.items()])
        if number == 0:
            windows[3], ending = windows[2], f"{dataset}_{frames}.npy"
            np.save(folder / f"target_x_{ending}", windows[:, ::-1, :, 0].reshape(-1, 20))
        for axis, name in enumerate("xyz"):
            before = "t_" if number else ""
            np.save(folder / f"{before}source_{name}_{ending}", windows[..., axis].reshape(-1, 20))
        np.save(folder / f"frame_id_{ending}", pid)
        ids = np.empty((), object)
        ids[()] = (
            {int(one): np.flatnonzero(pid == one).tolist() for one in people} if poison is None else _Poison(poison)
        )
        with (folder / f"ids_{ending}").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
            pickle.dump(ids, file)
