"""What loaders check a folder with: listings that are also digested, and findings that are told all at once."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path, PurePosixPath

from csip.errors import SourceError
from csip.plain import digest

_SHOWN = 20


class Findings:
    """Gathers everything that is wrong with a source, so that one message tells it all.

    Args:
        source: as the user named it.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._count: Counter[str] = Counter()
        self._examples: list[tuple[str, str]] = []

    def add(self, kind: str, example: str) -> None:
        """Note one thing that is wrong.

        Args:
            kind: what it is, in the plural, the same for all of its kind ("missing pictures").
            example: which one, and where: found and expected, where that is not plain from the kind.
        """
        self._count[kind] += 1
        if self._count[kind] <= _SHOWN:
            self._examples.append((kind, example))

    def refuse(self, advice: str) -> None:
        """Do nothing where nothing is wrong.

        Args:
            advice: what to do next, a sentence.

        Raises:
            SourceError: something is; it counts every kind and shows at most twenty examples, some of each kind.
        """
        if not self._count:
            return
        each = max(1, _SHOWN // len(self._count))
        seen: Counter[str] = Counter()
        shown: list[str] = []
        for kind, example in self._examples:
            seen[kind] += 1
            if seen[kind] <= each and len(shown) < _SHOWN:
                shown.append(f"\n  {kind}: {example}")
        total = sum(self._count.values())
        kinds = ", ".join(f"{number} {kind}" for kind, number in self._count.items())
        raise SourceError(
            f"Source {self._source}: found {total} things that are wrong ({kinds}), expected none. "
            f"{len(shown)} of {total}:{''.join(shown)}\n{advice}"
        )


class Folders:
    """Lists folders below a root, and digests what it saw: names and sizes, never times or the root's own place.

    A file that is changed without changing its size goes unnoticed: reading every byte of a data set to find out that
    nothing changed would cost as much as importing it.

    Args:
        root: absolute.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._seen: dict[str, str] = {}

    def files(self, relative: str) -> dict[str, int]:
        """Map the names of a folder's files to their sizes in bytes, sorted by name; empty for no such folder.

        Hidden files, and those that operating systems leave behind (Thumbs.db), are left out.
        """
        try:
            with os.scandir(self.root / relative) as entries:
                found = {
                    entry.name: entry.stat().st_size
                    for entry in entries
                    if not entry.name.startswith(".") and entry.name != "Thumbs.db" and entry.is_file()
                }
        except (FileNotFoundError, NotADirectoryError):
            found = {}
        found = dict(sorted(found.items()))
        text = "".join(f"{name}\0{size}\n" for name, size in found.items())
        self._seen[PurePosixPath(relative).as_posix()] = hashlib.sha256(os.fsencode(text)).hexdigest()
        return found

    def folders(self, relative: str) -> list[str]:
        """List the names of a folder's folders, sorted; empty for no such folder."""
        try:
            with os.scandir(self.root / relative) as entries:
                return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def digest(self) -> str:
        """Digest every listing that `files` gave, whatever the order it was asked in."""
        return digest(sorted(self._seen.items()))
