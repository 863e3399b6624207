import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csip.joints import COCO17, H36M17, KINECT20, LAYOUTS, JointLayout, normalise

ALL = (COCO17, H36M17, KINECT20)

# datasets.md section 6, row by row. Bones are written as there.
COCO_JOINTS = [
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow"),
    *("right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle"),
    "right_ankle",
]
COCO_BONES = "15-13 13-11 16-14 14-12 11-12 5-11 6-12 5-6 5-7 6-8 7-9 8-10 1-2 0-1 0-2 1-3 2-4 3-5 4-6"
COCO_PAIRS = "1-2 3-4 5-6 7-8 9-10 11-12 13-14 15-16"
H36M_BONES = "10-9 9-8 8-11 11-12 12-13 8-14 14-15 15-16 8-7 7-0 0-1 1-2 2-3 0-4 4-5 5-6"
H36M_PAIRS = "1-4 2-5 3-6 11-14 12-15 13-16"
KINECT_BONES = "3-2 2-8 8-9 9-10 10-11 2-4 4-5 5-6 6-7 2-1 1-0 0-16 0-12 16-17 17-18 18-19 12-13 13-14 14-15"
KINECT_PAIRS = "4-8 5-9 6-10 7-11 12-16 13-17 14-18 15-19"

FACTS = [
    (COCO17, "coco17", 17, COCO_BONES, COCO_PAIRS, (11, 12), "confidence"),
    (H36M17, "h36m17", 17, H36M_BONES, H36M_PAIRS, (0,), "z"),
    (KINECT20, "kinect20", 20, KINECT_BONES, KINECT_PAIRS, (0,), "z"),
]
named = pytest.mark.parametrize("layout", ALL, ids=lambda layout: layout.name)


def pairs(text):
    return {frozenset(map(int, pair.split("-"))) for pair in text.split()}


def slow_laplacian(layout):
    """I - D^-1/2 A D^-1/2, entry by entry."""
    bones = {frozenset(bone) for bone in layout.bones}
    n = len(layout.joints)
    degree = [sum(j in bone for bone in bones) for j in range(n)]
    out = np.zeros((n, n))
    for a in range(n):
        for b in range(n):
            joined = frozenset((a, b)) in bones and a != b
            out[a, b] = (a == b) - joined / math.sqrt(degree[a] * degree[b])
    return out


@pytest.mark.parametrize(("layout", "name", "count", "bones", "mirror", "root", "third"), FACTS)
def test_a_layout_is_what_its_source_says(layout, name, count, bones, mirror, root, third):
    assert (layout.name, len(layout.joints), layout.root, layout.third) == (name, count, root, third)
    assert {frozenset(bone) for bone in layout.bones} == pairs(bones)
    assert len(layout.bones) == len(bones.split())
    assert {frozenset(pair) for pair in layout.mirror} == pairs(mirror)
    assert LAYOUTS[name] is layout


def test_joints_stand_where_their_sources_put_them():
    assert list(COCO17.joints) == COCO_JOINTS
    h36m = {0: "pelvis", 1: "right_hip", 3: "right_ankle", 4: "left_hip", 6: "left_ankle", 7: "spine", 8: "thorax"}
    h36m |= {9: "neck", 10: "head", 11: "left_shoulder", 13: "left_wrist", 14: "right_shoulder", 16: "right_wrist"}
    assert {j: H36M17.joints[j] for j in h36m} == h36m
    kinect = {0: "hip_centre", 1: "spine", 2: "shoulder_centre", 3: "head", 4: "left_shoulder", 7: "left_hand"}
    kinect |= {
        8: "right_shoulder",
        11: "right_hand",
        12: "left_hip",
        15: "left_foot",
        16: "right_hip",
        19: "right_foot",
    }
    assert {j: KINECT20.joints[j] for j in kinect} == kinect


@named
def test_left_is_paired_with_right_of_the_same_name(layout):
    for a, b in layout.mirror:
        sides = {layout.joints[a].partition("_")[0], layout.joints[b].partition("_")[0]}
        assert sides == {"left", "right"}
        assert layout.joints[a].partition("_")[2] == layout.joints[b].partition("_")[2]
    paired = {j for pair in layout.mirror for j in pair}
    alone = [name for j, name in enumerate(layout.joints) if j not in paired]
    assert [name for name in alone if "left" in name or "right" in name] == []


