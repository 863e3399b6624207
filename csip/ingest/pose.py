"""The door to ultralytics' pose models: `Frames` to `People`.

Both engines run the same network on the same pixels: a frame is letterboxed here to the shape that ultralytics' own
rectangular inference would take, goes through PyTorch or OpenVINO in float32, and comes back through the same
non-maximum suppression.

Shapes: F frames, H and W frame pixels, h and w network pixels, N people, J joints, A anchors.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import pickle
import shutil
import ssl
import sys
import tempfile
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from csip.device import resolve_device
from csip.errors import WeightsError
from csip.joints import COCO17
from csip.types import Frames, People
from csip.weights import cache_folder, cached_weights, local_weights

_log = logging.getLogger(__name__)

Engine = Literal["auto", "openvino", "pytorch"]

_MAKER = "https://github.com/ultralytics/assets"
_REACH_SECONDS = 5.0
_PERSON = 0

# What torch.load and ultralytics raise on files that are damaged, of another program, or of a newer version.
_UNLOADABLE = (
    *(pickle.UnpicklingError, RuntimeError, LookupError, AttributeError),
    *(EOFError, TypeError, ValueError, ImportError, OSError),
)


@contextlib.contextmanager
def _environment(**defaults: str) -> Iterator[None]:
    """Set what the user's environment leaves open; afterwards it is as it was, whatever the block changed."""
    before = dict(os.environ)
    os.environ.update({name: value for name, value in defaults.items() if name not in before})
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def import_quietly(module: str) -> Any:
    """Import a module of ultralytics, which reads its environment once, when it is first imported.

    Offline then, it looks up no names, sends no events and installs nothing, in this process; what it writes goes to
    our cache and not to the user's own settings. Downloads ask the environment anew, so they still work. It also sets
    OMP_NUM_THREADS to 1, which would slow every child process down, and puts a function of its own in the place of
    PIL.Image.open, which for a file that is no picture wants to install a package; both are undone.
    """
    if module in sys.modules:
        return sys.modules[module]
    settings = str(cache_folder() / "ultralytics")
    opener = Image.open
    try:
        with _environment(
            YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false", YOLO_VERBOSE="false", YOLO_CONFIG_DIR=settings
        ):
            return importlib.import_module(module)
    finally:
        Image.open = opener


def resolve_weights(name: str) -> Path:
    """Find model weights: as a path, in the user's cache, in this package, and at last at their maker's.

    Args:
        name: a path, or a bare file name such as "yolo11n-pose.pt".

    Raises:
        WeightsError: they are in none of these places, or could not be fetched.
    """
    found, looked = local_weights(name)
    if found is not None:
        return found
    cached = cached_weights(Path(name).name)
    if len(Path(name).parts) == 1:
        try:
            return _download(name, cached)
        except (OSError, ImportError, LookupError, MemoryError) as error:
            looked.append(f"{_MAKER} ({error})")
    raise WeightsError(
        f"weights {name}: not found in {'; '.join(looked)}. Copy the file to {cached}, or give the path of a .pt file "
        "(--set detect.weights=/path/to/file.pt)."
    )


def _download(name: str, target: Path) -> Path:
    """Fetch a file by way of ultralytics, whole or not at all.

    Raises:
        OSError: there is no connection, no such file, or no place to write to.
        LookupError: its maker's answer was not understood.
        MemoryError: the disk is full.
    """
    for switch in ("YOLO_OFFLINE", "HF_HUB_OFFLINE"):
        if os.environ.get(switch, "").strip().lower() in {"1", "true", "yes", "on", "y", "t"}:
            raise ConnectionError(f"not asked, because {switch} is set")
    if not _reachable(_MAKER):
        raise ConnectionError(f"not reached; tried for at most {_REACH_SECONDS:g} seconds")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        fetched = Path(folder, name)
        _log.info("Downloading %s to %s.", name, target)
        import_quietly("ultralytics.utils.downloads").attempt_download_asset(fetched)
        if not fetched.is_file():
            raise FileNotFoundError("its maker publishes no file of this name")
        os.replace(fetched, target)
    return target


