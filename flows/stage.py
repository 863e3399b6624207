"""stage(): a library function becomes a recorded Prefect task, cached where that is safe. The only cache policy.

A stage is keyed on its inputs (references and config sections, never `runtime`) and on the source that its function
reaches by import inside this repository; `csip.config` is left out, since its values arrive as inputs. What is done is
what the store's `runs` table says and whose outputs still open: Prefect's own cache would not see an edited helper or
a vanished table. Extraction is not cached here: it keeps its own account, video by video (`csip.ingest.records`),
because a refactor must not re-extract years of video.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast, get_args, get_type_hints

from prefect import State, Task, get_run_logger
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.runtime import task_run
from prefect.states import Completed

from csip import errors, tables
from csip.config import RuntimeConfig, digest, from_plain, to_plain
from csip.device import resolve_device
from csip.files import digest_file
from csip.lineage import FILE, TABLE
from csip.source import git_commit, source_digest
from csip.tables import RunRecord
from csip.types import Output, Progress, Stage, TableRef
from flows.artifacts import show_outcome
from flows.child import REQUEST, call, run_stage
from flows.progress import Reporter

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

RETRY_SECONDS = (10.0, 60.0)
"""How long a task waits before each further attempt, where what went wrong may pass."""
_PASSING = (errors.ProcessLostError, errors.StoreBusyError)

_RANKS = {"WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}

P = ParamSpec("P")
T = TypeVar("T")


def stage(
    function: Callable[Concatenate[Output, P], Stage[T]],
    *,
    process: bool,
    cached: bool,
    shared: bool = False,
    named: Callable[..., str] | str = "",
) -> Task[Concatenate[str, P], T]:
    """Make a Prefect task of a stage function; the task takes the store's folder in place of the function's `out`.

    Args:
        function: a generator of `Progress` that returns an `Outcome`.
        process: run it in a child process with a deadline; else in the flow's own.
        cached: give back a finished run with the same key instead of running it again.
        shared: `runtime.processes` of them work on it together.
        named: what a run of it is called, where the stage's name does not tell runs apart: a function of `parameters`,
            the arguments by name, or a text with them in braces.
    """
    name = function.__name__
    signature = inspect.signature(function)
    parameters = [
        inspect.Parameter("store", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=str),
        *list(signature.parameters.values())[1:],
    ]

    def run(*args: Any, **kwargs: Any) -> Any:
        bound = run.__signature__.bind(*args, **kwargs)  # type: ignore[attr-defined]
        bound.apply_defaults()
        given = {key: to_plain(value) for key, value in bound.arguments.items()}
        return _run(function, given.pop("store"), given, process=process, cached=cached, shared=shared)

    run.__name__ = name
    run.__doc__ = function.__doc__
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    made = _StageTask(
        run,
        name=name,
        task_run_name=named or name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=len(RETRY_SECONDS),
        retry_delay_seconds=list(RETRY_SECONDS),
        retry_condition_fn=_may_pass,
    )
    return cast("Task[Concatenate[str, P], T]", made)


def _may_pass(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """Tell whether another attempt may succeed: after a lost process or a busy store, never after a bad input."""
    return isinstance(state.result(raise_on_failure=False), _PASSING)


class _StageTask(Task[Any, Any]):
    """A task whose call gives the value even where its function returned a state, as a cached stage does."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task; with `return_state`, give its state."""
        found = super().__call__(*args, **kwargs)
        return found.result() if isinstance(found, State) and not kwargs.get("return_state") else found