@named
def test_swapping_left_and_right_twice_changes_nothing(layout):
    swap = layout.swap()
    np.testing.assert_array_equal(swap[swap], np.arange(len(layout.joints)))
    for a, b in layout.mirror:
        assert (swap[a], swap[b]) == (b, a)
    assert (swap != np.arange(len(layout.joints))).sum() == 2 * len(layout.mirror)


@named
def test_graph_positions_are_the_laplacians_eigenvectors_after_the_first_by_ascending_eigenvalue(layout):
    positions = layout.graph_positions(10).astype(np.float64)
    laplacian = slow_laplacian(layout)
    np.testing.assert_allclose(positions.T @ positions, np.eye(10), atol=1e-6)
    values = np.einsum("jk,ji,ik->k", positions, laplacian, positions)
    np.testing.assert_allclose(laplacian @ positions, positions * values, atol=1e-6)
    assert (np.diff(values) > -1e-6).all()
    # Eigenvalue 0, the first, is left out; those taken are the next ten and no others.
    np.testing.assert_allclose(values, np.sort(np.linalg.eigvalsh(laplacian))[1:11], atol=1e-6)
    assert values[0] > 1e-3


@named
def test_the_largest_entry_of_a_graph_position_is_positive(layout):
    for column in layout.graph_positions(10).T:
        peak = np.abs(column).max()
        first = next(x for x in column if abs(abs(x) - peak) < 1e-5)
        assert first > 0


@named
def test_graph_positions_come_out_the_same_every_time(layout):
    np.testing.assert_array_equal(layout.graph_positions(10), layout.graph_positions(10))
    # A longer encoding begins with the shorter one.
    np.testing.assert_array_equal(layout.graph_positions(10)[:, :4], layout.graph_positions(4))
    assert layout.graph_positions(10).dtype == np.float32


def test_graph_positions_of_a_path_of_three_are_those_on_paper():
    # Path a-b-c: eigenvalues 0, 1, 2 with eigenvectors (1, sqrt 2, 1)/2, (1, 0, -1)/sqrt 2, (1, -sqrt 2, 1)/2. In the
    # last the middle is largest and therefore positive.
    path = JointLayout("path", ("a", "b", "c"), ((0, 1), (1, 2)), (), (1,), "z")
    want = np.array([[1 / math.sqrt(2), -0.5], [0, 1 / math.sqrt(2)], [-1 / math.sqrt(2), -0.5]])
    np.testing.assert_allclose(path.graph_positions(2), want, atol=1e-6)


@pytest.mark.parametrize("count", [0, 17])
def test_more_graph_positions_than_the_graph_has_are_refused(count):
    with pytest.raises(ValueError, match=rf"got {count}, expected 1 to 16 for coco17"):
        COCO17.graph_positions(count)


def test_a_layout_in_two_pieces_is_refused():
    with pytest.raises(ValueError, match="broken: the bones do not connect all joints"):
        JointLayout("broken", ("a", "b", "c", "d"), ((0, 1), (2, 3)), (), (0,), "z")
    with pytest.raises(ValueError, match="lonely: the bones do not connect all joints"):
        JointLayout("lonely", ("a", "b", "c"), ((0, 1),), (), (0,), "z")


def test_a_bone_to_nowhere_is_refused():
    with pytest.raises(ValueError, match=r"short: \(1, 2\) names a joint outside 0\.\.1"):
        JointLayout("short", ("a", "b"), ((0, 1), (1, 2)), (), (0,), "z")


# Two dimensions. A four-jointed trunk is enough, and small enough to work out on paper.
TRUNK = JointLayout(
    name="trunk",
    joints=("left_shoulder", "right_shoulder", "left_hip", "right_hip"),
    bones=((0, 1), (0, 2), (1, 3), (2, 3)),
    mirror=((0, 1), (2, 3)),
    root=(2, 3),
    third="confidence",
)
SQUARE = [[10, 20, 0.9], [20, 20, 0.8], [10, 40, 0.7], [20, 40, 0.6]]  # hips' middle (15, 40), torso 20
BOX = [0, 0, 30, 100]


