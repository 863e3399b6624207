"""The door to Lance: open a pinned version, write a version, record a run, publish a snapshot.

A store is a folder (or an object-store prefix) with one Lance table for each schema of `storage_schemas`.
Every write is an upsert on the table's key, so that doing the same work twice changes nothing. Row order is
nobody's promise: `read` sorts by key, and `Rows` builds its index once for one pinned version.

Lance is not fork-safe: a worker process opens its own tables, under `spawn`.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from lance.commit import CommitConflictError
from lance.optimize import Compaction, CompactionOptions

from csip.errors import SchemaMismatchError, StoreError
from csip.types import Snapshot, TableRef
from storage_schemas import TABLES
from storage_schemas.fields import SCHEMA_VERSION, key_names

_LOG = logging.getLogger(__name__)

# Rows that lie this near together, in bytes, are read in one go. A clip's frames are neighbours: with Lance's own 4 kB
# nearly every crop would be a read of its own, at some 15 microseconds each.
_READ_ACROSS = 65_536

_ATTEMPTS = 20


def table_uri(store: str, name: str) -> str:
    """Say where a store keeps a table."""
    return f"{store.rstrip('/')}/{name}.lance"


def quote(value: str) -> str:
    """Write a string as a literal of Lance's filter language."""
    return "'" + value.replace("'", "''") + "'"


def prepare_store(store: str) -> None:
    """Make every table that the store does not have yet, empty.

    Raises:
        StoreError: the folder cannot be made or written.
        SchemaMismatchError: a table that is there has other columns.
    """
    try:
        if "://" not in store:
            Path(store).mkdir(parents=True, exist_ok=True)
        for name, schema in TABLES.items():
            if _try_open(table_uri(store, name)) is None:
                _create(table_uri(store, name), schema)
            current(store, name)
    except OSError as error:
        raise StoreError(
            f"Store {store}: cannot be written ({error}). Expected a folder that this user may write to; "
            "name another with --store or CSIP_STORE."
        ) from error


def _try_open(uri: str) -> lance.LanceDataset | None:
    try:
        return lance.dataset(uri)
    except ValueError as error:
        if "not found" in str(error):
            return None
        raise StoreError(f"Table {uri}: cannot be opened ({error}). Restore it, or build into a new store.") from error


def _create(uri: str, schema: pa.Schema) -> None:
    # One attempt: `lance.write_dataset` tries again over a table that another process has made in the meantime, and
    # empties it.
    nothing = lance.LanceOperation.Overwrite(schema, [])
    try:
        lance.LanceDataset.commit(
            uri, nothing, read_version=0, max_retries=0, enable_stable_row_ids=True, enable_v2_manifest_paths=True
        )
    except (OSError, CommitConflictError):
        # Somebody else was first; then it is there, and that is all we want.
        if _try_open(uri) is None:
            raise


def current(store: str, name: str) -> TableRef:
    """Pin a table's newest version.

    Raises:
        StoreError: there is no such table; the message names the store.
    """
    uri = table_uri(store, name)
    dataset = _try_open(uri)
    if dataset is None:
        raise StoreError(
            f"Store {store}: found no table {name!r} there. Expected a store that `csip build-skeletons` has filled; "
            "check --store and CSIP_STORE."
        )
    _check_schema(dataset, uri, name)
    return TableRef(uri, dataset.version)


def _check_schema(dataset: lance.LanceDataset, uri: str, name: str) -> None:
    found, expected = dataset.schema, TABLES[name]
    version = (found.metadata or {}).get(b"csip.schema_version", b"?").decode()
    if found.names != expected.names or found.types != expected.types or version != SCHEMA_VERSION:
        raise SchemaMismatchError(
            f"{uri} version {dataset.version}: found schema {version} with {found.names}, expected schema "
            f"{SCHEMA_VERSION} with {expected.names}. Use the CSIP version that wrote it, or build into a new store."
        )


