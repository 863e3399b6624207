"""Write: make a store's tables, upsert rows, delete rows, say something of a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import lance
import pyarrow as pa
from lance.commit import CommitConflictError

from csip.errors import SchemaMismatchError, StoreError
from csip.store.committing import commit, open_for_writing
from csip.store.faults import store_error
from csip.store.paths import check_table
from csip.store.upkeep import merge_small
from csip.store.versions import is_address, table_uri, try_open, why
from csip.types import TableRef
from storage_schemas import TABLES
from storage_schemas.fields import key_names


def prepare_store(store: str) -> None:
    """Make every table that the store does not have yet, empty, and bring those up that an older CSIP made.

    Raises:
        StoreError: the store cannot be made or written.
        SchemaMismatchError: a table that is there has other columns.
    """
    try:
        if not is_address(store):
            Path(store).mkdir(parents=True, exist_ok=True)
        for name, schema in TABLES.items():
            check_table(table_uri(store, name))
            if try_open(table_uri(store, name)) is None:
                _create(table_uri(store, name), schema)
            open_for_writing(store, name)
    except OSError as error:
        raise store_error(
            f"Store {store}: cannot be written ({why(error)}). Expected a folder that this user may write to, or "
            "s3://BUCKET/PREFIX; name another with --store or CSIP_STORE.",
            error,
        ) from error


def _create(uri: str, schema: pa.Schema) -> None:
    data = Path(uri) / "data"
    # A writer that is quicker than us may have made it and filled it since we looked.
    if not is_address(uri) and data.is_dir() and any(data.iterdir()) and try_open(uri) is None:
        raise StoreError(
            f"Table {uri}: found data files and no version that names them. Restore its folder `_versions` from a "
            "copy, or build into a new store; nothing was changed."
        )
    # One attempt: `lance.write_dataset` tries again over a table that another process has made in the meantime, and
    # empties it.
    nothing = lance.LanceOperation.Overwrite(schema, [])
    try:
        lance.LanceDataset.commit(
            uri, nothing, read_version=0, max_retries=0, enable_stable_row_ids=True, enable_v2_manifest_paths=True
        )
    except (OSError, CommitConflictError):
        # Somebody else was first; then it is there, and that is all we want.
        if try_open(uri) is None:
            raise


def check_rows(name: str, schema: pa.Schema) -> None:
    """Check that rows have a table's columns.

    Raises:
        SchemaMismatchError: they have others.
    """
    expected = TABLES[name]
    if schema.names != expected.names or schema.types != expected.types:
        raise SchemaMismatchError(
            f"upsert into {name}: got columns {schema.names} of types {[str(t) for t in schema.types]}, "
            f"expected {expected.names} of types {[str(t) for t in expected.types]}."
        )


def check_keys(name: str, keys: pa.Table) -> None:
    """Check that no two rows have one key: Lance refuses them for a known key, but would insert both under a new one.

    Raises:
        ValueError: two have.
    """
    distinct = keys.group_by(keys.schema.names).aggregate([]).num_rows
    if distinct != len(keys):
        raise ValueError(
            f"upsert into {name}: got {len(keys)} rows with {distinct} different keys {keys.schema.names}."
        )


def upsert(
    store: str,
    name: str,
    rows: pa.Table,
    *,
    replace: str | None = None,
    keep: str | None = None,
    only_over: str | None = None,
) -> TableRef:
    """Write rows by key in one commit: new keys are added, known keys overwritten.

    Args:
        store: the store's folder, or its address in object storage.
        name: the table's.
        rows: of the table's schema.
        replace: rows in the table that meet this condition and are not among `rows` are deleted in the same commit.
        keep: rows in the table that meet this condition when the commit comes about are not overwritten; columns are
            written as `target.NAME`.
        only_over: rows are written only over such as meet this condition when the commit comes about, none is added;
            columns as for `keep`, which then says nothing.

    Returns:
        The version that the commit made.

    Raises:
        SchemaMismatchError: `rows` have other columns than the table.
        ValueError: two of `rows` have the same key.
        StoreError: the commit failed; the table is as it was.
        StoreBusyError: others' commits came before every time, or somebody is being forgotten in the store.
    """
    check_rows(name, rows.schema)
    keys = key_names(TABLES[name])
    check_keys(name, rows.select(keys))

    def attempt() -> TableRef:
        dataset = open_for_writing(store, name)
        give_way = only_over if keep is None else f"NOT ({keep})"
        merge = dataset.merge_insert(keys).when_matched_update_all(give_way)
        if only_over is None:
            merge = merge.when_not_matched_insert_all()
        # Lance would look for a newer version by itself; whether that one may be written to, `open_for_writing` says.
        merge = merge.conflict_retries(0)
        if replace is not None:
            merge = merge.when_not_matched_by_source_delete(replace)
        merge.execute(rows.cast(TABLES[name]))
        return TableRef(dataset.uri, dataset.version)

    done = commit(table_uri(store, name), f"{len(rows)} rows", attempt)
    merge_small(done)
    return done


def describe(store: str, name: str, facts: Mapping[str, str]) -> None:
    """Say something about a table in its own metadata, in one commit; none is made where it says so already.

    Raises:
        StoreError: the commit failed.
    """

    def attempt() -> None:
        dataset = open_for_writing(store, name)
        known = dataset.metadata
        new: dict[str, str | None] = {key: value for key, value in facts.items() if known.get(key) != value}
        if new:
            # Lance does not join two writers' metadata, as it does their rows: `commit` looks what the other one said.
            dataset.update_metadata(new)

    commit(table_uri(store, name), f"{sorted(facts)} in its metadata", attempt)


def delete(store: str, name: str, where: str) -> None:
    """Delete the rows that meet a condition, in one commit; none is made where there are none.

    Raises:
        StoreError: the commit failed; the table is as it was.
    """

    def attempt() -> None:
        dataset = open_for_writing(store, name)
        if dataset.count_rows(where):
            dataset.delete(where, conflict_retries=0)

    commit(table_uri(store, name), "the deletion of rows", attempt)
