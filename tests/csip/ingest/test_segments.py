"""Extraction in segments: one set of tracklets whatever the segments, and a crash costs no more than one of them."""

import dataclasses
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from csip import tables
from csip.errors import DecoderLostError, StoreError
from csip.evaluation.publish import publish
from csip.ingest import decoder_process
from csip.ingest import extract as stage_module
from csip.ingest.decoder import Decoder
from csip.ingest.pose import Seen
from csip.ingest.records import extract_digests, finished_videos
from csip.ingest.retrack import list_snapshot, with_detections_of
from csip.maintenance.verify import verify
from csip.types import Output, VideoList
from tests.makers.bad_videos import encode

ROWS = ("videos", "detections", "tracklets", "crops", "skeletons")
FRAMES = 63


def changed(config, **sections):
    return dataclasses.replace(
        config, **{name: dataclasses.replace(getattr(config, name), **values) for name, values in sections.items()}
    )


def runs(store, stage):
    return tables.find_runs(str(store), f"stage = '{stage}'")


def tracks(rows):
    """What the tracklets are without their names: sorted frames, boxes and pictures of each."""
    out = {}
    for row in rows["crops"]:
        out.setdefault(row["tracklet_id"], []).append((row["frame_index"], tuple(row["box"]), row["image"]))
    return sorted(sorted(one) for one in out.values())


def run(stage):
    while True:
        try:
            next(stage)
        except StopIteration as end:
            return end.value


def faults(store):
    return [one for one in verify(str(store)) if one.kind == "fault"]


@pytest.fixture
def short(steps):
    """Segments of twenty frames: the street has four, the last of three."""
    return changed(steps.config, detect={"segment_seconds": 2.0})


@pytest.fixture
def whole(replayed, street, short, steps, tmp_path):
    """The street in segments, undisturbed."""
    _, outcome = steps.extract(tmp_path / "whole", [street], short)
    return steps.rows(tmp_path / "whole", *ROWS), outcome


def test_segments_give_the_tracklets_of_the_whole_video(extracted, whole, steps):
    rows, outcome = whole
    assert tracks(rows) == tracks(steps.rows(extracted.store, *ROWS))
    assert any(row["first_frame"] < 20 and row["last_frame"] >= 40 for row in rows["tracklets"])
    names = ("frames", "detections", "tracklets", "crops", "quarantined")
    assert [outcome.counts[name] for name in names] == [extracted.outcome.counts[name] for name in names]


def test_every_segment_is_recorded_and_the_last_one_finishes_the_video(whole, street, short, tmp_path):
    store = tmp_path / "whole"
    detected = sorted(runs(store, "detect_video"), key=lambda one: one.counts["end_frame"])
    assert [(one.counts["frames"], one.counts["end_frame"]) for one in detected] == [
        (20, 20),
        (20, 40),
        (20, 60),
        (3, 63),
    ]
    assert [one.counts["segment"] for one in runs(store, "track_segment")] == [0, 1, 2]
    (last,) = runs(store, "track_video")
    assert (last.counts["segment"], last.counts["frames"]) == (3, FRAMES)
    assert last.counts["crops"] == len(whole[0]["crops"])
    assert set(finished_videos(str(store), extract_digests(short).track)) == {street.video_sha}
    assert faults(store) == []


