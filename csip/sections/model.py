"""The network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from csip.sections.bounds import STRICT, in_range


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The network (method.md sections 2 and 4).

    Attributes:
        image_encoder: a timm ViT by name.
        image_weights: a local file; "timm" for the library's own download; "none" for random initial weights.
        image_depth: transformer blocks, 0 for the named model's own.
        image_width: D, token width, 0 for the named model's own.
        image_heads: attention heads, 0 for the named model's own.
        width: C, the width shared by projected images, joints and prototypes.
        camera_embedding: add a learnt camera vector to the CLS token in stage 2 and at test.
        camera_scale: factor of the camera vector (sie_coef).
        joint_layers: L, transformer layers of the skeleton encoder.
        joint_heads: its attention heads.
        joint_dropout: its dropout.
        graph_positions: K, eigenvectors of the joint graph's Laplacian.
        prototype_layers: decoder layers of the Prototype Fusion Updater.
        prototype_heads: its attention heads.
        prototype_dropout: its dropout.
        temporal_heads: attention heads of Skeleton Guided Temporal Modelling.
        temporal_dropout: its dropout.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    image_encoder: str = "vit_base_patch16_clip_quickgelu_224.openai"
    image_weights: str = "timm"
    image_depth: int = 0
    image_width: int = 0
    image_heads: int = 0
    width: int = 512
    camera_embedding: bool = True
    camera_scale: float = 1.0
    joint_layers: int = 10
    joint_heads: int = 8
    joint_dropout: float = 0.3
    graph_positions: int = 10
    prototype_layers: int = 2
    prototype_heads: int = 8
    prototype_dropout: float = 0.1
    temporal_heads: int = 8
    temporal_dropout: float = 0.1

    def __post_init__(self) -> None:
        in_range(self, width=(1, 65536), joint_layers=(1, 1000), joint_dropout=(0, 1), graph_positions=(1, 1000))
        in_range(self, image_depth=(0, 1000), image_width=(0, 65536), image_heads=(0, 1024))
        in_range(self, prototype_layers=(1, 1000), prototype_dropout=(0, 1), temporal_dropout=(0, 1))
        for name in ("joint_heads", "prototype_heads"):
            heads = getattr(self, name)
            if heads < 1 or self.width % heads:
                raise ValueError(f"ModelConfig.{name}: got {heads}, expected a divisor of width={self.width}.")
