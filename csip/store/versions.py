"""One version of a table: where it lies, whether this CSIP knows its schema, and how it opens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import lance
import pyarrow as pa

from csip.errors import SchemaMismatchError, StorageFaultError, StoreError
from csip.store.faults import store_error
from csip.types import TableRef
from storage_schemas import TABLES
from storage_schemas.fields import (
    FIRST_VERSION,
    SCHEMA_VERSION,
    at_version,
    default,
    key_names,
    key_position,
    since,
    version_of,
)


def table_uri(store: str, name: str) -> str:
    """Say where a store keeps a table."""
    return f"{store.rstrip('/')}/{name}.lance"


def table_name(uri: str) -> str:
    """Name the table that lies at an address."""
    return uri.rpartition("/")[2].removesuffix(".lance")


def is_address(store: str) -> bool:
    """Tell whether a store lies in object storage (`s3://bucket/prefix`) and not in a folder."""
    return "://" in store


def quote(value: str) -> str:
    """Write a string as a literal of Lance's filter language."""
    return "'" + value.replace("'", "''") + "'"


def any_of(column: str, values: Iterable[str]) -> str:
    """Write the condition that a column holds one of these strings; at least one."""
    return f"{column} IN ({', '.join(map(quote, sorted(values)))})"


def why(error: Exception) -> str:
    """Give Lance's reason without the lines of its own source, and without whom a server took us for."""
    text = re.sub(r",? /\S+\.rs:\d+:\d+", "", str(error).replace("LanceError(IO): ", ""))
    return re.sub(r"<\?xml.*?<Code>(.*?)</Code>.*?<Message>(.*?)</Message>.*</Error>", r"\1: \2", text, flags=re.DOTALL)


def try_open(uri: str) -> lance.LanceDataset | None:
    """Open a table's newest version; None where there is no such table.

    Raises:
        StoreError: there is one, and it cannot be opened.
    """
    try:
        return lance.dataset(uri)
    except (ValueError, OSError) as error:
        if isinstance(error, ValueError) and "not found" in str(error):
            return None
        raise store_error(
            f"Table {uri}: cannot be opened ({why(error)}). Restore it, or build into a new store; of object storage, "
            "look at the address and the AWS_* variables, too.",
            error,
        ) from error


def current(store: str, name: str) -> TableRef:
    """Pin a table's newest version.

    Raises:
        StoreError: there is no such table; the message names the store.
        SchemaMismatchError: it has other columns than this CSIP knows.
    """
    dataset = open_current(store, name)
    return TableRef(dataset.uri, dataset.version)


def open_current(store: str, name: str) -> lance.LanceDataset:
    """Open a table's newest version; raises as `current` does."""
    uri = table_uri(store, name)
    dataset = try_open(uri)
    if dataset is None:
        raise StoreError(
            f"Store {store}: found no table {name!r} there. Expected a store that `csip build-skeletons` has filled; "
            "check --store and CSIP_STORE."
        )
    _check_columns(dataset, uri)
    return dataset


def check_schema(dataset: lance.LanceDataset, uri: str) -> int:
    """Tell which schema version a table has that is to be written.

    Raises:
        SchemaMismatchError: one that this CSIP does not know, or other columns than that version has; or columns that
            are no keys where they must be, or may be null where they must not.
    """
    version = _check_columns(dataset, uri)
    odd = [
        f"{found.name} ({_role(found)}, expected {_role(field)})"
        for found, field in zip(dataset.schema, TABLES[table_name(uri)], strict=False)
        if _role(found) != _role(field)
    ]
    if odd:
        raise SchemaMismatchError(
            f"{uri} version {dataset.version}: found {', '.join(odd)}. Two writers at once could write one key twice "
            "there: it can be read, and not written. Restore the table from a copy of its own files, or build into a "
            "new store."
        )
    return version


def _role(field: pa.Field) -> str:
    position = key_position(field)
    return (f"key {position}" if position else "no key") + (", may be null" if field.nullable else "")


