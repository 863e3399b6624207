"""When a video counts as unreadable, and that this is never the last word."""

import dataclasses
import hashlib
import itertools
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from csip import tables
from csip.errors import DecoderLostError, SourceError
from csip.evaluation.publish import publish
from csip.ingest import extract as stage_module
from csip.ingest import reading, storing
from csip.ingest.decoder import Decoder
from csip.ingest.pictures import Pictures
from csip.ingest.records import extract_digests
from csip.ingest.retrack import list_snapshot, with_detections_of
from csip.ingest.sources import list_videos
from csip.types import Output, VideoList
from tests.makers.bad_videos import encode

ROWS = ("videos", "detections", "tracklets", "crops", "skeletons")


def last(stage):
    while True:
        try:
            next(stage)
        except StopIteration as end:
            return end.value


def video_rows(store):
    return tables.read(tables.current(str(store), "videos")).to_pylist()


def stages(store):
    return [run.stage for run in tables.find_runs(str(store), "true")]


@pytest.fixture
def lose_second(monkeypatch):
    """A switch: while it is on, the decoder of the second pass is lost."""
    lost = []
    read = Pictures._next

    def lose(self):
        if lost:
            raise DecoderLostError(f"{self._video.path}: the decoder hung")
        return read(self)

    monkeypatch.setattr(Pictures, "_next", lose)
    return lost


def test_a_decoder_that_is_lost_in_the_second_pass_quarantines_until_the_next_run(
    extracted, replayed, street, steps, tmp_path, lose_second
):
    store = tmp_path / "store"
    lose_second.append(True)
    _, outcome = steps.extract(store, [street])
    assert (outcome.value, outcome.counts["quarantined"]) == ((), 1)
    assert outcome.counts["left out 1"] == f"{street.path}: the decoder hung"
    (row,) = video_rows(store)
    assert (row["status"], row["reason"]) == ("quarantined", f"{street.path}: the decoder hung")
    assert row["bytes"] == Path(street.path).stat().st_size
    lose_second.clear()
    steps.extract(store, [street])
    assert steps.rows(store, *ROWS) == steps.rows(extracted.store, *ROWS)
    assert sorted(stages(store)) == ["detect_video", "track_video"], "it was not detected again"


@pytest.mark.slow
def test_a_video_that_both_passes_fail_over_is_left_out_once(street, steps, tmp_path, lose_second, monkeypatch):
    """As where a disk goes away: the second pass fails over a segment while the first reads the next."""
    read, whole = reading.Decoder.frames, steps.config
    several = dataclasses.replace(whole, detect=dataclasses.replace(whole.detect, segment_seconds=2.0))
    failed = threading.Event()
    quarantine = storing.Storing.quarantine

    def note(self, rejected):
        quarantine(self, rejected)
        failed.set()

    def lose_first(self, video, **options):
        frames = read(self, video, **options)
        for some in frames:
            yield some
            if some.frame_index[-1] >= 40:
                break
        failed.wait(60)
        raise DecoderLostError(f"{video.path}: reading it failed")

    lose_second.append(True)
    monkeypatch.setattr(storing.Storing, "quarantine", note)
    monkeypatch.setattr(reading.Decoder, "frames", lose_first)
    _, outcome = steps.extract(tmp_path / "store", [street], several)
    assert failed.is_set()
    assert (outcome.value, outcome.counts["quarantined"]) == ((), 1)
    assert outcome.counts["left out 1"] == f"{street.path}: the decoder hung"
    assert "left out 2" not in outcome.counts
    (row,) = video_rows(tmp_path / "store")
    assert row["reason"] == f"{street.path}: the decoder hung"


def test_a_row_that_a_finished_run_stands_on_is_not_taken_back(
    extracted, replayed, street, steps, tmp_path, lose_second
):
    store = Path(shutil.copytree(extracted.store, tmp_path / "store"))
    before = video_rows(store)
    lose_second.append(True)
    other = dataclasses.replace(steps.config, track=dataclasses.replace(steps.config.track, min_seconds=3.0))
    _, outcome = steps.extract(store, [street], other)
    assert outcome.counts["quarantined"] == 1
    assert video_rows(store) == before


def test_a_row_that_another_build_took_for_unreadable_is_written_again(extracted, replayed, street, steps, tmp_path):
    store = Path(shutil.copytree(extracted.store, tmp_path / "store"))
    (whole,) = video_rows(store)
    wrong = whole | {"status": "quarantined", "reason": "the decoder hung", "width": 0, "num_frames": 0}

    def spoil():
        tables.upsert(str(store), "videos", tables.from_rows("videos", [wrong]))

    spoil()  # by a listing
    listed = last(list_videos(Output(str(store), "r"), (street.path,), "", steps.config, steps.runtime))
    assert (listed.counts["already_extracted"], listed.value.batches) == (1, ())
    assert video_rows(store) == [whole]
    spoil()  # by an extraction that finds it finished
    steps.extract(store, [street])
    assert video_rows(store) == [whole]
    assert replayed.calls == 0
    version = tables.current(str(store), "videos").version
    steps.extract(store, [street])
    assert tables.current(str(store), "videos").version == version, "nothing is written again"


def test_a_forgotten_video_is_written_by_no_build_that_goes_on(extracted, replayed, street, steps, tmp_path):
    store = Path(shutil.copytree(extracted.store, tmp_path / "store"))
    tombstone = video_rows(store)[0] | {"status": "forgotten", "path": "", "width": 0}
    tables.upsert(str(store), "videos", tables.from_rows("videos", [tombstone]))
    steps.extract(store, [street])
    assert video_rows(store) == [tombstone]


