"""Every number of the pipeline, in frozen sections, one a stage; `Experiment` joins them.

A section holds what changes a stage's result. What only changes how fast it comes (device, batch sizes of
inference, workers) lives in `RuntimeConfig` and is part of no digest. Recipes (`flows/recipes.py`) fill the
sections; the command line changes single fields (`flows.overrides`).

The sections are made in `csip.sections`, which nothing else imports from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import ConfigDict

from csip.sections.benchmark import BenchmarkConfig, WalkersConfig
from csip.sections.bounds import STRICT, check
from csip.sections.clip import ChunkRule, ClipConfig, DataConfig, DatasetName
from csip.sections.model import ModelConfig
from csip.sections.runtime import RuntimeConfig
from csip.sections.scoring import EmbedConfig, EvaluateConfig, ReportConfig
from csip.sections.skeleton import SkeletonConfig
from csip.sections.training import (
    Precision,
    PretrainConfig,
    PrototypeChoice,
    Stage1Config,
    Stage2Config,
    ValidateConfig,
)
from csip.sections.video import DetectConfig, PosePrecision, SplitConfig, TrackConfig

__all__ = [
    "BenchmarkConfig",
    "ChunkRule",
    "ClipConfig",
    "DataConfig",
    "DatasetName",
    "DetectConfig",
    "EmbedConfig",
    "EvaluateConfig",
    "Experiment",
    "ExtractConfig",
    "ModelConfig",
    "PosePrecision",
    "Precision",
    "PretrainConfig",
    "PrototypeChoice",
    "ReportConfig",
    "RuntimeConfig",
    "SkeletonConfig",
    "SplitConfig",
    "Stage1Config",
    "Stage2Config",
    "TrackConfig",
    "ValidateConfig",
    "WalkersConfig",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractConfig:
    """What `build-skeletons` needs: everything that changes the rows of a snapshot.

    Attributes:
        dataset: the name that snapshots and their splits carry.
        detect: people and keypoints.
        track: tracklets and crops.
        split: the protocol of unlabelled video.
        walkers: the synthetic benchmark, for the source `walkers:`.
        benchmark: benchmarks' folders, and where their skeletons come from.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    dataset: DatasetName = "video"
    detect: DetectConfig = field(default_factory=DetectConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    walkers: WalkersConfig = field(default_factory=WalkersConfig)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A recipe: every section, one name, one seed.

    Attributes:
        name: the recipe's.
        seed: of initial weights, sampling and augmentation.
        dataset: the name that snapshots carry.
        detect: people and keypoints.
        track: tracklets and crops.
        split: the protocol of unlabelled video.
        walkers: the synthetic benchmark.
        benchmark: benchmarks' folders to rows.
        data: what of a snapshot is trained on and scored.
        clip: snapshot to clips.
        model: the network.
        pretrain: visual pretraining of encoders trained from scratch.
        stage1: contrastive skeleton-image pretraining.
        stage2: prototype-guided fine-tuning.
        validate: which epoch of stage 2 is reported.
        skeleton: skeleton-only re-identification, in place of the stages above.
        embed: parts to embeddings.
        evaluate: embeddings to scores.
        report: scores to a page.
        runtime: how, never what.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    name: str
    seed: int = 0
    dataset: DatasetName = "video"
    detect: DetectConfig = field(default_factory=DetectConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    walkers: WalkersConfig = field(default_factory=WalkersConfig)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    data: DataConfig = field(default_factory=DataConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    stage1: Stage1Config = field(default_factory=Stage1Config)
    stage2: Stage2Config = field(default_factory=Stage2Config)
    validate: ValidateConfig = field(default_factory=ValidateConfig)
    skeleton: SkeletonConfig = field(default_factory=SkeletonConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        check(self)

    @property
    def extract(self) -> ExtractConfig:
        """The sections that `build-skeletons` needs."""
        return ExtractConfig(
            dataset=self.dataset,
            detect=self.detect,
            track=self.track,
            split=self.split,
            walkers=self.walkers,
            benchmark=self.benchmark,
        )
