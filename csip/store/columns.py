"""Rows and columns as numpy has them, to and from Arrow."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from csip.errors import SchemaMismatchError
from storage_schemas import TABLES


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
