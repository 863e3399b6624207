import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from csip.models.prototypes import Attention, PrototypeFusionUpdater, build_context, mean_by_label

B, T, N, J, C, K, HEADS = 3, 2, 3, 2, 8, 5, 2


def updater(shake, mode="pfu", dropout=0.1):
    torch.manual_seed(0)
    return shake(PrototypeFusionUpdater(width=C, layers=2, heads=HEADS, dropout=dropout, mode=mode)).eval()


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    return {
        "visual_prototypes": torch.randn(K, C),
        "skeleton_prototypes": torch.randn(K, C),
        "v_bar": torch.randn(B, C),
        "projected_tokens": torch.randn(B, T, N, C),
        "joints": torch.randn(B, T, J, C),
        "frame_mask": torch.tensor([[True, True], [False, True], [False, False]]),
    }


def test_means_by_label_are_those_worked_out_by_hand():
    features = torch.tensor([[1.0, 2.0], [10.0, 0.0], [3.0, 4.0], [100.0, 100.0]])
    label = torch.tensor([1, 0, 1, 1])
    want = torch.tensor([[10.0, 0.0], [2.0, 3.0]])
    got = mean_by_label(features, label, 2, torch.tensor([True, True, True, False]))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(mean_by_label(features[:3], label[:3], 2), want)


def test_labels_without_a_feature_are_named():
    features, label = torch.ones(2, 3), torch.tensor([1, 3])
    with pytest.raises(ValueError, match=r"3 of 5 labels have no feature to average: 0, 2, 4\."):
        mean_by_label(features, label, 5)
    with pytest.raises(ValueError, match=r"2 of 2 labels"):
        mean_by_label(features, torch.tensor([0, 1]), 2, torch.zeros(2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"28 of 30 .*: 0, 2, 4, .* 19, 20, 21, \.\.\.\."):
        mean_by_label(features, label, 30)


def test_labels_out_of_range_and_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"got labels 0 to 2, expected 0 to 1"):
        mean_by_label(torch.ones(2, 3), torch.tensor([0, 2]), 2)
    with pytest.raises(ValueError, match=r"expected \(M, C\), \(M,\) and \(M,\)"):
        mean_by_label(torch.ones(2, 3), torch.tensor([0]), 1)


def test_visual_and_fixed_prototypes_are_plain_products(shake, inputs):
    p_v, p_s, v = (inputs[key] for key in ("visual_prototypes", "skeleton_prototypes", "v_bar"))
    visual, fixed = updater(shake, "visual")(**inputs), updater(shake, "fixed")(**inputs)
    for b in range(B):
        for k in range(K):
            torch.testing.assert_close(visual[b, k], (v[b] * p_v[k]).sum())
            torch.testing.assert_close(fixed[b, k], (v[b] * (p_s[k] + p_v[k])).sum() / 2)
    assert not list(updater(shake, "fixed").parameters())


def fuse(model, p_v, p_s, slow):
    out = []
    for k in range(K):
        first, _, second = model.gate
        hidden = slow.linear(torch.cat([p_s[k], p_v[k]]), first).clamp(min=0)
        alpha = torch.sigmoid(slow.linear(hidden, second))
        out.append(alpha * p_s[k] + (1 - alpha) * p_v[k])
    return out


def test_the_gate_weighs_skeleton_against_visual_prototypes(shake, inputs, slow):
    model = updater(shake, "gate")
    got = model(**inputs)
    prototypes = fuse(model, inputs["visual_prototypes"], inputs["skeleton_prototypes"], slow)
    for b in range(B):
        for k in range(K):
            torch.testing.assert_close(got[b, k], (inputs["v_bar"][b] * prototypes[k]).sum(), atol=1e-5, rtol=1e-5)
    assert model.decoder is None


