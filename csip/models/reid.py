"""CSIP-ReID: both encoders, prototypes, temporal modelling and the identity heads, as stage 2 trains them.

Shapes: B clips, T frames, J joints, H W pixels, N visual tokens a frame, D token width, C shared width,
K training identities.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from csip import ranks
from csip.config import PrototypeChoice
from csip.models.image_encoder import ImageEncoder
from csip.models.prototypes import PrototypeFusionUpdater
from csip.models.skeleton_encoder import SkeletonEncoder
from csip.models.temporal import SkeletonGuidedTemporal


@dataclass(frozen=True, slots=True, eq=False)
class TrainOutput:
    """What the losses of stage 2 read; None where a part is switched off.

    Attributes:
        g: (B, D) mean CLS token.
        v_bar: (B, C) mean projected CLS token.
        f: (B, D) SGTM's clip feature.
        logits_g: (B, K).
        logits_v: (B, K).
        logits_f: (B, K).
        logits_frames: (B, T, K).
        logits_prototypes: (B, K).
    """

    g: Tensor
    v_bar: Tensor
    f: Tensor | None
    logits_g: Tensor
    logits_v: Tensor
    logits_f: Tensor | None
    logits_frames: Tensor | None
    logits_prototypes: Tensor | None


class CsipReID(nn.Module):
    """The network of method.md section 4.

    Args:
        image_encoder: V.
        skeleton_encoder: S.
        num_labels: K.
        prototypes: a mode of `PrototypeFusionUpdater`, or "none" for no prototypes.
        prototype_layers: decoder layers of PFU.
        prototype_heads: its attention heads.
        prototype_dropout: its dropout.
        temporal: SGTM on or off.
        temporal_heads: its attention heads.
        temporal_dropout: its dropout.

    Raises:
        ValueError: the two encoders' shared widths differ.
    """

    visual_prototypes: Tensor
    skeleton_prototypes: Tensor
    prototypes_ready: Tensor

    def __init__(
        self,
        *,
        image_encoder: ImageEncoder,
        skeleton_encoder: SkeletonEncoder,
        num_labels: int,
        prototypes: PrototypeChoice = "pfu",
        prototype_layers: int = 2,
        prototype_heads: int = 8,
        prototype_dropout: float = 0.1,
        temporal: bool = True,
        temporal_heads: int = 8,
        temporal_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        d, c = image_encoder.token_width, image_encoder.projection.out_features
        if skeleton_encoder.projection.out_features != c:
            raise ValueError(
                f"CsipReID: got an image encoder of width {c} and a skeleton encoder of width "
                f"{skeleton_encoder.projection.out_features}, expected the same."
            )
        self.image_encoder = image_encoder
        self.skeleton_encoder = skeleton_encoder
        self.prototype_updater: PrototypeFusionUpdater | None = None
        if prototypes != "none":
            self.prototype_updater = PrototypeFusionUpdater(
                width=c, layers=prototype_layers, heads=prototype_heads, dropout=prototype_dropout, mode=prototypes
            )
        self.temporal: SkeletonGuidedTemporal | None = None
        self.head_f: TemporalHead | None = None
        if temporal:
            self.temporal = SkeletonGuidedTemporal(
                token_width=d, width=c, heads=temporal_heads, dropout=temporal_dropout
            )
            self.head_f = TemporalHead(d, num_labels)
        self.head_g = Head(d, num_labels)
        self.head_v = Head(c, num_labels)
        # Only these two read joint features; without them S has nothing to do in stage 2.
        self.reads_joints = temporal or prototypes == "pfu"
        self.register_buffer("visual_prototypes", torch.zeros(num_labels, c))
        self.register_buffer("skeleton_prototypes", torch.zeros(num_labels, c))
        self.register_buffer("prototypes_ready", torch.tensor(False))

    def set_prototypes(self, visual: Tensor, skeleton: Tensor) -> None:
        """Fix P_v and P_s, each (K, C).

        Raises:
            ValueError: another shape, or a value that is not finite.
        """
        for name, given in (("visual", visual), ("skeleton", skeleton)):
            own = getattr(self, f"{name}_prototypes")
            if given.shape != own.shape:
                raise ValueError(f"{name} prototypes: got {tuple(given.shape)}, expected {tuple(own.shape)} (K, C).")
            if not bool(torch.isfinite(given).all()):
                raise ValueError(f"{name} prototypes: found NaN or infinite values, expected finite ones.")
        self.visual_prototypes.copy_(visual.detach())
        self.skeleton_prototypes.copy_(skeleton.detach())
        self.prototypes_ready.fill_(True)

    def encode_images(self, crops: Tensor, camid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode every frame of crops (B, T, 3, H, W) with the cameras (B,) of the clips.

        Returns:
            Tokens x (B, T, N, D), and their projections xp (B, T, N, C).
        """
        b, t = crops.shape[:2]
        per_frame = None if camid is None else camid.repeat_interleave(t)
        x, xp = self.image_encoder(crops.flatten(0, 1), per_frame)  # (B T, N, D), (B T, N, C)
        return x.unflatten(0, (b, t)), xp.unflatten(0, (b, t))

    def forward(self, crops: Tensor, skeleton: Tensor, frame_mask: Tensor, camid: Tensor | None) -> TrainOutput:
        """Run stage 2's training pass.

        Args:
            crops: (B, T, 3, H, W) float32, normalised RGB.
            skeleton: (B, T, J, 3) float32, root-centred.
            frame_mask: (B, T) bool, True where the frame has a valid skeleton.
            camid: (B,) int64, or None.

        Raises:
            ValueError: prototypes are wanted and were never set.
        """
        if self.prototype_updater is not None and not bool(self.prototypes_ready):
            raise ValueError(
                "CsipReID: the prototypes are not set; call set_prototypes, or build with prototypes=none."
            )
        x, xp = self.encode_images(crops, camid)
        g, v_bar = _mean_cls(x), _mean_cls(xp)
        s = self.skeleton_encoder(skeleton, frame_mask)[0] if self.reads_joints else None
        f = logits_f = logits_frames = logits_prototypes = None
        if self.temporal is not None and self.head_f is not None:
            # Detached: SGTM learns from V's tokens without pulling at them; S does get its gradient.
            f, f_t = self.temporal(x.detach(), s, frame_mask)
            logits_f, logits_frames = self.head_f(f, f_t)
        if self.prototype_updater is not None:
            logits_prototypes = self.prototype_updater(
                self.visual_prototypes, self.skeleton_prototypes, v_bar, xp, s, frame_mask
            )
        return TrainOutput(
            g=g,
            v_bar=v_bar,
            f=f,
            logits_g=self.head_g(g),
            logits_v=self.head_v(v_bar),
            logits_f=logits_f,
            logits_frames=logits_frames,
            logits_prototypes=logits_prototypes,
        )

    def forward_visual(self, crops: Tensor, camid: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Run stage `pretrain_visual`: crops (B, T, 3, H, W) to g (B, D), v_bar (B, C) and their logits (B, K)."""
        x, xp = self.encode_images(crops, camid)
        g, v_bar = _mean_cls(x), _mean_cls(xp)
        return g, v_bar, self.head_g(g), self.head_v(v_bar)

    def embed(self, crops: Tensor, camid: Tensor | None) -> Tensor:
        """Turn clips into what is ranked, without any skeleton.

        Args:
            crops: (B, T, 3, H, W) float32, normalised RGB.
            camid: (B,) int64, -1 for a camera the model does not know; or None.

        Returns:
            g, v_bar and f side by side, (B, D + C + D), or (B, D + C) without SGTM. Not normalised: a caller
            averages a tracklet's clips first.
        """
        x, xp = self.encode_images(crops, camid)
        parts = [_mean_cls(x), _mean_cls(xp)]
        if self.temporal is not None:
            parts.append(self.temporal(x)[0])
        return torch.cat(parts, dim=1)

    def frame_features(self, crops: Tensor) -> Tensor:
        """Project the CLS token of single frames (N_img, 3, H, W) to (N_img, C), without camera embedding."""
        projected: Tensor = self.image_encoder(crops)[1]
        return projected[:, 0]


class Head(nn.Module):
    """BNNeck: a norm whose bias stays zero, then a linear classifier without bias."""

    def __init__(self, width: int, num_labels: int) -> None:
        super().__init__()
        self.norm = _bn_neck(width)
        self.classifier = _classifier(width, num_labels)

    def forward(self, feature: Tensor) -> Tensor:
        """Classify features (B, width) to logits (B, K)."""
        logits: Tensor = self.classifier(self.norm(feature))
        return logits


class TemporalHead(nn.Module):
    """The heads of f and of f_t: one classifier, a norm each."""

    def __init__(self, width: int, num_labels: int) -> None:
        super().__init__()
        self.norm_clip = _bn_neck(width)
        self.norm_frames = _bn_neck(width)
        self.classifier = _classifier(width, num_labels)

    def forward(self, f: Tensor, f_t: Tensor) -> tuple[Tensor, Tensor]:
        """Classify clips (B, D) to (B, K), and frames (B, T, D) to (B, T, K)."""
        b, t, _ = f_t.shape
        frames = self.norm_frames(f_t.flatten(0, 1)).unflatten(0, (b, t))
        return self.classifier(self.norm_clip(f)), self.classifier(frames)


def _mean_cls(tokens: Tensor) -> Tensor:
    """(B, T, N, width) to (B, width): the class token stands first."""
    return tokens[:, :, 0].mean(dim=1)


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """Batch norm over the batches of all training processes; in one process torch's own.

    torch's SyncBatchNorm refuses the CPU, so the moments are summed here.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Norm (B, width) by the moments of the global batch in training, by the running ones in evaluation."""
        if not self.training or ranks.size() == 1:
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            x = input.float()
            count = ranks.total_count(len(x))
            mean = ranks.sum_over_ranks(x.sum(dim=0)) / count
            centred = x - mean
            variance = ranks.sum_over_ranks(centred.square().sum(dim=0)) / count
            self._track(mean.detach(), variance.detach() * (count / max(count - 1, 1)))
            return centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running moments as torch does; the running variance is the unbiased one."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def _bn_neck(width: int) -> nn.BatchNorm1d:
    norm = GlobalBatchNorm1d(width)
    norm.bias.requires_grad_(False)
    return norm


def _classifier(width: int, num_labels: int) -> nn.Linear:
    linear = nn.Linear(width, num_labels, bias=False)
    nn.init.normal_(linear.weight, std=0.001)
    return linear
