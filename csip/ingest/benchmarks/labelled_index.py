"""Index files that users write: CSV or Parquet, read by column and checked row by row.

Shapes: N rows.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from csip.ingest.benchmarks.checking import Findings
from csip.types import IntArray

SUFFIXES: Final = (".csv", ".parquet")

MEND: Final = "Mend these rows, then check again: what they name is looked at next."
"""Advice where rows are wrong before anything that they name was looked for."""

# Eighteen digits fit int64.
_WHOLE = r"^-?[0-9]{1,18}$"
_DECIMAL = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$"


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """The columns of an index file, as they stand there.

    Attributes:
        path: of the file.
        columns: N rows each, by name; cells are trimmed where they are text.
        lines: (N,) where each row stands: the line of a CSV file, the row of a Parquet file, from 1.
    """

    path: Path
    columns: dict[str, pa.ChunkedArray]
    lines: IntArray

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.lines)

    def where(self, row: int) -> str:
        """Say where a row stands, by its position from 0."""
        unit = "line" if self.path.suffix.lower() == ".csv" else "row"
        return f"{self.path.name} {unit} {self.lines[row]}"

    def texts(self, name: str) -> tuple[IntArray, list[str]]:
        """Read a column of names: each row's position (N,) in the list of different names that follows."""
        encoded = pc.dictionary_encode(self.columns[name].combine_chunks())
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.combine_chunks()
        return np.asarray(encoded.indices, np.int64), encoded.dictionary.to_pylist()

    def whole(self, name: str, findings: Findings) -> IntArray:
        """Read a column of whole numbers, (N,); 0 in rows that go to the findings."""
        fits = self._fits(name, _WHOLE, "a whole number", findings)
        return np.asarray(pc.cast(pc.if_else(fits, self.columns[name], "0"), pa.int64()), np.int64)

    def numbers(self, name: str, findings: Findings) -> npt.NDArray[np.float64]:
        """Read a column of finite numbers, (N,); 0 in rows that go to the findings."""
        fits = self._fits(name, _DECIMAL, "a number", findings)
        return np.asarray(pc.cast(pc.if_else(fits, self.columns[name], "0"), pa.float64()), np.float64)

    def _fits(self, name: str, pattern: str, wanted: str, findings: Findings) -> pa.ChunkedArray:
        column = self.columns[name]
        fits = pc.match_substring_regex(column, pattern)
        for row in np.flatnonzero(~np.asarray(fits)).tolist():
            found = column[row].as_py()
            findings.add("cells of another kind", f"{self.where(row)}: found {name} {found!r:.60}, expected {wanted}")
        return fits


def read_index(path: Path, wanted: Sequence[str], optional: Sequence[str], findings: Findings) -> Index:
    """Read an index file's columns; other columns may stand beside them and are not read.

    Args:
        path: of a file that ends in one of `SUFFIXES`.
        wanted: names of the columns that must be there.
        optional: names of those that may be.
        findings: where everything that is wrong goes.

    Raises:
        SourceError: the file cannot be read, lacks columns, or has no rows.
    """
    names = tuple(wanted) + tuple(optional)
    reader = _read_csv if path.suffix.lower() == ".csv" else _read_parquet
    try:
        columns, lines = reader(path, wanted, names, findings)
    # Damaged files make pyarrow raise any of these; csv.Error comes from the first line.
    except (OSError, ValueError, pa.ArrowException, csv.Error) as error:
        findings.add("index files that cannot be read", f"{path}: {type(error).__name__}: {error}")
        columns, lines = {}, np.zeros(0, np.int64)
    if columns and not len(lines):
        findings.add("index files without rows", f"{path}: found columns {', '.join(columns)} and nothing below them")
    if not len(lines):
        findings.refuse(f"Write {path.name} anew: UTF-8 text with commas and one header line, or Parquet.")
    return Index(path, columns, lines)


