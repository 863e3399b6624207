"""One pose model and one training a device: who may use which of this machine's devices, and who has to wait.

A slot is a lock on a file in the user's cache, or in the folder of temporary files where there can be none. The kernel
gives it up when the last process that holds it is gone, however it ended, so no server is asked, nothing is left
locked, and a run that was killed still counts for as long as its stage's process saves what it has. Prefect's own
concurrency limits know no machines and no devices.

Who shares a cache waits for each other: all processes of a user, and containers of one machine that have one folder as
CSIP_CACHE. Two users of a machine have a cache each, and do not see each other: let one of them run CSIP.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from csip.config import RuntimeConfig
from csip.device import device_uuid, list_devices, resolve_device
from csip.errors import StageError
from csip.weights import cache_folder

Work = Literal["pose", "training"]
"""What a device is for: a pose model and a training may share one, two of a kind may not."""

_SECONDS_BETWEEN_LOOKS = 0.5
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SECONDS_KEPT = 30 * 86_400.0


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
    folder = _place()
    return [(one, folder / f"{work}-{_physical(one)}-{n}") for n in range(per_device) for one in names]


def _place() -> Path:
    """Find the folder of this machine's locks: the first of two in which a file can be locked.

    Raises:
        StageError: there is none.
    """
    own, spare = cache_folder() / "devices", Path(tempfile.gettempdir()) / f"csip-devices-{os.getuid()}"
    problems = []
    for folder in (own, spare):
        try:
            folder.mkdir(mode=0o700 if folder is spare else 0o777, parents=True, exist_ok=True)
            if folder is spare:
                _refuse_others(folder)
            place = folder / _machine()
            place.mkdir(exist_ok=True)
            with (place / "try").open("a+") as file, suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            problems.append(f"{folder} ({error.strerror})")
            continue
        _sweep(folder, place)
        return place
    raise StageError(
        f"Locks of devices: no file can be locked in {' nor in '.join(problems)}. Expected a folder on a local disk "
        "that this user can write; set CSIP_CACHE to one."
    )


def _machine() -> str:
    """Name the machine, whatever container this is: by what its kernel drew when it started, or by its name."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


def _refuse_others(folder: Path) -> None:
    # Everybody may write where it lies: what somebody else put there could lead our writing elsewhere.
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise StageError(
            f"{folder}: found a folder of another user, or a link, expected one of this user's own for the locks "
            "of devices. Set CSIP_CACHE to a folder that this user can write."
        )


def _sweep(folder: Path, place: Path) -> None:
    """Remove what machines left that are off: folders where nothing was touched for a month and nothing is locked."""
    for other in folder.iterdir():
        with suppress(OSError):
            files = [] if other == place or other.is_symlink() else [other, *other.iterdir()]
            long_ago = time.time() - _SECONDS_KEPT
            if files and all(file.stat().st_mtime < long_ago for file in files) and not any(map(_locked, files[1:])):
                shutil.rmtree(other)


def _locked(path: Path) -> bool:
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def _lock(slots: list[tuple[str, Path]], name: str, tell: Callable[[str], None]) -> Iterator[tuple[str, IO[str]]]:
    """Hold one of some slots: the name of its device, and the locked file."""
    told = False
    while True:
        for device, path in slots:
            lock = _open(path)
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


def _open(path: Path) -> IO[str]:
    try:
        return path.open("a+", encoding="utf-8")
    except OSError as error:
        raise StageError(
            f"{path}: this device's lock cannot be opened ({error.strerror}). Expected a file that this user can "
            "write: mend its permissions, or set CSIP_CACHE to a folder of this user's own."
        ) from error


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
    """Name a device as the machine knows it, whatever part of the machine this process was shown, and how."""
    kind, _, index = device.partition(":")
    return f"{kind}-{device_uuid(device) or _shown_as(index)}" if index else kind


def _shown_as(index: str) -> str:
    """Say by which word a process may be shown a CUDA device: as it was shown to this one."""
    shown = os.environ.get(_VISIBLE, "").split(",")
    return shown[int(index)].strip() if int(index) < len(shown) and shown[int(index)] else index


def _shown_alone(device: str) -> dict[str, str]:
    """Show a process one CUDA device alone; it is then its first."""
    return {_VISIBLE: _shown_as(device.partition(":")[2])}
