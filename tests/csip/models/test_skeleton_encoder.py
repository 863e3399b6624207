import itertools
import math

import pytest
import torch
from torch import nn

from csip.models.skeleton_encoder import JointLayer, SkeletonEncoder

B, T, J, K, C, HEADS = 3, 2, 4, 2, 8, 2


@pytest.fixture
def encoder(shake):
    torch.manual_seed(0)
    return shake(SkeletonEncoder(positions=torch.randn(J, K), width=C, layers=2, heads=HEADS, dropout=0.3)).eval()


@pytest.fixture
def skeleton():
    torch.manual_seed(1)
    return torch.randn(B, T, J, 3)


def reference(encoder, frame, slow, positions=None):
    """One frame (J, 3) to its joint features, joint by joint."""
    positions = encoder.positions if positions is None else positions
    first, _, second = encoder.embed_joint
    x = [
        slow.linear(slow.linear(frame[j], first).clamp(min=0), second)
        + slow.linear(positions[j], encoder.embed_position)
        for j in range(J)
    ]
    for layer in encoder.layers:
        qkv = [slow.linear(one, layer.qkv) for one in x]
        q, k, v = ([one[i * C : (i + 1) * C] for one in qkv] for i in range(3))
        attended = slow.attend(q, k, v, HEADS, clamp=5.0)
        x = [slow.norm(x[j] + slow.linear(attended[j], layer.out), layer.norm_attention) for j in range(J)]
        up, _, _, down = layer.feed_forward
        x = [
            slow.norm(one + slow.linear(slow.linear(one, up).clamp(min=0), down), layer.norm_feed_forward) for one in x
        ]
    return torch.stack([slow.linear(one, encoder.projection) for one in x])


@pytest.mark.parametrize("gain", [1.0, 6.0])
def test_joint_features_are_those_of_a_slow_reference(encoder, skeleton, slow, gain):
    # With the larger gain, logits leave [-5, 5] and the clamp acts.
    with torch.no_grad():
        for layer in encoder.layers:
            layer.qkv.weight.mul_(gain)
        s, _ = encoder(skeleton, torch.ones(B, T, dtype=torch.bool))
        for b, t in itertools.product(range(B), range(T)):
            torch.testing.assert_close(s[b, t], reference(encoder, skeleton[b, t], slow), atol=1e-4, rtol=1e-4)


def test_attention_with_clamped_logits_by_hand():
    layer = JointLayer(width=1, heads=1, dropout=0.0)
    with torch.no_grad():
        for linear in (layer.qkv, layer.out):
            linear.weight.fill_(1.0)
            linear.bias.zero_()
        # Queries, keys and values are the joints themselves: logits +-2.25, then +-9, which the clamp makes +-5.
        for x, logit in ((1.5, 2.25), (3.0, 5.0)):
            near, far = math.exp(logit), math.exp(-logit)
            want = x * (near - far) / (near + far)
            got = layer._attend(torch.tensor([[[x], [-x]]]))
            torch.testing.assert_close(got, torch.tensor([[[want], [-want]]]))


def test_order_of_clips_frames_and_joints_is_that_of_the_input(encoder, skeleton):
    mask = torch.tensor([[True, True], [False, True], [True, False]])
    s, s_bar = encoder(skeleton, mask)
    clips, frames, joints = torch.tensor([2, 0, 1]), torch.tensor([1, 0]), torch.tensor([3, 1, 0, 2])
    got, got_bar = encoder(skeleton[clips], mask[clips])
    torch.testing.assert_close((got, got_bar), (s[clips], s_bar[clips]))
    got, got_bar = encoder(skeleton[:, frames], mask[:, frames])
    torch.testing.assert_close((got, got_bar), (s[:, frames], s_bar))
    # Joints are told apart by their graph positions: renumbered with them, they keep their features.
    encoder.positions = encoder.positions[joints]
    got, got_bar = encoder(skeleton[:, :, joints], mask)
    torch.testing.assert_close((got, got_bar), (s[:, :, joints], s_bar))
    assert not torch.allclose(encoder(skeleton, mask)[0], s)


def test_a_change_in_one_clip_changes_no_other_clip(encoder, skeleton):
    mask = torch.ones(B, T, dtype=torch.bool)
    s, s_bar = encoder(skeleton, mask)
    skeleton[0] += torch.randn_like(skeleton[0])
    changed, changed_bar = encoder(skeleton, mask)
    assert not torch.isclose(changed[0], s[0]).any(dim=-1).all()
    torch.testing.assert_close((changed[1:], changed_bar[1:]), (s[1:], s_bar[1:]))


