"""What the published implementation calls the tensors of its network, and what we call them (method.md section 7)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from csip.models.checkpoints import ModelSpec

_W = {"weight": "weight"}
_WB = _W | {"bias": "bias"}
_ATTENTION = {name: name for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")}
_NORM_MOMENTS = {name: name for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
_TOWER = {
    "conv1": ("patch_embed.proj", _W),
    "ln_pre": ("norm_pre", _WB),
    "ln_post": ("norm", _WB),
}
_TOWER_BLOCK = {
    "ln_1": ("norm1", _WB),
    "attn": ("attn", {"in_proj_weight": "qkv.weight", "in_proj_bias": "qkv.bias"}),
    "attn.out_proj": ("attn.proj", _WB),
    "ln_2": ("norm2", _WB),
    "mlp.c_fc": ("mlp.fc1", _WB),
    "mlp.c_proj": ("mlp.fc2", _WB),
}
_SKELETON = {
    "input_fc1": ("embed_joint.0", _WB),
    "input_fc2": ("embed_joint.2", _WB),
    "pos_fc": ("embed_position", _WB),
}
_SKELETON_BLOCK = {
    "qkv_proj": ("qkv", _WB),
    "out_proj": ("out", _WB),
    "norm1": ("norm_attention", _WB),
    "ffn.0": ("feed_forward.0", _WB),
    "ffn.3": ("feed_forward.3", _WB),
    "norm2": ("norm_feed_forward", _WB),
}
_GATE = {"fc.0": ("gate.0", _WB), "fc.2": ("gate.2", _WB)}
_DECODER = {
    "memory_proj.0": ("context_in.0", _WB),
    "memory_proj.1": ("context_in.1", _WB),
    "memory_proj.2": ("context_in.2", _WB),
    "text_proj.0": ("prototypes_in.0", _WB),
    "text_proj.1": ("prototypes_in.1", _WB),
    "out_proj.0": ("out.0", _WB),
    "out_proj.1": ("out.1", _WB),
}
_DECODER_LAYER = {
    "norm1": ("norm_self", _WB),
    "self_attn.q_proj": ("self_attention.query", _W),
    "self_attn.k_proj": ("self_attention.key", _W),
    "self_attn.v_proj": ("self_attention.value", _W),
    "self_attn.proj": ("self_attention.out", _WB),
    "norm2": ("norm_cross", _WB),
    "cross_attn.q_proj": ("cross_attention.query", _W),
    "cross_attn.k_proj": ("cross_attention.key", _W),
    "cross_attn.v_proj": ("cross_attention.value", _W),
    "cross_attn.proj": ("cross_attention.out", _WB),
    "norm3": ("norm_mlp", _WB),
    "mlp.0": ("mlp.0", _WB),
    "mlp.3": ("mlp.3", _WB),
}
_TEMPORAL = {
    "msg_fc_vis": ("visual_message", _WB),
    "msg_ln_vis": ("visual_norm", _WB),
    "msg_attn_vis": ("visual_attention", _ATTENTION),
    "msg_fc_ske": ("joint_tokens", _WB),
    "msg_ln_ske": ("joint_norm", _WB),
    "msg_attn_ske": ("joint_attention", _ATTENTION),
    "norm_vis": ("cross_norm_visual", _WB),
    "norm_ske": ("cross_norm_joint", _WB),
    "cross_attn_ske_to_vis": ("cross_attention", _ATTENTION),
    "token_type_embed": ("token_type", _W),
    "ln_1": ("frame_norm", _WB),
    "attention": ("frame_attention", _ATTENTION),
    "ln_2": ("mlp_norm", _WB),
    "mlp.0": ("mlp.0", _WB),
    "mlp.3": ("mlp.3", _WB),
    "token_attn_score.0": ("token_score", _WB),
}
_HEADS = {
    "classifier": ("head_g.classifier", _W),
    "bottleneck": ("head_g.norm", _NORM_MOMENTS),
    "classifier_proj": ("head_v.classifier", _W),
    "bottleneck_proj": ("head_v.norm", _NORM_MOMENTS),
}
# The frame-wise head and the clip's share the classifier.
_TEMPORAL_HEADS = {
    "classifier_proj_temp": ("head_f.classifier", _W),
    "bottleneck_proj_temp": ("head_f.norm_frames", _NORM_MOMENTS),
    "bottleneck_proj_temp2": ("head_f.norm_clip", _NORM_MOMENTS),
}

GRAPH = "skeleton_encoder.skeleton_graph_transformer"
RESBLOCKS = "image_encoder.transformer.resblocks"
JOINT_BLOCKS = f"{GRAPH}.transformer_blocks"
DECODER_LAYERS = "VTU.decoder"
"""Where the numbered layers stand."""

UNUSED = (
    *("classifier_proj_temp2", "classifier_ske", "bottleneck_ske", "VTU.norm", "VTU.alpha"),
    *(f"{GRAPH}.joint_prompt", f"{GRAPH}.traj_prompt"),
)
"""Tensors and modules that no layer of the published network reads."""

OPTIONAL = ".num_batches_tracked"
"""How tensors end that may be absent: BatchNorm of old torch has no such count, and evaluation reads none."""

# There and back. Written as x @ W there, as a linear layer here; and what timm keeps with axes for the batch.
_RESHAPED: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "image_encoder.proj": (lambda w: w.transpose(0, -1), lambda w: w.T),
    "skeleton_encoder.proj_ske": (lambda w: w.transpose(0, -1), lambda w: w.T),
    "image_encoder.class_embedding": (lambda v: v[None, None], lambda v: v[0, 0]),
    "image_encoder.positional_embedding": (lambda v: v[None], lambda v: v[0]),
}


def to_ours(name: str, value: Tensor) -> Tensor:
    """Bring a published tensor to our axes."""
    return _RESHAPED[name][0](value) if name in _RESHAPED else value


def from_ours(name: str, value: Tensor) -> Tensor:
    """Bring a tensor of ours to the axes it has under its published name."""
    return _RESHAPED[name][1](value) if name in _RESHAPED else value


_Parts = Mapping[str, tuple[str, Mapping[str, str]]]


def names(spec: ModelSpec) -> dict[str, str]:
    """Map the published name of every tensor that a network of this spec reads to ours.

    Args:
        spec: with the image encoder's depth written out.
    """
    m = spec.model
    out = {
        "image_encoder.class_embedding": "image_encoder.trunk.cls_token",
        "image_encoder.positional_embedding": "image_encoder.trunk.pos_embed",
        "image_encoder.proj": "image_encoder.projection.weight",
        "skeleton_encoder.proj_ske": "skeleton_encoder.projection.weight",
    }
    out |= _join("image_encoder.", "image_encoder.trunk.", _TOWER)
    for n in range(m.image_depth):
        out |= _join(f"{RESBLOCKS}.{n}.", f"image_encoder.trunk.blocks.{n}.", _TOWER_BLOCK)
    if m.camera_embedding:
        out["cv_embed"] = "image_encoder.camera_table"
    out |= _join(f"{GRAPH}.", "skeleton_encoder.", _SKELETON)
    for n in range(m.joint_layers):
        out |= _join(f"{JOINT_BLOCKS}.{n}.", f"skeleton_encoder.layers.{n}.", _SKELETON_BLOCK)
    out |= _join("", "", _HEADS)
    if spec.prototypes in ("pfu", "gate"):
        out |= _join("PF.", "prototype_updater.", _GATE)
    if spec.prototypes == "pfu":
        out |= _join("VTU.", "prototype_updater.decoder.", _DECODER)
        for n in range(m.prototype_layers):
            out |= _join(f"{DECODER_LAYERS}.{n}.", f"prototype_updater.decoder.layers.{n}.", _DECODER_LAYER)
    if spec.temporal:
        out |= _join("TMM.", "temporal.", _TEMPORAL) | _join("", "", _TEMPORAL_HEADS)
    return out


def _join(published: str, ours: str, parts: _Parts) -> dict[str, str]:
    return {
        f"{published}{theirs}.{tensor}": f"{ours}{own}.{name}"
        for theirs, (own, tensors) in parts.items()
        for tensor, name in tensors.items()
    }
