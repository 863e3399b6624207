"""Ultralytics without its side effects, and where pose weights come from.

Imported by way of `import_quietly`, it asks nothing of the network, installs nothing and leaves the user's settings
alone; and it builds nothing from a .pt file but classes that it knows.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import ssl
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from csip.errors import WeightsError
from csip.weights import cache_folder, cached_weights, local_weights

_log = logging.getLogger(__name__)

_MAKER = "https://github.com/ultralytics/assets"
_REACH_SECONDS = 5.0
# One thread opens the pose model while another one loads the tracker: neither may be given half of a module, or find
# the environment as the other one needs it.
_IMPORTING = threading.RLock()


@contextlib.contextmanager
def environment(**defaults: str) -> Iterator[None]:
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
    our cache and not to the user's own settings. Downloads ask the environment anew, so they still work. A .pt file is
    a pickle, and could run anything; in its safe mode, set here, ultralytics lets torch build only tensors and its own
    and torch's layers from one, and evaluates no text. ULTRALYTICS_SAFE_LOAD=false lifts that, for a model with layers
    of one's own. It also sets OMP_NUM_THREADS to 1, which would slow every child process down, and puts a function of
    its own in the place of PIL.Image.open, which for a file that is no picture wants to install a package; both are
    undone.
    """
    with _IMPORTING:
        if module in sys.modules:
            return sys.modules[module]
        settings = str(cache_folder() / "ultralytics")
        opener = Image.open
        try:
            with environment(
                YOLO_OFFLINE="true",
                YOLO_AUTOINSTALL="false",
                YOLO_VERBOSE="false",
                YOLO_CONFIG_DIR=settings,
                ULTRALYTICS_SAFE_LOAD="true",
            ):
                return importlib.import_module(module)
        finally:
            Image.open = opener


def resolve_weights(name: str) -> Path:
    """Find model weights: as a path, in the user's cache, in this package, and at last at their maker's.

    Args:
        name: a path, or a bare file name such as "yolo11n-pose.pt". Whoever names a file trusts it: see
            `import_quietly` and `csip.ingest.pose_engines.open_network`.

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
        f"weights {name}: not found in {'; '.join(looked)}. Copy the file to {cached}, or give the path of a file "
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