def test_the_sequence_feature_is_the_mean_over_joints_of_valid_frames(encoder, skeleton):
    mask = torch.tensor([[True, True], [False, True], [False, False]])
    s, s_bar = encoder(skeleton, mask)
    torch.testing.assert_close(s_bar[0], (s[0, 0].sum(dim=0) + s[0, 1].sum(dim=0)) / (2 * J))
    torch.testing.assert_close(s_bar[1], s[1, 1].sum(dim=0) / J)
    assert torch.equal(s_bar[2], torch.zeros(C))


def test_masked_frames_have_no_influence(encoder, skeleton):
    mask = torch.tensor([[True, False], [False, True], [False, False]])
    changed = torch.where(mask[:, :, None, None], skeleton, torch.full_like(skeleton, float("nan")))
    _, before = encoder(skeleton, mask)
    s, after = encoder(changed, mask)
    assert torch.equal(before, after)
    assert torch.isfinite(s[mask]).all()


def test_frames_and_clips_do_not_see_each_other(encoder, skeleton):
    mask = torch.ones(B, T, dtype=torch.bool)
    s, _ = encoder(skeleton, mask)
    changed = skeleton.clone()
    changed[0, 1] += 1
    s2, s_bar2 = encoder(changed, mask)
    assert not torch.allclose(s[0, 1], s2[0, 1])
    untouched = torch.ones(B, T, dtype=torch.bool)
    untouched[0, 1] = False
    torch.testing.assert_close(s[untouched], s2[untouched])
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(encoder(changed[order], mask)[1], s_bar2[order])


def test_evaluation_is_deterministic_and_training_draws_signs(encoder, skeleton, slow):
    mask = torch.ones(B, T, dtype=torch.bool)
    assert torch.equal(encoder(skeleton, mask)[0], encoder(skeleton, mask)[0])
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    encoder.train()
    torch.manual_seed(0)
    with torch.no_grad():
        seen = [encoder(skeleton[:1].expand(B, -1, -1, -1), mask)[0] for _ in range(24)]
        possible = [
            reference(encoder, skeleton[0, 0], slow, encoder.positions * torch.tensor(signs))
            for signs in itertools.product((1.0, -1.0), repeat=K)
        ]
    for s in seen:  # one draw for the whole batch
        torch.testing.assert_close(s[0], s[1])
        torch.testing.assert_close(s[0], s[2])
    drawn = {next(i for i, p in enumerate(possible) if torch.allclose(s[0, 0], p, atol=1e-4)) for s in seen}
    assert drawn == {0, 1, 2, 3}


def test_dropout_leaves_attention_weights_alone(encoder):
    rates = [(name, module.p) for name, module in encoder.named_modules() if isinstance(module, nn.Dropout)]
    # After the feed-forward's ReLU; and one module used after the attention's and the feed-forward's output.
    wanted = [f"layers.{i}.{place}" for i in range(2) for place in ("feed_forward.2", "dropout")]
    assert rates == [(name, 0.3) for name in wanted]


def test_the_last_matrix_is_drawn_with_standard_deviation_of_the_inverse_root_width():
    torch.manual_seed(0)
    encoder = SkeletonEncoder(positions=torch.randn(J, K), width=256, layers=1)
    assert float(encoder.projection.weight.detach().std()) == pytest.approx(1 / 16, rel=0.02)
    assert encoder.projection.bias is None


def test_graph_positions_are_saved_and_not_trained(encoder):
    assert torch.equal(encoder.state_dict()["positions"], encoder.positions)
    assert "positions" not in dict(encoder.named_parameters())


def test_shapes_that_do_not_fit_are_refused(encoder, skeleton):
    mask = torch.ones(B, T, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"got skeleton \(3, 2, 3, 3\) .*expected \(B, T, 4, 3\)"):
        encoder(skeleton[:, :, :3], mask)
    with pytest.raises(ValueError, match=r"frame_mask \(2, 2\)"):
        encoder(skeleton, mask[:2])
    with pytest.raises(ValueError, match=r"got 3 heads, expected a divisor of width=8"):
        SkeletonEncoder(positions=torch.randn(J, K), width=8, heads=3)
    with pytest.raises(ValueError, match=r"got positions \(4,\), expected \(J, K\)"):
        SkeletonEncoder(positions=torch.randn(J), width=8)
