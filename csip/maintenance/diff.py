"""What tells two snapshots of a store apart, without looking at a picture.

Rows are compared by key and by the columns of `COMPARED`, 16 bytes a row; a crop's picture and a skeleton's keypoints
are left out. Of each pinned table only the snapshots' own rows count.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from csip import tables
from csip.maintenance.keys import Numbers, UIntArray, brief, join, pack
from csip.maintenance.snapshots import extractions, generations, published
from csip.tables import RunRecord, quote, table_uri
from csip.types import TableRef
from storage_schemas import TABLES

MOST_NAMES = 5

_KEYS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "videos": (("video_sha",), ()),
    "detections": (("video_sha", "detect_digest"), ("frame_index", "n")),
    "tracklets": (("tracklet_id",), ()),
    "crops": (("tracklet_id",), ("frame_index",)),
    "skeletons": (("tracklet_id", "extractor_digest"), ("frame_index",)),
    "splits": (("protocol", "split", "tracklet_id"), ("first_frame",)),
}
_LEFT_OUT = {"crops": {"image"}, "skeletons": {"keypoints"}, "detections": {"keypoints"}, "splits": {"dataset"}}
COMPARED = {
    table: tuple(n for n in TABLES[table].names if n not in {*names, *counts, *_LEFT_OUT.get(table, ())})
    for table, (names, counts) in _KEYS.items()
}
"""Table -> the columns that make a row changed. The name of the data set is not among those of `splits`."""


_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: multiplying by it spreads bits


@dataclass(frozen=True, slots=True)
class TableDiff:
    """How a table's rows differ: how many, and the first `MOST_NAMES` of them by name, sorted.

    Attributes:
        compared: the columns, beside the key.
        rows: of either snapshot.
        only_a: rows that the first one has alone.
        only_b: rows that the second one has alone.
        changed: rows of one key with another content.
        names: "only_a", "only_b", "changed" -> keys.
    """

    compared: tuple[str, ...]
    rows: tuple[int, int]
    only_a: int
    only_b: int
    changed: int
    names: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Diff:
    """What tells two snapshots apart.

    Attributes:
        settings: name -> value in either one, where they differ; null where one has no such setting.
        counts: the same of what they were published with.
        roles: "protocol, split, role" -> parts of either one, where they differ.
        tables: table -> rows.
    """

    settings: Mapping[str, tuple[Any, Any]]
    counts: Mapping[str, tuple[Any, Any]]
    roles: Mapping[str, tuple[int, int]]
    tables: Mapping[str, TableDiff]


def diff(store: str, a: str, b: str) -> Diff:
    """Compare two snapshots.

    Raises:
        StoreError: there is no such store or snapshot, or a pinned version of it cannot be read.
    """
    rows = published(store, (a, b))
    runs = tables.find_runs(store, "true")
    return diff_rows(store, rows[a], rows[b], runs)


def diff_rows(store: str, a: Mapping[str, Any], b: Mapping[str, Any], runs: Sequence[RunRecord]) -> Diff:
    """Compare two rows of `snapshots`, decoded, whether they are published or not; raises as `diff` does."""
    both = [_Side(store, row, runs) for row in (a, b)]
    return Diff(
        settings=_differing(*map(_flat, _comparable(a["config"], b["config"]))),
        counts=_differing(*(_flat(side.row["counts"]) for side in both)),
        roles={name: (x or 0, y or 0) for name, (x, y) in _differing(*(side.roles() for side in both)).items()},
        tables={name: _diff_table(name, *both) for name in _KEYS if any(name in s.row["tables"] for s in both)},
    )


def _comparable(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Leave the digests of the extraction out of two configs where one was published before they were recorded."""
    both = "digests" in a and "digests" in b
    return [{name: value for name, value in one.items() if name != "digests" or both} for one in (a, b)]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {name: value}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{name}.{key}" if name else key).items()}


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (a.get(name), b.get(name)) for name in sorted({*a, *b}) if a.get(name) != b.get(name)}


