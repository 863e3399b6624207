"""Write rows in many places and commit them in one: workers write fragments, a coordinator commits them.

A fragment that nobody has committed is a file that no version names: no reader sees its rows, and when its writer dies
it lies there until `clean_up` takes it, 7 days later. So a coordinator has 7 days to commit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from lance.file import LanceFileReader
from lance.fragment import FragmentMetadata, write_fragments

from csip.errors import StoreError
from csip.store.committing import FORGOTTEN_LAST, commit, commit_fragments_as, open_for_writing
from csip.store.faults import store_error
from csip.store.paths import check_table
from csip.store.upkeep import FRAGMENT_BYTES, FRAGMENT_ROWS, merge_small
from csip.store.versions import table_uri, why
from csip.store.writing import check_keys, check_rows
from csip.types import TableRef
from storage_schemas import TABLES
from storage_schemas.fields import SCHEMA_VERSION, key_names

_AT_ONCE = 1 << 26
"""Bytes that a writer holds before it writes them as a fragment."""


@dataclass(frozen=True, slots=True)
class Fragments:
    """Rows that are written and not committed; plain values, to be sent to whoever commits them.

    Attributes:
        table: name of the table they are for.
        rows: how many.
        schema: the schema version that they were written in.
        after: who was the last to forget somebody in the table before they were written.
        parts: a fragment each, as Lance describes it in JSON.
    """

    table: str
    rows: int
    schema: int
    parts: tuple[str, ...]
    after: str = ""


class FragmentWriter:
    """Writes one worker's rows as fragments, as they come, in bounded memory.

    ```
    with FragmentWriter(store, "crops") as writer:
        for rows in ...:
            writer.write(rows)
    commit_fragments(store, "crops", [writer.fragments])
    ```

    Left by an exception, it writes no more; what it has written is never committed.
    """

    def __init__(self, store: str, name: str) -> None:
        self._name = name
        check_table(table_uri(store, name))
        # Looked up once: the fragments of one worker are of one schema.
        self._dataset = open_for_writing(store, name)
        self._waiting: list[pa.Table] = []
        self._bytes = 0
        self._rows = 0
        self._parts: list[str] = []
        self._done = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
            self._done = True

    def write(self, rows: pa.Table) -> None:
        """Take some rows; they are written when enough have come.

        Raises:
            SchemaMismatchError: they have other columns than the table.
            StoreError: they cannot be written.
        """
        check_rows(self._name, rows.schema)
        self._waiting.append(rows)
        self._bytes += rows.nbytes
        self._rows += len(rows)
        if self._bytes >= _AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        rows = pa.concat_tables([TABLES[self._name].empty_table(), *self._waiting]).cast(TABLES[self._name])
        self._waiting, self._bytes = [], 0
        if not len(rows):
            return
        try:
            written = write_fragments(
                rows,
                self._dataset,
                mode="append",
                max_rows_per_file=FRAGMENT_ROWS,
                max_bytes_per_file=FRAGMENT_BYTES,
            )
        except OSError as error:
            raise store_error(
                f"{self._dataset.uri}: {len(rows)} rows could not be written ({why(error)}). The table is as it was; "
                "free space or mend the permissions and run the same command again.",
                error,
            ) from error
        self._parts += [json.dumps(part.to_json()) for part in written]

    @property
    def fragments(self) -> Fragments:
        """Say what was written.

        Raises:
            ValueError: the writer was not left, or by an exception.
        """
        if not self._done:
            raise ValueError(f"FragmentWriter of {self._name}: its fragments are known when `with` has ended well.")
        after = self._dataset.metadata.get(FORGOTTEN_LAST, "")
        return Fragments(self._name, self._rows, SCHEMA_VERSION, tuple(self._parts), after)


def commit_fragments(store: str, name: str, written: Sequence[Fragments], *, replace: str | None = None) -> TableRef:
    """Commit what workers wrote: all of it becomes visible in one commit.

    As with `upsert`, rows that the table has under the same keys give way, and so do those that meet `replace`. They
    are deleted in a commit of their own, before; where there are none, there is no such commit. A kill between the two
    leaves a version with neither the old rows nor the new, and the same work done again completes it. Other writers
    may commit meanwhile: their rows are looked at before these are added, so that no key comes twice.

    Args:
        store: the store's folder, or its address in object storage.
        name: the table's.
        written: by any number of workers, for this table.
        replace: rows in the table that meet this condition are deleted.

    Raises:
        ValueError: fragments of another table or schema, or two rows have the same key.
        StoreError: a fragment is gone, somebody was forgotten since they were written, or the commit failed.
    """
    strange = sorted({(one.table, one.schema) for one in written} - {(name, SCHEMA_VERSION)})
    if strange:
        raise ValueError(
            f"commit_fragments into {name}, schema {SCHEMA_VERSION}: got fragments written for {strange}. Write them "
            "again, by workers of the coordinator's own CSIP version."
        )
    uri = table_uri(store, name)
    new = [FragmentMetadata.from_json(part) for one in written for part in one.parts]
    keys = _read_keys(uri, name, new)
    check_keys(name, keys)

    def attempt() -> TableRef:
        dataset = open_for_writing(store, name)
        if any(one.after != dataset.metadata.get(FORGOTTEN_LAST, "") for one in written):
            raise StoreError(
                f"{uri}: somebody was forgotten in this store after {len(keys)} rows had been prepared for it, which "
                "may be of that person. They were not committed; run the same command again from its beginning."
            )
        dataset = _without(dataset, keys, replace)
        if new:
            old = [fragment.metadata for fragment in dataset.get_fragments()]
            dataset = commit_fragments_as(dataset, old + new, dataset.lance_schema)
        return TableRef(dataset.uri, dataset.version)

    done = commit(uri, f"{len(keys)} rows", attempt)
    merge_small(done)
    return done


def _read_keys(uri: str, name: str, fragments: Sequence[FragmentMetadata]) -> pa.Table:
    """Read the key columns of fragments that are not committed."""
    names = key_names(TABLES[name])
    tables = [pa.schema([TABLES[name].field(key) for key in names]).empty_table()]
    for file in (file for fragment in fragments for file in fragment.files):
        try:
            found = LanceFileReader(f"{uri}/data/{file.path}", columns=names).read_all().to_table()
        except (OSError, ValueError) as error:
            raise store_error(
                f"{uri}: the fragment {file.path} cannot be read ({why(error)}). Fragments are cleaned up 7 days after "
                "they were written; run the same command again from its beginning.",
                error,
            ) from error
        tables.append(found.select(names).cast(tables[0].schema))
    return pa.concat_tables(tables)


def delete_rows(store: str, name: str, keys: pa.Table) -> None:
    """Delete the rows that have these values in these columns, in one commit; none is made where there are none.

    Unlike `delete`, whose condition Lance writes into the table's history, the commit does not say which rows.

    Args:
        store: the store's folder, or its address in object storage.
        name: the table's.
        keys: some of the table's columns, at least one of its key columns first.

    Raises:
        StoreError: the commit failed; the table is as it was.
    """
    commit(table_uri(store, name), "the deletion of rows", lambda: _without(open_for_writing(store, name), keys, None))


def _without(dataset: lance.LanceDataset, keys: pa.Table, replace: str | None) -> lance.LanceDataset:
    """Delete the rows with these keys, and those that meet a condition, in one commit if there are any."""
    doomed = _addresses(dataset, keys)
    if replace is not None:
        met = dataset.to_table(columns=keys.schema.names[:1], filter=replace, with_row_address=True)
        doomed = np.union1d(doomed, np.asarray(met["_rowaddr"], dtype=np.uint64))
    if not len(doomed):
        return dataset
    number, offset = doomed >> np.uint64(32), doomed & np.uint64(0xFFFFFFFF)
    fewer, gone = [], []
    for fragment in dataset.get_fragments():
        here = offset[number == fragment.fragment_id]
        if not len(here):
            continue
        left = fragment.delete_rows(here.tolist())
        if left is None:
            gone.append(fragment.fragment_id)
        else:
            fewer.append(left)
    deletion = lance.LanceOperation.Delete(fewer, gone, replace or "rows that are written anew")
    return lance.LanceDataset.commit(dataset.uri, deletion, read_version=dataset.version, max_retries=0)


def _addresses(dataset: lance.LanceDataset, keys: pa.Table) -> npt.NDArray[np.uint64]:
    """Find the rows with these keys: fragment number << 32 | offset in it, ascending."""
    names = keys.schema.names
    if not len(keys):
        return np.zeros(0, np.uint64)
    first = pc.unique(keys[names[0]])
    batches = [
        batch.filter(pc.is_in(batch.column(names[0]), value_set=first))
        for batch in dataset.to_batches(columns=names, with_row_address=True)
    ]
    some = pa.Table.from_batches(batches) if batches else None
    if some is None or not len(some):
        return np.zeros(0, np.uint64)
    both = some.join(keys, names, join_type="left semi")
    return np.sort(np.asarray(both["_rowaddr"], dtype=np.uint64))
