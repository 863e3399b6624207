"""Progress records to where people look: the terminal, the Prefect UI, or the log."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from csip.errors import CsipError
from csip.types import Progress
from flows.child import LOG_FORMAT, raised_by

Listener = Callable[[Progress], None]

LISTENER: ContextVar[Listener | None] = ContextVar("csip_progress_listener", default=None)
"""Who else hears of progress in this process: the command line sets it around a flow."""

_SECONDS_BETWEEN_UPDATES = 2.0
_MOST_SECONDS_BETWEEN_UPDATES = 30.0
# Prefect keeps an event of each update, of some 4 kB: a task of hours must not fill its database.
_SHARE_OF_THE_TIME = 0.02
_LOG = logging.getLogger(__name__)
_NO_KEY = re.compile("[^a-z0-9]+")


def artifact_key(text: str) -> str:
    """Spell a name as a key of artifacts: lower-case letters, digits and dashes."""
    return _NO_KEY.sub("-", text.lower()).strip("-")


@contextmanager
def if_reachable(tell: Callable[[str], None]) -> Iterator[None]:
    """Let work go on where Prefect's server cannot be told of it: what is shown there is no part of any result.

    Args:
        tell: hears what was wrong.
    """
    try:
        yield
    except httpx.HTTPError as error:
        tell(f"Prefect's server could not be told how it goes ({type(error).__name__}: {error}). The work goes on.")


class ServerError(CsipError):
    """Prefect's server, which keeps the account of a flow and knows the deployments, cannot be used."""


@contextmanager
def server_needed() -> Iterator[None]:
    """Say what to do where Prefect's server is needed and cannot be used.

    Raises:
        ServerError: it cannot be reached, refuses what we ask of it, or is a temporary one that does not start.
    """
    try:
        yield
    except (RuntimeError, httpx.HTTPError) as error:
        if not isinstance(error, httpx.HTTPError) and not raised_by(error, "prefect"):
            raise
        url = PREFECT_API_URL.value()
        where = f"at {url}" if url else "of this process"
        raise ServerError(f"Prefect's server {where}: cannot be used ({error}). {_cure(error, url)}") from error


def _cure(error: Exception, url: str | None) -> str:
    """Say what to do about it: the server may be there, and ask who we are."""
    if isinstance(error, httpx.HTTPStatusError) and error.response.status_code in (401, 403):
        return (
            "It lets in only who says its password: set PREFECT_API_AUTH_STRING to what the server has as "
            "PREFECT_SERVER_API_AUTH_STRING."
        )
    return (
        "Expected one that answers; start one with `csip serve` or `prefect server start`, look whether PREFECT_HOME "
        f"can be written, or {'unset' if url else 'set'} PREFECT_API_URL."
    )


class Reporter:
    """Passes a task's progress on: to the listener at once, to a Prefect progress artifact each 2 s, later each 30."""

    def __init__(self, task: str) -> None:
        self._task = task  # also tells apart runs of one stage that go on at the same time
        # Read here, in the flow's own context: the thread that reads a child's log has none.
        self._listener = LISTENER.get()
        self._artifact: UUID | None = None
        self._heard = True
        self._begun = time.monotonic()
        self._sent = float("-inf")
        self._first: tuple[float, float] | None = None

    def __call__(self, record: Progress) -> None:
        """Pass one record on."""
        record = replace(record, stage=self._task)
        if self._listener is not None:
            self._listener(record)
        now = time.monotonic()
        pause = max(_SECONDS_BETWEEN_UPDATES, _SHARE_OF_THE_TIME * (now - self._begun))
        if now - self._sent < min(pause, _MOST_SECONDS_BETWEEN_UPDATES) or not record.total:
            return
        self._sent = now
        self._send(100 * (record.done + record.part) / record.total, _describe(record) + self._left(record))

    def warn(self, text: str) -> None:
        """Tell the listener something that is no progress."""
        if self._listener is not None:
            self._listener(Progress(self._task, 0, 0, "", note=text))

    def finish(self) -> None:
        """Fill the bar."""
        if self._artifact is not None:
            self._send(100.0, f"{self._task}: done")

    def _left(self, record: Progress) -> str:
        """Estimate the time left from the speed so far; what a resumed stage had done before is no part of it."""
        now, done = time.monotonic(), record.done + record.part
        if self._first is None:
            self._first = (now, done)
        begun, before = self._first
        if done <= before:
            return ""
        seconds = (now - begun) / (done - before) * (record.total - done)
        return f", about {timedelta(seconds=round(seconds))} left"

    def _send(self, percent: float, text: str) -> None:
        before, self._heard = self._heard, False
        # Hours of an outage are many updates. The first one is tried for a minute, as Prefect's client does, and told;
        # from then on nobody waits.
        patience = nullcontext() if before else temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0})
        with if_reachable(self._complain if before else lambda _: None), patience:
            if self._artifact is None:
                made = create_progress_artifact(percent, key=artifact_key(self._task), description=text)
                self._artifact = made if isinstance(made, UUID) else None
            else:
                update_progress_artifact(self._artifact, percent, description=text)
            self._heard = True

    def _complain(self, text: str) -> None:
        _LOG.warning("%s", text)
        self.warn(text)


def _describe(record: Progress) -> str:
    values = ", ".join(f"{name} {value:.4g}" for name, value in record.values.items())
    done = f"{record.done + record.part:.1f}" if record.part else f"{record.done}"
    return f"{record.stage}: {done} of {record.total} {record.unit}" + (f" ({values})" if values else "")


def passing_on(logger: Any, reporter: Reporter, tail: deque[str]) -> Callable[[str | None], None]:
    """Make what takes a stage's log, line by line: to the run's log, and warnings to whoever watches.

    Args:
        logger: the run's.
        reporter: the task's.
        tail: keeps the last lines.
    """
    levels = {"WARNING": logging.WARNING, "ERROR": logging.ERROR, "CRITICAL": logging.ERROR}

    def put(line: str | None) -> None:
        if line is not None and line.strip():
            tail.append(line.rstrip())
            level = levels.get(line.partition(" ")[0], logging.INFO)
            logger.log(level, "%s", line.rstrip())
            if level == logging.WARNING:
                reporter.warn(line.rstrip().partition(": ")[2])

    return put


@contextmanager
def library_log(logger: Any, reporter: Reporter) -> Iterator[None]:
    """Pass on what the library logs in this thread, as the log of a stage's own process is passed on."""
    library, handler = logging.getLogger("csip"), _Lines(passing_on(logger, reporter, deque(maxlen=0)))
    before = library.level
    library.setLevel(logging.INFO)
    library.addHandler(handler)
    try:
        yield
    finally:
        library.removeHandler(handler)
        library.setLevel(before)


class _Lines(logging.Handler):
    """Hands one thread's records on as lines."""

    def __init__(self, put: Callable[[str | None], None]) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(LOG_FORMAT))
        self._put, self._thread = put, threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self._put(self.format(record))
