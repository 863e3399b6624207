"""The door to ultralytics' pose models: `Frames` to `People`.

Every engine runs the same network on the same pixels: a frame is letterboxed here to the shape that ultralytics' own
inference would take, goes through the engine, and comes back through the same non-maximum suppression.

Shapes: F frames, H and W frame pixels, h and w network pixels, N people, J joints, A anchors.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from csip.config import PosePrecision
from csip.ingest.pose_engines import EngineChoice, open_network
from csip.ingest.pose_pixels import Letterbox, Pixels, check_bound_size, choose_image_size, network_size
from csip.ingest.yolo import import_quietly
from csip.joints import COCO17
from csip.types import Frames, People
from csip.weights import digest_weights

_PERSON = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """What the pose model saw in some frames.

    Attributes:
        people: in each frame, best score first.
        seconds: that the model took for each of them, where its lanes share the time of what they do side by side.
    """

    people: list[People]
    seconds: float


class PoseModel:
    """A YOLO pose model for frames of one size.

    It works in threads of its own, one for each image that its engine takes on at a time: while one of them scales the
    next frame or sorts out boxes, the processor is not idle.

    Attributes:
        lanes: how many jobs it works on at the same time.
        weights_sha256: see `csip.weights.digest_weights`.
        engine: "openvino", "pytorch", "onnxruntime" or "tensorrt".
        device: "cpu", "cuda:0", ...
        precision: "float32", "float16" or "int8".
        layout: of the J axis.
        image_size: the longer side of what the network sees, pixels.
        network_size: (h, w) of it.
        batch: frames that the network takes at once: calls with a multiple of it waste nothing; 0: any number.
    """

    def __init__(
        self,
        weights: Path,
        *,
        frame_size: tuple[int, int],
        image_size: int,
        confidence: float,
        iou: float,
        max_people: int,
        device: str = "auto",
        engine: EngineChoice = "auto",
        precision: PosePrecision = "float32",
    ) -> None:
        """Load the weights; the first time for a frame size, OpenVINO also converts a .pt file (some seconds).

        Args:
            weights: see `csip.ingest.yolo.resolve_weights` and `csip.ingest.pose_engines.open_network`.
            frame_size: (H, W) of the frames to come.
            image_size: the longer side of what the network sees, rounded up to its stride; 0 takes what the file is
                bound to, else what `choose_image_size` says.
            confidence: lowest box score kept.
            iou: overlap above which the weaker of two boxes goes.
            max_people: most boxes a frame.
            device: "auto", "cpu", "cuda", "cuda:1", ...
            engine: what runs a .pt file.
            precision: what the network computes in.

        Raises:
            ValueError: settings contradict each other.
            WeightsError: the file is no YOLO pose model of 17 keypoints, does not fit the settings, or its engine is
                missing.
        """

        def size_of(stride: int, bound: tuple[int, int] | None) -> tuple[int, int]:
            if bound is not None:
                return check_bound_size(bound, image_size, stride, f"weights {weights}")
            return network_size(frame_size, image_size or choose_image_size(frame_size), stride)

        network = open_network(weights, size_of=size_of, device=device, engine=engine, precision=precision)
        self.weights_sha256 = digest_weights(weights)
        self.engine, self.device, self.precision = network.engine, network.device, precision
        self.layout = COCO17
        self.network_size, self.batch = network.size, network.batch
        self.image_size = max(network.size)
        self._network = network
        self._frame_size = frame_size
        self.lanes = len(network.lanes)
        self._threads = ThreadPoolExecutor(self.lanes, "pose")
        self._free: queue.SimpleQueue[_Lane] = queue.SimpleQueue()
        for run in network.lanes:
            self._free.put((run, Letterbox(network.size)))
        self._limits = (confidence, iou, max_people)

    def __call__(self, frames: Frames) -> list[People]:
        """Find the people in each frame.

        Args:
            frames: (F, H, W, 3) RGB, of the size the model was made for; on CUDA all of them go through at once.

        Returns:
            F `People`, best score first. On a CPU a frame gives the same whatever frames come with it, bit for bit.

        Raises:
            ValueError: the frames are of another size.
        """
        return [people for job in self.start(frames) for people in job.result().people]

    def start(self, frames: Frames) -> list[Future[Seen]]:
        """Begin to look for the people in each frame; the jobs are answered in the order of the frames.

        Args:
            frames: as for a call.

        Returns:
            One job for as many frames as the network takes at once.

        Raises:
            ValueError: the frames are of another size.
        """
        if frames.pixels.shape[1:3] != self._frame_size:
            raise ValueError(
                f"PoseModel: got frames of {frames.pixels.shape[1:3]} pixels, expected {self._frame_size}; "
                "make a model for each frame size."
            )
        step = self.batch or max(len(frames), 1)
        parts = (frames.pixels[start : start + step] for start in range(0, len(frames), step))
        return [self._threads.submit(self._look, pixels) for pixels in parts]

    def _look(self, pixels: Pixels) -> Seen:
        begun = time.monotonic()
        lane = self._free.get()
        run, letterbox = lane
        try:
            images = letterbox(pixels)
            missing = self.batch - len(images)
            if missing > 0:
                images = torch.cat([images, images.new_zeros(missing, *images.shape[1:])])
            people = [self._people(prediction) for prediction in run(images)[: len(pixels)].float()]
        finally:
            self._free.put(lane)
        return Seen(people, (time.monotonic() - begun) / self.lanes / len(pixels))

    def _people(self, prediction: torch.Tensor) -> People:
        """Raw predictions of one frame to people, in frame pixels."""
        confidence, iou, max_people = self._limits
        # One frame a call: the function has a time limit for a batch, after which it leaves out the batch's rest.
        kept = (
            import_quietly("ultralytics.utils.nms")
            .non_max_suppression(
                prediction[None],
                confidence,
                iou,
                classes=[_PERSON],
                max_det=max_people,
                nc=self._network.classes,
                end2end=self._network.end2end,
            )[0]
            .cpu()
        )
        ops = import_quietly("ultralytics.utils.ops")
        boxes = ops.scale_boxes(self.network_size, kept[:, :4], self._frame_size)
        keypoints = kept[:, 6:].reshape(len(kept), len(self.layout.joints), 3)
        keypoints = ops.scale_coords(self.network_size, keypoints, self._frame_size)
        arrays = (value.numpy().astype(np.float32, copy=True) for value in (boxes, kept[:, 4], keypoints))
        return People(*arrays)


_Lane = tuple[Callable[[torch.Tensor], torch.Tensor], Letterbox]
