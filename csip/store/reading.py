"""Read a pinned version: all of it sorted by key, in one pass, or rows by number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from csip.store.faults import store_error
from csip.store.versions import View, open_version, why
from csip.types import TableRef

# Rows that lie this near together, in bytes, are read in one go. A clip's frames are neighbours: with Lance's own 4 kB
# nearly every crop would be a read of its own, at some 15 microseconds each.
_READ_ACROSS = 65_536


def count(ref: TableRef, where: str | None = None) -> int:
    """Count the rows of a pinned version, or those that meet a condition."""
    view = View.of(ref)
    with _reading(ref):
        return int(view.dataset.count_rows(view.check_condition(where)))


def read(ref: TableRef, columns: Sequence[str] | None = None, where: str | None = None) -> pa.Table:
    """Read a pinned version, sorted by its key; columns that came later than it have their defaults.

    Args:
        ref: the version.
        columns: those to read; key columns come first and always. All, if None.
        where: a condition in Lance's filter language (SQL-like); see `quote`.

    Raises:
        StoreError: it cannot be opened, or a file of it cannot be read.
        SchemaMismatchError: it is of a schema that is not known, or the condition asks for a later column.
    """
    view = View.of(ref)
    keys = view.keys
    names = view.names if columns is None else keys + [c for c in columns if c not in keys]
    where = view.check_condition(where)
    with _reading(ref):
        table = view.dataset.to_table(columns=view.stored(names), filter=where)
    return view.show(table, names).sort_by([(k, "ascending") for k in keys])


@contextmanager
def _reading(ref: TableRef) -> Iterator[None]:
    """Say what it means that a file of a pinned version cannot be read."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise store_error(
            f"{ref.uri} version {ref.version}: cannot be read ({why(error)}). Restore the table's files from a copy, "
            "or build into a new store; `csip verify` says what else is missing.",
            error,
        ) from error


def stream(
    ref: TableRef, columns: Sequence[str], where: str | None = None, *, batch_rows: int = 8192
) -> Iterator[pa.RecordBatch]:
    """Read some columns of a pinned version in one pass, batch by batch, in no order.

    `_row_last_updated_at_version`, the version that wrote a row as it is, can be read like a column.

    Raises:
        StoreError: it cannot be opened, or a file of it cannot be read.
        SchemaMismatchError: as of `read`.
    """
    view = View.of(ref)
    where = view.check_condition(where)
    with _reading(ref):
        for batch in view.dataset.to_batches(columns=view.stored(columns), filter=where, batch_size=batch_rows):
            yield view.show(batch, columns)


def stream_tracklets(ref: TableRef, tracklets: Iterable[str], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Read `tracklet_id` and some columns of the rows of these tracklets, as `stream` does.

    However many they are, and however many rows the table has beside theirs: a condition would list them all.
    """
    wanted = pa.array(sorted(tracklets), pa.string())
    for batch in stream(ref, ["tracklet_id", *columns]):
        yield batch.filter(pc.is_in(batch.column(0), value_set=wanted))


class Rows:
    """Random access to the rows of one pinned version by row number, for readers that draw what they need.

    Not for sharing across processes: it drops its handle when pickled and opens the version anew.
    """

    def __init__(self, ref: TableRef) -> None:
        self.ref = ref
        self._view: View | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"ref": self.ref, "_view": None}

    def _handle(self) -> View:
        if self._view is None:
            self._view = View.of(self.ref, read_across=_READ_ACROSS)
        return self._view

    def keys(self, columns: Sequence[str] = ()) -> pa.Table:
        """Read the key columns and `columns` of every row, with its row number as `row`, sorted by key."""
        view = self._handle()
        keys = view.keys
        names = [*keys, *(c for c in columns if c not in keys)]
        with _reading(self.ref):
            table = view.show(view.dataset.to_table(columns=view.stored(names)), names)
        table = table.append_column("row", pa.array(np.arange(len(table)), pa.int64()))
        return table.sort_by([(k, "ascending") for k in keys])

    def take(self, rows: npt.NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        """Read `columns` of the numbered rows, in the order asked for."""
        view = self._handle()
        with _reading(self.ref):
            return view.show(view.dataset.take(rows.tolist(), columns=view.stored(columns)), columns)


def described(ref: TableRef) -> dict[str, str]:
    """Read what `describe` had said of a table at a pinned version."""
    return dict(open_version(ref).metadata)
