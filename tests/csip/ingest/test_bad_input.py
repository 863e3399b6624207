"""The table of bad input: each file gives the referee's frames, or is quarantined with its reason; none hangs.

The referee is PyAV, used as plainly as it can be: every frame it decodes, at its own time. Of one thread, as several
fill in otherwise what is damaged.
"""

import dataclasses
import hashlib
import http.server
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from csip import tables
from csip.config import ExtractConfig, RuntimeConfig
from csip.errors import SourceError, VideoError
from csip.ingest import decoder_process as decoder_module
from csip.ingest.check import check_sources
from csip.ingest.container import check_file
from csip.ingest.decoder import Decoder
from csip.ingest.sources import list_videos
from csip.plain import from_plain, to_plain
from csip.types import VideoList

_MAKERS = Path(__file__).resolve().parents[2] / "makers" / "bad_videos.py"
_SPEC = importlib.util.spec_from_file_location(_MAKERS.stem, _MAKERS)
make = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(make)

# A file must take a fraction of this; a hang ends the test as an error instead of standing still.
RUNTIME = RuntimeConfig(decode_stall_seconds=30, decode_limit_seconds=30)
VFR = [0, 1, 2, 7, 8, 20, 21, 22, 30, 31, *range(40, 70)]


@dataclass(frozen=True)
class Good:
    """Every frame, as the referee has them: which, and how their times follow where not in tenths of a second."""

    frames: tuple[int, ...] | range = range(40)
    times: tuple[float, ...] = ()
    size: tuple[int, int] = (64, 48)


@dataclass(frozen=True)
class Partial:
    """What the referee has of it, frame by frame, and then an error."""

    told: str


@dataclass(frozen=True)
class Quarantined:
    told: str


@dataclass(frozen=True)
class Row:
    name: str
    write: Callable[[Path], Path]
    outcome: Good | Partial | Quarantined


def encoded(*args, **kwargs):
    return lambda path: make.encode(path, *args, **kwargs)


def lost(*numbers, **kwargs):
    return lambda path: make.lose(path, *numbers, **kwargs)


def but(number):
    """All frames but one, which leaves a gap in the times."""
    kept = tuple(n for n in range(40) if n != number)
    return Good(kept, tuple(n / 10 for n in kept))


