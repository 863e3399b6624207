import dataclasses
from pathlib import Path

import pytest
import torch

from csip.config import ModelConfig, SkeletonConfig
from csip.errors import CheckpointError
from csip.models.checkpoints import (
    CheckpointHeader,
    ModelSpec,
    SkeletonSpec,
    checkpoint_ref,
    initial,
    load_checkpoint,
    save_checkpoint,
)
from csip.models.skeleton_checkpoints import (
    build_skeleton_network,
    grow_from,
    initial_skeleton_network,
    load_skeleton_checkpoint,
    skeleton_spec,
)

pytestmark = pytest.mark.usefixtures("one_thread")
OURS = SkeletonSpec(
    encoder="csip", width=8, layers=1, heads=2, dropout=0.3, graph_positions=4, layout="kinect20", frames=6, pids=(3, 9)
)
TRANSG = dataclasses.replace(OURS, encoder="transg", dropout=0.5)
SPECS = pytest.mark.parametrize("spec", [OURS, TRANSG], ids=["csip", "transg"])
JOINTS, FRAMES = torch.arange(20) % 2 == 0, torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.bool)


def joints_of(network, skeleton):
    if network.encoder.__class__.__name__ == "TransgEncoder":
        return network.encoder(skeleton)
    return network.encoder(skeleton, torch.ones(skeleton.shape[:2], dtype=torch.bool))[0]


def mlp(x, head):
    return head[2].weight @ (head[0].weight @ x + head[0].bias).clamp(min=0) + head[2].bias


def test_transg_with_its_heads_has_the_published_count_of_trainable_numbers():
    # IAS and BIWI: J 20, H 128, heads 8, L 2, K 10, f 6 (datasets.md section 10). Encoder, both matrices, both heads.
    spec = skeleton_spec(SkeletonConfig(encoder="transg"), ModelConfig(), "kinect20", tuple(range(50)))
    assert sum(p.numel() for p in build_skeleton_network(spec).parameters() if p.requires_grad) == 266_126


@SPECS
def test_features_are_means_over_joints_and_then_over_frames(spec):
    network = initial_skeleton_network(spec, 0).eval()
    skeleton = torch.randn(3, 6, 20, 3)
    with torch.no_grad():
        out, x = network(skeleton, JOINTS, FRAMES), joints_of(network, skeleton)
        torch.testing.assert_close(out.frame[1, 4], sum(x[1, 4, j] for j in range(20)) / 20)
        torch.testing.assert_close(out.sequence[2], sum(out.frame[2, f] for f in range(6)) / 6)
        torch.testing.assert_close(network.embed(skeleton), out.sequence)
        # As they are: nothing brings them to length 1.
        assert not torch.allclose(out.sequence.norm(dim=1), torch.ones(3), atol=0.05)


@SPECS
def test_heads_read_what_is_kept_and_nothing_else(spec):
    network = initial_skeleton_network(spec, 0).eval()
    skeleton = torch.randn(2, 6, 20, 3)
    with torch.no_grad():
        out, x = network(skeleton, JOINTS, FRAMES), joints_of(network, skeleton)
        seen = sum(x[1, 5, j] for j in range(0, 20, 2)) / 10
        torch.testing.assert_close(out.structure[1, 5].flatten(), mlp(seen, network.structure_head))
        seen = sum(x[0, f, 7] for f in (0, 2, 3, 5)) / 4
        torch.testing.assert_close(out.trajectory[0, :, 7].flatten(), mlp(seen, network.trajectory_head))
    assert out.structure.shape == out.trajectory.shape == (2, 6, 20, 3)


def test_frames_and_prototypes_are_compared_through_a_matrix_each():
    network = initial_skeleton_network(OURS, 0)
    frame, prototypes = torch.randn(2, 6, 8), torch.randn(2, 8)
    found = network.compare(frame, prototypes).detach()
    left, right = network.frame_matrix.weight.detach(), network.prototype_matrix.weight.detach()
    for b, f, k in ((0, 0, 0), (1, 5, 1)):
        want = ((left @ frame[b, f]) * (right @ prototypes[k])).sum()
        assert float(found[b, f, k]) == pytest.approx(float(want), abs=1e-5)
    assert (network.frame_matrix.bias, network.prototype_matrix.bias) == (None, None)


@SPECS
def test_the_same_window_gives_the_same_feature_every_time_after_training(spec):
    network = initial_skeleton_network(spec, 0)
    skeleton = torch.randn(4, 6, 20, 3)
    with torch.no_grad():
        network.train()
        torch.manual_seed(1)
        one = network.embed(skeleton)
        torch.manual_seed(2)
        assert not torch.equal(one, network.embed(skeleton))
        network.eval()
        assert torch.equal(network.embed(skeleton), network.embed(skeleton))


def test_shapes_that_do_not_fit_are_refused():
    network = initial_skeleton_network(OURS, 0)
    with pytest.raises(ValueError, match=r"got skeleton \(1, 5, 20, 3\), expected \(B, 6, 20, 3\)"):
        network.embed(torch.zeros(1, 5, 20, 3))
    with pytest.raises(ValueError, match=r"got masks \(6,\) and \(20,\), expected \(20,\) and \(6,\)"):
        network(torch.zeros(1, 6, 20, 3), FRAMES, JOINTS)
    with pytest.raises(ValueError, match="keeps no joint or no frame"):
        network(torch.zeros(1, 6, 20, 3), JOINTS, torch.zeros(6, dtype=torch.bool))
    with pytest.raises(ValueError, match="width 9, expected an even width"):
        build_skeleton_network(dataclasses.replace(OURS, width=9, heads=3))


