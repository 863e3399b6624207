"""A decoder that crashes, hangs or dawdles costs its own video and nothing else; nothing is left behind."""

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest

import csip
from csip.config import RuntimeConfig
from csip.errors import DecoderLostError, StageError, VideoError
from csip.ingest import decoder as decoder_module
from csip.ingest import decoder_process as module
from csip.ingest.decoder import Decoder
from csip.ingest.video import probe
from tests.makers.read_video import read_frames

SHIPPED = Path(csip.__file__).parent / "assets" / "pedestrians.mp4"
RUNTIME = RuntimeConfig()


def write_video(path, count, codec="libx264", size=(64, 48)):
    """Frame n is of shade 8 n, and 30 frames later again."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for n in range(count):
            picture = np.full((size[1], size[0], 3), 8 * (n % 30), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("short") / "a.mp4", 30)


@pytest.fixture
def decoder():
    with Decoder(RUNTIME) as made:
        yield made


def indices(frames):
    return [index for some in frames for index in some.frame_index.tolist()]


def alive(pid):
    """Tell whether a process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def mapped(pid):
    """Name what a process has in its memory of files, and of what looks like some."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6}


def ends(pid, seconds=10):
    until = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(pid)


def replace_child(monkeypatch, tmp_path, code):
    """Let the decoder's process run `code` first, which may change what it finds."""
    script = tmp_path / "child.py"
    script.write_text(f"import sys\nfrom csip.ingest import decoder_child, video\n{code}\ndecoder_child.main()\n")
    monkeypatch.setattr(module, "CHILD", (str(script),))


def test_the_child_gives_what_reading_in_this_process_gives(decoder):
    assert decoder.probe(SHIPPED) == probe(SHIPPED)
    pairs = zip(decoder.frames(probe(SHIPPED), batch=25), read_frames(SHIPPED, batch=25, threads=2), strict=True)
    for given, expected in itertools.islice(pairs, 8):
        np.testing.assert_array_equal(given.pixels, expected.pixels)
        np.testing.assert_array_equal(given.frame_index, expected.frame_index)
        np.testing.assert_array_equal(given.time, expected.time)


def test_batches_are_full_but_for_the_last(decoder, short):
    shapes = [frames.pixels.shape for frames in decoder.frames(probe(short), batch=8)]
    assert shapes == [(8, 48, 64, 3)] * 3 + [(6, 48, 64, 3)]


def test_frames_keep_their_pixels_when_the_ring_goes_round(decoder, short):
    kept = list(decoder.frames(probe(short), batch=1))
    assert [round(frames.pixels.mean() / 8) for frames in kept] == list(range(30))


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({"start": 7}, range(7, 30)),
        ({"stop": 9}, range(9)),
        ({"start": 5, "stop": 26, "stride": 4}, range(5, 26, 4)),
        ({"start": 29}, [29]),
        ({"start": 30}, []),
        ({"start": 3, "stop": 3}, []),
        ({"stop": 500, "stride": 100}, [0]),
    ],
)
def test_a_selection_is_numbered_as_in_the_whole_video(decoder, short, selection, expected):
    frames = list(decoder.frames(probe(short), batch=4, **selection))
    assert indices(frames) == list(expected)
    assert [round(picture.mean() / 8) for some in frames for picture in some.pixels] == list(expected)
    assert [at for some in frames for at in some.time] == pytest.approx([n / 10 for n in expected])


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"start": -1}, {"stride": 0}, {"start": 4, "stop": 3}])
def test_a_selection_out_of_range_is_refused(decoder, short, wrong):
    with pytest.raises(ValueError, match=r"expected batch and stride 1 or more"):
        next(decoder.frames(probe(short), **{"batch": 4} | wrong))