NO_VIDEO = Quarantined(
    "cannot be read as a video|no video file, such as a playlist or a picture|expected a video stream"
)
# Nothing in the file says how many frames there were, so nothing is missed.
DAMAGED = Partial("^$")
# Whether a frame is lost or only looks wrong is the encoder's luck.
HURT = Partial(r"^$|read \d+ of 40")
TABLE = [
    Row("h264.mp4", encoded(), Good()),
    Row("h264.mkv", encoded(), Good()),
    Row("hevc.mp4", encoded("libx265"), Good()),
    Row("hevc.mkv", encoded("libx265"), Good()),
    Row("vp9.webm", encoded("libvpx-vp9", deadline="realtime"), Good()),
    Row("mpeg4.avi", encoded("mpeg4"), Good()),
    Row("mpeg4.mp4", encoded("mpeg4", bf="2"), Good()),
    Row("msmpeg4.avi", encoded("msmpeg4"), Good()),
    Row("mjpeg.avi", encoded("mjpeg", pix_fmt="yuvj420p"), Good()),
    Row("mjpeg.mov", encoded("mjpeg", pix_fmt="yuvj422p"), Good()),
    Row("wmv2.wmv", encoded("wmv2"), Good()),
    Row("mpeg2.mkv", encoded("mpeg2video", tick=make.Fraction(1, 25)), Good(times=tuple(n / 25 for n in range(40)))),
    Row("av1.mp4", encoded("libsvtav1", count=20, preset="12"), Good(range(20))),
    Row("h264.ts", encoded(), Good()),
    Row("h264.flv", encoded(), Good()),
    Row("raw.h264", encoded(form="h264"), Good()),
    Row("fragments.mp4", encoded(movflags="frag_keyframe+empty_moov"), Good()),
    Row("vfr.mkv", encoded(ticks=VFR), Good(times=tuple(n / 10 for n in VFR))),
    Row("vfr.mp4", encoded(ticks=VFR), Good(times=tuple(n / 10 for n in VFR))),
    Row("vfr.webm", encoded("libvpx-vp9", ticks=VFR, deadline="realtime"), Good(times=tuple(n / 10 for n in VFR))),
    Row("turned 90.mp4", encoded(turn=90), Good()),
    Row("turned 180.mp4", encoded(turn=180), Good()),
    Row("turned 270.mp4", encoded(turn=270), Good()),
    Row("odd.webm", encoded("libvpx-vp9", size=(63, 47), deadline="realtime"), Good(size=(63, 47))),
    Row("odd.avi", encoded("mjpeg", size=(63, 47), pix_fmt="yuvj420p"), Good(size=(63, 47))),
    Row("odd.mp4", encoded(size=(63, 47), pix_fmt="yuv444p"), Good(size=(63, 47))),
    Row("10 bits.mkv", encoded("libx265", pix_fmt="yuv420p10le"), Good()),
    Row("10 bits.mp4", encoded(pix_fmt="yuv420p10le"), Good()),
    Row("12 bits.mkv", encoded("libx265", pix_fmt="yuv422p12le"), Good()),
    Row("colours of one column.webm", encoded("libvpx-vp9", pix_fmt="yuv440p", deadline="realtime"), Good()),
    Row("interlaced.mp4", encoded(flags="+ilme+ildct"), Good()),
    Row("one frame.mp4", encoded(count=1), Good(range(1))),
    Row("edit list.mp4", encoded(ticks=[n - 14 for n in range(40)]), Good(range(14, 40))),
    Row("B-frames.mp4", encoded(bf="3", ticks=range(5, 45)), Good(times=tuple(n / 10 for n in range(5, 45)))),
    Row("joined midway.ts", lambda path: make.without_start(make.encode(path), 15), Good(range(24, 40))),
    Row("sound too.mp4", lambda path: make.with_more(path, "sound"), Good()),
    Row("subtitles.mkv", lambda path: make.with_more(path, "subtitles"), Good()),
    Row("B-frames.avi", encoded(), Good()),
    Row("B-frames.asf", encoded(), Good()),
    Row("B-frames, vfr.asf", encoded(ticks=VFR), Good(times=tuple(n / 10 for n in VFR))),
    Row("B-frames, MPEG-4.avi", encoded("mpeg4", bf="2"), Good()),
    Row("pauses.avi", encoded("mpeg4", ticks=VFR), Good(times=tuple(n / 10 for n in VFR))),
    Row("first packet lost.mkv", lost(0), Partial("read 28 of 39")),
    Row("key frame lost.mkv", lost(12), Partial("read 31 of 39")),
    Row("key frame lost.mp4", lost(12), Partial("read 31 of 39")),
    Row("key frame lost, hevc.mkv", lost(16, codec="libx265"), Partial("read 32 of 39")),
    Row("key frame lost, hevc.mp4", lost(16, codec="libx265"), Partial("read 32 of 39")),
    Row("key frame lost, recounted.mkv", lost(12, recounted=True), Partial("read 31 of 39")),
    Row("key frame lost, recounted, hevc.mp4", lost(16, codec="libx265", recounted=True), Partial("read 32 of 39")),
    Row("B-frame lost.mkv", lost(15), but(14)),
    Row("B-frame lost, hevc.mp4", lost(19, codec="libx265"), but(17)),
    Row("P-frame lost.mp4", lost(16), DAMAGED),
    Row("P-frame lost, hevc.mkv", lost(20, codec="libx265"), Partial("read 36 of 39")),
    Row("P-frames lost, MPEG-4.mp4", lost(13, codec="mpeg4", bf="2"), Partial("read 37 of 39")),
    Row("bits turned.mkv", lambda path: make.flip(make.encode(path), 14, 18), HURT),
    Row("bits turned, hevc.mp4", lambda path: make.flip(make.encode(path, "libx265"), 13, 17), HURT),
    Row("two, small last.mp4", lambda path: make.two_streams(path, other_first=False), Good()),
    Row("mp4 called.avi", encoded(form="mp4"), Good()),
    Row("avi called.mp4", encoded("mpeg4", form="avi"), Good()),
    Row("without any suffix", encoded(form="mp4"), Good()),
    Row('it\'s a "name".mp4', encoded(form="mp4"), Good()),
    Row("two\nlines, a\ttab.mp4", encoded(form="mp4"), Good()),
    Row("Straße 北 🚶 %03d.mp4", encoded(form="mp4"), Good()),
    Row("http:__x?y=#.mp4", encoded(form="mp4"), Good()),
    Row(
        "faststart cut.mp4",
        lambda path: make.cut(make.encode(path, movflags="+faststart"), 0.9),
        Partial("read .* of 40"),
    ),
    Row("cut.ts", lambda path: make.cut(make.encode(path), 0.6), DAMAGED),
    Row("cut.mkv", lambda path: make.cut(make.encode(path, count=60), 0.6), Partial(r"read \d+ of \d+ frames")),
    Row("still written.mkv", make.growing, DAMAGED),
    Row("spoilt middle.mp4", lambda path: make.spoil(make.encode(path), 14, 18), Partial("read .* of 40")),
    Row("spoilt middle.mkv", lambda path: make.spoil(make.encode(path), 14, 18), Partial("read .* of 40")),
    Row(
        "spoilt middle, MPEG-2.mkv",
        lambda path: make.spoil(make.encode(path, "mpeg2video", tick=make.Fraction(1, 25)), 14, 18),
        Partial("read 36 of 40"),
    ),
    Row("two sizes.h264", make.two_sizes, Good()),
    Row("spoilt middle.avi", lambda path: make.spoil(make.encode(path, "mpeg4"), 14, 18), DAMAGED),
    Row(
        "many announced.avi",
        lambda path: make.announce(make.encode(path, "mpeg4"), 2**31 - 9),
        Partial("of 2147483639"),
    ),
    Row("no index.mp4", lambda path: make.cut(make.encode(path), 0.7), NO_VIDEO),
    Row(
        "cut within its index.mov",
        lambda path: make.cut_before(make.encode(path, "mjpeg", pix_fmt="yuvj422p"), b"stsd"),
        Quarantined("a cover picture or an unknown codec"),
    ),
    Row("zero.mp4", lambda path: path.touch(), Quarantined("the file is empty")),
    Row("noise.mp4", make.noise, NO_VIDEO),
    Row("noise.ts", make.noise, NO_VIDEO),
    Row("text.mp4", make.text, NO_VIDEO),
    Row("sound.mp4", make.sound, Quarantined("found audio, expected a video stream")),
    Row("sound.avi", make.wave_sound, Quarantined("found audio, expected a video stream")),
    Row("cover.mp4", make.covered_sound, Quarantined("found a cover picture")),
    Row("jpeg.mp4", make.picture, NO_VIDEO),
    Row("png.mp4", lambda path: make.picture(path, "PNG"), NO_VIDEO),
    Row("gif.mp4", lambda path: make.picture(path, "GIF"), NO_VIDEO),
    Row("picture%03d.mp4", make.picture, NO_VIDEO),
    Row(
        "unknown codec.mp4",
        lambda path: make.replace(make.encode(path), b"avc1", b"zzzz"),
        Quarantined("unknown codec"),
    ),
    Row("loop.mp4", make.loop, Quarantined("cannot be opened .Too many levels of symbolic links")),
    Row("dead link.mp4", make.dead_link, Quarantined("no such file")),
    Row("pipe.mp4", make.pipe, Quarantined("is not a plain file")),
    Row(os.fsdecode(b"not \xff utf-8.mp4"), make.noise, Quarantined(r"not \\udcff utf-8.*its name is no UTF-8 text")),
    Row("list.mp4", lambda path: make.text(path, "ffconcat version 1.0\nfile 'h264.mp4'\n"), NO_VIDEO),
    Row("playlist.mp4", lambda path: make.text(path, PLAYLIST.format(where="h264.ts")), NO_VIDEO),
    Row(
        "dash.mp4",
        lambda path: make.text(path, '<?xml version="1.0"?>\n<MPD profiles="urn:mpeg:dash:profile">'),
        NO_VIDEO,
    ),
    Row(
        "session.mp4",
        lambda path: make.text(path, "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 9 RTP/AVP 26\n"),
        NO_VIDEO,
    ),
]
PLAYLIST = """#EXTM3U
#EXT-X-VERSION:3
#EXT-X-TARGETDURATION:4
#EXTINF:4.0,
{where}
#EXT-X-ENDLIST
"""


