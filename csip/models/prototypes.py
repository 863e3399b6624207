"""Prototypes and the Prototype Fusion Updater (PFU): logits from what each identity looks and moves like.

Shapes: B clips, T frames, J joints, N visual tokens a frame, C shared width, K identities, M features, H heads,
U = N + J context tokens a clip.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csip.models.mlp import Mlp, QuickGELU

PrototypeMode = Literal["pfu", "gate", "fixed", "visual"]


def mean_by_label(features: Tensor, label: Tensor, num_labels: int, present: Tensor | None = None) -> Tensor:
    """Average features by identity: the prototypes.

    Args:
        features: (M, C) float32, one a tracklet.
        label: (M,) int64, 0 to num_labels - 1.
        num_labels: K.
        present: (M,) bool, True where the feature counts; None counts all.

    Returns:
        (K, C) float32.

    Raises:
        ValueError: the shapes do not fit, a label is out of range, or a label has no feature.
    """
    wanted = (len(features),)
    if features.ndim != 2 or label.shape != wanted or (present is not None and present.shape != wanted):
        raise ValueError(
            f"mean_by_label: got features {tuple(features.shape)}, label {tuple(label.shape)} and present "
            f"{None if present is None else tuple(present.shape)}, expected (M, C), (M,) and (M,)."
        )
    if present is not None:
        features, label = features[present], label[present]
    if len(label) and not (int(label.min()) >= 0 and int(label.max()) < num_labels):
        raise ValueError(
            f"mean_by_label: got labels {int(label.min())} to {int(label.max())}, expected 0 to {num_labels - 1}."
        )
    count = torch.bincount(label, minlength=num_labels)
    absent = torch.nonzero(count == 0).flatten().tolist()
    if absent:
        listed = ", ".join(map(str, absent[:20])) + (", ..." if len(absent) > 20 else "")
        raise ValueError(f"mean_by_label: {len(absent)} of {num_labels} labels have no feature to average: {listed}.")
    total = features.new_zeros(num_labels, features.shape[1], dtype=torch.float32)
    return total.index_add(0, label, features.float()) / count[:, None]


class PrototypeFusionUpdater(nn.Module):
    """Compare a clip's visual feature with every identity's prototype (method.md section 4).

    Modes: "pfu" fuses visual and skeleton prototypes by a gate and updates them to each clip by a decoder; "gate"
    leaves the decoder out; "fixed" takes (P_s + P_v) / 2; "visual" takes P_v alone.

    Args:
        width: C.
        layers: decoder layers.
        heads: attention heads.
        dropout: after each attention's output, inside and after the MLP.
        mode: see above.

    Raises:
        ValueError: `heads` does not divide `width`.
    """

    def __init__(
        self, *, width: int, layers: int = 2, heads: int = 8, dropout: float = 0.1, mode: PrototypeMode = "pfu"
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"PrototypeFusionUpdater: got {heads} heads, expected a divisor of width={width}.")
        self.mode = mode
        self.gate: nn.Sequential | None = None
        self.decoder: PrototypeDecoder | None = None
        if mode in ("pfu", "gate"):
            self.gate = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 1))
        if mode == "pfu":
            self.decoder = PrototypeDecoder(width=width, layers=layers, heads=heads, dropout=dropout)

    def forward(
        self,
        visual_prototypes: Tensor,
        skeleton_prototypes: Tensor,
        v_bar: Tensor,
        projected_tokens: Tensor,
        joints: Tensor | None,
        frame_mask: Tensor,
    ) -> Tensor:
        """Score each clip against each identity.

        Args:
            visual_prototypes: P_v (K, C).
            skeleton_prototypes: P_s (K, C).
            v_bar: (B, C).
            projected_tokens: xp (B, T, N, C); read by "pfu" only, as the two that follow.
            joints: s (B, T, J, C).
            frame_mask: (B, T) bool, True where the frame has a valid skeleton.

        Returns:
            Logits (B, K) float32.

        Raises:
            ValueError: "pfu" without joints.
        """
        prototypes = self._fuse(visual_prototypes, skeleton_prototypes)  # (K, C)
        per_clip: Tensor | None = None
        if self.decoder is not None:
            if joints is None:
                raise ValueError("PrototypeFusionUpdater: got no joints, expected (B, T, J, C) in mode pfu.")
            context, valid = build_context(projected_tokens, joints, frame_mask)
            per_clip = prototypes + self.decoder(prototypes, context, valid)  # (B, K, C)
        # Features are not normalised, so products outgrow half precision's digits.
        with torch.autocast(v_bar.device.type, enabled=False):
            if per_clip is None:
                return v_bar.float() @ prototypes.float().T
            return torch.einsum("bc,bkc->bk", v_bar.float(), per_clip.float())

    def _fuse(self, visual: Tensor, skeleton: Tensor) -> Tensor:
        if self.gate is not None:
            alpha = torch.sigmoid(self.gate(torch.cat([skeleton, visual], dim=1)))  # (K, 1)
            return alpha * skeleton + (1 - alpha) * visual
        return (skeleton + visual) / 2 if self.mode == "fixed" else visual


def build_context(projected_tokens: Tensor, joints: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Average a clip over time into the tokens its prototypes look at.

    Args:
        projected_tokens: (B, T, N, C).
        joints: (B, T, J, C).
        frame_mask: (B, T) bool; joints count in valid frames only.

    Returns:
        Context (B, U, C), and (B, U) bool, False for the joints of a clip without any valid frame.
    """
    b, _, n, _ = projected_tokens.shape
    j = joints.shape[2]
    visual = projected_tokens.mean(dim=1)  # (B, N, C)
    count = frame_mask.sum(dim=1).clamp(min=1)[:, None, None]
    skeleton = joints.masked_fill(~frame_mask[:, :, None, None], 0).sum(dim=1) / count  # (B, J, C)
    seen = frame_mask.any(dim=1, keepdim=True).expand(b, j)
    valid = torch.cat([seen.new_ones(b, n), seen], dim=1)
    return torch.cat([visual, skeleton.to(visual.dtype)], dim=1), valid


