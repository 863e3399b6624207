"""Where weights from outside lie on this machine, for pose models and image encoders alike."""

from __future__ import annotations

import hashlib
import os
from importlib.resources import files
from pathlib import Path

from csip.errors import WeightsError
from csip.files import digest_file

OPENVINO_FOLDER = "_openvino_model"
"""How the name of a folder ends that ultralytics exports a model to for OpenVINO."""


def cache_folder() -> Path:
    """Name the user's cache: the environment's CSIP_CACHE, else ~/.cache/csip."""
    return Path(os.environ.get("CSIP_CACHE") or Path.home() / ".cache" / "csip").expanduser()


def cached_weights(name: str) -> Path:
    """Say where in the user's cache a weights file of this name belongs."""
    return cache_folder() / "weights" / name


def local_weights(name: str) -> tuple[Path | None, list[str]]:
    """Look for weights on this machine: at the path given, in the user's cache, in this package, in this order.

    Args:
        name: a path, or a bare name of a file or an OpenVINO folder; only a bare name is looked for in the cache and
            the package.

    Returns:
        The file or folder, or None; and the places looked at.
    """
    places = [Path(name).expanduser()]
    if len(places[0].parts) == 1:
        places += [cached_weights(name), Path(str(files("csip") / "assets" / name))]
    return next((place for place in places if _is_weights(place)), None), [str(place.absolute()) for place in places]


def _is_weights(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and path.name.endswith(OPENVINO_FOLDER))


def whole_weights(path: Path) -> Path:
    """Give the whole of what a path names: of an OpenVINO model's .xml its folder, else the path itself.

    Raises:
        WeightsError: an .xml outside of a folder that ultralytics exports.
    """
    if path.suffix != ".xml":
        return path
    folder = path.absolute().parent
    if not folder.name.endswith(OPENVINO_FOLDER):
        raise WeightsError(
            f"weights {path}: found an .xml in the folder {folder.name}, expected one in a folder *{OPENVINO_FOLDER}, "
            "as ultralytics' export writes it. Export the model again (yolo export format=openvino)."
        )
    return folder


def digest_weights(path: Path) -> str:
    """Digest everything that weights consist of.

    Returns:
        Of a file, the SHA-256 of its bytes. Of an OpenVINO folder (or its .xml), the SHA-256 of the list of its files
        as `sha256sum` writes it, in the order of their names.

    Raises:
        OSError: a file cannot be read.
        WeightsError: see `whole_weights`.
    """
    path = whole_weights(path)
    if not path.is_dir():
        return digest_file(path)
    inside = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    lines = (f"{digest_file(inside[name])}  {name}\n" for name in sorted(inside))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
