"""MATLAB files as data sets bring them: any number type, and damage."""

import h5py
import numpy as np
import pytest
import scipy.io

from csip.errors import SourceError
from csip.ingest.benchmarks.checking import Findings
from csip.ingest.benchmarks.matlab import read_matlab, whole_numbers


def test_variables_are_read_by_name(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"one": np.array([[1, 2]], np.uint16), "two": np.zeros((3, 4), np.int32)})
    found = read_matlab(tmp_path / "a.mat", Findings("here"))
    assert {name: (array.shape, array.dtype.name) for name, array in found.items()} == {
        "one": ((1, 2), "uint16"),
        "two": ((3, 4), "int32"),
    }


@pytest.mark.parametrize("header", [0, 512], ids=["saved by others", "saved by MATLAB"])
def test_matrices_of_version_7_3_have_the_shape_that_matlab_shows(tmp_path, header):
    shown = np.array([[1.0, 2, 3], [4, 5, 6]])
    with h5py.File(tmp_path / "a.mat", "w", userblock_size=header) as file:
        file["one"] = shown.T
        file.create_group("#refs#")
    found = read_matlab(tmp_path / "a.mat", Findings("here"))
    assert {name: array.tolist() for name, array in found.items()} == {"one": shown.tolist()}


def test_damaged_files_of_version_7_3_become_findings(tmp_path):
    with h5py.File(tmp_path / "whole.mat", "w", userblock_size=512) as file:
        file.create_dataset("one", data=np.arange(1000.0), compression="gzip")
    whole = (tmp_path / "whole.mat").read_bytes()
    damaged = (whole[:520], whole[:700], whole[:-200], whole[:-400] + bytes(100) + whole[-300:])
    for number, content in enumerate(damaged):
        (tmp_path / f"{number}.mat").write_bytes(content)
    findings = Findings("here")
    assert [read_matlab(tmp_path / f"{number}.mat", findings) for number in range(len(damaged))] == [None] * 4
    with pytest.raises(SourceError, match=r"\(4 index files that cannot be read\)"):
        findings.refuse("Get them again.")


def test_a_missing_file_and_every_damaged_one_become_findings(tmp_path):
    scipy.io.savemat(tmp_path / "whole.mat", {"one": np.arange(4)}, do_compression=True)
    whole = (tmp_path / "whole.mat").read_bytes()
    # Cut in the header, in the tag behind it, in the data; another header; bytes changed in the compressed data.
    damaged = (whole[:50], whole[:130], whole[:-5], b"x" * 200, whole[:150] + bytes(8) + whole[158:], b"")
    for number, content in enumerate(damaged):
        (tmp_path / f"{number}.mat").write_bytes(content)
    findings = Findings("here")
    assert [read_matlab(tmp_path / f"{number}.mat", findings) for number in range(len(damaged) + 1)] == [None] * 7
    with pytest.raises(SourceError, match=r"\(6 index files that cannot be read, 1 missing index files\)"):
        findings.refuse("Get them again.")


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.float64])
def test_whole_numbers_of_any_type_can_be_calculated_with(kind):
    numbers = whole_numbers(np.array([0, 200], kind))
    assert (numbers.dtype, (numbers - 1).tolist()) == (np.int64, [-1, 199])


@pytest.mark.parametrize("array", [np.array([0.5]), np.array([np.nan]), np.array([np.inf]), np.array(["1"])])
def test_other_things_are_no_whole_numbers(array):
    assert whole_numbers(array) is None
