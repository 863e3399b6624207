import pytest
import torch
from torch import nn
from torch.nn import functional

from csip.models.temporal import SkeletonGuidedTemporal

B, T, N, J, C, D, HEADS = 3, 3, 2, 2, 6, 8, 2
MASK = torch.tensor([[True, True, True], [False, True, False], [False, False, False]])


@pytest.fixture
def temporal(shake):
    torch.manual_seed(0)
    return shake(SkeletonGuidedTemporal(token_width=D, width=C, heads=HEADS)).eval()


@pytest.fixture
def tokens():
    torch.manual_seed(1)
    return torch.randn(B, T, N, D)


@pytest.fixture
def joints():
    torch.manual_seed(2)
    return torch.randn(B, T, J, C)


def add(xs, ys):
    return [x + y for x, y in zip(xs, ys, strict=True)]


def reference(model, x, s, mask, slow):
    """One clip: x (T, N, D), and s (T, J, C) with mask (T,), or None for the visual-only form."""
    message = [slow.linear(sum(x[t]) / N, model.visual_message) for t in range(T)]
    normed = [slow.norm(m, model.visual_norm) for m in message]
    message = add(message, slow.torch_attention(model.visual_attention, normed, normed))
    valid = [] if s is None else [t for t in range(T) if mask[t]]
    if valid:  # masked frames are simply not there
        joint = {t: [slow.linear(s[t, j], model.joint_tokens) for j in range(J)] for t in valid}
        joint_message = [sum(joint[t]) / J for t in valid]
        normed = [slow.norm(m, model.joint_norm) for m in joint_message]
        joint_message = add(joint_message, slow.torch_attention(model.joint_attention, normed, normed))
        queries = [slow.norm(m, model.cross_norm_visual) for m in message]
        keys = [slow.norm(m, model.cross_norm_joint) for m in joint_message]
        message = add(message, slow.torch_attention(model.cross_attention, queries, keys))
    kind, features = model.token_type.weight, []
    for t in range(T):
        z = [one + kind[0] for one in x[t]] + [message[t] + kind[1]]
        if t in valid:
            z += [one + kind[2] for one in joint[t]] + [joint_message[valid.index(t)] + kind[3]]
        normed = [slow.norm(one, model.frame_norm) for one in z]
        z = add(z, slow.torch_attention(model.frame_attention, normed, normed))
        up, _, _, down, _ = model.mlp
        z = [one + slow.linear(functional.gelu(slow.linear(slow.norm(one, model.mlp_norm), up)), down) for one in z]
        weights = [torch.sigmoid(slow.linear(one, model.token_score)) for one in z]
        features.append(sum(w * one for w, one in zip(weights, z, strict=True)) / (sum(weights) + 1e-6))
    return sum(features) / T, torch.stack(features)


