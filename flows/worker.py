"""`csip worker`: Prefect's worker, and an end only when all that it started has ended.

Told to stop, Prefect's own worker is gone within a second, and a training that writes down where it is outlives it. In
a container, or under a service manager, the rest would be killed with the first process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from contextlib import suppress
from types import FrameType

from csip.errors import CsipError
from flows.environment import of_programs

_PR_SET_CHILD_SUBREAPER = 36


class WorkerError(CsipError):
    """Prefect's worker has ended by itself."""


def work(pool: str, at_once: int, *, healthcheck: bool) -> None:
    """Run Prefect's worker until SIGINT or SIGTERM; then wait until the processes of its runs have ended, too.

    A stage that is told to stop ends within `runtime.stop_seconds`.

    Args:
        pool: the work pool that the worker pulls from.
        at_once: flow runs at the same time: one for each device.
        healthcheck: whether the worker answers on port 8080, at /health.

    Raises:
        WorkerError: the worker ended though nobody told it to.
    """
    _adopt_orphans()
    words = ["worker", "start", "--pool", pool, "--type", "process", "--limit", str(at_once)]
    words += ["--with-healthcheck"] if healthcheck else []
    told = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if not told:
            told = True
            worker.terminate()

    # Prefect's worker stops by SIGINT, which a shell's background jobs ignore, and so would their children.
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    worker = start("prefect", words, of_programs())
    for number in before:
        signal.signal(number, stop)
    try:
        _wait_for_all(worker)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if not told:
        raise WorkerError(
            f"Prefect's worker ended by itself (code {worker.returncode}); its last lines above say why. Runs that "
            "died with it are marked crashed. Start `csip worker` again; runs that are run again go on where they were."
        )


def start(module: str, words: list[str], settings: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a module as a program, in a session of its own: Ctrl-C in the terminal comes to us, and we pass it on."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *words], env=settings, start_new_session=True, stdout=sys.stderr
    )


def _adopt_orphans() -> None:
    """Become the parent of whatever our children leave behind; elsewhere than on Linux, the system's first process is.

    Raises:
        OSError: the kernel refuses.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
            number = ctypes.get_errno()
            raise OSError(number, f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(number)}")


def _wait_for_all(worker: subprocess.Popen[bytes]) -> None:
    """Wait for the worker and for what was adopted, which is reaped at once."""
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, 0)
            if pid == worker.pid:
                worker.returncode = os.waitstatus_to_exitcode(status)