def _open(ref: TableRef, *, read_across: int | None = None) -> lance.LanceDataset:
    try:
        return lance.dataset(ref.uri, version=ref.version, block_size=read_across)
    except (ValueError, OSError) as error:
        raise StoreError(
            f"{ref.uri}: version {ref.version} cannot be opened ({error}). It may have been cleaned up; "
            "build the snapshot again."
        ) from error


def exists(ref: TableRef) -> bool:
    """Tell whether a pinned version still opens."""
    try:
        _open(ref)
    except StoreError:
        return False
    return True


def count(ref: TableRef, where: str | None = None) -> int:
    """Count the rows of a pinned version, or those that meet a condition."""
    return int(_open(ref).count_rows(where))


def read(ref: TableRef, columns: Sequence[str] | None = None, where: str | None = None) -> pa.Table:
    """Read a pinned version, sorted by its key.

    Args:
        ref: the version.
        columns: those to read; key columns come first and always. All, if None.
        where: a condition in Lance's filter language (SQL-like); see `quote`.

    Raises:
        StoreError: it cannot be opened, or a file of it cannot be read.
    """
    dataset = _open(ref)
    keys = key_names(dataset.schema)
    names = None if columns is None else keys + [c for c in columns if c not in keys]
    with _reading(ref):
        table: pa.Table = dataset.to_table(columns=names, filter=where)
    return table.sort_by([(k, "ascending") for k in keys])


@contextmanager
def _reading(ref: TableRef) -> Iterator[None]:
    """Say what it means that a file of a pinned version cannot be read."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise StoreError(
            f"{ref.uri} version {ref.version}: cannot be read ({error}). Restore the table's files from a copy, or "
            "build into a new store; `csip verify` says what else is missing."
        ) from error


def binary_views(column: pa.ChunkedArray) -> list[memoryview]:
    """View a binary column's values where they lie: no copies, as Python's own bytes would be.

    A view keeps its whole chunk in memory.
    """
    views = []
    for chunk in column.chunks:
        _, ends, values = chunk.buffers()
        at = np.frombuffer(ends, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1].tolist()
        whole = memoryview(values).cast("B")  # as the views of bytes are; Arrow's own are signed
        views += [whole[begin:end] for begin, end in itertools.pairwise(at)]
    return views


class Rows:
    """Random access to the rows of one pinned version by row number, for readers that draw what they need.

    Not for sharing across processes: it drops its handle when pickled and opens the version anew.
    """

    def __init__(self, ref: TableRef) -> None:
        self.ref = ref
        self._dataset: lance.LanceDataset | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"ref": self.ref, "_dataset": None}

    def _handle(self) -> lance.LanceDataset:
        if self._dataset is None:
            self._dataset = _open(self.ref, read_across=_READ_ACROSS)
        return self._dataset

    def keys(self, columns: Sequence[str] = ()) -> pa.Table:
        """Read the key columns and `columns` of every row, with its row number as `row`, sorted by key."""
        dataset = self._handle()
        keys = key_names(dataset.schema)
        table: pa.Table = dataset.to_table(columns=[*keys, *(c for c in columns if c not in keys)])
        table = table.append_column("row", pa.array(np.arange(len(table)), pa.int64()))
        return table.sort_by([(k, "ascending") for k in keys])

    def take(self, rows: npt.NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        """Read `columns` of the numbered rows, in the order asked for."""
        table: pa.Table = self._handle().take(rows.tolist(), columns=list(columns))
        return table


def upsert(store: str, name: str, rows: pa.Table, *, replace: str | None = None) -> TableRef:
    """Write rows by key in one commit: new keys are added, known keys overwritten.

    Args:
        store: the store's folder.
        name: the table's.
        rows: of the table's schema.
        replace: rows in the table that meet this condition and are not among `rows` are deleted in the same commit.

    Returns:
        The version that the commit made.

    Raises:
        SchemaMismatchError: `rows` have other columns than the table.
        ValueError: two of `rows` have the same key.
        StoreError: the commit failed; the table is as it was.
    """
    schema = TABLES[name]
    if rows.schema.names != schema.names or rows.schema.types != schema.types:
        raise SchemaMismatchError(
            f"upsert into {name}: got columns {rows.schema.names} of types {[str(t) for t in rows.schema.types]}, "
            f"expected {schema.names} of types {[str(t) for t in schema.types]}."
        )
    keys = key_names(schema)
    # Lance refuses two rows for one known key, but would insert both under a new one.
    distinct = rows.select(keys).group_by(keys).aggregate([]).num_rows
    if distinct != len(rows):
        raise ValueError(f"upsert into {name}: got {len(rows)} rows with {distinct} different keys {keys}.")
    dataset = lance.dataset(current(store, name).uri)
    merge = dataset.merge_insert(keys).when_matched_update_all().when_not_matched_insert_all()
    if replace is not None:
        merge = merge.when_not_matched_by_source_delete(replace)
    try:
        merge.execute(rows.cast(schema))
    except OSError as error:
        raise StoreError(
            f"{dataset.uri}: {len(rows)} rows could not be written ({error}). The table is as it was at version "
            f"{dataset.version}; free space or mend the permissions and run the same command again."
        ) from error
    return TableRef(dataset.uri, dataset.version)


def describe(store: str, name: str, facts: Mapping[str, str]) -> None:
    """Say something about a table in its own metadata, in one commit; none is made where it says so already.

    Raises:
        StoreError: the commit failed.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        dataset = lance.dataset(current(store, name).uri)
        known = dataset.metadata
        new: dict[str, str | None] = {key: value for key, value in facts.items() if known.get(key) != value}
        if not new:
            return
        try:
            dataset.update_metadata(new)
        except (OSError, CommitConflictError) as error:
            # Lance does not join two writers' metadata, as it does their rows: look again what the other one said.
            if attempt == _ATTEMPTS:
                raise StoreError(
                    f"{dataset.uri}: {sorted(new)} could not be written into its metadata ({error}). Free space or "
                    "mend the permissions, and run the same command again."
                ) from error


