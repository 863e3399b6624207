"""Runs whose worker, process or machine is gone: how Prefect's server notices, and how they come back.

A run sends a heartbeat every 30 seconds. One that sends none for 95 becomes *Lost*, a crashed state; so does one that a
worker took ten minutes ago and that has not begun. If it lives, since the network or the server was away and not the
run, it finds itself lost within half a minute and says that it is running. (A rule of the server would not do: a server
that has just begun anew lets an event wait a quarter of an hour for the one before it.) If it does not for two minutes,
and a deployment of ours made it, it is handed to a worker once more, where it goes on from what is committed. One that
was to be cancelled is cancelled.

Where a run that lives is not heard for so long that it is handed out, two processes do one run. That costs time and
nothing else: on one machine the second waits for the device (`flows.devices`) and finds the work done, and on two
machines both write the same rows under the same keys, and weights under names that follow from their content.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from datetime import timedelta
from itertools import pairwise
from uuid import UUID

from prefect import State, get_run_logger, runtime
from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Running

from csip.errors import StageError
from flows.environment import HEARTBEAT_SECONDS
from flows.progress import if_reachable

TAG = "csip"
"""What every run of our flows is tagged with: on a server that others use, too, theirs are left alone."""

LOST = "csip: runs whose worker is gone are crashed"
AGAIN = "csip: lost runs are run again"
UNBEGUN = "csip: runs that their worker has not begun are crashed"
ENDED = "csip: runs whose worker is gone and that are to be cancelled are cancelled"
RULES = (LOST, AGAIN, UNBEGUN, ENDED)
SILENCE_SECONDS = 95
_BEGIN_SECONDS = 600
_END_SECONDS = 300
# Four heartbeats. Prefect looks within some seconds of the end.
_PATIENCE_SECONDS = 120
_LOST_STATE = "Lost"
_HANDED_OUT = "Lost, and not heard since: a worker goes on with it."
_ELSE = "If not, a run of a deployment is given to a worker in some minutes; run any other again."
MOST_RETURNS = 3
"""How often a run is handed out again."""

_SECONDS_TO_FINISH_ASKING = 2
_LOG = logging.getLogger(__name__)

_HEARTBEAT, _IS_LOST = "prefect.flow-run.heartbeat", f"prefect.flow-run.{_LOST_STATE}"
_IS_TO_END = "prefect.flow-run.Cancelling"
# A run begins with a heartbeat. One that says it is running may end in the same second, and would be running for ever.
_HEARD = {_HEARTBEAT, "prefect.flow-run.Running"}
# A run that waits for a worker, or for its turn, is *Scheduled*, *Late* or *AwaitingConcurrencySlot*.
_TAKEN = {f"prefect.flow-run.{name}" for name in ("Pending", "Submitting", "InfrastructurePending")}
_RUN = {"prefect.resource.id": "prefect.flow-run.*"}
# Events of a state, whatever its name, tell its type. A heartbeat tells none, and may be a lost run's last word.
_STATE = _RUN | {"prefect.state-type": "*"}
_OURS = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
_DEPLOYED = {"prefect.resource.role": "deployment", "prefect.resource.id": "prefect.deployment.*"}
# Kubernetes lets a run wait for a GPU as long as it takes, and its worker gives up by its own clock.
_IN_PROCESSES = {"prefect.resource.role": "work-pool", "prefect.work-pool.type": "process"}


def watch_over_runs() -> list[Automation]:
    """Make the rules by which runs are lost, and run again."""
    lost = _become(
        StateType.CRASHED,
        _LOST_STATE,
        f"No heartbeat for {SILENCE_SECONDS} s: its process, worker or machine is gone, or cannot be heard. If it "
        f"lives, it says so and goes on. {_ELSE}",
    )
    unbegun = _become(
        StateType.CRASHED,
        _LOST_STATE,
        f"A worker took it and has not begun it for {_BEGIN_SECONDS} s: the worker or its machine is gone, or cannot "
        f"be heard. If it begins, it goes on. {_ELSE}",
    )
    ended = _become(
        StateType.CANCELLED,
        None,
        f"Its worker has not ended it for {_END_SECONDS} s, and it is not heard: they, or their machine, are gone.",
    )
    again = _become(StateType.SCHEDULED, "AwaitingRetry", _HANDED_OUT)
    return [
        _rule(LOST, lost, _without(_HEARD, SILENCE_SECONDS)),
        _rule(AGAIN, again, _without({_IS_LOST}, _PATIENCE_SECONDS, _DEPLOYED, of=_STATE)),
        _rule(UNBEGUN, unbegun, _without(_TAKEN, _BEGIN_SECONDS, _IN_PROCESSES)),
        _rule(ENDED, ended, _without({_IS_TO_END}, _END_SECONDS)),
    ]


def _become(kind: StateType, name: str | None, message: str) -> ChangeFlowRunState:
    return ChangeFlowRunState(state=kind, name=name, force=False, message=message)


def _rule(name: str, action: ChangeFlowRunState, trigger: EventTrigger) -> Automation:
    return Automation(name=name, description=action.message or "", trigger=trigger, actions=[action])


def _without(after: set[str], seconds: int, *which: dict[str, str], of: dict[str, str] = _RUN) -> EventTrigger:
    """Say when a rule holds for such runs of ours: after one event, and for some seconds without any other."""
    return EventTrigger(
        match={**of},
        match_related=[{**one} for one in (_OURS, *which)],
        for_each={"prefect.resource.id"},
        after=after,
        expect={"prefect.flow-run.*"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=seconds),
    )


@contextmanager
def coming_back() -> Iterator[None]:
    """While the block runs, let the flow run around it say that it is running where it was taken for lost."""
    run = runtime.flow_run.id
    if not run:
        yield
        return
    over = threading.Event()
    asking = functools.partial(copy_context().run, _come_back, UUID(run), over)
    thread = threading.Thread(target=asking, name="coming back", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(_SECONDS_TO_FINISH_ASKING)  # what it says is not to come after the run's own last word


def _come_back(run: UUID, over: threading.Event) -> None:
    alive: State[None] = Running(message="It was away; it is heard again.")
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        while not over.wait(HEARTBEAT_SECONDS):
            # Whatever the server, or a proxy before it, answers, it is asked again.
            with suppress(ObjectNotFound, ValueError), if_reachable(_LOG.debug), get_client(sync_client=True) as client:
                state = client.read_flow_run(run).state
                if not state or state.name != _LOST_STATE or over.is_set():
                    continue
                if client.set_flow_run_state(run, alive).status is SetStateStatus.ACCEPT:
                    get_run_logger().warning("The server had not heard of this run for a while. It goes on.")


def refuse_endless_returns() -> None:
    """Give up a run that is lost again and again: whatever kills it would kill the next one, too.

    Raises:
        StageError: it was handed out too often.
    """
    run = runtime.flow_run.id
    if run and runtime.flow_run.run_count > 1:
        _look_at_returns(run)


@functools.cache
def _look_at_returns(run: str) -> None:
    """Look once in a process; a run that is refused is looked at again."""
    with get_client(sync_client=True) as client:
        states = sorted(client.read_flow_run_states(UUID(run)), key=lambda state: state.timestamp)
    returns = 0
    for before, state in pairwise(states):
        # Not what only waits on: late, for its turn, or handed out a second time before anybody took it.
        if state.is_scheduled() and (before.is_final() or before.is_running()):
            # Whoever runs it again by hand has the whole number before them.
            returns = returns + 1 if state.message == _HANDED_OUT else 0
    if returns > MOST_RETURNS:
        raise StageError(
            f"This run has lost its worker {returns} times, expected {MOST_RETURNS} at most: that is no accident. What "
            "is committed stays. Look at the machines' memory and logs, and run it again when the cause is mended."
        )
