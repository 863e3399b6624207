"""What maintenance (`csip.maintenance`) needs of Lance, each a thin cover of one call."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import lance
from lance.commit import CommitConflictError
from lance.optimize import Compaction, CompactionOptions

from csip.errors import StoreError
from csip.store.committing import commit, preempted, refuse_if_closed
from csip.store.faults import store_error
from csip.store.paths import FOLDERS, check_table, folder, home
from csip.store.versions import open_current, open_version, table_uri, why
from csip.types import TableRef

_LOG = logging.getLogger(__name__)

FRAGMENT_BYTES = 1 << 28
FRAGMENT_ROWS = 1 << 20
SMALL_BYTES = 1 << 24
MANY_SMALL = 32
_DELETED_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Extent:
    """How large a pinned version is.

    Attributes:
        rows: that it shows.
        fragments: id -> bytes of its data files, rows included that it has deleted.
        files: name of a data file, which no other has in this table -> its bytes.
    """

    rows: int
    fragments: Mapping[int, int]
    files: Mapping[str, int]


def extent(ref: TableRef) -> Extent:
    """Measure a pinned version, from its manifest alone.

    Raises:
        StoreError: it cannot be opened.
    """
    dataset = open_version(ref)
    sizes = {
        fragment.fragment_id: {file.path: file.file_size_bytes or 0 for file in fragment.metadata.files}
        for fragment in dataset.get_fragments()
    }
    fragments = {number: sum(some.values()) for number, some in sizes.items()}
    return Extent(
        dataset.count_rows(), fragments, {path: size for some in sizes.values() for path, size in some.items()}
    )


def list_versions(store: str, name: str) -> dict[int, datetime]:
    """List a table's versions that are still there, ascending, with the time of each one's commit."""
    found = open_current(store, name).versions()
    # Lance tells local time without saying so.
    times: dict[int, Any] = {v["version"]: v["timestamp"] for v in found}
    return {version: times[version].astimezone(UTC) for version in sorted(times)}


def list_tags(store: str, name: str) -> dict[str, tuple[int, datetime]]:
    """List a table's tags: the version that each protects against clean-up, and when it was last set."""
    tags = open_current(store, name).tags.list()
    never = datetime.min.replace(tzinfo=UTC)
    return {tag: (facts["version"], facts["updated_at"] or facts["created_at"] or never) for tag, facts in tags.items()}


def untag(store: str, name: str, tag: str) -> None:
    """Take a tag off a table; nothing happens where it is gone.

    Raises:
        StoreError: it cannot be taken off.
    """

    def attempt() -> None:
        dataset = open_current(store, name)
        refuse_if_closed(dataset)
        if tag in dataset.tags.list():
            with contextlib.suppress(ValueError):  # gone since we looked
                dataset.tags.delete(tag)

    commit(table_uri(store, name), "the removal of a tag", attempt)


def delete_as_read(ref: TableRef, where: str) -> bool:
    """Delete the rows of a pinned version that meet a condition, unless somebody has written the same files since.

    Rows that others have added since are left even where they meet the condition, since what was read did not have
    them. Rows that others have written again fail the whole of it: it is not tried again by itself.

    Returns:
        Whether they are deleted.
    """
    check_table(ref.uri)
    dataset = open_version(ref)
    refuse_if_closed(dataset)
    try:
        dataset.delete(where, conflict_retries=0)
    except (OSError, CommitConflictError) as error:
        return _preempted(error, ref)
    return True


def _preempted(error: Exception, ref: TableRef) -> bool:
    """Give False for a commit that another writer's came before; any other failure is raised."""
    if not preempted(error):
        raise StoreError(
            f"{ref.uri}: cannot be written ({why(error)}). Free space or mend the permissions, and run `csip gc` again."
        ) from error
    _LOG.warning("%s: another process wrote at the same time; left for the next `csip gc`.", ref.uri)
    return False


