"""The process that a heavy stage runs in: a request on standard input, progress on standard output, a manifest file.

A process of its own can be killed when native code hangs, gives its GPU memory back, and knows nothing of Prefect.
Told to stop (SIGTERM or SIGINT, or its parent is gone), it closes its stage, which saves what it has, and ends. A
training may run in several such processes, which torchrun starts: they find the request in a file, or are told it by
the first of them where that is on another machine; all do the same work on their shares, and the first one speaks.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from csip import ranks, tables
from csip.device import list_devices
from csip.errors import CsipError, StageError, StorageFaultError
from csip.plain import from_plain, to_plain
from csip.source import source_digest
from csip.types import Outcome, Output, Progress, Stage

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

OURS = ("csip", "flows", "storage_schemas")
REQUEST, STARTED = "CSIP_STAGE_REQUEST", "CSIP_STAGE_STARTED"
STOPPED = 143
LOG_FORMAT = "%(levelname)s %(name)s: %(message)s"
_SECONDS_BETWEEN_RECORDS = 0.2
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_TO_REACH = 60


class StoppedError(Exception):
    """The stage was told to stop, and has saved what it had."""


def run_stage(
    stage: Stage[Any], out: Output, name: str, tell: Any, stopping: Callable[[], bool] = lambda: False
) -> Outcome[Any]:
    """Run a stage to its end: pass on its progress, and keep every epoch's figures in `metrics` and for TensorBoard.

    Args:
        stage: as called.
        out: the store and the run's id.
        name: the stage's.
        tell: who hears of progress.
        stopping: asked after every record; True closes the stage.

    Raises:
        StoppedError: the stage was closed.
    """
    last = float("-inf")
    curves = _Curves(out.store, f"{name}-{out.run_id}")
    try:
        while True:
            try:
                record = next(stage)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            if record.unit == "epochs" and record.values and ranks.rank() == 0:
                rows = [
                    {"run_id": out.run_id, "step": record.done, "name": key, "stage": name, "value": float(value)}
                    for key, value in record.values.items()
                ]
                tables.upsert(out.store, "metrics", tables.from_rows("metrics", rows))
                curves.add(record)
            now = time.monotonic()
            if now - last >= _SECONDS_BETWEEN_RECORDS or record.done == record.total:
                last = now
                tell(record)
            if ranks.any_rank(stopping()):
                raise StoppedError
    finally:
        stage.close()
        curves.close()


class _Curves:
    """TensorBoard's event files of one run; its library is loaded when there is something to write."""

    def __init__(self, store: str, name: str) -> None:
        self._store, self._name = store, name
        self._writer: SummaryWriter | None = None

    def add(self, record: Progress) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(tables.folder(self._store, "tensorboard") / self._name))
        for name, value in record.values.items():
            self._writer.add_scalar(name, value, record.done)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def call(function: Any, arguments: dict[str, Any]) -> Any:
    """Call a stage function with arguments as `to_plain` wrote them, checked against its annotations."""
    hints = get_type_hints(function)
    return function(**{name: from_plain(hints[name], value) for name, value in arguments.items()})


def raised_by(error: BaseException, *packages: str) -> bool:
    """Tell whether code of one of these packages raised it: their own message, not a bug further down."""
    names = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(names) and names[-1].partition(".")[0] in packages


def main() -> int:
    """Serve one request; exit 0 with a result, 3 with a user's error, 143 when stopped, 1 with a traceback."""
    # Libraries that print must not break the stream of records.
    records = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=LOG_FORMAT)
    stop = threading.Event()
    _listen(stop)
    in_file = os.environ.get(REQUEST)
    request = json.loads(Path(in_file).read_text(encoding="utf-8") if in_file else sys.stdin.readline())
    watch = threading.Thread(target=_end_with_parent, args=(request, not in_file, stop), daemon=True)
    watch.start()
    manifest = Path(request["manifest"])

    def tell(record: Progress) -> None:
        if ranks.rank() == 0:
            records.write(json.dumps(to_plain(record)) + "\n")
            records.flush()

    name = "stage"
    formed = threading.Event()
    threading.Thread(target=_end_with_first, args=(formed,), daemon=True).start()
    try:
        with ranks.joined():
            formed.set()
            request |= _agree(request)
            module, _, name = request["function"].rpartition(":")
            out: Output = from_plain(Output, request["out"])
            stage = call(getattr(import_module(module), name), request["arguments"] | {"out": request["out"]})
            with tables.at_work(out.store):  # by itself: it may outlive the process that asked
                outcome = run_stage(stage, out, name, tell, stop.is_set)
            result = {"outcome": to_plain(outcome)}
    except (CsipError, ValueError) as error:
        if isinstance(error, ValueError):
            if not raised_by(error, *OURS):
                raise
            logging.getLogger(__name__).exception("%s", name)
        # Every process of a training fails alike; whichever comes first says why.
        _write(manifest, {"error": type(error).__name__, "message": str(error)})
        return 3
    except (StoppedError, BrokenPipeError):
        return STOPPED
    except OSError as error:
        if not tables.may_pass(error):
            raise
        logging.getLogger(__name__).exception("%s", name)
        _write(manifest, {"error": StorageFaultError.__name__, "message": f"{name}: {error}."})
        return 3
    if os.environ.get("RANK", "0") == "0":
        _write(manifest, result)
    return 0


