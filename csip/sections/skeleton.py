"""Skeletons alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from csip.sections.bounds import STRICT, Within, check


@dataclass(frozen=True, slots=True, kw_only=True)
class SkeletonConfig:
    """Skeleton-only re-identification (BIWI, IAS; datasets.md sections 7 to 10).

    Attributes:
        encoder: "csip" is the skeleton encoder of `model`; "transg" is TranSG's, of the `transg_` numbers here.
        initial: a checkpoint whose skeleton encoder is where training starts, such as stage 1's; empty: from scratch.
        seeds: trainings, from `seed` on; their mean and deviation are reported.
        frames: f, skeletons a window.
        epochs: passes over the balanced training windows.
        batch_windows: windows a batch.
        learning_rate: of Adam, constant.
        weight_decay: Adam's coupled L2.
        sequence_temperature: of the contrast between a window's feature and the prototypes (t1).
        frame_temperature: of the contrast between single frames' features and the prototypes (t2).
        sequence_share: of the sequence level in the prototype loss; the frame level has the rest (alpha).
        structure_share: of structure in the reconstruction; trajectory has the rest (beta).
        prototype_share: of the prototype loss; the reconstruction has the rest (lambda).
        masked_joints: joints of a frame that structure reconstruction does not see (a).
        masked_frames: frames of a window that trajectory reconstruction does not see (b).
        transg_width: H of TranSG's encoder.
        transg_layers: its rounds of attention.
        transg_heads: its attention heads.
        transg_dropout: its dropout.
        drop_last: leave the last partial batch of an epoch out, as published.
        shuffle_once: the same batches in every epoch, as published.
        reconstruction_over_batch: divide the reconstruction loss once more by the batch's size, as published.
        bn_frozen_stats: never update batch norm's statistics, as published: mean 0 and variance 1 stay.
        drop_last_eval: leave the last partial batch out of probe and gallery, as published.
        select_on_probe: report the epoch with the best rank-1 on the probes themselves, as published.
        patience: with `select_on_probe`, stop after this many epochs without a better one.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    encoder: Literal["csip", "transg"] = "csip"
    initial: str = ""
    seeds: Annotated[int, Within(1, 1000)] = 3
    frames: Annotated[int, Within(2, 1000)] = 6
    epochs: Annotated[int, Within(1, 1_000_000)] = 200
    batch_windows: Annotated[int, Within(2, 1_000_000)] = 256
    learning_rate: Annotated[float, Within(0, 10)] = 3.5e-4
    weight_decay: Annotated[float, Within(0, 10)] = 0.0
    sequence_temperature: Annotated[float, Within(1e-6, 1e6)] = 0.07
    frame_temperature: Annotated[float, Within(1e-6, 1e6)] = 14.0
    sequence_share: Annotated[float, Within(0, 1)] = 0.5
    structure_share: Annotated[float, Within(0, 1)] = 0.5
    prototype_share: Annotated[float, Within(0, 1)] = 0.5
    masked_joints: Annotated[int, Within(0, 1000)] = 10
    masked_frames: Annotated[int, Within(0, 1000)] = 2
    transg_width: Annotated[int, Within(1, 65536)] = 128
    transg_layers: Annotated[int, Within(1, 1000)] = 2
    transg_heads: Annotated[int, Field(json_schema_extra={"minimum": 1})] = 8
    transg_dropout: Annotated[float, Within(0, 0.999)] = 0.5
    drop_last: bool = False
    shuffle_once: bool = False
    reconstruction_over_batch: bool = False
    bn_frozen_stats: bool = False
    drop_last_eval: bool = False
    select_on_probe: bool = False
    patience: Annotated[int, Within(1, 10**6)] = 120

    def __post_init__(self) -> None:
        check(self)
        if self.transg_heads < 1 or self.transg_width % self.transg_heads:
            raise ValueError(
                f"SkeletonConfig.transg_heads: got {self.transg_heads}, expected a divisor of "
                f"transg_width={self.transg_width}."
            )
        if self.masked_frames >= self.frames:
            raise ValueError(
                f"SkeletonConfig.masked_frames: got {self.masked_frames} of {self.frames} frames, expected fewer."
            )
