import dataclasses

import numpy as np
import pytest
import torch

from csip.types import (
    CheckpointRef,
    ClipBatch,
    Frames,
    People,
    Scores,
    TableRef,
    Tracklet,
    TrackletPart,
)

F, N, T, J, B = 2, 3, 4, 17, 2
FRAMES = {
    "pixels": np.zeros((F, 8, 6, 3), np.uint8),
    "frame_index": np.arange(F),
    "time": np.zeros(F),
}
PEOPLE = {
    "boxes": np.zeros((N, 4), np.float32),
    "score": np.zeros(N, np.float32),
    "keypoints": np.zeros((N, J, 3), np.float32),
}
TRACKLET = {
    "tracklet_id": "t",
    "frame_index": np.array([1, 2, 5, 6]),
    "boxes": np.zeros((T, 4), np.float32),
    "score": np.zeros(T, np.float32),
    "keypoints": np.zeros((T, J, 3), np.float32),
    "interpolated": np.zeros(T, np.bool_),
}
CLIPS = {
    "crops": torch.zeros(B, T, 3, 8, 6),
    "skeleton": torch.zeros(B, T, J, 3),
    "frame_mask": torch.ones(B, T, dtype=torch.bool),
    "label": torch.zeros(B, dtype=torch.int64),
    "camid": torch.zeros(B, dtype=torch.int64),
    "part": torch.zeros(B, dtype=torch.int64),
}
PART = TrackletPart("t", 0, 3, 7, 1)


@pytest.mark.parametrize(
    ("kind", "good", "field", "bad", "message"),
    [
        (Frames, FRAMES, "pixels", np.zeros((F, 8, 6), np.uint8), r"Frames\.pixels: got shape \(2, 8, 6\), expected"),
        (Frames, FRAMES, "pixels", np.zeros((F, 8, 6, 4), np.uint8), r"Frames\.pixels: .*expected \(\*, \*, \*, 3\)"),
        (Frames, FRAMES, "pixels", np.zeros((F, 8, 6, 3)), r"Frames\.pixels: got float64, expected uint8"),
        (Frames, FRAMES, "frame_index", np.arange(3), r"Frames\.frame_index: got shape \(3,\), expected \(2\)"),
        (Frames, FRAMES, "time", np.zeros((F, 1)), r"Frames\.time: got shape \(2, 1\)"),
        (People, PEOPLE, "boxes", np.zeros((N, 5)), r"People\.boxes: got shape \(3, 5\), expected \(\*, 4\)"),
        (People, PEOPLE, "score", np.zeros(N + 1), r"People\.score: got shape \(4,\), expected \(3\)"),
        (People, PEOPLE, "keypoints", np.zeros((N, J, 2)), r"People\.keypoints: .*expected \(3, \*, 3\)"),
        (People, PEOPLE, "keypoints", np.zeros((N, 3)), r"People\.keypoints: got shape \(3, 3\)"),
        (Tracklet, TRACKLET, "frame_index", np.array([1, 2, 2, 3]), r"Tracklet t: frame_index must increase strictly"),
        (Tracklet, TRACKLET, "frame_index", np.array([4, 3, 2, 1]), r"Tracklet t: frame_index must increase strictly"),
        (Tracklet, TRACKLET, "frame_index", np.zeros(0, np.int64), r"Tracklet t: got no frames"),
        (Tracklet, TRACKLET, "boxes", np.zeros((3, 4)), r"Tracklet\.boxes: got shape \(3, 4\), expected \(4, 4\)"),
        (Tracklet, TRACKLET, "score", np.zeros(5), r"Tracklet\.score: got shape \(5,\)"),
        (Tracklet, TRACKLET, "keypoints", np.zeros((5, J, 3)), r"Tracklet\.keypoints: .*expected \(4, \*, 3\)"),
        (Tracklet, TRACKLET, "interpolated", np.zeros(5, np.bool_), r"Tracklet\.interpolated: got shape \(5,\)"),
        (ClipBatch, CLIPS, "crops", torch.zeros(B, T, 8, 6, 3), r"ClipBatch\.crops: got shape .*\(2, 4, 3, \*, \*\)"),
        (ClipBatch, CLIPS, "crops", torch.zeros(B, T, 3), r"ClipBatch\.crops: got shape \(2, 4, 3\)"),
        (ClipBatch, CLIPS, "crops", torch.zeros(B, 5, 3, 8, 6), r"ClipBatch\.crops: got shape \(2, 5, 3, 8, 6\)"),
        (ClipBatch, CLIPS, "skeleton", torch.zeros(B, T, J, 2), r"ClipBatch\.skeleton: .*expected \(2, 4, \*, 3\)"),
        (ClipBatch, CLIPS, "skeleton", torch.zeros(B, T, J), r"ClipBatch\.skeleton: got shape \(2, 4, 17\)"),
        (ClipBatch, CLIPS, "skeleton", torch.zeros(T, B, J, 3), r"ClipBatch\.skeleton: got shape \(4, 2, 17, 3\)"),
        (
            ClipBatch,
            CLIPS,
            "frame_mask",
            torch.ones(B),
            r"ClipBatch\.frame_mask: got shape \(2,\), expected",
        ),
        (ClipBatch, CLIPS, "label", torch.zeros(B, 1), r"ClipBatch\.label: got shape \(2, 1\), expected \(2\)"),
        (ClipBatch, CLIPS, "camid", torch.zeros(T), r"ClipBatch\.camid: got shape \(4,\)"),
        (ClipBatch, CLIPS, "part", torch.zeros(3), r"ClipBatch\.part: got shape \(3,\)"),
    ],
)
def test_a_door_refuses_a_wrong_shape_by_name(kind, good, field, bad, message):
    kind(**good)
    with pytest.raises(ValueError, match=message):
        kind(**good | {field: bad})


