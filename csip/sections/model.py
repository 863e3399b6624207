"""The network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from csip.sections.bounds import STRICT, Within, check


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
    image_depth: Annotated[int, Within(0, 1000)] = 0
    image_width: Annotated[int, Within(0, 65536)] = 0
    image_heads: Annotated[int, Within(0, 1024)] = 0
    width: Annotated[int, Within(1, 65536)] = 512
    camera_embedding: bool = True
    camera_scale: float = 1.0
    joint_layers: Annotated[int, Within(1, 1000)] = 10
    joint_heads: Annotated[int, Field(json_schema_extra={"minimum": 1})] = 8
    joint_dropout: Annotated[float, Within(0, 1)] = 0.3
    graph_positions: Annotated[int, Within(1, 1000)] = 10
    prototype_layers: Annotated[int, Within(1, 1000)] = 2
    prototype_heads: Annotated[int, Field(json_schema_extra={"minimum": 1})] = 8
    prototype_dropout: Annotated[float, Within(0, 1)] = 0.1
    temporal_heads: int = 8
    temporal_dropout: Annotated[float, Within(0, 1)] = 0.1

    def __post_init__(self) -> None:
        check(self)
        for name in ("joint_heads", "prototype_heads"):
            heads = getattr(self, name)
            if heads < 1 or self.width % heads:
                raise ValueError(f"ModelConfig.{name}: got {heads}, expected a divisor of width={self.width}.")