def _compaction(
    ref: TableRef, whole: Extent, leave: Iterable[int], *, deleted_share: float = _DELETED_SHARE
) -> tuple[lance.LanceDataset, CompactionOptions]:
    check_table(ref.uri)
    each = sum(whole.files.values()) // max(whole.rows, 1)
    rows = max(1, min(FRAGMENT_ROWS, FRAGMENT_BYTES // max(each, 1)))
    dataset = open_version(ref)
    refuse_if_closed(dataset)
    return dataset, {
        "target_rows_per_fragment": rows,
        "excluded_fragment_ids": sorted(leave),
        "materialize_deletions_threshold": deleted_share,
    }


def _merge(dataset: lance.LanceDataset, options: CompactionOptions) -> None:
    done = [task.execute(dataset) for task in Compaction.plan(dataset, options).tasks]
    if done:
        Compaction.commit(dataset, done, options)


def merge_small(ref: TableRef) -> None:
    """Merge a table's small fragments where they have become many; large ones are left to `compact`.

    A commit makes a fragment, and every fragment costs each later commit and look-up about half a millisecond: a
    thousand short videos would come at a crawl. Where others write at the same time, their commits go first, and the
    merging is left to one of them. The old files stay until the versions that name them are cleaned up.

    Args:
        ref: the version that was just committed.

    Raises:
        StoreError: the merged rows cannot be written; the table is as it was.
    """
    whole = extent(ref)
    large = [number for number, size in whole.fragments.items() if size >= SMALL_BYTES]
    if len(whole.fragments) - len(large) < MANY_SMALL:
        return
    dataset, options = _compaction(ref, whole, large)
    try:
        _merge(dataset, options)
    except (OSError, CommitConflictError) as error:
        if not preempted(error):
            raise store_error(
                f"{ref.uri}: its many small files cannot be merged ({why(error)}). What was committed stays; free "
                "space or mend the permissions, and run the same command again.",
                error,
            ) from error


def plan_compaction(ref: TableRef, leave: Iterable[int]) -> list[int]:
    """List the fragments that `compact` would write anew."""
    dataset, options = _compaction(ref, extent(ref), leave)
    return sorted(f.id for task in Compaction.plan(dataset, options).tasks for f in task.fragments)


def compact(ref: TableRef, leave: Iterable[int], *, deleted_share: float = _DELETED_SHARE) -> bool:
    """Merge small neighbouring fragments of a pinned version, and leave deleted rows behind, in one commit.

    The old files stay until the versions that name them are cleaned up. Rows that others have added since stay as they
    are; where others have written the same fragments since, nothing is changed.

    Args:
        ref: the version; the newest.
        leave: ids of fragments not to touch.
        deleted_share: large fragments, too, are written anew where more of their rows than this are deleted; 0: where
            any is, so that no deleted row stays in a file of the new version.

    Returns:
        Whether it was committed.
    """
    dataset, options = _compaction(ref, extent(ref), leave, deleted_share=deleted_share)
    try:
        _merge(dataset, options)
    except (OSError, CommitConflictError) as error:
        return _preempted(error, ref)
    return True


def clean_up(
    store: str, name: str, versions: Iterable[int], *, dry_run: bool, alone: bool = False
) -> tuple[int, int, int]:
    """Remove versions of a table and the files that only they name; the newest and tagged ones are always left.

    Files that no version names, such as those of a writer that was killed, go too, once Lance takes them for lost:
    when they are 7 days old, or at once if nobody else writes to the table.

    Args:
        store: the store's folder.
        name: the table's.
        versions: to remove.
        dry_run: only tell what would be removed.
        alone: nobody else writes to the table: take files that no version names for lost, however young they are.

    Returns:
        How many versions, files (manifests not among them) and bytes.

    Raises:
        StoreError: they cannot be cleaned up, or a link leads out of the store: Lance would follow it.
    """
    check_table(table_uri(store, name), deep=True)
    for kind in FOLDERS if home(store) else ():
        folder(store, kind)  # whoever cleans up tables looks for lost files there, too
    dataset = open_current(store, name)
    refuse_if_closed(dataset)
    # No table has a version 0; without any number, Lance takes its own rule of which versions are old.
    asked: dict[str, Any] = {"versions": sorted(versions) or [0], "error_if_tagged_old_versions": False}
    asked["delete_unverified"] = alone
    try:
        stats = (
            dataset.explain_cleanup_old_versions(**asked).stats if dry_run else dataset.cleanup_old_versions(**asked)
        )
    except OSError as error:
        raise StoreError(
            f"{dataset.uri}: old versions cannot be cleaned up ({why(error)}). Mend the permissions and run it again; "
            "published versions are as they were."
        ) from error
    files = stats.data_files_removed + stats.deletion_files_removed + stats.index_files_removed
    return stats.old_versions, files + stats.transaction_files_removed, stats.bytes_removed
