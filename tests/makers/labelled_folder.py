"""One small data set in the four shapes that a user may bring: two cameras, people to train, ask and answer."""

import csv
import json
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

# (split, pid, camera, tracklet, first frame in the camera's video, frames): person 1 and 4 train, 7 and 9 ask.
# Camera 10 comes behind 2, and frame 10 behind frame 9, by their numbers only.
WALKS = (
    *(("train", 1, "2", "a", 0, 3), ("train", 1, "10", "a", 0, 2), ("train", 4, "2", "a", 1, 4)),
    *(("query", 7, "2", "a", 2, 4), ("query", 9, "10", "a", 0, 3)),
    *(("gallery", 0, "2", "x", 3, 2), ("gallery", 7, "10", "a", 4, 3)),
    *(("gallery", 9, "2", "a", 0, 12), ("gallery", 9, "10", "b", 5, 4)),
)
LANE, HEIGHT, FRAMES = 16, 48, 14  # of the videos: a walk has a lane of its own
IDENTITY_COLUMNS = ("video", "frame", "x1", "y1", "x2", "y2", "pid", "camera", "split", "tracklet")


def make(root, form="folder", *, walks=WALKS, suffix=".csv", skeletons=""):
    """Write the data set.

    Args:
        root: made where it is not there.
        form: "folder" is <split>/<pid>/<camera>/<tracklet>/*.jpg; "videos" has a video a camera and identities.csv;
            "manifest" is manifest.csv with a row a folder; "pictures" the same with a row a picture.
        walks: see WALKS.
        suffix: of the file that says who is who, .csv or .parquet.
        skeletons: name of a folder of side-car files to write, without that of each walk's second frame. Empty: none.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    if form == "videos":
        write_table(root / f"identities{suffix}", identities(walks))
        for camera in sorted({walk[2] for walk in walks}):
            _video(root / f"cam{camera}.mp4", camera, walks)
    else:
        _pictures(root, form, walks)
    if form in ("manifest", "pictures"):
        write_table(root / f"manifest{suffix}", manifest(walks, form))
    if skeletons:
        _sidecars(root / skeletons, form, walks)


def colour(number, position):
    """RGB of a walk's frame: red says which walk, green which frame."""
    return (30 + 24 * number, 20 + 16 * position, 90)


def box(number):
    """x1 y1 x2 y2 of a walk in its camera's video."""
    return (LANE * number + 2, 8, LANE * number + 14, 40)


def folder_of(walk, number, form):
    """Where a walk's pictures lie."""
    return f"{walk[0]}/{walk[1]:04d}/{walk[2]}/{walk[3]}" if form == "folder" else f"pictures/{number}"


def identities(walks):
    """Rows of the identity file, by frame as a tracker would write them."""
    rows = []
    for number, (split, pid, camera, tracklet, first, count) in enumerate(walks):
        for frame in range(first, first + count):
            rows.append((f"cam{camera}.mp4", frame, *box(number), pid, camera, split, tracklet))
    rows.sort(key=lambda row: row[:2])
    return [dict(zip(IDENTITY_COLUMNS, row, strict=True)) for row in rows]


def manifest(walks, form):
    """Rows of a manifest."""
    rows = []
    for number, walk in enumerate(walks):
        split, pid, camera, tracklet, first, count = walk
        folder = folder_of(walk, number, form)
        about = {"pid": pid, "camera": camera, "split": split, "tracklet": tracklet}
        if form == "manifest":
            rows.append({"path": folder} | about)
        else:
            rows += [{"path": f"{folder}/{i + 1}.jpg", "frame": first + i} | about for i in range(count)]
    return rows


def write_table(path, rows):
    """Write rows as CSV or Parquet."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def _pictures(root, form, walks):
    for number, walk in enumerate(walks):
        folder = root / folder_of(walk, number, form)
        folder.mkdir(parents=True)
        for position in range(walk[5]):
            Image.new("RGB", (12, 32), colour(number, position)).save(folder / f"{position + 1}.jpg", quality=95)


def _video(path, camera, walks):
    with av.open(str(path), "w") as made:
        stream = made.add_stream("libx264", rate=10, options={"qp": "2", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = LANE * len(walks), HEIGHT, "yuv420p"
        for frame in range(FRAMES):
            pixels = np.full((HEIGHT, LANE * len(walks), 3), 128, np.uint8)
            for number, (_, _, seen_by, _, first, count) in enumerate(walks):
                if seen_by == camera and first <= frame < first + count:
                    x1, y1, x2, y2 = box(number)
                    pixels[y1:y2, x1:x2] = colour(number, frame - first)
            made.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        made.mux(stream.encode())


def _sidecars(root, form, walks):
    """Figures of 17 joints that know their position (x of joint 16) and their walk (y of joint 16)."""
    for number, walk in enumerate(walks):
        _, pid, camera, tracklet, first, count = walk
        for position in range(count):
            joints = np.full((17, 3), 0.5)
            joints[16, :2] = position, number
            name = f"cam{camera}.mp4/{pid}/{tracklet}/{first + position}"
            if form != "videos":
                name = f"{folder_of(walk, number, form)}/{position + 1}"
            if position != 1:
                path = root / f"{name}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps({"keypoints": joints.tolist()}))
