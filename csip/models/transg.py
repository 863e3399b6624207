"""TranSG's Skeleton Graph Transformer: the other skeleton encoder, as published (datasets.md section 10, item 2).

Shapes: B windows, F frames, J joints, C channels, K graph positions, H heads.
"""

from __future__ import annotations

from torch import Tensor, nn

from csip.models.skeleton_encoder import flip_signs


class TransgEncoder(nn.Module):
    """Rounds of pure attention over the joints of each frame; one residual and one feed-forward layer at the end.

    Args:
        positions: (J, K) float32, eigenvectors of the joint graph's Laplacian.
        width: C.
        layers: rounds of attention.
        heads: H.
        dropout: of what the rounds come to, and inside the feed-forward layer.
        frozen_statistics: normalise by the batch in training and by mean 0 and variance 1 after it, as the published
            code does by never updating the running statistics: batch norm is then only a learnt scale and shift.

    Raises:
        ValueError: `positions` is not a matrix, or `heads` does not divide `width`.
    """

    positions: Tensor

    def __init__(
        self,
        *,
        positions: Tensor,
        width: int = 128,
        layers: int = 2,
        heads: int = 8,
        dropout: float = 0.5,
        frozen_statistics: bool = False,
    ) -> None:
        super().__init__()
        if positions.ndim != 2:
            raise ValueError(f"TransgEncoder: got positions {tuple(positions.shape)}, expected (J, K).")
        if width % heads:
            raise ValueError(f"TransgEncoder: got {heads} heads, expected a divisor of width={width}.")
        # Saved with the weights: eigenvectors of one eigenvalue may come out rotated on another machine.
        self.register_buffer("positions", positions.detach().clone().float())
        self.embed_joint = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, width))
        self.embed_position = nn.Linear(positions.shape[1], width)
        self.rounds = nn.Sequential(*(_Attention(width=width, heads=heads) for _ in range(layers)))
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, width)
        # A momentum of 0 leaves the running statistics where they begin.
        momentum = 0.0 if frozen_statistics else 0.1
        self.norm_attention = nn.BatchNorm1d(width, momentum=momentum)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )
        self.norm_feed_forward = nn.BatchNorm1d(width, momentum=momentum)

    def forward(self, skeleton: Tensor) -> Tensor:
        """Encode a batch of windows whose every frame has a skeleton.

        Args:
            skeleton: (B, F, J, 3) float32, root-centred.

        Returns:
            Joint features (B, F, J, C).

        Raises:
            ValueError: the skeletons do not fit the joint graph.
        """
        b, f, j, channels = skeleton.shape
        if (j, channels) != (len(self.positions), 3):
            raise ValueError(
                f"TransgEncoder: got skeleton {tuple(skeleton.shape)}, expected (B, F, {len(self.positions)}, 3)."
            )
        positions = flip_signs(self.positions) if self.training else self.positions
        embedded = (self.embed_joint(skeleton) + self.embed_position(positions)).reshape(b * f, j, -1)
        x = embedded + self.out(self.dropout(self.rounds(embedded)))
        x = self.norm_attention(x.flatten(0, 1))  # (B F J, C): one statistic a channel
        out: Tensor = self.norm_feed_forward(x + self.feed_forward(x))
        return out.reshape(b, f, j, -1)


class _Attention(nn.Module):
    """One round: each head's attention over the joints, side by side; no bias, residual or norm."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        # A head's own C x C/H matrices are rows of this one. Standard deviation 1, as published.
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        nn.init.normal_(self.qkv.weight, std=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Let the joints of each frame attend to each other, (B F, J, C) to the same."""
        n, j, c = x.shape
        # (3, n, H, J, C / H)
        q, k, v = self.qkv(x).reshape(n, j, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        attended: Tensor = logits.clamp(-5, 5).softmax(dim=-1).to(v.dtype) @ v  # (n, H, J, C / H)
        return attended.transpose(1, 2).reshape(n, j, c)
