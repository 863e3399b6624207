"""What runs a pose network: PyTorch, OpenVINO, ONNX Runtime or TensorRT, as the weights file decides.

A .pt file runs in PyTorch or, converted once, in OpenVINO; a file made by ultralytics' own export runs in the engine
that it was made for. All of them take the same pixels and give the same raw predictions.

Shapes: F frames, h and w network pixels, J joints, A anchors, N boxes.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from csip.config import PosePrecision
from csip.device import resolve_device
from csip.errors import WeightsError
from csip.ingest.pose_files import UNLOADABLE, WHAT_NEXT, check_facts, read_facts, unloadable
from csip.ingest.pose_openvino import compile_openvino, openvino_model
from csip.ingest.pose_pixels import ScaledPixels
from csip.ingest.yolo import environment, import_quietly
from csip.weights import OPENVINO_FOLDER, whole_weights

EngineChoice = Literal["auto", "openvino", "pytorch"]
Engine = Literal["openvino", "pytorch", "onnxruntime", "tensorrt"]
SizeOf = Callable[[int, tuple[int, int] | None], tuple[int, int]]
"""(stride, size that the file is bound to, or None) to the (h, w) that the network shall see."""

_MADE_FOR: dict[str, Engine] = {".onnx": "onnxruntime", ".engine": "tensorrt", OPENVINO_FOLDER: "openvino"}


@dataclass(frozen=True, slots=True)
class Network:
    """A pose network that is ready to run.

    Attributes:
        engine: what runs it.
        device: "cpu", "cuda:0", ...
        size: (h, w) of what it sees, pixels.
        batch: frames of every call; 0: any number.
        classes: that it tells apart; the first is people.
        end2end: its predictions are boxes already, not anchors.
        lanes: one function or several that may run at the same time, each in one thread: (F, 3, h, w) uint8 RGB to
            raw predictions (F, 4 + classes + J * 3, A), or (F, N, 6 + J * 3) with `end2end`; they hold until the next
            call of the same function.
    """

    engine: Engine
    device: str
    size: tuple[int, int]
    batch: int
    classes: int
    end2end: bool
    lanes: tuple[Callable[[torch.Tensor], torch.Tensor], ...]


def open_network(
    weights: Path, *, size_of: SizeOf, device: str, engine: EngineChoice, precision: PosePrecision
) -> Network:
    """Load a pose network from what the user named.

    A .pt file is a pickle and an .engine file is machine code: load only what you trust. Of a .pt file only known
    layers are built (see `import_quietly`); the path comes from the config alone, never from a store or a video.

    Args:
        weights: a .pt, .onnx or .engine file, or an OpenVINO folder or its .xml.
        size_of: decides what the network sees.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        engine: what runs a .pt file: "auto" is OpenVINO on a CPU where it is installed, else PyTorch.
        precision: what is computed in; of an exported file, what it was exported in.

    Raises:
        ValueError: device, engine, precision and kind of file contradict each other.
        WeightsError: the file is no YOLO pose model of 17 keypoints, does not fit the settings, or its engine is not
            installed.
    """
    weights = whole_weights(weights)
    made_for = _MADE_FOR.get(OPENVINO_FOLDER if weights.name.endswith(OPENVINO_FOLDER) else weights.suffix)
    if weights.suffix != ".pt" and made_for is None:
        raise WeightsError(
            f"weights {weights}: found {weights.suffix or 'a name without an ending'}, expected .pt, .onnx, .engine or "
            f"a folder *{OPENVINO_FOLDER}. {WHAT_NEXT}"
        )
    if not weights.exists():
        raise WeightsError(f"weights {weights}: found nothing there. {WHAT_NEXT}")
    if made_for is not None and engine not in ("auto", made_for):
        raise ValueError(
            f"weights {weights}: got runtime.pose_engine={engine}, expected auto: {made_for} runs this file. Name the "
            ".pt file that it was exported from, or use --set runtime.pose_engine=auto."
        )
    device = "cpu" if made_for == "openvino" and device == "auto" else resolve_device(device)
    chosen = made_for or resolve_engine(engine, device)
    _check_engine(weights, chosen, device)
    opened = _open_pt if made_for is None else _open_exported
    return opened(weights, chosen, device, precision, size_of)


def resolve_engine(engine: EngineChoice, device: str) -> Engine:
    """Say what runs a .pt file on a device."""
    if engine == "auto":
        return "openvino" if device == "cpu" and _installed("openvino") else "pytorch"
    return engine


def _check_engine(weights: Path, engine: Engine, device: str) -> None:
    """Check that an engine is installed and runs on the device."""
    if engine == "openvino" and device != "cpu":
        raise ValueError(
            f"weights {weights}: got engine openvino on device {device}, expected cpu; use --set runtime.device=cpu, "
            "or a .pt file with --set runtime.pose_engine=pytorch."
        )
    if engine == "tensorrt" and not device.startswith("cuda"):
        raise WeightsError(
            f"weights {weights}: TensorRT needs a CUDA device, found {device}. Use the .pt file that this one was "
            "exported from."
        )
    if engine == "openvino" and not _installed("openvino"):
        raise WeightsError(
            f"weights {weights}: the package openvino is not installed. Install it (pip install 'csip[demo]'), or use "
            "a .pt file with --set runtime.pose_engine=pytorch."
        )
    packages = {"onnxruntime": "onnxruntime" if device == "cpu" else "onnxruntime-gpu", "tensorrt": "tensorrt"}
    if engine in packages and not _installed(engine):
        raise WeightsError(
            f"weights {weights}: the package {engine} is not installed. Install it (pip install {packages[engine]}), "
            "or use the .pt file that this one was exported from."
        )


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _open_pt(weights: Path, engine: Engine, device: str, precision: PosePrecision, size_of: SizeOf) -> Network:
    """Run a .pt file in PyTorch, or convert it for OpenVINO (some seconds, once for each size)."""
    if precision == "int8" or (precision == "float16" and device == "cpu"):
        raise ValueError(
            f"detect.precision: got {precision} for {weights.name} in {engine} on {device}, expected float32 on a CPU, "
            "float32 or float16 on CUDA. Use --set detect.precision=float32, or a file exported in that precision."
        )
    try:
        # By its whole path: of a bare file name, ultralytics would replace a damaged file with a download.
        network, _ = import_quietly("ultralytics.nn.tasks").load_checkpoint(weights.absolute())
        facts = {"task": network.task, "kpt_shape": getattr(network, "kpt_shape", ()), "names": network.names}
        stride = int(network.stride.max())
    except UNLOADABLE as error:
        raise unloadable(weights, error) from error
    classes = check_facts(weights, facts)
    size = size_of(stride, None)
    if engine == "openvino":
        with openvino_model(weights, size) as path:
            lanes, batch = compile_openvino(path, size, batch=1), 1
    else:
        backend = import_quietly("ultralytics.nn.backends").PyTorchBackend(
            network.eval(), torch.device(device), precision == "float16", fuse=True, verbose=False, end2end=False
        )
        backend.model.to(memory_format=torch.channels_last)
        lanes, batch = (_runner(backend, torch.channels_last),), _own_batch(device)
    return Network(engine, device, size, batch, classes, False, lanes)


def _open_exported(weights: Path, engine: Engine, device: str, precision: PosePrecision, size_of: SizeOf) -> Network:
    """Run what ultralytics exported, in the engine that it was exported for."""
    facts = read_facts(weights, precision)
    size = size_of(facts.stride, facts.size)
    batch = facts.batch or _own_batch(device)
    try:
        # Ultralytics looks for packages that only its exporter needs, to install them.
        with environment(ULTRALYTICS_SKIP_REQUIREMENTS_CHECKS="true"):
            if engine == "openvino":
                lanes = compile_openvino(_only_xml(weights), size, batch)
            elif engine == "onnxruntime":
                lanes = (_onnx(weights, device, size, batch, bound=facts.size is not None),)
            else:
                backend = import_quietly("ultralytics.nn.backends").TensorRTBackend(str(weights), torch.device(device))
                lanes = (_runner(backend),)
                # An engine without a size of its own has bounds on it, and says so when it is run.
                lanes[0](torch.zeros(max(batch, 1), 3, *size, dtype=torch.uint8))
    except UNLOADABLE as error:
        raise unloadable(weights, error) from error
    return Network(engine, device, size, batch, facts.classes, facts.end2end, lanes)


def _own_batch(device: str) -> int:
    """Frames a call, of a network that takes any number: on a CPU one at a time is fastest."""
    return 1 if device == "cpu" else 0


def _only_xml(folder: Path) -> Path:
    found = sorted(folder.glob("*.xml"))
    if len(found) != 1:
        raise FileNotFoundError(f"found {len(found)} .xml files in the folder, expected one")
    return found[0]


def _onnx(
    weights: Path, device: str, size: tuple[int, int], batch: int, *, bound: bool
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Open an ONNX file in ultralytics' backend, with as many threads as torch, which sleep when there is no work."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; what it could not speed up is nobody's concern
    options.intra_op_num_threads = torch.get_num_threads()
    # A waiting thread that spins takes its core from the decoder beside it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not bound:
        for name, value in {"height": size[0], "width": size[1], "batch": batch}.items():
            if value:
                options.add_free_dimension_override_by_name(name, value)
    errors = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    try:
        backend = import_quietly("ultralytics.nn.backends").ONNXBackend(
            str(weights), torch.device(device), session_options=options
        )
    except (errors.Fail, errors.InvalidGraph, errors.InvalidArgument, errors.NotImplemented) as error:
        raise RuntimeError(str(error)) from error
    if backend.device != torch.device(device):
        raise WeightsError(
            f"weights {weights}: the installed onnxruntime finds no CUDA, expected one that runs on {device}. Install "
            "onnxruntime-gpu in its place, or use --set runtime.device=cpu."
        )
    return _runner(backend)


def _runner(
    backend: Any, memory_format: torch.memory_format = torch.contiguous_format
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Make a function of one of ultralytics' backends."""
    scaled = ScaledPixels(backend.device, torch.float16 if backend.fp16 else torch.float32, memory_format)

    @torch.inference_mode()
    def run(images: torch.Tensor) -> torch.Tensor:
        output = backend.forward(scaled(images))
        return torch.as_tensor(output[0] if isinstance(output, tuple | list) else output)

    return run
