"""Files of crops and skeletons that are not what they should be: named in a message, never a traceback or a number."""

import io
import json
import re
import zlib

import numpy as np
import pytest
from PIL import Image

from csip.errors import SourceError
from csip.ingest.benchmarks.crops import CropFile, SidecarSkeletons, read_picture

JOINTS = np.arange(51.0).reshape(17, 3)


def read_sidecar(folder, content):
    path = folder / "one.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return SidecarSkeletons()([CropFile(folder / "one.jpg", 0, path)], [b""])


def with_first(value):
    joints = JOINTS.tolist()
    joints[0][0] = value
    return {"keypoints": joints}


def test_a_side_car_file_is_read_as_it_is_and_zeros_are_nobody(tmp_path):
    found = read_sidecar(tmp_path, {"keypoints": JOINTS.tolist(), "other": 1})
    assert found.keypoints[0].tolist() == JOINTS.tolist()
    assert (found.has_skeleton.tolist(), found.confidence) == ([True], 1.0)
    nobody = read_sidecar(tmp_path, {"keypoints": (0 * JOINTS).tolist()})
    assert (nobody.has_skeleton.tolist(), nobody.confidence) == ([False], 0.0)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"keypoints": JOINTS[:16].tolist()}, r"found an array of shape (16, 3), expected"),
        ({"keypoints": [JOINTS.tolist()]}, r"found an array of shape (1, 17, 3), expected"),
        (with_first(float("nan")), r"found numbers that are not finite in an array of shape (17, 3), expected"),
        # Finite until it is stored as float32.
        (with_first(1e39), r"found numbers that are not finite in an array of shape (17, 3), expected"),
        (with_first(10**400), r"found OverflowError"),
        (with_first([1]), r"found ValueError"),
        (with_first("x"), r"found ValueError"),
        ({"joints": JOINTS.tolist()}, r"found KeyError: 'keypoints'"),
        ([JOINTS.tolist()], r"found TypeError"),
        ("", r"found JSONDecodeError"),
        ("[" * 100_000, r"found RecursionError"),
    ],
)
def test_a_side_car_file_of_anything_else_is_refused(tmp_path, content, told):
    with pytest.raises(SourceError, match=rf"Skeleton \S+one.json: {re.escape(told)}.*17 x 3 finite numbers"):
        read_sidecar(tmp_path, content)


def png_chunk(kind, content):
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def test_a_picture_whose_header_pillow_gives_up_on_is_refused_with_its_name(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (4, 8)).save(file, "PNG")
    (tmp_path / "whole.png").write_bytes(file.getvalue())
    assert read_picture(tmp_path / "whole.png") == (file.getvalue(), (4, 8), "image/png")
    # A text of 2 MB behind the signature and the header, 33 bytes: Pillow raises a bare ValueError.
    text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b" " * 2_000_000))
    (tmp_path / "long.png").write_bytes(file.getvalue()[:33] + text + file.getvalue()[33:])
    with pytest.raises(SourceError, match=r"Picture \S+long.png: cannot be read \(Decompressed data too large"):
        read_picture(tmp_path / "long.png")


def test_a_file_that_holds_another_kind_of_picture_is_refused(tmp_path):
    Image.new("RGB", (4, 8)).save(tmp_path / "one.jpg", "GIF")
    with pytest.raises(SourceError, match=r"Picture \S+one.jpg: found image/gif, expected one of .bmp"):
        read_picture(tmp_path / "one.jpg")