@torch.no_grad()
def test_training_form_is_that_of_a_slow_reference(temporal, tokens, joints, slow):
    f, f_t = temporal(tokens, joints, MASK)
    assert f.shape == (B, D)
    assert f_t.shape == (B, T, D)
    for b in range(B):
        want_f, want_f_t = reference(temporal, tokens[b], joints[b], MASK[b], slow)
        torch.testing.assert_close(f[b], want_f, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(f_t[b], want_f_t, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_visual_only_form_is_that_of_a_slow_reference(temporal, tokens, slow):
    f, f_t = temporal(tokens)
    for b in range(B):
        want_f, want_f_t = reference(temporal, tokens[b], None, None, slow)
        torch.testing.assert_close(f[b], want_f, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(f_t[b], want_f_t, atol=1e-4, rtol=1e-4)


def test_pooling_by_hand():
    # D = 1: a LayerNorm gives 0, attentions and MLP add nothing, every token weighs the same.
    model = SkeletonGuidedTemporal(token_width=1, width=1, heads=1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.visual_message.weight.fill_(2.0)
        model.joint_tokens.weight.fill_(3.0)
        model.token_type.weight[:, 0] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    tokens = torch.tensor([1.0, 3.0, 5.0, 5.0]).reshape(1, 2, 2, 1)
    joints = torch.tensor([1.0, 2.0, 7.0, 7.0]).reshape(1, 2, 2, 1)
    mask = torch.tensor([[True, False]])
    # Frame 0: 1.1, 3.1, message 2 * 2 + .2, joints 3.3 and 6.3, their message 4.5 + .4; frame 1 has no skeleton.
    first, second = (1.1 + 3.1 + 4.2 + 3.3 + 6.3 + 4.9) / 6, (5.1 + 5.1 + 10.2) / 3
    f, f_t = model(tokens, joints, mask)
    torch.testing.assert_close(f_t, torch.tensor([[[first], [second]]]))
    torch.testing.assert_close(f, torch.tensor([[(first + second) / 2]]))
    torch.testing.assert_close(model(tokens)[1], torch.tensor([[[8.4 / 3], [second]]]))


def test_order_of_frames_joints_and_tokens(temporal, tokens, joints):
    f, f_t = temporal(tokens, joints, MASK)
    order = torch.tensor([1, 2, 0])
    got = temporal(tokens[:, order], joints[:, order], MASK[:, order])
    torch.testing.assert_close(got, (f, f_t[:, order]))
    # No positions: the order of a frame's tokens and joints says nothing, unlike which frame and clip they are of.
    torch.testing.assert_close(temporal(tokens.flip(2), joints.flip(2), MASK), (f, f_t))
    assert not torch.allclose(temporal(tokens, joints[:, order], torch.ones_like(MASK))[1], f_t)
    assert not torch.allclose(temporal(tokens, joints.transpose(0, 1), MASK)[1], f_t)


def test_a_clip_without_any_skeleton_is_visual_only(temporal, tokens, joints):
    masked = temporal(tokens, joints, torch.zeros(B, T, dtype=torch.bool))
    for got, want in zip(masked, temporal(tokens), strict=True):
        torch.testing.assert_close(got, want)
    with_skeletons = temporal(tokens, joints, MASK)[0]
    torch.testing.assert_close(with_skeletons[2], temporal(tokens)[0][2])
    assert not torch.allclose(with_skeletons[:2], temporal(tokens)[0][:2])


def test_no_mask_means_that_every_frame_counts(temporal, tokens, joints):
    torch.testing.assert_close(temporal(tokens, joints), temporal(tokens, joints, torch.ones_like(MASK)))


@pytest.mark.parametrize("training", [False, True])
def test_masked_frames_have_no_influence(temporal, tokens, joints, training):
    changed = torch.where(MASK[:, :, None, None], joints, 100 * torch.randn_like(joints))
    temporal.train(training)
    torch.manual_seed(3)
    before = temporal(tokens, joints, MASK)
    torch.manual_seed(3)
    torch.testing.assert_close(temporal(tokens, changed, MASK), before)


def test_fully_masked_clips_give_finite_gradients(temporal, tokens, joints):
    joints.requires_grad_()
    f, f_t = temporal.train()(tokens, joints, MASK)
    (f.square().sum() + f_t.square().sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in temporal.parameters())
    assert torch.isfinite(joints.grad).all()
    assert torch.equal(joints.grad.flatten(2).abs().sum(dim=2) > 0, MASK)


def test_clips_do_not_see_each_other(temporal, tokens, joints):
    f, f_t = temporal(tokens, joints, MASK)
    order = torch.tensor([2, 0, 1])
    shuffled = temporal(tokens[order], joints[order], MASK[order])
    torch.testing.assert_close(shuffled, (f[order], f_t[order]))
    for index in (0, 1):
        inputs = [tokens.clone(), joints.clone()]
        inputs[index][0] += torch.randn_like(inputs[index][0])
        f2, f_t2 = temporal(*inputs, MASK)
        assert not torch.allclose(f2[0], f[0])
        torch.testing.assert_close((f2[1:], f_t2[1:]), (f[1:], f_t[1:]))


def test_dropout_is_on_the_four_attentions_weights_and_around_the_mlp(temporal):
    attentions = [module.dropout for module in temporal.modules() if isinstance(module, nn.MultiheadAttention)]
    assert attentions == [0.1] * 4
    dropouts = [(name, module.p) for name, module in temporal.named_modules() if isinstance(module, nn.Dropout)]
    assert dropouts == [("mlp.2", 0.1), ("mlp.4", 0.1)]


def test_token_types_start_from_the_standard_normal():
    torch.manual_seed(0)
    table = SkeletonGuidedTemporal(token_width=1024, width=C).token_type.weight.detach()
    assert table.shape == (4, 1024)
    assert float(table.std()) == pytest.approx(1, rel=0.05)


def test_shapes_that_do_not_fit_are_refused(temporal, tokens, joints):
    with pytest.raises(ValueError, match=r"expected the same B and T in all"):
        temporal(tokens, joints.transpose(0, 1)[:2], MASK)
    with pytest.raises(ValueError, match=r"frame_mask \(2, 3\)"):
        temporal(tokens, joints, MASK[:2])
    with pytest.raises(ValueError, match=r"got 3 heads, expected a divisor of D=8"):
        SkeletonGuidedTemporal(token_width=8, width=C, heads=3)


def test_no_attention_is_ever_asked_to_choose_among_nothing(temporal, tokens, joints):
    # Kernels differ in what they make of a row without keys: zeros, NaN, or NaN in the backward pass only.
    masks = []

    def record(_, __, given):
        masks.append(given.get("key_padding_mask"))

    for module in temporal.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.register_forward_pre_hook(record, with_kwargs=True)
    temporal(tokens, joints, MASK)
    assert len(masks) == 4
    assert not any(bool(mask.all(dim=1).any()) for mask in masks if mask is not None)