def test_what_the_child_says_of_a_file_arrives_here(decoder, tmp_path, caplog):
    (tmp_path / "zero.mp4").touch()
    with pytest.raises(VideoError, match=r"zero\.mp4: the file is empty"):
        decoder.probe(tmp_path / "zero.mp4")
    before = decoder.pid
    path = write_video(tmp_path / "a.ts", 20)
    assert indices(decoder.frames(probe(path), batch=8)) == list(range(20))
    assert "decord misreads mpegts files" in caplog.text
    assert decoder.pid == before


def test_frames_before_an_error_come_before_it(decoder, tmp_path):
    whole = write_video(tmp_path / "a.mkv", 120)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    seen = []
    with pytest.raises(VideoError, match=r"read \d+ of \d+ frames"):
        seen.extend(decoder.frames(probe(whole), batch=16))
    assert indices(seen) == indices(expected_before_error(whole))


def expected_before_error(path):
    seen = []
    with pytest.raises(VideoError, match=r"read \d+ of \d+ frames"):
        seen.extend(read_frames(path, batch=16, threads=1))
    return seen


def test_the_child_decodes_no_further_ahead_than_two_batches(tmp_path, monkeypatch):
    count = tmp_path / "count"
    replace_child(
        monkeypatch,
        tmp_path,
        f"""
read = decoder_child.read_images
def counting(*args):
    for n, item in enumerate(read(*args), 1):
        open({str(count)!r}, "a").write("x")
        yield item
decoder_child.read_images = counting
""",
    )
    with Decoder(RUNTIME) as decoder:
        frames = decoder.frames(probe(SHIPPED), batch=5)
        next(frames)
        time.sleep(1.0)
        # Five were given and ten fit into the ring; one more waits for a slot.
        assert count.stat().st_size <= 5 + 10 + 1
        time.sleep(0.5)
        assert len(next(frames)) == 5


def test_a_killed_child_costs_its_video_and_the_next_has_a_new_one(decoder, short):
    frames = decoder.frames(probe(SHIPPED), batch=4)
    next(frames)
    first = decoder.pid
    os.kill(first, signal.SIGKILL)
    with pytest.raises(VideoError, match=r"pedestrians\.mp4: the decoder's process died of SIGKILL\. .*out of memory"):
        list(frames)
    assert indices(decoder.frames(probe(short), batch=8)) == list(range(30))
    assert decoder.pid != first


def test_a_crash_is_named_by_its_signal(tmp_path, monkeypatch, short):
    replace_child(monkeypatch, tmp_path, "import os\ndecoder_child.probe = lambda *_: os.kill(os.getpid(), 11)")
    with Decoder(RUNTIME) as decoder, pytest.raises(VideoError, match=r"a\.mp4: .* died of SIGSEGV"):
        decoder.probe(short)


def test_a_child_that_stands_still_is_killed_after_the_deadline(short):
    with Decoder(RuntimeConfig(decode_stall_seconds=1)) as decoder:
        frames = decoder.frames(probe(SHIPPED), batch=4)
        next(frames)
        stopped = decoder.pid
        os.kill(stopped, signal.SIGSTOP)
        begun = time.monotonic()
        with pytest.raises(VideoError, match=r"pedestrians\.mp4: the decoder hung: no frame for 1 s"):
            list(frames)
        assert time.monotonic() - begun < 5
        assert ends(stopped)
        assert indices(decoder.frames(probe(short), batch=8)) == list(range(30))


def test_a_decoder_that_dawdles_is_stopped_at_the_videos_limit(tmp_path, monkeypatch, short):
    slow = """
import time
read = decoder_child.read_images
def dawdling(*args):
    for item in read(*args):
        time.sleep(0.2)
        yield item
decoder_child.read_images = dawdling
"""
    replace_child(monkeypatch, tmp_path, slow)
    # Three seconds of video: 0.5 + 3 x 0.5 seconds, in which about ten frames come.
    runtime = RuntimeConfig(decode_stall_seconds=1, decode_limit_seconds=0.5, decode_limit_factor=0.5)
    seen = []
    with Decoder(runtime) as decoder, pytest.raises(VideoError, match=r"was waited for \d s, longer than"):
        seen.extend(decoder.frames(probe(short), batch=1))
    assert 4 <= len(seen) <= 10