def _check_columns(path: Path, found: Sequence[str], wanted: Sequence[str], findings: Findings) -> bool:
    missing = [name for name in wanted if name not in found]
    if missing:
        told = f"found {', '.join(found)[:200] or 'none'}, expected {', '.join(wanted)}"
        findings.add("index files without all columns", f"{path}: {told}")
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        findings.add("columns that stand there twice", f"{path}: found {', '.join(twice)} more than once")
    return not missing and not twice


def _read_csv(
    path: Path, wanted: Sequence[str], names: Sequence[str], findings: Findings
) -> tuple[dict[str, pa.ChunkedArray], IntArray]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        header = next(csv.reader(file), [])
    if not _check_columns(path, header, wanted, findings):
        return {}, np.zeros(0, np.int64)
    kept = [name for name in header if name in names]
    broken: list[int] = []

    def skip(row: pa.csv.InvalidRow) -> str:
        broken.append(row.number)
        told = f"found {row.actual_columns} cells, expected {row.expected_columns} as in the header"
        findings.add("lines that cannot be read", f"{path.name} line {row.number}: {told}")
        return "skip"

    table = pyarrow.csv.read_csv(
        path,
        # Lines are numbered only where one thread reads them.
        read_options=pyarrow.csv.ReadOptions(use_threads=False),
        parse_options=pyarrow.csv.ParseOptions(ignore_empty_lines=False, invalid_row_handler=skip),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=kept, column_types={name: pa.string() for name in kept}, strings_can_be_null=False
        ),
    )
    lines = np.setdiff1d(np.arange(2, 2 + len(table) + len(broken)), broken)
    columns = {name: pc.utf8_trim_whitespace(table[name]) for name in kept}
    filled = np.zeros(len(table), np.bool_)
    for column in columns.values():
        filled |= np.asarray(pc.not_equal(column, ""))
    # An empty line says nothing, and nothing is lost with it.
    return {name: column.filter(pa.array(filled)) for name, column in columns.items()}, lines[filled]


def _read_parquet(
    path: Path, wanted: Sequence[str], names: Sequence[str], findings: Findings
) -> tuple[dict[str, pa.ChunkedArray], IntArray]:
    # The file is somebody else's: nothing but these columns is read, and nothing is inferred from its path.
    with path.open("rb") as file:
        found = pq.read_schema(file).names
    if not _check_columns(path, found, wanted, findings):
        return {}, np.zeros(0, np.int64)
    kept = [name for name in found if name in names]
    with path.open("rb") as file:
        table = pq.read_table(file, columns=kept, partitioning=None)
    table.validate(full=True)  # Parquet does not check that text is UTF-8
    columns = {}
    for name in kept:
        kind = table.schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not any(test(kind) for test in (pa.types.is_integer, pa.types.is_floating, _is_string)):
            findings.add("columns of another kind", f"{path}: found {name} as {kind}, expected text or numbers")
            return {}, np.zeros(0, np.int64)
        columns[name] = pc.utf8_trim_whitespace(pc.fill_null(pc.cast(table[name], pa.string()), ""))
    return columns, np.arange(1, len(table) + 1)


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def group_rows(frame: IntArray, *keys: IntArray) -> list[IntArray]:
    """Gather the rows (N,) that agree in all keys, each group by ascending frame."""
    order = np.lexsort((frame, *keys[::-1])).astype(np.int64)
    changes = np.any([np.diff(key[order]) != 0 for key in keys], axis=0)
    return np.split(order, np.flatnonzero(changes) + 1)


def check_frames(index: Index, rows: IntArray, frame: IntArray, findings: Findings) -> None:
    """Check that no two of a tracklet's rows, by ascending frame, are of the same frame."""
    for i in np.flatnonzero(np.diff(frame[rows]) == 0).tolist():
        found = f"found frame {frame[rows[i]]} as {index.where(int(rows[i]))}"
        findings.add("frames that a tracklet has twice", f"{index.where(int(rows[i + 1]))}: {found}")
