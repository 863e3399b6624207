"""The losses of stage 1 (contrastive) and stage 2 (identity, triplet, prototypes, frames).

Shapes: B clips, T frames, C feature width, K training identities. Every loss is computed in float32, also under
mixed precision: features are not normalised, and their products outgrow half precision.

Of several processes each holds a share of the batch. Its clips are compared with the whole batch, and every loss is its
share of the whole batch's mean: the shares of all processes sum to what one process would find.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from csip import ranks
from csip.models.reid import TrainOutput


def supervised_contrastive(
    a: Tensor, b: Tensor, label: Tensor, *, temperature: float = 1.0, normalize: bool = False
) -> Tensor:
    """Supervised contrastive loss of one modality against the other (method.md section 3).

    L(a, b) = - mean_i 1/|P(i)| sum_{p in P(i)} log softmax_j(a_i . b_j / temperature)[p], where P(i) are all clips
    of i's identity, i among them.

    Args:
        a: (B, C) anchors.
        b: (B, C) features they are compared with.
        label: (B,) int64.
        temperature: divides the products.
        normalize: bring both to unit length first; the paper does not.

    Returns:
        Scalar.

    Raises:
        ValueError: the shapes do not fit.
    """
    if a.ndim != 2 or a.shape != b.shape or label.shape != a.shape[:1]:
        raise ValueError(
            f"supervised_contrastive: got a {tuple(a.shape)}, b {tuple(b.shape)} and label {tuple(label.shape)}, "
            "expected (B, C), (B, C) and (B,)."
        )
    with torch.autocast(a.device.type, enabled=False):
        a, b = a.float(), b.float()
        if normalize:
            a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
        everybody, labels = ranks.gather(b), ranks.gather(label)
        log_prob = F.log_softmax(a @ everybody.T / temperature, dim=1)  # (B, B of all processes)
        same = label[:, None] == labels[None, :]
        # Put to zero by selection, since 0 times a log-probability of -inf would be NaN.
        per_anchor = log_prob.masked_fill(~same, 0).sum(dim=1) / same.sum(dim=1)
    return -per_anchor.sum() / len(labels)


def contrastive_pair(
    v_bar: Tensor, s_bar: Tensor, label: Tensor, *, temperature: float = 1.0, normalize: bool = False
) -> Tensor:
    """Stage 1's loss: images against skeletons and skeletons against images, both (B, C), to a scalar."""
    return supervised_contrastive(
        v_bar, s_bar, label, temperature=temperature, normalize=normalize
    ) + supervised_contrastive(s_bar, v_bar, label, temperature=temperature, normalize=normalize)


def batch_hard_triplet(feature: Tensor, label: Tensor, *, margin: float) -> Tensor:
    """Each clip's farthest match must lie closer than its nearest stranger, by a margin.

    mean_i max(0, margin + max_{y_j = y_i} d_ij - min_{y_j != y_i} d_ij), d the Euclidean distance of features as they
    are (not normalised).

    Args:
        feature: (B, C).
        label: (B,) int64.
        margin: in units of distance.

    Returns:
        Scalar.

    Raises:
        ValueError: the shapes do not fit, or the batch holds one identity only.
    """
    if feature.ndim != 2 or label.shape != feature.shape[:1]:
        raise ValueError(
            f"batch_hard_triplet: got feature {tuple(feature.shape)} and label {tuple(label.shape)}, "
            "expected (B, C) and (B,)."
        )
    labels = ranks.gather(label)
    if bool((labels == labels[0]).all()):
        raise ValueError(
            f"batch_hard_triplet: got {len(labels)} clips of one identity, expected at least two identities a batch."
        )
    same = label[:, None] == labels[None, :]
    with torch.autocast(feature.device.type, enabled=False):
        own = feature.float()
        difference = own[:, None] - ranks.gather(own)[None, :]  # (B, B of all processes, C)
        # Floored before the root, whose slope at zero is infinite.
        distance = difference.square().sum(dim=2).clamp(min=1e-12).sqrt()
        farthest_match = distance.masked_fill(~same, float("-inf")).amax(dim=1)
        nearest_stranger = distance.masked_fill(same, float("inf")).amin(dim=1)
    return F.relu(margin + farthest_match - nearest_stranger).sum() / len(labels)


def cross_entropy(logits: Tensor, label: Tensor, *, label_smoothing: float) -> Tensor:
    """Cross-entropy of logits (B, K) with labels (B,), a scalar in float32."""
    summed = F.cross_entropy(logits.float(), label, label_smoothing=label_smoothing, reduction="sum")
    return summed / ranks.total_count(len(label))


@dataclass(frozen=True, slots=True, eq=False)
class Stage2Losses:
    """The terms of stage 2 before their weights, scalars; None where a part is switched off.

    Attributes:
        identity: sum of the cross-entropies on g, v_bar and f.
        triplet: sum of the batch-hard triplet losses on g, v_bar and f.
        prototype: cross-entropy on the prototype logits.
        frame: frame-wise cross-entropy, mean over B T frames, divided by T.
        total: the weighted sum, which is what training minimises.
    """

    identity: Tensor
    triplet: Tensor
    prototype: Tensor | None
    frame: Tensor | None
    total: Tensor


def stage2_loss(
    output: TrainOutput,
    label: Tensor,
    *,
    label_smoothing: float,
    margin: float,
    identity_weight: float,
    triplet_weight: float,
    prototype_weight: float,
    frame_weight: float,
) -> Stage2Losses:
    """Sum what stage 2 minimises (method.md section 4, Loss); absent parts have no term.

    Args:
        output: of `CsipReID.forward`.
        label: (B,) int64.
        label_smoothing: of every cross-entropy.
        margin: of the triplet losses.
        identity_weight: of the identity losses' sum.
        triplet_weight: of the triplet losses' sum.
        prototype_weight: of the prototype loss.
        frame_weight: of the frame loss.
    """

    def classify(logits: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(logits, target, label_smoothing=label_smoothing)

    logits = [one for one in (output.logits_g, output.logits_v, output.logits_f) if one is not None]
    features = [one for one in (output.g, output.v_bar, output.f) if one is not None]
    identity = torch.stack([classify(one, label) for one in logits]).sum()
    triplet = torch.stack([batch_hard_triplet(one, label, margin=margin) for one in features]).sum()
    total = identity_weight * identity + triplet_weight * triplet
    prototype = frame = None
    if output.logits_prototypes is not None:
        prototype = classify(output.logits_prototypes, label)
        total = total + prototype_weight * prototype
    if output.logits_frames is not None:
        t = output.logits_frames.shape[1]
        frame = classify(output.logits_frames.flatten(0, 1), label.repeat_interleave(t)) / t
        total = total + frame_weight * frame
    return Stage2Losses(identity=identity, triplet=triplet, prototype=prototype, frame=frame, total=total)
