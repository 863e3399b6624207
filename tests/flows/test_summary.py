"""What `csip build-skeletons` refuses before it starts anything, and what it tells of what it left out."""

import json
import shutil

import pytest

from flows import commands

COUNTS = {
    **{"videos": 1, "videos_left_out": 0, "frames": 63, "detections": 200, "tracklets": 4, "crops": 180},
    **{"dropped": {"too short": 2}, "rules": {"cut at a jump": 0}, "keypoint_confidence": 0.75, "no_protocol": "few"},
}
LISTED = {"files": 3, "videos": 3, "already_extracted": 0}


def told(capsys, counts, listed, *stages):
    """What is on screen after a build, a line each."""
    made = {"counts": COUNTS | counts, "listed": LISTED | listed, "snapshot": "s", "tables": {}, "store": "/store"}
    shape = {"seconds": 1.0, "device": "cpu"}
    commands._show_build(made | {"stages": [{"stage": "extract_videos", "counts": one} | shape for one in stages]})
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_everything_that_was_left_out_is_on_screen(capsys):
    lines = told(
        capsys,
        {"partial_videos": 2, "people_left_out": {"outside region": 7, "smaller than min_box_height": 0}},
        {"other_files": {".zip": 2, "hidden": 1}, "unreadable_files": 1, "unreadable 1": "a.mp4: the file is empty"},
        {"quarantined": 1, "left out 1": "b.mp4: the decoder hung"},
        {"quarantined": 1, "left out 1": "c.mp4: died"},
    )
    assert [line for line in lines if line.startswith(("videos", "left out", "partial", "un", "other", "people"))] == [
        "videos 3 (1 extracted now, 0 already in the store)",
        "videos left out 2 that could not be worked on",
        "left out 1 b.mp4: the decoder hung",
        "left out 1 c.mp4: died",
        "partial videos 2 that break off, kept as far as they go; the table `videos` says why",
        "unreadable files 1",
        "unreadable 1 a.mp4: the file is empty",
        "other files not looked at, by their names: 2 .zip, 1 hidden",
        "people left out 7 outside region",
    ]


def test_where_nothing_was_left_out_nothing_is_said_of_it(capsys):
    nothing = {"partial_videos": 0, "people_left_out": {"outside region": 0}}
    lines = told(capsys, nothing, {"other_files": {}}, {"quarantined": 0})
    assert not [line for line in lines if "left out" in line or line.startswith(("partial", "other"))]
    assert "tracking rules none was needed" in lines
    # Published by an older CSIP, or listed by --retrack.
    assert told(capsys, {}, {}, {"quarantined": 0}) == lines


@pytest.fixture
def nothing_starts(monkeypatch):
    """Prefect's server may take a minute to start."""

    def start(*_, **__):
        raise RuntimeError("the flow was started")

    monkeypatch.setattr(commands, "build_skeletons", start)


def missing(folder):
    return [folder / "nowhere"], "nowhere: no such file or folder"


def empty(folder):
    (folder / "notes.txt").touch()
    return [folder], "found no videos and 1 other files"


def archive(folder):
    (folder / "videos.zip").touch()
    return [folder / "videos.zip"], "is an archive, expected videos"


def manifest(folder):
    (folder / "list.csv").write_text("path\na.mp4\n")
    return [folder / "list.csv"], "found columns ['path'], expected path and camera"


def benchmark(folder):
    return [f"mars:{folder}/nowhere"], "nowhere: found nothing there, expected the data set as it is distributed"


def snapshot(folder):
    return ["--retrack", "nothing"], "found no table 'snapshots' there"


def tracks_into_nothing(folder):
    (folder / "a.mp4").touch()
    (folder / "file").touch()
    return [
        folder / "a.mp4",
        "--mot-out",
        folder / "file" / "tracks.txt",
    ], "file is a file, expected a file or a folder"


def tracks_of_a_benchmark(folder):
    return ["walkers:", "--mot-out", folder / "tracks.txt"], "the source is of a benchmark"


@pytest.mark.parametrize(
    "make", [missing, empty, archive, manifest, benchmark, snapshot, tracks_into_nothing, tracks_of_a_benchmark]
)
def test_what_can_be_seen_at_once_is_refused_before_anything_is_started(command, nothing_starts, tmp_path, make):
    (tmp_path / "sources").mkdir()
    words, expected = make(tmp_path / "sources")
    done = command("build-skeletons", *words, "--store", tmp_path / "store")
    assert done.code == 1
    assert done.err.startswith("csip build-skeletons: ")
    assert expected in done.err
    assert not (tmp_path / "store").exists()


def test_check_counts_what_a_build_would_pass_over(command, street, tmp_path):
    shutil.copy(street, tmp_path)
    (tmp_path / "videos.zip").touch()
    (tmp_path / "recording").touch()
    assert json.loads(command("check", tmp_path, "--json").out)["other files"] == {".zip": 1, "without an ending": 1}
    assert "1 .zip, 1 without an ending" in command("check", tmp_path).out
