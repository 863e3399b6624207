"""A video's frames, decoded in the process of the test: no child, no deadlines, and whatever the test has replaced."""

import numpy as np

from csip.errors import VideoError
from csip.ingest.scan import scan_video
from csip.ingest.video import read_images
from csip.types import Frames


def read_frames(path, *, batch, threads):
    """Give `Frames` of `batch` frames, and fewer at the end; an error comes after every frame that decodes."""
    held = []
    try:
        for item in read_images(path, scan_video(path), threads):
            held.append(item)
            if len(held) == batch:
                yield _stack(held)
                held = []
    except VideoError:
        if held:
            yield _stack(held)
        raise
    if held:
        yield _stack(held)


def _stack(items):
    index, time, pixels = zip(*items, strict=True)
    return Frames(np.stack(pixels), np.array(index, np.int64), np.array(time, np.float64))