def described(ref: TableRef) -> dict[str, str]:
    """Read what `describe` had said of a table at a pinned version."""
    return dict(_open(ref).metadata)


def delete(store: str, name: str, where: str) -> None:
    """Delete the rows that meet a condition, in one commit; none is made where there are none."""
    dataset = lance.dataset(current(store, name).uri)
    if dataset.count_rows(where):
        dataset.delete(where)


def from_rows(name: str, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Make a table of the named schema from dictionaries, one a row."""
    return pa.Table.from_pylist(list(rows), schema=TABLES[name])


def keypoints_column(keypoints: npt.NDArray[np.float32]) -> pa.Array:
    """Turn (N, J, 3) float32 into a column of N keypoint lists, without a Python loop."""
    n, j, _ = keypoints.shape
    inner = pa.FixedSizeListArray.from_arrays(pa.array(keypoints.reshape(-1), pa.float32()), 3)
    return pa.ListArray.from_arrays(pa.array(np.arange(n + 1) * j, pa.int32()), inner)


def keypoints_array(column: pa.ChunkedArray, joints: int) -> npt.NDArray[np.float32]:
    """Read what `keypoints_column` wrote back as (N, joints, 3) float32.

    Raises:
        SchemaMismatchError: a row has another number of joints.
    """
    if len(column) == 0:
        return np.zeros((0, joints, 3), np.float32)
    counts = pc.unique(pc.list_value_length(column)).to_pylist()
    if counts != [joints]:
        raise SchemaMismatchError(f"keypoints: found rows of {sorted(counts)} joints, expected {joints} in every row.")
    flat = column.combine_chunks().flatten().flatten()
    return np.asarray(flat, dtype=np.float32).reshape(-1, joints, 3)


def vectors_column(vectors: npt.NDArray[np.float32]) -> pa.Array:
    """Turn (N, E) float32 into a column of N lists."""
    n, e = vectors.shape
    return pa.ListArray.from_arrays(pa.array(np.arange(n + 1) * e, pa.int32()), pa.array(vectors.reshape(-1)))


def vectors_array(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """Read a column of N equally long lists as (N, E) float32.

    Raises:
        SchemaMismatchError: the lists differ in length.
    """
    if len(column) == 0:
        return np.zeros((0, 0), np.float32)
    lengths = pc.unique(pc.list_value_length(column)).to_pylist()
    if len(lengths) != 1:
        raise SchemaMismatchError(
            f"vectors: found lists of {sorted(lengths)} numbers, expected one length in every row."
        )
    flat = column.combine_chunks().flatten()
    return np.asarray(flat, dtype=np.float32).reshape(len(column), -1)


def boxes_column(boxes: npt.NDArray[np.float32]) -> pa.Array:
    """Turn (N, 4) float32 into a column of N boxes."""
    return pa.FixedSizeListArray.from_arrays(pa.array(boxes.reshape(-1), pa.float32()), 4)


def boxes_array(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """Read a column of N boxes as (N, 4) float32."""
    return np.asarray(column.combine_chunks().flatten(), dtype=np.float32).reshape(-1, 4)


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One finished stage, as `storage_schemas.runs` has it; JSON columns hold plain values."""

    run_id: str
    stage: str
    key: str
    inputs: Any
    outputs: Any
    config: Any
    counts: Any
    weights: Any
    source_digest: str
    git_commit: str
    device: str
    started: str
    seconds: float


_JSON_COLUMNS = ("inputs", "outputs", "config", "counts", "weights")


def record_run(store: str, run: RunRecord) -> TableRef:
    """Append a finished stage to the store's memory."""
    row = {name: getattr(run, name) for name in TABLES["runs"].names}
    row |= {name: json.dumps(row[name], sort_keys=True) for name in _JSON_COLUMNS}
    return upsert(store, "runs", from_rows("runs", [row]))


def find_runs(store: str, where: str) -> list[RunRecord]:
    """List the runs that meet a condition, oldest first."""
    rows = read(current(store, "runs"), where=where).to_pylist()
    runs = [RunRecord(**(row | {name: json.loads(row[name]) for name in _JSON_COLUMNS})) for row in rows]
    return sorted(runs, key=lambda run: (run.started, run.run_id))


def find_run(store: str, key: str) -> RunRecord | None:
    """Find the newest finished run with this key."""
    runs = find_runs(store, f"key = {quote(key)}")
    return runs[-1] if runs else None


def publish(snapshot: Snapshot, *, config: Any, counts: Any, videos: Sequence[str]) -> None:
    """Make a snapshot visible, in one commit, after tagging every table version it names against clean-up."""
    tag = snapshot_tag(snapshot.name)
    for name, version in snapshot.tables.items():
        dataset = lance.dataset(table_uri(snapshot.store, name))
        try:
            dataset.tags.create(tag, version)
        except ValueError:  # it is there, perhaps since this very moment: another process publishes the same
            dataset.tags.update(tag, version)
    row = {
        "name": snapshot.name,
        "digest": snapshot.digest,
        "tables": json.dumps(dict(snapshot.tables), sort_keys=True),
        "config": json.dumps(config, sort_keys=True),
        "counts": json.dumps(counts, sort_keys=True),
        "videos": json.dumps(sorted(videos)),
        "created": now(),
    }
    upsert(snapshot.store, "snapshots", from_rows("snapshots", [row]))


def now() -> str:
    """Write the time as tables store it: ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def snapshot_row(store: str, name: str) -> dict[str, Any]:
    """Read a snapshot's row with its JSON columns decoded.

    Raises:
        StoreError: no such snapshot; the message lists those there are.
    """
    rows = read_snapshots(current(store, "snapshots"))
    if name not in rows:
        known = ", ".join(sorted(rows)) or "none"
        raise StoreError(
            f"Store {store}: found no snapshot {name!r}; there are: {known}. "
            "Name one of those, or make one with `csip build-skeletons`."
        )
    return rows[name]


def read_snapshots(ref: TableRef) -> dict[str, dict[str, Any]]:
    """Read a version of `snapshots`: name -> row, its JSON columns decoded, oldest first."""
    columns = ("tables", "config", "counts", "videos")
    rows = [row | {name: json.loads(row[name]) for name in columns} for row in read(ref).to_pylist()]
    return {row["name"]: row for row in sorted(rows, key=lambda row: (row["created"], row["name"]))}


def open_snapshot(store: str, name: str) -> Snapshot:
    """Pin a published snapshot by name."""
    row = snapshot_row(store, name)
    return Snapshot(name=name, store=store, tables=row["tables"], digest=row["digest"])


def pinned(snapshot: Snapshot, table: str) -> TableRef:
    """Give the version of a table that a snapshot names.

    Raises:
        StoreError: the snapshot names no version of it.
    """
    if table not in snapshot.tables:
        raise StoreError(f"Snapshot {snapshot.name}: names no version of {table}, only of {sorted(snapshot.tables)}.")
    return TableRef(table_uri(snapshot.store, table), snapshot.tables[table])


# What maintenance needs of Lance (`csip.maintenance`), each a thin cover of one call.

_FRAGMENT_BYTES = 1 << 28
_FRAGMENT_ROWS = 1 << 20


@dataclass(frozen=True, slots=True)
class Extent:
    """How large a pinned version is.

    Attributes:
        rows: that it shows.
        data_bytes: of its data files, rows included that it has deleted.
        fragments: id -> bytes of its data files.
    """

    rows: int
    data_bytes: int
    fragments: Mapping[int, int]


def extent(ref: TableRef) -> Extent:
    """Measure a pinned version, from its manifest alone.

    Raises:
        StoreError: it cannot be opened.
    """
    dataset = _open(ref)
    files = {fragment.fragment_id: fragment.metadata.files for fragment in dataset.get_fragments()}
    sizes = {number: sum(file.file_size_bytes or 0 for file in some) for number, some in files.items()}
    return Extent(dataset.count_rows(), sum(sizes.values()), sizes)


def stream(
    ref: TableRef, columns: Sequence[str], where: str | None = None, *, batch_rows: int = 8192
) -> Iterator[pa.RecordBatch]:
    """Read some columns of a pinned version in one pass, batch by batch, in no order.

    `_row_last_updated_at_version`, the version that wrote a row as it is, can be read like a column.

    Raises:
        StoreError: it cannot be opened, or a file of it cannot be read.
    """
    dataset = _open(ref)
    with _reading(ref):
        yield from dataset.to_batches(columns=list(columns), filter=where, batch_size=batch_rows)


def list_versions(store: str, name: str) -> dict[int, datetime]:
    """List a table's versions that are still there, ascending, with the time of each one's commit."""
    found = lance.dataset(current(store, name).uri).versions()
    # Lance tells local time without saying so.
    times: dict[int, Any] = {v["version"]: v["timestamp"] for v in found}
    return {version: times[version].astimezone(UTC) for version in sorted(times)}


def list_tags(store: str, name: str) -> dict[str, tuple[int, datetime]]:
    """List a table's tags: the version that each protects against clean-up, and when it was last set."""
    tags = lance.dataset(current(store, name).uri).tags.list()
    never = datetime.min.replace(tzinfo=UTC)
    return {tag: (facts["version"], facts["updated_at"] or facts["created_at"] or never) for tag, facts in tags.items()}


def snapshot_tag(name: str) -> str:
    """Name the tag that protects the versions of a snapshot."""
    return f"snapshot-{name}"


def untag(store: str, name: str, tag: str) -> None:
    """Take a tag off a table; nothing happens where it is gone."""
    dataset = lance.dataset(current(store, name).uri)
    if tag in dataset.tags.list():
        dataset.tags.delete(tag)


def delete_as_read(ref: TableRef, where: str) -> bool:
    """Delete the rows of a pinned version that meet a condition, unless somebody has written the same files since.

    Rows that others have added since are left even where they meet the condition, since what was read did not have
    them. Rows that others have written again fail the whole of it: it is not tried again by itself.

    Returns:
        Whether they are deleted.
    """
    try:
        _open(ref).delete(where, conflict_retries=0)
    except (OSError, CommitConflictError) as error:
        return _preempted(error, ref)
    return True


def _preempted(error: Exception, ref: TableRef) -> bool:
    """Give False for a commit that another writer's came before; any other failure is raised."""
    if not isinstance(error, CommitConflictError) and not any(m in str(error) for m in ("conflict", "concurrent")):
        raise StoreError(
            f"{ref.uri}: cannot be written ({error}). Free space or mend the permissions, and run `csip gc` again."
        ) from error
    _LOG.warning("%s: another process wrote at the same time; left for the next `csip gc`.", ref.uri)
    return False


def _compaction(ref: TableRef, leave: Iterable[int]) -> tuple[lance.LanceDataset, CompactionOptions]:
    whole = extent(ref)
    each = whole.data_bytes // max(whole.rows, 1)
    rows = max(1, min(_FRAGMENT_ROWS, _FRAGMENT_BYTES // max(each, 1)))
    return _open(ref), {"target_rows_per_fragment": rows, "excluded_fragment_ids": sorted(leave)}


def plan_compaction(ref: TableRef, leave: Iterable[int]) -> list[int]:
    """List the fragments that `compact` would write anew."""
    dataset, options = _compaction(ref, leave)
    return sorted(f.id for task in Compaction.plan(dataset, options).tasks for f in task.fragments)


def compact(ref: TableRef, leave: Iterable[int]) -> bool:
    """Merge small neighbouring fragments of a pinned version, and leave deleted rows behind, in one commit.

    The old files stay until the versions that name them are cleaned up. Rows that others have added since stay as they
    are; where others have written the same fragments since, nothing is changed.

    Args:
        ref: the version; the newest.
        leave: ids of fragments not to touch.

    Returns:
        Whether it was committed.
    """
    dataset, options = _compaction(ref, leave)
    try:
        done = [task.execute(dataset) for task in Compaction.plan(dataset, options).tasks]
        if done:
            Compaction.commit(dataset, done, options)
    except (OSError, CommitConflictError) as error:
        return _preempted(error, ref)
    return True


def clean_up(store: str, name: str, versions: Iterable[int], *, dry_run: bool) -> tuple[int, int, int]:
    """Remove versions of a table and the files that only they name; the newest and tagged ones are always left.

    Files that no version names, such as those of a writer that was killed, go too, once Lance takes them for lost:
    when they are 7 days old.

    Args:
        store: the store's folder.
        name: the table's.
        versions: to remove.
        dry_run: only tell what would be removed.

    Returns:
        How many versions, files (manifests not among them) and bytes.
    """
    dataset = lance.dataset(current(store, name).uri)
    # No table has a version 0; without any number, Lance takes its own rule of which versions are old.
    asked: dict[str, Any] = {"versions": sorted(versions) or [0], "error_if_tagged_old_versions": False}
    try:
        stats = (
            dataset.explain_cleanup_old_versions(**asked).stats if dry_run else dataset.cleanup_old_versions(**asked)
        )
    except OSError as error:
        raise StoreError(
            f"{dataset.uri}: old versions cannot be cleaned up ({error}). Mend the permissions and run it again; "
            "published versions are as they were."
        ) from error
    files = stats.data_files_removed + stats.deletion_files_removed + stats.index_files_removed
    return stats.old_versions, files + stats.transaction_files_removed, stats.bytes_removed
