"""Distances with their ids in a file (.npz), so that any model's ranking can be scored here, and ours anywhere.

| key                  | shape, type              | what                                                             |
|----------------------|--------------------------|------------------------------------------------------------------|
| distance             | (Q, G) float16, 32 or 64 | small is alike; infinite is allowed, NaN is not                  |
| query_pid            | (Q,) whole numbers       | person, 0 or more                                                |
| query_camid          | (Q,) whole numbers       | camera                                                           |
| gallery_pid          | (G,) whole numbers       | person, 0 or more; one that no query has is a distractor         |
| gallery_camid        | (G,) whole numbers       | camera                                                           |

and, where they are known:

| key                  | shape, type              | what                                                             |
|----------------------|--------------------------|------------------------------------------------------------------|
| own                  | (Q,) whole numbers       | column of the query itself, which is taken out of its list; -1   |
|                      |                          | where it is not in the gallery, as everywhere without this key   |
| query_length         | (Q,) whole numbers       | frames of the query, for the breakdown by length                 |
| exclude_same_camera  | () bool                  | items of the query's own person and camera are taken out of its  |
|                      |                          | list; True without this key, as benchmarks of several cameras do |
| described            | () str                   | the protocol in words                                            |
| encoder              | () str                   | what made the distances                                          |

Anyone can write one::

    import numpy as np
    np.savez("mine.npz", distance=distance, query_pid=query_pid, query_camid=query_camid,
             gallery_pid=gallery_pid, gallery_camid=gallery_camid)

Shapes: Q queries, G gallery items.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from csip.errors import CsipError, SourceError
from csip.types import IntArray

_IDS = ("query_pid", "query_camid", "gallery_pid", "gallery_camid")
_NEEDED = ("distance", *_IDS)
_MAY_BE = ("own", "query_length", "exclude_same_camera", "described", "encoder")
_FLOATS = (np.float16, np.float32, np.float64)
_SEE = "The keys are listed in csip/evaluation/matrix.py."


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Matrix:
    """A distance matrix and all that its scores depend on; the fields are the keys of the file.

    Attributes:
        distance: (Q, G) float16, float32 or float64; kept as it is, since fewer digits could make ties.
        query_pid: (Q,) int64, 0 or more.
        query_camid: (Q,) int64.
        gallery_pid: (G,) int64, 0 or more.
        gallery_camid: (G,) int64.
        own: (Q,) int64, column of the query itself in the gallery, or -1.
        query_length: (Q,) int64 frames of each query, or None where nobody knows.
        exclude_same_camera: as in `csip.evaluation.metrics.score_queries`.
        described: the protocol in words.
        encoder: what made the distances.
    """

    distance: npt.NDArray[np.floating]
    query_pid: IntArray
    query_camid: IntArray
    gallery_pid: IntArray
    gallery_camid: IntArray
    own: IntArray
    query_length: IntArray | None = None
    exclude_same_camera: bool = True
    described: str = ""
    encoder: str = ""

    def __post_init__(self) -> None:
        if self.distance.ndim != 2 or self.distance.dtype not in _FLOATS:
            raise ValueError(
                f"distance: got {self.distance.dtype} of shape {self.distance.shape}, expected float16, float32 or "
                "float64 of shape (Q, G)."
            )
        q, g = self.distance.shape
        for name in (*_IDS, "own", "query_length"):
            array = getattr(self, name)
            length = g if name.startswith("gallery") else q
            if array is not None and (array.shape != (length,) or array.dtype != np.int64):
                raise ValueError(
                    f"{name}: got {array.dtype} of shape {array.shape}, expected whole numbers of shape ({length},) "
                    f"for distances of shape ({q}, {g})."
                )
        self._check_values()

    def _check_values(self) -> None:
        missing = int(np.isnan(self.distance).sum())
        if missing:
            raise ValueError(f"distance: {missing} of {self.distance.size} are NaN, expected numbers.")
        for name in ("query_pid", "gallery_pid"):
            pid = getattr(self, name)
            if (pid < 0).any():
                raise ValueError(f"{name}: got {pid.min()}, expected 0 or more; leave junk and its distances out.")
        if self.query_length is not None and (self.query_length < 1).any():
            raise ValueError(f"query_length: got {self.query_length.min()} frames, expected 1 or more.")
        if (self.own < -1).any() or (self.own >= len(self.gallery_pid)).any():
            raise ValueError(
                f"own: got {self.own.min()} to {self.own.max()}, expected columns of the gallery, 0 to "
                f"{len(self.gallery_pid) - 1}, or -1."
            )
        inside = np.flatnonzero(self.own >= 0)
        there = self.own[inside]
        other = (self.gallery_pid[there] != self.query_pid[inside]) | (
            self.gallery_camid[there] != self.query_camid[inside]
        )
        if other.any():
            i = int(inside[np.argmax(other)])
            raise ValueError(
                f"own: got column {self.own[i]} for query {i}, which is of another person or camera; expected the "
                "query itself, counted from 0."
            )

    def own_mask(self, queries: slice = slice(None)) -> npt.NDArray[np.bool_]:
        """Give (b, G) for some queries, True where the gallery item is the query itself."""
        return np.equal.outer(self.own[queries], np.arange(len(self.gallery_pid)))


def write_matrix(path: str | Path, matrix: Matrix) -> None:
    """Write a file as the module describes; the same matrix gives the same bytes.

    A file of that name is replaced when the new one is whole.

    Raises:
        CsipError: the folder or the file cannot be written.
    """
    path = Path(path)
    values: dict[str, Any] = {field.name: getattr(matrix, field.name) for field in fields(matrix)}
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in values.items() if value is not None}
    half = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with half.open("wb") as file:
            np.savez(file, **arrays)
        half.replace(path)
    except OSError as error:
        raise CsipError(
            f"{path}: {matrix.distance.nbytes} bytes of distances could not be written ({error}). Free space, mend the "
            "permissions, or name another file."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # the folder itself may be what is wrong
            half.unlink(missing_ok=True)


def read_matrix(path: str | Path) -> Matrix:
    """Read a file as the module describes, and check all of it.

    Raises:
        SourceError: there is no such file, it is no .npz archive, a key is missing or unknown, or what a key holds is
            not as described.
    """
    arrays = _load(Path(path))
    missing = [name for name in _NEEDED if name not in arrays]
    unknown = sorted(set(arrays) - {*_NEEDED, *_MAY_BE})
    if missing or unknown:
        # An unknown key may be a known one with a slip in it, and without it the scores would be others.
        raise SourceError(
            f"{path}: found the keys {', '.join(sorted(arrays)) or '(none)'}, expected {', '.join(_NEEDED)} and "
            f"perhaps {', '.join(_MAY_BE)}; missing: {', '.join(missing) or 'none'}, "
            f"unknown: {', '.join(unknown) or 'none'}. {_SEE}"
        )
    try:
        return _build(arrays)
    except ValueError as error:
        raise SourceError(f"{path}: {error} {_SEE}") from error


def _load(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    """Read all arrays of an archive, never an object that could run code."""
    expected = "expected an .npz archive of plain arrays, as np.savez writes it"
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise SourceError(f"{path}: found a single array, {expected}. {_SEE}")
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise SourceError(f"{path}: cannot be read ({error}), {expected}. {_SEE}") from error


def _build(arrays: Mapping[str, npt.NDArray[np.generic]]) -> Matrix:
    given = dict(arrays)
    given.setdefault("own", np.full(given["query_pid"].shape, -1, dtype=np.int64))
    whole = {name: _whole(name, given[name]) for name in (*_IDS, "own", "query_length") if name in given}
    return Matrix(
        distance=given["distance"],  # type: ignore[arg-type]  # Matrix checks its type
        **whole,
        exclude_same_camera=bool(_single("exclude_same_camera", given, np.bool_, True)),
        described=str(_single("described", given, np.str_, "")),
        encoder=str(_single("encoder", given, np.str_, "")),
    )


def _whole(name: str, array: npt.NDArray[np.generic]) -> IntArray:
    if not np.issubdtype(array.dtype, np.integer) or not np.can_cast(array.dtype, np.int64):
        raise ValueError(f"{name}: got {array.dtype}, expected whole numbers of at most 64 bits with a sign.")
    return array.astype(np.int64)


def _single(
    name: str, given: Mapping[str, npt.NDArray[np.generic]], kind: type[np.generic], default: bool | str
) -> object:
    """Give what a key of shape () holds."""
    if name not in given:
        return default
    array = given[name]
    if array.shape != () or not np.issubdtype(array.dtype, kind):
        raise ValueError(f"{name}: got {array.dtype} of shape {array.shape}, expected a single {kind.__name__}.")
    return array[()]
