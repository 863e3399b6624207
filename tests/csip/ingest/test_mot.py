"""Tracks of hand-made stores as MOTChallenge text, read back by the format's own description."""

import os

import pytest

from csip import tables
from csip.config import ExtractConfig
from csip.errors import CsipError
from csip.evaluation.publish import publish
from csip.ingest.mot import check_target, write_mot
from csip.ingest.records import record_pass
from csip.plain import to_plain
from csip.types import ExtractDigests, Output, SourceVideo, VideoList

DIGESTS = ExtractDigests("e" * 64, "d" * 64, {}, "")
CONFIG = ExtractConfig()
SETTINGS = {"detect": to_plain(CONFIG.detect), "track": to_plain(CONFIG.track)}


def run(stage):
    while True:
        try:
            next(stage)
        except StopIteration as end:
            return end.value


def write(store, letter, path, tracklets):
    """Put a video into a store; `tracklets` are rows (frame_index, box, score) each."""
    tables.prepare_store(store)
    names = [f"{letter}-{number:05d}" for number in range(len(tracklets))]
    crops = [
        {
            "tracklet_id": n,
            "frame_index": f,
            "time": f / 10,
            "box": box,
            "score": score,
            "media_type": "x",
            "image": b"",
        }
        for n, rows in zip(names, tracklets, strict=True)
        for f, box, score in rows
    ]
    told = [
        {
            "tracklet_id": name,
            "video_sha": letter * 64,
            "track_digest": DIGESTS.track,
            "first_frame": rows[0][0],
            "last_frame": rows[-1][0],
            "first_time": rows[0][0] / 10,
            "last_time": rows[-1][0] / 10,
            "num_frames": len(rows),
            "keypoint_confidence": 0.8,
            "pid": None,
            "begins": "appeared",
            "ends": "left",
            "interpolated_frames": sum(score == 0 for _, _, score in rows),
        }
        for name, rows in zip(names, tracklets, strict=True)
    ]
    tables.upsert(store, "crops", tables.from_rows("crops", crops))
    tables.upsert(store, "tracklets", tables.from_rows("tracklets", told))
    counts = {"frames": 9, "detections": 9, "tracklets": len(told), "crops": len(crops), "keypoint_confidence": 0.8}
    video = SourceVideo(letter * 64, path, letter, 10.0)
    told_of = {"config": SETTINGS, "counts": {**counts, "dropped": {}, "rules": {}}, "device": "cpu", "seconds": 1.0}
    record_pass(Output(store, f"run-{letter}"), "track_video", letter, video, DIGESTS, started=tables.now(), **told_of)
    return video


def put_rows(store, *videos):
    plain = {"bytes": 1, "codec": "", "width": 1, "height": 1, "fps": 10.0, "expected_frames": 9, "num_frames": 9}
    rows = [
        plain | {"video_sha": v.video_sha, "path": v.path, "duration": 1.0, "status": "ok", "reason": ""}
        for v in videos
    ]
    tables.upsert(store, "videos", tables.from_rows("videos", rows))


def published(store, *videos):
    return run(publish(Output(store, "run-p"), VideoList(videos, (), DIGESTS), (), CONFIG)).value


def test_a_video_is_written_line_by_line(tmp_path):
    """Frames, people and pixels count from 1; an interpolated box has its tracklet's lowest confidence."""
    store = str(tmp_path / "store")
    walker = [(0, [0, 10, 40, 110], 0.9), (1, [2, 10, 42, 110], 0), (2, [4.5, 10, 44.75, 110], 0.5)]
    video = write(store, "a", "/street.mp4", [walker, [(2, [200, 20, 230, 100], 0.75)]])
    out = tmp_path / "deep" / "out.txt"
    assert write_mot(published(store, video), out) == [out]
    assert out.read_text().splitlines() == [
        "1,1,1.00,11.00,40.00,100.00,0.9000,-1,-1,-1",
        "2,1,3.00,11.00,40.00,100.00,0.5000,-1,-1,-1",
        "3,1,5.50,11.00,40.25,100.00,0.5000,-1,-1,-1",
        "3,2,201.00,21.00,30.00,80.00,0.7500,-1,-1,-1",
    ]
    assert [path.name for path in out.parent.iterdir()] == ["out.txt"]


def test_several_videos_are_files_of_their_own_and_namesakes_are_told_apart(tmp_path):
    store = str(tmp_path / "store")
    videos = [
        write(store, letter, path, [[(frame, [0, 0, 10, 20], 0.5)]])
        for frame, (letter, path) in enumerate(
            {"a": "/x/street.mp4", "b": "/y/street.avi", "c": f"/{'z' * 250}"}.items()
        )
    ]
    put_rows(store, *videos)
    files = write_mot(published(store, *videos), tmp_path / "mot")
    assert [path.name for path in files] == ["street-aaaaaaaa.txt", "street-bbbbbbbb.txt", "z" * 250 + ".txt"]
    assert [path.read_text().split(",")[0] for path in files] == ["1", "2", "3"]
    assert sorted((tmp_path / "mot").iterdir()) == sorted(files)


def test_one_video_goes_into_a_folder_that_is_there(tmp_path):
    store = str(tmp_path / "store")
    video = write(store, "a", "/x/street.mp4", [[(0, [0, 0, 10, 20], 0.5)]])
    put_rows(store, video)
    (tmp_path / "tracks").mkdir()
    snapshot = published(store, video)
    assert write_mot(snapshot, tmp_path / "tracks") == [tmp_path / "tracks" / "street.txt"]
    assert (tmp_path / "tracks" / "street.txt").read_text().startswith("1,1,1.00")
    assert write_mot(snapshot, tmp_path / "tracks") == [tmp_path / "tracks" / "street.txt"]


def test_tracks_that_cannot_be_written_are_said(tmp_path):
    store = str(tmp_path / "store")
    videos = [write(store, one, f"/{one}.mp4", [[(0, [0, 0, 10, 20], 0.5)]]) for one in "ab"]
    put_rows(store, *videos)
    (tmp_path / "tracks.txt").touch()
    with pytest.raises(CsipError, match=r"tracks\.txt/a\.txt: tracks could not be written \(.*name another"):
        write_mot(published(store, *videos), tmp_path / "tracks.txt")


@pytest.mark.parametrize("videos", [1, 2])
def test_a_place_for_tracks_is_looked_at_before_anything_is_built(tmp_path, videos):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.txt").touch()
    for good in ("folder", "new.txt", "new/deep/er.txt", "folder/new.txt"):
        check_target(tmp_path / good, videos)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.txt", "folder"], "nothing is made"
    bad = {
        tmp_path / "file.txt" / "x.txt": "file.txt is a file, expected",
        "/dev/null": "is neither a file nor a folder",
    }
    if videos == 1:
        check_target(tmp_path / "file.txt", videos)
    else:
        bad[tmp_path / "file.txt"] = "is a file, expected a folder, for a file each of 2 videos"
    for path, told in bad.items():
        with pytest.raises(CsipError, match=told):
            check_target(type(tmp_path)(path), videos)


def test_a_folder_that_may_not_be_written_to_holds_no_tracks(tmp_path, monkeypatch):
    # Root may write everywhere, so the answer of the system is given here.
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)
    with pytest.raises(CsipError, match="this user may not write to"):
        check_target(tmp_path / "new.txt", 1)


def test_tracks_of_a_benchmark_are_refused_at_once(tmp_path):
    with pytest.raises(CsipError, match="the source is of a benchmark, which brings its own tracklets"):
        check_target(tmp_path / "new.txt", 0)
