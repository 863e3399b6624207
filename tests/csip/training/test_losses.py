import math

import pytest
import torch

from csip.models.reid import TrainOutput
from csip.training.losses import (
    Stage2Losses,
    batch_hard_triplet,
    contrastive_pair,
    cross_entropy,
    stage2_loss,
    supervised_contrastive,
)

WEIGHTS = {
    "label_smoothing": 0.1,
    "margin": 0.3,
    "identity_weight": 0.25,
    "triplet_weight": 1.0,
    "prototype_weight": 1.0,
    "frame_weight": 1.3,
}


def slow_contrastive(a, b, label, temperature):
    total = 0.0
    for i in range(len(a)):
        logits = [float(sum(p * q for p, q in zip(a[i], row, strict=True))) / temperature for row in b.tolist()]
        log_sum = math.log(sum(math.exp(value) for value in logits))
        positives = [p for p in range(len(b)) if label[p] == label[i]]
        total += sum(logits[p] - log_sum for p in positives) / len(positives)
    return -total / len(a)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_contrastive_is_that_of_a_slow_reference(temperature):
    torch.manual_seed(0)
    a, b, label = torch.randn(6, 4), torch.randn(6, 4), torch.tensor([0, 1, 0, 2, 1, 0])
    got = supervised_contrastive(a, b, label, temperature=temperature)
    assert float(got) == pytest.approx(slow_contrastive(a, b, label, temperature), rel=1e-5)


def test_contrastive_of_equal_features_is_the_log_of_the_batch():
    # Every product is the same, so each of 4 clips has probability 1/4, whoever is a match.
    loss = supervised_contrastive(torch.ones(4, 3), torch.ones(4, 3), torch.tensor([0, 0, 1, 2]))
    assert float(loss) == pytest.approx(math.log(4))


def test_contrastive_worked_out_by_hand():
    # a1.b = (2, 0), a2.b = (0, 2): each clip is its own only match.
    a, label = torch.eye(2), torch.tensor([0, 1])
    want = math.log(1 + math.exp(-2))
    assert float(supervised_contrastive(a, 2 * a, label)) == pytest.approx(want, rel=1e-5)
    # Unit length makes the products (1, 0); temperature 1/3 makes them (3, 0).
    got = supervised_contrastive(5 * a, 7 * a, label, normalize=True, temperature=1 / 3)
    assert float(got) == pytest.approx(math.log(1 + math.exp(-3)), rel=1e-5)
    # One identity: the mean over both clips of its log-probabilities, log-softmax of (2, 0) = (-.1269, -2.1269).
    same = supervised_contrastive(a, 2 * a, torch.tensor([5, 5]))
    assert float(same) == pytest.approx(want + 1, rel=1e-5)


def test_contrastive_pair_adds_both_directions():
    torch.manual_seed(0)
    v, s, label = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 1, 0, 1, 2])
    want = slow_contrastive(v, s, label, 1.0) + slow_contrastive(s, v, label, 1.0)
    assert float(contrastive_pair(v, s, label)) == pytest.approx(want, rel=1e-5)
    assert float(contrastive_pair(s, v, label)) == pytest.approx(want, rel=1e-5)
    assert slow_contrastive(v, s, label, 1.0) != pytest.approx(slow_contrastive(s, v, label, 1.0))


def test_contrastive_stays_float32_and_finite_under_mixed_precision():
    # Products of 90,000 are past half precision's 65,504; the strangers' probability is exactly 0.
    a = (300 * torch.eye(2)).half().requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16):
        loss = supervised_contrastive(a, a, torch.tensor([0, 1]))
    loss.backward()
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == 0
    assert torch.isfinite(a.grad).all()


def test_contrastive_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"got a \(2, 3\), b \(2, 4\) and label \(2,\)"):
        supervised_contrastive(torch.ones(2, 3), torch.ones(2, 4), torch.tensor([0, 1]))


def slow_triplet(feature, label, margin):
    distance = [
        [math.sqrt(max(sum((p - q) ** 2 for p, q in zip(x, y, strict=True)), 1e-12)) for y in feature] for x in feature
    ]
    total = 0.0
    for i, row in enumerate(distance):
        positive = max(d for d, y in zip(row, label, strict=True) if y == label[i])
        negative = min(d for d, y in zip(row, label, strict=True) if y != label[i])
        total += max(0.0, margin + positive - negative)
    return total / len(feature)


