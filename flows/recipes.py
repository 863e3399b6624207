"""Recipes: named experiments. Numbers only, no logic."""

from __future__ import annotations

from collections.abc import Callable

from csip.config import (
    ClipConfig,
    DetectConfig,
    EvaluateConfig,
    Experiment,
    ModelConfig,
    PretrainConfig,
    Stage1Config,
    Stage2Config,
)


def demo() -> Experiment:
    """Make the small experiment of `csip demo`: a small ViT from scratch, minutes on two cores."""
    return Experiment(
        name="demo",
        dataset="demo",
        detect=DetectConfig(image_size=960),
        clip=ClipConfig(frames=4, height=128, width=64),
        model=ModelConfig(
            image_encoder="vit_tiny_patch16_224",
            image_weights="none",
            image_depth=4,
            image_width=128,
            image_heads=4,
            width=128,
            camera_embedding=True,
            joint_layers=3,
            joint_heads=4,
            joint_dropout=0.1,
            prototype_heads=4,
            temporal_heads=4,
        ),
        pretrain=PretrainConfig(epochs=50, learning_rate=1e-3, triplet_weight=0.01),
        stage1=Stage1Config(epochs=40, batch_clips=32, learning_rate=1e-3),
        stage2=Stage2Config(epochs=20, learning_rate=2e-4, head_factor=3.0, warmup_epochs=2, milestones=(13, 18)),
        evaluate=EvaluateConfig(ranks=(1, 5, 10)),
    )


def video() -> Experiment:
    """Make the experiment for one's own unlabelled video: CLIP ViT-B/16, the paper's sizes; wants a GPU."""
    return Experiment(name="video")


RECIPES: dict[str, Callable[[], Experiment]] = {"demo": demo, "video": video}
"""Recipe name -> the function that makes it."""
