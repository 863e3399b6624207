"""Processes that train together, on one machine or on several: torchrun, and the machines that wait to take part.

The flow runs on one machine. Every other one runs `csip join`: it starts its share of the processes each time the flow
comes to a training, and they are told by the first process what to do. All of them see the store under the same path;
devices, how many processes share the work, and how many threads each has, every machine says for itself.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from csip.config import RuntimeConfig
from csip.errors import StageError
from flows.child import REQUEST, STARTED
from flows.devices import Held, held

ENVIRONMENT = {
    # OpenMP's threads wait for each other by spinning. On a machine with other work to do, that made small training
    # steps ten times slower; a thirtieth of the default patience costs nothing measurable on an idle one.
    "GOMP_SPINCOUNT": "10000",
    # The C library gives a large piece of memory back as soon as it is free, and the next one comes as new pages, one
    # fault each: a third of the time of a ViT-B/16's step on a CPU, and of reading crops. Here it keeps what it has;
    # the process ends with the stage.
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
}
"""What a stage's process has in its environment, where the user did not set it otherwise."""

_RANKS = {"WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
PATIENCE = 3600
"""How many seconds a training waits for the machines that are to take part; a machine that still waits begins anew."""
# The flow says what it has waited for; only then torchrun may give up.
_MORE_PATIENCE = 60
_SECONDS_AFTER_FAILING = 10.0


def child_environment(runtime: RuntimeConfig) -> dict[str, str]:
    """Make the environment of a stage's process."""
    # A scheduler's account of its own processes is none of ours.
    inherited = {name: value for name, value in os.environ.items() if name not in _RANKS}
    threads = {"OMP_NUM_THREADS": str(runtime.threads)} if runtime.threads else {}
    # As long torchrun lets its processes save what they have; its own patience is 30.
    saving = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(math.ceil(runtime.stop_seconds))}
    # Code comes from where this process has it, not from whatever folder the user stands in.
    paths = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYTHONSAFEPATH": "1"}
    return ENVIRONMENT | inherited | threads | saving | paths


def end(process: subprocess.Popen[str], patience: float) -> None:
    """Tell a process to stop and wait for it; kill it when it takes longer than `patience` seconds."""
    if process.poll() is None and patience:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience)
    process.kill()
    process.wait()


def torchrun(runtime: RuntimeConfig, node: int = 0) -> list[str]:
    """Write the command that starts this machine's share of the processes.

    Args:
        runtime: how many processes and machines.
        node: this machine's number, from 0; the flow runs on the first.
    """
    options = ["--standalone", "--local-addr=127.0.0.1"]
    if runtime.nodes > 1:
        host, _, port = runtime.rendezvous.rpartition(":")
        options = [f"--nnodes={runtime.nodes}", f"--node-rank={node}", f"--master-addr={host}", f"--master-port={port}"]
        options.append(f"--rdzv-conf=timeout={PATIENCE + _MORE_PATIENCE}")
    launcher = [sys.executable, "-m", "flows.launcher", *options]
    return [*launcher, f"--nproc-per-node={runtime.processes}", "-m", "flows.child"]


def join_command(runtime: RuntimeConfig) -> str:
    """Write what is to be typed on the other machines."""
    machines = "" if runtime.nodes == 2 else f" --nodes {runtime.nodes} --node K"
    processes = "" if runtime.processes == 1 else f" --set runtime.processes={runtime.processes}"
    return f"csip join {runtime.rendezvous}{machines}{processes}"


def join(runtime: RuntimeConfig, node: int, tell: Callable[[str], None]) -> NoReturn:
    """Take part in one training after another, with a device for each process, until interrupted.

    Args:
        runtime: `nodes`, `rendezvous` and `processes` as the flow has them, and this machine's `device` and `threads`;
            the flow's other settings hold.
        node: this machine's number, from 1.
        tell: hears what happens.

    Raises:
        CsipError: a device does not exist, or nobody knows the host.
    """
    host = runtime.rendezvous.rpartition(":")[0]
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise StageError(
            f"Rendezvous {runtime.rendezvous}: no address found for {host!r} ({error}). Expected the name of the "
            "machine where the flow runs, or its address, as this one knows it."
        ) from error
    with held("training", runtime, runtime.processes, f"csip join {runtime.rendezvous}", tell) as device:
        tell(f"Waiting for trainings at {runtime.rendezvous}, as machine {node} of {runtime.nodes}.")
        while True:
            with tempfile.TemporaryDirectory(prefix="csip-join-") as folder:
                _take_part(runtime, node, Path(folder), device, tell)


def _take_part(runtime: RuntimeConfig, node: int, folder: Path, device: Held, tell: Callable[[str], None]) -> None:
    """Start processes, which wait for a training, and see one through."""
    request, manifest, started = folder / "request.json", folder / "manifest.json", folder / "started"
    mine = {"manifest": str(manifest), "parent": os.getpid(), "stop_seconds": runtime.stop_seconds}
    mine |= {"device": runtime.device}
    request.write_text(json.dumps(mine), encoding="utf-8")
    process = subprocess.Popen(
        torchrun(runtime, node),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        pass_fds=device.files,
        env=child_environment(runtime) | dict(device.environment) | {REQUEST: str(request), STARTED: str(started)},
    )
    words: deque[str] = deque(maxlen=20)
    reader = threading.Thread(target=lambda: words.extend(process.stderr or ()), daemon=True)
    reader.start()
    told, begun = False, time.monotonic()
    try:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
            if not told and started.is_file():
                told = True
                tell(f"Taking part in {started.read_text(encoding='utf-8')}.")
    finally:
        end(process, runtime.stop_seconds)
        reader.join(timeout=5)
    if manifest.is_file():
        tell(f"Not done: {json.loads(manifest.read_text(encoding='utf-8')).get('message', '')}")
    elif process.returncode and (told or time.monotonic() - begun < PATIENCE):
        tell(f"Broken off. The last words:\n{''.join(words).rstrip()}")
        # What fails at once may do so again.
        time.sleep(_SECONDS_AFTER_FAILING)
    elif told:
        tell("Done.")