@pytest.mark.parametrize(
    ("table", "segment"),
    [
        *(("crops", 1), ("track", 3)),
        *(
            pytest.param(*one, marks=pytest.mark.slow)
            for one in (("detections", 1), ("detect_video", 0), ("skeletons", 3), ("track", 1))
        ),
    ],
)
def test_a_crash_costs_no_more_than_its_segment(
    whole, replayed, street, short, steps, tmp_path, monkeypatch, table, segment
):
    store, seen = tmp_path / "store", {}
    write, record = tables.upsert, tables.record_run

    def crash_at(name):
        seen[name] = seen.get(name, 0) + 1
        if name == table and seen[name] == segment + 1:
            raise KeyboardInterrupt

    def upsert(where, name, rows, **options):
        crash_at(name)
        return write(where, name, rows, **options)

    def record_run(where, one):
        crash_at({"track_video": "track", "track_segment": "track"}.get(one.stage, one.stage))
        return record(where, one)

    with monkeypatch.context() as patch:
        patch.setattr(tables, "upsert", upsert)
        patch.setattr(tables, "record_run", record_run)
        with pytest.raises(KeyboardInterrupt):
            steps.extract(store, [street], short)
    done = len(runs(store, "detect_video"))
    assert done >= segment
    before = replayed.calls
    steps.extract(store, [street], short)
    # Batches of four: five a segment of twenty, one for the last three frames.
    assert replayed.calls - before == sum((5, 5, 5, 1)[done:])
    assert steps.rows(store, *ROWS) == whole[0]
    assert len(runs(store, "detect_video")) == 4
    assert len(runs(store, "track_segment")) == 3
    assert len(runs(store, "track_video")) == 1


def test_what_a_segment_gave_is_withdrawn_when_it_comes_to_nothing(
    extracted, replayed, street, short, steps, tmp_path, monkeypatch
):
    """Everybody is seen in frames 15 to 21 only: one frame too few for a tracklet, five in the first segment."""
    answer = type(replayed).__call__

    def some(self, frames):
        found = answer(self, frames)
        return [
            one if 15 <= index <= 21 else type(one)(one.boxes[:0], one.score[:0], one.keypoints[:0])
            for index, one in zip(frames.frame_index.tolist(), found, strict=True)
        ]

    monkeypatch.setattr(type(replayed), "__call__", some)
    given = []
    write = tables.upsert
    monkeypatch.setattr(
        tables,
        "upsert",
        lambda where, name, rows, **o: (given.append((name, len(rows))), write(where, name, rows, **o)),
    )
    store = tmp_path / "store"
    _, outcome = steps.extract(store, [street], short)
    assert sum(count for name, count in given if name == "crops") > 0
    rows = steps.rows(store, *ROWS)
    assert [len(rows[name]) for name in ("tracklets", "crops", "skeletons")] == [0, 0, 0]
    assert (outcome.counts["tracklets"], outcome.counts["crops"]) == (0, 0)
    (last,) = runs(store, "track_video")
    assert last.counts["dropped"]["too short"] > 0
    assert faults(store) == []


def test_with_a_stride_only_every_so_many_frames_are_looked_at(replayed, street, steps, tmp_path):
    config = changed(steps.config, detect={"stride": 3, "segment_seconds": 2.0}, track={"min_seconds": 0.0})
    records, outcome = steps.extract(tmp_path / "store", [street], config)
    assert outcome.counts["frames"] == 21
    rows = steps.rows(tmp_path / "store", *ROWS)
    assert {row["frame_index"] % 3 for name in ("detections", "crops") for row in rows[name]} == {0}
    assert rows["tracklets"]
    assert all(row["time"] == pytest.approx(row["frame_index"] / 10) for row in rows["crops"])
    assert (rows["videos"][0]["status"], rows["videos"][0]["num_frames"]) == ("ok", FRAMES)
    assert records[-1].done == 7
    assert [one.done for one in records] == sorted(one.done for one in records)
    assert max(one.done for one in records[:-1]) >= 5


def test_who_is_too_small_or_elsewhere_is_left_out_and_counted(extracted, replayed, street, steps, tmp_path):
    every = steps.rows(extracted.store, "detections")["detections"]
    height = [row["box"][3] - row["box"][1] for row in every]
    middle = float(np.median(height))
    steps.extract(tmp_path / "store", [street], changed(steps.config, detect={"min_box_height": middle}))
    kept = steps.rows(tmp_path / "store", "detections")["detections"]
    assert len(kept) == sum(one >= middle for one in height)
    (one,) = runs(tmp_path / "store", "detect_video")
    assert one.counts["left_out"] == {"smaller than min_box_height": len(every) - len(kept), "outside region": 0}