def referee(path):
    """(seconds or None, (H, W, 3) upright) of all that PyAV decodes, in its order."""
    frames = []
    with av.open(f"file:{path}") as container:
        container.streams.video[0].codec_context.thread_count = 1
        streams = container.demux(video=0)
        while True:
            try:
                packet = next(streams, None)
                if packet is None:
                    break
                for frame in packet.decode():
                    at = None if frame.pts is None else float(frame.pts * frame.time_base)
                    frames.append((at, np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))))
            except av.error.InvalidDataError:
                continue
    return frames


def container_times(path):
    """Seconds at which the container shows its packets of video, in their order."""
    with av.open(f"file:{path}") as container:
        return sorted(
            float(packet.pts * packet.time_base)
            for packet in container.demux(video=0)
            if packet.size and not packet.is_discard
        )


def read(decoder, path):
    """(indices, seconds, pictures, error) that the decoder gives."""
    index, time, pictures, error = [], [], [], ""
    try:
        for frames in decoder.frames(decoder.probe(path), batch=7):
            index += frames.frame_index.tolist()
            time += frames.time.tolist()
            pictures += list(frames.pixels)
    except VideoError as raised:
        error = str(raised)
    return index, time, pictures, error


def assert_same(pictures, expected):
    for given, other in zip(pictures, expected, strict=True):
        if given.shape != other.shape:  # of a file of two sizes, all are given in the first
            other = cv2.resize(other, given.shape[1::-1], interpolation=cv2.INTER_AREA)
            assert make.read_stamp(given) == make.read_stamp(other)
            continue
        # The two bring their own copies of the colour conversion.
        assert np.abs(given.astype(int) - other).max() <= 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("bad")
    for row in TABLE:
        row.write(made / row.name)
    return made


