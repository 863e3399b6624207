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
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

from csip.errors import CsipError
from flows.environment import of_programs

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


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
            # The worker tells its runs; where it is gone, we do.
            for pid in [worker.pid] if worker.returncode is None else _children():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)

    # Prefect's worker stops by SIGINT, which a shell's background jobs ignore, and so would their children.
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    worker = start("prefect", words, of_programs())
    for number in before:
        signal.signal(number, stop)

    def ended() -> None:
        # A container that ended here would take with it what works on well without the worker.
        if not told and _others():
            sys.stderr.write(
                f"Prefect's worker ended by itself (code {worker.returncode}). Its runs go on and are waited for; no "
                "other is taken on here until `csip worker` starts again.\n"
            )

    try:
        _wait_for_all(worker, ended)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if not told:
        raise WorkerError(
            f"Prefect's worker ended by itself (code {worker.returncode}); its last lines above say why. Runs that "
            "died with it are given to another worker in some minutes. Start `csip worker` again."
        )


def start(module: str, words: list[str], settings: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a module as a program, in a session of its own: Ctrl-C in the terminal comes to us, and we pass it on.

    Where we are killed and can pass nothing on, the kernel tells it to end; on Linux alone. Call it in the main thread:
    the kernel goes by the end of the thread.
    """
    return subprocess.Popen(
        [sys.executable, "-m", module, *words],
        env=settings,
        start_new_session=True,
        stdout=sys.stderr,
        preexec_fn=_ending_with(os.getpid()),
    )


def _ending_with(parent: int) -> Callable[[], None] | None:
    """Make what a new process does before it is another program: it asks for SIGTERM when its parent is gone."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # found before there are two processes

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    return ask


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


def _wait_for_all(worker: subprocess.Popen[bytes], ended: Callable[[], None]) -> None:
    """Wait for the worker, whose end `ended` hears of, and for what was adopted, which is reaped at once."""
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, 0)
            if pid == worker.pid:
                worker.returncode = os.waitstatus_to_exitcode(status)
                ended()


def _children() -> list[int]:
    """List what is left to wait for; on Linux alone."""
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()]
    except OSError:
        return []


def _others() -> bool:
    """Tell whether any process is left to wait for."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