class PrototypeDecoder(nn.Module):
    """Pre-norm decoder: prototypes attend to each other, then to a clip's context."""

    def __init__(self, *, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.context_in = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.LayerNorm(width))
        self.prototypes_in = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.layers = nn.ModuleList([PrototypeLayer(width=width, heads=heads, dropout=dropout) for _ in range(layers)])
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.apply(_init_linear)

    def forward(self, prototypes: Tensor, context: Tensor, valid: Tensor) -> Tensor:
        """Return each clip's update of the prototypes, (K, C), (B, U, C) and (B, U) bool to (B, K, C)."""
        context = self.context_in(context)
        keep = valid[:, None, None, :]  # over heads and queries
        # One row for the whole batch until the first cross-attention tells the clips apart.
        x = self.prototypes_in(prototypes)[None]  # (1, K, C)
        for layer in self.layers:
            x = layer(x, context, keep)
        update: Tensor = self.out(x)
        return update


class PrototypeLayer(nn.Module):
    """Self-attention, cross-attention and MLP; the context comes normed."""

    def __init__(self, *, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm_self = nn.LayerNorm(width)
        self.self_attention = Attention(width=width, heads=heads)
        self.norm_cross = nn.LayerNorm(width)
        self.cross_attention = Attention(width=width, heads=heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = Mlp(nn.Linear(width, 4 * width), QuickGELU(), nn.Dropout(dropout), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, context: Tensor, keep: Tensor) -> Tensor:
        """Update prototypes x (1 or B, K, C) by context (B, U, C), keep (B, 1, 1, U) bool, to (B, K, C)."""
        normed = self.norm_self(x)
        attended = self.self_attention(normed, normed)
        # The attention is the same for every clip and computed once; its dropout is not, each clip draws its own.
        # That is the distribution of doing it B times, since the weights themselves have no dropout.
        attended = attended.expand(len(context), -1, -1)
        x = x + self.dropout(attended)  # (B, K, C)
        x = x + self.dropout(self.cross_attention(self.norm_cross(x), context, keep))
        x = x + self.dropout(self.mlp(self.norm_mlp(x)))
        return x


class Attention(nn.Module):
    """Fused multi-head attention: queries, keys and values without bias; its K x K weights are never stored."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, keep: Tensor | None = None) -> Tensor:
        """Let x (B, L, C) attend to context (B, U, C) where keep, broadcast to (B, H, L, U) bool, is True."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, L or U, C / H)
            for part in (self.query(x), self.key(context), self.value(context))
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
        out: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return out


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