def _agree(request: dict[str, Any]) -> dict[str, Any]:
    """Let the processes of other machines know what is to be done; each does it on its own machine's device.

    Raises:
        StageError: a machine differs from the first in its code, its number of processes or its kind of device.
    """
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE"):
        return {}
    asked = {key: request.get(key) for key in ("function", "arguments", "out")}
    told: dict[str, Any] = json.loads(ranks.text_from_first(json.dumps(asked)))
    runtime = told["arguments"]["runtime"]
    runtime["device"] = request.get("device", runtime["device"])
    function = told["function"]
    mine = {
        "host": socket.gethostname(),
        "source": source_digest(function.partition(":")[0]),
        "processes": os.environ["LOCAL_WORLD_SIZE"],
        "device": list_devices(runtime["device"])[0].partition(":")[0],
    }
    first, *others = map(json.loads, ranks.text_from_each(json.dumps(mine)))
    for other in others:
        _compare(function, first, other)
    if STARTED in os.environ:
        Path(os.environ[STARTED]).write_text(function, encoding="utf-8")
    return told


def _compare(function: str, first: dict[str, str], other: dict[str, str]) -> None:
    if other["source"] != first["source"]:
        raise StageError(
            f"{function}: found other code on {other['host']} than where the flow runs ({first['host']}), expected the "
            "same. Install the same version of CSIP on all of them."
        )
    if other["processes"] != first["processes"]:
        raise StageError(
            f"{function}: found {other['processes']} processes on {other['host']} and {first['processes']} where the "
            f"flow runs ({first['host']}), expected as many. Give both the same --set runtime.processes=N, `csip join` "
            "and the flow."
        )
    if other["device"] != first["device"]:
        raise StageError(
            f"{function}: found the device {other['device']} on {other['host']} and {first['device']} where the flow "
            f"runs ({first['host']}), expected the same kind. Name one that all have with --set runtime.device=NAME."
        )


def _listen(stop: threading.Event) -> None:
    """Set `stop` when this process is told to end; processes that libraries fork from it just end."""

    def as_usual() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    os.register_at_fork(after_in_child=as_usual)


def _end_with_parent(request: dict[str, Any], piped: bool, stop: threading.Event) -> None:
    """Stop when the process that asked is gone, and end for good if that takes too long."""
    launcher = os.getppid()
    if piped:
        # It holds the other end of standard input open.
        sys.stdin.read()
    else:
        while os.getppid() == launcher and _alive(request["parent"]):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    if not _on_first_machine():
        # All processes stop where one is told to, and the flow with them; a machine that is lost is replaced.
        os._exit(STOPPED)
    stop.set()
    time.sleep(request["stop_seconds"])
    os._exit(STOPPED)


def _end_with_first(formed: threading.Event) -> None:
    """End for good when the torchrun of the first process ends before the processes of several machines are a group.

    It was killed, and may have begun anew. One that is left over would look for those it knew of, for half an hour.
    """
    if _on_first_machine():
        return  # its torchrun ends us
    line = _line_to_first(formed)
    if line is None:
        return
    line.settimeout(None)
    with contextlib.suppress(OSError):
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        line.recv(1)  # nothing is ever sent
    if not formed.is_set():
        sys.stderr.write("The training began anew on its first machine before this one was part of it.\n")
        os._exit(1)


def _line_to_first(formed: threading.Event) -> socket.socket | None:
    """Open a connection to the torchrun of the first process, or end for good; None: they are a group by now."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    begun = time.monotonic()
    while not formed.is_set():
        try:
            return socket.create_connection((host, port), timeout=10)
        except OSError as error:
            if time.monotonic() - begun > _SECONDS_TO_REACH:
                sys.stderr.write(f"The training's first machine cannot be reached at {host}:{port}: {error}.\n")
                os._exit(1)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    return None


def _on_first_machine() -> bool:
    return int(os.environ.get("RANK", "0")) < int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _write(path: Path, manifest: dict[str, Any]) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(manifest), encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
