"""Every frame once, in order, at its own time, whichever decoder gives it; and plain words for what is no video."""

import contextlib
import dataclasses
import errno
import logging
import os
import re
import subprocess
import sys
import tracemalloc
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

import csip
from csip.errors import DecoderLostError, VideoError
from csip.ingest import container, video
from csip.ingest.scan import LastScan, scan_video
from csip.ingest.video import probe
from tests.makers.read_video import read_frames

SHIPPED = Path(csip.__file__).parent / "assets" / "pedestrians.mp4"
BITS = 8
FASTSTART = {"movflags": "+faststart"}


def stamp(number):
    """A (96, 128) grey picture whose upper blocks spell `number` in binary, lowest bit first."""
    picture = np.full((96, 128), 60, np.uint8)
    picture[:, 64:] = 90
    for bit in range(BITS):
        picture[8:40, 16 * bit : 16 * bit + 16] = 235 if number >> bit & 1 else 16
    return picture


def read_stamp(picture):
    blocks = [picture[24, 16 * bit + 8].mean() > 128 for bit in range(BITS)]
    return sum(1 << bit for bit, lit in enumerate(blocks) if lit)


def write_video(path, count=60, *, codec="libx264", form=None, ticks=None, tick=Fraction(1, 10), turn=0, options=None):
    """Write stamped frames 0..count-1; `ticks` are their times, `turn` the counter-clockwise rotation to be shown."""
    ticks = list(range(count)) if ticks is None else ticks
    with av.open(str(path), "w", format=form, options=options or {}) as container:
        x264 = {"x264-params": "keyint=12:scenecut=0"} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=10, options=x264)
        pictures = [np.rot90(stamp(n), -turn // 90) for n in range(count)]
        stream.height, stream.width = pictures[0].shape
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = stream.time_base = tick
        if turn:
            stream.set_display_rotation(turn)
        for n, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.stack([picture] * 3, axis=2)), format="rgb24")
            frame.pts, frame.time_base = ticks[n], tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read_all(path, batch=16):
    """Stamps, frame indices and times of a whole video, and the error it ended in, if any."""
    stamps, index, time, error = [], [], [], None
    try:
        for frames in read_frames(path, batch=batch, threads=2):
            stamps += [read_stamp(picture) for picture in frames.pixels]
            index += frames.frame_index.tolist()
            time += frames.time.tolist()
    except VideoError as raised:
        error = str(raised)
    return stamps, index, time, error


def count_decodable(path):
    """Frames that PyAV alone gets out of a file, past its errors."""
    count = 0
    with av.open(str(path)) as container:
        packets = container.demux(video=0)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return count
                count += len(packet.decode())
            except av.error.InvalidDataError:
                continue


def cut(source, target, share):
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


@pytest.mark.parametrize(("most", "levels"), [(0, 0), (sys.maxsize, 2)])
def test_the_shipped_video_is_read_as_pyav_reads_it(monkeypatch, caplog, most, levels):
    monkeypatch.setattr(video, "_MOST_AHEAD", most)
    with av.open(str(SHIPPED)) as container:
        expected = container.decode(video=0)
        read = 0
        for frames in read_frames(SHIPPED, batch=50, threads=2):
            for picture, index, time in zip(frames.pixels, frames.frame_index, frames.time, strict=True):
                other = next(expected)
                difference = np.abs(picture.astype(np.int16) - other.to_ndarray(format="rgb24"))
                # decord and PyAV bring their own copies of the colour conversion.
                assert difference.max() <= levels
                assert index == read
                assert time == pytest.approx(read / 10)
                read += 1
        assert next(expected, None) is None
    assert read == 795
    assert not caplog.records