@pytest.fixture(scope="module")
def decoder():
    with Decoder(RUNTIME) as made:
        yield made


@pytest.mark.parametrize("row", TABLE, ids=[ascii(row.name)[1:-1] for row in TABLE])
def test_a_file_gives_the_referees_frames_or_says_why_not(folder, decoder, row):
    path = folder / row.name
    begun = time.monotonic()
    index, times, pictures, error = read(decoder, path)
    assert time.monotonic() - begun < 20
    if isinstance(row.outcome, Quarantined):
        assert not index
        assert re.search(row.outcome.told, error)
        assert error.isprintable()
        with pytest.raises(VideoError, match=row.outcome.told):
            decoder.probe(path)
        return
    info = decoder.probe(path)
    expected = referee(path)
    if isinstance(row.outcome, Partial):
        assert re.search(row.outcome.told, error)
        assert len(index) >= 10
        by_time = dict(expected)
        assert times == pytest.approx(sorted(by_time), abs=1e-6)
        held = container_times(path)
        assert index == [held.index(at) for at in sorted(by_time)]
        # What FFmpeg fills in where it lacks pictures is what its memory happens to hold.
        whole = [n for n, at in enumerate(sorted(by_time)) if make.is_whole(by_time[at])]
        assert len(whole) >= 10
        assert_same([pictures[n] for n in whole], [by_time[at] for at in np.array(sorted(by_time))[whole]])
        return
    numbers = list(row.outcome.frames)
    assert error == ""
    assert [make.read_stamp(picture) for picture in pictures] == numbers
    assert index == list(range(len(numbers)))
    assert info.num_frames == info.announced_frames == len(numbers)
    assert (info.width, info.height) == row.outcome.size
    shown = expected[-len(numbers) :]
    assert_same(pictures, [picture for _, picture in shown])
    # Where packets have the times of decoding, plain PyAV's run backwards.
    if None not in (own := [at for at, _ in shown]) and own == sorted(own):
        assert times == pytest.approx(own, abs=1e-6)
    assert np.diff(times) == pytest.approx(np.diff(row.outcome.times or [n / 10 for n in numbers]), abs=1e-3)