class _Side:
    """One of the two snapshots, and which rows are its own."""

    def __init__(self, store: str, row: Mapping[str, Any], runs: Sequence[RunRecord]) -> None:
        self.row, self._store = row, store
        self._videos = {*row["videos"]}
        made = extractions(row, runs)
        self._detections = {(sha, run.outputs["detect_digest"]) for sha, run in made.items()}
        where = f"dataset = {quote(row['name'])}"
        self.parts = list(self.stream("splits", ("protocol", "split", "role", "tracklet_id"), where))
        in_splits = {name for part in self.parts for name in part.column("tracklet_id").to_pylist()}
        own, columns = generations(row, runs), ("tracklet_id", "video_sha", "track_digest")
        self._tracklets = pa.array(
            [
                name
                for batch in self.stream("tracklets", columns)
                for name, sha, digest in zip(*(batch.column(one).to_pylist() for one in columns), strict=True)
                if name in in_splits or (digest in own and sha in {"", *self._videos})
            ],
            pa.string(),
        )

    def stream(self, table: str, columns: Sequence[str], where: str | None = None) -> Iterator[pa.RecordBatch]:
        if table in self.row["tables"]:
            yield from tables.stream(TableRef(table_uri(self._store, table), self.row["tables"][table]), columns, where)

    def own(self, table: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Read a table's rows that are the snapshot's own."""
        if table == "splits":
            yield from self.stream(table, columns, f"dataset = {quote(self.row['name'])}")
            return
        for batch in self.stream(table, columns):
            if table == "videos":
                yield batch.filter(pc.is_in(batch.column("video_sha"), value_set=pa.array(self._videos, pa.string())))
            elif table == "detections":
                pairs = zip(*(batch.column(k).to_pylist() for k in ("video_sha", "detect_digest")), strict=True)
                yield batch.filter(pa.array([pair in self._detections for pair in pairs], pa.bool_()))
            else:
                yield batch.filter(pc.is_in(batch.column("tracklet_id"), value_set=self._tracklets))

    def roles(self) -> dict[str, int]:
        """Count the parts of each protocol, split and role."""
        counts: dict[str, int] = {}
        for part in self.parts:
            for protocol, split, role in zip(*(part.column(i).to_pylist() for i in range(3)), strict=True):
                name = f"{protocol}, {split}, {role}"
                counts[name] = counts.get(name, 0) + 1
        return counts


def _diff_table(table: str, a: _Side, b: _Side) -> TableDiff:
    names, counts = _KEYS[table]
    numbers = Numbers()
    columns = [*names, *counts, *COMPARED[table]]
    (keys_a, rows_a), (keys_b, rows_b) = (_digest_rows(side, table, columns, numbers) for side in (a, b))
    _, at_a, at_b = np.intersect1d(keys_a, keys_b, return_indices=True)
    parts = {
        "only_a": np.setdiff1d(keys_a, keys_b),
        "only_b": np.setdiff1d(keys_b, keys_a),
        "changed": keys_a[at_a][rows_a[at_a] != rows_b[at_b]],
    }
    told = {kind: _names(some, numbers, len(counts)) for kind, some in parts.items()}
    sizes = {kind: len(some) for kind, some in parts.items()}
    return TableDiff(COMPARED[table], (len(keys_a), len(keys_b)), **sizes, names=told)


def _digest_rows(side: _Side, table: str, columns: Sequence[str], numbers: Numbers) -> tuple[UIntArray, UIntArray]:
    """Read keys (N,) and digests of the compared columns (N,) of a snapshot's own rows, sorted by key."""
    names, counts = _KEYS[table]
    keys, rows = [], []
    for batch in side.own(table, columns):
        keys.append(pack(numbers, batch, names, counts))
        rows.append(_digest(batch.select(list(COMPARED[table]))))
    key, row = join(keys), join(rows)
    order = np.argsort(key, kind="stable")
    return key[order], row[order]


def _digest(batch: pa.RecordBatch) -> UIntArray:
    """Digest each of N rows: (N,) uint64. Equal rows give equal digests in every batch."""
    out = np.zeros(len(batch), np.uint64)
    for column, name in zip(batch.columns, batch.schema.names, strict=True):
        out = out * _ODD + _numbers_of(column, nullable=batch.schema.field(name).nullable)
        out ^= out >> np.uint64(29)
    return out


def _numbers_of(column: pa.Array, *, nullable: bool) -> UIntArray:
    """Make a number of each value of a column: (N,) uint64."""
    if not nullable and (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        value = column.to_numpy(zero_copy_only=False)
        wide: UIntArray = value.astype(np.float64 if value.dtype.kind == "f" else np.int64).view(np.uint64)
        return wide
    if pa.types.is_fixed_size_list(column.type):
        flat = np.ascontiguousarray(column.flatten().to_numpy(zero_copy_only=False), np.float32)
        bits = flat.view(np.uint32).astype(np.uint64).reshape(len(column), column.type.list_size)
        out = np.zeros(len(column), np.uint64)
        for i in range(column.type.list_size):
            out = (out ^ bits[:, i]) * _ODD
        return out
    encoded = column.dictionary_encode(null_encoding="encode")
    digests = [hashlib.blake2b(repr(one).encode(), digest_size=8).digest() for one in encoded.dictionary.to_pylist()]
    known: npt.NDArray[np.uint64] = np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)
    return known[np.asarray(encoded.indices, np.int64)] if len(column) else np.zeros(0, np.uint64)


def _names(keys: UIntArray, numbers: Numbers, counts: int) -> tuple[str, ...]:
    """Name the first few keys, sorted by name and then by number."""
    bits = {0: 0, 1: 34, 2: 44}[counts]
    pairs = ((numbers.names[key >> bits], key & ((1 << bits) - 1)) for key in keys.tolist())
    out = []
    for name, rest in heapq.nsmallest(MOST_NAMES, pairs):
        frames = {0: [], 1: [rest], 2: [rest >> 10, rest & 1023]}[counts]
        out.append(" ".join([*map(brief, name), *map(str, frames)]))
    return tuple(out)
