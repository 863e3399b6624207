"""A tiny copy of BIWI RGBD-ID, with everything in it that loaders stumble over (datasets.md section 13)."""

import runpy
from pathlib import Path

PEOPLE = runpy.run_path(str(Path(__file__).with_name("kinect_people.py")))

# Frames of each person's sequence. Of 21, 25 and 26 skeletons 1, 5 and 6 are left after trimming.
TRAIN = {0: 60, 1: 60, 2: 60, 3: 60, 7: 32}
STILL = {0: 44, 1: 50, 3: 26, 7: 25}
WALKING = {0: 41, 1: 45, 3: 50, 7: 21}
SESSIONS = {"Training": "", "Testing/Still": "a", "Testing/Walking": "b"}  # and the letter of their sequences
TWO_PEOPLE = ("Training/000", 15)  # 40 lines, and the second person is not tracked
NOBODY = ("Training/001", 20)
UNTRACKED = ("Training/002", 4)  # one joint; among those that are trimmed
FEW_LINES = ("Training/003", 59)
STREAMS = ("a_{}_rgb.jpg", "b_{}_depth.pgm", "c_{}_userMap.pgm", "e_{}_groundCoeff.txt")


def make(root, *, train=TRAIN, still=STILL, walking=WALKING, streams=True):
    """Write a tiny copy of BIWI RGBD-ID: by default 5 people to train on, 4 of whom are tested.

    Args:
        root: made where it is not there.
        train: person -> frames.
        still: the same of those who stand still.
        walking: the same of those who walk.
        streams: write stubs of the other streams too; each has a time of its own.
    """
    for (session, letter), people in zip(SESSIONS.items(), (train, still, walking), strict=True):
        for pid, frames in people.items():
            folder = Path(root) / session / f"{pid:03d}"
            folder.mkdir(parents=True)
            seed = list(SESSIONS).index(session)
            for frame, joints in enumerate(PEOPLE["skeletons"](pid, frames, session != "Testing/Still", seed)):
                stem, time = f"{pid:03d}{letter}_{frame:06d}", 8_349_192 + 100 * frame
                rows = _rows((f"{session}/{pid:03d}", frame), joints)
                (folder / f"{stem}-d_{time}_skel.txt").write_text(PEOPLE["text"](rows))
                for number, name in enumerate(STREAMS if streams else ()):
                    (folder / f"{stem}-{name.format(time + 7 * (number + 1))}").write_bytes(b"")


def _rows(place, joints):
    rows = PEOPLE["lines"](joints)
    if place == TWO_PEOPLE:
        rows += PEOPLE["lines"](joints + 1, person=2)
        for row in rows[20:]:
            row[6] = 0
    elif place == NOBODY:
        for row in rows:
            row[0] = 0
    elif place == UNTRACKED:
        rows[11][6] = 0
    elif place == FEW_LINES:
        rows.pop()
    return rows
