"""PyAV's pictures do not depend on how many threads decode, of damaged files neither."""

import random

import av
import numpy as np
import pytest

from csip.errors import VideoError
from csip.ingest import container, video
from csip.ingest.scan import scan_video
from csip.ingest.video import read_images
from tests.makers.bad_videos import encode

KINDS = [
    *(("a.mp4", "libx264"), ("a.ts", "libx264"), ("a.mkv", "libx265"), ("a.avi", "mpeg4"), ("a.avi", "mjpeg")),
    *(("a.webm", "libvpx-vp9"), ("a.webm", "libvpx"), ("a.mp4", "libsvtav1"), ("a.ts", "mpeg2video")),
]


MORE = {"libsvtav1": {"size": (128, 96)}, "mjpeg": {"pix_fmt": "yuvj420p"}}


@pytest.fixture(autouse=True)
def pyav_alone(monkeypatch):
    monkeypatch.setattr(video, "_MOST_AHEAD", 0)


def read(path, threads):
    """Indices, times and bytes of all pictures, and the error that the video ended in."""
    given = []
    try:
        for index, at, picture in read_images(path, scan_video(path), threads):
            given.append((index, at, picture.tobytes()))
    except VideoError as error:
        return given, str(error)
    return given, None


def damage(data, drawn):
    """Turn a bit, or put zeros or noise in a place that is drawn by lot, once or more often; the header is spared."""
    for _ in range(drawn.choice((1, 1, 2, 5))):
        at = drawn.randrange(len(data) // 50, len(data))
        kind, size = drawn.choice(("bit", "zeros", "noise")), min(drawn.choice((4, 40, 400)), len(data) - at)
        if kind == "bit":
            data[at] ^= 1 << drawn.randrange(8)
        else:
            data[at : at + size] = bytes(size) if kind == "zeros" else drawn.randbytes(size)
    return data


@pytest.mark.parametrize(("name", "codec"), KINDS)
def test_any_number_of_threads_gives_the_same_pictures(tmp_path, name, codec):
    path = encode(tmp_path / name, codec, **MORE.get(codec, {}))
    whole = path.read_bytes()
    assert len(read(path, 3)[0]) == 40
    drawn = random.Random(f"{name} {codec}")
    spoilt = 0
    for _ in range(8):
        path.write_bytes(damage(bytearray(whole), drawn))
        alone = read(path, 1)
        assert read(path, drawn.choice((2, 3, 4))) == alone
        spoilt += alone[1] is not None or alone[0] != read_whole(tmp_path, whole, name)
    assert spoilt > 2


def read_whole(folder, data, name):
    path = folder / f"whole-{name}"
    path.write_bytes(data)
    return read(path, 1)[0]


def test_frames_are_pyavs_from_the_first_complaint_on_and_those_before_it_too(tmp_path):
    path = encode(tmp_path / "a.mp4", size=(64, 48))
    with av.open(str(path)) as opened:
        packets = [(packet.pos, packet.size) for packet in opened.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    at, size = packets[25]
    data[at : at + size] = bytes(size)
    path.write_bytes(data)
    pictures = {index: np.frombuffer(picture, np.uint8) for index, _, picture in read(path, 4)[0]}
    expected = {}
    with av.open(str(path)) as opened:
        opened.streams.video[0].codec_context.thread_count = 1
        for packet in opened.demux(video=0):
            try:
                for frame in packet.decode():
                    expected[round(float(frame.pts * frame.time_base) * 10)] = frame.to_ndarray(format="rgb24").ravel()
            except av.error.InvalidDataError:
                continue
    assert pictures.keys() == expected.keys()
    assert len(pictures) < 40
    assert all((pictures[index] == expected[index]).all() for index in expected)


def test_a_stream_that_begins_late_costs_no_frame(tmp_path, monkeypatch):
    """PyAV fails over it behind the last packet."""
    path = encode(tmp_path / "a.ts")
    whole = read(path, 2)
    opened = container.open_container

    class Late:
        """A container that fails as PyAV does once all has been given."""

        def __init__(self, inner):
            self._inner = inner

        def __enter__(self):
            self._inner.__enter__()
            return self

        def __exit__(self, *how):
            return self._inner.__exit__(*how)

        def __getattr__(self, name):
            return getattr(self._inner, name)

        def demux(self, *streams):
            yield from self._inner.demux(*streams)
            raise IndexError("list index out of range")

    for module in ("container", "packets"):
        monkeypatch.setattr(f"csip.ingest.{module}.open_container", lambda *a, **more: Late(opened(*a, **more)))
    assert read(path, 2) == whole
    assert len(whole[0]) == 40