def _reachable(url: str) -> bool:
    """Ask once, within a bound: name look-ups have no time limit of their own, and retries add up to minutes."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_REACH_SECONDS).close()
        except urllib.error.HTTPError:
            pass
        except urllib.error.URLError as error:
            # Its own certificates may be missing where those of the download are not.
            if not isinstance(error.reason, ssl.SSLError):
                return
        except OSError:
            return
        answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_REACH_SECONDS)
    return answered.is_set()


class PoseModel:
    """A YOLO pose model for frames of one size.

    Attributes:
        weights_sha256: of the weights file.
        engine: "openvino" or "pytorch".
        device: "cpu", "cuda:0", ...
        layout: of the J axis.
        network_size: (h, w) that the network sees, pixels.
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
        engine: Engine = "auto",
    ) -> None:
        """Load the weights; the first time for a frame size, OpenVINO also converts them (some seconds).

        Args:
            weights: a .pt file, see `resolve_weights`.
            frame_size: (H, W) of the frames to come.
            image_size: the longer side of what the network sees, rounded up to its stride.
            confidence: lowest box score kept.
            iou: overlap above which the weaker of two boxes goes.
            max_people: most boxes a frame.
            device: "auto", "cpu", "cuda", "cuda:1", ...
            engine: "auto" is OpenVINO on a CPU where it is installed, else PyTorch.

        Raises:
            ValueError: OpenVINO together with a device other than the CPU.
            WeightsError: the file is no YOLO pose model of 17 keypoints, or OpenVINO is asked for and missing.
        """
        self.device = resolve_device(device)
        self.engine = _resolve_engine(engine, self.device)
        self.layout = COCO17
        network = _load(weights)
        self.weights_sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
        self.network_size = _network_size(frame_size, image_size, int(network.stride.max()))
        self._frame_size = frame_size
        self._limits = (confidence, iou, max_people)
        self._end2end = bool(getattr(network, "end2end", False))
        self._classes = len(network.names)
        self._compiled: Any = None
        self._network: Any = None
        if self.engine == "openvino":
            with _openvino_model(weights, self.weights_sha256, self.network_size) as path:
                self._compiled = _compile(path)
        else:
            network = network.fuse(verbose=False).eval().float().to(self.device)
            self._network = network.to(memory_format=torch.channels_last)

    def __call__(self, frames: Frames) -> list[People]:
        """Find the people in each frame.

        Args:
            frames: (F, H, W, 3) RGB, of the size the model was made for.

        Returns:
            F `People`, best score first; the same for a frame whatever frames come with it.

        Raises:
            ValueError: the frames are of another size.
        """
        if frames.pixels.shape[1:3] != self._frame_size:
            raise ValueError(
                f"PoseModel: got frames of {frames.pixels.shape[1:3]} pixels, expected {self._frame_size}; "
                "make a model for each frame size."
            )
        # On a CPU one frame at a time is fastest.
        step = 1 if self.device == "cpu" else max(len(frames), 1)
        people: list[People] = []
        for start in range(0, len(frames), step):
            images = self._letterbox(frames.pixels[start : start + step])
            people += [self._people(prediction) for prediction in self._predict(images)]
        return people

    def _letterbox(self, pixels: np.ndarray[Any, Any]) -> torch.Tensor:
        """(F, H, W, 3) uint8 to (F, 3, h, w) float32 0..1: scaled to fit, grey around."""
        letterbox = import_quietly("ultralytics.data.augment").LetterBox(self.network_size, auto=False)
        images = np.stack([letterbox(image=image) for image in pixels])
        # Ultralytics' loaders give BGR and its predictor turns it to RGB; ours come as RGB.
        return torch.from_numpy(images).permute(0, 3, 1, 2).to(self.device).float().div_(255).contiguous()

    def _predict(self, images: torch.Tensor) -> torch.Tensor:
        """(F, 3, h, w) to raw predictions (F, 4 + classes + J * 3, A)."""
        if self._compiled is not None:
            return torch.from_numpy(self._compiled(images.numpy())[0].copy())
        with torch.inference_mode():
            output = self._network(images.contiguous(memory_format=torch.channels_last))
        prediction: torch.Tensor = output[0] if isinstance(output, tuple | list) else output
        return prediction.float().cpu()

    def _people(self, prediction: torch.Tensor) -> People:
        """Raw predictions of one frame to people, in frame pixels."""
        confidence, iou, max_people = self._limits
        # One frame a call: the function has a time limit for a batch, after which it leaves out the batch's rest.
        kept = import_quietly("ultralytics.utils.nms").non_max_suppression(
            prediction[None],
            confidence,
            iou,
            classes=[_PERSON],
            max_det=max_people,
            nc=self._classes,
            end2end=self._end2end,
        )[0]
        ops = import_quietly("ultralytics.utils.ops")
        boxes = ops.scale_boxes(self.network_size, kept[:, :4], self._frame_size)
        keypoints = kept[:, 6:].reshape(len(kept), len(self.layout.joints), 3)
        keypoints = ops.scale_coords(self.network_size, keypoints, self._frame_size)
        arrays = (value.numpy().astype(np.float32, copy=True) for value in (boxes, kept[:, 4], keypoints))
        return People(*arrays)


