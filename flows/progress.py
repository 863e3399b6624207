"""Progress records to where people look: the terminal, the Prefect UI, or the log."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from csip.types import Progress

Listener = Callable[[Progress], None]

LISTENER: ContextVar[Listener | None] = ContextVar("csip_progress_listener", default=None)
"""Who else hears of progress in this process: the command line sets it around a flow."""

_SECONDS_BETWEEN_UPDATES = 2.0
_NO_KEY = re.compile("[^a-z0-9]+")


def artifact_key(text: str) -> str:
    """Spell a name as a key of artifacts: lower-case letters, digits and dashes."""
    return _NO_KEY.sub("-", text.lower()).strip("-")


class Reporter:
    """Passes a task's progress on: to the listener at once, to a Prefect progress artifact every two seconds."""

    def __init__(self, task: str) -> None:
        self._task = task  # also tells apart runs of one stage that go on at the same time
        # Read here, in the flow's own context: the thread that reads a child's log has none.
        self._listener = LISTENER.get()
        self._artifact: UUID | None = None
        self._sent = float("-inf")
        self._first: tuple[float, int] | None = None

    def __call__(self, record: Progress) -> None:
        """Pass one record on."""
        record = replace(record, stage=self._task)
        if self._listener is not None:
            self._listener(record)
        if time.monotonic() - self._sent < _SECONDS_BETWEEN_UPDATES or not record.total:
            return
        self._sent = time.monotonic()
        self._send(100 * record.done / record.total, _describe(record) + self._left(record))

    def warn(self, text: str) -> None:
        """Tell the listener something that is no progress."""
        if self._listener is not None:
            self._listener(Progress(self._task, 0, 0, "", note=text))

    def finish(self) -> None:
        """Fill the bar."""
        if self._artifact is not None:
            self._send(100.0, "done")

    def _left(self, record: Progress) -> str:
        """Estimate the time left from the speed so far; what a resumed stage had done before is no part of it."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, record.done)
        begun, before = self._first
        if record.done <= before:
            return ""
        seconds = (now - begun) / (record.done - before) * (record.total - record.done)
        return f", about {timedelta(seconds=round(seconds))} left"

    def _send(self, percent: float, text: str) -> None:
        if self._artifact is None:
            made = create_progress_artifact(percent, key=artifact_key(self._task), description=text)
            self._artifact = made if isinstance(made, UUID) else None
        else:
            update_progress_artifact(self._artifact, percent, description=text)


def _describe(record: Progress) -> str:
    values = ", ".join(f"{name} {value:.4g}" for name, value in record.values.items())
    return f"{record.stage}: {record.done} of {record.total} {record.unit}" + (f" ({values})" if values else "")
