"""Skeletons alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from csip.sections.bounds import STRICT, in_range


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
    seeds: int = 3
    frames: int = 6
    epochs: int = 200
    batch_windows: int = 256
    learning_rate: float = 3.5e-4
    weight_decay: float = 0.0
    sequence_temperature: float = 0.07
    frame_temperature: float = 14.0
    sequence_share: float = 0.5
    structure_share: float = 0.5
    prototype_share: float = 0.5
    masked_joints: int = 10
    masked_frames: int = 2
    transg_width: int = 128
    transg_layers: int = 2
    transg_heads: int = 8
    transg_dropout: float = 0.5
    drop_last: bool = False
    shuffle_once: bool = False
    reconstruction_over_batch: bool = False
    bn_frozen_stats: bool = False
    drop_last_eval: bool = False
    select_on_probe: bool = False
    patience: int = 120

    def __post_init__(self) -> None:
        in_range(self, seeds=(1, 1000), frames=(2, 1000), epochs=(1, 1_000_000), batch_windows=(2, 1_000_000))
        in_range(self, learning_rate=(0, 10), weight_decay=(0, 10), sequence_temperature=(1e-6, 1e6))
        in_range(self, frame_temperature=(1e-6, 1e6), sequence_share=(0, 1), structure_share=(0, 1))
        in_range(self, prototype_share=(0, 1), masked_joints=(0, 1000), masked_frames=(0, 1000), patience=(1, 10**6))
        in_range(self, transg_width=(1, 65536), transg_layers=(1, 1000), transg_dropout=(0, 0.999))
        if self.transg_heads < 1 or self.transg_width % self.transg_heads:
            raise ValueError(
                f"SkeletonConfig.transg_heads: got {self.transg_heads}, expected a divisor of "
                f"transg_width={self.transg_width}."
            )
        if self.masked_frames >= self.frames:
            raise ValueError(
                f"SkeletonConfig.masked_frames: got {self.masked_frames} of {self.frames} frames, expected fewer."
            )
