"""The stages that train on pictures and skeletons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict

from csip.sections.bounds import STRICT, Each, Within, check

Precision = Literal["auto", "float32", "bfloat16", "float16"]
"""What a training's forward pass computes in on CUDA: "auto" is float16 with loss scaling, as published. A CPU always
computes in float32, and so do the losses."""

PrototypeChoice = Literal["pfu", "gate", "fixed", "visual", "none"]
"""What stage 2 takes as prototypes: see `Stage2Config`."""


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
        precision: of the forward pass on CUDA: "auto" is float16 with loss scaling, as published; a CPU takes float32.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    epochs: Annotated[int, Within(0, 1_000_000)] = 0
    learning_rate: Annotated[float, Within(0, 10)] = 3.5e-4
    weight_decay: Annotated[float, Within(0, 10)] = 1e-4
    identities: Annotated[int, Within(2, 4096)] = 4
    clips_per_identity: Annotated[int, Within(2, 4096)] = 4
    label_smoothing: Annotated[float, Within(0, 0.999)] = 0.1
    margin: Annotated[float, Within(0, 100)] = 0.3
    triplet_weight: Annotated[float, Within(0, 1e6)] = 1.0
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        check(self)


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
        precision: of the forward pass on CUDA: "auto" is float16 with loss scaling, as published; a CPU takes float32.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    epochs: Annotated[int, Within(0, 1_000_000)] = 120
    batch_clips: Annotated[int, Within(2, 1_000_000)] = 64
    learning_rate: Annotated[float, Within(0, 10)] = 3.5e-4
    warmup_rate: Annotated[float, Within(0, 10)] = 1e-5
    final_rate: Annotated[float, Within(0, 10)] = 1e-6
    warmup_epochs: Annotated[int, Within(0, 1_000_000)] = 5
    weight_decay: Annotated[float, Within(0, 10)] = 1e-4
    temperature: Annotated[float, Within(1e-6, 1e6)] = 1.0
    normalize: bool = False
    drop_last: bool = False
    accumulate: Annotated[int, Within(1, 100_000)] = 1
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage2Config:
    """Stage 2: prototype-guided fine-tuning (method.md section 4).

    Attributes:
        prototypes: "pfu" fuses visual and skeleton prototypes by a gate and updates them to each clip; "gate" leaves
            the update out; "fixed" takes (P_s + P_v) / 2; "visual" P_v alone; "none" has no prototype loss.
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
        precision: of the forward pass on CUDA: "auto" is float16 with loss scaling, as published; a CPU takes float32.
        keep_every: keep the checkpoint of every n-th epoch as well; 0 keeps the last one only.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    prototypes: PrototypeChoice = "pfu"
    temporal: bool = True
    prototype_frames: Literal["clip", "all"] = "clip"
    epochs: Annotated[int, Within(0, 1_000_000)] = 80
    identities: Annotated[int, Within(2, 4096)] = 4
    clips_per_identity: Annotated[int, Within(2, 4096)] = 4
    learning_rate: Annotated[float, Within(0, 10)] = 5e-6
    bias_factor: Annotated[float, Within(0, 1e4)] = 2.0
    head_factor: Annotated[float, Within(0, 1e4)] = 10.0
    weight_decay: Annotated[float, Within(0, 10)] = 1e-4
    warmup_epochs: Annotated[int, Within(0, 1_000_000)] = 10
    milestones: Annotated[tuple[int, ...], Each("ascending epochs", ascending=True)] = (30, 50, 70)
    label_smoothing: Annotated[float, Within(0, 0.999)] = 0.1
    margin: Annotated[float, Within(0, 100)] = 0.3
    identity_weight: Annotated[float, Within(0, 1e6)] = 0.25
    triplet_weight: Annotated[float, Within(0, 1e6)] = 1.0
    prototype_weight: Annotated[float, Within(0, 1e6)] = 1.0
    frame_weight: Annotated[float, Within(0, 1e6)] = 1.3
    freeze_skeleton_encoder: bool = False
    accumulate: Annotated[int, Within(1, 100_000)] = 1
    precision: Precision = "auto"
    keep_every: Annotated[int, Within(0, 1_000_000)] = 0

    def __post_init__(self) -> None:
        check(self)


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
    fraction: Annotated[float, Within(1e-6, 0.9)] = 0.1
    every: Annotated[int, Within(1, 1_000_000)] = 1

    def __post_init__(self) -> None:
        check(self)