def test_whoever_is_interrupted_blames_no_file(extracted, replayed, street, steps, tmp_path, monkeypatch):
    """By Ctrl-C, while the second thread reads: the stage kills both decoders, for which no file is to blame."""
    store, reading = tmp_path / "store", []
    read, interrupt = Pictures._next, Decoder.interrupt

    def stuck(self):
        reading.append(self._video)
        os.kill(self._decoder.pid, signal.SIGSTOP)
        return read(self)

    def interrupt_and_wait(self):
        interrupt(self)
        time.sleep(1)  # so that the other thread has all the time to draw the wrong conclusion

    out, digests = Output(str(store), "r"), extract_digests(steps.config)
    tables.prepare_store(str(store))
    with monkeypatch.context() as patch:
        patch.setattr(Pictures, "_next", stuck)
        patch.setattr(Decoder, "interrupt", interrupt_and_wait)
        stage = stage_module.extract_videos(out, (street,), digests, steps.config, steps.runtime)
        next(one for one in stage if reading)
        stage.close()
    assert [row["status"] for row in video_rows(store)] == ["ok"]
    assert stages(store) == ["detect_video"]
    steps.extract(store, [street])
    assert steps.rows(store, *ROWS) == steps.rows(extracted.store, *ROWS)


def test_a_video_that_has_changed_since_it_was_listed_is_left_out_under_its_old_digest(street, steps, tmp_path):
    path = Path(shutil.copy(street.path, tmp_path / "growing.mp4"))
    video = steps.source(path)
    with path.open("ab") as file:
        file.write(b"more")
    _, outcome = steps.extract(tmp_path / "store", [video])
    (row,) = video_rows(tmp_path / "store")
    assert (row["video_sha"], row["status"]) == (video.video_sha, "quarantined")
    now = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    assert f"is {now} now. Is it still being written?" in outcome.counts["left out 1"]


# ---------------------------------------------------------------------------------------- tracking again after a move


@pytest.fixture
def moved(extracted, street, steps, tmp_path):
    """A store that has published the street, and the street at another place."""
    store = Path(shutil.copytree(extracted.store, tmp_path / "store"))
    new = Path(shutil.copy(street.path, tmp_path / "elsewhere.mp4"))
    (row,) = video_rows(store)
    old = row | {"path": str(tmp_path / "gone" / "street.mp4")}
    tables.upsert(str(store), "videos", tables.from_rows("videos", [old]))
    listed = VideoList((dataclasses.replace(street, path=old["path"]),), (), extract_digests(steps.config))
    name = last(publish(Output(str(store), "run-publish"), listed, (), steps.config)).value.name
    record = tables.RunRecord(
        *("run-publish", "publish", "k", {"videos": dataclasses.asdict(listed)}, {"name": name}, {}),
        *({}, {}, "s", "", "cpu", tables.now(), 1.0),
    )
    tables.record_run(str(store), record)
    longer = dataclasses.replace(steps.config, track=dataclasses.replace(steps.config.track, min_seconds=3.0))
    return str(store), new, name, with_detections_of(str(store), name, longer)


def test_a_moved_video_is_tracked_again_once_a_build_has_seen_where_it_lies(moved, steps):
    store, new, name, config = moved
    out = Output(store, "r")
    with pytest.raises(SourceError, match=r"found none of its 1 video files .* build from where they lie now"):
        last(list_snapshot(out, name, config, steps.runtime))
    assert last(list_videos(out, (str(new),), "street", steps.config, steps.runtime)).value.batches == ()
    listed = last(list_snapshot(out, name, config, steps.runtime)).value
    assert [video.path for video in listed.videos] == [str(new)]
    outcome = last(stage_module.extract_videos(out, listed.batches[0], listed.digests, config, steps.runtime))
    assert (outcome.counts["quarantined"], outcome.counts["tracklets"]) == (0, 2)
    (row,) = video_rows(store)
    assert (row["path"], row["status"]) == (str(new), "ok")


def test_one_moved_video_of_several_is_left_out_with_the_way_out(moved, street, steps):
    store, _, _, config = moved
    out = Output(store, "r")
    before = video_rows(store)
    listed = VideoList((), (), dataclasses.replace(extract_digests(config), weights_path=""))
    gone = dataclasses.replace(street, path=before[0]["path"])
    outcome = last(stage_module.extract_videos(out, (gone,), listed.digests, config, steps.runtime))
    assert "street.mp4: no such file, expected it where it was last read. Where videos" in outcome.counts["left out 1"]
    assert video_rows(store) == before


# ------------------------------------------------------------------------------------------------- sizes of the frames


def test_a_batch_of_several_sizes_loads_the_model_once_for_each(replayed, steps, tmp_path, monkeypatch):
    made = []

    class Model:
        device, engine, lanes, image_size = "cpu", "replayed", 1, 64

        def __init__(self, *_, frame_size, **__):
            made.append(frame_size)
            self.start = replayed.start

    monkeypatch.setattr("csip.ingest.detect_pass.PoseModel", Model)
    (tmp_path / "videos").mkdir()
    for number in range(8):
        size = (96, 48) if number % 2 else (64, 48)
        encode(tmp_path / "videos" / f"{number}.mp4", count=5 + number, size=size)
    out = Output(str(tmp_path / "store"), "r")
    listed = last(list_videos(out, (str(tmp_path / "videos"),), "", steps.config, steps.runtime)).value
    by_digest = [int(Path(video.path).stem) % 2 for video in listed.videos]
    assert sum(a != b for a, b in itertools.pairwise(by_digest)) > 1, "or this would show nothing"
    (batch,) = listed.batches
    steps.extract(tmp_path / "store", batch)
    assert made == [(48, 64), (48, 96)]