def _run(function: Any, store: str, given: dict[str, Any], *, process: bool, cached: bool, shared: bool) -> Any:
    name, module = function.__name__, function.__module__
    runtime: RuntimeConfig = from_plain(RuntimeConfig, given.get("runtime", {}))
    inputs = _without_runtime(given)
    source = source_digest(module)
    key = digest(name, inputs, source)
    kind = get_args(get_type_hints(function)["return"])[2]
    logger = get_run_logger()
    tables.prepare_store(store)
    known = tables.find_run(store, key) if cached else None
    if known is not None and _still_there(known.outputs):
        logger.info("%s: nothing to do, run %s has done it.", name, known.run_id)
        value = from_plain(kind, {"value": known.outputs}).value
        show_outcome(task_run.name or name, store, value, known.counts)
        return Completed(name="Cached", message=f"Done by run {known.run_id}.", data=value)
    out = Output(store, uuid.uuid4().hex[:12])
    reporter = Reporter(task_run.name or name)
    started, begun = tables.now(), time.monotonic()
    if process:
        together = runtime.processes if shared else 1
        outcome = from_plain(kind, _run_child(f"{module}:{name}", out, given, runtime, together, reporter, logger))
    else:
        outcome = run_stage(call(function, given | {"out": to_plain(out)}), out, name, reporter)
    reporter.finish()
    tables.record_run(
        store,
        RunRecord(
            run_id=out.run_id,
            stage=name,
            key=key,
            inputs={k: v for k, v in inputs.items() if _is_reference(v)},
            outputs=to_plain(outcome)["value"],
            config={k: v for k, v in inputs.items() if not _is_reference(v)},
            counts=to_plain(outcome)["counts"],
            weights=dict(outcome.weights),
            source_digest=source,
            git_commit=git_commit(),
            device=resolve_device(runtime.device) if "runtime" in given else "cpu",
            started=started,
            seconds=round(time.monotonic() - begun, 3),
        ),
    )
    for path in outcome.leftovers:
        Path(path).unlink(missing_ok=True)
    show_outcome(task_run.name or name, store, outcome.value, outcome.counts)
    return outcome.value


def _without_runtime(given: dict[str, Any]) -> dict[str, Any]:
    """Leave out what only changes the speed, also where a whole experiment is given."""
    kept = {key: value for key, value in given.items() if key != "runtime"}
    return {key: _without_runtime(value) if isinstance(value, dict) else value for key, value in kept.items()}


def _is_reference(value: Any) -> bool:
    """Tell references from config sections and numbers: they, and lists of them, carry a digest, path or version."""
    if isinstance(value, list):
        return bool(value) and all(_is_reference(one) for one in value)
    marks = {"sha256", "version", "tables", "encoder_digest", "run_id", "video_sha", "videos"}
    return isinstance(value, dict) and bool(marks & set(value))


def _still_there(outputs: Any) -> bool:
    """Tell whether every table version among a run's outputs still opens, and every file is as it was written."""
    if isinstance(outputs, list):
        return all(_still_there(one) for one in outputs)
    if not isinstance(outputs, dict):
        return True
    if set(outputs) == TABLE:
        return tables.exists(TableRef(**outputs))
    if set(outputs) == FILE:
        path = Path(outputs["path"])
        return path.is_file() and digest_file(path) == outputs["sha256"]
    return all(_still_there(one) for one in outputs.values())