def test_videos_share_batches(replayed, street, steps, tmp_path):
    """Sixty-three frames each: in batches of ten, thirteen for both and not seven for each."""
    other = tmp_path / "other.mp4"
    shutil.copy(street.path, other)
    with other.open("ab") as file:
        file.write(b"\0\0\0\x08free")  # another file of the same pictures
    runtime = dataclasses.replace(steps.runtime, pose_batch=10)
    _, outcome = steps.extract(tmp_path / "store", [street, steps.source(other)], runtime=runtime)
    assert replayed.calls == 13
    assert outcome.counts["frames"] == 2 * FRAMES
    rows = steps.rows(tmp_path / "store", "crops", "tracklets")
    assert len(rows["tracklets"]) == 8
    one, two = tracks(rows)[::2], tracks(rows)[1::2]
    assert one == two


def test_answers_of_a_model_that_works_on_several_frames_at_once_stay_with_their_frames(
    extracted, replayed, street, steps, tmp_path, monkeypatch
):
    """Two lanes of which one is slower, and a second video of another size, which has a model of its own."""
    made = []

    class Lanes:
        device, engine, lanes = "cpu", "lanes", 2

        def __init__(self, *_, frame_size, **__):
            made.append(frame_size)
            self.image_size = max(frame_size)
            self._threads = ThreadPoolExecutor(2)

        def start(self, frames):
            return [self._threads.submit(self._look, frames[i : i + 1]) for i in range(len(frames))]

        @staticmethod
        def _look(frames):
            time.sleep(0.01 * (int(frames.frame_index[0]) % 2))
            return Seen(replayed(frames), 0.01)

    monkeypatch.setattr("csip.ingest.detect_pass.PoseModel", Lanes)
    other = steps.source(encode(tmp_path / "other.mp4", count=7))
    steps.extract(tmp_path / "store", [street, other], runtime=dataclasses.replace(steps.runtime, pose_batch=3))
    rows = steps.rows(tmp_path / "store", "detections")["detections"]
    expected = steps.rows(extracted.store, "detections")["detections"]
    assert [row for row in rows if row["video_sha"] == street.video_sha] == expected
    done = runs(tmp_path / "store", "detect_video")
    assert {one.counts["image_size"]: one.counts["frames"] for one in done} == {768: FRAMES, 64: 7}
    assert made == [(576, 768), (48, 64)]


def test_a_decoder_that_is_lost_quarantines_the_video_until_the_next_run(
    extracted, replayed, street, steps, tmp_path, monkeypatch
):
    read = Decoder.frames

    def lose(self, path, **options):
        for count, frames in enumerate(read(self, path, **options)):
            if count == 3:
                raise DecoderLostError(f"{path}: the decoder hung")
            yield frames

    store = tmp_path / "store"
    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "frames", lose)
        _, outcome = steps.extract(store, [street])
    assert (outcome.value, outcome.counts["quarantined"]) == ((), 1)
    (row,) = steps.rows(store, "videos")["videos"]
    assert (row["status"], row["video_sha"]) == ("quarantined", street.video_sha)
    assert "the decoder hung" in row["reason"]
    steps.extract(store, [street])
    assert steps.rows(store, *ROWS) == steps.rows(extracted.store, *ROWS)


def test_a_stage_that_is_closed_leaves_no_thread_and_no_process(replayed, street, short, steps, tmp_path):
    def decoders():
        return {child.pid for child in psutil.Process().children() if "decoder_child" in " ".join(child.cmdline())}

    tables.prepare_store(str(tmp_path / "store"))
    threads, others = threading.active_count(), decoders()
    digests = extract_digests(short)
    stage = stage_module.extract_videos(Output(str(tmp_path / "store"), "r"), (street,), digests, short, steps.runtime)
    for _ in range(4):
        next(stage)
    assert decoders() - others
    stage.close()
    assert threading.active_count() <= threads
    assert not decoders() - others


# ---------------------------------------------------------------------------------------------------- tracking again


