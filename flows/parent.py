"""A heavy stage's process from outside: started, listened to, ended when it hangs, and what it left behind."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from csip import errors
from csip.config import RuntimeConfig
from csip.plain import from_plain, to_plain
from csip.types import Output, Progress
from flows import together
from flows.child import REQUEST, STARTED, STOPPED
from flows.devices import Held
from flows.progress import Reporter, passing_on

# Its own code where it was killed, and that of the launcher of several where the first to fail was.
_KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
_SECONDS_BETWEEN_LOOKS = 0.2


def run_child(
    function: str,
    out: Output,
    given: dict[str, Any],
    runtime: RuntimeConfig,
    shared: bool,
    device: Held,
    reporter: Reporter,
    logger: Any,
) -> dict[str, Any]:
    """Run a stage in a child process, or in several that torchrun starts, here and on other machines.

    It is killed when it reports nothing for `stall_seconds`; other machines are waited for longer. When this process is
    to end, it is told to stop, and has `stop_seconds` to save what it has.

    Raises:
        CsipError: of the kind and with the message that the stage raised; `ProcessLostError` when it was killed, or may
            have lost another machine; `StageError` when it died or hung.
    """
    others = runtime.nodes - 1 if shared else 0
    with tempfile.TemporaryDirectory(prefix="csip-stage-") as name:
        folder = Path(name)
        manifest, started = folder / "manifest.json", folder / "started"
        request = {"function": function, "arguments": given, "out": to_plain(out), "manifest": str(manifest)}
        request |= {"parent": os.getpid(), "stop_seconds": runtime.stop_seconds}
        child = _start(json.dumps(request), folder, runtime, shared, device)
        lines: queue.Queue[str | None] = queue.Queue()
        tail: deque[str] = deque(maxlen=40)
        readers = [
            threading.Thread(target=_pump, args=(child.stdout, lines.put), daemon=True),
            threading.Thread(target=_pump, args=(child.stderr, passing_on(logger, reporter, tail)), daemon=True),
        ]
        patience = runtime.stop_seconds
        try:
            for reader in readers:
                reader.start()
            if others:
                _wait_for_machines(function, child, started, runtime)
            while (line := lines.get(timeout=runtime.stall_seconds)) is not None:
                reporter(from_plain(Progress, json.loads(line)))
            child.wait(timeout=runtime.stall_seconds)
        except (queue.Empty, subprocess.TimeoutExpired):
            patience = 0.0
            raise _stalled(function, child.pid, runtime.stall_seconds, others) from None
        finally:
            together.end(child, patience)
            # Several processes outlive the launcher that was killed until they have seen it; as long, the device is
            # theirs. They hold the other ends of what is read.
            for reader in readers:
                reader.join(timeout=5 + (runtime.stop_seconds if shared else 0))
        return _read_manifest(function, manifest, child.returncode, tail, others)


def _start(request: str, folder: Path, runtime: RuntimeConfig, shared: bool, device: Held) -> subprocess.Popen[str]:
    """Start one process that finds its request on standard input, or torchrun, whose processes find it in a file."""
    command, environment = [sys.executable, "-m", "flows.child"], together.child_environment(runtime)
    if shared:
        file = folder / "request.json"
        file.write_text(request, encoding="utf-8")
        command = together.torchrun(runtime)
        environment |= {REQUEST: str(file), STARTED: str(folder / "started")}
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        # The device stays held until this process is gone too, which may outlive ours while it saves what it has.
        pass_fds=device.files,
        env=environment | dict(device.environment),
    )
    if not shared:
        # A child that died as it started reads nothing; its last words say why.
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(request + "\n")  # type: ignore[union-attr]
            child.stdin.flush()  # type: ignore[union-attr]
    return child


def _pump(stream: Any, put: Callable[[Any], None]) -> None:
    for line in stream:
        put(line)
    put(None)


def _wait_for_machines(function: str, child: subprocess.Popen[str], started: Path, runtime: RuntimeConfig) -> None:
    """Wait until the processes of all machines have met, or the ones here have ended.

    Raises:
        StageError: some machine has not come in time.
    """
    begun = time.monotonic()
    while not started.is_file() and child.poll() is None:
        if time.monotonic() - begun > together.PATIENCE:
            raise errors.StageError(
                f"Stage {function}: waited {together.PATIENCE:g} s for {runtime.nodes} machines in all, and they were "
                f"not. Expected `{together.join_command(runtime)}` on each of the others, by which they can reach "
                "this one; then run the same command again, which goes on from what is committed."
            )
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _stalled(function: str, pid: int, seconds: float, others: int) -> errors.StageError:
    # A machine that is switched off, or no longer reached, says nothing to those that wait for it.
    kind = errors.ProcessLostError if others else errors.StageError
    where = " It, or another machine, hangs or is gone." if others else ""
    return kind(
        f"Stage {function}: its process (pid {pid}) reported nothing for {seconds:g} s and was killed.{where} "
        "Expected progress; run the same command again, which goes on from what is committed, or raise "
        "runtime.stall_seconds."
    )


def _read_manifest(function: str, manifest: Path, code: int, tail: deque[str], others: int) -> dict[str, Any]:
    if not manifest.is_file():
        if code == STOPPED:
            raise errors.StageError(
                f"Stage {function}: was told to stop, and has stopped. What is committed or saved stays; the same "
                "command goes on from there."
            )
        told = "\n  ".join(tail) or "nothing"
        # Where other machines take part, one of them may be gone, and another one, or itself, come back.
        kind = errors.ProcessLostError if code in _KILLED or others else errors.StageError
        where = ", here or on another machine," if others else ""
        raise kind(
            f"Stage {function}: its process{where} ended with code {code} and left no result. Its last words:\n"
            f"  {told}\nCommitted rows are kept; run the same command again once the cause is mended."
        )
    content = json.loads(manifest.read_text(encoding="utf-8"))
    if "error" in content:
        named = getattr(errors, content["error"], None)
        raise (named or ValueError)(content["message"])
    return cast("dict[str, Any]", content["outcome"])
