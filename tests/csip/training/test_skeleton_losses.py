import math

import numpy as np
import pytest
import torch

from csip.training.skeleton_losses import draw_masks, prompted_reconstruction, prototype_contrast

SHARES = {"sequence_temperature": 0.07, "frame_temperature": 14.0, "sequence_share": 0.5}


def cross_entropy(logits, wanted):
    return math.log(sum(math.exp(value) for value in logits)) - logits[wanted]


def slow_contrast(sequence, prototypes, products, label, t1, t2, alpha):
    """datasets.md section 10, item 4, in loops over plain numbers."""
    on_sequences = on_frames = 0.0
    for b, wanted in enumerate(label.tolist()):
        a = sequence[b].tolist()
        cosines = []
        for prototype in prototypes.tolist():
            lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in prototype))
            cosines.append(sum(x * y for x, y in zip(a, prototype, strict=True)) / lengths)
        on_sequences += cross_entropy([c / t1 for c in cosines], wanted)
        for frame in products[b].tolist():
            on_frames += cross_entropy([value / t2 for value in frame], wanted)
    return ((1 - alpha) * on_frames + alpha * on_sequences) / len(label)


@pytest.mark.parametrize(("t1", "t2", "alpha"), [(0.07, 14.0, 0.5), (1.0, 2.0, 0.2), (0.5, 1.0, 1.0), (0.5, 1.0, 0.0)])
def test_contrast_is_that_of_a_slow_reference(t1, t2, alpha):
    torch.manual_seed(0)
    sequence, prototypes = 3 * torch.randn(5, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    products, label = 10 * torch.randn(5, 2, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])
    found = prototype_contrast(
        sequence, prototypes, products, label, sequence_temperature=t1, frame_temperature=t2, sequence_share=alpha
    )
    assert float(found) == pytest.approx(slow_contrast(sequence, prototypes, products, label, t1, t2, alpha), rel=1e-9)


def test_when_nothing_is_told_apart_the_frame_level_counts_every_frame():
    # All K logits alike: ln K for the sequence, F ln K for the frames, which are summed and not averaged.
    found = prototype_contrast(
        torch.ones(4, 8), torch.ones(5, 8), torch.zeros(4, 6, 5), torch.tensor([0, 1, 2, 3]), **SHARES
    )
    assert float(found) == pytest.approx(0.5 * math.log(5) + 0.5 * 6 * math.log(5), rel=1e-6)


def test_the_length_of_a_sequence_feature_does_not_count_and_prototypes_are_constants():
    torch.manual_seed(0)
    sequence, prototypes = torch.randn(4, 8), torch.randn(3, 8, requires_grad=True)
    products, label = torch.randn(4, 6, 3), torch.tensor([0, 1, 2, 2])
    one, ten = (prototype_contrast(s * sequence, prototypes, products, label, **SHARES) for s in (1, 10))
    assert float(one) == pytest.approx(float(ten), rel=1e-5)
    assert not one.requires_grad


def test_contrast_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"products \(4, 3, 6\).*expected \(B, C\), \(K, C\), \(B, F, K\) and \(B,\)"):
        prototype_contrast(
            torch.ones(4, 8), torch.ones(5, 8), torch.ones(4, 3, 6), torch.zeros(4, dtype=torch.long), **SHARES
        )


def test_reconstruction_is_the_mean_error_of_all_coordinates():
    rng = np.random.default_rng(0)
    structure, trajectory, skeleton = (rng.normal(size=(3, 2, 4, 3)) for _ in range(3))
    errors = []
    for told in (structure, trajectory):
        flat = zip(told.flatten().tolist(), skeleton.flatten().tolist(), strict=True)
        errors.append(sum(abs(a - b) for a, b in flat) / 72)
    tensors = [torch.from_numpy(x) for x in (structure, trajectory, skeleton)]
    found = prompted_reconstruction(*tensors, structure_share=0.3)
    assert float(found) == pytest.approx(0.3 * errors[0] + 0.7 * errors[1], rel=1e-9)
    # As published: once more by the batch's size, 3.
    again = prompted_reconstruction(*tensors, structure_share=0.3, over_batch=True)
    assert float(again) == pytest.approx(float(found) / 3, rel=1e-9)


def test_reconstruction_refuses_shapes_that_differ():
    with pytest.raises(ValueError, match=r"trajectory \(1, 4, 2, 3\).*expected one shape"):
        prompted_reconstruction(
            torch.ones(1, 2, 4, 3), torch.ones(1, 4, 2, 3), torch.ones(1, 2, 4, 3), structure_share=1
        )


def test_masks_hide_as_many_as_they_should_and_all_alike():
    hidden = np.zeros(20)
    for seed in range(2000):
        joints, frames = draw_masks(20, 10, 6, 2, np.random.default_rng(seed))
        assert (joints.shape, int(joints.sum()), frames.shape, int(frames.sum())) == ((20,), 10, (6,), 4)
        hidden += 1 - joints.numpy()
    # Half of 2000 draws each, within five standard deviations of sqrt(2000) / 2.
    assert np.abs(hidden - 1000).max() < 5 * 22.4


def test_masks_follow_from_the_generator_alone():
    one, again, other = (draw_masks(20, 10, 6, 2, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    joints, frames = draw_masks(3, 0, 2, 0, np.random.default_rng(0))
    assert bool(joints.all())
    assert bool(frames.all())


@pytest.mark.parametrize(("joints", "frames"), [(20, 2), (10, 6), (-1, 2)])
def test_a_mask_that_hides_everything_is_refused(joints, frames):
    with pytest.raises(ValueError, match=rf"got {joints} masked of 20 joints and {frames} of 6 frames, expected fewer"):
        draw_masks(20, joints, 6, frames, np.random.default_rng(0))
