"""No frame is given out under the name of a content that its file no longer has."""

import os
import shutil
from pathlib import Path

import pytest

from csip.config import RuntimeConfig
from csip.errors import DecoderLostError
from csip.ingest import extract as stage_module
from csip.ingest.decoder import Decoder
from tests.makers import bad_videos as make

GONE = r"is no longer the file of \d+ bytes that was looked at before\. Is it still being written\?"


@pytest.fixture
def decoder():
    with Decoder(RuntimeConfig()) as made:
        yield made


def stamps(frames):
    return [make.read_stamp(picture) for some in frames for picture in some.pixels]


def replaced(path):
    other = make.encode(path.with_name("other.mp4"), first=20)
    os.replace(other, path)


def written_over(path):
    other = make.encode(path.with_name("other.mp4"), first=20)
    path.write_bytes(other.read_bytes())


def written_over_with_its_old_times_and_size(path):
    before, data = os.stat(path), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def removed(path):
    path.unlink()


@pytest.mark.parametrize("change", [replaced, written_over, written_over_with_its_old_times_and_size, removed])
@pytest.mark.parametrize("selection", [{}, {"start": 30}], ids=["the whole", "a part"])
def test_a_file_that_was_changed_after_it_was_probed_gives_no_frame(decoder, tmp_path, change, selection):
    path = make.encode(tmp_path / "a.mp4")
    with Decoder(RuntimeConfig()) as other:
        info = other.probe(path)
        change(path)
        # Another decoder knows nothing of the first one's reading.
        for one in (other, decoder):
            with pytest.raises(DecoderLostError, match=rf"a\.mp4: ({GONE}|no such file)"):
                next(one.frames(info, batch=8, **selection))


def test_a_file_that_has_grown_since_it_was_probed_gives_no_frame(decoder, tmp_path):
    path = make.encode(tmp_path / "a.ts", count=60)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2 // 188 * 188])
    info = decoder.probe(path)
    with path.open("ab") as file:
        file.write(whole[path.stat().st_size :])
    assert info.num_frames < decoder.probe(path).num_frames
    with pytest.raises(DecoderLostError, match=GONE):
        next(decoder.frames(info, batch=8))


def test_frames_that_are_read_behind_a_change_are_not_given(decoder, tmp_path):
    path = make.encode(tmp_path / "a.ts", count=60)
    frames = decoder.frames(decoder.probe(path), batch=4)
    seen = [next(frames)]
    make.encode(path, first=3, count=60)  # the child is two batches ahead and waits
    with pytest.raises(DecoderLostError, match=GONE):
        seen.extend(frames)
    given = stamps(seen)
    assert given == list(range(len(given)))
    assert len(given) in (4, 8, 12)


def test_a_file_that_is_cut_off_while_it_is_read_is_not_called_damaged(decoder, tmp_path):
    path = make.encode(tmp_path / "a.mkv", count=60)
    frames = decoder.frames(decoder.probe(path), batch=25)
    make.cut(path, 0.5)
    with pytest.raises(DecoderLostError, match=GONE):
        list(frames)


def linked(path):
    os.link(path, path.with_name("backup.mp4"))


def copied_over_itself(path):
    shutil.copy(path, path.with_name("copy.mp4"))
    os.replace(path.with_name("copy.mp4"), path)


def given_other_rights(path):
    path.chmod(0o600)


@pytest.mark.parametrize("change", [linked, copied_over_itself, given_other_rights, os.utime])
def test_a_file_of_the_same_content_is_read_on_whatever_happens_to_it(decoder, tmp_path, change):
    path = make.encode(tmp_path / "a.mp4")
    info = decoder.probe(path)
    change(path)
    frames = decoder.frames(info, batch=4)
    given = stamps([next(frames)])
    os.utime(path)
    assert given + stamps(frames) == list(range(40))


def test_a_video_that_is_replaced_behind_its_probe_leaves_no_rows(street, steps, tmp_path, replayed, monkeypatch):
    path = Path(shutil.copy(street.path, tmp_path / "a.mp4"))
    video = steps.source(path)

    def plan_and_replace(*args, plan=stage_module.make_plan):
        replaced(path)
        return plan(*args)

    monkeypatch.setattr(stage_module, "make_plan", plan_and_replace)
    _, outcome = steps.extract(tmp_path / "store", [video])
    assert (outcome.value, outcome.counts["quarantined"]) == ((), 1)
    assert "is no longer the file" in outcome.counts["left out 1"]
    assert steps.rows(tmp_path / "store", "detections", "crops") == {"detections": [], "crops": []}