def test_the_shipped_video_says_what_it_is():
    info = probe(SHIPPED)
    assert (info.codec, info.width, info.height, info.fps, info.num_frames) == ("h264", 768, 576, 10.0, 795)
    assert info.duration == pytest.approx(79.5)
    notice = (SHIPPED.parent / "NOTICE.md").read_text(encoding="utf-8")
    assert info.sha256 in notice
    assert info.bytes == SHIPPED.stat().st_size


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.mov", "libx265"), ("a.avi", "mpeg4"), ("a.webm", "libvpx-vp9")],
)
def test_decord_gives_every_frame_once_and_in_order(tmp_path, caplog, name, codec):
    path = write_video(tmp_path / name, codec=codec)
    stamps, index, time, error = read_all(path)
    assert error is None
    assert stamps == index == list(range(60))
    assert np.diff(time) == pytest.approx(0.1)
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "codec", "form", "because"),
    [
        ("a.ts", "libx264", None, "decord misreads mpegts files"),
        ("a.flv", "libx264", None, "decord misreads flv files"),
        ("a.h264", "libx264", "h264", "its packets have no times"),
        ("a.mp4", "libsvtav1", None, "decord cannot read AV1"),
    ],
)
def test_where_decord_goes_wrong_pyav_gives_every_frame(tmp_path, caplog, name, codec, form, because):
    path = write_video(tmp_path / name, codec=codec, form=form)
    stamps, index, time, error = read_all(path)
    assert error is None
    assert stamps == index == list(range(60))
    assert np.diff(time) == pytest.approx(0.1)
    assert [because in record.message for record in caplog.records] == [True]
    assert probe(path).num_frames == 60


def test_frames_hidden_by_an_edit_list_are_neither_shown_nor_missed(tmp_path, caplog):
    # Frames before time zero: the writer keeps them in the file and lets an edit list start after them.
    path = write_video(tmp_path / "a.mp4", ticks=[n - 14 for n in range(60)])
    stamps, index, time, error = read_all(path)
    assert error is None
    assert stamps == list(range(14, 60))
    assert index == list(range(46))
    assert time == pytest.approx([n / 10 for n in range(46)])
    assert "edit list" in caplog.text
    assert probe(path).num_frames == 46


def test_a_stream_joined_midway_starts_at_its_first_key_frame(tmp_path):
    whole = write_video(tmp_path / "whole.ts", count=120)
    with av.open(str(whole)) as container:
        at = [packet.pos for packet in container.demux(video=0) if packet.size]
    # Key frames are 0, 12, 24, ...; the cut lies after 15's packet starts.
    data = whole.read_bytes()[at[15] // 188 * 188 :]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(data)
    stamps, index, _, error = read_all(joined)
    assert error is None
    assert stamps == list(range(24, 120))
    assert index == list(range(96))


def test_times_come_from_the_container_and_not_from_a_rate(tmp_path):
    ticks = [400 + 100 * n + 17 * (n % 3) for n in range(40)]
    for name in ("a.mp4", "a.mkv"):
        path = write_video(tmp_path / name, count=40, ticks=ticks, tick=Fraction(1, 1000))
        stamps, _, time, error = read_all(path)
        assert error is None
        assert stamps == list(range(40))
        assert time == pytest.approx([tick / 1000 for tick in ticks])
        # 39 steps from tick 400 to tick 400 + 3900.
        assert probe(path).fps == pytest.approx(39 / 3.9, abs=1e-5)


@pytest.mark.parametrize(("turn", "ticks_start"), [(90, 0), (180, 0), (270, 0), (90, -14), (180, -14), (270, -14)])
def test_both_decoders_turn_a_rotated_video_upright(tmp_path, caplog, turn, ticks_start):
    path = write_video(tmp_path / "a.mp4", count=30, turn=turn, ticks=[n + ticks_start for n in range(30)])
    stamps, _, _, error = read_all(path)
    assert error is None
    assert stamps == list(range(-ticks_start, 30))
    assert bool(caplog.records) == (ticks_start < 0), "the edit list sends the video to PyAV, else decord reads it"
    assert (probe(path).width, probe(path).height) == (128, 96)


@pytest.mark.parametrize("width", [2, 4, 8, 16, 24, 48, 72])
def test_a_video_that_decord_gives_in_another_shape_is_read_by_pyav(tmp_path, width):
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as made:
        stream = made.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, 16, "yuvj420p"
        for n in range(3):
            picture = np.full((16, width, 3), 60 * n, np.uint8)
            made.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        made.mux(stream.encode(None))
    (frames,) = read_frames(path, batch=8, threads=2)
    assert frames.pixels.shape == (3, 16, width, 3)
    assert frames.pixels.mean(axis=(1, 2, 3)) == pytest.approx([0, 60, 120], abs=2)


def test_a_still_ending_is_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "stamp", lambda number, draw=stamp: draw(min(number, 20)))
    path = write_video(tmp_path / "a.mp4", count=60)
    stamps, index, _, error = read_all(path)
    assert error is None
    assert index == list(range(60))
    assert stamps == [*range(20), *[20] * 40]


