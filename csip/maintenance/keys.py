"""Keys of a table's rows as numbers: 8 bytes a row, so that a table of years fits where its rows would not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from csip.errors import StoreError

UIntArray = npt.NDArray[np.uint64]

FRAME_BITS = 34
_SECOND_BITS = 10


class Numbers:
    """Numbers for names, in the order in which they come up.

    Attributes:
        names: number -> the strings that make the name.
    """

    def __init__(self) -> None:
        self.names: list[tuple[str, ...]] = []
        self._number: dict[tuple[str, ...], int] = {}

    def __len__(self) -> int:
        """Count the names."""
        return len(self.names)

    def of(self, columns: Sequence[pa.Array]) -> npt.NDArray[np.int64]:
        """Number N rows by the strings in `columns`, equal strings alike: (N,)."""
        encoded = [column.dictionary_encode() for column in columns]
        code = np.zeros(len(columns[0]), np.int64)
        for column in encoded:
            code = code * len(column.dictionary) + np.asarray(column.indices, np.int64)
        words = [column.dictionary.to_pylist() for column in encoded]
        distinct, inverse = np.unique(code, return_inverse=True)
        mine = np.empty(len(distinct), np.int64)
        for i, one in enumerate(distinct.tolist()):
            name: tuple[str, ...] = ()
            for some in reversed(words):
                one, at = divmod(one, len(some))
                name = (some[at], *name)
            if name not in self._number:
                self._number[name] = len(self.names)
                self.names.append(name)
            mine[i] = self._number[name]
        return mine[inverse]

    def find(self, *name: str) -> int:
        """Give a name's number, -1 where it has none."""
        return self._number.get(name, -1)


def pack(numbers: Numbers, batch: pa.RecordBatch, strings: Sequence[str], counts: Sequence[str] = ()) -> UIntArray:
    """Make one number of each row's key: (N,) uint64, in the order of (name's number, counts).

    Args:
        numbers: of the names.
        batch: the rows.
        strings: key columns that make the name.
        counts: up to two integer key columns, the first one a frame number.

    Raises:
        StoreError: a count is negative or too large to be one.
    """
    key = numbers.of([batch.column(name) for name in strings]).astype(np.uint64)
    for name, bits in zip(counts, (FRAME_BITS, _SECOND_BITS), strict=False):
        value = np.asarray(batch.column(name), np.int64)
        if len(value) and (value.min() < 0 or value.max() >= 1 << bits):
            wrong = value.min() if value.min() < 0 else value.max()
            raise StoreError(
                f"{name}: found {wrong}, expected 0 to {(1 << bits) - 1}. These rows are none of CSIP's; "
                "build the snapshot again."
            )
        key = (key << np.uint64(bits)) | value.astype(np.uint64)
    return key


def join(parts: Iterable[UIntArray]) -> UIntArray:
    """Put the keys of all batches together."""
    return np.concatenate([np.zeros(0, np.uint64), *parts])


def repeated(keys: UIntArray) -> UIntArray:
    """List the keys that sorted keys have more than once."""
    return np.unique(keys[1:][keys[1:] == keys[:-1]])


def split_frames(keys: UIntArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Take keys of a name and a frame apart again: (N,) numbers of the names, (N,) frames."""
    number = (keys >> np.uint64(FRAME_BITS)).astype(np.int64)
    return number, (keys & np.uint64((1 << FRAME_BITS) - 1)).astype(np.int64)


def split_pairs(keys: UIntArray) -> tuple[UIntArray, npt.NDArray[np.int64]]:
    """Take keys of a name, a frame and a number in it apart: (N,) keys of the names and frames, (N,) numbers."""
    return keys >> np.uint64(_SECOND_BITS), (keys & np.uint64((1 << _SECOND_BITS) - 1)).astype(np.int64)


def of_frames(number: npt.NDArray[np.int64], frame: npt.NDArray[np.int64]) -> UIntArray:
    """Make the keys that `split_frames` takes apart."""
    return (number.astype(np.uint64) << np.uint64(FRAME_BITS)) | frame.astype(np.uint64)


def brief(name: str) -> str:
    """Write a digest by its first letters, and anything else as it is."""
    return name[:12] if len(name) == 64 else name


def shorten(names: Sequence[str], most: int = 3) -> str:
    """Name the first few of many."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
