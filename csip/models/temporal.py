"""Skeleton Guided Temporal Modelling (SGTM): frames weighed token by token, with skeletons as a teacher.

Shapes: B clips, T frames, J joints, N visual tokens a frame, C shared width, D token width,
L tokens a frame in SGTM: N + 1 without skeletons, N + 1 + J + 1 with them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from csip.models.mlp import Mlp

# Rows of the token-type embedding.
_VISUAL, _VISUAL_MESSAGE, _JOINT, _JOINT_MESSAGE = range(4)


class SkeletonGuidedTemporal(nn.Module):
    """Messages over time, then one transformer layer over each frame's tokens (method.md section 4, SGTM).

    Skeletons are privileged information: training passes joints, the test does not. Nothing here reads
    `self.training` but dropout.

    Args:
        token_width: D.
        width: C.
        heads: attention heads.
        dropout: on the weights of the four attentions, inside and after the MLP.

    Raises:
        ValueError: `heads` does not divide `token_width`.
    """

    def __init__(self, *, token_width: int, width: int, heads: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        if token_width % heads:
            raise ValueError(f"SkeletonGuidedTemporal: got {heads} heads, expected a divisor of D={token_width}.")
        d = token_width
        self.visual_message = nn.Linear(d, d)
        self.visual_norm = nn.LayerNorm(d)
        self.visual_attention = nn.MultiheadAttention(d, heads, dropout=dropout, batch_first=True)
        self.joint_tokens = nn.Linear(width, d)
        self.joint_norm = nn.LayerNorm(d)
        self.joint_attention = nn.MultiheadAttention(d, heads, dropout=dropout, batch_first=True)
        self.cross_norm_visual = nn.LayerNorm(d)
        self.cross_norm_joint = nn.LayerNorm(d)
        self.cross_attention = nn.MultiheadAttention(d, heads, dropout=dropout, batch_first=True)
        self.token_type = nn.Embedding(4, d)
        self.frame_norm = nn.LayerNorm(d)
        self.frame_attention = nn.MultiheadAttention(d, heads, dropout=dropout, batch_first=True)
        self.mlp_norm = nn.LayerNorm(d)
        self.mlp = Mlp(nn.Linear(d, 4 * d), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * d, d), nn.Dropout(dropout))
        self.token_score = nn.Linear(d, 1)

    def forward(
        self, tokens: Tensor, joints: Tensor | None = None, frame_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Pool a batch of clips.

        Args:
            tokens: x (B, T, N, D), detached from the visual encoder by the caller.
            joints: s (B, T, J, C) in training; None is the visual-only form of the test.
            frame_mask: (B, T) bool, True where the frame has a valid skeleton; None for all. A clip that is masked
                throughout comes out as if its joints were None.

        Returns:
            Clip features f (B, D), and frame features f_t (B, T, D).

        Raises:
            ValueError: joints or mask do not fit the tokens.
        """
        b, t = tokens.shape[:2]
        message = self.visual_message(tokens.mean(dim=2))  # (B, T, D)
        message = message + attend(self.visual_attention, self.visual_norm(message))
        if joints is None:
            return self._pool(*self._token_set(tokens, message))
        mask = tokens.new_ones(b, t, dtype=torch.bool) if frame_mask is None else frame_mask
        if joints.shape[:2] != (b, t) or mask.shape != (b, t):
            raise ValueError(
                f"SkeletonGuidedTemporal: got tokens {tuple(tokens.shape)}, joints {tuple(joints.shape)} and "
                f"frame_mask {tuple(mask.shape)}, expected the same B and T in all."
            )
        joint_tokens = self.joint_tokens(joints)  # (B, T, J, D)
        joint_message = joint_tokens.mean(dim=2)  # (B, T, D)
        joint_message = joint_message + attend(self.joint_attention, self.joint_norm(joint_message), keep=mask)
        message = message + attend(
            self.cross_attention, self.cross_norm_visual(message), self.cross_norm_joint(joint_message), keep=mask
        )
        return self._pool(*self._token_set(tokens, message, joint_tokens, joint_message, mask))

    def _token_set(
        self,
        tokens: Tensor,
        message: Tensor,
        joint_tokens: Tensor | None = None,
        joint_message: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Gather each frame's tokens with their types, (B, T, L, D), and which of them count, (B, T, L) bool."""
        kind = self.token_type.weight
        z = [tokens + kind[_VISUAL], message[:, :, None] + kind[_VISUAL_MESSAGE]]
        if joint_tokens is None or joint_message is None or mask is None:
            return torch.cat(z, dim=2), None
        z += [joint_tokens + kind[_JOINT], joint_message[:, :, None] + kind[_JOINT_MESSAGE]]
        seen = tokens.shape[2] + 1
        always = mask.new_ones(*mask.shape, seen)
        counts = torch.cat([always, mask[:, :, None].expand(-1, -1, joint_tokens.shape[2] + 1)], dim=2)
        return torch.cat(z, dim=2), counts

    def _pool(self, z: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor]:
        b, t, length, d = z.shape
        z = z.reshape(b * t, length, d)  # tokens attend within their own frame
        keep = None if counts is None else counts.reshape(b * t, length)
        z = z + attend(self.frame_attention, self.frame_norm(z), keep=keep)
        z = z + self.mlp(self.mlp_norm(z))
        weight = torch.sigmoid(self.token_score(z))  # (B T, L, 1)
        if keep is not None:
            weight = weight.masked_fill(~keep[:, :, None], 0)
        weight = weight / (weight.sum(dim=1, keepdim=True) + 1e-6)
        f_t = (weight * z).sum(dim=1).reshape(b, t, d)
        return f_t.mean(dim=1), f_t


def attend(
    attention: nn.MultiheadAttention, query: Tensor, source: Tensor | None = None, *, keep: Tensor | None = None
) -> Tensor:
    """Attend to the kept keys only; a row without any gets 0, where softmax over nothing would give NaN.

    Args:
        attention: batch-first.
        query: (B, L, D).
        source: (B, S, D) keys and values; None for self-attention.
        keep: (B, S) bool; None keeps all.

    Returns:
        (B, L, D).
    """
    source = query if source is None else source
    if keep is None:
        out: Tensor = attention(query, source, source, need_weights=False)[0]
        return out
    empty = ~keep.any(dim=1)  # (B,)
    # An empty row attends to everything and is then put to zero: no NaN arises, in the backward pass either.
    out = attention(query, source, source, key_padding_mask=~(keep | empty[:, None]), need_weights=False)[0]
    return out.masked_fill(empty[:, None, None], 0)
