"""What the files on this machine held when they were last read: who knows it need not read years of video again.

A file of the user's cache (`CSIP_CACHE`), outside of every store and its promises: without it, or where it is damaged
or wrong, files are read. A line of it says which content, by SHA-256, a file has as long as its place, size, times and
number are these; all of those go into one digest, so that it names no file. Lines are added, each in one write: several
processes may do so at once and be killed at any point, and a line that came out torn says nothing. When there are too
many, the newest take the place of all; a line that is added in that moment may be lost, and its file is read again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from csip.weights import cache_folder

_LOG = logging.getLogger(__name__)

_NAME = "known-files"
_MOST_BYTES = 1 << 27  # some 900,000 files; then the older half of them is forgotten
# Within the resolution of a file system's clock a file may change again and look the same.
_SETTLED_SECONDS = 5.0
_CHECK_DIGITS = 16


@dataclass(frozen=True, slots=True)
class FileState:
    """What a file looks like from outside.

    Attributes:
        key: of its real path, size, times, number and device.
        bytes: its size.
        age: seconds since its content, or anything else about it, changed last; nobody can set that time.
    """

    key: str
    bytes: int
    age: float


def look_at(path: Path) -> FileState | None:
    """Look at a file without opening it; None where it is no plain file, or cannot be reached."""
    try:
        real = os.path.realpath(path)
        found = os.stat(real)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    # Whoever copies the old times onto a changed file (cp -p, touch -r) cannot set the time of that very change.
    facts = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev)
    key = hashlib.sha256(os.fsencode(real) + repr(facts).encode()).hexdigest()
    return FileState(key, found.st_size, time.time() - found.st_ctime)


class KnownFiles:
    """Remembers the contents of files."""

    def __init__(self) -> None:
        """Read what is remembered, as far as it can be read."""
        try:
            self._path: Path | None = cache_folder() / _NAME
        except RuntimeError:  # a user without a home
            self._path = None
        self._lines = self._read()

    def digest_of(self, state: FileState | None) -> str:
        """Give the SHA-256 of a file's bytes; empty where it would have to be read."""
        sha, check = self._lines.get(state.key if state else "", ("", ""))
        return sha if state and check == _check(state.key, sha) else ""

    def remember(self, path: Path, before: FileState | None, sha256: str) -> None:
        """Take note of what a file held, unless it has changed too lately to be known again.

        Args:
            path: of the file.
            before: what it looked like before it was read.
            sha256: of its bytes.
        """
        after = look_at(path)
        if before is None or after is None or after.key != before.key or before.age < _SETTLED_SECONDS:
            return
        line = (sha256, _check(before.key, sha256))
        if self._lines.get(before.key) != line:
            self._lines[before.key] = line
            self._add(" ".join((before.key, *line)))

    def _read(self) -> dict[str, tuple[str, str]]:
        try:
            if self._path is None or not stat.S_ISREG(os.stat(self._path).st_mode):
                return {}
            with self._path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(size - _MOST_BYTES, 0))
                held = file.read()
        except OSError:
            return {}
        lines: dict[str, tuple[str, str]] = {}
        for one in (line.decode("ascii", "replace").split(" ") for line in held.split(b"\n")):
            if len(one) == 3:
                lines.pop(one[0], None)  # so that the newest come last
                lines[one[0]] = (one[1], one[2])
        if size > _MOST_BYTES:
            self._shorten(lines)
        return lines

    def _shorten(self, lines: dict[str, tuple[str, str]]) -> None:
        """Put the newest of the lines in the place of all of them, half as many as there may be."""
        kept, room = [], _MOST_BYTES // 2
        for key, (sha, check) in reversed(lines.items()):
            line = f"\n{key} {sha} {check}\n".encode()
            room -= len(line)
            if room < 0:
                break
            if check == _check(key, sha):
                kept.append(line)
        try:
            made, name = tempfile.mkstemp(dir=cache_folder(), prefix=f"{_NAME}-")
            with os.fdopen(made, "wb") as file:
                file.writelines(reversed(kept))
            os.replace(name, cache_folder() / _NAME)
        except OSError as error:
            _LOG.debug("%s: cannot be shortened (%s); nothing is added.", self._path, error.strerror)
            self._path = None

    def _add(self, line: str) -> None:
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o600)
            try:
                # Behind what another one may have left unfinished.
                os.write(file, f"\n{line}\n".encode())
            finally:
                os.close(file)
        except OSError as error:
            _LOG.debug("%s: cannot be written (%s); files are read again.", self._path, error.strerror)
            self._path = None


def _check(key: str, sha: str) -> str:
    return hashlib.sha256(f"{key} {sha}".encode()).hexdigest()[:_CHECK_DIGITS]
