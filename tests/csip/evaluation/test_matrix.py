import dataclasses

import numpy as np
import pytest

from csip.errors import CsipError, SourceError
from csip.evaluation.matrix import Matrix, read_matrix, write_matrix
from csip.evaluation.metrics import score_ranking


def ints(*values):
    return np.array(values, dtype=np.int64)


NEEDED = {
    "distance": np.array([[0.0, 0.2, 0.1], [0.3, np.inf, 0.1]], dtype=np.float32),
    "query_pid": ints(7, 8),
    "query_camid": ints(0, 1),
    "gallery_pid": ints(7, 8, 7),
    "gallery_camid": ints(0, 0, 1),
}
WHOLE = {
    **NEEDED,
    "own": ints(0, -1),
    "query_length": ints(5, 900),
    "exclude_same_camera": False,
    "described": "ours: größer",
    "encoder": "trained",
}


def values(matrix):
    return {field.name: getattr(matrix, field.name) for field in dataclasses.fields(matrix)}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_written_is_read_again_with_all_its_digits(tmp_path, dtype):
    matrix = Matrix(**{**WHOLE, "distance": NEEDED["distance"].astype(dtype)})
    write_matrix(tmp_path / "deep" / "ours.npz", matrix)
    read = read_matrix(tmp_path / "deep" / "ours.npz")
    assert read.distance.dtype == dtype
    for name, value in values(matrix).items():
        np.testing.assert_array_equal(getattr(read, name), value)
    assert (read.exclude_same_camera, read.described, read.encoder) == (False, "ours: größer", "trained")


def test_three_lines_of_numpy_write_one(tmp_path):
    # As the module's docstring has it; ids of whatever whole numbers.
    small = {name: array.astype(np.int16) for name, array in NEEDED.items() if name != "distance"}
    np.savez(tmp_path / "mine.npz", distance=NEEDED["distance"], **small)
    read = read_matrix(tmp_path / "mine.npz")
    assert read.own.tolist() == [-1, -1]
    assert (read.query_length, read.exclude_same_camera, read.described, read.encoder) == (None, True, "", "")
    scores = score_ranking(read.distance, read.query_pid, read.query_camid, read.gallery_pid, read.gallery_camid)
    # Person 7's other camera comes before person 8; person 8 is at an infinite distance, behind both others.
    assert scores.mean_ap == pytest.approx((1 + 1 / 3) / 2)


def test_a_compressed_file_is_read_too(tmp_path):
    np.savez_compressed(tmp_path / "mine.npz", **NEEDED)
    np.testing.assert_array_equal(read_matrix(tmp_path / "mine.npz").distance, NEEDED["distance"])


def test_the_same_matrix_gives_the_same_bytes_and_nothing_is_left_beside_it(tmp_path):
    for name in ("a", "b"):
        write_matrix(tmp_path / name, Matrix(**WHOLE))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path):
    (tmp_path / "taken").write_bytes(b"")
    for target in (tmp_path / "taken" / "ours.npz", tmp_path / "taken" / "deeper" / "ours.npz", tmp_path):
        with pytest.raises(CsipError, match=r"24 bytes of distances could not be written \(.*name another file"):
            write_matrix(target, Matrix(**WHOLE))
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert not list(tmp_path.parent.glob(".*.part"))


def test_the_own_items_come_as_a_mask():
    matrix = Matrix(**WHOLE)
    np.testing.assert_array_equal(matrix.own_mask(), [[True, False, False], [False, False, False]])
    np.testing.assert_array_equal(matrix.own_mask(slice(1, 2)), [[False, False, False]])


def test_distances_are_not_made_coarser_on_their_way(tmp_path):
    # Two float64 that are one float32: the second is nearer, and stays so.
    distance = np.array([[np.nextafter(1.0, 2.0), 1.0]])
    matrix = Matrix(
        distance=distance,
        query_pid=ints(1),
        query_camid=ints(0),
        gallery_pid=ints(2, 1),
        gallery_camid=ints(1, 1),
        own=ints(-1),
    )
    write_matrix(tmp_path / "m.npz", matrix)
    read = read_matrix(tmp_path / "m.npz")
    assert score_ranking(read.distance, ints(1), ints(0), ints(2, 1), ints(1, 1)).rank(1) == 1


