"""A store that `csip forget` has for itself: nobody works on it, nobody writes, nobody commits what was prepared.

To forget is to delete files that no version names, and a writer may be about to commit just those. Four things stand
between the two, as each alone leaves a gap:

- A stage holds a lock of the kernel's while it works, together with other stages; `csip forget` wants it alone, or is
  refused. So nobody has read a person's rows and writes them again later. A lock ends with its process.
- A data file that was written lately and that no version names is of a writer whom the lock does not show.
- A table that is closed says so in its metadata. Whoever opens it to write reads that with the version to commit on.
- A seal is a commit that changes nothing, and beside which no commit of rows can stand: Lance refuses what was begun
  before it, so that the writer looks again, and reads that the table is closed. The version that is left at the end is
  a seal, too, as Lance passes over those that were cleaned up.

So what was prepared before cannot be committed after, with files that are gone or rows that should be, and what is
begun meanwhile writes no file at all. What remains: in object storage, which has no locks, and between machines whose
common disk has none, a stage that commits nothing while somebody is forgotten, and later what it still has in memory.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from csip.errors import StoreBusyError, StoreError
from csip.store.committing import CLOSED, FORGOTTEN_LAST, OWN, commit, commit_fragments_as, open_for_writing
from csip.store.upkeep import extent, list_versions
from csip.store.versions import is_address, open_current, table_uri
from csip.types import TableRef
from storage_schemas import TABLES

_LOG = logging.getLogger(__name__)
_LOCK = "lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@contextmanager
def at_work(store: str) -> Iterator[None]:
    """Keep a store from being closed for as long as one works on it; any number may.

    Raises:
        StoreBusyError: somebody is being forgotten in it.
        StoreError: there is no such store, or the store cannot be written.
    """
    told = "somebody is being forgotten in it (`csip forget`{}). Wait for its end, and run the same command again."
    with _locked(store, fcntl.LOCK_SH, os.O_RDONLY, told):
        yield


@contextmanager
def alone(store: str, by: str) -> Iterator[None]:
    """Have a store to oneself; within, this thread may write to tables that are closed by the same one.

    Args:
        store: the store's folder.
        by: who has it, and since when: what others are told.

    Raises:
        StoreBusyError: somebody works on it.
        StoreError: there is no such store, or the store cannot be written.
    """
    told = (
        "a build, training, evaluation, clean-up or another `csip forget` is at work on it{}, and `csip forget` needs "
        "it alone; nothing was changed. Stop that, or wait until it has ended, and run the same command again."
    )
    with _locked(store, fcntl.LOCK_EX, os.O_RDWR, told):
        before = OWN.set(by)
        try:
            yield
        finally:
            OWN.reset(before)


@contextmanager
def _locked(store: str, how: int, mode: int, told: str) -> Iterator[None]:
    if is_address(store):
        yield
        return
    open_current(store, "runs")  # a folder that is no store gets no lock, and is said to be none
    path = Path(store, _LOCK)
    try:
        file = os.open(path, mode | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be opened ({error}). Expected a file by which processes know of each other; mend the "
            "permissions."
        ) from error
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise StoreBusyError(f"Store {store}: {told.format(_holders(path))}") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(file)
            raise StoreError(f"{path}: cannot be locked ({error}). Mend the disk or its mount.") from error
        _LOG.warning("%s: this disk has no locks; nothing keeps `csip forget` from those who work on the store.", path)
    try:
        yield
    finally:
        os.close(file)


def _holders(path: Path) -> str:
    """Name the processes of this machine that hold a lock, as far as Linux tells; else nothing."""
    try:
        locks = [line.split() for line in Path("/proc/locks").read_text(encoding="ascii").splitlines()]
        inode = str(path.stat().st_ino)
    except OSError:
        return ""
    found = sorted({int(one[4]) for one in locks if one[1] == "FLOCK" and one[5].rpartition(":")[2] == inode})
    return f", process {', '.join(map(str, found))}" if found else ""


def young_file(store: str, seconds: float) -> tuple[Path, float] | None:
    """Find a data file that was written within the last seconds and that no version names, and its age.

    In object storage none is looked for.
    """
    now = time.time()
    for name in () if is_address(store) else TABLES:
        folder = Path(table_uri(store, name), "data")
        young = {file: age for file, age in _ages(folder, now) if age < seconds}
        for version in reversed(list_versions(store, name)) if young else ():
            for file in extent(TableRef(table_uri(store, name), version)).files:
                young.pop(file, None)
            if not young:
                break
        for file, age in young.items():
            return folder / file, age
    return None


def _ages(folder: Path, now: float) -> Iterator[tuple[str, float]]:
    for file in os.scandir(folder) if folder.is_dir() else ():
        # Who writes may give a file another name since it was listed; that is then seen by itself, or committed.
        with suppress(FileNotFoundError):
            yield file.name, now - file.stat().st_mtime


def close_table(store: str, name: str) -> None:
    """Close a table to all but this thread, within `alone`; it stays closed until it is opened, also after a kill.

    Raises:
        StoreBusyError: somebody else has closed it.
        StoreError: it cannot be written.
    """

    def attempt() -> None:
        dataset = open_for_writing(store, name)
        if dataset.metadata.get(CLOSED) != OWN.get():
            dataset.update_metadata({CLOSED: OWN.get()})

    commit(table_uri(store, name), "that it is closed", attempt)
    seal(store, name)


def seal(store: str, name: str) -> int:
    """Commit a version that is as the one before, and on which nothing is committed that was begun earlier.

    Returns:
        The version.

    Raises:
        StoreError: it cannot be written.
    """

    def attempt() -> int:
        dataset = open_for_writing(store, name)
        fragments = [fragment.metadata for fragment in dataset.get_fragments()]
        return int(commit_fragments_as(dataset, fragments, dataset.lance_schema).version)

    return commit(table_uri(store, name), "a seal", attempt)


def open_table(store: str, name: str) -> None:
    """Open a closed table again to those who look at it from now on.

    Raises:
        StoreError: it cannot be written.
    """

    def attempt() -> None:
        dataset = open_for_writing(store, name)
        if CLOSED in dataset.metadata:
            dataset.update_metadata({CLOSED: None, FORGOTTEN_LAST: OWN.get()})

    commit(table_uri(store, name), "that it is open", attempt)


def closed_by(store: str) -> str:
    """Tell who has closed a store, and since when; empty where nobody has."""
    return str(open_current(store, "runs").metadata.get(CLOSED, ""))
