"""Where every number of a recipe comes from: the paper and its published implementation, a library, or CSIP itself.

"CSIP-ReID, stage 1" and the like name the part of the method that the value is published for; "csip: ..." is a choice
of this project's own, with its reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from csip.config import Experiment

PUBLISHED_FOR = {"mars": "CSIP-ReID on MARS", "lsvid": "CSIP-ReID on LS-VID", "ilids": "CSIP-ReID on iLIDS-VID"}
"""Recipes that hold a published experiment: what they change of CSIP-ReID's numbers is CSIP-ReID's too."""

_PUBLISHED = "CSIP-ReID"
_INPUTS = "CSIP-ReID, inputs"
_AUGMENTATION = "CSIP-ReID, stage 2's augmentation"
_ENCODERS = "CSIP-ReID, encoders"
_STAGE1 = "CSIP-ReID, stage 1"
_STAGE2 = "CSIP-ReID, stage 2"
_BATCH = "CSIP-ReID, stage 2's batches"
_LOSS = "CSIP-ReID, stage 2's loss"
_PFU = "CSIP-ReID, Prototype Fusion Updater"
_SGTM = "CSIP-ReID, Skeleton Guided Temporal Modelling"
_MARS = "CSIP-ReID on MARS"
_LONG = "CSIP-ReID on MARS and LS-VID"
_CLIP = "CLIP"
_TRANSG = "TranSG"
_QUIRK = "csip: off; TranSG's published code does it"
_RERANK = "CSIP-ReID, where it re-ranks"
_ULTRALYTICS = "ultralytics' default"
_BYTETRACK = "ultralytics' ByteTrack default"
_PAGE = "csip: what fits a page"
_SPEED = "csip: for speed, changes no result"

ORIGINS = {
    "name": "csip: the recipe's name",
    "seed": "csip: any number would do",
    "dataset": "csip: names one's own video",
    "detect.weights": "csip: the model that ships with it",
    "detect.image_size": "csip: measured, finds people of 60 pixels",
    "detect.precision": "csip: the same on every device",
    "detect.stride": "csip: every frame",
    "detect.confidence": "csip: low boxes are for ByteTrack's second association",
    "detect.iou": _ULTRALYTICS,
    "detect.max_people": _ULTRALYTICS,
    "detect.segment_seconds": "csip: minutes are lost to a crash, not hours",
    "detect.min_box_height": "csip: no bound",
    "detect.region": "csip: the whole frame",
    "track.tracker": "csip: the simpler of ultralytics' two",
    "track.high_confidence": _BYTETRACK,
    "track.low_confidence": _BYTETRACK,
    "track.new_confidence": _BYTETRACK,
    "track.match_cost": _BYTETRACK,
    "track.buffer_seconds": "csip: ByteTrack's 30 frames at 10 a second",
    "track.double_distance": "csip: looked at on the demo's street",
    "track.jump_distance": "csip: above what one person moves there",
    "track.jump_ratio": "csip: above what one person's box grows there",
    "track.link_seconds": "csip: as track.buffer_seconds",
    "track.link_distance": "csip: every link on the demo's street was looked at",
    "track.link_ratio": "csip: as much as boxes of one person differ",
    "track.interpolate_seconds": "csip: as long as a post hides somebody who walks",
    "track.min_seconds": "csip: at 10 frames a second as many as a clip has",
    "track.min_frames": "csip: half of what a clip has",
    "track.min_keypoint_confidence": "csip: as clip.joint_confidence",
    "track.ghost_share": "csip: most frames",
    "track.jpeg_quality": "csip: a loss that is not seen",
    "split.min_part_frames": "csip: as many as a clip has",
    "split.max_parts": "csip: bounds what one long track weighs",
    "split.gap_seconds": "csip: keeps parts from sharing a pose",
    "split.test_fraction": "csip: half and half, as MARS and iLIDS-VID",
    "split.seed": "csip: any number would do",
    "walkers.people": "csip: minutes on two cores",
    "walkers.twins": "csip: clothes alone must not be enough",
    "walkers.test_fraction": "csip: half and half, as MARS and iLIDS-VID",
    "walkers.cameras": "csip: more than one other view a person",
    "walkers.passes": "csip: one asks, one answers",
    "walkers.frames": "csip: about two gait cycles at 10 frames a second",
    "walkers.layout": "csip: as CSIP-ReID's 17 joints in 3D",
    "walkers.joint_noise": "csip: what a 3D pose model errs",
    "walkers.scale_noise": "csip: what a 3D pose model errs",
    "walkers.keypoint_noise": "csip: what a detector errs",
    "walkers.missing_joints": "csip: what a detector misses",
    "walkers.missing_frames": "csip: what a detector misses",
    "walkers.occlusion": "csip: streets are not empty",
    "walkers.box_noise": "csip: what a detector errs",
    "walkers.jpeg_quality": "csip: a usual quality",
    "walkers.seed": "csip: any number would do",
    "benchmark.skeletons": "csip: files where they are, else the pose model",
    "benchmark.skeleton_folder": "CSIP-ReID, its code's folder",
    "benchmark.pose_height": "csip: measured on a street's crops, and most benchmarks' own size",
    "benchmark.pose_width": "csip: measured on a street's crops, and most benchmarks' own size",
    "benchmark.pose_margin": "csip: measured on a street's crops",
    "benchmark.pose_confidence": "csip: somebody is in every crop",
    "data.protocol": "csip: the snapshot's own",
    "data.split": "csip: the protocol's own",
    "clip.frames": _INPUTS,
    "clip.chunks": _INPUTS,
    "clip.height": _INPUTS,
    "clip.width": _INPUTS,
    "clip.mean": "CSIP-ReID, inputs: ImageNet's",
    "clip.std": "CSIP-ReID, inputs: ImageNet's",
    "clip.flip": _AUGMENTATION,
    "clip.erase": _AUGMENTATION,
    "clip.erase_area": _AUGMENTATION,
    "clip.erase_aspect": _AUGMENTATION,
    "clip.joint_confidence": "csip: for 2D joints, found by a detector",
    "clip.max_gap": "csip: for 2D joints, found by a detector",
    "clip.min_joints": "csip: for 2D joints, found by a detector",
    "clip.unit": _MARS,
    "clip.unit_frames": "CSIP-ReID on LS-VID, read for chunks and windows only",
    "clip.unit_stride": "CSIP-ReID on iLIDS-VID, read for windows only",
    "model.image_encoder": "CSIP-ReID, encoders: CLIP ViT-B/16",
    "model.image_weights": "CSIP-ReID, encoders: CLIP's",
    "model.image_depth": _CLIP,
    "model.image_width": _CLIP,
    "model.image_heads": _CLIP,
    "model.width": "CSIP-ReID, encoders: CLIP's projection",
    "model.camera_embedding": _ENCODERS,
    "model.camera_scale": "CSIP-ReID, encoders: sie_coef",
    "model.joint_layers": _ENCODERS,
    "model.joint_heads": _ENCODERS,
    "model.joint_dropout": _ENCODERS,
    "model.graph_positions": _ENCODERS,
    "model.prototype_layers": _PFU,
    "model.prototype_heads": _PFU,
    "model.prototype_dropout": _PFU,
    "model.temporal_heads": _SGTM,
    "model.temporal_dropout": _SGTM,
    "pretrain.epochs": "csip: CLIP's weights need no pretraining",
    "pretrain.learning_rate": "csip: as in stage 1",
    "pretrain.weight_decay": "csip: as in stage 2",
    "pretrain.identities": "csip: as in stage 2",
    "pretrain.clips_per_identity": "csip: as in stage 2",
    "pretrain.label_smoothing": "csip: as in stage 2",
    "pretrain.margin": "csip: as in stage 2",
    "pretrain.triplet_weight": "csip: as in stage 2",
    "pretrain.precision": "csip: as in stage 2",
    "stage1.epochs": _STAGE1,
    "stage1.batch_clips": _STAGE1,
    "stage1.learning_rate": _STAGE1,
    "stage1.warmup_rate": _STAGE1,
    "stage1.final_rate": _STAGE1,
    "stage1.warmup_epochs": _STAGE1,
    "stage1.weight_decay": _STAGE1,
    "stage1.temperature": _STAGE1,
    "stage1.normalize": _STAGE1,
    "stage1.drop_last": _LONG,
    "stage1.accumulate": "csip: a batch makes a step, as published",
    "stage1.precision": _STAGE1,
    "stage2.prototypes": _STAGE2,
    "stage2.temporal": _STAGE2,
    "stage2.prototype_frames": _STAGE2,
    "stage2.epochs": _LONG,
    "stage2.identities": _BATCH,
    "stage2.clips_per_identity": _BATCH,
    "stage2.learning_rate": _STAGE2,
    "stage2.bias_factor": _STAGE2,
    "stage2.head_factor": _MARS,
    "stage2.weight_decay": _STAGE2,
    "stage2.warmup_epochs": _STAGE2,
    "stage2.milestones": _LONG,
    "stage2.label_smoothing": _LOSS,
    "stage2.margin": _LOSS,
    "stage2.identity_weight": _LOSS,
    "stage2.triplet_weight": _LOSS,
    "stage2.prototype_weight": _LOSS,
    "stage2.frame_weight": _LOSS,
    "stage2.freeze_skeleton_encoder": "CSIP-ReID, stage 2: as its code, not its figure",
    "stage2.accumulate": "csip: a batch makes a step, as published",
    "stage2.precision": _STAGE2,
    "stage2.keep_every": "csip: only the last one is read again",
    "validate.select": "CSIP-ReID: the last epoch is reported",
    "validate.fraction": "csip: read for select=validation only",
    "validate.every": "csip: read for select=validation and test only",
    "skeleton.encoder": "csip: the encoder that stage 1 trains",
    "skeleton.initial": "csip: from scratch, to compare with",
    "skeleton.seeds": "csip: one training is an anecdote",
    "skeleton.frames": _TRANSG,
    "skeleton.epochs": "csip: a fixed number, where TranSG stops by its probes",
    "skeleton.batch_windows": _TRANSG,
    "skeleton.learning_rate": _TRANSG,
    "skeleton.weight_decay": _TRANSG,
    "skeleton.sequence_temperature": _TRANSG,
    "skeleton.frame_temperature": _TRANSG,
    "skeleton.sequence_share": _TRANSG,
    "skeleton.structure_share": _TRANSG,
    "skeleton.prototype_share": _TRANSG,
    "skeleton.masked_joints": _TRANSG,
    "skeleton.masked_frames": _TRANSG,
    "skeleton.transg_width": _TRANSG,
    "skeleton.transg_layers": _TRANSG,
    "skeleton.transg_heads": _TRANSG,
    "skeleton.transg_dropout": _TRANSG,
    "skeleton.drop_last": _QUIRK,
    "skeleton.shuffle_once": _QUIRK,
    "skeleton.reconstruction_over_batch": _QUIRK,
    "skeleton.bn_frozen_stats": _QUIRK,
    "skeleton.drop_last_eval": _QUIRK,
    "skeleton.select_on_probe": _QUIRK,
    "skeleton.patience": "TranSG, read for select_on_probe only",
    "embed.sampling": "CSIP-ReID, inputs: the first frame of each chunk",
    "embed.unit": "csip: as the literature ranks, whole tracklets",
    "embed.clip_stride": "CSIP-ReID on iLIDS-VID, read for clips only",
    "embed.histogram_bins": "csip: the baseline anybody would build",
    "evaluate.exclude_same_camera": "csip: as the data set's protocol has it",
    "evaluate.query_in_gallery": "csip: as the data set's protocol has it",
    "evaluate.ranks": "csip: what papers report",
    "evaluate.rerank": "CSIP-ReID: off",
    "evaluate.rerank_k1": _RERANK,
    "evaluate.rerank_k2": _RERANK,
    "evaluate.rerank_weight": _RERANK,
    "evaluate.bootstrap": "csip: intervals steady to about a tenth of their breadth",
    "evaluate.confidence": "csip: what papers report",
    "evaluate.bootstrap_seed": "csip: any number would do",
    "evaluate.breakdown": "csip: an average hides where a model fails",
    "evaluate.lengths": "csip: doubling, around the benchmarks' median lengths",
    "report.contact_tracklets": _PAGE,
    "report.contact_frames": _PAGE,
    "report.queries": _PAGE,
    "report.gallery": _PAGE,
    "runtime.device": _SPEED,
    "runtime.per_device": "csip: what fits into any device's memory",
    "runtime.runner": _SPEED,
    "runtime.ray_address": _SPEED,
    "runtime.pose_engine": _SPEED,
    "runtime.pose_batch": _SPEED,
    "runtime.encode_threads": _SPEED,
    "runtime.encode_batch": _SPEED,
    "runtime.decode_threads": "csip: the decoder's own default fails on healthy files",
    "runtime.decode_stall_seconds": "csip: longer than opening any file takes",
    "runtime.decode_limit_seconds": "csip: enough to open a large file on a slow disk",
    "runtime.decode_limit_factor": "csip: slower than any decoder is that works",
    "runtime.workers": _SPEED,
    "runtime.processes": _SPEED,
    "runtime.nodes": _SPEED,
    "runtime.rendezvous": _SPEED,
    "runtime.threads": _SPEED,
    "runtime.compile": _SPEED,
    "runtime.save_seconds": "csip: what an interruption may cost",
    "runtime.stop_seconds": "csip: enough to write a state down",
    "runtime.video_batch_seconds": _SPEED,
    "runtime.stall_seconds": "csip: longer than any step takes",
}
"""Every default of `Experiment`, by "section.field"."""


def leaves(section: Any, path: str = "") -> dict[str, Any]:
    """List every value of an experiment by "section.field", in the order they are declared."""
    out: dict[str, Any] = {}
    for one in fields(section):
        value, name = getattr(section, one.name), f"{path}{one.name}"
        out |= leaves(value, f"{name}.") if is_dataclass(value) else {name: value}
    return out


def origins_of(recipe: Experiment, assignments: Sequence[str]) -> dict[str, str]:
    """Say of every value of a recipe where it comes from, after ``section.field=value`` assignments.

    What is assigned comes from "--set", whatever its value; what the recipe changes, from the recipe, or from
    CSIP-ReID's experiment that it repeats; all else from where `ORIGINS` says.
    """
    assigned = {assignment.partition("=")[0] for assignment in assignments}
    defaults = leaves(Experiment(name=recipe.name))
    out = {}
    for name, value in leaves(recipe).items():
        origin = ORIGINS[name]
        if value != defaults[name]:
            published = recipe.name in PUBLISHED_FOR and origin.startswith(_PUBLISHED)
            origin = PUBLISHED_FOR[recipe.name] if published else f"recipe {recipe.name}"
        out[name] = "--set" if name in assigned else origin
    return out