@pytest.mark.parametrize("suffix", ["avi", "asf"])
def test_a_lost_frame_shifts_none_behind_it_where_packets_have_the_times_of_decoding(decoder, tmp_path, suffix):
    path = make.lose(tmp_path / f"a.{suffix}", 12)
    index, times, pictures, error = read(decoder, path)
    assert "read 31 of 39" in error
    assert len(index) == len(referee(path)) == 31
    # The group that hangs on it is lost or mixed up; frame 24, the 23rd that is left, begins the next.
    told = dict(zip(index, map(make.read_stamp, pictures), strict=True))
    assert {n: told[n] for n in range(8)} == {n: n for n in range(8)}
    assert {n: told[n] for n in range(23, 39)} == {n: n + 1 for n in range(23, 39)}
    # The container's times are of decoding: the second of a lost packet is nobody's.
    assert np.diff(times[-16:]) == pytest.approx(0.1)
    assert index == sorted(set(index))


SELECTED = [
    "h264.mp4",
    "hevc.mkv",
    "vp9.webm",
    "mpeg4.avi",
    "mjpeg.avi",
    "wmv2.wmv",
    "av1.mp4",
    "h264.ts",
    "edit list.mp4",
]


@pytest.mark.parametrize("name", SELECTED)
@pytest.mark.parametrize("wanted", [range(13, 40, 1), range(5, 19, 3)])
def test_a_part_of_a_video_is_what_the_whole_has_there(folder, decoder, name, wanted):
    whole = dict(zip(*read(decoder, folder / name)[::2], strict=True))
    expected = [index for index in wanted if index in whole]
    info = decoder.probe(folder / name)
    parts = list(decoder.frames(info, batch=4, start=wanted.start, stop=wanted.stop, stride=wanted.step))
    assert [index for some in parts for index in some.frame_index.tolist()] == expected
    for some in parts:
        for index, pixels in zip(some.frame_index.tolist(), some.pixels, strict=True):
            np.testing.assert_array_equal(pixels, whole[index])


@pytest.fixture
def built(out, run, tmp_path):
    """What the table says of a folder after a listing."""

    def listed(*sources):
        _, outcome = run(list_videos(out, tuple(map(str, sources)), "", ExtractConfig(), RUNTIME))
        return outcome, tables.read(tables.current(out.store, "videos")).to_pylist()

    return listed


def test_a_listing_of_the_whole_table_keeps_what_is_readable_and_quarantines_the_rest(folder, built):
    outcome, rows = built(folder)
    refused = [row for row in TABLE if isinstance(row.outcome, Quarantined)]
    with_suffix = [row for row in TABLE if Path(row.name).suffix]
    assert outcome.counts["files"] == len(with_suffix)
    assert outcome.counts["unreadable_files"] == len(refused)
    assert {row["status"] for row in rows} == {"quarantined"}
    # Some of them are the same noise, or the same nothing, under other names.
    paths = {Path(row["path"]).name: row["reason"] for row in rows}
    for row in refused:
        name = row.name.encode(errors="backslashreplace").decode()
        if name in paths:
            assert re.search(row.outcome.told, paths[name])
    assert len(paths) >= len({(folder / row.name).read_bytes() for row in refused if (folder / row.name).is_file()})
    readable = [folder / row.name for row in with_suffix if row not in refused]
    shas = {hashlib.sha256(path.read_bytes()).hexdigest() for path in readable}
    assert {video.video_sha for video in outcome.value.videos} == shas


