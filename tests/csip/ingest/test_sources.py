"""Which videos a build makes of its sources, and what the store says of the other files."""

import csv
import hashlib
import io
import itertools
import os
import shutil
import time
from pathlib import Path

import av
import numpy as np
import pytest

from csip import tables
from csip.config import DetectConfig, ExtractConfig, RuntimeConfig
from csip.errors import DecoderLostError, SourceError, WeightsError
from csip.ingest import known_files, sources, video_rows
from csip.ingest.decoder import Decoder
from csip.ingest.records import extract_digests, record_pass
from csip.ingest.sources import list_videos
from csip.maintenance.forget import forgotten
from csip.types import SourceVideo

CONFIG = ExtractConfig()
FACTS = {"config": {}, "counts": {}, "device": "cpu", "started": tables.now(), "seconds": 1.0}
RUNTIME = RuntimeConfig()


def write_video(path, shade, frames=10, size=(64, 48)):
    """Write `frames` frames at 10 a second, of one shade: other shades and lengths are other videos."""
    width, height = size
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(frames):
            picture = np.full((height, width, 3), shade, np.uint8)
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
    assert counts.pop("other_files") == {".txt": 1}
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
        ("path,camera\nnowhere.mp4,gate\n", r"line 2: .*nowhere\.mp4: no such file or folder"),
        ("path,camera\n/no/a.mp4,gate\n/no/b.mp4,gate\n", r"nor is any other of the manifest's 2 paths there"),
        ("path,camera\nb.mp4,gate\na\0b.mp4,gate\n", "line 3: found"),
        ("path,camera\nb.mp4,gate\nempty,gate\n", r"list\.csv, line 3: .*empty: found no videos"),
        ("path,camera\nb.mp4,gate\nvideos.zip,gate\n", r"list\.csv, line 3: .*videos\.zip: is an archive"),
    ],
)
def test_a_manifest_that_does_not_say_what_it_must_is_refused(listed, videos, text, told):
    (videos / "empty").mkdir()
    (videos / "videos.zip").touch()
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


def row_of(path):
    """The row of a video as `write_video` makes it, worked out by hand."""
    facts = {"codec": "h264", "width": 64, "height": 48, "fps": 10.0, "expected_frames": 10, "num_frames": 10}
    told = {"path": str(path), "bytes": path.stat().st_size, "duration": 1.0, "status": "ok", "reason": ""}
    return {"video_sha": hashlib.sha256(path.read_bytes()).hexdigest()} | facts | told


def put(out, *rows):
    tables.upsert(out.store, "videos", tables.from_rows("videos", list(rows)))


def table(out):
    return {row["video_sha"]: row for row in tables.read(tables.current(out.store, "videos")).to_pylist()}


def forget(out, *shas):
    """Write what `csip forget` leaves of videos."""
    nothing = dict.fromkeys(("bytes", "width", "height", "expected_frames", "num_frames"), 0)
    nothing |= {"fps": 0.0, "duration": 0.0, "codec": "", "path": "", "reason": "", "status": "forgotten"}
    put(out, *(nothing | {"video_sha": sha} for sha in shas))


@pytest.fixture
def finish(out):
    """Leave of videos what their extraction leaves, as far as a listing asks for it."""

    def call(*videos):
        for video in videos:
            record_pass(out, "track_video", f"key {video.video_sha}", video, extract_digests(CONFIG), **FACTS)
            put(out, row_of(Path(video.path)))

    return call


@pytest.fixture
def probed(monkeypatch):
    """The names of the files that a decoder was asked for; those in `failing` it fails over."""
    asked, failing = [], set()
    probe = Decoder.probe

    def watch(self, path):
        asked.append(path.name)
        if path.name in failing:
            raise DecoderLostError(f"{path}: the decoder hung")
        return probe(self, path)

    monkeypatch.setattr(Decoder, "probe", watch)
    asked_and_failing = type("Probed", (), {"asked": asked, "failing": failing})
    return asked_and_failing


def test_a_forgotten_video_is_not_built_again(listed, videos, out):
    _, before = listed(videos)
    first, second = before.value.videos
    forget(out, first.video_sha)
    _, after = listed(videos)
    assert after.value.videos == (second,)
    files = [path.read_bytes() for path in videos.rglob("*") if path.is_file()]
    assert after.counts["forgotten_files"] == [hashlib.sha256(one).hexdigest() for one in files].count(first.video_sha)
    with pytest.raises(SourceError, match=r"Found 1 files, of which 1 were forgotten here \(`csip forget`\)"):
        listed(first.path)


