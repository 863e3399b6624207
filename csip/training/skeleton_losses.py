"""The losses of skeleton-only re-identification: contrast and reconstruction (datasets.md section 10).

Shapes: B windows, F frames a window, J joints, C channels, K people.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def draw_masks(
    joints: int, masked_joints: int, frames: int, masked_frames: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Draw which joints structure reconstruction sees, and which frames trajectory reconstruction does.

    Args:
        joints: J.
        masked_joints: how many of them are hidden.
        frames: F.
        masked_frames: how many of them are hidden.
        rng: the only source of chance.

    Returns:
        (J,) bool and (F,) bool, True where kept.

    Raises:
        ValueError: nothing would be kept.
    """
    if not (0 <= masked_joints < joints and 0 <= masked_frames < frames):
        raise ValueError(
            f"draw_masks: got {masked_joints} masked of {joints} joints and {masked_frames} of {frames} frames, "
            "expected fewer than there are. Lower skeleton.masked_joints or skeleton.masked_frames."
        )
    kept = []
    for count, hidden in ((joints, masked_joints), (frames, masked_frames)):
        mask = torch.ones(count, dtype=torch.bool)
        mask[torch.from_numpy(rng.permutation(count)[:hidden])] = False
        kept.append(mask)
    return kept[0], kept[1]


def prototype_contrast(
    sequence: Tensor,
    prototypes: Tensor,
    products: Tensor,
    label: Tensor,
    *,
    sequence_temperature: float,
    frame_temperature: float,
    sequence_share: float,
) -> Tensor:
    """Graph-prototype contrast (GPC): a window and each of its frames must find their person's prototype.

    Sequence level: the mean over windows of the cross-entropy of cos(sequence, prototypes) / sequence_temperature.
    Frame level: that of products / frame_temperature, summed over a window's frames.

    Args:
        sequence: (B, C) sequence features.
        prototypes: (K, C), constants.
        products: (B, F, K) of frames with prototypes, `SkeletonReID.compare`.
        label: (B,) int64, 0 to K - 1.
        sequence_temperature: t1.
        frame_temperature: t2.
        sequence_share: alpha, weight of the sequence level; the frame level has the rest.

    Returns:
        Scalar.

    Raises:
        ValueError: the shapes do not fit.
    """
    b, k = len(sequence), len(prototypes)
    if products.ndim != 3 or (products.shape[0], products.shape[2]) != (b, k) or label.shape != (b,):
        raise ValueError(
            f"prototype_contrast: got sequence {tuple(sequence.shape)}, prototypes {tuple(prototypes.shape)}, products "
            f"{tuple(products.shape)} and label {tuple(label.shape)}, expected (B, C), (K, C), (B, F, K) and (B,)."
        )
    cosine = F.normalize(sequence, dim=1) @ F.normalize(prototypes.detach(), dim=1).T
    sequence_loss = F.cross_entropy(cosine / sequence_temperature, label)
    frames = products.shape[1]
    each = F.cross_entropy(products.flatten(0, 1) / frame_temperature, label.repeat_interleave(frames), reduction="sum")
    return sequence_share * sequence_loss + (1 - sequence_share) * each / b


def prompted_reconstruction(
    structure: Tensor, trajectory: Tensor, skeleton: Tensor, *, structure_share: float, over_batch: bool = False
) -> Tensor:
    """Structure-trajectory prompted reconstruction (STPR): the mean absolute error of every coordinate.

    Args:
        structure: (B, F, J, 3) reconstructed from the kept joints.
        trajectory: (B, F, J, 3) reconstructed from the kept frames.
        skeleton: (B, F, J, 3) root-centred, what both should be.
        structure_share: beta, weight of structure; trajectory has the rest.
        over_batch: divide once more by B, as published.

    Returns:
        Scalar, in the skeleton's units.

    Raises:
        ValueError: the shapes differ.
    """
    if not structure.shape == trajectory.shape == skeleton.shape:
        raise ValueError(
            f"prompted_reconstruction: got structure {tuple(structure.shape)}, trajectory {tuple(trajectory.shape)} "
            f"and skeleton {tuple(skeleton.shape)}, expected one shape (B, F, J, 3)."
        )
    loss = structure_share * F.l1_loss(structure, skeleton) + (1 - structure_share) * F.l1_loss(trajectory, skeleton)
    return loss / len(skeleton) if over_batch else loss