def test_a_large_file_on_a_slow_disk_is_waited_for(tmp_path, monkeypatch, short):
    # A second passes before the frames come, as for a file of many bytes.
    slow = """
import time
scan_file = decoder_child.LastScan()
def dawdling(path, alive):
    for _ in range(10):
        time.sleep(0.1)
        alive()
    return scan_file(path, alive)
decoder_child.LastScan = lambda: dawdling
"""
    replace_child(monkeypatch, tmp_path, slow)
    runtime = RuntimeConfig(decode_limit_seconds=0.3, decode_limit_factor=0)
    with Decoder(runtime) as decoder, pytest.raises(VideoError, match=r"was waited for \d s, longer than"):
        next(decoder.frames(probe(short), batch=1))
    monkeypatch.setattr(decoder_module, "_SLOWEST_READ", short.stat().st_size / 60)
    with Decoder(runtime) as decoder:
        assert indices(decoder.frames(probe(short), batch=8)) == list(range(30))
        assert decoder.probe(short).num_frames == 30


@pytest.mark.slow
def test_a_large_file_on_a_slow_disk_may_be_indexed_in_silence_and_then_no_more(tmp_path, monkeypatch, short):
    # decord reads all of the file before it gives the first frame, and cannot be asked to say so.
    slow = """
import time
make, read = video.decord.VideoReader, decoder_child.read_images
def indexing(*args, **kwargs):
    time.sleep(2.5)
    return make(*args, **kwargs)
def hanging(*args):
    for item in read(*args):
        time.sleep(60 if item[0] == 20 else 0)
        yield item
video.decord.VideoReader, decoder_child.read_images = indexing, hanging
"""
    replace_child(monkeypatch, tmp_path, slow)
    info = probe(short)
    with Decoder(RuntimeConfig(decode_stall_seconds=1)) as decoder:
        with pytest.raises(DecoderLostError, match="the decoder hung: no frame for 1 s"):
            next(decoder.frames(info, batch=1))
        monkeypatch.setattr(decoder_module, "_SLOWEST_READ", info.bytes / 20)
        frames, seen = decoder.frames(info, batch=1), []
        begun = time.monotonic()
        with pytest.raises(DecoderLostError, match="the decoder hung: no frame for 1 s"):
            seen.extend(frames)
        assert indices(seen) == list(range(20))
        assert time.monotonic() - begun < 12


def test_a_file_whose_size_cannot_be_told_is_asked_for_all_the_same(decoder, short, monkeypatch):
    # As behind a link into a folder that is closed to this user, or on a network that is gone.
    def stat(path, *args, give=os.stat, **kwargs):
        if path == short:
            raise PermissionError(13, "Permission denied", str(path))
        return give(path, *args, **kwargs)

    info = probe(short)
    monkeypatch.setattr(os, "stat", stat)
    assert decoder.probe(short).num_frames == 30
    assert indices(decoder.frames(info, batch=8)) == list(range(30))


@pytest.mark.parametrize("name", ["gone.mp4", "a\0b.mp4"])
def test_a_file_that_cannot_be_opened_any_more_did_not_break_off(decoder, short, tmp_path, name):
    with pytest.raises(DecoderLostError, match="no such file"):
        next(decoder.frames(dataclasses.replace(probe(short), path=tmp_path / name), batch=4))


def test_a_disk_that_fails_is_no_damage_of_the_file(tmp_path, monkeypatch, short):
    failing = """
from csip.errors import DecoderLostError
def fail(*args):
    yield from list(video.read_images(*args))[:9]
    raise DecoderLostError("a.mp4: reading it failed (Stale file handle).")
decoder_child.read_images = fail
"""
    replace_child(monkeypatch, tmp_path, failing)
    seen = []
    with Decoder(RUNTIME) as decoder, pytest.raises(DecoderLostError, match="Stale file handle"):
        seen.extend(decoder.frames(probe(short), batch=4))
    assert indices(seen) == list(range(8))


