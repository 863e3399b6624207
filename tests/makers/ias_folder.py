"""A tiny copy of IAS-Lab RGBD-ID, with everything in it that loaders stumble over (datasets.md section 13)."""

import runpy
from pathlib import Path

PEOPLE = runpy.run_path(str(Path(__file__).with_name("kinect_people.py")))

# Frames of each person's sequence. Training loses 10 skeletons, the others 20.
TRAIN = {0: 40, 1: 38, 2: 36, 3: 17}
A = {0: 40, 1: 45, 2: 26, 3: 25}
B = {0: 42, 1: 41, 2: 38, 3: 36}
SESSIONS = ("Training", "TestingA", "TestingB")
UNTRACKED = ("Training/001", 2)  # one joint of state 0; among those that are trimmed
STREAMS = ("rgb.jpg", "depth.pgm", "userMap.pgm")


def make(root, *, train=TRAIN, a=A, b=B, streams=True, stem="{pid:03d}_{frame:06d}"):
    """Write a tiny copy of IAS-Lab RGBD-ID: 4 people in each of three sessions, folders made in reverse order.

    Args:
        root: made where it is not there.
        train: person -> frames.
        a: the same of those in other clothes.
        b: the same of those in another room.
        streams: write stubs of the other streams too; a frame's streams share its stem.
        stem: of a frame's files.
    """
    for session, people in zip(SESSIONS[::-1], (b, a, train), strict=True):
        for pid, frames in reversed(people.items()):
            folder = Path(root) / session / f"{pid:03d}"
            folder.mkdir(parents=True)
            walk = PEOPLE["skeletons"](pid, frames, walking=True, seed=SESSIONS.index(session))
            for frame, joints in reversed(list(enumerate(walk))):
                name = stem.format(pid=pid, frame=frame)
                rows = PEOPLE["lines"](joints)
                # NiTE has no wrists, ankles and hips' centre of its own: lines are copies of others.
                for copy, of in ((6, 7), (10, 11), (14, 15), (18, 19), (0, 1)):
                    rows[copy][1:4] = rows[of][1:4]
                if (f"{session}/{pid:03d}", frame) == UNTRACKED:
                    rows[5][6] = 0
                (folder / f"{name}_skel.txt").write_text(PEOPLE["text"](rows))
                for stream in STREAMS if streams else ():
                    (folder / f"{name}_{stream}").write_bytes(b"")
