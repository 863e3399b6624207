"""What a user may name as a source, and which videos a build makes of it."""

import csv
import hashlib
import itertools
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from csip import tables
from csip.config import DetectConfig, ExtractConfig, RuntimeConfig
from csip.errors import SourceError, WeightsError
from csip.ingest.records import extract_digests, record_pass
from csip.ingest.sources import expand_all, find_videos, list_videos
from csip.types import SourceVideo

CONFIG = ExtractConfig()
FACTS = {"config": {}, "counts": {}, "device": "cpu", "started": tables.now(), "seconds": 1.0}
RUNTIME = RuntimeConfig()


def write_video(path, shade, frames=10):
    """Write `frames` frames at 10 a second, of one shade: other shades and lengths are other videos."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(frames):
            picture = np.full((48, 64, 3), shade, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def videos(tmp_path):
    """Two videos, one of them twice, and two files that are none."""
    folder = tmp_path / "videos"
    write_video(folder / "b.mp4", 50)
    write_video(folder / "deep" / "a.mp4", 200)
    shutil.copy(folder / "b.mp4", folder / "copy.mp4")
    (folder / "zero.mp4").touch()
    (folder / "text.avi").write_text("no video")
    (folder / "notes.txt").write_text("not looked at")
    return folder


@pytest.fixture
def listed(out, run):
    def call(*sources, camera="", config=CONFIG, runtime=RUNTIME):
        return run(list_videos(out, tuple(map(str, sources)), camera, config, runtime))

    return call


def cameras(outcome):
    return {Path(video.path).name: video.camera for video in outcome.value.videos}


def test_a_folder_gives_each_video_once_and_counts_the_rest(listed, videos):
    progress, outcome = listed(videos)
    # Each by its place below the folder: cameras write files of the same names into folders of their own.
    assert cameras(outcome) == {"b.mp4": "b", "a.mp4": "deep/a"}
    counts = {name: value for name, value in outcome.counts.items() if not name.startswith("unreadable ")}
    assert (counts.pop("unreadable_folders"), counts.pop("forgotten_files")) == (0, 0)
    assert counts == {"files": 5, "videos": 2, "already_extracted": 0, "duplicate_files": 1, "unreadable_files": 2}
    reasons = [outcome.counts["unreadable 1"], outcome.counts["unreadable 2"]]
    assert "text.avi: 8 bytes that cannot be read" in reasons[0]
    assert "zero.mp4: the file is empty" in reasons[1]
    assert (progress[-1].done, progress[-1].total) == (5, 5)


def test_a_file_that_cannot_be_read_has_a_row_that_says_why(listed, videos, out):
    _, outcome = listed(videos)
    rows = {Path(row["path"]).name: row for row in tables.read(tables.current(out.store, "videos")).to_pylist()}
    assert set(rows) == {"zero.mp4", "text.avi"}
    assert {row["status"] for row in rows.values()} == {"quarantined"}
    assert rows["text.avi"]["reason"] == outcome.counts["unreadable 1"]
    assert rows["text.avi"]["bytes"] == 8


def test_videos_are_in_the_order_of_their_content_whatever_they_are_called(listed, videos, tmp_path):
    _, one = listed(videos, camera="x")
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    shutil.copy(videos / "b.mp4", renamed / "z.mp4")
    shutil.copy(videos / "deep" / "a.mp4", renamed / "y.mp4")
    _, other = listed(renamed, camera="x")
    shas = [video.video_sha for video in one.value.videos]
    assert shas == sorted(shas) == [video.video_sha for video in other.value.videos]
    assert one.value.digests == other.value.digests == extract_digests(CONFIG)


def test_several_sources_add_up_and_a_named_camera_goes_for_all(listed, videos):
    _, outcome = listed(videos / "b.mp4", videos / "deep", camera="gate")
    assert cameras(outcome) == {"b.mp4": "gate", "a.mp4": "gate"}


def test_a_manifest_names_videos_beside_it_and_their_cameras(listed, videos):
    manifest = videos / "list.csv"
    with manifest.open("w", newline="", encoding="utf-8-sig") as file:  # with a mark, as spreadsheets write it
        rows = [["camera", "note", "path"], ["gate", 'a "note", quoted', "b.mp4"], ["Straße", "", "deep"]]
        csv.writer(file).writerows(rows)
    _, outcome = listed(manifest)
    assert cameras(outcome) == {"b.mp4": "gate", "a.mp4": "Straße"}
    _, outcome = listed(manifest, camera="one")
    assert set(cameras(outcome).values()) == {"one"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "found columns None, expected path and camera"),
        ("path;camera\nb.mp4;gate\n", "found columns .'path;camera'., expected path and camera"),
        ("path,camera\n", "found no lines below the header"),
        ("path,camera\nb.mp4,gate\n,gate\n", "line 3: found"),
        ("path,camera\nb.mp4,\n", "line 2: found"),
        ("path,camera\nb.mp4\n", "line 2: found"),
        ("path,camera\nnowhere.mp4,gate\n", r"nowhere\.mp4: no such file or folder"),
    ],
)
def test_a_manifest_that_does_not_say_what_it_must_is_refused(listed, videos, text, told):
    (videos / "list.csv").write_text(text)
    with pytest.raises(SourceError, match=told):
        listed(videos / "list.csv")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("nowhere", "nowhere: no such file or folder"),
        ("~nobody-of-this-name/videos", "~nobody-of-this-name/videos: Could not determine home directory"),
        ("empty", "found no videos and 1 other files"),
    ],
)
def test_a_source_that_names_nothing_is_refused(listed, tmp_path, monkeypatch, source, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("x")
    with pytest.raises(SourceError, match=told):
        listed(source)


def test_a_file_whose_name_looks_like_a_benchmark_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mars:cam1.mp4").touch()
    assert [(one.path.name, one.camera) for one in expand_all(("mars:cam1.mp4",), "").files] == [
        ("mars:cam1.mp4", "mars:cam1")
    ]


def test_files_of_which_none_is_a_video_are_refused_with_the_first_reason(listed, videos):
    with pytest.raises(
        SourceError, match=r"Found 2 files, none of them a readable video.*zero\.mp4: the file is empty"
    ):
        listed(videos / "zero.mp4", videos / "text.avi")


def test_missing_weights_are_said_before_any_video_is_read(listed, videos):
    with pytest.raises(WeightsError, match=r"weights nowhere\.pt: not found"):
        listed(videos, config=ExtractConfig(detect=DetectConfig(weights="nowhere.pt")))


def test_a_video_that_is_extracted_under_these_settings_is_not_to_do_again(listed, videos, out):
    _, before = listed(videos)
    digests = extract_digests(CONFIG)
    done = before.value.videos[0]
    # A segment of it does not make it done.
    record_pass(out, "track_segment", "k0", done, digests, **FACTS)
    assert sum(map(len, listed(videos)[1].value.batches)) == 2
    record_pass(out, "track_video", "k1", done, digests, **FACTS)
    _, after = listed(videos)
    assert [video.video_sha for batch in after.value.batches for video in batch] == [before.value.videos[1].video_sha]
    assert after.value.videos == before.value.videos
    assert after.counts["already_extracted"] == 1
    # Under other settings it is still to do.
    _, other = listed(videos, config=ExtractConfig(detect=DetectConfig(image_size=640)))
    assert sum(map(len, other.value.batches)) == 2


def test_a_moved_or_renamed_video_is_not_to_do_again(listed, videos, out, tmp_path):
    _, before = listed(videos)
    for video in before.value.videos:
        record_pass(out, "track_video", f"key {video.video_sha}", video, extract_digests(CONFIG), **FACTS)
    (tmp_path / "moved").mkdir()
    shutil.move(videos / "b.mp4", tmp_path / "moved" / "other name.mp4")
    shutil.move(videos / "deep" / "a.mp4", tmp_path / "moved" / "a.mp4")
    _, after = listed(tmp_path / "moved")
    assert after.counts["already_extracted"] == 2
    assert after.value.batches == ()
    assert {Path(video.path).name for video in after.value.videos} == {"other name.mp4", "a.mp4"}


def test_a_forgotten_video_is_not_built_again(listed, videos, out):
    _, before = listed(videos)
    first, second = before.value.videos
    tombstone = dict.fromkeys(("bytes", "width", "height", "expected_frames", "num_frames"), 0)
    tombstone |= {"fps": 0.0, "duration": 0.0, "codec": "", "path": "", "reason": "", "status": "forgotten"}
    tables.upsert(out.store, "videos", tables.from_rows("videos", [tombstone | {"video_sha": first.video_sha}]))
    _, after = listed(videos)
    assert after.value.videos == (second,)
    files = [path.read_bytes() for path in videos.rglob("*") if path.is_file()]
    assert after.counts["forgotten_files"] == [hashlib.sha256(one).hexdigest() for one in files].count(first.video_sha)
    with pytest.raises(SourceError, match=r"Found 1 files, of which 1 were forgotten here \(`csip forget`\)"):
        listed(first.path)


def test_short_videos_share_a_process_until_they_fill_its_time(listed, tmp_path):
    # 1, 1, 1 and 3 seconds; which comes when is up to their digests.
    for shade, frames in ((10, 10), (90, 10), (170, 10), (250, 30)):
        write_video(tmp_path / "videos" / f"{shade}.mp4", shade, frames)
    _, outcome = listed(tmp_path / "videos", runtime=RuntimeConfig(video_batch_seconds=2))
    batches = outcome.value.batches
    assert [video for batch in batches for video in batch] == list(outcome.value.videos)
    lengths = [[round(video.duration) for video in batch] for batch in batches]
    assert [3] in lengths, "a long one stands alone"
    assert all(sum(batch) <= 2 or len(batch) == 1 for batch in lengths)
    for batch, after in itertools.pairwise(lengths):
        assert sum(batch) + after[0] > 2, "none that would have fitted was left for the next"
    _, outcome = listed(tmp_path / "videos", runtime=RuntimeConfig(video_batch_seconds=100))
    assert [len(batch) for batch in outcome.value.batches] == [4]


def test_a_source_video_is_known_by_its_absolute_path_and_length(listed, videos, monkeypatch):
    monkeypatch.chdir(videos)
    _, outcome = listed("b.mp4")
    (video,) = outcome.value.videos
    assert isinstance(video, SourceVideo)
    assert video.path == str(videos / "b.mp4")
    assert video.duration == pytest.approx(1.0)


def test_a_folder_gives_its_videos_in_order_and_nothing_else(tmp_path):
    for name in ("b/z.MP4", "b/a.avi", "a.mkv", "c.txt", ".hidden.mp4", ".git/x.mp4", "b/._z.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_videos(tmp_path, []) == [tmp_path / "a.mkv", tmp_path / "b/a.avi", tmp_path / "b/z.MP4"]


def test_a_file_gives_itself(tmp_path):
    path = tmp_path / "recording.dat"
    path.touch()
    assert find_videos(path, []) == [path]


def test_links_in_a_circle_end(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/v.mp4").touch()
    (tmp_path / "a/up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "b").symlink_to(tmp_path / "a", target_is_directory=True)
    assert find_videos(tmp_path, []) == [tmp_path / "a/v.mp4"]


def test_a_source_without_videos_names_what_was_looked_for(tmp_path):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "table.csv").touch()
    with pytest.raises(SourceError, match=r"found no videos and 2 other files; .*\.mp4"):
        find_videos(tmp_path, [])
    with pytest.raises(SourceError, match="no such file or folder"):
        find_videos(tmp_path / "elsewhere", [])
