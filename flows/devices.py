"""One pose model and one training a device: who may use which of this machine's devices, and who has to wait.

A slot is a lock on a file in the user's cache, or in the folder of temporary files where that cannot be written. The
kernel gives it up when the last process that holds it is gone, however it ended, so no server is asked, nothing is left
locked, and a run that was killed still counts for as long as its stage's process saves what it has. Prefect's own
concurrency limits know no machines and no devices.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from csip.config import RuntimeConfig
from csip.device import list_devices, resolve_device
from csip.errors import StageError
from csip.weights import cache_folder

Work = Literal["pose", "training"]
"""What a device is for: a pose model and a training may share one, two of a kind may not."""

_SECONDS_BETWEEN_LOOKS = 0.5
_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Held:
    """Devices that are held.

    Attributes:
        name: of the device, or of the setting where there are several: "cpu", "cuda:1".
        waited: others had them first.
        files: file numbers of the locks; whoever inherits them holds the devices too.
        environment: what shows a stage's process this device alone, where one of several was free.
    """

    name: str
    waited: bool = False
    files: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def held(
    work: Work | None, runtime: RuntimeConfig, count: int, name: str, tell: Callable[[str], None]
) -> Iterator[Held]:
    """Hold a device, or as many as `count`, while the block runs; wait until they are free.

    Args:
        work: what for; None: for nothing, none is held.
        runtime: which devices, and how many of a kind may share one.
        count: processes that share the work, one a device.
        name: of who holds it, for those who wait.
        tell: hears once whom it waits for.

    Raises:
        CsipError: the device does not exist on this machine, or there is no place for locks.
    """
    if work is None:
        yield Held(resolve_device(runtime.device))
        return
    waited = False

    def wait(text: str) -> None:
        nonlocal waited
        waited = True
        tell(text)

    names = list_devices(runtime.device)
    # Several are taken one by one and always in this order, so that no two wait for each other.
    choices = [[one] for one in names[:count]] if count > 1 else [names]
    with ExitStack() as stack:
        taken = [stack.enter_context(_lock(_slots(work, some, runtime.per_device), name, wait)) for some in choices]
        files = tuple(lock.fileno() for _, lock in taken)
        if count > 1:
            yield Held(runtime.device, waited, files)
        else:
            device = taken[0][0]
            yield Held(device, waited, files, _shown_alone(device) if len(names) > 1 else {})


def _slots(work: Work, names: list[str], per_device: int) -> list[tuple[str, Path]]:
    """Name the files of some devices' slots, the least used devices first."""
    folder = cache_folder() / "devices" / socket.gethostname()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir()) / f"csip-devices-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        # Everybody may write where it lies: what somebody else put there could lead our writing elsewhere.
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            raise StageError(
                f"{folder}: found a folder of another user, or a link, expected one of this user's own for the locks "
                "of devices. Set CSIP_CACHE to a folder that this user can write."
            ) from None
    return [(one, folder / f"{work}-{_physical(one)}-{n}") for n in range(per_device) for one in names]


@contextmanager
def _lock(slots: list[tuple[str, Path]], name: str, tell: Callable[[str], None]) -> Iterator[tuple[str, IO[str]]]:
    """Hold one of some slots: the name of its device, and the locked file."""
    told = False
    while True:
        for device, path in slots:
            lock = path.open("a+", encoding="utf-8")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            with lock:
                lock.truncate(0)
                lock.write(json.dumps({"pid": os.getpid(), "name": name}))
                lock.flush()
                yield device, lock
            return
        if not told:
            told = True
            tell(f"Waiting for a device: {_holders(slots)}. It goes on by itself.")
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _holders(slots: list[tuple[str, Path]]) -> str:
    """Say who holds the devices, as far as they have written it down."""
    told = []
    for device, path in slots:
        try:
            holder = json.loads(path.read_text(encoding="utf-8"))
            told.append(f"{device} is used by {holder['name']} (process {holder['pid']})")
        except (OSError, ValueError, KeyError, TypeError):
            told.append(f"{device} is in use")
    return ", ".join(told)


def _physical(device: str) -> str:
    """Name a device as the machine knows it, whatever part of the machine this process was shown."""
    kind, _, index = device.partition(":")
    if not index:
        return kind
    shown = os.environ.get(_VISIBLE, "").split(",")
    return f"{kind}-{shown[int(index)].strip() if int(index) < len(shown) and shown[int(index)] else index}"


def _shown_alone(device: str) -> dict[str, str]:
    """Show a process one CUDA device alone; it is then its first."""
    return {_VISIBLE: _physical(device).partition("-")[2]}