def _check_columns(dataset: lance.LanceDataset, uri: str) -> int:
    """Tell which schema version a table has.

    Raises:
        SchemaMismatchError: one that this CSIP does not know, or other columns than that version has.
    """
    found, version = dataset.schema, version_of(dataset.schema)
    where = f"{uri} version {dataset.version}"
    if table_name(uri) not in TABLES:
        raise SchemaMismatchError(f"{where}: found a table that CSIP does not know, expected one of {list(TABLES)}.")
    if version > SCHEMA_VERSION:
        raise SchemaMismatchError(
            f"{where}: written by a newer CSIP (schema {version}), this one knows up to {SCHEMA_VERSION}: upgrade CSIP."
        )
    expected = at_version(TABLES[table_name(uri)], max(version, FIRST_VERSION))
    if version < FIRST_VERSION or found.names != expected.names or found.types != expected.types:
        raise SchemaMismatchError(
            f"{where}: found schema {version or '?'} with {found.names}, expected schema {FIRST_VERSION} to "
            f"{SCHEMA_VERSION} with {expected.names}. Use the CSIP version that wrote it, or build into a new store."
        )
    return version


def open_version(ref: TableRef, *, read_across: int | None = None) -> lance.LanceDataset:
    """Open a pinned version.

    Args:
        ref: the version.
        read_across: rows that lie this near together, in bytes, are read in one go; Lance's own figure, if None.

    Raises:
        StoreError: it cannot be opened.
        SchemaMismatchError: it has other columns than this CSIP knows.
    """
    try:
        dataset = lance.dataset(ref.uri, version=ref.version, block_size=read_across)
    except (ValueError, OSError) as error:
        raise store_error(
            f"{ref.uri}: version {ref.version} cannot be opened ({why(error)}). It may have been cleaned up; "
            "build the snapshot again.",
            error,
        ) from error
    _check_columns(dataset, ref.uri)
    return dataset


def exists(ref: TableRef) -> bool:
    """Tell whether a pinned version still opens.

    Raises:
        StorageFaultError: the store cannot be asked just now.
    """
    try:
        open_version(ref)
    except StorageFaultError:
        raise
    except StoreError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class View:
    """A pinned version as the newest schema shows it: columns that came later have their defaults.

    Attributes:
        dataset: the version.
        later: name -> column, of those that it has not.
    """

    dataset: lance.LanceDataset
    later: Mapping[str, pa.Field]

    @classmethod
    def of(cls, ref: TableRef, *, read_across: int | None = None) -> View:
        """Open a pinned version; raises as `open_version` does."""
        dataset = open_version(ref, read_across=read_across)
        version = version_of(dataset.schema)
        return cls(dataset, {field.name: field for field in TABLES[table_name(ref.uri)] if since(field) > version})

    @property
    def names(self) -> list[str]:
        """List all columns that it shows."""
        return [*self.dataset.schema.names, *self.later]

    @property
    def keys(self) -> list[str]:
        """List the table's key columns in key order, whether or not the version says that they are."""
        return key_names(TABLES[table_name(self.dataset.uri)])

    def stored(self, columns: Iterable[str]) -> list[str]:
        """List what to read of the version for `columns` to be shown: something always, so that rows are counted."""
        there = [name for name in columns if name not in self.later]
        return there or self.keys[:1]

    def show(self, rows: pa.Table | pa.RecordBatch, columns: Iterable[str]) -> pa.Table | pa.RecordBatch:
        """Put the defaults beside what was read, and the columns into the order asked for."""
        columns = list(columns)
        if rows.schema.names == columns:
            return rows
        for name in columns:
            if name in self.later:
                field = self.later[name]
                rows = rows.append_column(field, pa.repeat(default(field), rows.num_rows))
        return rows.select(columns)

    def check_condition(self, where: str | None) -> str | None:
        """Give back a condition that this version can answer.

        Raises:
            SchemaMismatchError: it asks for a column that came later.
        """
        words = set(re.findall(r"\w+", re.sub(r"'[^']*'", "", where or "")))
        if words & set(self.later):
            raise SchemaMismatchError(
                f"{self.dataset.uri} version {self.dataset.version}: the condition {where!r} asks for "
                f"{sorted(words & set(self.later))}, which schema {version_of(self.dataset.schema)} has not. Read a "
                "version that was written since, or read all rows and choose among them."
            )
        return where
