"""What Prefect finds in the environment of our commands, and of the runs that deployments start.

What the user sets holds, everywhere. Prefect reads it when it is imported, so nothing here imports Prefect.
"""

from __future__ import annotations

import os

HEARTBEAT_SECONDS = 30
"""From one sign of life of a flow run to the next; `flows.lost` waits for them. Prefect sends none more often."""

_RUNS = {"DO_NOT_TRACK": "1", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)}
_COMMANDS = _RUNS | {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # The command line prints a user's error itself, once, without a traceback.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_FLOW_RUNS_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_TASK_RUNS_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_HANDLERS_DEBUG_LEVEL": "CRITICAL",
    # Prefect gives its temporary server 20 seconds; a busy machine needs more.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}


def prepare() -> None:
    """Set what our commands want, where the user has not."""
    for name, value in _COMMANDS.items():
        os.environ.setdefault(name, value)


def of_runs() -> dict[str, str]:
    """Give what a run wants that any worker starts, also Prefect's own; as the user has it who deploys."""
    return {name: os.environ.get(name, value) for name, value in _RUNS.items()}


def of_programs() -> dict[str, str]:
    """Give the environment for a program of Prefect's: this one, without what quietens our own terminal."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_LOGGING_HANDLERS_")}