def bring(frames, *, boxes=None, frame_index=None, layout=TRUNK, max_gap=5, min_joints=2):
    t = len(frames)
    return normalise(
        np.array(frames, dtype=np.float32),
        np.array(boxes if boxes is not None else [BOX] * t, dtype=np.float32),
        np.array(frame_index if frame_index is not None else range(t), dtype=np.int64),
        layout,
        joint_confidence=0.3,
        max_gap=max_gap,
        min_joints=min_joints,
    )


def unseen(joints, frame=SQUARE):
    """The frame with some joints moved far away and under the threshold."""
    return [[999, 999, 0.2] if j in joints else joint for j, joint in enumerate(frame)]


def test_a_2d_skeleton_is_centred_on_its_hips_and_measured_in_torsos():
    got, mask = bring([SQUARE])
    want = [[-5 / 20, -20 / 20, 0.9], [5 / 20, -20 / 20, 0.8], [-5 / 20, 0, 0.7], [5 / 20, 0, 0.6]]
    np.testing.assert_allclose(got[0], want, atol=1e-6)
    assert mask.tolist() == [True]
    assert got.dtype == np.float32


def test_the_scale_is_the_tracklets_median_torso():
    # Torsos of 20, 40 and 30 pixels: the median, 30, measures all three frames.
    frames = [[[10, 0, 1], [20, 0, 1], [10, h, 1], [20, h, 1]] for h in (20, 40, 30)]
    got, _ = bring(frames)
    np.testing.assert_allclose(got[:, 0, 1], [-20 / 30, -40 / 30, -30 / 30], atol=1e-6)


def test_an_unseen_joint_is_interpolated_over_the_frames_between_its_sightings():
    # The left shoulder is seen at frames 10 (x 10) and 14 (x 18); of the frames between, 11 and 13 are in the tracklet.
    # The right one turns the other way, so that the torso stays 20 pixels.
    a, b, c, d = ([[10 + 2 * i, 20, 0.9], [20 - 2 * i, 20, 0.8], *SQUARE[2:]] for i in (0, 1, 3, 4))
    got, mask = bring([a, unseen([0], b), unseen([0], c), d], frame_index=[10, 11, 13, 14])
    x = [(10 - 15) / 20, (12 - 15) / 20, (16 - 15) / 20, (18 - 15) / 20]
    np.testing.assert_allclose(got[:, 0, 0], x, atol=1e-6)
    np.testing.assert_allclose(got[:, 0, 1], -1, atol=1e-6)
    # What was seen of it stays: its confidence is what the model said.
    np.testing.assert_allclose(got[:, 0, 2], [0.9, 0.2, 0.2, 0.9], atol=1e-6)
    assert mask.all()


@pytest.mark.parametrize(("last", "is_filled"), [(6, True), (7, False)])
def test_a_gap_of_at_most_max_gap_frames_is_filled(last, is_filled):
    # Seen at 0 and at `last`: the gap is last - 1 frames, of which the tracklet holds one; max_gap is 5.
    got, _ = bring([SQUARE, unseen([0]), SQUARE], frame_index=[0, 3, last])
    np.testing.assert_allclose(got[1, 0, :2], [-5 / 20, -1] if is_filled else [0, 0], atol=1e-6)


def test_an_unseen_joint_at_the_end_of_a_tracklet_is_put_on_the_root():
    got, _ = bring([unseen([1]), SQUARE, unseen([0])])
    np.testing.assert_allclose(got[0, 1], [0, 0, 0.2], atol=1e-6)
    np.testing.assert_allclose(got[2, 0], [0, 0, 0.2], atol=1e-6)


def test_one_good_hip_is_root_when_the_other_is_unseen():
    got, _ = bring([unseen([3])])
    # Root is the left hip (10, 40); no frame has a whole torso, so .3 of the box's height of 100 is the scale.
    np.testing.assert_allclose(got[0, :, :2], [[0, -20 / 30], [10 / 30, -20 / 30], [0, 0], [0, 0]], atol=1e-6)


