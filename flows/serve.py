"""`csip serve`: Prefect's server, a work pool, the deployments and a worker here, until it is told to stop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import FrameType

from prefect.settings import PREFECT_SERVER_API_AUTH_STRING

from csip.errors import CsipError
from flows.environment import of_programs
from flows.worker import start

HOST = "127.0.0.1"
_QUIET = {
    # Beside what the command line sets for all of its commands; what the user sets holds.
    "PREFECT_SERVER_UI_V2_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
}
_START_SECONDS = 120.0
_END_SECONDS = 60.0
_LOOK_SECONDS = 0.5


class ServeError(CsipError):
    """The server or the worker cannot be started, or has ended."""


class StoppedError(Exception):
    """We were told to stop."""


def serve(port: int, pool: str, at_once: int, stop_seconds: float, ready: Callable[[str], None]) -> None:
    """Run a server and a worker until SIGINT or SIGTERM, or until one of them ends; then end both.

    Args:
        port: of the server, on this machine alone.
        pool: the work pool that the worker pulls from; `ready` makes it.
        at_once: flow runs at the same time: one for each device.
        stop_seconds: how long a run may take to save what it has.
        ready: is called with the API's address once the server answers, before the worker starts.

    Raises:
        ServeError: the port is taken, the server does not answer, or one of them has ended by itself.
    """
    _look_for_port(port)
    url = f"http://{HOST}:{port}/api"
    settings = server_environment(port)
    before = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with ExitStack() as stack:
            server = start("prefect", ["server", "start", "--host", HOST, "--port", str(port)], settings)
            stack.callback(_end, server, _END_SECONDS)
            _wait(server, f"{url}/health")
            ready(url)
            worker = start("flows", ["worker", "--pool", pool, "--limit", str(at_once)], settings)
            stack.callback(_end, worker, _END_SECONDS + stop_seconds)
            while True:
                for name, process in (("server", server), ("worker", worker)):
                    if process.poll() is not None:
                        raise ServeError(
                            f"Prefect's {name} ended by itself (code {process.returncode}); its last lines above say "
                            "why. Flow runs are kept in the server's database; start `csip serve` again."
                        )
                time.sleep(_LOOK_SECONDS)
    except StoppedError:
        return
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def server_environment(port: int) -> dict[str, str]:
    """Give the environment of a server on this port and of who talks to it: the user's own, without telemetry."""
    # Else the UI would call port 4200, whatever port its server has.
    own = {"PREFECT_API_URL": f"http://{HOST}:{port}/api", "PREFECT_SERVER_API_PORT": str(port)}
    known = {"PREFECT_API_AUTH_STRING": password()} if password() else {}
    return _QUIET | of_programs() | own | known


def password() -> str:
    """Give what our own server wants to hear, so that our worker and we can say it; empty: nothing."""
    return PREFECT_SERVER_API_AUTH_STRING.value() or ""


def _stop(number: int, frame: FrameType | None) -> None:
    # A second signal must not break off what ends the processes.
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    raise StoppedError


def _look_for_port(port: int) -> None:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((HOST, port))
        except OSError as error:
            raise ServeError(
                f"Port {port} of {HOST}: cannot be had ({error.strerror}). Expected a free one; is a server running "
                "already? End it, or name another with --port."
            ) from error


def _wait(server: subprocess.Popen[bytes], address: str) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        if server.poll() is not None:
            raise ServeError(f"Prefect's server ended with code {server.returncode}; its last lines above say why.")
        try:
            urllib.request.urlopen(address, timeout=_LOOK_SECONDS * 10).close()
        except (urllib.error.URLError, OSError):
            time.sleep(_LOOK_SECONDS)
        else:
            return
    raise ServeError(f"Prefect's server did not answer at {address} within {_START_SECONDS:g} s. Is the machine busy?")


def _end(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Tell a process to end, and after a while the whole of its group."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()