def test_lengths_are_counted_in_frames_and_people():
    assert (len(Frames(**FRAMES)), len(People(**PEOPLE)), len(Tracklet(**TRACKLET))) == (F, N, T)


def test_a_table_reference_is_never_latest():
    with pytest.raises(ValueError, match=r"TableRef crops: got version 0, expected 1 or more"):
        TableRef("crops", 0)


def test_a_checkpoint_reference_carries_a_whole_sha256():
    with pytest.raises(ValueError, match=r"CheckpointRef x: got sha256 'abc', expected 64 digits"):
        CheckpointRef("x", "abc")


@pytest.mark.parametrize(("first", "last"), [(3, 2), (-1, 2)])
def test_a_part_has_frames(first, last):
    with pytest.raises(ValueError, match=rf"TrackletPart of t: got frames {first}\.\.{last}"):
        TrackletPart("t", first, last, 7, 1)


def test_a_part_of_one_frame_is_a_part():
    assert TrackletPart("t", 3, 3, 7, 1).unit == ("t", 3, 3)


def test_parts_of_one_tracklet_are_told_apart_and_one_part_in_two_roles_is_not():
    assert PART.unit != dataclasses.replace(PART, first_frame=1).unit
    assert PART.unit == dataclasses.replace(PART, pid=8, camid=0).unit


def test_rank_k_of_a_small_gallery_is_that_of_all_of_it():
    scores = Scores(np.array([0.25, 0.5, 1.0]), 0.4, 0.4, 0.3, 4, 4)
    assert [scores.rank(k) for k in (1, 2, 3, 20)] == [0.25, 0.5, 1.0, 1.0]
    with pytest.raises(ValueError, match=r"rank: got k=0, expected 1 or more"):
        scores.rank(0)


def test_a_record_cannot_be_changed_after_its_check():
    with pytest.raises(dataclasses.FrozenInstanceError, match="boxes"):
        People(**PEOPLE).boxes = np.zeros((1, 4))