def _run_child(
    function: str,
    out: Output,
    given: dict[str, Any],
    runtime: RuntimeConfig,
    together: int,
    reporter: Reporter,
    logger: Any,
) -> dict[str, Any]:
    """Run a stage in a child process, or in several that torchrun starts.

    It is killed when it reports nothing for `stall_seconds`. When this process is to end, it is told to stop, and has
    `stop_seconds` to save what it has.

    Raises:
        CsipError: of the kind and with the message that the stage raised; `StageError` when the process died or hung.
    """
    stall = runtime.stall_seconds
    with tempfile.TemporaryDirectory(prefix="csip-stage-") as folder:
        manifest = Path(folder) / "manifest.json"
        request = {"function": function, "arguments": given, "out": to_plain(out), "manifest": str(manifest)}
        request |= {"parent": os.getpid(), "stop_seconds": runtime.stop_seconds}
        child = _start(json.dumps(request), Path(folder), together, runtime.threads)
        lines: queue.Queue[str | None] = queue.Queue()
        tail: deque[str] = deque(maxlen=40)
        readers = [
            threading.Thread(target=_pump, args=(child.stdout, lines.put), daemon=True),
            threading.Thread(target=_pump, args=(child.stderr, _log_to(logger, tail, reporter)), daemon=True),
        ]
        patience = runtime.stop_seconds
        try:
            for reader in readers:
                reader.start()
            while (line := lines.get(timeout=stall)) is not None:
                reporter(from_plain(Progress, json.loads(line)))
            child.wait(timeout=stall)
        except (queue.Empty, subprocess.TimeoutExpired):
            patience = 0.0
            raise errors.StageError(
                f"Stage {function}: its process (pid {child.pid}) reported nothing for {stall:g} s and was killed. "
                "Expected progress; run the same command again, which goes on from what is committed, or raise "
                "runtime.stall_seconds."
            ) from None
        finally:
            _end(child, patience)
            for reader in readers:
                reader.join(timeout=5)
        return _read_manifest(function, manifest, child.returncode, tail)


def _start(request: str, folder: Path, together: int, cores: int) -> subprocess.Popen[str]:
    """Start one process that finds its request on standard input, or torchrun, whose processes find it in a file."""
    # Code comes from where this process has it, not from whatever folder the user stands in.
    paths = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYTHONSAFEPATH": "1"}
    # A scheduler's account of its own processes is none of ours.
    inherited = {name: value for name, value in os.environ.items() if name not in _RANKS}
    threads = {"OMP_NUM_THREADS": str(cores)} if cores else {}
    command = [sys.executable, "-m", "flows.child"]
    if together > 1:
        file = folder / "request.json"
        file.write_text(request, encoding="utf-8")
        paths[REQUEST] = str(file)
        options = ["--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={together}"]
        command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "flows.child"]
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=ENVIRONMENT | inherited | threads | paths,
    )
    if together == 1:
        # A child that died as it started reads nothing; its last words say why.
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(request + "\n")  # type: ignore[union-attr]
            child.stdin.flush()  # type: ignore[union-attr]
    return child


def _end(child: subprocess.Popen[str], patience: float) -> None:
    """Tell a process to stop and wait for it; kill it when it takes longer than `patience` seconds."""
    if child.poll() is None and patience:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=patience)
    child.kill()
    child.wait()


def _pump(stream: Any, put: Callable[[Any], None]) -> None:
    for line in stream:
        put(line)
    put(None)


def _log_to(logger: Any, tail: deque[str], reporter: Reporter) -> Callable[[str | None], None]:
    """Pass a child's log on to the run's log, and its warnings to whoever watches."""
    levels = {"WARNING": logging.WARNING, "ERROR": logging.ERROR, "CRITICAL": logging.ERROR}

    def put(line: str | None) -> None:
        if line is not None and line.strip():
            tail.append(line.rstrip())
            level = levels.get(line.partition(" ")[0], logging.INFO)
            logger.log(level, "%s", line.rstrip())
            if level == logging.WARNING:
                reporter.warn(line.rstrip().partition(": ")[2])

    return put


def _read_manifest(function: str, manifest: Path, code: int, tail: deque[str]) -> dict[str, Any]:
    if not manifest.is_file():
        told = "\n  ".join(tail) or "nothing"
        kind = errors.ProcessLostError if code == -signal.SIGKILL else errors.StageError
        raise kind(
            f"Stage {function}: its process ended with code {code} and left no result. Its last words:\n  {told}\n"
            "Committed rows are kept; run the same command again once the cause is mended."
        )
    content = json.loads(manifest.read_text(encoding="utf-8"))
    if "error" in content:
        named = getattr(errors, content["error"], None)
        raise (named or ValueError)(content["message"])
    return cast("dict[str, Any]", content["outcome"])