def test_a_forgotten_file_that_is_no_video_stays_forgotten_and_unnamed(listed, videos, out):
    listed(videos)
    sha = hashlib.sha256(b"no video").hexdigest()
    assert table(out)[sha]["path"].endswith("text.avi")
    forget(out, sha)
    tombstone = table(out)[sha]
    _, outcome = listed(videos)
    assert table(out)[sha] == tombstone
    assert (outcome.counts["forgotten_files"], outcome.counts["unreadable_files"]) == (1, 1)
    assert "text.avi" not in str(outcome)


def test_a_forgotten_video_that_cannot_be_read_once_stays_forgotten(listed, videos, out, probed):
    _, before = listed(videos)
    sha = next(video.video_sha for video in before.value.videos if video.path.endswith("a.mp4"))
    forget(out, sha)
    probed.failing.add("a.mp4")
    listed(videos)
    probed.failing.clear()
    _, after = listed(videos)
    assert forgotten(out.store) == {sha}
    assert sha not in {video.video_sha for video in after.value.videos}


def test_an_extracted_video_that_cannot_be_read_once_stays_in_the_store_and_in_the_build(
    listed, videos, out, finish, probed
):
    _, before = listed(videos)
    finish(*before.value.videos)
    expected = table(out)
    probed.failing.add("a.mp4")
    _, after = listed(videos)
    assert table(out) == expected
    assert after.value.videos == before.value.videos
    assert (after.counts["already_extracted"], after.counts["unreadable_files"]) == (2, 2)
    # Under other settings it would have to be read, and is left out; but the row is stood on all the same.
    other = ExtractConfig(detect=DetectConfig(image_size=640))
    _, after = listed(videos, config=other)
    assert [Path(video.path).name for video in after.value.videos] == ["b.mp4"]
    assert after.counts["unreadable_files"] == 3
    assert table(out) == expected


def test_a_moved_video_is_known_to_lie_where_it_was_seen_last(listed, videos, out, finish, tmp_path):
    _, before = listed(videos)
    finish(*before.value.videos)
    (tmp_path / "moved").mkdir()
    old = videos / "deep" / "a.mp4"
    new = Path(shutil.copy(old, tmp_path / "moved" / "other name.mp4"))
    sha = hashlib.sha256(new.read_bytes()).hexdigest()

    def place():
        listed(new)
        return table(out)[sha]["path"]

    assert place() == str(old), "it is still there"
    old.write_bytes(b"another one")
    assert place() == str(new), "another one lies there"
    put(out, row_of(new) | {"path": str(old)})
    old.unlink()
    assert place() == str(new)
    assert table(out)[sha] == row_of(new)
    version = tables.current(out.store, "videos").version
    place()
    assert tables.current(out.store, "videos").version == version, "nothing is written again"


def test_a_file_that_was_unreadable_once_has_no_row_that_says_so_for_ever(listed, videos, out, tmp_path):
    link = tmp_path / "link.mp4"
    link.symlink_to(tmp_path / "not yet.mp4")
    with pytest.raises(SourceError, match="no such file"):
        listed(tmp_path / "videos" / "b.mp4", tmp_path / "link.mp4")
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "link.mp4").symlink_to(tmp_path / "not yet.mp4")
    shutil.copy(videos / "b.mp4", tmp_path / "many")
    listed(tmp_path / "many")
    assert [row["status"] for row in table(out).values()] == ["quarantined"]
    shutil.copy(videos / "deep" / "a.mp4", tmp_path / "not yet.mp4")
    listed(tmp_path / "many")
    assert table(out) == {}


