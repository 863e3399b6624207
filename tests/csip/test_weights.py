"""Where weights lie, and what names them."""

import hashlib
import shutil
import subprocess

import pytest

from csip.errors import WeightsError
from csip.weights import digest_weights, whole_weights


def write(folder, **files):
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def test_a_files_digest_is_its_sha256(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"weights")
    assert digest_weights(tmp_path / "a.pt") == hashlib.sha256(b"weights").hexdigest()


def test_a_folders_digest_is_that_of_sha256sums_list(tmp_path):
    if shutil.which("sha256sum") is None:
        pytest.skip("needs sha256sum")
    folder = write(tmp_path / "m_openvino_model", m_xml="<net/>", m_bin="numbers", metadata_yaml="task: pose")
    command = "LC_ALL=C sha256sum m.bin m.xml metadata.yaml | sha256sum"
    listed = subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, text=True, check=True)
    assert digest_weights(folder) == listed.stdout.split()[0]


def test_every_file_of_a_folder_and_its_name_count(tmp_path):
    one = write(tmp_path / "1/m_openvino_model", m_xml="<net/>", m_bin="numbers")
    same = write(tmp_path / "2/other_openvino_model", m_bin="numbers", m_xml="<net/>")
    other = write(tmp_path / "3/m_openvino_model", m_xml="<net/>", m_bin="numbers!")
    named = write(tmp_path / "4/m_openvino_model", n_xml="<net/>", m_bin="numbers")
    more = write(tmp_path / "5/m_openvino_model", m_xml="<net/>", m_bin="numbers", x_yaml="")
    assert digest_weights(one) == digest_weights(same) == digest_weights(one / "m.xml")
    assert len({digest_weights(folder) for folder in (one, other, named, more)}) == 4


def test_an_xml_stands_for_the_folder_that_ultralytics_exported(tmp_path):
    folder = write(tmp_path / "m_openvino_model", m_xml="<net/>")
    assert whole_weights(folder / "m.xml") == folder
    assert whole_weights(folder) == folder
    with pytest.raises(
        WeightsError, match=r"found an \.xml in the folder .*, expected one in a folder \*_openvino_model"
    ):
        digest_weights(tmp_path / "m.xml")