def _resolve_engine(engine: Engine, device: str) -> Literal["openvino", "pytorch"]:
    installed = importlib.util.find_spec("openvino") is not None
    if engine == "auto":
        return "openvino" if device == "cpu" and installed else "pytorch"
    if engine == "openvino" and device != "cpu":
        raise ValueError(f"PoseModel: got engine openvino on device {device}, expected cpu; or use engine pytorch.")
    if engine == "openvino" and not installed:
        raise WeightsError(
            "engine openvino: the package openvino is not installed. Install it (pip install 'csip[demo]'), or use "
            "--set runtime.pose_engine=pytorch."
        )
    return engine


def _network_size(frame_size: tuple[int, int], image_size: int, stride: int) -> tuple[int, int]:
    """(h, w): the frame scaled so that its longer side is `image_size`, each side rounded up to the stride."""
    longest = -(-image_size // stride) * stride
    scale = longest / max(frame_size)
    height, width = (-(-round(side * scale) // stride) * stride for side in frame_size)
    return max(height, stride), max(width, stride)


def _load(weights: Path) -> Any:
    """Read a .pt file and check that it is what this class can run.

    Raises:
        WeightsError: see `PoseModel`.
    """
    what_next = "Use a YOLO pose model as its maker publishes it, for example yolo11n-pose.pt."
    if weights.suffix != ".pt" or not weights.is_file():
        raise WeightsError(f"weights {weights}: found no .pt file there. {what_next}")
    yolo = import_quietly("ultralytics").YOLO
    try:
        network = yolo(str(weights)).model
        task, shape = network.task, tuple(network.kpt_shape if network.task == "pose" else ())
    except _UNLOADABLE as error:
        found = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"weights {weights}: the file cannot be loaded ({found}). {what_next}") from error
    expected = (len(COCO17.joints), 3)
    if task != "pose" or shape != expected:
        found = f"pose with keypoints {shape}" if task == "pose" else task
        raise WeightsError(f"weights {weights}: found a model for {found}, expected pose with {expected}. {what_next}")
    return network


@contextlib.contextmanager
def _openvino_model(weights: Path, sha256: str, network_size: tuple[int, int]) -> Iterator[Path]:
    """Give the OpenVINO form (.xml) of the weights for one network size, from the user's cache or newly converted."""
    versions = [f"{name}{importlib.metadata.version(name)}" for name in ("openvino", "torch")]
    ultralytics = import_quietly("ultralytics").__version__
    height, width = network_size
    name = "-".join([sha256[:16], f"{height}x{width}", f"ultralytics{ultralytics}", *versions])
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
            fresh = _export(weights, Path(folder), network_size)
            # Whoever of two processes comes second finds a full folder there, and uses it.
            with contextlib.suppress(OSError):
                os.rename(fresh, final)
            if not (final / "model.xml").is_file():
                final = fresh
        yield final / "model.xml"


def _import_openvino() -> Any:
    """Import OpenVINO without the part that reports home: it forks a process that may never end, and nobody asked."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


def _export(weights: Path, folder: Path, network_size: tuple[int, int]) -> Path:
    """Convert with ultralytics' own exporter, which writes beside the weights it reads."""
    _import_openvino()
    yolo = import_quietly("ultralytics").YOLO
    copy = Path(shutil.copyfile(weights, folder / "model.pt"))
    threads = torch.get_num_threads()
    try:
        # The exporter sets torch's threads to one core less.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Path(yolo(str(copy)).export(format="openvino", imgsz=list(network_size), batch=1, device="cpu"))
    except (RuntimeError, AssertionError, ImportError) as error:
        raise WeightsError(
            f"weights {weights}: OpenVINO cannot convert them ({error}). Use --set runtime.pose_engine=pytorch."
        ) from error
    finally:
        torch.set_num_threads(threads)


def _compile(path: Path) -> Any:
    """Compile for the CPU in float32: on its own, OpenVINO takes bfloat16 where the CPU has it."""
    openvino = _import_openvino()
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": openvino.Type.f32,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    try:
        return openvino.Core().compile_model(str(path), "CPU", config)
    except RuntimeError as error:
        raise WeightsError(
            f"{path}: OpenVINO cannot load its own model ({error}). Delete the folder {path.parent} and try again."
        ) from error
