"""What a pose model's file says of itself, read before anything of it is run."""

from __future__ import annotations

import ast
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csip.config import PosePrecision
from csip.errors import WeightsError
from csip.ingest.yolo import import_quietly
from csip.joints import COCO17

WHAT_NEXT = (
    "Use a YOLO pose model as its maker publishes it, for example yolo11n-pose.pt, or ultralytics' export of one."
)

# What torch.load, ultralytics and the engines raise on files that are damaged, of another program, or of a newer
# version.
UNLOADABLE = (
    *(pickle.UnpicklingError, RuntimeError, LookupError, AttributeError, AssertionError),
    *(EOFError, TypeError, ValueError, ImportError, OSError, SyntaxError),
)


# Of an ONNX file these are Python literals in text.
_VALUES = ("kpt_shape", "names", "args", "imgsz", "batch", "stride", "end2end")


@dataclass(frozen=True, slots=True)
class Facts:
    """What an exported file says of itself.

    Attributes:
        stride: both sides of what the network sees are multiples of it.
        classes: that it tells apart; the first is people.
        end2end: its predictions are boxes already, not anchors.
        size: (h, w) of the only images that it takes, or None.
        batch: frames of every call; 0: any number. A TensorRT engine has a largest number, which we always take.
    """

    stride: int
    classes: int
    end2end: bool
    size: tuple[int, int] | None
    batch: int


def unloadable(weights: Path, error: BaseException) -> WeightsError:
    """Say that a file cannot be loaded, and why in one line."""
    found = " ".join(str(error).split())[:300] or type(error).__name__
    return WeightsError(f"weights {weights}: the file cannot be loaded ({found}). {WHAT_NEXT}")


def read_facts(weights: Path, precision: PosePrecision) -> Facts:
    """Read what ultralytics' export wrote into a file, and check that it fits.

    Args:
        weights: an .onnx or .engine file, or an OpenVINO folder.
        precision: that it must have been exported in.

    Raises:
        WeightsError: it is no export of a YOLO pose model of 17 keypoints in that precision.
    """
    raw = import_quietly("ultralytics.nn.backends.base").BaseBackend.read_metadata(weights)
    try:
        said = {k: ast.literal_eval(v) if isinstance(v, str) and k in _VALUES else v for k, v in raw.items()}
        args = said.get("args") or {}
        classes = check_facts(weights, said)
        made_in = _precision_of(args)
        bound = None if args.get("dynamic") else (int(said["imgsz"][0]), int(said["imgsz"][1]))
        batch = int(said["batch"]) if bound or weights.suffix == ".engine" else 0
        facts = Facts(int(said["stride"]), classes, bool(said.get("end2end")), bound, batch)
    except (LookupError, TypeError, ValueError, SyntaxError, AttributeError) as error:
        raise WeightsError(
            f"weights {weights}: found nothing of what ultralytics' export writes into its files ({error!r}): it is "
            f"cut off, or of another program. {WHAT_NEXT}"
        ) from error
    if args.get("nms"):
        raise WeightsError(
            f"weights {weights}: found non-maximum suppression built in (nms=True), with limits of its own, expected a "
            "model without. Export it again with nms=False."
        )
    if made_in != precision:
        raise WeightsError(
            f"weights {weights}: found an export in {made_in}, expected {precision} (detect.precision). Use --set "
            f"detect.precision={made_in}, or export the model again."
        )
    return facts


def _precision_of(args: dict[str, Any]) -> str:
    """Name the precision of an export by its arguments: `quantize`, or `half` and `int8` of older versions."""
    quantize = args.get("quantize")
    if quantize in (8, "w8a8") or args.get("int8"):
        return "int8"
    if quantize in (16, "w16a16") or args.get("half"):
        return "float16"
    return "float32" if quantize in (None, 32) else str(quantize)


def check_facts(weights: Path, said: dict[str, Any]) -> int:
    """Check task, keypoints and classes of a model; give the number of classes.

    Raises:
        LookupError: it says nothing of them.
        WeightsError: it is for something else.
    """
    task, expected = said["task"], (len(COCO17.joints), 3)
    shape = tuple(said.get("kpt_shape") or ()) if task == "pose" else ()
    if task != "pose" or shape != expected:
        found = f"pose with keypoints {shape}" if task == "pose" else task
        raise WeightsError(f"weights {weights}: found a model for {found}, expected pose with {expected}. {WHAT_NEXT}")
    # An engine's facts are JSON, which turns numbers as keys into text.
    names = {int(number): name for number, name in said["names"].items()}
    if len(names) > 1 and names[0] != "person":
        raise WeightsError(f"weights {weights}: found class {names[0]!r} first, expected 'person'. {WHAT_NEXT}")
    return len(names)
