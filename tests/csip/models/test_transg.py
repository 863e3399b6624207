import math

import pytest
import torch

from csip.joints import KINECT20
from csip.models.transg import TransgEncoder

pytestmark = pytest.mark.usefixtures("one_thread")
POSITIONS = torch.from_numpy(KINECT20.graph_positions(10))


def make(seed=0, **changes):
    torch.manual_seed(seed)
    return TransgEncoder(**({"positions": POSITIONS, "width": 8, "layers": 2, "heads": 2, "dropout": 0.5} | changes))


def scale(x, layer, mean, variance):
    """One vector through batch norm with the given statistics."""
    return (x - mean) / torch.sqrt(variance + layer.eps) * layer.weight + layer.bias


def by_hand(encoder, frame, slow):
    """One frame (J, 3) through the encoder in evaluation mode, joint by joint and head by head."""
    embedded = []
    for joint, position in zip(frame, encoder.positions, strict=True):
        hidden = slow.linear(joint, encoder.embed_joint[0]).clamp(min=0)
        embedded.append(slow.linear(hidden, encoder.embed_joint[2]) + slow.linear(position, encoder.embed_position))
    width, x = len(embedded[0]), embedded
    for one in encoder.rounds:
        q, k, v = ([one.qkv.weight[i * width : (i + 1) * width] @ joint for joint in x] for i in range(3))
        x = slow.attend(q, k, v, one.heads, clamp=5)
    out = []
    for joint, before in zip(x, embedded, strict=True):
        first, second = encoder.norm_attention, encoder.norm_feed_forward
        y = scale(before + slow.linear(joint, encoder.out), first, first.running_mean, first.running_var)
        hidden = slow.linear(y, encoder.feed_forward[0]).clamp(min=0)
        z = y + slow.linear(hidden, encoder.feed_forward[3])
        out.append(scale(z, second, second.running_mean, second.running_var))
    return torch.stack(out)


def test_a_frame_comes_out_as_when_computed_joint_by_joint(slow, shake):
    encoder = shake(make()).eval()
    for norm in (encoder.norm_attention, encoder.norm_feed_forward):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    skeleton = torch.randn(2, 3, 20, 3)
    with torch.no_grad():
        found = encoder(skeleton)
        assert found.shape == (2, 3, 20, 8)
        for b, f in ((0, 0), (1, 2)):
            torch.testing.assert_close(found[b, f], by_hand(encoder, skeleton[b, f], slow), atol=1e-4, rtol=1e-4)


def test_at_the_published_size_it_has_the_numbers_that_the_layers_add_up_to():
    encoder = TransgEncoder(positions=POSITIONS)
    h = 128
    embedding = (3 * h + h) + (h * h + h) + (10 * h + h)
    attention = 2 * 8 * 3 * h * (h // 8)
    end = (h * h + h) + 2 * h + (h * 2 * h + 2 * h) + (2 * h * h + h) + 2 * h
    assert sum(p.numel() for p in encoder.parameters()) == embedding + attention + end


def test_queries_keys_and_values_begin_with_standard_deviation_one():
    weight = TransgEncoder(positions=POSITIONS).rounds[0].qkv.weight
    # 49,152 draws: the error of the deviation is about 1 / sqrt(2 n) = .003.
    assert float(weight.detach().std()) == pytest.approx(1, abs=0.02)


def test_signs_flip_in_training_and_never_after_it():
    encoder = make(dropout=0.0, frozen_statistics=True)
    skeleton = torch.randn(4, 2, 20, 3)
    encoder.eval()
    with torch.no_grad():
        assert torch.equal(encoder(skeleton), encoder(skeleton))
        encoder.train()
        seen = []
        for seed in range(8):
            torch.manual_seed(seed)
            seen.append(encoder(skeleton))
    assert any(not torch.equal(seen[0], other) for other in seen[1:])


def test_training_normalises_by_the_batch(shake):
    encoder = make(dropout=0.0).train()
    with torch.no_grad():
        out = encoder(torch.randn(6, 3, 20, 3)).flatten(0, 2)
    # The last norm's scale is 1 and its shift 0: over windows, frames and joints every channel is standard.
    torch.testing.assert_close(out.mean(dim=0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(dim=0, unbiased=False), torch.ones(8), atol=1e-3, rtol=0)


@pytest.mark.parametrize("frozen", [False, True])
def test_statistics_are_learnt_unless_they_are_frozen(frozen):
    encoder = make(frozen_statistics=frozen).train()
    for _ in range(3):
        encoder(5 + torch.randn(4, 2, 20, 3))
    for norm in (encoder.norm_attention, encoder.norm_feed_forward):
        untouched = torch.equal(norm.running_mean, torch.zeros(8)) and torch.equal(norm.running_var, torch.ones(8))
        assert untouched == frozen


def test_frozen_statistics_leave_a_scale_and_a_shift_after_training(slow):
    encoder = make(frozen_statistics=True).train()
    encoder(5 + torch.randn(4, 2, 20, 3))
    encoder.eval()
    with torch.no_grad():
        x = torch.randn(3, 8)
        torch.testing.assert_close(encoder.norm_attention(x), x / math.sqrt(1 + encoder.norm_attention.eps))


def test_frames_do_not_see_each_other():
    encoder = make().eval()
    skeleton = torch.randn(1, 3, 20, 3)
    other = skeleton.clone()
    other[:, 1] += 1
    with torch.no_grad():
        before, after = encoder(skeleton), encoder(other)
    torch.testing.assert_close(before[:, [0, 2]], after[:, [0, 2]])
    assert not torch.allclose(before[:, 1], after[:, 1])


def test_what_cannot_be_built_or_read_is_refused():
    with pytest.raises(ValueError, match=r"got 3 heads, expected a divisor of width=8"):
        make(heads=3)
    with pytest.raises(ValueError, match=r"got positions \(20,\), expected \(J, K\)"):
        make(positions=POSITIONS[:, 0])
    with pytest.raises(ValueError, match=r"got skeleton \(1, 6, 17, 3\), expected \(B, F, 20, 3\)"):
        make()(torch.zeros(1, 6, 17, 3))
