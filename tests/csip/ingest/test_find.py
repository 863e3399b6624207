"""What a user may name as a source: files, folders and manifests, and what lies in them that is no video."""

import errno
import os
from pathlib import Path

import av
import pytest

from csip.errors import SourceError
from csip.ingest import container
from csip.ingest.find import VIDEO_SUFFIXES, PassedOver, expand_all, find_videos


def test_a_file_whose_name_looks_like_a_benchmark_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mars:cam1.mp4").touch()
    assert [(one.path.name, one.camera) for one in expand_all(("mars:cam1.mp4",), "").files] == [
        ("mars:cam1.mp4", "mars:cam1")
    ]


def test_a_folder_gives_its_videos_in_order_and_nothing_else(tmp_path):
    for name in ("b/z.MP4", "b/a.avi", "a.mkv", "c.txt", ".hidden.mp4", ".git/x.mp4", "b/._z.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_videos(tmp_path, PassedOver()) == [tmp_path / "a.mkv", tmp_path / "b/a.avi", tmp_path / "b/z.MP4"]


def test_a_file_gives_itself(tmp_path):
    path = tmp_path / "recording.dat"
    path.touch()
    assert find_videos(path, PassedOver()) == [path]


def test_links_in_a_circle_end(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/v.mp4").touch()
    (tmp_path / "a/up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "b").symlink_to(tmp_path / "a", target_is_directory=True)
    assert find_videos(tmp_path, PassedOver()) == [tmp_path / "a/v.mp4"]


def test_a_source_without_videos_names_what_was_looked_for(tmp_path):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "table.csv").touch()
    with pytest.raises(SourceError, match=r"found no videos and 2 other files; .*\.mp4"):
        find_videos(tmp_path, PassedOver())
    with pytest.raises(SourceError, match="no such file or folder"):
        find_videos(tmp_path / "elsewhere", PassedOver())


def test_no_source_at_all_is_refused():
    with pytest.raises(SourceError, match="Found no source, expected at least one"):
        expand_all((), "")


def test_what_is_no_video_by_its_name_is_counted_beside_good_ones(tmp_path):
    for name in ("a.mp4", "x.zip", "b/y.ZIP", "recording", "b/Anna of the gate", ".DS_Store", ".git/x.mp4", "n.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "z.avi").touch()
    found = expand_all((str(tmp_path / "b"), str(tmp_path / "a.mp4"), str(tmp_path)), "")
    assert [one.path.name for one in found.files] == ["z.avi", "a.mp4", "a.mp4", "z.avi"]
    # Folder b was looked through twice.
    assert found.others == {"without an ending": 3, ".zip": 3, "hidden": 2, ".csv": 1}


@pytest.mark.parametrize("name", ["rec.dav", "old.vob", "broadcast.MXF", "raw.ivf", "disc.m2v", "phone.3g2"])
def test_a_recorders_own_format_is_looked_at(tmp_path, name):
    (tmp_path / name).touch()
    assert [path.name for path in find_videos(tmp_path, PassedOver())] == [name]


@pytest.mark.parametrize("name", [name for name in container._FORMATS if name not in ("mp3", "wav")])
def test_every_format_that_is_opened_has_an_ending_that_is_looked_for(name):
    # FFmpeg's own list, which is empty for some.
    known = {f".{ending}" for ending in av.ContainerFormat(name, "r").extensions} - {".ogg"}  # sound, as a rule
    assert not known or known & set(VIDEO_SUFFIXES)


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.EIO, errno.ELOOP])
def test_a_file_that_cannot_be_reached_stops_none_of_the_others(tmp_path, monkeypatch, number):
    # Root reaches everything, so the answer of the system is given here.
    for name in ("far.mp4", "near.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "list.csv").write_text("path,camera\nfar.mp4,gate\nnear.mp4,gate\n")
    look = os.stat

    def stat(path, *args, **kwargs):
        if Path(os.fspath(path)).name == "far.mp4":
            raise OSError(number, os.strerror(number), str(path))
        return look(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", stat)
    for sources in ([tmp_path / "far.mp4", tmp_path / "near.mp4"], [tmp_path / "list.csv"], [tmp_path]):
        found = expand_all(tuple(map(str, sources)), "gate")
        assert [one.path.name for one in found.files] == ["far.mp4", "near.mp4"]


def test_a_folder_that_goes_away_while_it_is_listed_is_told(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "b.mp4").touch()
    look = os.stat

    def stat(path, *args, **kwargs):
        if Path(os.fspath(path)).name == "gone" and not kwargs:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return look(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", stat)
    found = expand_all((str(tmp_path),), "")
    assert [one.path.name for one in found.files] == ["a.mp4"]
    assert found.closed == (
        f"{tmp_path}/gone: the folder cannot be looked into (Stale file handle) and is passed over.",
    )


def test_a_manifest_that_cannot_be_read_is_said(tmp_path, monkeypatch):
    path = tmp_path / "list.csv"
    path.write_text("path,camera\na.mp4,gate\n")
    read = Path.open

    def refuse(self, *args, **kwargs):
        if self == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return read(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SourceError, match=r"Manifest .*list\.csv: cannot be read \(Permission denied\)"):
        expand_all((str(path),), "")