def test_without_hips_the_boxs_centre_is_root_and_its_height_the_scale():
    got, mask = bring([unseen([2, 3])], boxes=[[0, 0, 30, 50]])
    # Centre (15, 25), scale .3 x 50.
    np.testing.assert_allclose(got[0, :2, :2], [[-5 / 15, -5 / 15], [5 / 15, -5 / 15]], atol=1e-6)
    assert mask.all()


def test_the_scale_without_a_torso_is_a_share_of_the_median_box_height():
    got, _ = bring([unseen([3])] * 3, boxes=[[0, 0, 30, 60], [0, 0, 30, 100], [0, 0, 30, 500]], max_gap=0)
    np.testing.assert_allclose(got[:, 1, 0], 10 / 30, atol=1e-6)


def test_a_frame_with_too_few_seen_joints_is_masked_and_zero():
    got, mask = bring([SQUARE, unseen([0, 1]), SQUARE], min_joints=3)
    assert mask.tolist() == [True, False, True]
    assert not got[1].any()


def test_an_interpolated_joint_does_not_count_as_seen():
    _, mask = bring([SQUARE, unseen([0, 1, 2, 3]), SQUARE], min_joints=1)
    assert mask.tolist() == [True, False, True]


def test_a_joint_exactly_at_the_threshold_is_seen():
    frame = [[*joint[:2], 0.5] for joint in SQUARE]
    _, mask = normalise(
        np.array([frame], np.float32),
        np.array([BOX], np.float32),
        np.array([0]),
        TRUNK,
        joint_confidence=0.5,
        max_gap=0,
        min_joints=4,
    )
    assert mask.all()


def test_a_3d_skeleton_loses_its_root_in_all_three_channels_and_keeps_its_scale():
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(2, 17, 3)).astype(np.float32)
    raw[1] = 0
    got, mask = bring(raw, layout=H36M17)
    for j in range(17):
        np.testing.assert_allclose(got[0, j], raw[0, j] - raw[0, 0], atol=1e-6)
    assert mask.tolist() == [True, False]
    assert not got[1].any()


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    scale=st.floats(0.2, 20),
    shift=st.tuples(st.floats(-500, 500), st.floats(-500, 500)),
)
def test_distance_to_the_camera_and_place_in_the_picture_drop_out(seed, scale, shift):
    rng = np.random.default_rng(seed)
    t = 6
    frame_index = np.cumsum(rng.integers(1, 4, size=t))
    points = rng.uniform(0, 20, size=(t, 17, 2))
    points[:, 11:13, 1] += 50  # hips well below shoulders
    confidence = rng.uniform(0, 1, size=(t, 17, 1))
    low = rng.uniform(0, 50, size=(t, 2))
    boxes = np.concatenate([low, low + rng.uniform(50, 100, size=(t, 2))], axis=1)

    def result(factor, move):
        moved = np.concatenate([points * factor + move, confidence], axis=2)
        return bring(moved, boxes=boxes * factor + np.tile(move, 2), frame_index=frame_index, layout=COCO17)

    (near, near_mask), (far, far_mask) = result(1.0, np.zeros(2)), result(scale, np.array(shift))
    np.testing.assert_array_equal(near_mask, far_mask)
    np.testing.assert_allclose(near, far, atol=2e-3, rtol=2e-3)


def test_arrays_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"got skeleton \(1, 4, 3\).*expected \(1, 17, 3\) for layout coco17"):
        bring([SQUARE], layout=COCO17)
    with pytest.raises(ValueError, match=r"boxes \(2, 4\).*expected \(1, 4, 3\)"):
        bring([SQUARE], boxes=[BOX, BOX])
    with pytest.raises(ValueError, match=r"frame_index \(2,\)"):
        bring([SQUARE], frame_index=[0, 1])
    with pytest.raises(ValueError, match="NaN or infinite"):
        bring([[[float("nan"), 0, 1], *SQUARE[1:]]])
