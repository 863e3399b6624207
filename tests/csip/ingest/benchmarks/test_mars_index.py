"""MARS's index files: the real ones where they are at hand, and those of X-MARS, which are called the same."""

import io
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from csip.data.clips import label_of_pid
from csip.errors import SourceError
from csip.evaluation.metrics import score_ranking
from csip.ingest.benchmarks.checking import Findings
from csip.ingest.benchmarks.mars import count_rows, split_rows
from csip.ingest.benchmarks.mars_index import read_index
from csip.types import TrackletPart

REAL_INFO = Path(__file__).resolve().parents[5] / "shared" / "data" / "mars_info"


def test_xmars_is_refused_even_with_the_keys_of_mars(tmp_path):
    # Its halves have 7,986 and 12,492 rows, and 2,003 of them ask.
    train = tuple((1 + 2 * (n // 9000), 1, (1,)) for n in range(7986))
    test = tuple((2 * (1 + n // 9000), 1, (1,)) for n in range(12492))
    info = tmp_path
    for half, rows in (("train", train), ("test", test)):
        lines = np.arange(1, len(rows) + 1)
        pid, camera = np.array(rows, object).T[:2].astype(np.int32)
        scipy.io.savemat(
            info / f"tracks_{half}_info.mat", {f"track_{half}_info": np.stack([lines, lines, pid, camera], 1)}
        )
        names = [f"{one:04d}C1T{n % 9000 + 1:04d}F001.jpg" for n, one in enumerate(pid.tolist())]
        (info / f"{half}_name.txt").write_text("\n".join(names))
    scipy.io.savemat(info / "query_IDX.mat", {"query_IDX": np.arange(1, 2004, dtype=np.uint16)[None]})
    with pytest.raises(SourceError, match=r"(?s)found 1 things.*index files of X-MARS: .*\(7986, 12492, 2003\)"):
        read_index(info, Findings("mars:here"))


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The real index files, with lists of names made up from their rows; they are a download of their own."""
    if not REAL_INFO.is_dir():
        pytest.skip(f"no real index files in {REAL_INFO}")
    info = tmp_path_factory.mktemp("mars_info")
    for half in ("train", "test"):
        rows = scipy.io.loadmat(REAL_INFO / f"tracks_{half}_info.mat")[f"track_{half}_info"].tolist()
        frames = [f"F{frame:03d}.jpg\r\n" for frame in range(1, 921)]
        number, names = Counter(), io.StringIO()
        for first, last, pid, camera in rows:
            number[pid] += 1
            stem = f"{'00-1' if pid < 0 else format(pid, '04d')}C{camera}T{number[pid]:04d}"
            names.write(stem + stem.join(frames[: last - first + 1]))
        (info / f"{half}_name.txt").write_bytes(names.getvalue().encode())
    for path in REAL_INFO.glob("*.mat"):
        shutil.copy(path, info)
    return read_index(info, Findings("mars:real"))


def test_the_real_index_has_the_published_counts(real):
    counts = count_rows(real)
    assert counts == {
        **{"training people": 625, "training tracklets": 8298, "training pictures": 509_914},
        **{"query people": 626, "query tracklets": 1980, "gallery tracklets besides the queries": 9330},
        **{"distractor tracklets among them": 3248, "test pictures": 657_709},
        **{"junk tracklets left out": 870, "junk pictures left out": 23_380},
    }
    assert counts["query tracklets"] + counts["gallery tracklets besides the queries"] == 11_310
    arrays = [
        getattr(half, name) for half in (real.train, real.test) for name in ("pictures", "pid", "camera", "frame")
    ]
    assert sum(array.nbytes for array in arrays) < 50e6


def test_the_real_rows_are_as_measured(real):
    rows = split_rows(real, "real")
    cameras = {
        role: [Counter(row.camid for row in rows if row.role == role)[camid] for camid in range(6)]
        for role in ("train", "query", "gallery")
    }
    assert cameras == {
        "train": [1816, 1957, 1321, 750, 1880, 574],
        "query": [524, 456, 319, 191, 384, 106],
        "gallery": [1637, 3120, 1162, 734, 1711, 966],
    }
    people = {role: {row.pid for row in rows if row.role == role} for role in cameras}
    assert min(people["train"]) == 1
    assert all(pid % 2 for pid in people["train"])
    assert not any(pid % 2 for pid in people["query"] | people["gallery"])
    assert sum(row.pid == 0 for row in rows) == 3248
    only_asked = {6, 152, 436, 454, 640, 782, 944, 1062, 1138, 1140, 1146, 1172, 1252, 1444}
    assert people["query"] - people["gallery"] == only_asked
    assert people["gallery"] - people["query"] == {0, 12, 14, 154, 166, 982, 1034, 1104, 1354}
    assert len({(row.pid, row.camid) for row in rows if row.role == "query"}) == 1980
    assert label_of_pid([TrackletPart(r.tracklet_id, 1, 2, r.pid, r.camid) for r in rows if r.role == "train"]) == {
        pid: label for label, pid in enumerate(sorted(people["train"]))
    }


@pytest.mark.parametrize(("with_queries", "valid"), [(True, 1980), (False, 1840)])
def test_the_real_queries_that_have_somebody_to_find(real, with_queries, valid):
    rows = split_rows(real, "real")
    queries = [row for row in rows if row.role == "query"]
    gallery = [row for row in rows if row.role == "gallery" or (with_queries and row.role == "query")]
    seen = {}
    for row in gallery:
        seen.setdefault(row.pid, set()).add(row.camid)
    assert sum(bool(seen.get(row.pid, set()) - {row.camid}) for row in queries) == valid
    pid, camid = (
        [np.array([getattr(row, name) for row in some]) for some in (queries, gallery)] for name in ("pid", "camid")
    )
    # Which of them are valid does not depend on the distances; one row of arbitrary ones serves all queries.
    distance = np.random.default_rng(0).permutation(len(gallery)).astype(np.float32)
    distance = np.broadcast_to(distance, (len(queries), len(gallery)))
    scores = score_ranking(distance, pid[0], camid[0], pid[1], camid[1])
    assert (scores.num_queries, scores.num_valid_queries) == (1980, valid)


def test_the_real_rows_and_queries_begin_where_the_files_do(real):
    assert real.queries[[0, -1]].tolist() == [4129, 12179]
    assert real.test.rows[0].tolist() == [1, 24, -1, 1]
    assert real.test.lines(0) == slice(0, 24)
    assert real.train.rows[0].tolist() == [1, 16, 1, 1]