def test_what_the_consumer_takes_does_not_count(short):
    runtime = RuntimeConfig(decode_stall_seconds=1, decode_limit_seconds=1, decode_limit_factor=0)
    with Decoder(runtime) as decoder:
        for n, frames in enumerate(decoder.frames(probe(short), batch=1)):
            assert frames.frame_index.tolist() == [n]
            time.sleep(1.5 if n < 2 else 0)
        assert n == 29


def test_a_child_that_cannot_start_is_no_fault_of_the_video(monkeypatch, tmp_path, short):
    monkeypatch.setattr(module, "CHILD", ("-c", "raise SystemExit(7)"))
    with Decoder(RUNTIME) as decoder, pytest.raises(StageError, match=r"could not start: .* ended with code 7"):
        decoder.probe(short)


def test_a_reading_that_is_given_up_leaves_the_decoder_ready(decoder, short):
    frames = decoder.frames(probe(SHIPPED), batch=4)
    next(frames)
    frames.close()
    assert indices(decoder.frames(probe(short), batch=8)) == list(range(30))
    other = decoder.frames(probe(SHIPPED), batch=4)
    next(other)
    assert decoder.probe(short).num_frames == 30
    with pytest.raises(ValueError, match=r"another reading was begun"):
        list(other)


def test_an_interrupt_ends_what_is_only_about_to_be_read(decoder, short):
    decoder.interrupt()
    for _ in range(2):
        with pytest.raises(DecoderLostError, match="died of SIGKILL"):
            decoder.probe(short)
    decoder.close()
    assert decoder.probe(short).num_frames == 30


def test_two_decoders_work_side_by_side_in_threads(short):
    results = {}

    def read(name):
        with Decoder(RUNTIME) as decoder:
            results[name] = [indices(decoder.frames(probe(short), batch=3)) for _ in range(3)]

    threads = [threading.Thread(target=read, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {"a": [list(range(30))] * 3, "b": [list(range(30))] * 3}


def test_the_thread_that_started_the_child_may_end(decoder, short):
    # Linux can tie a process to the thread that started it: that would kill the child here.
    thread = threading.Thread(target=lambda: decoder.probe(short))
    thread.start()
    thread.join(60)
    first = decoder.pid
    time.sleep(0.2)
    assert indices(decoder.frames(probe(short), batch=8)) == list(range(30))
    assert decoder.pid == first


@pytest.mark.parametrize("stopped", [False, True], ids=["child busy", "child hangs"])
def test_nothing_outlives_a_parent_that_is_killed(tmp_path, stopped):
    script = f"""
import os, signal, sys, time
from pathlib import Path
from csip.config import RuntimeConfig
from csip.ingest.decoder import Decoder
decoder = Decoder(RuntimeConfig())
path = Path({str(SHIPPED)!r})
frames = decoder.frames(decoder.probe(path), batch=2)
next(frames)
if {stopped}:
    os.kill(decoder.pid, signal.SIGSTOP)
sys.stdout.write(f"{{decoder.pid}}\\n")
sys.stdout.flush()
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        child = int(parent.stdout.readline())
        assert os.getpgid(child) == os.getpgid(parent.pid)
        assert alive(child)
        held = mapped(parent.pid) | mapped(child)
        assert any("memfd:csip-frames" in path for path in held)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    assert ends(child)
    assert [path for path in held if path.startswith("/dev/shm/") and Path(path).exists()] == []


def test_an_interrupt_to_the_group_leaves_the_last_frames_to_the_parent(decoder, short):
    frames = decoder.frames(probe(short), batch=4)
    next(frames)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(decoder.pid, number)
    assert indices(frames) == list(range(4, 30))


def test_the_child_starts_without_the_heavy_libraries():
    code = "import sys, csip.ingest.decoder_child\nprint(*{'torch', 'lance', 'pyarrow', 'prefect'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""