@pytest.fixture
def published(extracted, street, steps, tmp_path):
    """A store with the street published, and the snapshot's name."""
    store = Path(shutil.copytree(extracted.store, tmp_path / "store"))
    out = Output(str(store), "run-publish")
    listed = VideoList((street,), (), extract_digests(steps.config))
    done = run(publish(out, listed, (), steps.config))
    # As flows.stage records it.
    record = tables.RunRecord(
        *("run-publish", "publish", "k", {"videos": dataclasses.asdict(listed)}, {"name": done.value.name}, {}),
        *({}, {}, "s", "", "cpu", tables.now(), 1.0),
    )
    tables.record_run(str(store), record)
    return store, done.value.name


def test_a_snapshots_videos_are_tracked_again_without_model_and_weights(
    extracted, published, street, steps, tmp_path, monkeypatch
):
    store, name = published
    monkeypatch.setattr("csip.ingest.detect_pass.PoseModel", None)
    longer = changed(steps.config, detect={"image_size": 0, "weights": "nowhere.pt"}, track={"min_seconds": 3.0})
    config = with_detections_of(str(store), name, longer)
    assert config.detect == steps.config.detect
    out = Output(str(store), "run-1")
    listed = run(list_snapshot(out, name, config, steps.runtime)).value
    assert listed.videos == (street,)
    assert listed.digests.detect == extract_digests(steps.config).detect
    assert listed.digests.track == extract_digests(changed(steps.config, track={"min_seconds": 3.0})).track
    outcome = run(stage_module.extract_videos(out, listed.batches[0], listed.digests, config, steps.runtime))
    before = [row for row in steps.rows(extracted.store, "tracklets")["tracklets"] if row["num_frames"] >= 30]
    assert outcome.counts["tracklets"] == len(before) > 0
    # The first snapshot is what it was.
    assert tables.count(tables.pinned(tables.open_snapshot(str(store), name), "tracklets")) == 4
    assert run(list_snapshot(out, name, config, steps.runtime)).counts["already_extracted"] == 1


def test_without_stored_detections_nothing_is_tracked_again(published, steps):
    store, name = published
    config = changed(steps.config, track={"min_seconds": 3.0})
    out = Output(str(store), "run-1")
    listed = run(list_snapshot(out, name, config, steps.runtime)).value
    tables.delete(str(store), "runs", "stage = 'detect_video'")
    with pytest.raises(StoreError, match=r"the detections of 1 of 1 segments of .*street\.mp4 are not there"):
        run(stage_module.extract_videos(out, listed.batches[0], listed.digests, config, steps.runtime))


@pytest.mark.slow
def test_a_build_that_goes_on_behind_hours_of_known_video_shows_that_it_works(
    replayed, whole, street, short, steps, tmp_path, monkeypatch
):
    # The decoder comes from the first frame; neither that nor looking at the file may outlast a stage's patience.
    store = tmp_path / "whole"
    tables.delete(str(store), "runs", "stage = 'track_video'")
    last = max(runs(store, "detect_video"), key=lambda one: one.counts["end_frame"])
    tables.delete(str(store), "runs", f"run_id = '{last.run_id}'")
    script = tmp_path / "child.py"
    script.write_text(
        "import time\n"
        "from csip.ingest import decoder_child, video\n"
        "probe, decode = decoder_child.probe, video._decode\n"
        "def slow_probe(*args):\n"
        "    time.sleep(3)\n"
        "    return probe(*args)\n"
        "def slow(*args):\n"
        "    for index, image in decode(*args):\n"
        "        time.sleep(0.06 if image is None else 0)\n"
        "        yield index, image\n"
        "decoder_child.probe, video._decode = slow_probe, slow\n"
        "decoder_child.main()\n"
    )
    monkeypatch.setattr(decoder_process, "CHILD", (str(script),))
    stage = stage_module.extract_videos(
        Output(str(store), "run-1"), (street,), extract_digests(short), short, steps.runtime
    )
    silences, begun = [], time.monotonic()
    before = begun
    for _ in stage:
        silences.append(time.monotonic() - before)
        before = time.monotonic()
    assert before - begun > 3 + 60 * 0.06
    assert max(silences) < 2.7
    assert tracks(steps.rows(store, *ROWS)) == tracks(whole[0])
