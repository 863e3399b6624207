"""Skeleton-only re-identification: an encoder of skeletons with the heads of its losses (datasets.md section 10).

Shapes: B windows, F frames a window, J joints, C channels, K people.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from csip.models.skeleton_encoder import SkeletonEncoder
from csip.models.transg import TransgEncoder


@dataclass(frozen=True, slots=True, eq=False)
class SkeletonOutput:
    """What the losses read.

    Attributes:
        frame: (B, F, C) graph features, the mean over a frame's joints.
        sequence: (B, C), the mean over a window's frames.
        structure: (B, F, J, 3) every frame's joints, told from the frame's kept joints.
        trajectory: (B, F, J, 3) every joint's path, told from the window's kept frames.
    """

    frame: Tensor
    sequence: Tensor
    structure: Tensor
    trajectory: Tensor


class SkeletonReID(nn.Module):
    """An encoder of skeletons with the heads of its two losses; `embed` needs none of them.

    Args:
        encoder: ours or TranSG's.
        frames: F.

    Raises:
        ValueError: the encoder's width is odd, which the trajectory head cannot halve.
    """

    def __init__(self, *, encoder: SkeletonEncoder | TransgEncoder, frames: int) -> None:
        super().__init__()
        width, self.joints, self.frames = encoder.embed_position.out_features, len(encoder.positions), frames
        if width % 2:
            raise ValueError(f"SkeletonReID: got an encoder of width {width}, expected an even width.")
        self.encoder = encoder
        self.frame_matrix = nn.Linear(width, width, bias=False)
        self.prototype_matrix = nn.Linear(width, width, bias=False)
        self.structure_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3 * self.joints))
        self.trajectory_head = nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, 3 * frames))

    def forward(self, skeleton: Tensor, kept_joints: Tensor, kept_frames: Tensor) -> SkeletonOutput:
        """Encode a batch of windows and reconstruct them from what is kept.

        Args:
            skeleton: (B, F, J, 3) float32, root-centred; every frame is valid.
            kept_joints: (J,) bool, True where the structure head sees the joint; one mask for the whole batch.
            kept_frames: (F,) bool, True where the trajectory head sees the frame.

        Raises:
            ValueError: the shapes do not fit, or a mask keeps nothing.
        """
        if kept_joints.shape != (self.joints,) or kept_frames.shape != (self.frames,):
            raise ValueError(
                f"SkeletonReID: got masks {tuple(kept_joints.shape)} and {tuple(kept_frames.shape)}, "
                f"expected ({self.joints},) and ({self.frames},)."
            )
        if not (bool(kept_joints.any()) and bool(kept_frames.any())):
            raise ValueError("SkeletonReID: got a mask that keeps no joint or no frame, expected one of each at least.")
        x = self._encode(skeleton)  # (B, F, J, C)
        b, f, j, _ = x.shape
        frame = x.mean(dim=2)
        structure = self.structure_head(x[:, :, kept_joints].mean(dim=2))  # (B, F, 3 J)
        trajectory = self.trajectory_head(x[:, kept_frames].mean(dim=1))  # (B, J, 3 F)
        return SkeletonOutput(
            frame=frame,
            sequence=frame.mean(dim=1),
            structure=structure.reshape(b, f, j, 3),
            trajectory=trajectory.reshape(b, j, f, 3).transpose(1, 2),
        )

    def compare(self, frame: Tensor, prototypes: Tensor) -> Tensor:
        """Compare graph features (B, F, C) with prototypes (K, C), each through its own matrix: (B, F, K) products."""
        products: Tensor = self.frame_matrix(frame) @ self.prototype_matrix(prototypes).T
        return products

    def embed(self, skeleton: Tensor) -> Tensor:
        """Encode windows (B, F, J, 3) to sequence features (B, C) as they are, not brought to length 1.

        Raises:
            ValueError: the shapes do not fit.
        """
        return self._encode(skeleton).mean(dim=2).mean(dim=1)

    def _encode(self, skeleton: Tensor) -> Tensor:
        """Encode every joint, (B, F, J, 3) to (B, F, J, C)."""
        if skeleton.ndim != 4 or skeleton.shape[1] != self.frames:
            raise ValueError(
                f"SkeletonReID: got skeleton {tuple(skeleton.shape)}, expected (B, {self.frames}, {self.joints}, 3)."
            )
        if isinstance(self.encoder, SkeletonEncoder):
            # Windows are cut from frames that have a skeleton; there is none to mask.
            everything = torch.ones(skeleton.shape[:2], dtype=torch.bool, device=skeleton.device)
            joints: Tensor = self.encoder(skeleton, everything)[0]
            return joints
        joints = self.encoder(skeleton)
        return joints
