"""Where weights from outside lie on this machine, for pose models and image encoders alike."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path


def cache_folder() -> Path:
    """Name the user's cache: the environment's CSIP_CACHE, else ~/.cache/csip."""
    return Path(os.environ.get("CSIP_CACHE") or Path.home() / ".cache" / "csip").expanduser()


def cached_weights(name: str) -> Path:
    """Say where in the user's cache a weights file of this name belongs."""
    return cache_folder() / "weights" / name


def local_weights(name: str) -> tuple[Path | None, list[str]]:
    """Look for weights on this machine: at the path given, in the user's cache, in this package, in this order.

    Args:
        name: a path, or a bare file name; only a bare name is looked for in the cache and the package.

    Returns:
        The file, or None; and the places looked at.
    """
    places = [Path(name).expanduser()]
    if len(places[0].parts) == 1:
        places += [cached_weights(name), Path(str(files("csip") / "assets" / name))]
    return next((place for place in places if place.is_file()), None), [str(place.absolute()) for place in places]
