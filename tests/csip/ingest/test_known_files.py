"""A memory of files that may only ever save time: whatever happens to it, a changed file is read again."""

import errno
import os
import shutil
import subprocess
import sys
import time

import pytest

from csip.ingest import known_files
from csip.ingest.known_files import KnownFiles, look_at

SHA = "a" * 64


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of the cache, in which a file is settled at once."""
    monkeypatch.setenv("CSIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(known_files, "_SETTLED_SECONDS", -1.0)
    return tmp_path / "cache"


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "anna at the gate.mp4"
    path.write_bytes(b"first")
    return path


def remember(path, sha=SHA):
    KnownFiles().remember(path, look_at(path), sha)


def known(path):
    return KnownFiles().digest_of(look_at(path))


def test_an_unchanged_file_is_known_and_every_other_is_not(cache, video, tmp_path):
    assert known(video) == ""
    remember(video)
    assert known(video) == SHA
    link = tmp_path / "link.mp4"
    link.symlink_to(video)
    assert known(link) == SHA
    shutil.copy2(video, tmp_path / "copy.mp4")
    assert known(tmp_path / "copy.mp4") == ""
    assert known(tmp_path / "nowhere.mp4") == known(tmp_path) == ""


def touched(path, before):
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def rewritten_with_its_old_times(path, before):
    """Of the same size, in the same place, at the same time: as `cp -p` and `touch -r` leave it."""
    path.write_bytes(b"other")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced_with_its_old_times(path, before):
    other = path.with_name("other")
    other.write_bytes(b"other")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, path)


def longer(path, before):
    with path.open("ab") as file:
        file.write(b"more")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [touched, rewritten_with_its_old_times, replaced_with_its_old_times, longer])
def test_a_changed_file_is_not_known(cache, video, change):
    remember(video)
    before = os.stat(video)
    time.sleep(0.02)  # longer than a tick of the file system's clock
    change(video, before)
    assert known(video) == ""


def test_what_has_changed_a_moment_ago_is_not_remembered(cache, video, monkeypatch):
    monkeypatch.setattr(known_files, "_SETTLED_SECONDS", 5.0)
    os.utime(video, (1, 1))  # the time of that very change is not to be set
    remember(video)
    assert known(video) == ""


def test_what_changes_while_it_is_read_is_not_remembered(cache, video):
    before = look_at(video)
    longer(video, os.stat(video))
    KnownFiles().remember(video, before, SHA)
    assert known(video) == ""


def test_nobody_learns_from_it_what_files_are_called(cache, video):
    remember(video)
    (file,) = cache.iterdir()
    assert b"anna" not in file.read_bytes()
    assert file.stat().st_mode & 0o077 == 0


def one_letter(file):
    data = bytearray(file.read_bytes())
    data[data.index(b"aaaa")] = ord("b")
    file.write_bytes(data)


def cut_off(file):
    file.write_bytes(file.read_bytes()[:-10])


def noise(file):
    file.write_bytes(os.urandom(4096))


def a_folder(file):
    file.unlink()
    file.mkdir()


def a_pipe(file):
    file.unlink()
    os.mkfifo(file)


def gone(file):
    file.unlink()


@pytest.mark.parametrize("damage", [one_letter, cut_off, noise, a_folder, a_pipe, gone])
def test_a_damaged_memory_knows_nothing_and_stops_nobody(cache, video, damage):
    remember(video)
    damage(cache / "known-files")
    assert known(video) == ""
    remember(video)
    if damage not in (a_folder, a_pipe):
        assert known(video) == SHA


def test_a_cache_that_cannot_be_made_stops_nobody(video, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CSIP_CACHE", str(tmp_path / "file" / "cache"))
    remember(video)
    assert known(video) == ""


def test_a_memory_that_has_grown_too_large_keeps_the_newest(cache, tmp_path, monkeypatch):
    files = [tmp_path / f"{n}.mp4" for n in range(10)]
    for path in files:
        path.write_text(path.name)
        remember(path, path.stem * 64)
    memory = cache / "known-files"
    line = memory.stat().st_size // 10
    with memory.open("ab") as file:
        file.write(memory.read_bytes()[:line] * 2)  # the first file's, as two more processes have added it
    monkeypatch.setattr(known_files, "_MOST_BYTES", 11 * line)
    KnownFiles()
    assert [path.stem for path in files if known(path)] == ["0", "6", "7", "8", "9"]
    assert known(files[6]) == "6" * 64
    assert memory.stat().st_size == 5 * line
    assert memory.stat().st_mode & 0o077 == 0
    assert [one.name for one in cache.iterdir()] == ["known-files"]
    remember(files[1], "1" * 64)
    assert known(files[1]) == "1" * 64


def test_two_processes_that_find_it_too_large_leave_it_whole(cache, video, monkeypatch):
    remember(video)
    memory = cache / "known-files"
    memory.write_bytes(memory.read_bytes() * 3)
    monkeypatch.setattr(known_files, "_MOST_BYTES", 2 * memory.stat().st_size // 3 + 20)
    replace = os.replace

    def late(source, target):
        monkeypatch.setattr(os, "replace", replace)
        assert known(video) == SHA  # another one is through with it in the meantime
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
    assert known(video) == SHA
    assert known(video) == SHA
    assert [one.name for one in cache.iterdir()] == ["known-files"]


def test_what_cannot_be_shortened_does_not_grow(cache, video, tmp_path, monkeypatch):
    remember(video)
    memory = cache / "known-files"
    memory.write_bytes(memory.read_bytes() * 3)
    size = memory.stat().st_size
    monkeypatch.setattr(known_files, "_MOST_BYTES", size - 1)
    monkeypatch.setattr(os, "replace", full)
    other = tmp_path / "other.mp4"
    other.write_bytes(b"other")
    files = KnownFiles()
    assert files.digest_of(look_at(video)) == SHA
    files.remember(other, look_at(other), SHA)
    assert memory.stat().st_size == size


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_is_known_is_not_written_again(cache, video):
    remember(video)
    before = (cache / "known-files").read_bytes()
    remember(video)
    assert (cache / "known-files").read_bytes() == before
    remember(video, "b" * 64)  # a file system without good clocks
    assert known(video) == "b" * 64


def test_a_file_from_the_future_is_remembered(cache, video, monkeypatch):
    monkeypatch.setattr(known_files, "_SETTLED_SECONDS", 0.05)
    os.utime(video, (time.time() + 86400,) * 2)  # by a camera whose clock is wrong
    time.sleep(0.2)
    remember(video)
    assert known(video) == SHA


def test_several_processes_add_to_it_at_once_and_lose_nothing(cache, tmp_path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from csip.ingest import known_files as k\n"
        "k._SETTLED_SECONDS = -1.0\n"
        "files = k.KnownFiles()\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    files.remember(path, k.look_at(path), path.name * 32)\n"
    )
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for folder in folders:
        folder.mkdir()
        for number in range(50):
            (folder / f"{number:02d}").write_text(folder.name)
    crowd = [subprocess.Popen([sys.executable, "-c", code, str(folder)]) for folder in folders]
    assert [child.wait(timeout=60) for child in crowd] == [0, 0, 0]
    files = KnownFiles()
    for path in (path for folder in folders for path in folder.iterdir()):
        assert files.digest_of(look_at(path)) == path.name * 32
