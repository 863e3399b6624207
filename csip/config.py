"""Every number of the pipeline, in frozen sections, one a stage; `Experiment` joins them.

A section holds what changes a stage's result. What only changes how fast it comes (device, batch sizes of
inference, workers) lives in `RuntimeConfig` and is part of no digest. Recipes (`flows/recipes.py`) fill the
sections; the command line changes single fields (`flows.overrides`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import ConfigDict

_STRICT = ConfigDict(extra="forbid")


def _in_range(section: object, **bounds: tuple[float, float]) -> None:
    """Check that fields lie in closed ranges; name the section, the field, the value and the range."""
    for name, (low, high) in bounds.items():
        value = getattr(section, name)
        if not low <= value <= high:
            raise ValueError(f"{type(section).__name__}.{name}: got {value}, expected {low} to {high}.")


_MANY = float("inf")

Precision = Literal["auto", "float32", "bfloat16", "float16"]
"""What a training's forward pass computes in on CUDA: "auto" is float16 with loss scaling, as published. A CPU always
computes in float32, and so do the losses."""

PosePrecision = Literal["float32", "float16", "int8"]
"""What a pose network computes in."""

ChunkRule = Literal["padded", "even"]
"""How a tracklet of n frames is cut into the T chunks that a clip takes one frame of each: "padded" with its last frame
to T times ceil(n / T), as published, which fills the late chunks of lengths just above T with that frame; "even" gives
every chunk as many of its own frames as another, or one more."""

PrototypeChoice = Literal["pfu", "gate", "fixed", "visual", "none"]
"""Prototypes of stage 2: "pfu" fuses visual and skeleton prototypes by a gate and updates them to each clip; "gate"
leaves the update out; "fixed" takes (P_s + P_v) / 2; "visual" takes P_v alone; "none" has no prototype loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """How the work is done, never what comes out of it.

    Attributes:
        device: "auto" takes CUDA devices where there are some, whichever is free, else the CPU; or "cpu", "cuda",
            "cuda:1".
        per_device: pose models that may share a device, and trainings; more of them wait until one is done.
        runner: where the batches of a build are worked on: "local" on this machine, "ray" on a Ray cluster.
        ray_address: of the cluster, such as "ray://head:10001"; empty: the one that this machine belongs to, else one
            of this machine alone.
        pose_engine: of .pt weights: "openvino" runs them through OpenVINO (CPU), "pytorch" as they are; "auto" takes
            OpenVINO on the CPU when it is installed. Exported files have an engine of their own.
        pose_batch: frames a pose-model call.
        encode_threads: threads that cut out and encode crops.
        encode_batch: crops an image-encoder call outside training.
        decode_threads: threads of the video decoder; decord's own default (0) fails on healthy VP9 files.
        decode_stall_seconds: a decoder that gives no sign of life for this long is killed, and its video left out.
        decode_limit_seconds: how long a video's decoder is waited for in all, at least; what the pose model takes
            meanwhile does not count.
        decode_limit_factor: and this many seconds more for every second of the video.
        workers: processes that read and augment training clips, for each training process; 0 does it in that one.
        processes: training processes on this machine, one a device; a batch is shared among them. With dropout on,
            each draws its own masks, so that another number of them gives other (equally good) weights.
        nodes: machines that train together, this one and those on which `csip join` waits; see README.
        rendezvous: HOST:PORT under which the other machines reach this one; needed with more than one.
        threads: of a stage's process on the CPU; 0 leaves it to the libraries, which take every core.
        compile: let torch.compile translate the network that stage 2 trains.
        save_seconds: a training writes down where it is this often, to be taken up from there.
        stop_seconds: how long a stage may take to write down where it is when it is told to stop.
        video_batch_seconds: short videos share one process until they add up to this many seconds.
        stall_seconds: a stage whose process reports nothing for this long is killed and fails; with other machines it
            is tried again, since one of them may be gone, and until they have come, they are waited for up to an hour.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    device: str = "auto"
    per_device: int = 1
    runner: Literal["local", "ray"] = "local"
    ray_address: str = ""
    pose_engine: Literal["auto", "openvino", "pytorch"] = "auto"
    pose_batch: int = 4
    encode_threads: int = 2
    encode_batch: int = 256
    decode_threads: int = 2
    decode_stall_seconds: float = 300.0
    decode_limit_seconds: float = 600.0
    decode_limit_factor: float = 20.0
    workers: int = 0
    processes: int = 1
    nodes: int = 1
    rendezvous: str = ""
    threads: int = 0
    compile: bool = False
    save_seconds: float = 120.0
    stop_seconds: float = 30.0
    video_batch_seconds: float = 600.0
    stall_seconds: float = 900.0

    def __post_init__(self) -> None:
        _in_range(self, pose_batch=(1, 4096), encode_batch=(1, 65536), decode_threads=(1, 256), workers=(0, 256))
        _in_range(self, encode_threads=(1, 256), per_device=(1, 64), nodes=(1, 1024))
        host, _, port = self.rendezvous.rpartition(":")
        if self.nodes > 1 and not (host and port.isdigit() and 0 < int(port) < 65_536):
            raise ValueError(
                f"RuntimeConfig.rendezvous: got {self.rendezvous!r}, expected HOST:PORT with runtime.nodes="
                f"{self.nodes}: where the other machines reach this one."
            )
        _in_range(self, processes=(1, 1024), threads=(0, 4096), save_seconds=(0, _MANY), stop_seconds=(0, 3600))
        _in_range(self, video_batch_seconds=(1, _MANY), stall_seconds=(1, _MANY), decode_stall_seconds=(0.1, 86_400))
        _in_range(self, decode_limit_seconds=(0.1, _MANY), decode_limit_factor=(0, _MANY))


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectConfig:
    """People and keypoints in single frames (`csip.ingest.pose`).

    Attributes:
        weights: a path, or a name that is looked for in the user's cache, in this package, and at its maker's. The file
            decides what runs it: .pt runs in PyTorch or OpenVINO (`runtime.pose_engine`); ultralytics' exports run in
            what they were made for, .onnx in ONNX Runtime, a folder *_openvino_model in OpenVINO, .engine in TensorRT.
        image_size: the longer side of what the model sees, pixels; 0 chooses one from the frame's size that finds
            people of 60 pixels (5/3 of its longer side, 640 to 3200), and takes that of a file which is bound to one.
        precision: what the model computes in: "float16" is for .pt files on CUDA; a file that was exported in "float16"
            or "int8" is named so.
        stride: every so many frames one is looked at.
        confidence: lowest box score kept; ByteTrack's second stage lives on low ones.
        iou: overlap above which non-maximum suppression drops the weaker box.
        max_people: most boxes a frame.
        segment_seconds: a long video is worked through in parts of this length, a commit each; a killed build loses no
            more than one of them.
        min_box_height: smaller boxes are dropped (and counted), frame pixels.
        region: where people count: corners of a polygon, x and y as shares of the frame's width and height; who stands
            (middle of the box's lower edge) outside of it is dropped (and counted). Empty: everywhere. On the command
            line: [[0,0.5],[1,0.5],[1,1],[0,1]].
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    weights: str = "yolo11n-pose.pt"
    image_size: int = 0
    precision: PosePrecision = "float32"
    stride: int = 1
    confidence: float = 0.1
    iou: float = 0.7
    max_people: int = 300
    segment_seconds: float = 600.0
    min_box_height: float = 0.0
    region: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if self.image_size:
            _in_range(self, image_size=(64, 8192))
        _in_range(self, stride=(1, 10_000), confidence=(0, 1), iou=(0, 1), max_people=(1, 10_000))
        _in_range(self, min_box_height=(0, 100_000), segment_seconds=(0.1, 86_400))
        if not all(0 <= share <= 1 for corner in self.region for share in corner):
            raise ValueError(f"DetectConfig.region: got {self.region}, expected shares of width and height, 0 to 1.")
        # Two corners, or more on one line, hold no area: nobody could ever stand in it.
        sides = [(x - self.region[0][0], y - self.region[0][1]) for x, y in self.region]
        turns = (a[0] * b[1] - a[1] * b[0] for a, b in itertools.combinations(sides, 2))
        if self.region and not any(turns):
            raise ValueError(
                f"DetectConfig.region: got {self.region}, expected at least three corners that are not on one line; "
                "or none, for the whole frame."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackConfig:
    """Detections to tracklets (`csip.ingest.track`) and tracklets to crops.

    Attributes:
        tracker: "bytetrack", or "botsort" (here without motion compensation: fixed cameras).
        high_confidence: detections at or above it open the first association.
        low_confidence: detections between it and `high_confidence` join the second association.
        new_confidence: an unmatched detection at or above it starts a track.
        match_cost: largest association cost, 1 - IoU weighted by score.
        buffer_seconds: how long a lost track may come back.
        double_distance: two detections whose joints lie this near together, in box heights, are one person, and the
            weaker one is left out (and counted); 0 leaves both.
        jump_distance: a track whose next detection lies this many box heights off its way is cut there (and counted);
            0 cuts nothing.
        jump_ratio: it is cut also where the box grows or shrinks by this factor at once while it is half as far off; 0
            cuts nothing.
        link_seconds: a track that begins within this time of another's end, where that would have gone on to, is linked
            to it (and counted); 0 links nothing.
        link_distance: how far off it may be, box heights.
        link_ratio: how much larger or smaller it may be.
        interpolate_seconds: boxes of gaps in a tracklet up to this long are interpolated (and counted). Their crops
            show the person half hidden, and they have no skeleton; 0 leaves gaps.
        min_seconds: tracklets of fewer frames than make so many seconds are dropped (and counted).
        min_frames: and those of fewer frames than this, however slow the camera.
        min_keypoint_confidence: a frame in which the mean over the joints lies under it is unsure.
        ghost_share: tracklets of which a larger share of the frames is unsure are dropped (and counted).
        jpeg_quality: of the stored crops, 1..100.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    tracker: Literal["bytetrack", "botsort"] = "bytetrack"
    high_confidence: float = 0.25
    low_confidence: float = 0.1
    new_confidence: float = 0.25
    match_cost: float = 0.8
    buffer_seconds: float = 3.0
    double_distance: float = 0.1
    jump_distance: float = 0.5
    jump_ratio: float = 1.5
    link_seconds: float = 3.0
    link_distance: float = 0.5
    link_ratio: float = 1.3
    interpolate_seconds: float = 1.0
    min_seconds: float = 0.8
    min_frames: int = 4
    min_keypoint_confidence: float = 0.3
    ghost_share: float = 0.5
    jpeg_quality: int = 95

    def __post_init__(self) -> None:
        _in_range(self, high_confidence=(0, 1), low_confidence=(0, 1), new_confidence=(0, 1), match_cost=(0, 1))
        _in_range(self, buffer_seconds=(0, 3600), min_frames=(1, 1_000_000), min_keypoint_confidence=(0, 1))
        _in_range(self, double_distance=(0, 10), jump_distance=(0, 100), jump_ratio=(0, 100), link_seconds=(0, 3600))
        _in_range(self, link_distance=(0, 100), link_ratio=(1, 100), interpolate_seconds=(0, 3600), ghost_share=(0, 1))
        _in_range(self, min_seconds=(0, 86_400))
        _in_range(self, jpeg_quality=(1, 100))


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitConfig:
    """The protocol of unlabelled video (`csip.evaluation.protocol`): every tracklet is a provisional identity.

    Attributes:
        min_part_frames: frames a part has at least.
        max_parts: a tracklet is cut into at most this many parts.
        gap_seconds: time left out between two parts of one tracklet.
        test_fraction: share of the people held out for query and gallery.
        seed: of the draw of the held-out people.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    min_part_frames: int = 8
    max_parts: int = 4
    gap_seconds: float = 0.5
    test_fraction: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        _in_range(self, min_part_frames=(1, 100_000), max_parts=(2, 10_000), gap_seconds=(0, 86_400))
        _in_range(self, test_fraction=(0, 1), seed=(0, 2**63 - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipConfig:
    """How clips are sampled from a part and prepared (method.md sections 1 and 5).

    Attributes:
        frames: T, frames a clip.
        chunks: see `ChunkRule`.
        height: of a crop, pixels.
        width: of a crop, pixels.
        mean: of each RGB channel, for normalisation.
        std: of each RGB channel, for normalisation.
        flip: chance that a training clip is mirrored, once a clip.
        erase: chance that a frame of a training clip loses a rectangle, once a frame.
        erase_area: least and largest area of that rectangle, as a share of the crop.
        erase_aspect: least and largest height over width of it.
        joint_confidence: 2D joints under it count as unseen.
        max_gap: unseen joints are interpolated over time across at most this many frames.
        min_joints: a frame with fewer seen joints has no valid skeleton.
        unit: what training samples clips from: a "tracklet" (MARS), a "chunk" of one (LS-VID), or a "window"
            (iLIDS-VID).
        unit_frames: of a chunk or window.
        unit_stride: frames from the begin of one window to that of the next.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    frames: int = 8
    chunks: ChunkRule = "padded"
    height: int = 256
    width: int = 128
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    flip: float = 0.5
    erase: float = 0.5
    erase_area: tuple[float, float] = (0.02, 0.2)
    erase_aspect: tuple[float, float] = (0.3, 3.3)
    joint_confidence: float = 0.3
    max_gap: int = 5
    min_joints: int = 5
    unit: Literal["tracklet", "chunk", "window"] = "tracklet"
    unit_frames: int = 48
    unit_stride: int = 4

    def __post_init__(self) -> None:
        _in_range(self, unit_frames=(1, 100_000), unit_stride=(1, 100_000))
        _in_range(self, frames=(1, 4096), height=(8, 8192), width=(8, 8192), flip=(0, 1), erase=(0, 1))
        _in_range(self, joint_confidence=(0, 1), max_gap=(0, 100_000), min_joints=(1, 1000))
        for name in ("erase_area", "erase_aspect"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"ClipConfig.{name}: got {(low, high)}, expected two positive numbers, ascending.")
        if min(self.std) <= 0:
            raise ValueError(f"ClipConfig.std: got {self.std}, expected positive numbers.")


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

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
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
        _in_range(self, width=(1, 65536), joint_layers=(1, 1000), joint_dropout=(0, 1), graph_positions=(1, 1000))
        _in_range(self, image_depth=(0, 1000), image_width=(0, 65536), image_heads=(0, 1024))
        _in_range(self, prototype_layers=(1, 1000), prototype_dropout=(0, 1), temporal_dropout=(0, 1))
        for name in ("joint_heads", "prototype_heads"):
            heads = getattr(self, name)
            if heads < 1 or self.width % heads:
                raise ValueError(f"ModelConfig.{name}: got {heads}, expected a divisor of width={self.width}.")


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
        precision: see `Precision`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    epochs: int = 0
    learning_rate: float = 3.5e-4
    weight_decay: float = 1e-4
    identities: int = 4
    clips_per_identity: int = 4
    label_smoothing: float = 0.1
    margin: float = 0.3
    triplet_weight: float = 1.0
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        _in_range(
            self,
            epochs=(0, 1_000_000),
            learning_rate=(0, 10),
            weight_decay=(0, 10),
            margin=(0, 100),
            triplet_weight=(0, 1e6),
        )
        _in_range(self, identities=(2, 4096), clips_per_identity=(2, 4096), label_smoothing=(0, 0.999))


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
        precision: see `Precision`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    epochs: int = 120
    batch_clips: int = 64
    learning_rate: float = 3.5e-4
    warmup_rate: float = 1e-5
    final_rate: float = 1e-6
    warmup_epochs: int = 5
    weight_decay: float = 1e-4
    temperature: float = 1.0
    normalize: bool = False
    drop_last: bool = False
    accumulate: int = 1
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        _in_range(self, epochs=(0, 1_000_000), batch_clips=(2, 1_000_000), learning_rate=(0, 10), warmup_rate=(0, 10))
        _in_range(self, accumulate=(1, 100_000))
        _in_range(self, final_rate=(0, 10), warmup_epochs=(0, 1_000_000), weight_decay=(0, 10), temperature=(1e-6, 1e6))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage2Config:
    """Stage 2: prototype-guided fine-tuning (method.md section 4).

    Attributes:
        prototypes: see `PrototypeChoice`.
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
        precision: see `Precision`.
        keep_every: keep the checkpoint of every n-th epoch as well; 0 keeps the last one only.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    prototypes: PrototypeChoice = "pfu"
    temporal: bool = True
    prototype_frames: Literal["clip", "all"] = "clip"
    epochs: int = 80
    identities: int = 4
    clips_per_identity: int = 4
    learning_rate: float = 5e-6
    bias_factor: float = 2.0
    head_factor: float = 10.0
    weight_decay: float = 1e-4
    warmup_epochs: int = 10
    milestones: tuple[int, ...] = (30, 50, 70)
    label_smoothing: float = 0.1
    margin: float = 0.3
    identity_weight: float = 0.25
    triplet_weight: float = 1.0
    prototype_weight: float = 1.0
    frame_weight: float = 1.3
    freeze_skeleton_encoder: bool = False
    accumulate: int = 1
    precision: Precision = "auto"
    keep_every: int = 0

    def __post_init__(self) -> None:
        _in_range(self, epochs=(0, 1_000_000), identities=(2, 4096), clips_per_identity=(2, 4096))
        _in_range(self, learning_rate=(0, 10), bias_factor=(0, 1e4), head_factor=(0, 1e4), weight_decay=(0, 10))
        _in_range(self, warmup_epochs=(0, 1_000_000), label_smoothing=(0, 0.999), margin=(0, 100))
        _in_range(self, accumulate=(1, 100_000), keep_every=(0, 1_000_000))
        for name in ("identity_weight", "triplet_weight", "prototype_weight", "frame_weight"):
            _in_range(self, **{name: (0, 1e6)})
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"Stage2Config.milestones: got {self.milestones}, expected ascending epochs.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateConfig:
    """Which epoch of stage 2 is reported. The published recipes train on everybody and report the last one.

    Attributes:
        select: "last"; "validation": the epoch with the best mAP among people held out of training; "test": the best
            on the test set itself, which flatters every figure; the checkpoint's header says so.
        fraction: share of the training people held out for "validation", drawn from the seed.
        every: epochs from one look to the next; the last epoch is always looked at.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    select: Literal["last", "validation", "test"] = "last"
    fraction: float = 0.1
    every: int = 1

    def __post_init__(self) -> None:
        _in_range(self, fraction=(1e-6, 0.9), every=(1, 1_000_000))


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedConfig:
    """How a part becomes one embedding, or several.

    Attributes:
        sampling: "restricted" takes the first frame of each of T equal chunks; "dense" averages over every
            consecutive window of T frames; "both" does one after the other and reports them side by side.
        unit: what is ranked: a whole "tracklet" (or part of one), or every "clip" of T consecutive frames of it.
        clip_stride: frames from the begin of one clip to that of the next; the last clip ends with the tracklet.
        histogram_bins: bins of hue, saturation and value in the colour-histogram baseline.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    sampling: Literal["restricted", "dense", "both"] = "restricted"
    unit: Literal["tracklet", "clip"] = "tracklet"
    clip_stride: int = 4
    histogram_bins: tuple[int, int, int] = (16, 4, 4)

    def __post_init__(self) -> None:
        _in_range(self, clip_stride=(1, 100_000))
        if min(self.histogram_bins) < 1:
            raise ValueError(f"EmbedConfig.histogram_bins: got {self.histogram_bins}, expected 1 or more each.")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """How embeddings are ranked and scored (datasets.md section 1).

    Attributes:
        exclude_same_camera: a gallery item of the query's own person and camera does not count. None: as the
            protocol has it; self-labelled video may have one camera only, so there only the query's own part is out.
        query_in_gallery: the queries stand in the gallery too. None: as the protocol has it.
        ranks: the rank-k figures that are reported.
        rerank: k-reciprocal re-ranking of the distances.
        rerank_k1: neighbours that may be reciprocal.
        rerank_k2: neighbours whose encodings are averaged.
        rerank_weight: of the original distance in the sum with the Jaccard distance (lambda).
        bootstrap: draws of the queries, with replacement, that the confidence intervals follow from; 0 for none.
        confidence: share of the draws inside an interval.
        bootstrap_seed: of the draws.
        breakdown: report each pair of cameras, and each class of query length, by itself as well.
        lengths: frames at which one class of query length ends and the next begins.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    exclude_same_camera: bool | None = None
    query_in_gallery: bool | None = None
    ranks: tuple[int, ...] = (1, 5, 10, 20)
    rerank: bool = False
    rerank_k1: int = 50
    rerank_k2: int = 15
    rerank_weight: float = 0.3
    bootstrap: int = 1000
    confidence: float = 0.95
    bootstrap_seed: int = 0
    breakdown: bool = True
    lengths: tuple[int, ...] = (16, 32, 64, 128)

    def __post_init__(self) -> None:
        _in_range(self, rerank_k1=(1, 10_000), rerank_k2=(1, 10_000), rerank_weight=(0, 1))
        _in_range(self, bootstrap=(0, 1_000_000), confidence=(0.01, 0.999), bootstrap_seed=(0, 2**63 - 1))
        if list(self.lengths) != sorted(set(self.lengths)) or min(self.lengths, default=1) < 1:
            raise ValueError(f"EvaluateConfig.lengths: got {self.lengths}, expected ascending positive numbers.")
        if not self.ranks or min(self.ranks) < 1:
            raise ValueError(f"EvaluateConfig.ranks: got {self.ranks}, expected positive numbers.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """What the report shows.

    Attributes:
        contact_tracklets: tracklets on the contact sheet.
        contact_frames: crops a tracklet on it.
        queries: queries whose ranked gallery is shown.
        gallery: gallery items shown a query.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    contact_tracklets: int = 24
    contact_frames: int = 8
    queries: int = 6
    gallery: int = 10

    def __post_init__(self) -> None:
        _in_range(self, contact_tracklets=(1, 10_000), contact_frames=(1, 1000), queries=(0, 10_000), gallery=(1, 1000))


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkersConfig:
    """Walkers, the synthetic benchmark (`csip.ingest.benchmarks.walkers`): everything that changes its rows.

    Attributes:
        people: persons in all, train and test.
        twins: share of the people who come in pairs of the same clothes, hair and skin.
        test_fraction: share of the people held out for query and gallery; a pair stays together.
        cameras: views of the place that everybody walks through.
        passes: times each person walks past each camera; of a test person's, the first is the query.
        frames: of a pass, at 10 a second.
        layout: which skeletons become rows: HMR-like 3D ("h36m17") or detector-like 2D ("coco17").
        joint_noise: standard deviation of 3D joints along each axis, metres.
        scale_noise: standard deviation of the factor by which a pass's 3D skeletons are too large or too small.
        keypoint_noise: standard deviation of 2D joints along each axis, as a share of the person's height in pixels.
        missing_joints: chance that a joint is not found in a frame; three times that where it is hidden.
        missing_frames: chance that a frame has no skeleton at all.
        occlusion: chance that something stands in front of part of a pass.
        box_noise: standard deviation of the box's edges, as a share of its height.
        jpeg_quality: of the stored crops, 1..100.
        seed: of everything.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    people: int = 60
    twins: float = 0.5
    test_fraction: float = 0.5
    cameras: int = 4
    passes: int = 2
    frames: int = 24
    layout: Literal["h36m17", "coco17"] = "h36m17"
    joint_noise: float = 0.015
    scale_noise: float = 0.02
    keypoint_noise: float = 0.01
    missing_joints: float = 0.03
    missing_frames: float = 0.05
    occlusion: float = 0.15
    box_noise: float = 0.015
    jpeg_quality: int = 90
    seed: int = 0

    def __post_init__(self) -> None:
        # 40 frames at 10 a second are 6 metres at a brisk pace: more would lead out of some camera's view.
        _in_range(self, people=(4, 100_000), twins=(0, 1), test_fraction=(0, 1), cameras=(2, 100), passes=(2, 100))
        _in_range(self, frames=(2, 40), joint_noise=(0, 1), scale_noise=(0, 0.2), keypoint_noise=(0, 0.2))
        _in_range(self, missing_joints=(0, 1), missing_frames=(0, 1), occlusion=(0, 1), box_noise=(0, 0.1))
        _in_range(self, jpeg_quality=(1, 100), seed=(0, 2**63 - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkConfig:
    """How a benchmark's folder becomes rows (`csip.ingest.benchmarks`).

    Attributes:
        skeletons: where the crops' skeletons come from: "files" beside the pictures; "pose", the model of
            `detect.weights` on the crops; "none" for those who only evaluate; "auto" takes the files where their folder
            is there, else the pose model.
        skeleton_folder: name of the folder of side-car files, below the data set's root.
        pose_height: pixels of what the pose model sees of a crop; crops are enlarged or shrunk to fit.
        pose_width: the same across.
        pose_margin: share of that height and width which stays free around a crop, room for joints that the crop cuts
            off.
        pose_confidence: lowest score of a person that a crop's skeleton is taken from.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    skeletons: Literal["auto", "files", "pose", "none"] = "auto"
    skeleton_folder: str = "skeleton_3d_hmr2.0"
    pose_height: int = 256
    pose_width: int = 128
    pose_margin: float = 0.1
    pose_confidence: float = 0.1

    def __post_init__(self) -> None:
        _in_range(self, pose_height=(32, 4096), pose_width=(32, 4096), pose_confidence=(0, 1), pose_margin=(0, 0.9))
        if self.skeleton_folder in ("", ".", "..") or "/" in self.skeleton_folder or "\\" in self.skeleton_folder:
            raise ValueError(
                f"BenchmarkConfig.skeleton_folder: got {self.skeleton_folder!r}, expected the name of one folder."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """What of a snapshot is trained on and scored.

    Attributes:
        protocol: a name in `csip.protocols.PROTOCOLS`; "all": one after the other; empty: the snapshot's only one.
        split: number of the split; "all": one training for each; empty: the protocol's only one.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    protocol: str = ""
    split: str = ""


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

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
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
        _in_range(self, seeds=(1, 1000), frames=(2, 1000), epochs=(1, 1_000_000), batch_windows=(2, 1_000_000))
        _in_range(self, learning_rate=(0, 10), weight_decay=(0, 10), sequence_temperature=(1e-6, 1e6))
        _in_range(self, frame_temperature=(1e-6, 1e6), sequence_share=(0, 1), structure_share=(0, 1))
        _in_range(self, prototype_share=(0, 1), masked_joints=(0, 1000), masked_frames=(0, 1000), patience=(1, 10**6))
        _in_range(self, transg_width=(1, 65536), transg_layers=(1, 1000), transg_dropout=(0, 0.999))
        if self.transg_heads < 1 or self.transg_width % self.transg_heads:
            raise ValueError(
                f"SkeletonConfig.transg_heads: got {self.transg_heads}, expected a divisor of "
                f"transg_width={self.transg_width}."
            )
        if self.masked_frames >= self.frames:
            raise ValueError(
                f"SkeletonConfig.masked_frames: got {self.masked_frames} of {self.frames} frames, expected fewer."
            )


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

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    dataset: str = "video"
    detect: DetectConfig = field(default_factory=DetectConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    walkers: WalkersConfig = field(default_factory=WalkersConfig)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)

    def __post_init__(self) -> None:
        if not self.dataset.replace("-", "").replace("_", "").isalnum():
            raise ValueError(
                f"ExtractConfig.dataset: got {self.dataset!r}, expected letters, digits, '-' and '_' only: "
                "it becomes part of file and tag names."
            )


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

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    name: str
    seed: int = 0
    dataset: str = "video"
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
        ExtractConfig(dataset=self.dataset)  # refuses a name that cannot be part of a file's

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
