"""The stages that train on pictures and skeletons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from csip.sections.bounds import STRICT, in_range

Precision = Literal["auto", "float32", "bfloat16", "float16"]
"""What a training's forward pass computes in on CUDA: "auto" is float16 with loss scaling, as published. A CPU always
computes in float32, and so do the losses."""

PrototypeChoice = Literal["pfu", "gate", "fixed", "visual", "none"]
"""Prototypes of stage 2: "pfu" fuses visual and skeleton prototypes by a gate and updates them to each clip; "gate"
leaves the update out; "fixed" takes (P_s + P_v) / 2; "visual" takes P_v alone; "none" has no prototype loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """Stage `pretrain_visual`: identity and triplet loss on g and v_bar, for encoders trained from scratch.

    Attributes:
        epochs: 0 skips the stage, as CLIP recipes do.
        learning_rate: of Adam, after a linear warm-up over the first tenth of the steps, then a cosine to zero.
        weight_decay: Adam's coupled L2.
        identities: P, identities a batch.
        clips_per_identity: clips of each identity in a batch.
        label_smoothing: of the cross-entropy.
        margin: of the batch-hard triplet loss.
        triplet_weight: of the sum of the two triplet losses; from scratch a large one pulls every feature together
            before the identity losses can tell them apart.
        precision: see `Precision`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    epochs: int = 0
    learning_rate: float = 3.5e-4
    weight_decay: float = 1e-4
    identities: int = 4
    clips_per_identity: int = 4
    label_smoothing: float = 0.1
    margin: float = 0.3
    triplet_weight: float = 1.0
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        in_range(
            self,
            epochs=(0, 1_000_000),
            learning_rate=(0, 10),
            weight_decay=(0, 10),
            margin=(0, 100),
            triplet_weight=(0, 1e6),
        )
        in_range(self, identities=(2, 4096), clips_per_identity=(2, 4096), label_smoothing=(0, 0.999))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage1Config:
    """Stage 1: contrastive skeleton-image pretraining (method.md section 3).

    Attributes:
        epochs: passes over the training parts; 0 skips the stage, so that stage 2 starts from a random S.
        batch_clips: clips a batch.
        learning_rate: peak rate of Adam.
        warmup_rate: rate the warm-up starts from.
        final_rate: rate the cosine ends at.
        warmup_epochs: the rate climbs linearly while the epoch is smaller.
        weight_decay: Adam's coupled L2.
        temperature: tau of the supervised contrastive loss.
        normalize: L2-normalise both sides before the inner product; the paper does not.
        drop_last: leave out the last partial batch of an epoch.
        accumulate: batches whose gradients make one step.
        precision: see `Precision`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    epochs: int = 120
    batch_clips: int = 64
    learning_rate: float = 3.5e-4
    warmup_rate: float = 1e-5
    final_rate: float = 1e-6
    warmup_epochs: int = 5
    weight_decay: float = 1e-4
    temperature: float = 1.0
    normalize: bool = False
    drop_last: bool = False
    accumulate: int = 1
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        in_range(self, epochs=(0, 1_000_000), batch_clips=(2, 1_000_000), learning_rate=(0, 10), warmup_rate=(0, 10))
        in_range(self, accumulate=(1, 100_000))
        in_range(self, final_rate=(0, 10), warmup_epochs=(0, 1_000_000), weight_decay=(0, 10), temperature=(1e-6, 1e6))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage2Config:
    """Stage 2: prototype-guided fine-tuning (method.md section 4).

    Attributes:
        prototypes: see `PrototypeChoice`.
        temporal: Skeleton Guided Temporal Modelling on or off.
        prototype_frames: a part's features for its prototype: of one "clip", drawn as in training, or of "all" frames.
        epochs: passes over the training parts.
        identities: P, identities a batch.
        clips_per_identity: clips of each identity in a batch.
        learning_rate: base rate of Adam.
        bias_factor: rate factor of biases.
        head_factor: rate factor of the temporal classifier, PFU and SGTM.
        weight_decay: Adam's coupled L2.
        warmup_epochs: the rate climbs from a tenth while the epoch is smaller.
        milestones: epochs from which the rate is ten times smaller.
        label_smoothing: of every cross-entropy.
        margin: of the batch-hard triplet losses.
        identity_weight: of the sum of the identity losses.
        triplet_weight: of the sum of the triplet losses.
        prototype_weight: of the cross-entropy on the prototype logits.
        frame_weight: of the frame-wise cross-entropy, which is divided by T as well.
        freeze_skeleton_encoder: keep stage 1's skeleton encoder as it is (the paper's figure; its code trains it).
        accumulate: batches whose gradients make one step.
        precision: see `Precision`.
        keep_every: keep the checkpoint of every n-th epoch as well; 0 keeps the last one only.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    prototypes: PrototypeChoice = "pfu"
    temporal: bool = True
    prototype_frames: Literal["clip", "all"] = "clip"
    epochs: int = 80
    identities: int = 4
    clips_per_identity: int = 4
    learning_rate: float = 5e-6
    bias_factor: float = 2.0
    head_factor: float = 10.0
    weight_decay: float = 1e-4
    warmup_epochs: int = 10
    milestones: tuple[int, ...] = (30, 50, 70)
    label_smoothing: float = 0.1
    margin: float = 0.3
    identity_weight: float = 0.25
    triplet_weight: float = 1.0
    prototype_weight: float = 1.0
    frame_weight: float = 1.3
    freeze_skeleton_encoder: bool = False
    accumulate: int = 1
    precision: Precision = "auto"
    keep_every: int = 0

    def __post_init__(self) -> None:
        in_range(self, epochs=(0, 1_000_000), identities=(2, 4096), clips_per_identity=(2, 4096))
        in_range(self, learning_rate=(0, 10), bias_factor=(0, 1e4), head_factor=(0, 1e4), weight_decay=(0, 10))
        in_range(self, warmup_epochs=(0, 1_000_000), label_smoothing=(0, 0.999), margin=(0, 100))
        in_range(self, accumulate=(1, 100_000), keep_every=(0, 1_000_000))
        for name in ("identity_weight", "triplet_weight", "prototype_weight", "frame_weight"):
            in_range(self, **{name: (0, 1e6)})
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"Stage2Config.milestones: got {self.milestones}, expected ascending epochs.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateConfig:
    """Which epoch of stage 2 is reported. The published recipes train on everybody and report the last one.

    Attributes:
        select: "last"; "validation": the epoch with the best mAP among people held out of training; "test": the best
            on the test set itself, which flatters every figure; the checkpoint's header says so.
        fraction: share of the training people held out for "validation", drawn from the seed.
        every: epochs from one look to the next; the last epoch is always looked at.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    select: Literal["last", "validation", "test"] = "last"
    fraction: float = 0.1
    every: int = 1

    def __post_init__(self) -> None:
        in_range(self, fraction=(1e-6, 0.9), every=(1, 1_000_000))
