"""A real video through both passes: rows that pair, crops that show the frame, a store that no crash upsets."""

import dataclasses
import io
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from csip import tables
from csip.errors import WeightsError
from csip.ingest import records, track_pass
from csip.ingest.records import extract_digests, finished_videos, tracklet_id
from csip.types import People

ROWS = ("videos", "detections", "tracklets", "crops", "skeletons")


@pytest.fixture
def store(extracted, tmp_path):
    """A copy of the extracted store to write to."""
    return Path(shutil.copytree(extracted.store, tmp_path / "store"))


def changed(config, **sections):
    return dataclasses.replace(
        config, **{name: dataclasses.replace(getattr(config, name), **values) for name, values in sections.items()}
    )


def runs(store, stage):
    return tables.find_runs(str(store), f"stage = '{stage}'")


def totals(outcome):
    return {name: number for name, number in outcome.counts.items() if name != "seconds"}


def by_tracklet(rows):
    out = {}
    for row in rows:
        out.setdefault(row["tracklet_id"], []).append(row)
    return out


# ---------------------------------------------------------------------------------------------------------- the rows


def test_the_counts_are_those_of_the_tables(extracted, street, steps):
    rows = steps.rows(extracted.store, *ROWS)
    assert totals(extracted.outcome) == {
        "frames": 63,
        "detections": len(rows["detections"]),
        "tracklets": len(rows["tracklets"]),
        "crops": len(rows["crops"]),
        "quarantined": 0,
    }
    assert len(rows["tracklets"]) == 4
    (video,) = rows["videos"]
    assert (video["video_sha"], video["status"], video["num_frames"], video["expected_frames"]) == (
        *(street.video_sha, "ok"),
        *(63, 63),
    )
    (run,) = runs(extracted.store, "track_video")
    assert run.inputs["video"]["video_sha"] == street.video_sha
    seen = [np.array(row["keypoints"])[:, 2].mean() for row in rows["skeletons"] if row["has_skeleton"]]
    assert run.counts["keypoint_confidence"] == pytest.approx(np.mean(seen), abs=1e-4)
    assert set(extracted.outcome.weights) == {"yolo11n-pose.pt"}


def test_progress_counts_the_seconds_of_video_and_never_goes_back(extracted):
    done = [record.done for record in extracted.records]
    assert done == sorted(done)
    assert set(range(7)) <= set(done)
    assert {(record.stage, record.total, record.unit) for record in extracted.records} == {
        ("extract_videos", 7, "seconds of video")
    }
    assert done[-1] == 7


def test_the_phases_of_the_work_are_timed(extracted):
    seconds = extracted.outcome.counts["seconds"]
    assert 0 < seconds["model"] < seconds["all"]
    assert {"load", "read", "track", "read_again", "encode", "write", "finish"} <= set(seconds)


def test_a_tracklet_has_a_crop_and_a_skeleton_for_each_of_its_frames(extracted, steps):
    rows = steps.rows(extracted.store, *ROWS)
    crops, poses = by_tracklet(rows["crops"]), by_tracklet(rows["skeletons"])
    assert set(crops) == set(poses) == {row["tracklet_id"] for row in rows["tracklets"]}
    for tracklet in rows["tracklets"]:
        frames = [row["frame_index"] for row in crops[tracklet["tracklet_id"]]]
        assert frames == [row["frame_index"] for row in poses[tracklet["tracklet_id"]]]
        assert len(frames) == len(set(frames)) == tracklet["num_frames"] >= 8
        assert (min(frames), max(frames)) == (tracklet["first_frame"], tracklet["last_frame"])
        assert (tracklet["first_time"], tracklet["last_time"]) == pytest.approx((min(frames) / 10, max(frames) / 10))
        assert tracklet["pid"] is None


def test_a_crop_and_its_skeleton_are_of_one_detection(extracted, steps):
    rows = steps.rows(extracted.store, *ROWS)
    seen = {(row["frame_index"], tuple(row["box"])): row for row in rows["detections"]}
    poses = {(row["tracklet_id"], row["frame_index"]): row for row in rows["skeletons"]}
    for crop in rows["crops"]:
        pose = poses[crop["tracklet_id"], crop["frame_index"]]
        if not pose["has_skeleton"]:  # in a gap: nobody was detected there
            assert (crop["score"], np.abs(pose["keypoints"]).max()) == (0, 0)
            assert (crop["frame_index"], tuple(crop["box"])) not in seen
            continue
        detection = seen[crop["frame_index"], tuple(crop["box"])]
        assert pose["keypoints"] == detection["keypoints"]
        assert pose["extractor_digest"] == detection["detect_digest"]
        assert pose["layout"] == "coco17"
        assert (crop["score"], crop["time"]) == (detection["score"], detection["time"])
    assert 0 < sum(row["interpolated_frames"] for row in rows["tracklets"]) < len(rows["crops"]) / 10


