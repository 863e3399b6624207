"""Videos as the world has them: healthy ones of many kinds, odd ones, damaged ones, and what only looks like a video.

Every frame carries its number, so that a wrong one is known by its picture.
"""

import os
import struct
import wave
from fractions import Fraction

import av
import numpy as np
from PIL import Image

BITS = 6
TICK = Fraction(1, 10)


def stamp(number, height=48, width=64):
    """(H, W, 3) picture, coloured in its last sixth, whose upper blocks spell `number` in binary, lowest bit first."""
    picture = np.full((height, width, 3), 60, np.uint8)
    picture[:, width // 2 :] = 90
    below = height * 5 // 6
    # Colours that change within a block of pixels that share one: who spreads them otherwise gives other pictures.
    y, x = np.mgrid[below:height, :width]
    picture[below:] = np.stack([(x // 3 + y) % 2 * 255, (x // 5 + y // 3) % 2 * 255, (x + number) % 3 * 127], axis=2)
    edges = np.linspace(0, width, BITS + 1).astype(int)
    for bit in range(BITS):
        picture[: height * 2 // 3, edges[bit] : edges[bit + 1]] = 235 if number >> bit & 1 else 16
    return picture


def read_stamp(picture):
    """The number that a picture spells."""
    height, width = picture.shape[:2]
    middle = (np.arange(BITS) + 0.5) * width / BITS
    return sum(1 << bit for bit, x in enumerate(middle) if picture[height // 3, int(x)].mean() > 128)


def is_whole(picture):
    """Whether a picture looks as `stamp` draws it, and not like one that was filled in."""
    height, width = picture.shape[:2]
    middle = (np.arange(BITS) + 0.5) * width / BITS
    blocks = np.array([picture[height // 8 : height // 2, int(x)].astype(int) for x in middle])
    return bool((np.minimum(np.abs(blocks - 16), np.abs(blocks - 235)) < 25).all())


def encode(
    path,
    codec="libx264",
    *,
    first=0,
    count=40,
    size=(64, 48),
    pix_fmt="yuv420p",
    ticks=None,
    tick=TICK,
    turn=0,
    form=None,
    **more,
):
    """Write `count` frames; `ticks` are their times, `turn` the rotation, `more` options of the encoder or file."""
    to_file = {name: more.pop(name) for name in ("movflags", "use_editlist", "avoid_negative_ts") if name in more}
    x264 = {"x264-params": "keyint=12:scenecut=0"} if codec == "libx264" else {}
    x265 = {"x265-params": "log-level=none:keyint=12"} if codec == "libx265" else {}
    with av.open(str(path), "w", format=form, options=to_file) as container:
        stream = container.add_stream(codec, rate=10, options=x264 | x265 | more)
        pictures = [np.rot90(stamp(n, size[1], size[0]), -turn // 90) for n in range(first, first + count)]
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = stream.time_base = tick
        if turn:
            stream.set_display_rotation(turn)
        for n, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = n if ticks is None else ticks[n], tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def packets(path):
    """(position, size) of the video's packets."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def cut(path, share):
    """Keep a share of the file's bytes."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def cut_before(path, word):
    """Keep what comes before some bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: data.index(word)])
    return path


def spoil(path, first, last):
    """Put noise in the place of packets first..last-1, past the lengths that lead them."""
    data, noise = bytearray(path.read_bytes()), np.random.default_rng(1)
    for at, size in packets(path)[first:last]:
        data[at + 6 : at + size] = noise.bytes(size - 6)
    path.write_bytes(data)
    return path


def flip(path, *numbers):
    """Turn one bit around in the middle of each of some packets."""
    data = bytearray(path.read_bytes())
    for at, size in (packets(path)[n] for n in numbers):
        data[at + size // 2] ^= 16
    path.write_bytes(data)
    return path


def without_start(path, packet):
    """Leave out all that comes before a packet, as one who joins a broadcast."""
    at, _ = packets(path)[packet]
    path.write_bytes(path.read_bytes()[at // 188 * 188 :])
    return path


def announce(path, count):
    """Let an AVI's headers claim a number of frames."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"avih") + 8 + 16, count)
    struct.pack_into("<I", data, data.index(b"strh") + 8 + 32, count)
    path.write_bytes(data)
    return path


def replace(path, old, new):
    """Put bytes in the place of others of the same length."""
    data = path.read_bytes()
    if old not in data or len(old) != len(new):
        raise ValueError(f"{path}: {old!r} is not there, or not as long as {new!r}")
    path.write_bytes(data.replace(old, new))
    return path


def noise(path, size=5000):
    path.write_bytes(np.random.default_rng(0).bytes(size))
    return path


def text(path, content="This is not a video.\n" * 50):
    path.write_text(content)
    return path


def picture(path, kind="JPEG"):
    Image.fromarray(stamp(1)).save(path, format=kind)
    return path


def tone():
    sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
    sound.sample_rate = 16000
    return sound


def sound(path):
    """A second of silence."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        container.mux(stream.encode(tone()))
        container.mux(stream.encode(None))
    return path


def covered_sound(path):
    """A second of silence in MP3, with a cover picture, which FFmpeg calls a video stream (ID3v2, frame APIC)."""
    picture(path)
    body = b"\0image/jpeg\0\3\0" + path.read_bytes()
    tag = b"APIC" + struct.pack(">I", len(body)) + b"\0\0" + body
    length = bytes(len(tag) >> shift & 127 for shift in (21, 14, 7, 0))
    # Silence: MPEG 1 layer III, 128 kbit/s, 44.1 kHz, mono frames of nothing.
    frames = (b"\xff\xfb\x90\xc4" + bytes(413)) * 40
    path.write_bytes(b"ID3\3\0\0" + length + tag + frames)
    return path


def wave_sound(path):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))
    return path


def two_streams(path, *, other_first):
    """The video, beside another of half its size and other pictures."""
    with av.open(str(path), "w") as container:
        made = []
        for small in (other_first, not other_first):
            stream = container.add_stream("libx264", rate=10, options={"x264-params": "keyint=12"})
            stream.width, stream.height, stream.pix_fmt = (32, 24, "yuv420p") if small else (64, 48, "yuv420p")
            made.append((stream, small))
        for n in range(40):
            for stream, small in made:
                pixels = stamp(63 - n, 24, 32) if small else stamp(n)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        for stream, _ in made:
            container.mux(stream.encode(None))
    return path


def with_more(path, more):
    """The video with another stream beside it: "sound", or "subtitles"."""
    plain = encode(path.with_name("plain.mp4"))
    if more == "sound":
        beside = sound(path.with_name("beside.mp4"))
    else:
        lines = (f"{n + 1}\n00:00:0{n},000 --> 00:00:0{n},900\nline {n}\n\n" for n in range(3))
        beside = text(path.with_name("beside.srt"), "".join(lines))
    with av.open(str(plain)) as source, av.open(str(beside)) as other, av.open(str(path), "w") as target:
        held = []
        for one in (source, other):
            copied = target.add_stream_from_template(one.streams[0])
            for packet in one.demux():
                if packet.size:
                    packet.stream = copied
                    held.append(packet)
        target.mux(held)
    plain.unlink()
    beside.unlink()
    return path


def lose(path, *numbers, codec="libx264", recounted=False, **more):
    """The video without some of its packets, as one records it whose network lost them.

    `recounted`: by a recorder that gives what it gets times of its own, so that no gap is left.
    """
    # A Matroska file's packets may begin before time zero, which its writer refuses.
    plain = encode(path.with_name("plain.mp4" if path.suffix == ".mkv" else f"plain{path.suffix}"), codec, **more)
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        video = target.add_stream_from_template(source.streams.video[0])
        whole = [packet for packet in source.demux(video=0) if packet.size]
        kept = [packet for n, packet in enumerate(whole) if n not in numbers]
        places = sorted(packet.pts for packet in kept)
        pts, dts = sorted(packet.pts for packet in whole), [packet.dts for packet in whole]
        for n, packet in enumerate(kept):
            if recounted:
                packet.pts, packet.dts = pts[places.index(packet.pts)], dts[n]
            packet.stream = video
            target.mux(packet)
    plain.unlink()
    return path


def two_sizes(path):
    """Raw H.264 whose second half is of another size."""
    parts = [
        encode(path.with_name(f"{n}.h264"), form="h264", first=20 * n, count=20, size=size)
        for n, size in enumerate(SIZES)
    ]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    for part in parts:
        part.unlink()
    return path


SIZES = ((64, 48), (96, 80))


def loop(path):
    path.symlink_to(path.name)
    return path


def dead_link(path):
    path.symlink_to("gone.mp4")
    return path


def pipe(path):
    os.mkfifo(path)
    return path


class _NoWayBack:
    """A file that is only written on, so that no header is completed."""

    def __init__(self, path):
        self._file = path.open("wb")

    def write(self, data):
        return self._file.write(data)

    def close(self):
        self._file.close()


def growing(path):
    """A Matroska file as it is while it is written: no index, no duration, and the last packet half there."""
    file = _NoWayBack(path)
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=10, options={"x264-params": "keyint=12"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for n in range(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(stamp(n), format="rgb24")))
        container.mux(stream.encode(None))
    file.close()
    return cut(path, 0.7)