def test_triplet_worked_out_by_hand():
    # On a line: identity 0 at 0 and 3, identity 1 at 4 and 5. (farthest match, nearest stranger) of each:
    # (3, 4), (3, 1), (1, 1), (1, 2); with margin .3: 0, 2.3, .3, 0.
    feature = torch.tensor([[0.0], [3.0], [4.0], [5.0]])
    loss = batch_hard_triplet(feature, torch.tensor([0, 0, 1, 1]), margin=0.3)
    assert float(loss) == pytest.approx(2.6 / 4)


def test_triplet_is_that_of_a_slow_reference_and_of_torchs_ranking_loss():
    torch.manual_seed(0)
    feature, label = torch.randn(8, 3), torch.tensor([0, 1, 2, 0, 1, 2, 0, 3])
    got = batch_hard_triplet(feature, label, margin=0.3)
    assert float(got) == pytest.approx(slow_triplet(feature.tolist(), label.tolist(), 0.3), rel=1e-5)
    order = torch.randperm(8)
    torch.testing.assert_close(batch_hard_triplet(feature[order], label[order], margin=0.3), got)


def test_triplet_of_equal_features_is_the_margin_with_a_finite_gradient():
    feature = torch.ones(4, 3, requires_grad=True)
    loss = batch_hard_triplet(feature, torch.tensor([0, 0, 1, 1]), margin=0.3)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.3)
    assert torch.isfinite(feature.grad).all()