def test_the_gate_by_hand():
    model = PrototypeFusionUpdater(width=2, heads=1, mode="gate").eval()
    with torch.no_grad():
        for parameter in model.gate.parameters():
            parameter.zero_()
        # The hidden unit 0 reads P_s's first number and P_v's second: 1 + 2, then -1 + 0, which ReLU makes 0.
        model.gate[0].weight[0] = torch.tensor([1.0, 0.0, 0.0, 1.0])
        model.gate[2].weight[0, 0] = math.log(3) / 3
    p_s, p_v = torch.tensor([[1.0, 0.0], [-1.0, 4.0]]), torch.tensor([[5.0, 2.0], [1.0, 0.0]])
    # alpha = sigmoid(ln 3) = 3 / 4 and sigmoid(0) = 1 / 2, so P = (2, .5) and (0, 2).
    none = torch.zeros(1, 1, 1, 2)
    got = model(p_v, p_s, torch.tensor([[1.0, 2.0]]), none, none, torch.ones(1, 1, dtype=torch.bool))
    torch.testing.assert_close(got, torch.tensor([[3.0, 4.0]]))


def test_attention_by_hand():
    layer = Attention(width=1, heads=1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(1.0)
        # Logits 0 and ln 3: weights 1/4 and 3/4, and the output layer adds 1.
        x, context = torch.tensor([[[1.0]]]), torch.tensor([[[0.0], [math.log(3)]]])
        torch.testing.assert_close(layer(x, context), torch.tensor([[[0.75 * math.log(3) + 1]]]))
        only_first = torch.tensor([[[[True, False]]]])
        torch.testing.assert_close(layer(x, context, only_first), torch.tensor([[[1.0]]]))


def test_order_of_identities_frames_and_context_tokens(shake, inputs):
    model = updater(shake)
    before = model(**inputs)
    order = torch.tensor([3, 0, 4, 1, 2])
    prototypes = {key: inputs[key][order] for key in ("visual_prototypes", "skeleton_prototypes")}
    torch.testing.assert_close(model(**{**inputs, **prototypes}), before[:, order])
    # Means over time, and a context without positions: their order says nothing, unlike which clip they are of.
    flipped = {key: inputs[key].flip(1) for key in ("projected_tokens", "joints", "frame_mask")}
    torch.testing.assert_close(model(**{**inputs, **flipped}), before)
    flipped = {key: inputs[key].flip(2) for key in ("projected_tokens", "joints")}
    torch.testing.assert_close(model(**{**inputs, **flipped}), before)


def attention(layer, x, context, slow):
    q = [slow.linear(one, layer.query) for one in x]
    k, v = ([slow.linear(one, part) for one in context] for part in (layer.key, layer.value))
    return [slow.linear(one, layer.out) for one in slow.attend(q, k, v, HEADS)]


def decode(decoder, prototypes, context, slow):
    """One clip: its context is a list of tokens, those that do not count left out."""
    norm_in, linear_in, norm_after = decoder.context_in
    context = [slow.norm(slow.linear(slow.norm(u, norm_in), linear_in), norm_after) for u in context]
    x = [slow.linear(slow.norm(p, decoder.prototypes_in[0]), decoder.prototypes_in[1]) for p in prototypes]
    for layer in decoder.layers:
        normed = [slow.norm(one, layer.norm_self) for one in x]
        x = [a + b for a, b in zip(x, attention(layer.self_attention, normed, normed, slow), strict=True)]
        normed = [slow.norm(one, layer.norm_cross) for one in x]
        x = [a + b for a, b in zip(x, attention(layer.cross_attention, normed, context, slow), strict=True)]
        up, _, _, down = layer.mlp
        for i, one in enumerate(x):
            hidden = slow.linear(slow.norm(one, layer.norm_mlp), up)
            x[i] = one + slow.linear(hidden * torch.sigmoid(1.702 * hidden), down)
    return [slow.linear(slow.norm(one, decoder.out[0]), decoder.out[1]) for one in x]


@torch.no_grad()
def test_updated_prototypes_are_those_of_a_slow_reference(shake, inputs, slow):
    model = updater(shake)
    got = model(**inputs)
    prototypes = fuse(model, inputs["visual_prototypes"], inputs["skeleton_prototypes"], slow)
    xp, s = inputs["projected_tokens"], inputs["joints"]
    # Clip 0 has both skeletons, clip 1 the second, clip 2 none: its context is visual only.
    skeleton = [[(s[0, 0, j] + s[0, 1, j]) / 2 for j in range(J)], [s[1, 1, j] for j in range(J)], []]
    for b in range(B):
        context = [(xp[b, 0, n] + xp[b, 1, n]) / 2 for n in range(N)] + skeleton[b]
        update = decode(model.decoder, prototypes, context, slow)
        for k in range(K):
            want = (inputs["v_bar"][b] * (prototypes[k] + update[k])).sum()
            torch.testing.assert_close(got[b, k], want, atol=1e-4, rtol=1e-4)


def test_masked_frames_have_no_influence(shake, inputs):
    model = updater(shake)
    before = model(**inputs)
    mask = inputs["frame_mask"][:, :, None, None]
    inputs["joints"] = torch.where(mask, inputs["joints"], torch.full_like(inputs["joints"], float("nan")))
    assert torch.equal(model(**inputs), before)


def test_clips_do_not_see_each_other(shake, inputs):
    model = updater(shake)
    per_clip = ("v_bar", "projected_tokens", "joints", "frame_mask")
    before = model(**inputs)
    order = torch.tensor([2, 0, 1])
    shuffled = {key: value[order] if key in per_clip else value for key, value in inputs.items()}
    torch.testing.assert_close(model(**shuffled), before[order])
    for key in ("projected_tokens", "joints"):
        changed = {**inputs, key: inputs[key].clone()}
        changed[key][0] += torch.randn_like(changed[key][0])
        after = model(**changed)
        assert not torch.allclose(after[0], before[0])
        torch.testing.assert_close(after[1:], before[1:])


def test_the_context_of_a_clip_without_skeletons_counts_visual_tokens_only(inputs):
    context, valid = build_context(inputs["projected_tokens"], inputs["joints"], inputs["frame_mask"])
    assert context.shape == (B, N + J, C)
    assert valid.tolist() == [[True] * 5, [True] * 5, [True] * 3 + [False] * 2]


class Largest(TorchDispatchMode):
    """Remembers the most elements that any operation's result had, backward included."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_flatten(out)[0]:
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.numel())
        return out


def test_attention_between_prototypes_is_never_stored():
    many, width, clips = 512, 16, 2
    model = PrototypeFusionUpdater(width=width, layers=2, heads=8, dropout=0.1).train()
    joints = torch.randn(clips, T, J, width, requires_grad=True)
    with Largest() as largest:
        logits = model(
            torch.randn(many, width),
            torch.randn(many, width),
            torch.randn(clips, width, requires_grad=True),
            torch.randn(clips, T, N, width, requires_grad=True),
            joints,
            torch.ones(clips, T, dtype=torch.bool),
        )
        logits.sum().backward()
    # The MLP's hidden layer is the largest; one head's weights for one clip would be four times as many.
    assert largest.elements == clips * many * 4 * width
    assert largest.elements * 4 == many * many
    assert joints.grad.abs().sum() > 0


def test_the_first_self_attention_is_computed_once_for_the_batch(shake, inputs):
    model, rows = updater(shake), []
    for layer in model.decoder.layers:
        layer.self_attention.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    model(**inputs)
    assert rows == [1, B]


def test_each_clip_draws_its_own_dropout(shake, inputs):
    model = updater(shake, dropout=0.5).train()
    # Cross-attention and MLP silenced, so that the shared self-attention is all that could tell clips apart.
    with torch.no_grad():
        for layer in model.decoder.layers:
            for linear in (layer.cross_attention.out, layer.mlp[3]):
                linear.weight.zero_()
                linear.bias.zero_()
    inputs["v_bar"] = inputs["v_bar"][:1].expand(B, -1)
    logits = model(**inputs)
    assert not torch.allclose(logits[0], logits[1])
    model.eval()
    torch.testing.assert_close(model(**inputs)[0], model(**inputs)[1])


def test_decoder_linears_start_small_with_zero_bias():
    torch.manual_seed(0)
    decoder = PrototypeFusionUpdater(width=64).decoder
    linears = [module for module in decoder.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linears) == 3 + 2 * (4 + 4 + 2)
    for linear in linears:
        assert float(linear.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
        assert linear.bias is None or not linear.bias.any()


def test_heads_that_do_not_divide_the_width_and_missing_joints_are_refused(shake, inputs):
    with pytest.raises(ValueError, match=r"got 3 heads, expected a divisor of width=8"):
        PrototypeFusionUpdater(width=8, heads=3)
    with pytest.raises(ValueError, match=r"got no joints"):
        updater(shake)(**{**inputs, "joints": None})
