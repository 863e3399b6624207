"""Keys as numbers."""

import pyarrow as pa
import pytest

from csip.config import DetectConfig
from csip.errors import StoreError
from csip.maintenance.keys import Numbers, pack


def test_keys_become_numbers_that_sort_and_repeat_as_the_keys_do():
    numbers = Numbers()
    batches = [
        pa.RecordBatch.from_pydict({"tracklet_id": ["b", "a", "b"], "frame_index": [5, 0, 2]}),
        pa.RecordBatch.from_pydict({"tracklet_id": ["c", "b", ""], "frame_index": [2**34 - 1, 5, 0]}),
    ]
    keys = [int(k) for b in batches for k in pack(numbers, b, ["tracklet_id"], ["frame_index"])]
    assert numbers.names == [("b",), ("a",), ("c",), ("",)]
    assert keys == [5, 2**34, 2, 2 * 2**34 + 2**34 - 1, 5, 3 * 2**34]
    large = pa.RecordBatch.from_pydict({"tracklet_id": ["b"], "frame_index": [2**34]})
    with pytest.raises(StoreError, match=r"frame_index: found 17179869184, expected 0 to 17179869183"):
        pack(numbers, large, ["tracklet_id"], ["frame_index"])
    pair = pa.RecordBatch.from_pydict({"x": ["a", "a", "b"], "y": ["b", "c", "b"]})
    assert Numbers().of([pair.column("x"), pair.column("y")]).tolist() == [0, 1, 2]


def test_a_frame_has_room_for_as_many_people_as_settings_may_ask_for():
    key = {"video_sha": ["v"], "detect_digest": ["d"], "frame_index": [0]}

    def numbered(n):
        batch = pa.RecordBatch.from_pydict(key | {"n": [n]})
        return pack(Numbers(), batch, ["video_sha", "detect_digest"], ["frame_index", "n"]).tolist()

    assert numbered(DetectConfig(max_people=1024).max_people - 1) == [1023]
    with pytest.raises(ValueError, match=r"DetectConfig\.max_people: got 1025, expected 1 to 1024"):
        DetectConfig(max_people=1025)