def test_triplet_features_are_not_normalised():
    feature, label = torch.tensor([[1.0, 0.0], [9.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1])
    # Directions alone would give 0; here clip 0 lies 8 from its match and sqrt 2 from the stranger,
    # clip 1 lies 8 and sqrt 82, clip 2 has only itself (1e-6) and sqrt 2.
    want = ((0.3 + 8 - math.sqrt(2)) + 0 + 0) / 3
    assert float(batch_hard_triplet(feature, label, margin=0.3)) == pytest.approx(want, rel=1e-5)


def test_triplet_of_one_identity_is_refused():
    with pytest.raises(ValueError, match=r"got 3 clips of one identity, expected at least two"):
        batch_hard_triplet(torch.ones(3, 2), torch.tensor([4, 4, 4]), margin=0.3)
    with pytest.raises(ValueError, match=r"got feature \(3, 2\) and label \(2,\)"):
        batch_hard_triplet(torch.ones(3, 2), torch.tensor([0, 1]), margin=0.3)


def smoothed(logits, target, smoothing=0.1):
    """Cross-entropy against 1 - smoothing on the target plus smoothing spread over all classes."""
    log_sum = math.log(sum(math.exp(value) for value in logits))
    share = smoothing / len(logits)
    return sum(-(share + (1 - smoothing) * (k == target)) * (value - log_sum) for k, value in enumerate(logits))


def mean_smoothed(logits, label):
    return sum(smoothed(row, y) for row, y in zip(logits.tolist(), label, strict=True)) / len(label)


def output(b=4, t=3, k=5, *, temporal=True, prototypes=True):
    torch.manual_seed(0)
    return TrainOutput(
        g=torch.randn(b, 6),
        v_bar=torch.randn(b, 4),
        f=torch.randn(b, 6) if temporal else None,
        logits_g=torch.randn(b, k),
        logits_v=torch.randn(b, k),
        logits_f=torch.randn(b, k) if temporal else None,
        logits_frames=torch.randn(b, t, k) if temporal else None,
        logits_prototypes=torch.randn(b, k) if prototypes else None,
    )


def test_stage_2_sums_its_terms_with_their_weights():
    out, label = output(), [0, 0, 3, 3]
    got = stage2_loss(out, torch.tensor(label), **WEIGHTS)
    identity = sum(mean_smoothed(one, label) for one in (out.logits_g, out.logits_v, out.logits_f))
    triplet = sum(slow_triplet(one.tolist(), label, 0.3) for one in (out.g, out.v_bar, out.f))
    prototype = mean_smoothed(out.logits_prototypes, label)
    frame = sum(mean_smoothed(out.logits_frames[:, t], label) for t in range(3)) / 3 / 3  # mean over B T, then / T
    for name, want in (("identity", identity), ("triplet", triplet), ("prototype", prototype), ("frame", frame)):
        assert float(getattr(got, name)) == pytest.approx(want, rel=1e-5), name
    assert float(got.total) == pytest.approx(0.25 * identity + triplet + prototype + 1.3 * frame, rel=1e-5)


def test_absent_parts_leave_no_term():
    out, label = output(temporal=False, prototypes=False), [0, 0, 3, 3]
    got = stage2_loss(out, torch.tensor(label), **WEIGHTS)
    identity = mean_smoothed(out.logits_g, label) + mean_smoothed(out.logits_v, label)
    triplet = sum(slow_triplet(one.tolist(), label, 0.3) for one in (out.g, out.v_bar))
    assert isinstance(got, Stage2Losses)
    assert got.prototype is None
    assert got.frame is None
    assert float(got.total) == pytest.approx(0.25 * identity + triplet, rel=1e-5)


def test_every_frame_is_compared_with_its_own_clips_label():
    logits = torch.full((2, 3, 4), -50.0)
    logits[0, :, 1] = logits[1, :, 2] = 50.0
    out = output(b=2, k=4)
    for good, want in ((logits, 0.0), (logits.flip(0), 100.0 / 3)):
        one = TrainOutput(
            **{name: getattr(out, name) for name in out.__slots__ if name != "logits_frames"}, logits_frames=good
        )
        got = stage2_loss(one, torch.tensor([1, 2]), **{**WEIGHTS, "label_smoothing": 0.0})
        assert float(got.frame) == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("order", [[3, 2, 1, 0], [1, 0, 3, 2], [2, 0, 3, 1]])
def test_no_loss_hangs_on_the_order_of_the_clips(order):
    out, label = output(), torch.tensor([0, 0, 3, 3])
    torch.manual_seed(1)
    other = torch.randn(4, 6)
    at = torch.tensor(order)
    moved = TrainOutput(**{name: getattr(out, name)[at] for name in out.__slots__})
    want, got = stage2_loss(out, label, **WEIGHTS), stage2_loss(moved, label[at], **WEIGHTS)
    for name in ("identity", "triplet", "prototype", "frame", "total"):
        torch.testing.assert_close(getattr(got, name), getattr(want, name))
    for settings in ({}, {"normalize": True, "temperature": 0.1}):
        torch.testing.assert_close(
            contrastive_pair(moved.g, other[at], label[at], **settings),
            contrastive_pair(out.g, other, label, **settings),
        )
    # Clips that change places on one side alone, across people, make another batch.
    crossed = out.g[[2, 1, 0, 3]]
    assert not torch.allclose(contrastive_pair(crossed, other, label), contrastive_pair(out.g, other, label))


def test_names_of_labels_mean_nothing():
    torch.manual_seed(0)
    a, b = torch.randn(5, 3), torch.randn(5, 3)
    label, renamed = torch.tensor([0, 1, 0, 2, 1]), torch.tensor([7, 2, 7, 0, 2])
    torch.testing.assert_close(contrastive_pair(a, b, label), contrastive_pair(a, b, renamed))
    one, other = (batch_hard_triplet(a, names, margin=0.3) for names in (label, renamed))
    torch.testing.assert_close(one, other)


def test_normalised_features_have_no_length():
    torch.manual_seed(0)
    a, b, label = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 1, 0, 2, 1])
    longer = torch.tensor([[1.0], [2.0], [0.1], [30.0], [5.0]])
    one = contrastive_pair(a, b, label, normalize=True)
    torch.testing.assert_close(contrastive_pair(longer * a, b / longer, label, normalize=True), one)
    assert not torch.allclose(contrastive_pair(longer * a, b / longer, label), contrastive_pair(a, b, label))
    # Temperature divides the products, as dividing one side does.
    torch.testing.assert_close(contrastive_pair(a, b, label, temperature=4.0), contrastive_pair(a / 4, b, label))


def test_cross_entropy_worked_out_by_hand():
    # Odds 3 : 1 and 1 : 1 of two classes, targets first and second: -ln 3/4 and -ln 1/2.
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    want = (math.log(4 / 3) + math.log(2)) / 2
    assert float(cross_entropy(logits, torch.tensor([0, 1]), label_smoothing=0.0)) == pytest.approx(want, rel=1e-6)
    # Smoothing of .2 puts .9 on the target and .1 on the other.
    want = (0.9 * math.log(4 / 3) + 0.1 * math.log(4) + math.log(2)) / 2
    assert float(cross_entropy(logits, torch.tensor([0, 1]), label_smoothing=0.2)) == pytest.approx(want, rel=1e-6)
    got = cross_entropy(logits.half(), torch.tensor([0, 1]), label_smoothing=0.2)
    assert got.dtype == torch.float32
