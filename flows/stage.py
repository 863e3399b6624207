"""stage(): a library function becomes a recorded Prefect task, cached where that is safe. The only cache policy.

A stage is keyed on its inputs (references and config sections, never `runtime`) and on the source that its function
reaches by import inside this repository; `csip.config` is left out, since its values arrive as inputs. What is done is
what the store's `runs` table says and whose outputs still open: Prefect's own cache would not see an edited helper or
a vanished table. Extraction is not cached here: it keeps its own account, video by video (`csip.ingest.records`),
because a refactor must not re-extract years of video.
"""

from __future__ import annotations

import inspect
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast, get_args, get_type_hints

from prefect import State, Task, get_run_logger
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.runtime import task_run
from prefect.states import Completed

from csip import errors, tables
from csip.config import RuntimeConfig
from csip.files import digest_file
from csip.maintenance.forget_scrub import without_forgotten
from csip.plain import digest, from_plain, to_plain
from csip.references import FILE, TABLE
from csip.source import git_commit, source_digest
from csip.tables import RunRecord
from csip.types import Output, Stage, TableRef
from flows.artifacts import show_outcome
from flows.child import call, run_stage
from flows.devices import Work, held
from flows.lost import refuse_endless_returns
from flows.parent import run_child
from flows.progress import Reporter, if_reachable, library_log
from flows.together import join_command

RETRY_SECONDS = (10.0, 60.0)
"""How long a task waits before each further attempt, where what went wrong may pass."""
_PASSING = (errors.ProcessLostError, errors.StoreBusyError, errors.StorageFaultError)

P = ParamSpec("P")
T = TypeVar("T")

_PART: ContextVar[tuple[str, ...]] = ContextVar("csip_part", default=())


@contextmanager
def part_of_many(*names: str) -> Iterator[None]:
    """Add these to the names of the tasks of the block: what tells apart what a flow does several times."""
    token = _PART.set((*_PART.get(), *names))
    try:
        yield
    finally:
        _PART.reset(token)


def _with_part(name: str) -> str:
    """Add what the flow does several times. Not inside a task: what a task itself holds must go to other machines."""
    return f"{name} ({', '.join(_PART.get())})" if _PART.get() else name


def stage(
    function: Callable[Concatenate[Output, P], Stage[T]],
    *,
    work: Work | None,
    cached: bool,
    shared: bool = False,
    named: Callable[..., str] | str = "",
) -> Task[Concatenate[str, P], T]:
    """Make a Prefect task of a stage function; the task takes the store's folder in place of the function's `out`.

    Args:
        function: a generator of `Progress` that returns an `Outcome`.
        work: what it uses a device for: it waits until one is free (`flows.devices`), and runs in a child process with
            a deadline; None: it needs none, and runs in the flow's own process.
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
        return _run(function, given.pop("store"), given, work=work, cached=cached, shared=shared)

    run.__name__ = name
    run.__doc__ = function.__doc__
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]

    def call_it(parameters: dict[str, Any]) -> str:
        return _with_part(named(parameters) if callable(named) else (named or name).format(**parameters))

    made = _StageTask(
        run,
        name=name,
        task_run_name=cast("Callable[..., str]", call_it),
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=len(RETRY_SECONDS),
        retry_delay_seconds=list(RETRY_SECONDS),
        retry_condition_fn=_may_pass,
    )
    return cast("Task[Concatenate[str, P], T]", made)


def _may_pass(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """Tell whether another attempt may succeed: after a lost process, or a store that is busy or away for a while."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, _PASSING) or (isinstance(error, OSError) and tables.may_pass(error))


class _StageTask(Task[Any, Any]):
    """A task whose call gives the value even where its function returned a state, as a cached stage does."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task; with `return_state`, give its state."""
        found = super().__call__(*args, **kwargs)
        return found.result() if isinstance(found, State) and not kwargs.get("return_state") else found


def _run(function: Any, store: str, given: dict[str, Any], *, work: Work | None, cached: bool, shared: bool) -> Any:
    name, module = function.__name__, function.__module__
    runtime: RuntimeConfig = from_plain(RuntimeConfig, given.get("runtime", {}))
    inputs = _without_runtime(given)
    source = source_digest(module)
    key = digest(name, inputs, source)
    kind = get_args(get_type_hints(function)["return"])[2]
    logger = get_run_logger()
    refuse_endless_returns()
    tables.prepare_store(store)
    if cached and (known := _done_before(store, key)) is not None:
        return _give_again(known, store, kind, logger)
    out = Output(store, uuid.uuid4().hex[:12])
    reporter = Reporter(task_run.name or name)

    def tell(text: str) -> None:
        logger.info(text)
        reporter.warn(text)

    shared = shared and runtime.processes * runtime.nodes > 1
    count = runtime.processes if shared else 1
    with held(work, runtime, count, f"{name} of run {out.run_id}", tell) as device, tables.at_work(store):
        if cached and device.waited and (known := _done_before(store, key)) is not None:
            return _give_again(known, store, kind, logger)
        started, begun = tables.now(), time.monotonic()
        if work is None:
            with library_log(logger, reporter):
                outcome = run_stage(call(function, given | {"out": to_plain(out)}), out, name, reporter)
        else:
            asked = f"{module}:{name}"
            if shared and runtime.nodes > 1:
                tell(f"Waiting for {runtime.nodes - 1} more machines: `{join_command(runtime)}` on each.")
            outcome = from_plain(kind, run_child(asked, out, given, runtime, shared, device, reporter, logger))
        reporter.finish()
        run = RunRecord(
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
            device=device.name if "runtime" in given else "cpu",
            started=started,
            seconds=round(time.monotonic() - begun, 3),
        )
        tables.record_run(store, without_forgotten(store, run))
    for path in outcome.leftovers:
        Path(path).unlink(missing_ok=True)
    _show(name, store, outcome.value, outcome.counts, inputs, logger)
    return outcome.value


def _done_before(store: str, key: str) -> RunRecord | None:
    """Find the run of this key whose outputs are all still there."""
    known = tables.find_run(store, key)
    return known if known is not None and _still_there(known.outputs) else None


def _give_again(known: RunRecord, store: str, kind: Any, logger: Any) -> State[Any]:
    logger.info("%s: nothing to do, run %s has done it.", known.stage, known.run_id)
    value = from_plain(kind, {"value": known.outputs}).value
    _show(known.stage, store, value, known.counts, known.inputs, logger)
    return Completed(name="Cached", message=f"Done by run {known.run_id}.", data=value)


def _show(name: str, store: str, value: Any, counts: Any, inputs: Any, logger: Any) -> None:
    with if_reachable(logger.warning):
        show_outcome(task_run.name or name, store, value, counts, inputs)


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