def test_a_file_that_was_half_copied_once_has_no_row_that_says_so_for_ever(listed, videos, out):
    for name in ("zero.mp4", "text.avi"):
        (videos / name).unlink()
    whole = (videos / "deep" / "a.mp4").read_bytes()
    copied = videos / "copied.mp4"
    for share in (2, 3):
        copied.write_bytes(whole[: len(whole) // share])
        listed(videos)
        (row,) = table(out).values()
        assert (row["status"], row["path"], row["bytes"]) == ("quarantined", str(copied), len(whole) // share)
    copied.write_bytes(whole)
    listed(videos)
    assert table(out) == {}


def test_only_what_is_quarantined_is_taken_out_for_another_file_in_its_place(listed, videos, out, finish):
    _, outcome = listed(videos)
    finish(*outcome.value.videos)
    forget(out, "f" * 64)
    stood_on = row_of(videos / "b.mp4")
    for name, sha in (("b.mp4", hashlib.sha256((videos / "b.mp4").read_bytes()).hexdigest()), ("text.avi", "0" * 64)):
        stale = row_of(videos / name) | {"video_sha": sha, "status": "quarantined"}
        put(out, stale | ({"path": str(videos / "deep" / "a.mp4")} if name == "b.mp4" else {}))
    (videos / "b.mp4").unlink()
    (videos / "copy.mp4").unlink()
    listed(videos)
    rows = table(out)
    assert rows["f" * 64]["status"] == "forgotten"
    assert stood_on["video_sha"] in rows, "a finished run stands on it"
    assert "0" * 64 not in rows
    assert {Path(row["path"]).name for row in rows.values() if row["status"] == "ok"} == {"a.mp4"}


def test_a_path_of_a_manifest_that_is_not_there_stops_none_of_the_others(listed, videos, out):
    manifest = videos / "list.csv"
    manifest.write_text("path,camera\nb.mp4,gate\nnowhere.mp4,gate\nyard/nowhere.mp4,yard\n")
    _, outcome = listed(manifest)
    assert cameras(outcome) == {"b.mp4": "gate"}
    assert (outcome.counts["files"], outcome.counts["unreadable_files"]) == (3, 2)
    told = f"Manifest {manifest}, line 3: {videos}/nowhere.mp4: no such file. Name a video file that exists."
    assert outcome.counts["unreadable 1"] == told
    rows = {Path(row["path"]).relative_to(videos).as_posix(): row for row in table(out).values()}
    assert {name: row["status"] for name, row in rows.items()} == {
        "nowhere.mp4": "quarantined",
        "yard/nowhere.mp4": "quarantined",
    }
    assert rows["nowhere.mp4"]["reason"] == told
    shutil.copy(videos / "deep" / "a.mp4", videos / "nowhere.mp4")
    _, outcome = listed(manifest)
    assert cameras(outcome) == {"b.mp4": "gate", "nowhere.mp4": "gate"}
    assert [Path(row["path"]).parent.name for row in table(out).values()] == ["yard"]


def test_a_file_that_does_not_answer_is_named_by_its_place(tmp_path, monkeypatch):
    path = tmp_path / "hung.mp4"
    path.write_bytes(b"x" * 3_000_000)
    assert video_rows.named_by_content(path, 60) == hashlib.sha256(b"x" * 3_000_000).hexdigest()

    class Hung(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > 1_500_000:
                time.sleep(5)
            return super().read(size)

    monkeypatch.setattr(Path, "open", lambda self, mode: Hung(self.read_bytes()))
    monkeypatch.setattr(Path, "read_bytes", lambda _: b"x" * 3_000_000)
    begun = time.monotonic()
    assert video_rows.named_by_content(path, 0.2) == hashlib.sha256(str(path).encode()).hexdigest()
    assert time.monotonic() - begun < 3


# ------------------------------------------------------------------------------------------------ known without reading


@pytest.fixture
def remembered(listed, videos, finish, probed, monkeypatch, tmp_path):
    """Two videos, one of them twice, extracted, and read once by a listing that remembers files at once."""
    monkeypatch.setenv("CSIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(known_files, "_SETTLED_SECONDS", -1.0)
    for name in ("zero.mp4", "text.avi"):
        (videos / name).unlink()
    _, outcome = listed(videos)
    finish(*outcome.value.videos)
    assert sorted(probed.asked) == ["a.mp4", "b.mp4", "copy.mp4"]
    probed.asked.clear()
    return outcome


def test_a_video_beside_known_ones_is_the_only_one_that_is_read(listed, videos, remembered, probed):
    write_video(videos / "new.mp4", 120)
    _, outcome = listed(videos)
    assert probed.asked == ["new.mp4"]
    assert [Path(video.path).name for batch in outcome.value.batches for video in batch] == ["new.mp4"]
    assert set(remembered.value.videos) < set(outcome.value.videos)
    counts = outcome.counts
    assert (counts["videos"], counts["already_extracted"], counts["duplicate_files"]) == (3, 2, 1)


def test_what_is_no_video_is_tried_again_but_digested_once(listed, videos, remembered, probed, monkeypatch):
    (videos / "text.avi").write_text("no video")
    digested = []
    name = sources.named_by_content
    monkeypatch.setattr(sources, "named_by_content", lambda path, stall: digested.append(path) or name(path, stall))
    for _ in range(2):
        assert listed(videos)[1].counts["unreadable_files"] == 1
    assert (probed.asked, digested) == (["text.avi"] * 2, [videos / "text.avi"])


def test_a_touched_or_replaced_file_is_read_again(listed, videos, remembered, probed):
    os.utime(videos / "b.mp4", (1, 1))
    listed(videos)
    assert probed.asked == ["b.mp4"]
    probed.asked.clear()
    write_video(videos / "b.mp4", 77)
    _, outcome = listed(videos)
    assert probed.asked == ["b.mp4"]
    assert outcome.counts["duplicate_files"] == 0
    sha = hashlib.sha256((videos / "b.mp4").read_bytes()).hexdigest()
    assert [video.video_sha for batch in outcome.value.batches for video in batch] == [sha]


def test_a_known_file_is_read_where_the_store_knows_less_of_it(listed, videos, remembered, probed, out, finish):
    # Under other settings, without its row, or with one of another size, as a memory that is wrong would have it.
    listed(videos, config=ExtractConfig(detect=DetectConfig(image_size=640)))
    assert len(probed.asked) == 3
    row = table(out)[remembered.value.videos[0].video_sha]
    for change in ({"bytes": 1}, {"status": "quarantined"}):
        probed.asked.clear()
        put(out, row | change)
        listed(videos)
        assert Path(row["path"]).name in probed.asked
    probed.asked.clear()
    tables.delete(out.store, "videos", "true")
    listed(videos)
    assert len(probed.asked) == 3


def test_a_damaged_memory_costs_no_more_than_reading(listed, videos, remembered, probed, tmp_path):
    (file,) = (tmp_path / "cache").glob("known-files")
    file.write_bytes(b"\0" + file.read_bytes()[:100])
    _, outcome = listed(videos)
    assert sorted(probed.asked) == ["a.mp4", "b.mp4", "copy.mp4"]
    assert outcome.value == remembered.value.__class__(outcome.value.videos, (), remembered.value.digests)
    assert outcome.value.videos == remembered.value.videos


# -------------------------------------------------------------------------------------------------------------- batches


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


def test_videos_of_one_size_go_one_after_the_other(listed, tmp_path):
    """The pose model is loaded anew for frames of another size; their digests lie in no order of sizes."""
    sizes = {}
    for shade in range(10, 90, 10):
        wide = shade % 20 == 0
        path = write_video(tmp_path / "videos" / f"{shade}.mp4", shade, size=(96, 48) if wide else (64, 48))
        sizes[hashlib.sha256(path.read_bytes()).hexdigest()] = wide
    _, outcome = listed(tmp_path / "videos", runtime=RuntimeConfig(video_batch_seconds=6))
    by_digest = [sizes[video.video_sha] for video in outcome.value.videos]
    assert sum(a != b for a, b in itertools.pairwise(by_digest)) > 1, "or this would show nothing"
    work = [sizes[video.video_sha] for batch in outcome.value.batches for video in batch]
    assert work == [False] * 4 + [True] * 4
    assert [len(batch) for batch in outcome.value.batches] == [6, 2]
    shas = [video.video_sha for batch in outcome.value.batches for video in batch]
    assert (shas[:4], shas[4:]) == (sorted(shas[:4]), sorted(shas[4:]))


def test_a_source_video_is_known_by_its_absolute_path_and_length(listed, videos, monkeypatch):
    monkeypatch.chdir(videos)
    _, outcome = listed("b.mp4")
    (video,) = outcome.value.videos
    assert isinstance(video, SourceVideo)
    assert video.path == str(videos / "b.mp4")
    assert video.duration == pytest.approx(1.0)
