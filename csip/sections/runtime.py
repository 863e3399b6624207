"""How the work is done, never what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from csip.sections.bounds import MANY, STRICT, Within, check


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
        decode_threads: threads of the video decoder; decord's own default (0) fails on healthy VP9 files. What only
            PyAV reads has one, so that no row hangs on how many there are.
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

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    # Where the machine is known, `csip.device` looks whether it has it; a form refuses what no machine has.
    device: Annotated[str, Field(json_schema_extra={"pattern": "^(auto|cpu|(cuda|mps|xpu)(:[0-9]+)?)$"})] = "auto"
    per_device: Annotated[int, Within(1, 64)] = 1
    runner: Literal["local", "ray"] = "local"
    ray_address: str = ""
    pose_engine: Literal["auto", "openvino", "pytorch"] = "auto"
    pose_batch: Annotated[int, Within(1, 4096)] = 4
    encode_threads: Annotated[int, Within(1, 256)] = 2
    encode_batch: Annotated[int, Within(1, 65536)] = 256
    decode_threads: Annotated[int, Within(1, 256)] = 2
    decode_stall_seconds: Annotated[float, Within(0.1, 86_400)] = 300.0
    decode_limit_seconds: Annotated[float, Within(0.1, MANY)] = 600.0
    decode_limit_factor: Annotated[float, Within(0, MANY)] = 20.0
    workers: Annotated[int, Within(0, 256)] = 0
    processes: Annotated[int, Within(1, 1024)] = 1
    nodes: Annotated[int, Within(1, 1024)] = 1
    rendezvous: str = ""
    threads: Annotated[int, Within(0, 4096)] = 0
    compile: bool = False
    save_seconds: Annotated[float, Within(0, MANY)] = 120.0
    stop_seconds: Annotated[float, Within(0, 3600)] = 30.0
    video_batch_seconds: Annotated[float, Within(1, MANY)] = 600.0
    stall_seconds: Annotated[float, Within(1, MANY)] = 900.0

    def __post_init__(self) -> None:
        check(self)
        host, _, port = self.rendezvous.rpartition(":")
        if self.nodes > 1 and not (host and port.isdigit() and 0 < int(port) < 65_536):
            raise ValueError(
                f"RuntimeConfig.rendezvous: got {self.rendezvous!r}, expected HOST:PORT with runtime.nodes="
                f"{self.nodes}: where the other machines reach this one."
            )