def test_a_person_in_a_frame_belongs_to_one_tracklet(extracted, steps):
    crops = steps.rows(extracted.store, "crops")["crops"]
    assert len({(row["frame_index"], tuple(row["box"])) for row in crops}) == len(crops)


def test_detections_of_a_frame_are_numbered_by_falling_score(extracted, steps):
    frames = {}
    for row in steps.rows(extracted.store, "detections")["detections"]:
        frames.setdefault(row["frame_index"], []).append(row)
    for found in frames.values():
        assert [row["n"] for row in found] == list(range(len(found)))
        score = [row["score"] for row in found]
        assert score == sorted(score, reverse=True)
        assert min(score) >= 0.1


def test_a_crop_shows_the_pixels_of_its_frame_as_pyav_decodes_it(extracted, street, steps):
    with av.open(street.path) as container:
        frames = [frame.to_ndarray(format="rgb24").astype(np.int16) for frame in container.decode(video=0)]
    own, next_one = [], []
    for row in steps.rows(extracted.store, "crops")["crops"]:
        shown = np.asarray(Image.open(io.BytesIO(row["image"]))).astype(np.int16)
        x1, y1, x2, y2 = row["box"]
        # Pixels that the box touches, as far as the frame goes.
        cut = (slice(max(int(y1), 0), min(int(np.ceil(y2)), 576)), slice(max(int(x1), 0), min(int(np.ceil(x2)), 768)))
        assert shown.shape == frames[row["frame_index"]][cut].shape
        own.append(np.abs(shown - frames[row["frame_index"]][cut]).mean())
        next_one.append(np.abs(shown - frames[min(row["frame_index"] + 1, 62)][cut]).mean())
    # JPEG of quality 95 with halved chroma; the neighbouring frame shows the person a step further.
    assert max(own) < 4
    assert np.mean(next_one) > 2 * np.mean(own)


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((10.2, 20.7, 30.0, 40.5), (20, 21)),
        ((-5, -5, 4, 6), (4, 6)),
        ((60, 40, 99, 99), (4, 8)),
        ((10, 10, 10, 10), (1, 1)),
        ((63.9, 47.9, 80, 80), (1, 1)),
    ],
)
def test_a_crop_is_the_box_clipped_to_the_frame_and_never_empty(box, size):
    pixels = np.zeros((48, 64, 3), np.uint8)
    image = Image.open(io.BytesIO(track_pass.encode_crop(pixels, np.array(box, np.float32), 95)))
    assert image.size == size


# ----------------------------------------------------------------------------------------------------------- digests


def test_what_decides_a_row_is_in_its_digest_and_nothing_else(steps, monkeypatch, tmp_path):
    config = steps.config
    base = extract_digests(config)
    larger = extract_digests(changed(config, detect={"image_size": 672}))
    assert larger.detect != base.detect
    assert larger.track != base.track
    for change in ({"min_seconds": 0.9}, {"jpeg_quality": 90}, {"tracker": "botsort"}):
        other = extract_digests(changed(config, track=change))
        assert (other.detect == base.detect, other.track == base.track) == (True, False)
    # Where the same weights lie, how a protocol cuts and what the data set is called change no row.
    copied = shutil.copy(base.weights_path, tmp_path / "mine.pt")
    for same in (
        changed(config, detect={"weights": str(copied)}),
        changed(config, split={"gap_seconds": 9.0}),
        dataclasses.replace(config, dataset="other"),
    ):
        assert extract_digests(same).detect == base.detect
        assert extract_digests(same).track == base.track
    monkeypatch.setattr(records, "EXTRACT_VERSION", records.EXTRACT_VERSION + 1)
    assert extract_digests(config).detect != base.detect
    assert extract_digests(config).track != base.track


def test_other_weights_are_another_digest(steps, tmp_path):
    path = tmp_path / "yolo11n-pose.pt"
    path.write_bytes(b"other weights")
    assert (
        extract_digests(changed(steps.config, detect={"weights": str(path)})).detect
        != extract_digests(steps.config).detect
    )


def test_weights_that_are_nowhere_are_said(steps):
    with pytest.raises(WeightsError, match=r"weights nowhere\.pt: not found in"):
        extract_digests(changed(steps.config, detect={"weights": "nowhere.pt"}))


