"""Take rows out of versions that are kept, and their bytes out of the table's files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lance.commit import CommitConflictError

from csip.errors import StoreError
from csip.store.fragments import delete_addresses
from csip.store.upkeep import compact
from csip.store.versions import open_current, table_uri
from csip.types import TableRef

Doomed = Callable[[pa.RecordBatch], npt.NDArray[np.bool_]]


def rewrite_without(store: str, name: str, version: int, columns: Sequence[str], doomed: Doomed) -> int:
    """Make a new newest version of a table: an earlier one, without some of its rows and without their bytes.

    Rows are deleted by their place: no condition that names anything is left in the table's history.

    Args:
        store: the store's folder.
        name: the table's.
        version: to begin from.
        columns: that `doomed` looks at.
        doomed: batch of N rows -> (N,), which of them go.

    Returns:
        The number of the new version.

    Raises:
        StoreError: another process wrote the table at the same time, or it cannot be written.
    """
    uri = table_uri(store, name)
    try:
        if open_current(store, name).version != version:
            lance.dataset(uri, version=version).restore()  # type: ignore[no-untyped-call]
        dataset = lance.dataset(uri)
        parts = [np.zeros(0, np.uint64)]
        for batch in dataset.to_batches(columns=list(columns), with_row_address=True):
            parts.append(np.asarray(batch.column("_rowaddr")).astype(np.uint64)[doomed(batch)])
        addresses = np.sort(np.concatenate(parts))
        if len(addresses):
            dataset = delete_addresses(dataset, addresses, "rows that were forgotten")
    except (OSError, CommitConflictError) as error:
        raise StoreError(f"{uri}: cannot be written ({error}). Run the same command when nothing else runs.") from error
    ref = TableRef(uri, dataset.version)
    if len(addresses) and not compact(ref, (), deletions=0.0):
        raise StoreError(f"{uri}: another process was writing. Run the same command again when nothing else runs.")
    return lance.dataset(uri).version


def erase_versions(store: str, name: str, keep: Collection[int]) -> int:
    """Remove all versions but some and the newest, and every file that none of them names, however young.

    Nothing else may write to the table at the same time: its files would be taken for lost.

    Returns:
        Bytes that are free again.
    """
    dataset = open_current(store, name)
    old = [facts["version"] for facts in dataset.versions() if facts["version"] not in keep]
    try:
        stats = dataset.cleanup_old_versions(
            versions=sorted(set(old) - {dataset.version}) or [0],
            delete_unverified=True,
            error_if_tagged_old_versions=False,
        )
    except OSError as error:
        raise StoreError(f"{dataset.uri}: cannot be cleaned up ({error}). Run the same command again.") from error
    return int(stats.bytes_removed)