def test_a_file_cut_off_gives_what_it_holds_and_then_says_so(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", count=200, options={"movflags": "+faststart"})
    path = cut(whole, tmp_path / "cut.mp4", 0.5)
    decodable = count_decodable(path)
    stamps, index, _, error = read_all(path)
    assert 20 < decodable == len(index) < 180
    # The packet that was cut in two may leave a wrong picture, or none, among the last ones.
    assert stamps[:-4] == index[:-4] == list(range(decodable - 4))
    assert f"read {decodable} of 200 frames" in error


def test_a_matroska_file_cut_off_is_known_by_its_duration(tmp_path):
    whole = write_video(tmp_path / "whole.mkv", count=200)
    path = cut(whole, tmp_path / "cut.mkv", 0.5)
    decodable = count_decodable(path)
    stamps, index, _, error = read_all(path)
    # In decoding order some of the last frames come before their neighbours, so the cut leaves a gap there.
    assert stamps[:-4] == index[:-4] == list(range(decodable - 4))
    expected = int(re.search(rf"read {decodable} of (\d+) frames", error)[1])
    # Matroska announces seconds, not frames.
    assert abs(expected - 200) <= 5


def test_a_hole_in_a_file_shifts_no_later_frame(tmp_path):
    path = write_video(tmp_path / "a.mp4", count=200)
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for at, size in packets[100:110]:
        data[at : at + size] = bytes(size)
    path.write_bytes(data)
    stamps, index, time, error = read_all(path)
    found = dict(zip(index, stamps, strict=True))
    # Frames 96 to 119 hang on the damaged group of pictures, and on the one before it for its last frames.
    for n in [*range(90), *range(120, 200)]:
        assert found[n] == n
    assert time == pytest.approx([n / 10 for n in index])
    assert len(index) == len(set(index)) < 200
    assert f"read {len(index)} of 200 frames" in error


def without_key_frame(path):
    """A recording whose second key frame its network lost."""
    whole = write_video(path.with_name("whole.mp4"))
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for n, packet in enumerate(source.demux(video=0)):
            if packet.size and n != 12:
                packet.stream = stream
                target.mux(packet)
    return path


def test_decord_gives_no_frame_that_its_referee_has_not_seen(tmp_path, caplog):
    path = without_key_frame(tmp_path / "a.mp4")
    _, index, time, error = read_all(path)
    assert len(index) == count_decodable(path) < 59
    assert "because the file is damaged there" in caplog.text
    with av.open(str(path)) as container:
        expected = sorted(float(frame.pts * frame.time_base) for frame in container.decode(video=0))
    assert time == pytest.approx(expected)
    assert f"read {len(index)} of 59 frames" in error


def test_a_picture_that_hangs_on_a_damaged_one_shown_after_it_is_not_decords(tmp_path, monkeypatch):
    # Frames 0 to 29 go by without a complaint: decord gives those that no later one can have hurt.
    path = write_video(tmp_path / "a.mp4", count=60)
    monkeypatch.setattr(video, "sound_times", lambda *_: iter_and_close(scan_video(path).pts[:30].tolist()))
    given = []

    def counting(*args, give=video._refereed):
        for picture in give(*args):
            given.append(len(given))
            yield picture

    monkeypatch.setattr(video, "_refereed", counting)
    stamps, index, _, error = read_all(path)
    assert error is None
    assert stamps == index == list(range(60))
    assert given == list(range(30 - 16))


def test_decord_gives_no_frame_from_the_first_on_whose_colours_it_gets_wrong(tmp_path, monkeypatch, caplog):
    # As where a broadcast goes over from a film to pictures of two fields.
    path = write_video(tmp_path / "a.mp4", count=60)
    tell = container.other_colours
    monkeypatch.setattr(
        container, "other_colours", lambda frame: "two fields" if frame.pts * frame.time_base >= 3 else tell(frame)
    )
    stamps, index, _, error = read_all(path)
    assert error is None
    assert stamps == index == list(range(60))
    assert "from frame 14 on PyAV decodes, because the file is damaged there, or goes on with frames of" in caplog.text


def test_frames_that_decord_loses_in_silence_are_not_taken_for_others(tmp_path, monkeypatch):
    """Where its referee sees nothing, it makes up pictures at the end for the frames that it lost before."""
    path = without_key_frame(tmp_path / "a.mp4")
    monkeypatch.setattr(video, "sound_times", lambda *_: iter_and_close(scan_video(path).pts.tolist()))
    with pytest.raises(DecoderLostError, match=r"a\.mp4: decord lost frames of it that PyAV decodes"):
        list(read_frames(path, batch=4, threads=2))


def iter_and_close(items):
    yield from items


def test_pyav_takes_over_where_decord_gives_up(tmp_path, monkeypatch, caplog):
    path = write_video(tmp_path / "a.mp4", count=40)

    def failing(*args, give=video._refereed):
        for n, picture in enumerate(give(*args)):
            if n == 17:
                raise video.decord.DECORDError("no more")
            yield picture

    monkeypatch.setattr(video, "_refereed", failing)
    stamps, index, _, error = read_all(path)
    assert error is None
    assert stamps == index == list(range(40))
    assert "from frame 17 on PyAV decodes, because decord failed: no more" in caplog.text


@pytest.mark.parametrize(("most", "made"), [(40, [1]), (39, [])])
def test_decord_reads_no_more_than_it_may_hold_in_memory(tmp_path, monkeypatch, caplog, most, made):
    """It decodes on while nobody takes its frames, as behind a slow pose model, and nothing can hold it back."""
    path = write_video(tmp_path / "a.mp4", count=40)
    monkeypatch.setattr(video, "_MOST_AHEAD", most * 96 * 128 * 3)
    readers = []

    def counting(*args, make=video.decord.VideoReader, **more):
        readers.append(1)
        return make(*args, **more)

    monkeypatch.setattr(video.decord, "VideoReader", counting)
    stamps, index, _, error = read_all(path)
    assert error is None
    assert stamps == index == list(range(40))
    assert readers == made
    assert not caplog.records


def test_a_frame_costs_a_scan_a_few_bytes(tmp_path):
    frames = 30_000
    path = tmp_path / "a.mp4"
    plain = write_video(tmp_path / "plain.mp4", count=2)
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        key = next(source.demux(video=0))
        for n in range(frames):
            packet = av.Packet(bytes(key))
            packet.pts = packet.dts = n * 1024
            packet.time_base, packet.stream, packet.is_keyframe = key.time_base, stream, n % 50 == 0
            target.mux(packet)
    tracemalloc.start()
    try:
        assert len(scan_video(path).pts) == frames
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Two times of eight bytes each, and a copy or two while they are sorted; as objects they took a hundred.
    assert peak / frames < 60


@pytest.mark.parametrize("error", [av.error.OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale")])
def test_a_disk_that_fails_while_frames_come_is_no_damage_of_the_file(error):
    def failing(_):
        yield from (1, 2)
        raise error

    packets = container._packets(SimpleNamespace(demux=failing), None, Path("/videos/a.ts"))
    assert [next(packets), next(packets)] == [1, 2]
    with pytest.raises(DecoderLostError, match=rf"a\.ts: reading it failed \({error.strerror}\)\. Run the same"):
        next(packets)


@pytest.mark.parametrize("name", ["a.ts", "a.mkv", "a.mp4"])
@pytest.mark.parametrize("share", [0.6, 1.5])
def test_a_file_that_does_not_read_as_it_did_is_not_taken_for_damaged(tmp_path, name, share):
    # Many a demuxer takes a failing disk for the file's end, and then there are fewer packets than there were.
    found = scan_video(write_video(tmp_path / name, count=80, options=FASTSTART if name == "a.mp4" else None))
    if share < 1:
        cut(tmp_path / name, tmp_path / name, share)
    else:
        write_video(tmp_path / name, count=120)
    distrusted = dataclasses.replace(found, distrust="of the test")
    with pytest.raises(DecoderLostError, match=rf"{name}: gave \d+ packets of video where it had 80 a moment before"):
        list(video.read_images(tmp_path / name, distrusted, 1))


CONCEALING = ("libx264", "libx265", "mpeg1video", "mpeg2video", "libvpx", "libvpx-vp9", "libsvtav1", "mpeg4")


@pytest.mark.parametrize("codec", CONCEALING)
def test_rows_of_damaged_video_hang_on_no_number_of_threads(tmp_path, codec):
    path = write_video(tmp_path / "a.mkv", codec=codec, tick=Fraction(1, 25))
    with av.open(str(path)) as opened:
        packets = [(packet.pos, packet.size) for packet in opened.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for at, size in (packets[n] for n in (15, 30, 40)):
        data[at + size // 2 : at + size] = bytes(size - size // 2)
    path.write_bytes(data)
    pictures = []
    for threads in (1, 2, 5):
        pictures.append([])
        with contextlib.suppress(VideoError):
            pictures[-1].extend(one for some in read_frames(path, batch=8, threads=threads) for one in some.pixels)
    assert len(pictures[0]) == len(pictures[1]) == len(pictures[2]) > 20
    for same in zip(*pictures, strict=True):
        np.testing.assert_array_equal(same[0], same[1])
        np.testing.assert_array_equal(same[0], same[2])


def test_what_is_no_video_is_said_in_plain_words(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "text.mp4").write_text("This is not a video.\n" * 50)
    whole = write_video(tmp_path / "whole.mp4")
    cut(whole, tmp_path / "no_index.mp4", 0.5)
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    messages = {
        "missing.mp4": r"missing\.mp4: no such file",
        "empty.mp4": r"empty\.mp4: the file is empty \(0 bytes\)",
        "noise.mp4": r"noise\.mp4: 5000 bytes that cannot be read as a video",
        "text.mp4": r"text\.mp4: 1050 bytes that cannot be read as a video",
        "no_index.mp4": r"no_index\.mp4: .* cannot be read as a video",
        "sound.mp4": r"sound\.mp4: found audio, expected a video stream",
    }
    for name, message in messages.items():
        with pytest.raises(VideoError, match=message):
            probe(tmp_path / name)
        with pytest.raises(VideoError, match=message):
            list(read_frames(tmp_path / name, batch=8, threads=1))


def test_a_title_that_is_not_utf_8_does_no_harm(tmp_path):
    plain = write_video(tmp_path / "plain.mp4", 20)
    with av.open(str(plain)) as source, av.open(str(tmp_path / "titled.mp4"), "w") as target:
        target.metadata["title"] = "Haupttuer"
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    content = (tmp_path / "titled.mp4").read_bytes()
    assert content.count(b"Haupttuer") == 1
    (tmp_path / "titled.mp4").write_bytes(content.replace(b"Haupttuer", b"Hauptt\xfcr "))
    assert probe(tmp_path / "titled.mp4").num_frames == 20
    assert read_all(tmp_path / "titled.mp4")[0] == list(range(20))


def test_a_fallback_is_warned_of_once(tmp_path, caplog):
    path = write_video(tmp_path / "a.ts")
    with caplog.at_level(logging.INFO):
        read_all(path)
    assert len(caplog.records) == 1


def test_pngs_can_be_decoded_beside_decord():
    # decord brings a zlib of its own; OpenCV loaded after it decodes no PNG at all.
    code = """
import csip.ingest.video
import cv2, numpy
png = cv2.imencode(".png", numpy.full((8, 4, 3), 200, numpy.uint8))[1]
assert cv2.imdecode(png, cv2.IMREAD_COLOR) is not None
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_pyav_keeps_its_own_codecs_beside_decord(tmp_path):
    """Loaded before PyAV, decord would give it its older libvpx, which it cannot use."""
    code = (
        "import sys\nimport csip.ingest.video\nimport av\n"
        "with av.open(sys.argv[1], 'w') as made:\n"
        "    stream = made.add_stream('libvpx-vp9', rate=10)\n"
        "    stream.width, stream.height, stream.pix_fmt = 64, 48, 'yuv420p'\n"
        "    made.mux(stream.encode(av.VideoFrame(64, 48, 'yuv420p')))\n"
        "    made.mux(stream.encode())\n"
    )
    path = tmp_path / "vp9.webm"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert path.stat().st_size


def test_a_file_that_does_not_change_is_scanned_once(tmp_path):
    path = tmp_path / "street.mp4"
    path.write_bytes(SHIPPED.read_bytes())
    scan_file = LastScan()
    first = scan_file(path)
    assert scan_file(path) is first
    assert scan_file(SHIPPED) is not first
    again = scan_file(path)
    assert again is not first
    os.utime(path, ns=(0, 0))
    assert scan_file(path) is not again
    path.write_bytes(b"")
    with pytest.raises(VideoError, match="the file is empty"):
        scan_file(path)
