"""From what a store says to a path below its folder: the one place that sees to it that nothing leads out.

A store may come from anybody. Neither its texts (names of snapshots, paths in runs, the journal of a `csip forget`) nor
the links among its folders may let CSIP write or delete elsewhere.
"""

from __future__ import annotations

import os
from pathlib import Path

from csip.errors import StoreError
from csip.store import versions
from csip.store.versions import is_address

FOLDERS = ("checkpoints", "reports")
"""Where a store keeps files that runs name."""


def is_plain(name: str) -> bool:
    """Tell whether a text names something in a folder, and cannot name anything elsewhere."""
    return name not in ("", ".", "..") and not {"/", "\\", "\0"} & set(name)


def folder(store: str, name: str) -> Path:
    """Give a store's folder for files that are no tables: checkpoints, reports, curves.

    Raises:
        StoreError: the store has no folders, or a link leads out of it.
    """
    path = versions.folder(store, name)
    _check_link(Path(store), path)
    return path


def inside(store: str, kind: str, name: str) -> Path:
    """Give the path of a file of a store, whose name need not be trusted.

    Args:
        store: the store's folder.
        kind: which of its folders.
        name: the file's.

    Raises:
        StoreError: the name is none, the store has no folders, or a link leads out of it.
    """
    if kind not in FOLDERS or not is_plain(name):
        raise StoreError(
            f"Store {store}: found the file {f'{kind}/{name}'!r}, expected a plain name in {' or '.join(FOLDERS)}. "
            "CSIP wrote no such name, and it could lead out of the store; nothing was written or deleted there."
        )
    path = folder(store, kind) / name
    _check_link(Path(store), path)
    return path


def known_file(store: str, path: str) -> Path | None:
    """Give a file of this store that a run names by folder and name, wherever the store lay then.

    Returns:
        None where it names no file of a store's folders, or there is none.

    Raises:
        StoreError: a link leads out of the store.
    """
    kind, name = ("", "", *Path(path).parts)[-2:]
    if kind not in FOLDERS or not is_plain(name):
        return None
    found = inside(store, kind, name)
    return found if found.is_file() else None


def check_table(uri: str, *, deep: bool = False) -> None:
    """Check that no folder of a table is a link that leads out of its store; a table need not be there yet.

    Args:
        uri: of the table.
        deep: look into its folders, too. Lance cleans up whatever it finds there, through links as well.

    Raises:
        StoreError: one is.
    """
    root = Path(uri)
    if is_address(uri):
        return
    _check_link(root.parent, root)
    for here, folders, _ in os.walk(root):
        for name in folders:
            _check_link(root.parent, Path(here, name))
        if not deep:
            break


def _check_link(store: Path, path: Path) -> None:
    """Check something that lies in a folder which was checked: by plain names, nothing but a link can lead out."""
    if not path.is_symlink():
        return
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(os.path.realpath(store)):
        raise StoreError(
            f"{path}: leads out of the store, to {real}. A store's folders must lie in it, so that nothing else is "
            "changed; nothing was written or deleted there. Put the folder itself in the place of the link, or mount "
            "it there."
        )
