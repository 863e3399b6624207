"""Skeleton encoder S, the Skeleton Graph Transformer (SGT): a clip's skeletons to joint and sequence features.

Shapes: B clips, T frames, J joints, C channels, K graph positions, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from csip import ranks


class SkeletonEncoder(nn.Module):
    """Transformer over the joints of each frame, with the joint graph's positions (method.md section 2).

    Args:
        positions: (J, K) float32, eigenvectors of the joint graph's Laplacian.
        width: C.
        layers: transformer layers.
        heads: attention heads.
        dropout: after the attention's output, the feed-forward's ReLU and its output.

    Raises:
        ValueError: `positions` is not a matrix, or `heads` does not divide `width`.
    """

    positions: Tensor

    def __init__(
        self, *, positions: Tensor, width: int, layers: int = 10, heads: int = 8, dropout: float = 0.3
    ) -> None:
        super().__init__()
        if positions.ndim != 2:
            raise ValueError(f"SkeletonEncoder: got positions {tuple(positions.shape)}, expected (J, K).")
        if width % heads:
            raise ValueError(f"SkeletonEncoder: got {heads} heads, expected a divisor of width={width}.")
        # Saved with the weights: eigenvectors of one eigenvalue may come out rotated on another machine.
        self.register_buffer("positions", positions.detach().clone().float())
        self.embed_joint = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, width))
        self.embed_position = nn.Linear(positions.shape[1], width)
        self.layers = nn.Sequential(*(JointLayer(width=width, heads=heads, dropout=dropout) for _ in range(layers)))
        self.projection = nn.Linear(width, width, bias=False)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(self, skeleton: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a batch of clips.

        Args:
            skeleton: (B, T, J, 3) float32, root-centred; the last axis is x, y, confidence (or z).
            frame_mask: (B, T) bool, True where the frame has a valid skeleton.

        Returns:
            Joint features s (B, T, J, C), those of masked frames without meaning; and the sequence feature s_bar
            (B, C), the mean over the joints of valid frames, 0 for a clip that has none.

        Raises:
            ValueError: the shapes do not fit each other or the joint graph.
        """
        b, t, j, channels = skeleton.shape
        if (j, channels) != (len(self.positions), 3) or frame_mask.shape != (b, t):
            raise ValueError(
                f"SkeletonEncoder: got skeleton {tuple(skeleton.shape)} and frame_mask {tuple(frame_mask.shape)}, "
                f"expected (B, T, {len(self.positions)}, 3) and (B, T)."
            )
        positions = flip_signs(self.positions) if self.training else self.positions
        x = self.embed_joint(skeleton) + self.embed_position(positions)
        # Joints attend within their own frame; motion across frames is SGTM's work.
        x = self.layers(x.reshape(b * t, j, -1)).reshape(b, t, j, -1)
        s = self.projection(x)
        return s, _masked_mean(s, frame_mask)


class JointLayer(nn.Module):
    """Post-norm transformer layer whose attention logits are clamped to [-5, 5]."""

    def __init__(self, *, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_attention = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )
        self.norm_feed_forward = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Let the joints of each frame attend to each other, (B T, J, C) to the same."""
        x = self.norm_attention(x + self.dropout(self._attend(x)))
        x = self.norm_feed_forward(x + self.dropout(self.feed_forward(x)))
        return x

    def _attend(self, x: Tensor) -> Tensor:
        n, j, c = x.shape
        # (3, n, H, J, C / H)
        q, k, v = self.qkv(x).reshape(n, j, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        # J x J is small; the clamp is why fused attention does not serve here. Scaled before the product, so that
        # it stays inside half precision.
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        attended = logits.clamp(-5, 5).softmax(dim=-1).to(v.dtype) @ v  # (n, H, J, C / H)
        out: Tensor = self.out(attended.transpose(1, 2).reshape(n, j, c))
        return out


def flip_signs(positions: Tensor) -> Tensor:
    """Give each eigenvector (J, K) a random sign, the same for the whole batch: it has none of its own. In training."""
    flips = ranks.from_first(torch.randint(0, 2, (positions.shape[1],), device=positions.device))
    return positions * (1 - 2 * flips)


def _masked_mean(s: Tensor, frame_mask: Tensor) -> Tensor:
    """Mean over the joints of valid frames, (B, T, J, C) to (B, C)."""
    valid = s.masked_fill(~frame_mask[:, :, None, None], 0)
    count = frame_mask.sum(dim=1).clamp(min=1) * s.shape[2]  # (B,)
    return valid.sum(dim=(1, 2)) / count[:, None]