def test_a_tracklets_name_follows_from_video_settings_and_number():
    names = {tracklet_id(video, settings, n) for video in "ab" for settings in "cd" for n in (1, 2)}
    assert len(names) == 8
    assert tracklet_id("a", "c", 1) == tracklet_id("a", "c", 1)
    assert tracklet_id("a", "c", 7).endswith("-00007")


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_batch_size_engine_and_device_change_no_row(extracted, replayed, street, steps, tmp_path, batch):
    runtime = dataclasses.replace(steps.runtime, pose_batch=batch, decode_threads=1)
    steps.extract(tmp_path / "store", [street], runtime=runtime)
    assert replayed.calls == -(-63 // batch)
    assert steps.rows(tmp_path / "store", *ROWS) == steps.rows(extracted.store, *ROWS)
    (mine,), (first,) = runs(tmp_path / "store", "track_video"), runs(extracted.store, "track_video")
    assert (mine.key, mine.outputs) == (first.key, first.outputs)


# ------------------------------------------------------------------------------------------------------------- again


def test_tracking_again_with_other_settings_does_not_run_the_pose_model(extracted, store, street, steps, replayed):
    before = steps.rows(extracted.store, *ROWS)
    longer = changed(steps.config, track={"min_seconds": 3.0})
    _, outcome = steps.extract(store, [street], longer)
    assert replayed.calls == 0
    after = steps.rows(store, *ROWS)
    assert after["detections"] == before["detections"]
    assert len(runs(store, "detect_video")) == 1
    # The rows of the first settings stay; those of the second are the same people, the short-lived left out.
    assert [row for row in after["tracklets"] if row in before["tracklets"]] == before["tracklets"]
    added = [row for row in after["tracklets"] if row not in before["tracklets"]]
    key = ("first_frame", "last_frame", "num_frames", "keypoint_confidence")
    expected = sorted(tuple(row[k] for k in key) for row in before["tracklets"] if row["num_frames"] >= 30)
    assert sorted(tuple(row[k] for k in key) for row in added) == expected
    assert outcome.counts["tracklets"] == len(expected) == 2
    (run,) = [run for run in runs(store, "track_video") if run.config["track"]["min_seconds"] == 3.0]
    (first,) = runs(extracted.store, "track_video")
    assert run.counts["dropped"]["too short"] == first.counts["dropped"]["too short"] + 4 - 2
    assert set(finished_videos(str(store), extract_digests(longer).track)) == {street.video_sha}


def test_leftovers_of_a_run_that_was_killed_are_removed(extracted, store, street, steps, replayed):
    expected = steps.rows(extracted.store, *ROWS)
    tables.delete(str(store), "runs", "stage = 'track_video'")
    tables.delete(str(store), "tracklets", "true")
    digests = extract_digests(steps.config)
    ghost = {"tracklet_id": tracklet_id(street.video_sha, digests.track, 99)}
    foreign = {"tracklet_id": "p7-a"}
    for name in ("crops", "skeletons"):
        rows = [expected[name][0] | ghost, expected[name][0] | foreign]
        tables.upsert(str(store), name, tables.from_rows(name, rows))
    steps.extract(store, [street])
    assert replayed.calls == 0
    found = steps.rows(store, *ROWS)
    for name in ("crops", "skeletons"):
        assert [row for row in found[name] if row["tracklet_id"] != "p7-a"] == expected[name]
        assert [row for row in found[name] if row["tracklet_id"] == "p7-a"] == [expected[name][0] | foreign]
    assert found["tracklets"] == expected["tracklets"]


@pytest.mark.parametrize(
    ("table", "nth", "model_runs_again"),
    [
        *(("detections", 1, True), ("crops", 3, False), ("tracklets", 1, False)),
        *(
            pytest.param(*one, marks=pytest.mark.slow)
            for one in (("videos", 1, False), ("runs", 1, True), ("crops", 1, False), ("skeletons", 1, False))
        ),
        pytest.param("runs", 2, False, marks=pytest.mark.slow),
    ],
)
def test_a_crash_between_commits_is_made_good_by_the_next_run(
    extracted, replayed, street, steps, tmp_path, monkeypatch, table, nth, model_runs_again
):
    monkeypatch.setattr(track_pass, "_COMMIT_CROPS", 20)
    store, count = tmp_path / "store", 0
    write, record = tables.upsert, tables.record_run

    def crash_at(name):
        nonlocal count
        count += name == table
        if name == table and count == nth:
            raise KeyboardInterrupt

    def upsert(where, name, rows, **options):
        crash_at(name)
        return write(where, name, rows, **options)

    def record_run(where, run):
        crash_at("runs")
        return record(where, run)

    with monkeypatch.context() as patch:
        patch.setattr(tables, "upsert", upsert)
        patch.setattr(tables, "record_run", record_run)
        with pytest.raises(KeyboardInterrupt):
            steps.extract(store, [street])
    assert finished_videos(str(store), extract_digests(steps.config).track) == {}
    calls = replayed.calls
    _, outcome = steps.extract(store, [street])
    assert (replayed.calls > calls) == model_runs_again
    assert steps.rows(store, *ROWS) == steps.rows(extracted.store, *ROWS)
    assert totals(outcome) == totals(extracted.outcome)
    assert [len(runs(store, stage)) for stage in ("detect_video", "track_video")] == [1, 1]


# ------------------------------------------------------------------------------------------------- videos gone wrong


def test_a_video_that_fails_stops_none_of_the_others(extracted, replayed, street, steps, tmp_path, caplog):
    gone = dataclasses.replace(street, path=str(tmp_path / "gone.mp4"), video_sha="f" * 64)
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    other = dataclasses.replace(street, path=str(text), video_sha="e" * 64)
    _, outcome = steps.extract(tmp_path / "store", [gone, other, street])
    assert outcome.counts["quarantined"] == 2
    assert [one.video_sha for one in outcome.value] == [street.video_sha]
    rows = {Path(row["path"]).name: row for row in steps.rows(tmp_path / "store", "videos")["videos"]}
    assert {name: row["status"] for name, row in rows.items()} == {
        "gone.mp4": "quarantined",
        "text.mp4": "quarantined",
        "street.mp4": "ok",
    }
    assert "no such file" in rows["gone.mp4"]["reason"]
    assert "text.mp4" in caplog.text
    assert len(steps.rows(tmp_path / "store", "crops")["crops"]) == extracted.outcome.counts["crops"]


def test_a_video_that_breaks_off_is_kept_as_far_as_it_goes(extracted, replayed, street, steps, tmp_path):
    """Without its last packets, behind an index that still announces them."""
    whole = tmp_path / "whole.mp4"
    with av.open(street.path) as source, av.open(str(whole), "w", options={"movflags": "+faststart"}) as made:
        copied = made.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = copied
                made.mux(packet)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 4])
    video = steps.source(cut)
    _, outcome = steps.extract(tmp_path / "store", [video])
    (row,) = steps.rows(tmp_path / "store", "videos")["videos"]
    assert (row["status"], row["num_frames"]) == ("partial", outcome.counts["frames"])
    assert 20 < row["num_frames"] < 63
    assert f"read {row['num_frames']} of 63 frames" in row["reason"]
    frames = [crop["frame_index"] for crop in steps.rows(tmp_path / "store", "crops")["crops"]]
    assert 0 < max(frames) < row["num_frames"]
    assert outcome.counts["quarantined"] == 0


