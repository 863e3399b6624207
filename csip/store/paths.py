"""From what a store says to a path below its folder: the one place that sees to it that nothing leads out.

A store may come from anybody. Neither its texts (names of snapshots, paths in runs, the journal of a `csip forget`) nor
the links among its folders may let CSIP write or delete elsewhere.

A store in object storage has its files that are no tables (checkpoints, states of trainings, reports, curves) in a
folder that CSIP_FILES names, on a disk that all machines see.
"""

from __future__ import annotations

import os
from pathlib import Path

from csip.errors import StoreError
from csip.store.versions import is_address

FILES = "CSIP_FILES"

FOLDERS = ("checkpoints", "reports")
"""Where a store keeps files that runs name."""


def is_plain(name: str) -> bool:
    """Tell whether a text names something in a folder, and cannot name anything elsewhere."""
    return name not in ("", ".", "..") and not {"/", "\\", "\0"} & set(name)


def home(store: str) -> Path | None:
    """Give the folder that a store's files lie in: its own, or for one in object storage that in CSIP_FILES.

    Returns:
        None where a store in object storage has no place for files.

    Raises:
        StoreError: the address could lead out of CSIP_FILES.
    """
    if not is_address(store):
        return Path(store)
    parts = store.rstrip("/").partition("://")[2].split("/")
    if not all(map(is_plain, parts)):
        raise StoreError(
            f"Store {store}: found a part of the address that is no plain name, expected s3://BUCKET/PREFIX."
        )
    return Path(os.environ[FILES], *parts) if os.environ.get(FILES) else None


def folder(store: str, name: str) -> Path:
    """Give a store's folder for files that are no tables: checkpoints, reports, curves.

    Raises:
        StoreError: the store has no place for files, or a link leads out of it.
    """
    own = home(store)
    if own is None:
        raise StoreError(
            f"Store {store}: {name} are files, and object storage has tables only. Set {FILES} to a folder for the "
            "files of such stores, the same for all machines that train; or name a store in a folder."
        )
    _check_link(own, own / name)
    return own / name


def files_in(store: str, name: str, pattern: str = "*") -> list[Path]:
    """List the files in one of a store's folders, by name; links are none, and a store without folders has none.

    Raises:
        StoreError: a link leads out of the store.
    """
    if home(store) is None:
        return []
    found = sorted(folder(store, name).glob(pattern))
    return [path for path in found if path.is_file() and not path.is_symlink()]


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
    _check_link(path.parents[1], path)
    return path


def known_file(store: str, path: str) -> Path | None:
    """Give a file of this store that a run names by folder and name, wherever the store lay then.

    Returns:
        None where it names no file of a store's folders, or there is none, as where the store has no folders.

    Raises:
        StoreError: a link leads out of the store.
    """
    kind, name = ("", "", *Path(path).parts)[-2:]
    if kind not in FOLDERS or not is_plain(name) or home(store) is None:
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
