"""OpenVINO for pose networks: converts .pt weights, once for each size, and compiles for the CPU.

Ultralytics' own backend is not taken here: it computes in bfloat16 where the CPU has it, which moves boxes by pixels,
takes every core, and moves to another device where it finds one.

Shapes: F frames, h and w network pixels.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from csip.errors import WeightsError
from csip.ingest.pose_pixels import ScaledPixels
from csip.ingest.yolo import import_quietly
from csip.weights import cache_folder, digest_weights

_log = logging.getLogger(__name__)


def import_openvino() -> Any:
    """Import OpenVINO without the part that reports home: it forks a process that may never end, and nobody asked."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


@functools.cache
def _core() -> Any:
    """Make the one Core of this process, which stays.

    With every Core, OpenVINO gives the thread a new stack for its signal handlers, and puts the one before back when
    the Core goes. When two go in another order than the reverse, that one is freed memory, and the next signal, such as
    that a child process has ended, writes into it.
    """
    return import_openvino().Core()


def compile_openvino(
    path: Path, size: tuple[int, int], batch: int
) -> tuple[Callable[[torch.Tensor], torch.Tensor], ...]:
    """Compile an .xml for the CPU in float32, on as many threads as torch has.

    The threads work on as many images as OpenVINO thinks best. Those of one image wait for each other after every
    layer, also for one that has lost its core to the decoder; those of two images do not.

    Args:
        path: of the .xml.
        size: (h, w) of all images; a model of any size is bound to it, which is faster.
        batch: F of all calls.

    Returns:
        See `csip.ingest.pose_engines.Network.lanes`.

    Raises:
        RuntimeError: OpenVINO cannot read the file.
    """
    openvino = import_openvino()
    core = _core()
    model = core.read_model(str(path))
    if model.input().partial_shape.is_dynamic:
        model.reshape([batch, 3, *size])
    config = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_PRECISION_HINT": openvino.Type.f32,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        # A thread bound to a core waits for whoever else is on it, such as the decoder: a fifth slower beside one.
        "ENABLE_CPU_PINNING": False,
    }
    compiled = core.compile_model(model, "CPU", config)
    return tuple(_lane(compiled) for _ in range(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")))


def _lane(compiled: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    request = compiled.create_infer_request()
    scaled = ScaledPixels(torch.device("cpu"), torch.float32, torch.contiguous_format)

    def run(images: torch.Tensor) -> torch.Tensor:
        output = request.infer([scaled(images).numpy()], share_inputs=True, share_outputs=True)
        return torch.from_numpy(output[0])

    return run


@contextlib.contextmanager
def openvino_model(weights: Path, size: tuple[int, int]) -> Iterator[Path]:
    """Give the OpenVINO form (.xml) of a .pt file for one network size, from the user's cache or newly converted.

    Raises:
        WeightsError: OpenVINO cannot convert the weights, or cannot load what it made of them.
    """
    versions = [f"{name}{importlib.metadata.version(name)}" for name in ("openvino", "torch")]
    ultralytics = import_quietly("ultralytics").__version__
    height, width = size
    name = "-".join([digest_weights(weights)[:16], f"{height}x{width}", f"ultralytics{ultralytics}", *versions])
    home = cache_folder() / "openvino"
    final = home / name
    with contextlib.ExitStack() as stack:
        if not (final / "model.xml").is_file():
            try:
                home.mkdir(parents=True, exist_ok=True)
                folder = stack.enter_context(tempfile.TemporaryDirectory(dir=home))
            except OSError as error:
                _log.warning("%s cannot be written (%s): the model is converted anew each time.", home, error)
                folder = stack.enter_context(tempfile.TemporaryDirectory())
            fresh = _export(weights, Path(folder), size)
            # Whoever of two processes comes second finds a full folder there, and uses it.
            with contextlib.suppress(OSError):
                os.rename(fresh, final)
            if not (final / "model.xml").is_file():
                final = fresh
        try:
            yield final / "model.xml"
        except RuntimeError as error:
            raise WeightsError(
                f"{final}: OpenVINO cannot load its own model ({' '.join(str(error).split())}). Delete this folder and "
                "try again."
            ) from error


def _export(weights: Path, folder: Path, size: tuple[int, int]) -> Path:
    """Convert with ultralytics' own exporter, which writes beside the weights it reads."""
    import_openvino()
    yolo = import_quietly("ultralytics").YOLO
    copy = Path(shutil.copyfile(weights, folder / "model.pt"))
    threads = torch.get_num_threads()
    try:
        # The exporter sets torch's threads to one core less.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Path(yolo(str(copy)).export(format="openvino", imgsz=list(size), batch=1, device="cpu"))
    except (RuntimeError, AssertionError, ImportError) as error:
        raise WeightsError(
            f"weights {weights}: OpenVINO cannot convert them ({error}). Use --set runtime.pose_engine=pytorch."
        ) from error
    finally:
        torch.set_num_threads(threads)