def test_a_video_without_people_is_done_and_has_no_rows(replayed, street, steps, tmp_path, monkeypatch):
    nobody = People(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 17, 3), np.float32))
    monkeypatch.setattr(type(replayed), "__call__", lambda _, frames: [nobody] * len(frames))
    store = tmp_path / "store"
    _, outcome = steps.extract(store, [street])
    assert totals(outcome) == {"frames": 63, "detections": 0, "tracklets": 0, "crops": 0, "quarantined": 0}
    rows = steps.rows(store, *ROWS)
    assert [name for name in ROWS if rows[name]] == ["videos"]
    (run,) = runs(store, "track_video")
    assert run.counts["keypoint_confidence"] == 0.0
    assert set(finished_videos(str(store), extract_digests(steps.config).track)) == {street.video_sha}


def test_a_run_names_what_the_rows_came_from(extracted, street, steps):
    digests = extract_digests(steps.config)
    (detected,), (tracked,) = (runs(extracted.store, stage) for stage in ("detect_video", "track_video"))
    assert detected.outputs == {"video_sha": street.video_sha, "detect_digest": digests.detect}
    assert tracked.outputs == detected.outputs | {"track_digest": digests.track}
    assert detected.weights == tracked.weights == dict(digests.weights)
    assert detected.config["image_size"] == 640
    assert tracked.config["track"]["min_seconds"] == 0.8
    assert detected.source_digest == tracked.source_digest == f"extract-{records.EXTRACT_VERSION}"
    assert [one.run_id for one in extracted.outcome.value] == [tracked.run_id]