@SPECS
def test_a_skeleton_only_network_comes_back_bit_for_bit(spec, tmp_path):
    network = initial_skeleton_network(spec, 3)
    header = CheckpointHeader(spec, "train_skeletons", "a" * 64, {"epochs": 2}, epoch=2, metrics={"loss": 0.5})
    ref = save_checkpoint(network, header, tmp_path)
    assert {save_checkpoint(network, header, tmp_path) for _ in range(4)} == {ref}
    assert checkpoint_ref(Path(ref.path)) == ref
    loaded, found = load_skeleton_checkpoint(ref)
    own, other = network.state_dict(), loaded.state_dict()
    assert list(own) == list(other)
    assert all(torch.equal(own[name], other[name]) for name in own)
    assert found == header


def test_initial_weights_follow_from_the_seed_alone():
    torch.manual_seed(5)
    one = initial_skeleton_network(OURS, 1).state_dict()
    torch.manual_seed(6)
    again, other = (initial_skeleton_network(OURS, seed).state_dict() for seed in (1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["frame_matrix.weight"], other["frame_matrix.weight"])


def pictures(tiny, layout, seed=1, **model):
    return ModelSpec(
        model=dataclasses.replace(tiny.model, **model), clip=tiny.clip, layout=layout, cameras=("a",), pids=(1, 2)
    )


def saved(tiny, layout, folder, **model):
    """A stage-1 checkpoint on skeletons of a layout."""
    spec = pictures(tiny, layout, **model)
    network = initial(spec, seed=1)[0]
    return network, save_checkpoint(network, CheckpointHeader(spec, "stage1", "a" * 64, {}), folder)


def test_each_kind_of_checkpoint_is_refused_in_the_place_of_the_other(tiny, tmp_path):
    _, both = saved(tiny, "coco17", tmp_path)
    alone = save_checkpoint(
        initial_skeleton_network(OURS, 0), CheckpointHeader(OURS, "train_skeletons", "", {}), tmp_path
    )
    message = r"found a skeleton-only network \(of the stage 'train_skeletons'\), expected a network of pictures and"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(alone)
    message = r"found a network of pictures and skeletons \(of the stage 'stage1'\), expected a skeleton-only network"
    with pytest.raises(CheckpointError, match=message):
        load_skeleton_checkpoint(both)


FIRST = {"embed_joint.0.weight", "embed_joint.0.bias"}
POSITION = {"embed_position.weight", "embed_position.bias"}


@pytest.mark.parametrize(
    ("layout", "anew"),
    [("coco17", FIRST | POSITION), ("h36m17", POSITION), ("kinect20", set())],
)
def test_weights_are_taken_as_they_are_but_those_that_read_something_else(tiny, tmp_path, layout, anew):
    source, ref = saved(tiny, layout, tmp_path)
    wanted = dataclasses.replace(OURS, width=32, layers=1, heads=2)
    network, spec, notes, counts = grow_from(ref, wanted, seed=7)
    assert spec == wanted
    theirs, mine = source.skeleton_encoder.state_dict(), network.encoder.state_dict()
    fresh = initial_skeleton_network(wanted, 7).encoder.state_dict()
    buffer = {"positions"} if layout != "kinect20" else set()
    assert set(mine) == set(theirs)
    for name, value in mine.items():
        assert torch.equal(value, fresh[name] if name in anew | buffer else theirs[name]), name
    for name in anew:
        assert theirs[name].shape != mine[name].shape or not torch.equal(theirs[name], mine[name])
    trainable = dict(network.encoder.named_parameters())
    assert counts["tensors_transferred"] == len(trainable) - len(anew)
    assert {f"{layer}.{kind}" for layer in counts["reinitialised"] for kind in ("weight", "bias")} == anew
    assert (
        f"{len(trainable) - len(anew)} tensors as they are in {Path(ref.path).name} (stage stage1, {layout})"
        in notes[0]
    )
    told = " ".join(notes)
    assert ("embed_joint.0 is drawn anew, since the third channel is z here, and was confidence" in told) == (
        layout == "coco17"
    )
    assert (f"embed_position is drawn anew, since the joints are those of kinect20, and were {layout}'s" in told) == (
        layout != "kinect20"
    )


def test_a_checkpoints_size_wins_over_the_recipes_and_is_told(tiny, tmp_path):
    _, ref = saved(tiny, "kinect20", tmp_path, joint_layers=2, graph_positions=5)
    network, spec, notes, counts = grow_from(ref, OURS, seed=0)
    assert (spec.width, spec.layers, spec.heads, spec.graph_positions) == (32, 2, 2, 5)
    assert len(network.encoder.layers) == 2
    assert counts["resized"] == {"width": "8 -> 32", "layers": "1 -> 2", "graph_positions": "4 -> 5"}
    assert "not the recipe's: width 8 -> 32, layers 1 -> 2, graph_positions 4 -> 5." in notes[-1]


def test_another_encoder_takes_no_weights(tiny, tmp_path):
    _, ref = saved(tiny, "kinect20", tmp_path)
    with pytest.raises(
        CheckpointError,
        match=r"found this method's skeleton encoder in it, expected transg's.*Set skeleton\.encoder=csip",
    ):
        grow_from(ref, TRANSG, seed=0)