def test_the_same_content_under_names_of_all_kinds_counts_once(folder, built, tmp_path):
    names = [
        "plain.mp4",
        "with space.mp4",
        "quote'\".mp4",
        "two\nlines.mp4",
        "Straße 北.mp4",
        "per%scent.mp4",
        ";drop.mp4",
    ]
    for name in names:
        shutil.copy(folder / "h264.mp4", tmp_path / name)
    outcome, _ = built(tmp_path)
    assert (outcome.counts["files"], outcome.counts["videos"], outcome.counts["duplicate_files"]) == (7, 1, 6)
    assert from_plain(VideoList, json.loads(json.dumps(to_plain(outcome.value)))) == outcome.value


def test_a_row_is_found_by_a_name_of_any_kind(built, out, folder, tmp_path):
    names = ["with space.mp4", "quote'\".mp4", "two\nlines.mp4", "Straße 北.mp4", "; DROP.mp4"]
    for n, name in enumerate(names):
        (tmp_path / name).write_bytes(bytes([n]) * 100)
    shutil.copy(folder / "h264.mp4", tmp_path)
    built(tmp_path)
    for n, name in enumerate(names):
        where = f"path = {tables.quote(str(tmp_path / name))}"
        (row,) = tables.read(tables.current(out.store, "videos"), where=where).to_pylist()
        assert row["video_sha"] == hashlib.sha256(bytes([n]) * 100).hexdigest()


def test_a_manifest_names_files_with_newlines_and_quotes(folder, built, tmp_path):
    for name in ("two\nlines.mp4", 'a "b", c.mp4'):
        shutil.copy(folder / "h264.mp4", tmp_path / name)
    manifest = tmp_path / "list.csv"
    manifest.write_text('path,camera\n"two\nlines.mp4",gate\n"a ""b"", c.mp4",door\n', encoding="utf-8", newline="")
    outcome, _ = built(manifest)
    assert (outcome.counts["files"], outcome.counts["duplicate_files"]) == (2, 1)


def test_a_file_that_may_not_be_read_is_quarantined(folder, monkeypatch, tmp_path):
    # Root may read everything, so the decoder's process becomes nobody once it has started.
    script = tmp_path / "child.py"
    script.write_text(
        "import os\n"
        "from csip.ingest import decoder_child\n"
        "if os.getuid() == 0:\n"
        "    os.setuid(65534)\n"
        "decoder_child.main()\n"
    )
    monkeypatch.setattr(decoder_module, "CHILD", (str(script),))
    path = shutil.copy(folder / "h264.mp4", tmp_path / "secret.mp4")
    os.chmod(path, 0)
    with (
        Decoder(RUNTIME) as nobody,
        pytest.raises(VideoError, match=r"secret\.mp4: cannot be opened .Permission denied"),
    ):
        nobody.probe(Path(path))


def test_a_folder_that_cannot_be_looked_into_is_counted(folder, built, monkeypatch, tmp_path):
    # Root may look into everything, so the answer of the system is given here.
    (tmp_path / "closed").mkdir()
    shutil.copy(folder / "h264.mp4", tmp_path / "a.mp4")

    def scandir(path, give=os.scandir):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return give(path)

    monkeypatch.setattr(os, "scandir", scandir)
    outcome, _ = built(tmp_path)
    assert (outcome.counts["files"], outcome.counts["unreadable_folders"]) == (1, 1)
    assert "closed: the folder cannot be looked into (Permission denied)" in outcome.counts["unreadable 1"]


