"""MATLAB files, in which the authors of data sets keep their lists: up to version 7.2, and 7.3, which is HDF5."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import numpy.typing as npt
import scipy.io
from scipy.io.matlab import MatReadError

from csip.ingest.benchmarks.checking import Findings
from csip.types import IntArray

_HDF5: Final = b"\x89HDF\r\n\x1a\n"
_HDF5_AT: Final = (0, 512)  # MATLAB puts a header of its own before it; what others save again has none


def read_matlab(path: Path, findings: Findings) -> dict[str, npt.NDArray[Any]] | None:
    """Read the variables of a file, by name; None where the file is missing or damaged, which goes to the findings.

    Matrices have the shape that MATLAB shows, whatever the version of the file.
    """
    try:
        return _read_variables(path.read_bytes())
    except FileNotFoundError:
        findings.add("missing index files", str(path))
    # All of these are what scipy and h5py make of damaged bytes.
    except (OSError, ValueError, TypeError, LookupError, RuntimeError, zlib.error, MatReadError) as error:
        findings.add("index files that cannot be read", f"{path}: {type(error).__name__}: {error}")
    return None


def _read_variables(content: bytes) -> dict[str, npt.NDArray[Any]]:
    if not any(content.startswith(_HDF5, at) for at in _HDF5_AT):
        found = scipy.io.loadmat(io.BytesIO(content))
        return {name: np.asarray(array) for name, array in found.items() if not name.startswith("__")}
    with h5py.File(io.BytesIO(content), "r") as file:
        # MATLAB writes column after column, HDF5 reads row after row: every matrix arrives transposed.
        return {name: np.asarray(one[()]).T for name, one in file.items() if isinstance(one, h5py.Dataset)}


def whole_numbers(array: npt.NDArray[Any]) -> IntArray | None:
    """Give an array as int64, whatever type MATLAB saved it as; None where it holds other things than whole numbers.

    MATLAB saves the least type that holds the numbers: calculate with int64 only, since in uint16 0 - 1 is 65535.
    """
    if array.dtype.kind == "f" and np.isfinite(array).all() and (array == np.round(array)).all():
        return array.astype(np.int64)
    return array.astype(np.int64) if array.dtype.kind in "iu" else None
