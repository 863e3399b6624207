"""Recipes: named experiments. Numbers only, no logic."""

from __future__ import annotations

from collections.abc import Callable

from csip.config import (
    ClipConfig,
    DataConfig,
    DetectConfig,
    EvaluateConfig,
    Experiment,
    ModelConfig,
    PretrainConfig,
    Stage1Config,
    Stage2Config,
    TrackConfig,
)
from csip.protocols import ILIDS_TRAIN_FIRST

_SMALL = ModelConfig(
    image_encoder="vit_tiny_patch16_224",
    image_weights="none",
    image_depth=4,
    image_width=128,
    image_heads=4,
    width=128,
    joint_layers=3,
    joint_heads=4,
    joint_dropout=0.1,
    prototype_heads=4,
    temporal_heads=4,
)
"""A network that two CPU cores train from scratch in minutes."""


def demo() -> Experiment:
    """Make the small experiment of `csip demo`: a small ViT from scratch, minutes on two cores."""
    return Experiment(
        name="demo",
        dataset="demo",
        detect=DetectConfig(image_size=960),
        # So few people are learnt from whom one sees; crops of the hidden would be a twentieth.
        track=TrackConfig(interpolate_seconds=0.0),
        clip=ClipConfig(frames=4, height=128, width=64),
        model=_SMALL,
        pretrain=PretrainConfig(epochs=50, learning_rate=1e-3, triplet_weight=0.01),
        stage1=Stage1Config(epochs=40, batch_clips=32, learning_rate=1e-3),
        stage2=Stage2Config(epochs=20, learning_rate=2e-4, head_factor=3.0, warmup_epochs=2, milestones=(13, 18)),
        evaluate=EvaluateConfig(ranks=(1, 5, 10)),
    )


def video() -> Experiment:
    """Make the experiment for one's own unlabelled video: CLIP ViT-B/16, the paper's sizes; wants a GPU."""
    return Experiment(name="video")


def mars() -> Experiment:
    """Make CSIP-ReID's experiment on MARS, number for number."""
    return Experiment(name="mars", dataset="mars")


def lsvid() -> Experiment:
    """Make CSIP-ReID's experiment on LS-VID: long tracklets are trained on in chunks, the heads at the base rate."""
    return Experiment(
        name="lsvid",
        dataset="lsvid",
        clip=ClipConfig(unit="chunk", unit_frames=48),
        stage2=Stage2Config(head_factor=1.0),
    )


def ilids() -> Experiment:
    """Make CSIP-ReID's experiment on iLIDS-VID: windows of 8 frames, fewer epochs, the heads at the base rate.

    On its halves and its one split; `data.split=all` does the ten trainings that the literature reports the mean of.
    """
    return Experiment(
        name="ilids",
        dataset="ilids",
        data=DataConfig(protocol=ILIDS_TRAIN_FIRST, split="0"),
        clip=ClipConfig(unit="window", unit_frames=8, unit_stride=4),
        stage1=Stage1Config(drop_last=True),
        stage2=Stage2Config(epochs=60, milestones=(30, 50), head_factor=1.0),
    )


def walkers() -> Experiment:
    """Make the experiment on Walkers, people drawn by the computer: a small ViT from scratch, minutes on two cores."""
    return Experiment(
        name="walkers",
        dataset="walkers",
        clip=ClipConfig(frames=4, height=128, width=64),
        model=_SMALL,
        pretrain=PretrainConfig(epochs=25, learning_rate=1e-3, triplet_weight=0.01),
        stage1=Stage1Config(epochs=40, batch_clips=16, learning_rate=1e-3),
        stage2=Stage2Config(epochs=30, learning_rate=4e-4, head_factor=3.0, warmup_epochs=3, milestones=(20, 27)),
    )


def biwi() -> Experiment:
    """Make the skeleton-only experiment on BIWI: six skeletons a window, both directions, three seeds."""
    return Experiment(name="biwi", dataset="biwi", data=DataConfig(protocol="all"))


def ias() -> Experiment:
    """Make the skeleton-only experiment on IAS: six skeletons a window, both directions, three seeds."""
    return Experiment(name="ias", dataset="ias", data=DataConfig(protocol="all"))


RECIPES: dict[str, Callable[[], Experiment]] = {
    recipe.__name__: recipe for recipe in (demo, video, mars, lsvid, ilids, biwi, ias, walkers)
}
"""Recipe name -> the function that makes it."""

SKELETONS_ALONE = frozenset((biwi.__name__, ias.__name__))
"""Names of the recipes for data sets without pictures."""