WRONG = [
    ({"distance": np.zeros((2, 3), dtype=np.int64)}, r"distance: got int64 of shape \(2, 3\), expected float16"),
    ({"distance": np.zeros(3, dtype=np.float32)}, r"distance: got float32 of shape \(3,\), expected .* \(Q, G\)"),
    ({"distance": np.full((2, 3), np.nan)}, "distance: 6 of 6 are NaN"),
    ({"query_pid": ints(7)}, r"query_pid: got int64 of shape \(1,\), expected whole numbers of shape \(2,\)"),
    ({"gallery_camid": ints(7)}, r"gallery_camid: .* shape \(3,\) for distances of shape \(2, 3\)"),
    ({"query_length": ints(7)}, r"query_length: got int64 of shape \(1,\)"),
    ({"query_length": ints(7, 0)}, "query_length: got 0 frames, expected 1 or more"),
    ({"gallery_pid": ints(7, 8, -1)}, "gallery_pid: got -1, expected 0 or more; leave junk"),
    ({"own": ints(0, 3)}, "own: got 0 to 3, expected columns of the gallery, 0 to 2, or -1"),
    ({"own": ints(0, -2)}, "own: got -2 to 0"),
    ({"own": ints(1, -1)}, "own: got column 1 for query 0, which is of another person or camera"),
    ({"own": ints(2, -1)}, "own: got column 2 for query 0, which is of another person or camera"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_a_matrix_that_does_not_fit_itself_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Matrix(**{**WHOLE, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *WRONG,
        ({"query_pid": np.array([7.0, 8.0])}, "query_pid: got float64, expected whole numbers"),
        ({"query_pid": np.array(["7", "8"])}, "query_pid: got <U1, expected whole numbers"),
        ({"gallery_pid": np.array([7, 8, 7], dtype=np.uint64)}, "gallery_pid: got uint64, .* with a sign"),
        ({"exclude_same_camera": ints(1)}, r"exclude_same_camera: got int64 of shape \(1,\), expected a single bool"),
        ({"exclude_same_camera": np.array("no")}, "exclude_same_camera: got <U2 .* expected a single bool"),
        ({"described": np.array(5)}, r"described: got int64 of shape \(\), expected a single str"),
    ],
)
def test_a_file_whose_content_does_not_fit_is_refused_by_its_name(tmp_path, change, message):
    np.savez(tmp_path / "wrong.npz", **{**WHOLE, **change})
    with pytest.raises(SourceError, match=f"wrong.npz: {message}.* listed in csip/evaluation/matrix.py"):
        read_matrix(tmp_path / "wrong.npz")


def test_missing_and_unknown_keys_are_named_with_those_expected(tmp_path):
    np.savez(tmp_path / "wrong.npz", distance=NEEDED["distance"], query_ids=ints(7, 8), Own=ints(0, 0))
    with pytest.raises(
        SourceError,
        match=r"found the keys Own, distance, query_ids, expected distance, query_pid, .* perhaps own, query_length, .*"
        "missing: query_pid, query_camid, gallery_pid, gallery_camid, unknown: Own, query_ids",
    ):
        read_matrix(tmp_path / "wrong.npz")


def test_objects_that_could_run_code_are_not_loaded(tmp_path):
    np.savez(tmp_path / "wrong.npz", **{**NEEDED, "described": np.array({"run": print}, dtype=object)})
    with pytest.raises(SourceError, match=r"cannot be read .*allow_pickle.*expected an .npz archive of plain arrays"):
        read_matrix(tmp_path / "wrong.npz")


@pytest.mark.parametrize("content", [b"", b"pid,cam\n1,2\n", b"PK\x03\x04 half an archive"])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "wrong.npz").write_bytes(content)
    with pytest.raises(SourceError, match=r"wrong.npz: cannot be read .*expected an .npz archive"):
        read_matrix(tmp_path / "wrong.npz")


def test_half_a_file_is_refused(tmp_path):
    write_matrix(tmp_path / "wrong.npz", Matrix(**WHOLE))
    whole = (tmp_path / "wrong.npz").read_bytes()
    (tmp_path / "wrong.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match=r"wrong.npz: cannot be read"):
        read_matrix(tmp_path / "wrong.npz")


def test_a_single_array_and_no_file_at_all_are_refused(tmp_path):
    with (tmp_path / "one.npy").open("wb") as file:
        np.save(file, NEEDED["distance"])
    with pytest.raises(SourceError, match=r"one.npy: found a single array, expected an .npz archive"):
        read_matrix(tmp_path / "one.npy")
    for missing in (tmp_path / "none.npz", tmp_path):
        with pytest.raises(SourceError, match="cannot be read"):
            read_matrix(missing)