def test_a_check_counts_folders_that_are_closed_apart_from_files(folder, tmp_path, monkeypatch):
    shutil.copy(folder / "h264.mp4", tmp_path)
    (tmp_path / "closed").mkdir()

    def scandir(path, give=os.scandir):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return give(path)

    monkeypatch.setattr(os, "scandir", scandir)
    told = (
        r"found 0 of 1 files that .* as videos, and 1 folders that .* into\. 1 of 1:\n  .*closed: the folder cannot be"
    )
    with pytest.raises(SourceError, match=told):
        check_sources((str(tmp_path),), ExtractConfig(), RUNTIME)


@pytest.mark.parametrize("name", ["videos.zip", "videos.TAR", "videos.tar.gz", "videos.7z"])
def test_an_archive_is_refused_in_plain_words(built, tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\3\4")
    with pytest.raises(SourceError, match=r"is an archive, expected videos\. Archives are not opened"):
        built(tmp_path / name)


def test_a_file_that_grows_while_it_is_read_is_not_taken_for_whole(folder, tmp_path, monkeypatch):
    script = tmp_path / "child.py"
    script.write_text(
        "from csip.ingest import decoder_child, scan\n"
        "scan_file = scan.LastScan()\n"
        "def growing(path, alive):\n"
        "    found = scan_file(path, alive)\n"
        "    with path.open('ab') as file:\n"
        "        file.write(b'more')\n"
        "    return found\n"
        "decoder_child.LastScan = lambda: growing\n"
        "decoder_child.main()\n"
    )
    monkeypatch.setattr(decoder_module, "CHILD", (str(script),))
    path = Path(shutil.copy(folder / "h264.ts", tmp_path / "growing.ts"))
    with Decoder(RUNTIME) as decoder, pytest.raises(VideoError, match=r"changed while it was read\. Is it still being"):
        decoder.probe(path)


@pytest.fixture
def web():
    """A server on this machine that remembers what it was asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()
    thread.join(10)


LURES = {
    "hls.mp4": PLAYLIST,
    "hls.m3u8": PLAYLIST,
    "concat.mp4": "ffconcat version 1.0\nfile '{where}'\n",
    "dash.mp4": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" '
    'profiles="urn:mpeg:dash:profile:full:2011" '
    'type="static" mediaPresentationDuration="PT4S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" '
    'bandwidth="1000"><BaseURL>{where}</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "stream.mp4": "[Reference]\nRef1={where}\n",
    "quicktime.mov": '<?xml version="1.0"?><?quicktime type="application/x-quicktime-media-link"?>'
    '<embed src="{where}" />',
}


@pytest.mark.parametrize("lure", LURES)
@pytest.mark.parametrize("local", [True, False], ids=["a secret file", "the web"])
def test_no_file_makes_us_read_another_or_ask_the_web(folder, decoder, web, tmp_path, lure, local):
    address, asked = web
    secret = tmp_path / "secret.ts"
    shutil.copy(folder / "h264.ts", secret)
    path = tmp_path / lure
    path.write_text(LURES[lure].format(where=secret if local else f"{address}/secret.ts"))
    with pytest.raises(VideoError, match=NO_VIDEO.told):
        decoder.probe(path)
    info = dataclasses.replace(decoder.probe(folder / "h264.ts"), path=path)
    info = dataclasses.replace(info, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), look=check_file(path))
    with pytest.raises(VideoError, match=NO_VIDEO.told):
        next(decoder.frames(info, batch=4))
    assert asked == []


def test_decord_alone_would_have_read_the_other_file(folder, tmp_path):
    # The lure works, and is why the container's account comes first.
    path = tmp_path / "hls.mp4"
    path.write_text(PLAYLIST.format(where=folder / "h264.ts"))
    code = f"import decord; print(len(decord.VideoReader({str(path)!r}, num_threads=1)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout.split()[-1]) == 40


@pytest.mark.parametrize("name", ["http://127.0.0.1:9/a.mp4", "concat:a.mp4|b.mp4", "data:video/mp4;base64,AAAA"])
def test_an_address_in_the_place_of_a_path_is_no_such_file(decoder, name):
    with pytest.raises(VideoError, match=r"no such file"):
        decoder.probe(Path(name))
