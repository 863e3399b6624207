"""Are numbers of rows such as can be? Nothing here knows where they come from.

Shapes: N rows, J joints.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

BoolArray = npt.NDArray[np.bool_]


def odd_boxes(column: pa.Array) -> BoolArray:
    """Tell of each of N boxes x1 y1 x2 y2 whether it is not finite, or ends before it begins: (N,)."""
    box = np.asarray(column.flatten(), np.float32).reshape(-1, 4)
    inverted = (box[:, 2] < box[:, 0]) | (box[:, 3] < box[:, 1])
    return np.asarray(inverted | ~np.isfinite(box).all(axis=1))


def odd_keypoints(column: pa.Array) -> BoolArray:
    """Tell of each of N rows of (J, 3) keypoints, J its own, whether any number is not finite: (N,)."""
    flat = np.asarray(column.flatten().flatten(), np.float32)
    return _any_of_row(~np.isfinite(flat), 3 * _lengths(column))


def odd_vectors(column: pa.Array) -> BoolArray:
    """Tell of each of N vectors whether any number is not finite: (N,)."""
    return _any_of_row(~np.isfinite(np.asarray(column.flatten(), np.float32)), _lengths(column))


def lengths_of_vectors(column: pa.Array) -> npt.NDArray[np.float64]:
    """Give the Euclidean length of each of N vectors: (N,)."""
    flat = np.asarray(column.flatten(), np.float64)
    return np.sqrt(np.bincount(_rows(_lengths(column)), flat * flat, len(column)))


def _lengths(column: pa.Array) -> npt.NDArray[np.int64]:
    return np.asarray(pc.list_value_length(column), np.int64)


def _rows(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.repeat(np.arange(len(lengths)), lengths)


def _any_of_row(flags: BoolArray, lengths: npt.NDArray[np.int64]) -> BoolArray:
    out = np.zeros(len(lengths), np.bool_)
    out[_rows(lengths)[flags]] = True
    return out
